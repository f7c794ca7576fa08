"""Charts of how a policy changed: uncertainty of its tokens, SEPA's strength, and diagnostics of runs.

Every function takes a `Report` and returns a finished `Chart`, or None where the campaign recorded no such data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from finetrial.report.curves import CURVE_WIDTH, Look, in_rows, panel
from finetrial.report.facts import Report, RunFacts
from finetrial.report.learning import binned, last_step, policies, steps_per_point, values
from finetrial.report.theme import INK, Chart, chart_of, finish, number


@dataclass(frozen=True)
class Part:
    """A panel: a field of the rows of metrics, its title, and the name that panels of one axis share."""

    field: str
    title: str
    axis: str


def _parts(before: str, kind: str, unit: str, after: str = "") -> list[Part]:
    return [
        Part(f"{before}{tokens}_{kind}_{statistic}", f"{words} {name}{after}", f"{kind}-{statistic}{unit}")
        for statistic, name in (("mean", "mean"), ("var", "variance"))
        for tokens, words in (("exec", "execution"), ("plan", "planning"))
    ]


DIAGNOSTICS = (
    Part("max_token_hit_rate", "cut at the limit", "cut"),
    Part("reward_uniform_group_rate", "uninformative groups", "uniform"),
    Part("completion_length_mean", "length (tokens)", "length"),
    Part("planning_token_ratio", "planning tokens", "planning"),
    Part("clip_fraction", "clipped tokens", "clip"),
    Part("grad_norm", "gradient norm", "norm"),
    Part("approx_kl", "KL from the policy before the step (nats)", "kl"),
    Part("kl_to_base", "KL to the base (nats)", "base"),
)


def entropy(report: Report) -> Chart | None:
    """Entropy of execution and planning tokens, mean and variance."""
    return multiples(
        report,
        policies(report),
        _parts("", "entropy", ""),
        "entropy",
        "Entropy of execution and planning tokens",
        "Entropy of the policy’s distribution over the next token, in nats (variance in nats²). Execution tokens are "
        "expected to become more certain; planning tokens that collapse as well are a warning. Panels of the same "
        "statistic share their axis.",
    )


def surprisal(report: Report) -> Chart | None:
    """Surprisal of execution and planning tokens before and after the credit transform."""
    return multiples(
        report,
        policies(report),
        [*_parts("", "surprisal", ""), *_parts("post_", "surprisal", "", " after")],
        "surprisal",
        "Surprisal of execution and planning tokens, before and after credit",
        "Surprisal (−log probability) of the sampled tokens, in nats (variance in nats²). Upper row: as sampled. Lower "
        "row, “after”: what the credit of tokens was computed from; pooling shows as less variance among execution "
        "tokens. Panels of the same statistic share their axis.",
    )


def diagnostics(report: Report) -> Chart | None:
    """What to look at when a run goes wrong; not for comparing recipes."""
    return multiples(
        report,
        policies(report),
        DIAGNOSTICS,
        "rl-diagnostics",
        "Diagnostics of training",
        "For finding out what went wrong, not for comparing recipes. Tokens, groups and completions are shares of "
        "all. A group is uninformative when all its completions "
        "got one reward: it teaches nothing. Every panel has its own axis, which begins near the data.",
    )


def multiples(
    report: Report,
    runs: Sequence[RunFacts],
    parts: Sequence[Part],
    name: str,
    title: str,
    caption: str,
    per_row: int = 4,
    height: int = 110,
) -> Chart | None:
    """A panel per part that any of the runs logged, all conditions in each; None where there is none."""
    steps = last_step(runs)
    of = {name: [run for run in runs if run.condition == name] for name in report.conditions}
    found = {
        part.field: [
            {"condition": name, **row} for name, members in of.items() for row in binned(members, steps, part.field)
        ]
        for part in parts
    }
    drawn = [part for part in parts if found[part.field]]
    if not drawn:
        return None
    conditions = {row["condition"] for rows in found.values() for row in rows}
    look = Look(report, [condition for condition in report.conditions if condition in conditions])
    axes = {
        part.axis: look.domain([row for other in drawn if other.axis == part.axis for row in found[other.field]])
        for part in drawn
    }
    per_row = min(per_row, len(drawn))
    size = (CURVE_WIDTH // max(per_row, 2) - 52, height)
    panels = [panel(found[part.field], look, steps, axes[part.axis], part.title, size) for part in drawn]
    return finish(
        in_rows(panels, per_row, between=10),
        name,
        title,
        f"{caption} {look.told()}{steps_per_point(steps)}",
        f"{title}: lines over steps, one colour per condition. {_ends(drawn, found)}.",
    )


def _ends(parts: Sequence[Part], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Where every line ends."""
    told = []
    for part in parts:
        last = {row["condition"]: row["mean"] for row in found[part.field]}
        told.append(f"{part.title}: {', '.join(f'{name} {number(mean, 3)}' for name, mean in last.items())}")
    return "; ".join(told)


def sepa(report: Report) -> Chart | None:
    """Pooling strength over steps, with the step at which each run's gate opened."""
    runs = [run for run in policies(report) if values(run, "sepa_lambda") and _pools(run)]
    names = [name for name in report.conditions if any(run.condition == name for run in runs)]
    if not names:
        return None
    steps, look = last_step(runs), Look(report, names)
    rows = [
        {"condition": name, **row}
        for name in names
        for row in binned([run for run in runs if run.condition == name], steps, "sepa_lambda")
    ]
    opened = {(run.condition, run.seed): _opened(run.curve) for run in runs}
    marks = [{"condition": c, "at": step, "zero": 0.0} for (c, _), step in opened.items() if step is not None]
    colour = look.encoding()[0]
    gates = chart_of(marks).mark_point(shape="triangle-up", filled=True, size=110, opacity=0.85, stroke=INK)
    at = alt.X("at:Q", scale=alt.Scale(domain=[0, max(1, steps)], nice=False))
    extra = [gates.encode(at, alt.Y("zero:Q"), colour)] if marks else []
    never = [f"{condition} seed {seed}" for (condition, seed), step in opened.items() if step is None]
    closed = f" No opening was logged for {', '.join(never)}." if never else ""
    told = "; ".join(f"{c} seed {seed} at step {step}" for (c, seed), step in opened.items() if step is not None)
    size = (CURVE_WIDTH - 90, 150)
    return finish(
        panel(rows, look, steps, (0.0, 1.0), ", ".join(names) if len(names) == 1 else "", size, "strength λ", extra),
        "sepa",
        "Strength of pooling (SEPA’s λ)",
        "0: execution tokens keep their own uncertainty; 1: all get their mean. Triangles: the first step at which the "
        f"gate stood open (the share of right answers had been reached), one per seed.{closed} {look.told()} Compare "
        "the openings with the right answers above.",
        f"Line of pooling strength against step for {', '.join(names)}. Gates opened: {told or 'none'}.",
    )


def _pools(run: RunFacts) -> bool:
    """Whether its transform pools; the gate is logged for others too."""
    return any("sepa" in row.get("transform_mode", "") or row.get("sepa_lambda", 0) > 0 for row in run.curve)


def _opened(curve: Sequence[Mapping[str, Any]]) -> int | None:
    """The first step whose row says that the gate is open."""
    return next((int(row["step"]) for row in curve if row.get("sepa_gate_open")), None)
