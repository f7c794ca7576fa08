"""Pictures of what was kept and lost: trade-offs, curves over checkpoints, divergence against forgetting."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from finetrial.analyze.contrast import Axis, Tradeoff
from finetrial.report.curves import CURVE_WIDTH, Look, in_rows, n_seeds, panel
from finetrial.report.facts import Report
from finetrial.report.forgetting import Traded
from finetrial.report.forgetting_tables import axis_words
from finetrial.report.labels import place
from finetrial.report.learning import HeldOut, ends_told, held_out
from finetrial.report.theme import GRID, INK, MUTED, SERIES_SHAPES, Chart, chart_of, finish, metric_words, number

WIDTH, HEIGHT = 640, 420
DIVERGENCE = "kl_to_base"


@dataclass(frozen=True)
class Point:
    """A condition in a scatter plot."""

    name: str
    x: float
    y: float
    x_ci: tuple[float, float] | None
    y_ci: tuple[float, float] | None
    seeds: tuple[tuple[float, float], ...]


def tradeoffs(report: Report) -> list[Chart]:
    """A picture per declared trade-off."""
    found = report.forgetting
    return [] if found is None else [_pareto(report, k, one) for k, one in enumerate(found.traded) if one.positions]


def _pareto(report: Report, k: int, traded: Traded) -> Chart:
    declared = traded.tradeoff
    points = [
        Point(
            position.condition,
            position.x.change.estimate,
            position.y.change.estimate,
            position.x.change.ci,
            position.y.change.ci,
            _together(position.x.seeds, position.y.seeds),
        )
        for position in traded.positions
    ]
    optimal = {position.condition for position in traded.positions if position.optimal}
    frontier = [(point.x, point.y) for point in points if point.name in optimal]
    titles = [_axis_title(axis) for axis in (declared.x_axis, declared.y_axis)]
    level = 100 * (report.forgetting.level if report.forgetting else 0.95)
    caption = (
        f"Changes against {declared.baseline} (at 0, 0), turned so that right and up are better. Small dots: seeds; "
        f"large marks: their means, with {level:g} % intervals over seeds and items, each for itself and uncorrected "
        "(one that reaches the edge goes on). "
        "The grey steps join the conditions that no mean beats on both aims; inside noise that order may be luck, so "
        "the table says what is beaten beyond it."
    )
    if any(len(axis.suites) > 1 for axis in (declared.x_axis, declared.y_axis)):
        caption += " Of several test sets the worst counts: that of the least mean change."
    described = "; ".join(f"{p.name} at {number(p.x, 3)}, {number(p.y, 3)}" for p in points)
    return finish(
        _scatter(report, points, titles, frontier, zero=True),
        f"tradeoff-{k}",
        declared.name,
        caption,
        f"Scatter plot of {titles[0]} against {titles[1]}. {described}.",
    )


def _axis_title(axis: Axis) -> str:
    unit = metric_words(axis.metric).unit
    where = axis.suites[0] if len(axis.suites) == 1 else f"the worst of {', '.join(axis.suites)}"
    return f"improvement of {axis.metric} on {where} ({unit})"


def _together(
    x: Iterable[tuple[int | None, float]], y: Iterable[tuple[int | None, float]]
) -> tuple[tuple[float, float], ...]:
    """A dot per seed that has both."""
    right = dict(y)
    return tuple((value, right[seed]) for seed, value in x if seed in right)


def divergences(report: Report) -> list[Chart]:
    """KL from the base against what was lost, once per set of kept suites.

    Drawn where the two aims of a trade-off are on different suites: the first of the new ones, or any other suite of
    texts, tells how far a run moved.
    """
    found = report.forgetting
    drawn: dict[tuple[str, tuple[str, ...]], Chart] = {}
    for traded in found.traded if found else ():
        x, y = traded.tradeoff.x_axis, traded.tradeoff.y_axis
        suite = _divergence_suite(report, x, y)
        if suite is not None and (suite, traded.tradeoff.y) not in drawn:
            chart = _divergence(report, f"divergence-{len(drawn)}", suite, traded)
            if chart is not None:
                drawn[suite, traded.tradeoff.y] = chart
    return list(drawn.values())


def _divergence_suite(report: Report, x: Axis, y: Axis) -> str | None:
    if set(x.suites) & set(y.suites) or x.metric == DIVERGENCE:
        return None
    measured = list(dict.fromkeys(one.suite for one in report.figures if one.metric == DIVERGENCE))
    order = [*(s for s in x.suites if s in measured), *(s for s in measured if s not in y.suites)]
    return order[0] if order else None


def _divergence(report: Report, name: str, suite: str, traded: Traded) -> Chart | None:
    means = {one.condition: one.mean for one in report.figures if (one.suite, one.metric) == (suite, DIVERGENCE)}
    points = []
    for position in traded.positions:
        cell = report.cell(position.condition, suite, DIVERGENCE)
        if position.condition in means and cell is not None and position.condition != "base":
            mean = means[position.condition]
            runs = [(seed.seed, seed.mean) for seed in cell.seeds if seed.mean is not None]
            y = position.y.change
            dots = _together(runs, position.y.seeds)
            points.append(Point(position.condition, mean.value, y.estimate, mean.ci, y.ci, dots))
    if not points:
        return None
    points.append(Point("base", 0.0, 0.0, None, None, ()))
    axis = traded.tradeoff.y_axis
    titles = [f"KL from the base on {suite} (nats per token)", _axis_title(axis)]
    described = "; ".join(f"{p.name} at {number(p.x, 3)}, {number(p.y, 3)}" for p in points)
    return finish(
        _scatter(report, points, titles, (), zero=False),
        name,
        f"Distance from the base against {axis_words(axis.suites, axis.metric)}",
        "How far each run moved from the base on texts of the new task, KL(base ‖ model) per token, against what it "
        "kept (up is better). What forgets little moves little: where the points fall on one line, the distance tells "
        "the forgetting (Shenfeld et al. 2025, arXiv:2509.04259). Small dots: seeds; large marks: means with "
        "intervals.",
        f"Scatter plot of {titles[0]} against {titles[1]}. {described}.",
    )


def _scatter(
    report: Report,
    points: Sequence[Point],
    titles: Sequence[str],
    frontier: Sequence[tuple[float, float]],
    zero: bool,
) -> Any:
    """Points with their seeds, intervals and names; the frontier of those that nothing beats."""
    trained = [point.name for point in points if point.name in report.conditions and point.name != "base"]
    look = Look(report, trained)
    x_span, y_span = (_span(points, k) for k in (0, 1))
    x = alt.X("x:Q", scale=alt.Scale(domain=list(x_span), nice=False), axis=alt.Axis(title=titles[0], tickCount=6))
    y = alt.Y("y:Q", scale=alt.Scale(domain=list(y_span), nice=False), axis=alt.Axis(title=_broken(titles[1])))
    colours = {point.name: look.colour(point.name) if point.name in trained else INK for point in points}
    shapes = {name: SERIES_SHAPES[trained.index(name) % 6] if name in trained else "diamond" for name in colours}
    order = list(colours)
    colour = alt.Color("name:N", scale=alt.Scale(domain=order, range=[colours[n] for n in order]), legend=None)
    shape = alt.Shape("name:N", scale=alt.Scale(domain=order, range=[shapes[n] for n in order]), legend=None)

    def clipped(ends: tuple[float, float], span: tuple[float, float]) -> tuple[float, float]:
        return max(ends[0], span[0]), min(ends[1], span[1])

    bars = []
    for p in points:
        if p.x_ci:
            low, high = clipped(p.x_ci, x_span)
            bars.append({"name": p.name, "x": low, "x2": high, "y": p.y, "y2": p.y})
        if p.y_ci:
            low, high = clipped(p.y_ci, y_span)
            bars.append({"name": p.name, "x": p.x, "x2": p.x, "y": low, "y2": high})
    means = [{"name": p.name, "x": p.x, "y": p.y} for p in points]
    dots = [{"name": p.name, "x": a, "y": b} for p in points for a, b in p.seeds]
    layers: list[Any] = []
    if zero:
        for field in ("x", "y"):
            rule = chart_of([{field: 0.0}]).mark_rule(color=MUTED, strokeDash=[2, 3])
            layers.append(rule.encode(x=x) if field == "x" else rule.encode(y=y))
    if frontier:
        steps = [{"x": a, "y": b, "order": k} for k, (a, b) in enumerate(_staircase(frontier, x_span, y_span))]
        line = chart_of(steps).mark_line(color=GRID, strokeWidth=5).encode(x, y, order="order:Q")
        layers.append(line)
    if bars:
        layers.append(chart_of(bars).mark_rule(strokeWidth=1.6, opacity=0.75).encode(x, y, colour, x2="x2", y2="y2"))
    if dots:
        layers.append(chart_of(dots).mark_point(filled=True, size=26, opacity=0.5).encode(x, y, colour, shape))
    layers.append(
        chart_of(means)
        .mark_point(filled=True, size=130, opacity=1, stroke="white", strokeWidth=1)
        .encode(x, y, colour, shape)
    )
    lines = [*bars]
    if zero:
        lines += [
            {"x": x_span[0], "x2": x_span[1], "y": 0, "y2": 0},
            {"x": 0, "x2": 0, "y": y_span[0], "y2": y_span[1]},
        ]
    busy = [(dot["x"], dot["y"]) for dot in dots] + [place for bar in lines for place in _along(bar)]
    layers += _names(points, busy, x_span, y_span, x, y)
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _names(
    points: Sequence[Point],
    busy: Sequence[tuple[float, float]],
    x_span: tuple[float, float],
    y_span: tuple[float, float],
    x: alt.X,
    y: alt.Y,
) -> list[Any]:
    """Names beside their points, with a line to those that had to move away."""

    def pixels(a: float, b: float) -> tuple[float, float]:
        right = (a - x_span[0]) / (x_span[1] - x_span[0]) * WIDTH
        return right, (y_span[1] - b) / (y_span[1] - y_span[0]) * HEIGHT

    def data(right: float, down: float) -> dict[str, float]:
        a = x_span[0] + right / WIDTH * (x_span[1] - x_span[0])
        return {"x": a, "y": y_span[1] - down / HEIGHT * (y_span[1] - y_span[0])}

    at = [pixels(point.x, point.y) for point in points]
    texts = [point.name if len(point.name) <= 40 else f"{point.name[:39]}…" for point in points]
    placed = place(texts, at, (WIDTH, HEIGHT), [pixels(*one) for one in busy])
    words = chart_of([{"text": one.text, **data(one.x, one.y)} for one in placed])
    layers: list[Any] = [
        words.mark_text(align="left", baseline="middle", fontSize=12, color=INK).encode(x, y, text="text:N")
    ]
    leads = []
    for one, (right, down) in zip(placed, at, strict=True):
        if one.far:
            near = min(max(right, one.x), one.x + 6.6 * len(one.text))
            end = data(near, one.y + (7 if one.y < down else -7))
            leads.append({**data(right, down), "x2": end["x"], "y2": end["y"]})
    if leads:
        layers.insert(0, chart_of(leads).mark_rule(color=MUTED, strokeWidth=0.8).encode(x, y, x2="x2", y2="y2"))
    return layers


def _along(bar: dict[str, Any], parts: int = 40) -> list[tuple[float, float]]:
    """Points along a bar, so that names keep off it."""
    a, b, c, d = bar["x"], bar["y"], bar["x2"], bar["y2"]
    return [(a + (c - a) * k / parts, b + (d - b) * k / parts) for k in range(parts + 1)]


def _span(points: Sequence[Point], k: int) -> tuple[float, float]:
    """Limits that hold all means and seeds; intervals that are wider than those are cut at half their width beyond."""
    found = [0.0]
    for point in points:
        found += [(point.x, point.y)[k], *(seed[k] for seed in point.seeds)]
    wide = [end for point in points for end in ((point.x_ci, point.y_ci)[k] or ())]
    width = max(found) - min(found) or 1.0
    low = max(min(found + wide), min(found) - width / 2)
    high = min(max(found + wide), max(found) + width / 2)
    margin = 0.06 * (high - low) or width / 2  # where nobody scored anything, all stand on the 0
    return low - margin, high + margin


def _staircase(
    frontier: Sequence[tuple[float, float]], x_span: tuple[float, float], y_span: tuple[float, float]
) -> list[tuple[float, float]]:
    """The edge of what is beaten: through the optimal points, from the left end to the lower one."""
    path: list[tuple[float, float]] = []
    left = x_span[0]
    for x, y in sorted(frontier):
        path += [(left, y), (x, y)]
        left = x
    return [*path, (left, y_span[0])]


def _broken(title: str, width: int = 60) -> list[str]:
    """A long title on two lines."""
    words, lines = title.split(" "), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def checkpoints(report: Report) -> list[Chart]:
    """Aims and divergence over steps, per trade-off, where adapters were measured on the way."""
    found = report.forgetting
    if found is None or not report.snapshots:
        return []
    points = held_out(report)
    drawn = [_checkpoints(report, k, one.tradeoff, points) for k, one in enumerate(found.traded)]
    return [chart for chart in drawn if chart is not None]


def _checkpoints(report: Report, k: int, declared: Tradeoff, points: Sequence[HeldOut]) -> Chart | None:
    axes = (declared.x_axis, declared.y_axis)
    wanted = [(suite, axis.metric) for axis in axes for suite in axis.suites]
    moved = _divergence_suite(report, *axes)
    wanted += [(suite, DIVERGENCE) for suite in dict.fromkeys([moved, *axes[1].suites]) if suite is not None]
    trained = [p for p in points if p.step > 0 and (p.suite, p.metric) in wanted]
    names = [name for name in report.conditions if any(point.condition == name for point in trained)]
    shown = [pair for pair in dict.fromkeys(wanted) if any((p.suite, p.metric) == pair for p in trained)]
    if not names or not shown:
        return None
    look, steps = Look(report, names), max(point.step for point in trained)
    panels = []
    for suite, metric in shown:
        base = report.base_mean(suite, metric)
        rows = [
            {"condition": name, "step": 0, "mean": base, "low": base, "high": base}
            for name in names
            if base is not None
        ]
        for point in trained:
            if (point.suite, point.metric) == (suite, metric):
                ends = {"mean": point.mean, "low": min(point.values), "high": max(point.values)}
                rows.append({"condition": point.condition, "step": point.step, **ends})
        title = f"{metric} on {suite}"
        panels.append(panel(rows, look, steps, look.domain(rows), title, _size(len(shown)), dots=True))
    told = "; ".join(f"{p.condition}, {p.metric} on {p.suite} at step {p.step}: {number(p.mean, 3)}" for p in trained)
    return finish(
        in_rows(panels, 2 if len(shown) in (2, 4) else 3),
        f"checkpoints-{k}",
        f"{declared.name}, over training",
        f"The same items at every checkpoint; all lines start from the frozen base. Each dot is the mean of the seeds. "
        f"{look.told()} {n_seeds(len(p.values) for p in trained)}. Picking the best step after the fact would be "
        f"choosing by luck.{ends_told(report, names)} Axes begin near the data.",
        f"Lines of {', '.join(f'{metric} on {suite}' for suite, metric in shown)} against training step. {told}.",
    )


def _size(panels: int) -> tuple[int, int]:
    return (CURVE_WIDTH - 90, 260) if panels == 1 else (360, 220) if panels in (2, 4) else (235, 180)
