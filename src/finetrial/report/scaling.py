"""What more data does: strategies that differ only in how many examples they select, and their chart."""

import re
from collections.abc import Mapping, Sequence

import altair as alt

from finetrial.identity import canonical_json
from finetrial.report.facts import Report
from finetrial.report.theme import (
    SERIES,
    SERIES_SHAPES,
    Chart,
    chart_of,
    finish,
    metric_words,
    panel_title,
    slug,
)


def scaling(report: Report, metric: str) -> Chart | None:
    """Value against examples: a line per strategy, a panel per suite; None where no strategy has two sizes."""
    strategy = strategies(report)
    if not strategy:
        return None
    size = {s["condition"]: s["examples"] for s in report.section("data", "selections")}
    names = list(dict.fromkeys(strategy.values()))
    rows = [
        {"strategy": strategy[cell.condition], "examples": size[cell.condition], "suite": cell.suite, "value": value}
        for cell in report.cells
        if cell.metric == metric and cell.condition in strategy
        for value in cell.values
    ]
    words = metric_words(metric)
    key = alt.Scale(domain=names, range=[SERIES[k % len(SERIES)] for k in range(len(names))])
    shapes = alt.Scale(domain=names, range=[SERIES_SHAPES[k % len(SERIES_SHAPES)] for k in range(len(names))])
    legend = alt.Legend(title=None, symbolOpacity=1, symbolSize=90)
    colour = alt.Color("strategy:N", scale=key, legend=legend)
    shape = alt.Shape("strategy:N", scale=shapes, legend=legend)
    sizes = sorted({row["examples"] for row in rows})
    axis = alt.Axis(values=sizes, title="training examples (log scale)", format="d", labelAngle=0)
    span = [sizes[0] / 1.12, sizes[-1] * 1.12]
    x = alt.X("examples:Q", scale=alt.Scale(type="log", domain=span, nice=False), axis=axis)
    suites = [suite for suite in report.suites if any(row["suite"] == suite for row in rows)]
    panels = []
    for suite in suites:
        data = chart_of([row for row in rows if row["suite"] == suite])
        y = alt.Y("value:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=words.axis, tickCount=5))
        panel = alt.layer(
            data.mark_area(opacity=0.16).encode(x, alt.Y("min(value):Q"), alt.Y2("max(value):Q"), colour),
            data.mark_line(strokeWidth=2).encode(x, alt.Y("mean(value):Q"), colour),
            data.mark_point(filled=True, size=45, opacity=0.8).encode(x, y, colour, shape),
            panel_title(suite),
        )
        panels.append(panel.properties(width=210, height=210))
    rowed = [alt.hconcat(*panels[k : k + 3], spacing=20) for k in range(0, len(panels), 3)]
    caption = (
        "Each dot is one seed; the line joins the means of the seeds, the band spans the lowest and the highest seed "
        "(a range, not a confidence interval). Conditions on one line differ only in the number of examples. The "
        "vertical axes begin near the data."
    )
    listed = "; ".join(
        f"{name}: {', '.join(str(n) for n in sorted({r['examples'] for r in rows if r['strategy'] == name}))}"
        for name in names
    )
    return finish(
        alt.vconcat(*rowed, spacing=18),
        f"scaling-{slug(metric)}",
        f"More data, {words.axis}",
        caption,
        f"Line chart of {words.axis} against training examples on {', '.join(suites)}. Sizes per strategy: {listed}.",
    )


def strategies(report: Report) -> dict[str, str]:
    """Condition -> label of its strategy, for conditions whose recipe occurs with at least two selection sizes.

    Two conditions share a strategy when their resolved tables are equal but for `selection.n`.
    """
    size = {s["condition"]: s["examples"] for s in report.section("data", "selections") or []}
    groups: dict[str, list[str]] = {}
    for condition in report.section("spec", "conditions") or []:
        if condition["name"] in size:
            rest = {key: value for key, value in condition.items() if key not in ("name", "question", "selection")}
            selection = {key: value for key, value in condition["selection"].items() if key != "n"}
            groups.setdefault(canonical_json([rest, selection]), []).append(condition["name"])
    several = [names for names in groups.values() if len({size[name] for name in names}) > 1]
    return {name: _stem(names, size) for names in several for name in names}


def _stem(names: Sequence[str], size: Mapping[str, int]) -> str:
    """What the names have in common once their sizes are struck out; the first name where that leaves nothing."""
    struck = {re.sub(rf"[-_. ]?\b{size[name]}\b", "", name) for name in names}
    return struck.pop() if len(struck) == 1 and "" not in struck else names[0]
