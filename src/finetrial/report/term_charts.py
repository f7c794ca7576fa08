"""Charts of what acted beside the main loss: shares of gradients, anchors, sets of completions, curricula, guards.

Every function takes a `Report` and returns finished `Chart`s, or nothing where the campaign recorded no such data.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from finetrial.report.curves import CURVE_WIDTH, in_rows, limits, step_axis, value_axis
from finetrial.report.facts import Report, RunFacts
from finetrial.report.learning import last_step, stopped_told, values
from finetrial.report.mechanism_charts import Part, multiples
from finetrial.report.terms import STRONG, TERMS, WEAK, GuardFacts, by_condition, condition_table, guards, pulls
from finetrial.report.theme import (
    INK,
    MUTED,
    SERIES,
    ZONE,
    Chart,
    chart_of,
    finish,
    metric_words,
    number,
    panel_title,
    row_labels,
    rows_axis,
    slug,
    wrap,
)
from finetrial.train.mixture_config import SELECTED, MixtureConfig

ANCHOR = (
    Part("anchor_kl", "divergence (nats/token)", "kl"),
    Part("anchor_coef", "coefficient", "coef"),
    Part("anchor_capped_share", "tokens beyond the cap (share)", "capped"),
)
SETS = (
    Part("diversity_score", "diversity of a set (diversity_score)", "diversity"),
    Part("set_quality", "quality of its completions (set_quality)", "quality"),
    Part("quality_loss", "loss on the rows (quality_loss)", "loss"),
    Part("combined_loss", "loss less λ × score (combined_loss)", "combined"),
)
BINS = 12
"""Points of a curriculum's curve: batches are small, so that single steps are mostly rounding."""
BEYOND = 2.0
"""A floor farther from the data than so many times their range is told and not drawn."""


def charts(report: Report) -> list[Chart]:
    """All of them, in the order of the page."""
    drawn = [gradient_shares(report), anchor_curves(report), set_curves(report)]
    drawn += [curricula(report), *guard_curves(report)]
    return [chart for chart in drawn if chart is not None]


def gradient_shares(report: Report) -> Chart | None:
    """Share of the gradient and cosine with the main one, of every condition's auxiliary terms."""
    found = [pull for pull in pulls(report) if pull.shares]
    if not found:
        return None
    several = len({pull.term for pull in found}) > 1
    terms = ", ".join(dict.fromkeys(TERMS.get(pull.term, pull.term) for pull in found))
    rows, every = [], []
    for pull in found:
        label = wrap(f"{pull.condition}: {TERMS.get(pull.term, pull.term)}" if several else pull.condition, 34, 2)
        row = {"label": label, "target": pull.target}
        for name, points, middle in (("share", pull.shares, pull.share), ("cosine", pull.cosines, pull.cosine)):
            row |= {name: middle, f"{name}_low": min(points, default=None), f"{name}_high": max(points, default=None)}
            every += [{"label": label, "of": name, "value": value} for value in points]
        rows.append(row)
    names = [row["label"] for row in rows]
    height = 36 if any("\n" in name for name in names) else 28
    zones = [{"from": 0, "to": WEAK}, {"from": STRONG, "to": 1}]
    shares = alt.Scale(type="sqrt", domain=[0, 1], nice=False)
    at = [0, WEAK, 0.1, 0.25, 0.5, 0.75, STRONG]
    left = alt.Axis(title="share of the gradient (square-root scale)", values=at, format="~%", labelOverlap=False)
    right = alt.Axis(title="cosine with the main gradient", values=[-1, -0.5, 0, 0.5, 1])
    band = chart_of(zones).mark_rect(color=ZONE)
    share = alt.layer(
        band.encode(alt.X("from:Q", scale=shares, axis=left), alt.X2("to:Q")),
        *_ranges(rows, every, "share", names, shares, left),
        _targets(rows, names, shares, left),
        panel_title("share of the gradient"),
        *row_labels(names),
    )
    cosines = alt.Scale(domain=[-1, 1], nice=False)
    cosine = alt.layer(
        alt.Chart().mark_rule(color=MUTED, strokeDash=[2, 3]).encode(x=alt.datum(0)),
        *_ranges(rows, every, "cosine", names, cosines, right),
        panel_title("direction"),
    )
    told = "; ".join(
        f"{p.condition}, {TERMS.get(p.term, p.term)}: share {number(p.share, 3)}, cosine {number(p.cosine, 2)}"
        for p in found
    )
    asked = " Upright tick: the share that was asked for." if any(pull.target for pull in found) else ""
    longest = max(len(line) for name in names for line in name.split("\n"))
    room = CURVE_WIDTH - 7 * longest - 60
    return finish(
        alt.hconcat(
            share.properties(width=int(room * 0.6), height=alt.Step(height)),
            cosine.properties(width=int(room * 0.34), height=alt.Step(height)),
            spacing=30,
        ),
        "gradient-shares",
        f"What pulled at the adapters: {terms}",
        "Large dot: median over measured updates and seeds; line: lowest to highest; faint dots: the updates. Grey "
        f"zones: below {WEAK:.0%} a term hardly acts, above {STRONG:.0%} little else is learnt.{asked} A cosine near "
        "0 means that the term pulls across the main loss, below 0 against it, above 0 with it.",
        f"Dots and ranges of gradient shares and cosines. {told}.",
    )


