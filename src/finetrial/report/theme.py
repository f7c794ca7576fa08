"""The look of a report: one palette, one chart theme, one way to write numbers.

Colours are Okabe and Ito's (2008) set, which people with colour-blindness can tell apart. A verdict always has the
same colour *and* the same shape, on the page and in charts, so that neither carries the meaning alone. The inks of
a chart are few and fixed; the page's style sheet turns them over for dark screens.
"""

import io
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import vl_convert

from finetrial.analyze.metrics import known

INK, MUTED, GRID, ZONE, SURFACE = "#1f2328", "#57606a", "#e1e4e8", "#eceff2", "#ffffff"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
SERIES_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


@dataclass(frozen=True)
class Mark:
    """How one verdict (with its subtype) looks."""

    label: str
    colour: str
    shape: str
    """Vega's name of the symbol."""
    glyph: str
    """The same symbol as a character, for text."""
    ink: str
    """The colour, dark enough for words on white (contrast above 4.5)."""
    css: str


MARKS = {
    "CONFIRMED": Mark("confirmed", "#009E73", "circle", "●", "#00694d", "confirmed"),
    "FAILED": Mark("failed", "#D55E00", "diamond", "◆", "#a84300", "failed"),
    "FAILED:EQUIVALENT": Mark("failed: equivalent", "#D55E00", "square", "■", "#a84300", "failed"),
    "FAILED:HARMFUL": Mark("failed: harmful", "#D55E00", "triangle-down", "▼", "#a84300", "failed"),
    "INCONCLUSIVE": Mark("inconclusive", "#56B4E9", "triangle-right", "▶", "#0f5f8f", "inconclusive"),
    "INVALID": Mark("invalid", "#CC79A7", "cross", "✚", "#93386b", "invalid"),
}


def mark_of(verdict: str, subtype: str | None) -> Mark:
    """The look of a verdict."""
    return MARKS[f"{verdict}:{subtype}" if subtype else verdict]


@dataclass(frozen=True)
class Words:
    """How a metric is written."""

    title: str
    unit: str

    @property
    def axis(self) -> str:
        """`title (unit)`, as an axis carries it."""
        return self.title if self.unit == self.title else f"{self.title} ({self.unit})"


_TITLES = {"nll": "loss", "bits_per_byte": "loss"}


def metric_words(metric: str) -> Words:
    """Title and unit of a metric; one that is not known goes by its own name."""
    fact = known(metric)
    return Words(_TITLES.get(metric, metric), fact.unit if fact else metric)


def number(value: float | None, decimals: int | None = None, signed: bool = False) -> str:
    """A number for readers: true minus sign, `not recorded` for None.

    Without `decimals` four significant digits are shown; integers are grouped by narrow spaces.
    """
    if value is None or math.isnan(value):
        return "not recorded"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if decimals is None and float(value).is_integer() and abs(value) < 1e15:
        text = f"{int(value):,}".replace(",", "\u202f")
    else:
        places = decimals if decimals is not None else max(0, 3 - magnitude(value))
        text = f"{value:.{places}f}"
        if float(text) == 0:
            text = text.lstrip("-")
    if signed and value > 0:
        text = f"+{text}"
    return text.replace("-", "−")


def magnitude(value: float) -> int:
    """Decimal exponent of `value`; 0 for 0."""
    return math.floor(math.log10(abs(value))) if value else 0


def decimals_for(width: float | None) -> int:
    """Decimals that give an uncertainty of this width two significant digits."""
    if not width or not math.isfinite(width):
        return 4
    return min(6, max(0, 1 - magnitude(width / 2)))


def p_text(p: float | None) -> str:
    """A p-value: `<0.0001`, else two significant digits and at most four decimals."""
    if p is None or math.isnan(p):
        return "not recorded"
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float | None) -> str:
    """Seconds for readers: `41 s`, `12 min`, `3 h 05 min`."""
    if seconds is None:
        return "not recorded"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def slug(name: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "x"


def wrap(label: str, width: int = 34, lines: int = 3) -> str:
    """Break a long name at spaces, hyphens or underscores into at most `lines` lines joined by newlines."""
    broken = textwrap.wrap(re.sub(r"([_/+.])", "\\1\u200b", label).replace("\u200b", "\u200b "), width)
    parts = [re.sub("\u200b ?", "", part) for part in broken] or [label]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], textwrap.shorten(" ".join(parts[lines - 1 :]), width, placeholder="…")]
    return "\n".join(parts)


def rows_axis(names: Sequence[str], grid: bool = False) -> alt.Y:
    """A vertical axis of named rows without its own labels; `row_labels` writes them."""
    axis = alt.Axis(labels=False, title=None, ticks=False, domain=False, grid=grid)
    return alt.Y("label:N", sort=list(names), scale=alt.Scale(domain=list(names), padding=0), axis=axis)


