"""Charts of what was learned: training curves of reinforcement learning and held-out tasks over steps.

Every function takes a `Report` and returns finished `Chart`s, or nothing where the campaign recorded no such data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from finetrial.report.curves import CURVE_WIDTH, Look, in_rows, limits, n_seeds, panel, step_axis, value_axis
from finetrial.report.facts import Report, RunFacts
from finetrial.report.learning import (
    HeldOut,
    binned,
    ends_told,
    held_out,
    held_out_metrics,
    last_step,
    policies,
    same_reward,
    steps_per_point,
    traces,
    values,
)
from finetrial.report.theme import (
    INK,
    MUTED,
    Chart,
    chart_of,
    finish,
    metric_words,
    number,
    panel_title,
    slug,
    wrap,
)

FIELDS = {
    "correct_rate": ("Right answers in training (proportion)", "right answers (proportion)"),
    "mean_reward": ("Reward in training", "mean reward"),
}


def learning(report: Report) -> list[Chart]:
    """Right answers and rewards of training over steps; one chart where the two are the same number."""
    fields = [field for field in FIELDS if not (field == "mean_reward" and same_reward(report))]
    drawn = [_learning(report, field) for field in fields]
    return [chart for chart in drawn if chart is not None]


def _learning(report: Report, field: str) -> Chart | None:
    """All conditions in one panel, then each with its seeds."""
    of = _by_condition(report, [run for run in policies(report) if values(run, field)])
    if not of:
        return None
    title, unit = FIELDS[field]
    steps = last_step([run for runs in of.values() for run in runs])
    look = Look(report, list(of))
    means = {name: [{"condition": name, **row} for row in binned(runs, steps, field)] for name, runs in of.items()}
    every = [row for rows in means.values() for row in rows]
    domain = limits(every)
    per_row = 4 if len(of) == 4 or len(of) > 6 else min(3, len(of))
    width = CURVE_WIDTH // per_row - 40
    single = []
    for k, (name, runs) in enumerate(of.items()):
        left = value_axis(domain, unit if k % per_row == 0 else None, labels=k % per_row == 0)
        seeds = chart_of(traces(runs, steps, field)) if len(runs) > 1 else None
        single.append(_alone(means[name], seeds, look.colour(name), step_axis(steps, width=width), left, width, name))
    panels = [in_rows(single, per_row)]
    several = len(of) > 1 and not look.crowded
    if several:
        panels.insert(0, panel(every, look, steps, domain, "All conditions", (CURVE_WIDTH - 90, 240), unit))
    same = " The mean reward is the same number at every step." if same_reward(report) else ""
    most = max(len(runs) for runs in of.values())
    upper = "Upper panel: mean of the seeds; the band spans the lowest and the highest seed (a range, not a confidence "
    upper = f"{upper}interval). Lower panels: faint lines are the seeds, the strong line is their mean. "
    lower = "Faint lines are the seeds, the strong line is their mean. "
    seeds_told = (
        (upper if several else lower) if most > 1 else "One seed per condition: its luck cannot be told apart. "
    )
    told = n_seeds(len(runs) for runs in of.values())
    ends = "; ".join(f"{name} ends at {number(rows[-1]['mean'], 3)}" for name, rows in means.items())
    return finish(
        alt.vconcat(*panels, spacing=22),
        f"learning-{slug(field)}",
        title,
        f"{seeds_told}{told}.{steps_per_point(steps)}{same} Measured on the tasks that are practised at each "
        "step: whether it carries over to new tasks is said by held-out test sets alone. Axes begin near the data.",
        f"Lines of {unit} against training step, one colour per condition, {told}. {ends}.",
    )


def _alone(
    means: Sequence[Mapping[str, Any]], seeds: alt.Chart | None, colour: str, x: alt.X, y: alt.Y, width: int, name: str
) -> Any:
    """One condition: its seeds faint, their mean strong."""
    layers = [chart_of(means).mark_line(strokeWidth=2.2, color=colour).encode(x, y), panel_title(wrap(name, 28, 2))]
    if seeds is not None:
        layers.insert(0, seeds.mark_line(strokeWidth=1, opacity=0.45, color=colour).encode(x, y, detail="seed:N"))
    return alt.layer(*layers).properties(width=width, height=130)


def _by_condition(report: Report, runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """condition -> its runs, in the report's order."""
    of = {name: [run for run in runs if run.condition == name] for name in report.conditions}
    return {name: members for name, members in of.items() if members}


def held_out_curves(report: Report) -> list[Chart]:
    """A chart per metric: a panel per suite with snapshots, the base dotted."""
    points = held_out(report)
    metrics = held_out_metrics(report)
    shown = [metric for metric in metrics if metric in report.charted] or metrics[:1]
    drawn = [_held_out(report, metric, [p for p in points if p.metric == metric]) for metric in shown]
    return [chart for chart in drawn if chart is not None]


def _held_out(report: Report, metric: str, points: Sequence[HeldOut]) -> Chart | None:
    trained = [point for point in points if point.step > 0]
    names = [name for name in report.conditions if any(point.condition == name for point in trained)]
    if not names:
        return None
    words, look = metric_words(metric), Look(report, names)
    suites = list(dict.fromkeys(point.suite for point in trained))
    steps = max(point.step for point in trained)
    size = ((CURVE_WIDTH - 90, 280), (360, 240), (240, 210))[min(len(suites), 3) - 1]
    panels = []
    for k, suite in enumerate(suites):
        base = next((p.mean for p in points if p.suite == suite and p.condition == "base"), None)
        rows = [
            {"condition": name, "step": step, "mean": mean, "low": low, "high": high}
            for name in names
            for step, mean, low, high in _with_base(
                [p for p in trained if (p.suite, p.condition) == (suite, name)], base
            )
        ]
        domain = look.domain(rows)
        first = words.axis if k % 3 == 0 else None
        panels.append(panel(rows, look, steps, domain, suite, size, first, _base_line(base, size[0]), dots=True))
    based = any(point.condition == "base" for point in points)
    base_told = " Dotted line: the frozen base, which is also where every condition starts (step 0)." if based else ""
    told = "; ".join(f"{p.condition} on {p.suite} at step {p.step}: {number(p.mean, 3)}" for p in points)
    return finish(
        in_rows(panels, 3),
        f"held-out-{slug(metric)}",
        f"Held-out tasks over training, {words.axis}",
        "The same held-out tasks at every step. Each dot is the mean of the seeds, each of them a mean "
        f"over the suite’s items. {look.told()} {n_seeds(len(p.values) for p in trained)}.{base_told} The last "
        "dot is what the verdicts rest on; picking the best step after the fact would be choosing by luck."
        f"{ends_told(report, names)} Axes begin near the data.",
        f"Lines of {words.axis} on held-out tasks against training step. {told}.",
    )


def _with_base(points: Sequence[HeldOut], base: float | None) -> list[tuple[int, float, float, float]]:
    """(step, mean, lowest, highest seed); all seeds start from the same frozen base."""
    start = [] if base is None else [(0, base, base, base)]
    return start + [(point.step, point.mean, min(point.values), max(point.values)) for point in points]


def _base_line(base: float | None, width: int) -> list[alt.Chart]:
    if base is None:
        return []
    data = chart_of([{"base": base, "text": "base"}])
    y = alt.Y("base:Q")
    words = data.mark_text(align="left", baseline="middle", dx=8, color=INK, fontSize=12)
    return [
        data.mark_rule(color=MUTED, strokeDash=[2, 3], strokeWidth=1.5).encode(y),
        words.encode(x=alt.value(width), y=y, text="text:N"),
    ]