def _ranges(
    rows: Sequence[Mapping[str, Any]],
    every: Sequence[Mapping[str, Any]],
    name: str,
    names: Sequence[str],
    scale: alt.Scale,
    axis: alt.Axis,
) -> list[Any]:
    data = chart_of([row for row in rows if row[name] is not None])
    points = chart_of([row for row in every if row["of"] == name])
    y = rows_axis(names)

    def at(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=scale, axis=axis)

    return [
        data.mark_rule(color=SERIES[0], strokeWidth=1.8).encode(at(f"{name}_low"), y, alt.X2(f"{name}_high")),
        points.mark_point(filled=True, size=28, opacity=0.3, color=SERIES[0]).encode(at("value"), y),
        data.mark_point(filled=True, size=110, opacity=1, color=SERIES[0], stroke="white").encode(at(name), y),
    ]


def _targets(rows: Sequence[Mapping[str, Any]], names: Sequence[str], scale: alt.Scale, axis: alt.Axis) -> Any:
    data = chart_of([row for row in rows if row["target"] is not None])
    x = alt.X("target:Q", scale=scale, axis=axis)
    return data.mark_tick(color=INK, thickness=2, height=20, opacity=1).encode(x, rows_axis(names))


def anchor_curves(report: Report) -> Chart | None:
    """Divergence from the base and the anchor's coefficient over steps."""
    runs = [run for run in report.runs if values(run, "anchor_coef")]
    bound = (
        " With top_k it is a lower bound." if any("anchor_lower_bound" in r for run in runs for r in run.curve) else ""
    )
    return multiples(
        report,
        runs,
        ANCHOR,
        "anchor-curves",
        "Anchors while training",
        "Divergence of an anchored token’s distribution from the base’s, before weight and cap, on the rows that are "
        f"trained on; its kind is in the table.{bound}{stopped_told(runs)}",
        per_row=2 if not any(values(run, "anchor_capped_share") for run in runs) else 3,
        height=150,
    )


def set_curves(report: Report) -> Chart | None:
    """Diversity, quality and losses of runs that draw sets."""
    runs = [run for run in report.runs if values(run, "diversity_score")]
    given = {
        run.condition
        for run in runs
        if (condition_table(report, run.condition, "set_diversity") or {}).get("gradient_share")
    }
    weight = Part("set_weight", "λ in force (set_weight)", "weight")
    return multiples(
        report,
        runs,
        [*SETS, *([weight] if given else [])],
        "set-curves",
        "Sets of completions while training",
        "Completions that the adapter draws for prompts it trains on. The loss on the rows is what plain fine-tuning "
        f"lowers; no evaluation loss ever contains the term.{stopped_told(runs)}",
        per_row=2,
        height=150,
    )


