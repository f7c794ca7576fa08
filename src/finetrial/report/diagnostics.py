"""Charts about how the campaign was run: selections, scores, training, time. One function each.

Every function takes a `Report` and returns a finished `Chart`, or None where the campaign recorded no such data.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from finetrial.report.facts import Report, RunFacts
from finetrial.report.learning import CURVE_POINTS, binned, is_policy, values
from finetrial.report.theme import (
    INK,
    MUTED,
    SERIES,
    Chart,
    chart_of,
    count,
    duration,
    finish,
    number,
    panel_title,
    row_labels,
    rows_axis,
    wrap,
)

TIMING = (("data_s", "data"), ("train_s", "training"), ("evaluate_s", "evaluation"), ("model_io_s", "model I/O"))


def overlap(report: Report) -> Chart | None:
    """Share of examples that two selections have in common."""
    section = report.section("data", "overlap")
    if section is None or len(section["names"]) < 2:
        return None
    pairs = [f"{first} and {second}" for first, second in section.get("nearly_same", [])]
    every = len(section["names"]) * (len(section["names"]) - 1) // 2
    named = "all of them" if len(pairs) == every > 1 else ", ".join(pairs)
    near = f"Nearly the same: {named}. " if pairs else ""
    scale = alt.Scale(scheme="blues", domain=[0, 1])
    chart = _matrix(section["names"], section["matrix"], scale, lambda value: f"{100 * value:.0f}", lambda v: v > 0.7)
    return finish(
        chart,
        "overlap",
        "How much the selections have in common, %",
        "Rows that two selections share, in per cent of the rows that either has (Jaccard index), for the first seed. "
        f"{near}Contrasts between selections that share most of their rows compare nearly the same training data.",
        "Heatmap of the share of common training examples. " + _pairs(section, 100, " %"),
    )


def correlation(report: Report) -> Chart | None:
    """Correlation between the dimensions of the score."""
    section = report.section("data", "scores", "correlation")
    if section is None:
        return None
    scale = alt.Scale(scheme="blueorange", domain=[-1, 1])
    chart = _matrix(section["names"], section["matrix"], scale, lambda v: number(v, 2), lambda v: abs(v) > 0.8)
    return finish(
        chart,
        "score-correlation",
        "Do the score’s dimensions measure different things?",
        "Spearman’s rank correlation over the scored pool: near 1 two dimensions say the same thing, near −1 they work "
        "against each other in a sum. Blank: a constant dimension, or too few rows.",
        "Heatmap of correlations between score dimensions. " + _pairs(section, 1, ""),
    )


def _matrix(
    names: Sequence[str], matrix: Sequence[Sequence[float | None]], scale: alt.Scale, text: Any, dark: Any
) -> Any:
    rows = [
        {"label": wrap(a, 30, 2), "column": b, "value": value, "text": text(value), "dark": dark(value)}
        for a, line in zip(names, matrix, strict=True)
        for b, value in zip(names, line, strict=True)
        if value is not None
    ]
    step = 52 if len(names) <= 8 else max(26, 560 // len(names))
    slanted = alt.Axis(title=None, ticks=False, domain=False, labelAngle=-40, labelLimit=240)
    labels = [wrap(name, 30, 2) for name in names]
    x = alt.X("column:N", sort=list(names), scale=alt.Scale(domain=list(names), padding=0), axis=slanted)
    base = chart_of(rows).encode(x, rows_axis(labels))
    ink = alt.condition("datum.dark", alt.value("#fdfdfd"), alt.value("#111111"))
    return alt.layer(
        base.mark_rect(stroke="white", strokeWidth=1).encode(alt.Color("value:Q", scale=scale, legend=None)),
        base.mark_text(fontSize=12 if step > 34 else 10).encode(text="text:N", color=ink),
        *row_labels(labels),
    ).properties(width=alt.Step(step), height=alt.Step(max(30, min(step, 40))))


def _pairs(section: Mapping[str, Any], factor: float, unit: str) -> str:
    names, matrix = section["names"], section["matrix"]
    found = [
        (a, b, matrix[i][j])
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i < j and matrix[i][j] is not None
    ]
    found.sort(key=lambda pair: -abs(pair[2]))
    listed = "; ".join(f"{a} and {b} {factor * value:.3g}{unit}" for a, b, value in found[:12])
    return f"Largest: {listed}." if found else "Only one row."


def dimensions(report: Report) -> dict[str, Mapping[str, Any]]:
    """The score's dimensions with their distribution."""
    return report.section("data", "scores", "dimensions") or {}


def scores(report: Report) -> Chart | None:
    """Five-number summary of every dimension of the score over the pool."""
    found = {name: facts for name, facts in dimensions(report).items() if facts.get("median") is not None}
    if not found:
        return None
    rows = [{"label": wrap(name, 30, 2), "name": name, **facts} for name, facts in found.items()]
    unit = all(row["min"] >= 0 and row["max"] <= 1 for row in rows)
    panels = [_boxes(rows, [0, 1])] if unit else [_boxes([row], None) for row in rows]
    listed = "; ".join(
        f"{name}: {', '.join(number(facts[q], 3) for q in ('min', 'q25', 'median', 'q75', 'max'))}"
        for name, facts in found.items()
    )
    return finish(
        alt.vconcat(*panels, spacing=10),
        "scores",
        "Distribution of every score dimension",
        "Thin line: lowest to highest value in the pool; box: middle half; tick: median; dot: mean. A dimension with "
        "hardly any spread cannot rank anything.",
        f"Box summaries of score dimensions (minimum, quartiles, maximum). {listed}.",
    )