def chart_of(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """A chart of these rows. They travel as one JSON text, which altair copies far faster than nested tables."""
    text = json.dumps(rows, ensure_ascii=False, allow_nan=False)
    return alt.Chart(alt.InlineData(values=text, format=alt.JsonDataFormat(type="json")))


def columns_axis(names: Sequence[str]) -> alt.X:
    """A horizontal axis of named columns without its own labels; `column_labels` writes them."""
    axis = alt.Axis(labels=False, title=None, ticks=False, domain=False, grid=False)
    return alt.X("column:N", sort=list(names), scale=alt.Scale(domain=list(names), padding=0), axis=axis)


def row_labels(names: Sequence[str]) -> list[alt.Chart]:
    """Names at the left of their rows, two-line ones centred on the row (which an axis cannot do)."""
    layers = []
    for lines in sorted({name.count("\n") for name in names}):
        values = [{"label": name} for name in names if name.count("\n") == lines]
        text = chart_of(values).mark_text(
            align="right", baseline="middle", color=INK, fontSize=12, lineBreak="\n", dy=-7 * lines
        )
        layers.append(text.encode(x=alt.value(-10), y=rows_axis(names), text="label:N"))
    return layers


def column_labels(names: Sequence[str]) -> list[alt.Chart]:
    """Names above their columns, their last lines at one height."""
    layers = []
    for lines in sorted({name.count("\n") for name in names}):
        values = [{"column": name} for name in names if name.count("\n") == lines]
        text = chart_of(values).mark_text(baseline="bottom", color=INK, fontSize=12, lineBreak="\n", dy=-14 * lines)
        layers.append(text.encode(x=columns_axis(names), y=alt.value(-6), text="column:N"))
    return layers


def panel_title(text: str, lift: int = 0) -> alt.Chart:
    """A panel's name above its left edge, at the same height (raised by `lift`) whatever its axes carry."""
    title = chart_of([{"text": text}]).mark_text(
        align="left",
        baseline="bottom",
        lineBreak="\n",
        fontSize=13,
        fontWeight="bold",
        color=INK,
        dy=-15 * text.count("\n"),
    )
    return title.encode(x=alt.value(0), y=alt.value(-9 - lift), text="text:N")


@dataclass(frozen=True)
class Chart:
    """A finished chart: the file's stem, what it shows in words, a caption and the drawing."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str

    def png(self) -> bytes:
        """The drawing at twice its size, for slides."""
        return vl_convert.svg_to_png(self.svg, scale=2)


def finish(chart: alt.TopLevelMixin, name: str, title: str, caption: str, description: str) -> Chart:
    """Draw an altair chart in the report's theme.

    Args:
        chart: any top-level chart.
        name: stem of the file and of ids inside the drawing.
        title: heading on the page.
        caption: how to read it; names test, unit, n where it shows estimates.
        description: alternative text for those who cannot see the drawing.
    """
    stream = io.StringIO()
    _themed(chart).save(stream, format="svg")
    return Chart(name, title, caption, description, _slim(stream.getvalue(), name, description))


def _themed(chart: Any) -> Any:
    axis: dict[str, Any] = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    axis |= {"labelColor": INK, "titleColor": MUTED, "gridColor": GRID, "domainColor": GRID, "tickColor": GRID}
    legend = {"labelFontSize": 12, "titleFontSize": 12, "labelColor": INK, "titleColor": MUTED, "labelLimit": 260}
    return chart.configure(
        font=FONT,
        background=SURFACE,
        aria=False,
        padding=8,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(**axis, labelLimit=330),
        legend=alt.LegendConfig(**legend, titleFontWeight="normal", orient="top", columns=6),
        title=alt.TitleConfig(fontSize=13, color=INK, fontWeight="bold", anchor="start", frame="group", offset=12),
    )


def _slim(svg: str, name: str, description: str) -> str:
    """Round coordinates, drop what no reader sees, make ids unique on the page, add the alternative text."""
    svg = re.sub(r'<path [^>]*display="none"/>|<path [^>]*d="M0,0h0v0h0Z"[^>]*/>', "", svg)
    svg = re.sub(r' (?:aria-[a-z]+|role|pointer-events|xmlns:xlink|xlink:href)="[^"]*"', "", svg)
    ids = dict.fromkeys(re.findall(r' id="([^"]+)"', svg))
    for k, old in enumerate(ids):
        svg = svg.replace(f' id="{old}"', f' id="{name}-{k}"').replace(f"url(#{old})", f"url(#{name}-{k})")
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"-?\d+\.\d{2,}", _short, tag[0]), svg)
    svg = re.sub(r"<g>\s*</g>", "", svg)
    label = escape(description, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _short(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".").replace("-0.00", "0") or "0"