def curricula(report: Report) -> Chart | None:
    """Shares of a mixture's parts over steps, where they were to change."""
    panels, told = [], []
    mixed = by_condition(report, (run for run in report.runs if run.record.get("mixture") and run.curve))
    configs = {name: _mixture(report, name) for name in mixed}
    changing = {name: config for name, config in configs.items() if config and _changes(config)}
    if not changing:
        return None
    parts = list(dict.fromkeys(part for config in changing.values() for part in config.names))
    per_row = min(3, len(changing))
    size = (CURVE_WIDTH // max(per_row, 2) - 60, 170)
    for k, (name, config) in enumerate(changing.items()):
        steps = mixed[name][0].record["planned"]["steps"]
        left = alt.Axis(title=f"share of {config.unit}" if k % per_row == 0 else None, tickCount=5, format="~%")
        y = alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), axis=left)
        key = alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1)
        order = alt.Scale(domain=parts, range=[SERIES[j % len(SERIES)] for j in range(len(parts))])
        colour = alt.Color("part:N", scale=order, legend=key, sort=parts)
        x = step_axis(steps, size[0])
        given, asked = _given(mixed[name], config, steps), _asked(config, steps)
        panels.append(
            alt.layer(
                chart_of(asked).mark_line(strokeWidth=1.5, strokeDash=[5, 4], opacity=0.9).encode(x, y, colour),
                chart_of(given).mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=26)).encode(x, y, colour),
                panel_title(wrap(name, 34, 2)),
            ).properties(width=size[0], height=size[1])
        )
        ends = {part: [row["share"] for row in given if row["part"] == part] for part in config.names}
        told.append(f"{name}: " + ", ".join(f"{p} {s[0]:.0%} to {s[-1]:.0%}" for p, s in ends.items() if s))
    return finish(
        in_rows(panels, per_row),
        "curricula",
        "Mixtures that change while training",
        "Solid: what was given, all seeds together; dashed: what was asked for. “selected” are the rows of the "
        f"selection. Each point takes {1 / BINS:.0%} of the steps together, since a batch holds whole rows.",
        f"Shares of a mixture’s parts over steps. {'; '.join(told)}.",
    )


def _mixture(report: Report, condition: str) -> MixtureConfig | None:
    table = condition_table(report, condition, "mixture")
    return None if table is None else MixtureConfig.model_validate(table)


def _changes(config: MixtureConfig) -> bool:
    return any(len({share for _, share in part.points}) > 1 for part in config.parts)


def _asked(config: MixtureConfig, steps: int) -> list[dict[str, Any]]:
    """Share of every part at 60 places of the run."""
    progress_U = np.linspace(0, 1, 60)
    of = {part.name: part.share_at(progress_U) for part in config.by_name}
    of = {SELECTED: 1 - sum(of.values()), **of}
    return [
        {"part": part, "step": 1 + float(at) * (steps - 1), "share": float(share)}
        for part, share_U in of.items()
        for at, share in zip(progress_U, share_U, strict=True)
    ]


