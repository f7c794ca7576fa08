"""How much of what training changed a smaller rank keeps: the curve behind a recommended rank."""

from typing import Any

import altair as alt

from finetrial.report.facts import Report
from finetrial.report.theme import INK, MUTED, SERIES, SERIES_SHAPES, Chart, chart_of, finish, number, panel_title

KINDS = ("mean of the layers", "worst layer")
SIZE = (680, 250)


def squeeze(report: Report) -> Chart | None:
    """Retained share of the change of weights against rank: mean of the layers and worst layer."""
    section = report.section("squeeze")
    if not section or not section.get("ranks"):
        return None
    ranks = sorted(section["ranks"], key=lambda row: row["rank"])
    rows = [
        {"rank": row["rank"], "kind": kind, "share": row[key]}
        for row in ranks
        for kind, key in zip(KINDS, ("mean", "worst"), strict=True)
        if row.get(key) is not None
    ]
    need, best = section["min_variance_retention"], section.get("recommended_rank")
    sizes = [row["rank"] for row in ranks]
    powers = [rank for rank in sizes if rank & (rank - 1) == 0]
    scale = alt.Scale(type="log", base=2, domain=[sizes[0] / 1.1, sizes[-1] * 1.1], nice=False)
    x = alt.X("rank:Q", scale=scale, axis=alt.Axis(values=powers, format="d", title="rank (log scale)", grid=False))
    y = alt.Y(
        "share:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title="retained share of the change", tickCount=5)
    )
    legend = alt.Legend(title=None, symbolOpacity=1, symbolSize=90)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS), range=list(SERIES[:2])), legend=legend)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=list(KINDS), range=list(SERIES_SHAPES[:2])), legend=legend)
    data = chart_of(rows)
    layers = [
        *_threshold(need, y),
        *(_recommended(best, x, sizes[-1]) if best is not None else []),
        data.mark_line(strokeWidth=2).encode(x, y, colour),
        data.mark_point(filled=True, size=60, opacity=1).encode(x, y, colour, shape),
    ]
    source = f" (trained with rank {section['source_rank']})" if section.get("source_rank") else ""
    title = f"{section.get('run') or 'one adapter'}{source}"
    listed = "; ".join(f"rank {r['rank']}: mean {number(r['mean'], 3)}, worst {number(r['worst'], 3)}" for r in ranks)
    return finish(
        alt.concat(alt.layer(*layers, panel_title(title)).properties(width=SIZE[0], height=SIZE[1])),
        "squeeze",
        "What rank the change of the weights needs",
        _caption(section, ranks),
        f"Lines of the retained share against rank. {listed}.",
    )


def _threshold(need: float, y: alt.Y) -> list[alt.Chart]:
    data = chart_of([{"share": need, "text": f"wanted: {number(need, 2)}"}])
    text = data.mark_text(align="left", baseline="top", dy=4, color=INK, fontSize=12)
    return [
        data.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(y),
        text.encode(x=alt.value(6), y=y, text="text:N"),
    ]


def _recommended(rank: int, x: alt.X, last: int) -> list[alt.Chart]:
    data = chart_of([{"rank": rank, "text": f"recommended: {rank}"}])
    side, away = ("left", 6) if rank < last else ("right", -6)
    text = data.mark_text(align=side, baseline="bottom", dx=away, dy=-6, color=INK, fontSize=12, fontWeight="bold")
    return [
        data.mark_rule(color=INK, strokeWidth=1.4).encode(x),
        text.encode(x=x, y=alt.value(SIZE[1]), text="text:N"),
    ]


def _caption(section: dict[str, Any], ranks: list[dict[str, Any]]) -> str:
    need, best, mean_rank = section["min_variance_retention"], section.get("recommended_rank"), section.get("mean_rank")
    at = next((row for row in ranks if row["rank"] == best), None)
    told = "V is the share of the squared singular values of each layer’s update that the largest so many keep. "
    if best is None:
        told += f"No rank keeps {number(need, 2)} of it. "
    else:
        worst = f", where its worst layer ({at['worst_layer']}) keeps {number(at['worst'], 3)}" if at else ""
        told += f"Recommended: rank {best}{worst}. "
    if mean_rank is not None and mean_rank != best:
        told += f"By the mean of the layers alone rank {mean_rank} would do, which hides the layers that lose most. "
    return told + "V measures the change of the weights, not the quality on any task: evaluate the smaller adapter too."