def _boxes(rows: list[dict[str, Any]], domain: list[float] | None) -> Any:
    data = chart_of(rows)
    scale = alt.Scale(domain=domain) if domain else alt.Scale(zero=False)
    title = "score" if domain else f"score, {rows[0]['name']}"
    names = [row["label"] for row in rows]
    y = rows_axis(names)

    def at(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=scale, axis=alt.Axis(title=title, tickCount=6))

    return alt.layer(
        data.mark_rule(color=MUTED).encode(at("min"), y, alt.X2("max")),
        data.mark_bar(color=SERIES[5], height=14).encode(at("q25"), y, alt.X2("q75")),
        data.mark_tick(color=INK, thickness=2.5, height=20, opacity=1).encode(at("median"), y),
        data.mark_point(color=SERIES[4], filled=True, size=45, opacity=1).encode(at("mean"), y),
        *row_labels(names),
    ).properties(width=520, height=alt.Step(30))


def curves(report: Report) -> Chart | None:
    """Training loss of every supervised condition over steps: mean of the seeds and their range.

    Losses of policies are left out: their size depends on how advantages are formed and not on how well they learn.
    """
    with_curve = [run for run in report.runs if values(run, "loss") and not is_policy(run)]
    names = [name for name in report.conditions if any(run.condition == name for run in with_curve)]
    if not names:
        return None
    panels, steps = [], max(int(run.curve[-1]["step"]) for run in with_curve)
    points = {name: _points([run for run in with_curve if run.condition == name], steps) for name in names}
    low = min(row["low"] for rows in points.values() for row in rows)
    high = max(row["high"] for rows in points.values() for row in rows)
    per_row = 4 if len(names) > 3 else len(names)
    for k, (name, rows) in enumerate(points.items()):
        data = chart_of(rows)
        x = alt.X("step:Q", scale=alt.Scale(domain=[0, steps]), axis=alt.Axis(title="optimiser step", tickCount=3))
        first = k % per_row == 0
        left = alt.Axis(title="training loss (nats/token)" if first else None, labels=first, tickCount=4)
        y = alt.Y("mean:Q", scale=alt.Scale(domain=[low, high], nice=True), axis=left)
        panel = alt.layer(
            data.mark_area(opacity=0.28, color=SERIES[0]).encode(x, alt.Y("low:Q"), alt.Y2("high:Q")),
            data.mark_line(strokeWidth=1.6, color=SERIES[0]).encode(x, y),
            panel_title(wrap(name, 24, 2)),
        )
        panels.append(panel.properties(width=170, height=110))
    rows = [alt.hconcat(*panels[k : k + per_row], spacing=12) for k in range(0, len(panels), per_row)]
    seeds = len({run.seed for run in with_curve})
    last = "; ".join(f"{name} ends at {rows[-1]['mean']:.3f}" for name, rows in points.items())
    return finish(
        alt.vconcat(*rows, spacing=14),
        "training-curves",
        "Training loss of every condition",
        f"Line: mean of the seeds (up to {seeds}); band: lowest to highest seed. Each point averages "
        f"{count(math.ceil(steps / CURVE_POINTS), 'step')}. Loss on training batches, which differ between conditions: "
        "it shows that training went well, not which recipe is better.",
        f"Training loss against optimiser step, one panel per condition. {last}.",
    )


def _points(runs: Sequence[RunFacts], steps: int) -> list[dict[str, float]]:
    return [{key: round(value, 5) for key, value in row.items()} for row in binned(runs, steps, "loss")]


def timing(report: Report) -> Chart | None:
    """Where the time went."""
    section = report.section("timing") or {}
    rows = [{"part": label, "s": section[key], "k": k} for k, (key, label) in enumerate(TIMING) if section.get(key)]
    if not rows:
        return None
    total = section.get("total_s")
    rest = total - math.fsum(row["s"] for row in rows) if total is not None else 0.0
    if rest > 0.5:
        rows.append({"part": "other", "s": rest, "k": len(TIMING)})
    whole = math.fsum(row["s"] for row in rows)
    for row in rows:
        row |= {"minutes": row["s"] / 60, "text": f"{duration(row['s'])} ({100 * row['s'] / whole:.0f} %)"}
    parts = [row["part"] for row in rows]
    colours = [*SERIES[:4], MUTED]
    key = [label for _, label in TIMING] + ["other"]
    data = chart_of(rows)
    y = alt.Y("part:N", sort=parts, axis=alt.Axis(title=None, ticks=False, domain=False, labelPadding=8))
    x = alt.X("minutes:Q", axis=alt.Axis(title="minutes", tickCount=6))
    scale = alt.Scale(domain=key, range=colours)
    chart = alt.layer(
        data.mark_bar(height=16).encode(x, y, alt.Color("part:N", scale=scale, legend=None)),
        data.mark_text(align="left", dx=6, color=INK, fontSize=12).encode(x, y, text="text:N"),
    ).properties(width=480, height=alt.Step(26))
    listed = "; ".join(f"{row['part']} {row['text']}" for row in rows)
    return finish(chart, "timing", "Where the time went", f"Total {duration(total)}.", f"Bar chart of time. {listed}.")