def _given(runs: Sequence[RunFacts], config: MixtureConfig, steps: int) -> list[dict[str, Any]]:
    """Share of every part in each bin of steps, all seeds together."""
    width = max(1, math.ceil(steps / BINS))
    sums: dict[int, Counter[str]] = {}
    for run in runs:
        for row in run.curve:
            for part in config.names:
                got = row.get(f"{config.unit}_{part}")
                if got is not None:
                    sums.setdefault((int(row["step"]) - 1) // width, Counter())[part] += got
    rows = []
    for bin_, counted in sorted(sums.items()):
        total = sum(counted.values())
        middle = bin_ * width + (min(width, steps - bin_ * width) + 1) / 2
        rows += [{"part": p, "step": middle, "share": counted[p] / total} for p in config.names if total]
    return rows


def guard_curves(report: Report) -> list[Chart]:
    """A chart per watched metric and suite: every run over steps, the base, the floor, the best and the stop."""
    groups: dict[tuple[str, str], list[GuardFacts]] = {}
    for guard in guards(report):
        groups.setdefault((guard.suite, guard.metric), []).append(guard)
    return [_guards(report, *key, found) for key, found in groups.items() if any(guard.ran for guard in found)]


def _guards(report: Report, suite: str, metric: str, found: Sequence[GuardFacts]) -> Chart:
    seeds = sorted({guard.seed for guard in found})
    colour = alt.Color(
        "seed:N",
        scale=alt.Scale(
            domain=[f"seed {s}" for s in seeds], range=[SERIES[k % len(SERIES)] for k in range(len(seeds))]
        ),
        legend=alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1),
    )
    data = [{"mean": value} for guard in found for _, value in guard.watched if value is not None]
    data += [{"mean": guard.baseline} for guard in found if guard.baseline is not None]
    low, high = limits(data, ("mean",))
    near = {g.floor for g in found if g.floor is not None and _distance(g.floor, low, high) <= BEYOND * (high - low)}
    domain = (min([low, *near]), max([high, *near]))
    names = list(dict.fromkeys(guard.condition for guard in found))
    per_row = min(3, len(names))
    size = (CURVE_WIDTH // max(per_row, 2) - 80, 150)
    steps = last_step([run for run in report.runs if run.condition in names])
    panels = []
    for k, name in enumerate(names):
        mine = [guard for guard in found if guard.condition == name]
        title = metric_words(metric).axis if k % per_row == 0 else None
        panels.append(_guard_panel(name, mine, colour, steps, domain, title, size, near))
    told = "; ".join(f"{g.condition} seed {g.seed}: {_story(g)}" for g in found)
    far = {g.floor for g in found if g.floor is not None} - near
    beyond = f" The floor at {', '.join(number(f) for f in sorted(far))} lies beyond the axis." if far else ""
    return finish(
        in_rows(panels, per_row, between=40),
        f"guards-{slug(suite)}-{slug(metric)}",
        f"What the guards watched: {metric_words(metric).title} on {suite}",
        f"One line per run; {found[0].better} is better. Dotted: the frozen base, "
        "where every run starts; dashed: the floor, beyond which a run is stopped. Ring: the best measurement; cross: "
        f"where the guard ended the run.{beyond} Axes begin near the data.",
        f"Lines of {metric} on {suite} against step, a panel per condition. {told}.",
    )


def _distance(value: float, low: float, high: float) -> float:
    return max(low - value, value - high, 0.0)


def _story(guard: GuardFacts) -> str:
    if not guard.ran or guard.best is None:
        return "never measured"
    end = "ran to its end" if guard.stopped_at is None else f"stopped after step {guard.stopped_at}"
    return f"best {number(guard.best[1], 3)} at step {guard.best[0]}, {end}"


def _guard_panel(
    name: str,
    found: Sequence[GuardFacts],
    colour: alt.Color,
    steps: int,
    domain: tuple[float, float],
    title: str | None,
    size: tuple[int, int],
    near: set[float],
) -> Any:
    lines, best, stops = [], [], []
    for guard in found:
        seed, start = f"seed {guard.seed}", [] if guard.baseline is None else [(0, guard.baseline)]
        seen = [*start, *((step, value) for step, value in guard.watched if value is not None)]
        lines += [{"seed": seed, "step": step, "mean": value} for step, value in seen] if guard.ran else []
        best += [{"seed": seed, "step": guard.best[0], "mean": guard.best[1]}] if guard.best else []
        ended = [value for step, value in seen if step == guard.stopped_at]
        stops += [{"seed": seed, "step": guard.stopped_at, "mean": value} for value in ended]
    x, y = step_axis(steps, size[0]), value_axis(domain, title)
    layers: list[Any] = _levels(found, domain, title, size, near)
    layers.append(chart_of(lines).mark_line(strokeWidth=1.8).encode(x, y, colour))
    layers.append(chart_of(best).mark_point(size=90, strokeWidth=2, opacity=1).encode(x, y, colour))
    cross = chart_of(stops).mark_point(shape="cross", angle=45, filled=True, size=110, opacity=1)
    layers.append(cross.encode(x, y, colour))
    idle = sum(not guard.ran for guard in found)
    words = "" if not idle else ": never measured" if idle == len(found) else f": {idle} of {len(found)} never measured"
    layers.append(panel_title(wrap(f"{name}{words}", 34, 2)))
    return alt.layer(*layers).properties(width=size[0], height=size[1])


def _levels(
    found: Sequence[GuardFacts],
    domain: tuple[float, float],
    title: str | None,
    size: tuple[int, int],
    near: set[float],
) -> list[Any]:
    """Lines of base and floor with their names at the right, apart from one another."""
    base = next((guard.baseline for guard in found if guard.baseline is not None), None)
    floor = next((guard.floor for guard in found if guard.floor in near), None)
    apart = 0.0
    if base is not None and floor is not None:
        pixels = (floor - base) / ((domain[1] - domain[0]) or 1.0) * size[1]
        apart = math.copysign(max(0.0, 14 - abs(pixels)) / 2, pixels)
    layers = []
    for value, text, dash, shift in ((base, "base", [2, 3], apart), (floor, "floor", [6, 4], -apart)):
        if value is not None:
            data, y = chart_of([{"mean": value, "text": text}]), value_axis(domain, title)
            words = data.mark_text(align="left", baseline="middle", dx=5, dy=shift, color=INK, fontSize=11)
            layers.append(data.mark_rule(color=MUTED, strokeDash=dash, strokeWidth=1.5).encode(y))
            layers.append(words.encode(x=alt.value(size[0]), y=y, text="text:N"))
    return layers
