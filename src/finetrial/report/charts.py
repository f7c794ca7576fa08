"""Charts of results: what the contrasts show, and every condition on every suite. One function each.

Every function takes a `Report` and returns finished `Chart`s, or nothing where the campaign holds no such data.
Sizes are for a page 900 pixels wide; rows grow with the number of contrasts or conditions.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

from finetrial.analyze.contrast import Finding
from finetrial.report.facts import Cell, Report, better_of, family_title, oriented
from finetrial.report.theme import (
    INK,
    MARKS,
    MUTED,
    SERIES,
    ZONE,
    Chart,
    Mark,
    chart_of,
    column_labels,
    columns_axis,
    count,
    decimals_for,
    finish,
    mark_of,
    metric_words,
    number,
    panel_title,
    row_labels,
    rows_axis,
    slug,
    wrap,
)

Rows = list[dict[str, Any]]


def forest(report: Report) -> list[Chart]:
    """One forest plot per metric; every contrast, turned so that right is better."""
    return [_forest(report, metric) for metric in dict.fromkeys(finding.metric for finding in report.findings)]


def _forest(report: Report, metric: str) -> Chart:
    findings = [finding for finding in report.findings if finding.metric == metric]
    words = metric_words(metric)
    shown = {mark_of(finding.verdict, finding.subtype) for finding in findings}
    marks = [mark for mark in MARKS.values() if mark in shown]
    widths = sorted(f.ci_adjusted[1] - f.ci_adjusted[0] for f in findings if f.ci_adjusted is not None)
    places = decimals_for(widths[len(widths) // 2] if widths else None)
    axis = f"improvement over the baseline ({words.unit}); right is better"
    panels = []
    for family in dict.fromkeys(finding.family for finding in findings):
        members = [finding for finding in findings if finding.family == family]
        panels.append(_forest_panel(members, places, marks, axis))
    caption = (
        "Each row is one contrast, turned so that right is better whatever the metric. Thin line: interval adjusted "
        "for the family, on which the verdict rests. Thick line: unadjusted interval. Grey band and upright ticks: "
        "the margin; differences inside the band are too small to act on. The figures give the improvement with its "
        "adjusted interval. An arrowhead marks an interval that goes on beyond the axis. Every family has its own "
        "axis. Test, unit and n of each row are in the ledger."
    )
    described = "; ".join(f"{f.contrast}: {mark_of(f.verdict, f.subtype).label}" for f in findings)
    return finish(
        alt.vconcat(*panels, spacing=14),
        f"forest-{slug(metric)}",
        f"Improvement of every contrast, {words.axis}",
        caption,
        f"Forest plot of {count(len(findings), 'contrast')} in {words.axis}. {described}.",
    )


def _span(findings: Sequence[Finding]) -> tuple[float, float]:
    """Axis limits: all estimates, margins and unadjusted intervals; wider adjusted ones are cut at twice that."""
    ends, wide = [0.0], [0.0]
    for finding in findings:
        ends += [finding.margin, -finding.margin] if finding.margin else []
        for interval, into in ((finding.ci, ends), (finding.ci_adjusted, wide)):
            into += [end for end in oriented(finding, interval) or () if abs(end) < float("inf")]
        if finding.estimate is not None:
            ends.append(finding.estimate if finding.better == "higher" else -finding.estimate)
    width = max(ends) - min(ends) or 1.0
    low, high = max(min(ends + wide), min(ends) - width / 2), min(max(ends + wide), max(ends) + width / 2)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _forest_panel(findings: Sequence[Finding], places: int, marks: Sequence[Mark], title: str) -> Any:
    domain = _span(findings)
    rows = [_forest_row(finding, domain, places) for finding in findings]
    names = [row["label"] for row in rows]
    height, width = 36 if any("\n" in name for name in names) else 28, 400
    base = chart_of(rows)
    y = rows_axis(names)
    axis = alt.Axis(title=title, tickCount=6, grid=True)
    scale = alt.Scale(domain=list(domain), nice=False)

    def at(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=scale, axis=axis)

    key = [mark.label for mark in marks]
    colour = alt.Color("verdict:N", scale=alt.Scale(domain=key, range=[mark.colour for mark in marks]), legend=None)
    shape = alt.Shape("verdict:N", scale=alt.Scale(domain=key, range=[mark.shape for mark in marks]), legend=None)
    estimable = base.transform_filter("datum.estimate != null")
    interval = base.transform_filter("datum.low != null")
    points = estimable.mark_point(
        filled=True, size=130 if len(rows) <= 12 else 90, opacity=1, stroke="white", strokeWidth=1
    )
    layers = [
        base.mark_bar(color=ZONE, height=height).encode(at("zone_low"), y, alt.X2("zone_high")),
        base.mark_tick(color=MUTED, thickness=1.2, height=height - 8).encode(at("margin"), y),
        base.mark_rule(color=INK).encode(x=alt.datum(0)),
        interval.mark_rule(strokeWidth=1.8).encode(at("low"), y, colour, x2="high"),
        interval.mark_rule(strokeWidth=6, opacity=0.45).encode(at("inner_low"), y, colour, x2="inner_high"),
        *(
            base.transform_filter(f"datum.cut_{side}")
            .mark_point(shape=f"triangle-{side}", filled=True, size=60, opacity=1)
            .encode(at("low" if side == "left" else "high"), y, colour)
            for side in ("left", "right")
        ),
        points.encode(at("estimate"), y, colour, shape),
        base.mark_text(align="left", color=INK, fontSize=12).encode(x=alt.value(width + 12), y=y, text="text:N"),
        *(
            base.transform_filter(alt.datum.verdict == mark.label)
            .mark_text(align="left", fontSize=12, fontWeight="bold", color=mark.ink)
            .encode(x=alt.value(width + 182), y=y, text="verdict:N")
            for mark in marks
        ),
        *row_labels(names),
        panel_title(family_title(findings[0])),
    ]
    return alt.layer(*layers).properties(width=width, height=alt.Step(height))


def _forest_row(finding: Finding, domain: tuple[float, float], places: int) -> dict[str, Any]:
    sign = 1 if finding.better == "higher" else -1
    inner, outer = oriented(finding, finding.ci), oriented(finding, finding.ci_adjusted)
    estimate = None if finding.estimate is None else sign * finding.estimate
    label = wrap(finding.contrast, 40, 2)
    row: dict[str, Any] = {"label": label, "estimate": estimate, "margin": finding.margin or None}
    row |= {"zone_low": -finding.margin, "zone_high": finding.margin}
    row |= {"verdict": mark_of(finding.verdict, finding.subtype).label, "low": None, "high": None}
    row |= {"inner_low": None, "inner_high": None, "cut_left": False, "cut_right": False, "text": "not estimable"}
    low, high = domain
    if outer is not None and estimate is not None:
        ends = ", ".join(number(end, places) for end in outer)
        row["text"] = f"{number(estimate, places, signed=True)}  [{ends}]"
        row |= {"low": max(outer[0], low), "high": min(outer[1], high)}
        row |= {"cut_left": outer[0] < low, "cut_right": outer[1] > high}
    if inner is not None:
        row |= {"inner_low": max(inner[0], low), "inner_high": min(inner[1], high)}
    return row


def heatmap(report: Report, metric: str) -> Chart | None:
    """Conditions × suites: mean of the seeds with their range, and the same as a difference to the base."""
    rows = _cell_rows(report, metric)
    if not rows:
        return None
    words, higher = metric_words(metric), better_of(report, metric) == "higher"
    trained = [row["value"] for row in rows if row["condition"] != "base"] or [row["value"] for row in rows]
    low, high = min(trained), max(trained)
    for row in rows:
        place = (min(max(row["value"], low), high) - low) / (high - low or 1.0)
        row["dark"] = (place if higher else 1 - place) < 0.45
    scale = alt.Scale(scheme="viridis", domain=[low, high], clamp=True, reverse=not higher)
    suites = [suite for suite in report.suites if any(row["suite"] == suite for row in rows)]
    shared = ([wrap(name, 26, 2) for name in _measured(report)], [wrap(suite, 16) for suite in suites])
    beside = len(suites) <= 3
    panels = [_grid(rows, *shared, ("value", "text", "range"), scale, "Mean of the seeds")]
    moved = [row for row in rows if row["difference"] is not None]
    if moved:
        reach = max(abs(row["difference"]) for row in moved) or 1.0
        moved = [row | {"dark": abs(row["difference"]) > 0.72 * reach} for row in moved]
        scale = alt.Scale(scheme="blueorange", domain=[-reach, reach], reverse=higher)
        fields = ("difference", "difference_text", "difference_range")
        title = "Difference to the frozen base"
        panels.append(_grid(moved, *shared, fields, scale, title, labelled=not beside))
    together = alt.hconcat if beside else alt.vconcat
    caption = (
        "Large figures: mean over seeds of the suite's mean over items. Small figures: lowest and highest seed (the "
        "base has no seeds). Means: the brighter the better; colours span the trained conditions. Differences: blue is "
        f"{'better' if better_of(report, metric) else 'lower'} than the base, orange "
        f"{'worse' if better_of(report, metric) else 'higher'}. Colours describe; whether a difference is more than "
        "noise is said by the verdicts alone."
    )
    described = "; ".join(f"{r['condition']} on {r['suite']} {r['text']} ({r['range']})" for r in rows)
    return finish(
        together(*panels, spacing=24).resolve_scale(color="independent"),
        f"heatmap-{slug(metric)}",
        f"Every condition on every test set, {words.axis}",
        caption,
        f"Heatmap of {words.axis}. {described}.",
    )


def _measured(report: Report) -> list[str]:
    return [name for name in report.conditions if any(cell.condition == name for cell in report.cells)]


def _cell_rows(report: Report, metric: str) -> Rows:
    order = report.conditions
    cells = [cell for cell in report.cells if cell.metric == metric and cell.values]
    return [_cell_row(report, cell) for cell in sorted(cells, key=lambda cell: order.index(cell.condition))]


def _cell_row(report: Report, cell: Cell) -> dict[str, Any]:
    values, mean = cell.values, sum(cell.values) / len(cell.values)
    base = None if cell.condition == "base" else report.base_mean(cell.suite, cell.metric)
    row: dict[str, Any] = {"condition": cell.condition, "label": wrap(cell.condition, 26, 2), "suite": cell.suite}
    row |= {"column": wrap(cell.suite, 16), "value": mean, "text": number(mean, 3), "difference": None}
    alone = "no seeds" if cell.condition == "base" else "1 seed"
    row["range"] = alone if len(values) == 1 else f"{number(min(values), 3)}–{number(max(values), 3)}"
    if base is not None:
        ends = f"{number(min(values) - base, 3)} to {number(max(values) - base, 3)}"
        row |= {"difference": mean - base, "difference_text": number(mean - base, 3, signed=True)}
        row["difference_range"] = alone if len(values) == 1 else ends
    return row


def _grid(
    rows: Rows,
    names: Sequence[str],
    columns: Sequence[str],
    fields: tuple[str, str, str],
    scale: alt.Scale,
    title: str,
    labelled: bool = True,
) -> Any:
    """Cells coloured by `fields[0]`, with `fields[1]` and below it `fields[2]` as text."""
    ink = alt.condition("datum.dark", alt.value("#fdfdfd"), alt.value("#111111"))
    base = chart_of(rows).encode(columns_axis(columns), rows_axis(names))
    lines = max(column.count("\n") for column in columns)
    return alt.layer(
        base.mark_rect(stroke="white", strokeWidth=2).encode(alt.Color(f"{fields[0]}:Q", scale=scale, legend=None)),
        base.mark_text(dy=-6, fontSize=13).encode(text=f"{fields[1]}:N", color=ink),
        base.mark_text(dy=9, fontSize=11).encode(text=f"{fields[2]}:N", color=ink),
        *(row_labels(names) if labelled else ()),
        *column_labels(columns),
        panel_title(title, lift=20 + 14 * lines),
    ).properties(width=alt.Step(114), height=alt.Step(40))


def strip(report: Report, metric: str) -> Chart | None:
    """Every seed of every condition and suite as a dot: difference to the base, or the value where no base is."""
    conditions = [name for name in _measured(report) if name != "base"]
    suites = [suite for suite in report.suites if any((c.suite, c.metric) == (suite, metric) for c in report.cells)]
    against = all(report.base_mean(suite, metric) is not None for suite in suites)
    values = {
        suite: [
            {"label": wrap(cell.condition, 28, 2), "seed": f"{seed.seed:09d}", "value": seed.mean - base}
            for cell in (report.cell(condition, suite, metric) for condition in conditions)
            if cell is not None
            for base in ((report.base_mean(suite, metric) or 0.0) if against else 0.0,)
            for seed in cell.seeds
            if seed.mean is not None and seed.seed is not None
        ]
        for suite in suites
    }
    values = {suite: rows for suite, rows in values.items() if rows}
    if not values:
        return None
    words, better = metric_words(metric), better_of(report, metric)
    spans = {suite: _ends([row["value"] for row in rows]) for suite, rows in values.items()}
    reach = 0.56 * max(high - low for low, high in spans.values()) or 0.5
    names = [wrap(name, 28, 2) for name in conditions]
    panels = []
    for k, (suite, rows) in enumerate(values.items()):
        middle = sum(spans[suite]) / 2
        panel = _dots(rows, names, (middle - reach, middle + reach), words.unit, labelled=k % 3 == 0)
        panels.append(panel + panel_title(suite))
    side = "" if better is None else f"; {'right' if better == 'higher' else 'left'} is better"
    what = f"{words.title} minus the frozen base’s" if against else words.title
    n_items = max(seed.items for cell in report.cells for seed in cell.seeds)
    caption = (
        f"Each dot is one training seed: {what}, in {words.unit}{side}. The tick is the mean of the seeds. "
        f"A dot averages the suite’s items (up to {n_items}). The unit of replication is the seed. All panels span "
        "the same width, each around its own centre; the axes begin near the data, not at zero."
    )
    listed = "; ".join(
        f"{suite} {name}: {', '.join(number(row['value'], 4) for row in rows if row['label'] == label)}"
        for suite, rows in values.items()
        for name, label in zip(conditions, names, strict=True)
    )
    return finish(
        alt.vconcat(*(alt.hconcat(*panels[k : k + 3], spacing=16) for k in range(0, len(panels), 3)), spacing=20),
        f"seeds-{slug(metric)}",
        f"Every seed as a dot, {words.axis}",
        caption,
        f"Dot plot: {what}, in {words.unit}. {listed}.",
    )


def _dots(rows: Rows, names: Sequence[str], domain: tuple[float, float], title: str, labelled: bool) -> Any:
    scale = alt.Scale(domain=list(domain), nice=False)
    axis = alt.Axis(title=title, tickCount=4)
    y = rows_axis(names, grid=True)
    data = chart_of(rows)
    at = alt.X("value:Q", scale=scale, axis=axis)
    dots = data.mark_point(filled=True, size=60, opacity=0.75, color=SERIES[0])
    layers = [
        data.mark_tick(color=INK, thickness=2, height=18, opacity=1).encode(alt.X("mean(value):Q", scale=scale), y),
        dots.encode(at, y, alt.YOffset("seed:N", scale=alt.Scale(padding=1.2))),
        *(row_labels(names) if labelled else ()),
    ]
    if domain[0] < 0 < domain[1]:
        layers.insert(0, data.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x=alt.datum(0)))
    step = alt.Step(34 if any("\n" in name for name in names) else 28, **{"for": "position"})
    return alt.layer(*layers).properties(width=200, height=step)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
