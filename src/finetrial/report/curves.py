"""Panels of lines over steps, one colour per condition: what the charts of learning are put together from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from finetrial.report.facts import Report
from finetrial.report.theme import SERIES, chart_of, count, panel_title

Rows = Sequence[Mapping[str, Any]]
DASHES = ([1, 0], [6, 3], [2, 2])
CURVE_WIDTH = 850
"""Pixels that a chart has for its panels and legend."""


class Look:
    """Colour and dash of every condition, the same in every chart of a report."""

    def __init__(self, report: Report, names: Sequence[str]) -> None:
        trained = [name for name in report.conditions if name != "base"]
        place = [trained.index(name) for name in names]
        self.names = tuple(names)
        self.colours = [SERIES[k % len(SERIES)] for k in place]
        self.dashes = [DASHES[k // len(SERIES) % len(DASHES)] for k in place]
        longest = max((len(name) for name in names), default=1)
        self._columns = max(1, min(6, CURVE_WIDTH // (min(7 * longest, 260) + 50)))

    def colour(self, name: str) -> str:
        """Of one condition."""
        return self.colours[self.names.index(name)]

    @property
    def crowded(self) -> bool:
        """More conditions than colours: bands are left out and dashes tell the lines apart."""
        return len(self.names) > len(SERIES)

    def told(self) -> str:
        """A sentence on what lines and bands are."""
        if self.crowded:
            return "Lines: mean of the seeds; their spread is in the figures."
        return "Lines: mean of the seeds; bands: lowest to highest seed (a range, not a confidence interval)."

    def domain(self, rows: Rows) -> tuple[float, float]:
        """Limits that hold everything drawn of these rows."""
        return limits(rows, ("mean",) if self.crowded else ("low", "high"))

    def encoding(self) -> list[Any]:
        """Colour and, where needed, dash of the field `condition`, with one legend."""
        legend = None
        if len(self.names) > 1:
            legend = alt.Legend(
                title=None,
                symbolType="stroke",
                symbolStrokeWidth=3,
                symbolOpacity=1,
                symbolSize=600 if self.crowded else 150,
                columns=self._columns,
            )
        order = list(self.names)
        colour = alt.Scale(domain=order, range=self.colours)
        parts: list[Any] = [alt.Color("condition:N", scale=colour, legend=legend, sort=order)]
        if self.crowded:
            dash = alt.Scale(domain=order, range=self.dashes)
            parts.append(alt.StrokeDash("condition:N", scale=dash, legend=legend, sort=order))
        return parts


def panel(
    rows: Rows,
    look: Look,
    steps: int,
    domain: tuple[float, float],
    title: str,
    size: tuple[int, int],
    y_title: str | None = None,
    extra: Sequence[alt.Chart] = (),
    dots: bool = False,
) -> Any:
    """Mean lines with bands of seeds, all conditions in one panel.

    Args:
        rows: condition, step, mean, low, high.
        look: colours.
        steps: end of the horizontal axis.
        domain: of the vertical axis.
        title: above the panel.
        size: width and height in pixels.
        y_title: of the vertical axis.
        extra: further layers below the lines.
        dots: whether every point is marked.
    """
    data = chart_of(rows)
    x, y = step_axis(steps, size[0]), value_axis(domain, y_title)
    colour, *dash = look.encoding()
    lines = data.mark_line(strokeWidth=1.8).encode(x, y, colour, *dash)
    layers: list[alt.Chart] = [*extra, lines]
    if not look.crowded:
        layers.insert(0, data.mark_area(opacity=0.14).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), colour))
    if dots:
        layers.append(data.mark_point(filled=True, size=38, opacity=1).encode(x, y, colour))
    return alt.layer(*layers, panel_title(title)).properties(width=size[0], height=size[1])


def step_axis(steps: int, width: int) -> alt.X:
    """The horizontal axis from 0 to the last step."""
    ticks = 3 if width < 220 else 6
    scale = alt.Scale(domain=[0, max(1, steps)], nice=False)
    return alt.X("step:Q", scale=scale, axis=alt.Axis(title="step", tickCount=ticks, grid=False, format="d"))


def value_axis(domain: tuple[float, float], title: str | None, field: str = "mean", labels: bool = True) -> alt.Y:
    """A vertical axis that begins near the data."""
    axis = alt.Axis(title=title, tickCount=4, labels=labels)
    return alt.Y(f"{field}:Q", scale=alt.Scale(domain=list(domain), nice=True, zero=False), axis=axis)


def limits(rows: Rows, fields: Sequence[str] = ("low", "high")) -> tuple[float, float]:
    """Least and greatest value, apart from one another."""
    found = [row[field] for row in rows for field in fields]
    low, high = min(found), max(found)
    return (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))


def n_seeds(sizes: Iterable[int]) -> str:
    """`n = 3 seeds per condition`, with a range where conditions differ."""
    found = sorted(sizes)
    low, high = found[0], found[-1]
    return f"n = {count(high, 'seed') if low == high else f'{low} to {high} seeds'} per condition"


def in_rows(panels: Sequence[Any], per_row: int, between: int = 18) -> Any:
    """Panels in a grid; scales of colour are shared, so that one legend serves all."""
    return alt.concat(*panels, columns=per_row, spacing={"row": 26, "column": between})
