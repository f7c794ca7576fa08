"""Sweeps: conditions that differ in one strength alone, of a term or of their adapters, and their outcomes."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import altair as alt

from finetrial.identity import canonical_json
from finetrial.model.config import ModelConfig
from finetrial.report.curves import CURVE_WIDTH, in_rows
from finetrial.report.facts import Report
from finetrial.report.recipes import adapter_words, model_of
from finetrial.report.theme import (
    INK,
    MUTED,
    SERIES,
    Chart,
    chart_of,
    count,
    finish,
    metric_words,
    number,
    panel_title,
    slug,
)

FEWEST = 3
"""Strengths that make a sweep."""
PANELS = 9


@dataclass(frozen=True)
class Knob:
    """A setting that says how strong something is."""

    table: str
    key: str
    title: str
    axis: str
    metrics: tuple[str, ...]
    """Outcomes that it is meant to move, shown besides those of the contrasts."""


TERMS = (
    Knob("set_diversity", "weight", "Weight λ of set diversity", "λ", ("distinct_2", "self_bleu_4", "correct")),
    Knob(
        "set_diversity",
        "gradient_share",
        "Set diversity’s share of the gradient",
        "share of the gradient that was asked for",
        ("distinct_2", "self_bleu_4", "correct"),
    ),
    Knob("anchor", "coef", "Coefficient of the anchor", "coefficient of the anchor", ("kl_to_base",)),
)


@dataclass(frozen=True)
class AdapterKnob(Knob):
    """A setting of the adapters: what it is swept at, and what moves along with it."""

    strength: Callable[[ModelConfig], float]
    held: Callable[[ModelConfig], float]
    """What all points of a sweep share; the title ends with it."""
    beside: Callable[[ModelConfig], float]
    """Written in brackets beside each strength."""


def _rank(model: ModelConfig) -> float:
    return float(model.lora_rank)


def _alpha(model: ModelConfig) -> float:
    return model.alpha


def _scale(model: ModelConfig) -> float:
    return float(f"{model.scale:.6g}")  # alpha / sqrt(rank) of equal scales differs in its last bits


MOVED = ("kl_to_base",)
ADAPTERS = (
    AdapterKnob("model", "lora_alpha", "Alpha at rank", "alpha (effective scale)", MOVED, _alpha, _rank, _scale),
    AdapterKnob("model", "lora_rank", "Rank at alpha", "rank (effective scale)", MOVED, _rank, _alpha, _scale),
    AdapterKnob("model", "lora_rank", "Rank at effective scale", "rank (alpha)", MOVED, _rank, _scale, _alpha),
)
"""A larger rank at the same alpha is a smaller scale, so rank is swept either way, each with its own title."""


@dataclass(frozen=True)
class Trend:
    """Outcomes of a sweep's conditions in one metric on one suite."""

    suite: str
    metric: str
    means: tuple[float, ...]
    """Mean of the seeds, in the order of the strengths."""
    seeds: tuple[tuple[float, ...], ...]
    base: float | None

    @property
    def words(self) -> str:
        """Which way the means go: a description, no test."""
        ups = {later > earlier for earlier, later in itertools.pairwise(self.means) if later != earlier}
        level = any(later == earlier for earlier, later in itertools.pairwise(self.means))
        if len(ups) != 1 or level:
            return "not monotone"
        return "rises at every step" if ups.pop() else "falls at every step"


@dataclass(frozen=True)
class Sweep:
    """Conditions in the order of their strength."""

    knob: Knob
    title: str
    strengths: tuple[float, ...]
    labels: tuple[str, ...]
    """Strengths as the axis shows them, in one line or two."""
    conditions: tuple[str, ...]
    trends: tuple[Trend, ...]


