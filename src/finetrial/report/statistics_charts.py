"""Charts of a design and of its noise: detectable effect against seeds, and where the variance comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import altair as alt

from finetrial.analyze.sizing import Sizing
from finetrial.errors import UserError
from finetrial.report.facts import Report
from finetrial.report.theme import INK, MUTED, SERIES, Chart, count, finish, metric_words, number, slug

COMPONENTS = {
    "seed": "between runs (seed)",
    "recipe_item": "item, of the recipes’ difference",
    "seed_item": "seed × item",
    "interaction": "seed × item, sampling included",
    "sampling": "between samples of one item",
    "item": "between items (cancels in a difference)",
}
"""Names of the variance components in running text."""


def power_curve(sizings: Sequence[Sizing], unit: str) -> Chart:
    """Minimum detectable effect against the number of seeds, one line per number of items.

    Args:
        sizings: results for different numbers of items (each with one), same goal.
        unit: unit of the metric.

    Raises:
        UserError: every design has fewer than three seeds, so there is nothing to draw.
    """
    goal = sizings[0].goal
    rows = [
        {"seeds": option.seeds, "mde": option.mde, "items": f"{option.items} items"}
        for sizing in sizings
        for option in sizing.options
        if option.mde is not None
    ]
    if not rows:
        raise UserError("fewer than three seeds carry no verdict: there is no detectable effect to draw")
    counts = list(dict.fromkeys(row["items"] for row in rows))
    seeds = sorted({row["seeds"] for row in rows})
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "seeds:Q",
            title="seeds per condition",
            axis=alt.Axis(values=seeds, format="d", grid=False),
            scale=alt.Scale(type="log", domain=[seeds[0] * 0.95, seeds[-1] * 1.05]),
        ),
        y=alt.Y("mde:Q", title=f"detectable improvement ({unit})", scale=alt.Scale(zero=True)),
        color=alt.Color("items:N", title=None, sort=counts, scale=alt.Scale(domain=counts, range=list(SERIES))),
    )
    layers: list[alt.Chart] = [base.mark_line(strokeWidth=2), base.mark_circle(size=45, opacity=1)]
    for value, label in ((goal.effect, "effect looked for"), (goal.margin or None, "margin")):
        if value is not None:
            line = alt.Chart(alt.InlineData(values=[{"y": value, "label": label}])).encode(y="y:Q")
            layers.append(line.mark_rule(color=MUTED, strokeDash=[4, 3]))
            text = line.mark_text(align="right", baseline="bottom", color=INK, dy=-3, fontSize=12)
            layers.append(text.encode(x=alt.value(600), text="label:N"))
    ends = "; ".join(
        f"{sizing.options[0].items} items: {number(sizing.options[0].mde)} at {sizing.options[0].seeds} seeds, "
        f"{number(sizing.options[-1].mde)} at {sizing.options[-1].seeds}"
        for sizing in sizings
    )
    caption = (
        f"Smallest true improvement that is confirmed with probability {goal.target:g} (two-sided alpha {goal.alpha:g}"
        f"{f' shared by {goal.contrasts} contrasts' if goal.contrasts > 1 else ''}, margin {goal.margin:g}). Test: "
        "t over training runs with items crossed. Lines that meet show that more items no longer help, only more seeds."
    )
    chart = alt.layer(*layers).properties(width=600, height=320)
    return finish(chart, "power", "What a design can detect", caption, f"Detectable improvement against seeds. {ends}.")


def noise(report: Report) -> list[Chart]:
    """What the standard error of every difference is made of: its variance components over the design's numbers.

    Var = σ²_seed (1/S_a + 1/S_b) + σ²_recipe×item / P + σ²_seed×item (1/S_a + 1/S_b) / P, for S runs of each recipe
    (none of a frozen base) and P items. Not drawn for a difference in differences: its components are of one suite.
    """
    drawn = []
    for finding in report.findings:
        if finding.minus_suite is not None or not {"seed", "recipe_item", "interaction"} <= finding.variance.keys():
            continue
        per_run = sum(1 / n for n in finding.n_seeds if n)
        parts = {
            "seed": finding.variance["seed"] * per_run,
            "recipe_item": finding.variance["recipe_item"] / finding.n_items,
            "interaction": finding.variance["interaction"] * per_run / finding.n_items,
        }
        name = f"variance-{slug(finding.contrast)}"
        chart = variance_bars(parts, metric_words(finding.metric).unit, name=name, title=finding.contrast)
        runs = " + ".join(str(n) for n in finding.n_seeds if n)
        made = f"Parts of the standard error of this difference with {runs} runs and {count(finding.n_items, 'item')}."
        drawn.append(
            replace(chart, caption=f"{made} Moment estimates, runs taken as independent; 0 means not above 0.")
        )
    return drawn


def variance_bars(
    variance: Mapping[str, float],
    unit: str,
    upper: Mapping[str, float] | None = None,
    name: str = "variance",
    title: str = "Variance components",
) -> Chart:
    """Variance components as standard deviations; ticks mark upper confidence bounds where they are given."""
    names = [component for component in COMPONENTS if component in variance]
    labels = [COMPONENTS[name] for name in names]
    rows = [{"label": COMPONENTS[n], "sd": variance[n] ** 0.5, "text": number(variance[n] ** 0.5)} for n in names]
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=330))
    x = alt.X("sd:Q", title=f"standard deviation ({unit})", scale=alt.Scale(zero=True))
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=y, x=x)
    layers = [base.mark_bar(color=SERIES[0], size=16)]
    if upper is not None:
        bounds = [{"label": COMPONENTS[n], "sd": upper[n] ** 0.5} for n in names if n in upper]
        ticks = alt.Chart(alt.InlineData(values=bounds)).encode(y=y, x=x)
        layers.append(ticks.mark_tick(color=INK, thickness=2, size=20))
    reach = {n: max(variance[n], (upper or {}).get(n, 0.0)) ** 0.5 for n in names}
    numbers = [{**row, "sd": reach[n]} for row, n in zip(rows, names, strict=True)]
    text = alt.Chart(alt.InlineData(values=numbers)).encode(y=y, x=x, text="text:N")
    layers.append(text.mark_text(align="left", dx=6, color=INK, fontSize=12))
    caption = "Where the noise of one measurement comes from; numbers are standard deviations." + (
        " Ticks: upper confidence bounds, on which plans should rest." if upper is not None else ""
    )
    told = "; ".join(f"{row['label']}: {row['text']}" for row in rows)
    chart = alt.layer(*layers).properties(width=480, height=alt.Step(30))
    return finish(chart, name, title, caption, f"Standard deviations in {unit}. {told}.")