def sweeps(report: Report) -> list[Sweep]:
    """Every sweep with outcomes; a condition without the term counts as strength 0."""
    conditions = report.section("spec", "conditions") or []
    found = [_of_adapters(report, knob, conditions) for knob in ADAPTERS]
    for knob in TERMS:
        labelled = [{s: (f"{s:g}", name) for s, name in points.items()} for points in _points(conditions, knob)]
        found.append([_sweep(report, knob, knob.title, points) for points in labelled])
    return [sweep for mine in found for sweep in mine if sweep.trends]


def _of_adapters(report: Report, knob: AdapterKnob, conditions: Sequence[Mapping[str, Any]]) -> list[Sweep]:
    """Sweeps of a setting of the adapters; none where recipes were not recorded whole."""
    groups: dict[tuple[str, float], dict[float, tuple[str, str]]] = {}
    titles: dict[tuple[str, float], str] = {}
    for condition in conditions:
        if "init" not in model_of(condition):
            continue
        model = ModelConfig.model_validate(model_of(condition))
        rest = {key: value for key, value in condition.items() if key not in ("name", "question")}
        rest["model"] = model.model_dump(mode="json", exclude={"lora_rank", "lora_alpha"})
        group, strength = (canonical_json(rest), knob.held(model)), knob.strength(model)
        label = f"{strength:.4g}\n({knob.beside(model):.4g})"
        groups.setdefault(group, {}).setdefault(strength, (label, condition["name"]))
        kind = adapter_words(condition)
        titles[group] = f"{knob.title} {knob.held(model):.4g}" + (f", {kind}" if kind != "LoRA" else "")
    wide = {group: dict(sorted(points.items())) for group, points in groups.items() if len(points) >= FEWEST}
    return [_sweep(report, knob, titles[group], points) for group, points in wide.items()]


def _points(conditions: Sequence[Mapping[str, Any]], knob: Knob) -> list[dict[float, str]]:
    """Strength -> condition, for every group of conditions that are otherwise the same."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for condition in conditions:
        rest = {key: value for key, value in condition.items() if key not in ("name", "question", knob.table)}
        groups.setdefault(canonical_json(rest), []).append(condition)
    found = []
    for members in groups.values():
        plain = [condition["name"] for condition in members if condition.get(knob.table) is None]
        without = dict.fromkeys([0.0], plain[0]) if plain else {}
        alike: dict[str, dict[float, str]] = {}
        for condition in members:
            table = condition.get(knob.table)
            strength = None if table is None else _strength(table, knob.key)
            if table is not None and strength is not None:
                others = {k: value for k, value in table.items() if k not in ("weight", "gradient_share", knob.key)}
                alike.setdefault(canonical_json(others), {}).setdefault(strength, condition["name"])
        found += [dict(sorted((without | points).items())) for points in alike.values()]
    return [points for points in found if len(points) >= FEWEST]


def _strength(table: Mapping[str, Any], key: str) -> float | None:
    """How strong a term is by this setting; None where another setting says it."""
    share, weight = table.get("gradient_share"), table.get("weight")
    if key == "weight":
        return None if share is not None else 1.0 if weight is None else weight
    if key == "gradient_share":
        return 0.0 if share is None and weight == 0 else share
    return table.get(key)


def _sweep(report: Report, knob: Knob, title: str, points: Mapping[float, tuple[str, str]]) -> Sweep:
    labels, names = zip(*points.values(), strict=True)
    metrics = dict.fromkeys([*report.charted, *(m for m in knob.metrics if m in report.metrics)])
    trends = []
    for metric, suite in itertools.product(metrics, report.suites):
        cells = [report.cell(name, suite, metric) for name in names]
        values = [cell.values if cell else [] for cell in cells]
        if all(values):
            means = tuple(sum(mine) / len(mine) for mine in values)
            trends.append(Trend(suite, metric, means, tuple(map(tuple, values)), report.base_mean(suite, metric)))
    return Sweep(knob, title, tuple(points), labels, names, tuple(trends))


def facts(report: Report) -> list[dict[str, Any]]:
    """The same for machines."""
    return [
        {
            "setting": f"{sweep.knob.table}.{sweep.knob.key}",
            "title": sweep.title,
            "strengths": list(sweep.strengths),
            "conditions": list(sweep.conditions),
            "outcomes": [asdict(trend) | {"trend": trend.words} for trend in sweep.trends],
        }
        for sweep in sweeps(report)
    ]


def charts(report: Report) -> list[Chart]:
    """One per sweep, named by its setting."""
    drawn: list[Chart] = []
    before: Counter[str] = Counter()
    for sweep in sweeps(report):
        name = f"sweep-{slug(sweep.knob.table)}-{slug(sweep.knob.key)}"
        before[name] += 1
        drawn.append(_chart(sweep, name if before[name] == 1 else f"{name}-{before[name]}"))
    return drawn


def _chart(sweep: Sweep, name: str) -> Chart:
    """A panel per metric and suite."""
    shown, per_row = sweep.trends[:PANELS], min(3, len(sweep.trends))
    size = (CURVE_WIDTH // max(per_row, 2) - 70, 170)
    suites = {trend.suite for trend in shown}
    panels = [_panel(trend, sweep.labels, sweep.knob.axis, size, len(suites) > 1) for trend in shown]
    told = "; ".join(
        f"{trend.metric} on {trend.suite} {trend.words}: {', '.join(number(mean, 3) for mean in trend.means)}"
        for trend in shown
    )
    left = len(sweep.trends) - len(shown)
    more = f" {count(left, 'further panel')} left out; all are in report.json." if left else ""
    seeds = sorted({len(values) for trend in shown for values in trend.seeds})
    return finish(
        in_rows(panels, per_row),
        name,
        f"{sweep.title} against outcomes",
        f"Conditions that differ in nothing else: {', '.join(sweep.conditions)}. Line: mean of the seeds; faint dots: "
        f"the seeds (n = {seeds[0] if len(seeds) == 1 else f'{seeds[0]} to {seeds[-1]}'}); dotted: the frozen base. "
        "The words above a panel say which way the means go, which is a description and no test: verdicts are above. "
        f"Steps are evenly spaced whatever their size, and axes begin near the data.{more}",
        f"Outcomes against {sweep.knob.axis} ({', '.join(sweep.labels)}). {told}.".replace("\n", " "),
    )


def _panel(trend: Trend, labels: Sequence[str], axis: str, size: tuple[int, int], several: bool) -> Any:
    words = metric_words(trend.metric)
    x_axis = alt.Axis(title=axis, labelAngle=0, grid=False, labelExpr="split(datum.label, '\\n')")
    x = alt.X("strength:N", sort=list(labels), scale=alt.Scale(domain=list(labels)), axis=x_axis)
    unit = words.axis
    y = alt.Y("value:Q", scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(title=unit, tickCount=4))
    means = chart_of([{"strength": s, "value": mean} for s, mean in zip(labels, trend.means, strict=True)])
    every = [{"strength": s, "value": v} for s, mine in zip(labels, trend.seeds, strict=True) for v in mine]
    layers: list[Any] = [
        chart_of(every).mark_point(filled=True, size=34, opacity=0.4, color=SERIES[0]).encode(x, y),
        means.mark_line(strokeWidth=2, color=SERIES[0]).encode(x, y),
        means.mark_point(filled=True, size=60, opacity=1, color=SERIES[0]).encode(x, y),
    ]
    if trend.base is not None:
        base = chart_of([{"value": trend.base, "text": "base"}])
        layers.append(base.mark_rule(color=MUTED, strokeDash=[2, 3], strokeWidth=1.5).encode(alt.Y("value:Q")))
        text = base.mark_text(align="left", baseline="middle", dx=5, color=INK, fontSize=11)
        layers.append(text.encode(x=alt.value(size[0]), y=alt.Y("value:Q"), text="text:N"))
    title = f"{trend.metric} on {trend.suite}" if several else trend.metric
    layers.append(panel_title(f"{title}\n{trend.words}"))
    return alt.layer(*layers).properties(width=size[0], height=size[1])
