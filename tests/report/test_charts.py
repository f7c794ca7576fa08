"""Charts: right way round, legible sizes, every case that a campaign can bring."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from campaign_folder import LARGE, SUITES, Recipe, large_contrasts, write_campaign
from hypothesis import given
from hypothesis import strategies as st

from finetrial.report import charts, diagnostics, scaling
from finetrial.report.build import ReportPaths, draw, gather
from finetrial.report.facts import Cell, Report, SeedMean, oriented
from finetrial.report.theme import MARKS, decimals_for, number, p_text, wrap


def texts(svg: str) -> list[str]:
    """The words of a drawing, lines of one label joined."""
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_every_chart_is_saved_as_svg_and_png(paths: ReportPaths) -> None:
    kinds = {".svg": b"<svg ", ".png": b"\x89PNG"}
    assert len(paths.charts) == 30
    for path in paths.charts:
        assert path.read_bytes().startswith(kinds[path.suffix])


def test_forest_turns_every_contrast_so_that_right_is_better(report: Report) -> None:
    lower = replace(report.findings[0], estimate=-0.02, ci=(-0.03, -0.01), ci_adjusted=(-0.035, -0.005))
    higher = replace(lower, better="higher", metric="accuracy")
    first, second = charts.forest(replace(report, findings=(lower, higher)))
    assert any(text.startswith("+0.020  [0.005, 0.035]") for text in texts(first.svg))
    assert any(text.startswith("−0.020  [−0.035, −0.005]") for text in texts(second.svg))


@given(st.floats(-10, 10), st.floats(0, 5), st.sampled_from(["higher", "lower"]))
def test_orientation_keeps_the_width_and_is_its_own_inverse(report: Report, low: float, width: float, way: str) -> None:
    finding = replace(report.findings[0], better=way)
    turned = oriented(finding, (low, low + width))
    assert turned is not None
    assert turned[0] <= turned[1]
    assert oriented(finding, turned) == (low, low + width)


@pytest.mark.parametrize("verdict", list(MARKS))
def test_forest_shows_every_verdict_in_its_colour_and_words(report: Report, verdict: str) -> None:
    state, _, subtype = verdict.partition(":")
    finding = replace(report.findings[0], verdict=state, subtype=subtype or None)
    (chart,) = charts.forest(replace(report, findings=(finding,)))
    assert MARKS[verdict].label in texts(chart.svg)
    assert f'fill="{MARKS[verdict].colour}"' in chart.svg
    assert MARKS[verdict].label in chart.alt


def test_forest_lists_what_could_not_be_estimated(report: Report) -> None:
    empty = replace(report.findings[0], estimate=None, ci=None, ci_adjusted=None, verdict="INVALID")
    (chart,) = charts.forest(replace(report, findings=(empty, report.findings[1])))
    assert "not estimable" in texts(chart.svg)
    (alone,) = charts.forest(replace(report, findings=(empty,)))
    assert "not estimable" in texts(alone.svg)


def test_forest_bears_endless_intervals(report: Report) -> None:
    endless = replace(report.findings[0], ci_adjusted=(float("-inf"), float("inf")), verdict="INCONCLUSIVE")
    (chart,) = charts.forest(replace(report, findings=(endless,)))
    assert any("∞" in text for text in texts(chart.svg))
    assert "NaN" not in chart.svg
    assert "Infinity" not in chart.svg


def test_wide_campaign_stays_legible(tmp_path: Path) -> None:
    recipes = (*LARGE, *(Recipe(f"one-more-recipe-number-{k}-500", 500, 0.2) for k in range(7)))
    folder = write_campaign(tmp_path, recipes, range(1, 5), tuple(SUITES), 6, large_contrasts())
    report = gather(folder)
    drawn = draw(report)
    for chart in drawn:
        width = float(re.search(r'width="([\d.]+)"', chart.svg)[1])  # pyright: ignore[reportOptionalSubscript]
        assert width <= 940, chart.name
        assert min(float(size) for size in re.findall(r'font-size="([\d.]+)px"', chart.svg)) >= 10, chart.name
        assert len(chart.svg) < 400_000, chart.name
        for value in re.findall(r"-?\d+\.\d{3,}", re.sub(r">[^<]*<|aria-label=\"[^\"]*\"", "", chart.svg)):
            pytest.fail(f"{chart.name}: coordinate {value} is not rounded")
    heat = next(chart for chart in drawn if chart.name == "heatmap-nll")
    words = " ".join(texts(heat.svg))
    for recipe in recipes:
        assert recipe.name[:20] in words


def test_heatmap_never_shows_a_bare_mean(report: Report) -> None:
    chart = charts.heatmap(report, "nll")
    assert chart is not None
    words = texts(chart.svg)
    cells = [cell for cell in report.cells if cell.condition != "base"]
    for cell in cells:
        assert f"{min(cell.values):.3f}–{max(cell.values):.3f}" in words
    assert words.count("no seeds") == 3


def test_strip_has_a_dot_for_every_seed(report: Report) -> None:
    chart = charts.strip(report, "nll")
    assert chart is not None
    assert len(re.findall(r'<path transform="translate[^>]*fill="#0072B2"', chart.svg)) == 5 * 3 * 3


def test_charts_without_a_base_show_values(report: Report) -> None:
    cells = tuple(cell for cell in report.cells if cell.condition != "base")
    chart = charts.strip(replace(report, cells=cells), "nll")
    assert chart is not None
    assert "minus" not in chart.caption
    heat = charts.heatmap(replace(report, cells=cells), "nll")
    assert heat is not None
    assert "Difference to the frozen base" not in texts(heat.svg)


def test_condition_without_any_value_does_not_break_charts(report: Report) -> None:
    empty = Cell("lost", "gold", "nll", (SeedMean(1, None, 0, 60),))
    grown = replace(report, cells=(*report.cells, empty))
    heat, dots = charts.heatmap(grown, "nll"), charts.strip(grown, "nll")
    assert heat is not None
    assert dots is not None


def test_strategies_join_conditions_that_differ_in_size_alone(report: Report) -> None:
    assert scaling.strategies(report) == {
        "random-500": "random",
        "random-1000": "random",
        "top-500": "top",
        "top-1000": "top",
    }


def test_no_scaling_chart_when_the_recipe_differs_too(report: Report) -> None:
    spec = dict(report.manifest["spec"])
    spec["conditions"] = [{**c, "training": {"learning_rate": k}} for k, c in enumerate(spec["conditions"])]
    assert scaling.scaling(replace(report, manifest={**report.manifest, "spec": spec}), "nll") is None


def test_scores_beyond_zero_and_one_get_axes_of_their_own(report: Report) -> None:
    scores = {"length": {"min": 10, "q25": 200, "median": 400, "q75": 900, "max": 4000, "mean": 600, "std": 300}}
    scores |= {"ratio": {"min": 0, "q25": 0.2, "median": 0.4, "q75": 0.9, "max": 1, "mean": 0.6, "std": 0.3}}
    data = {"scores": {"dimensions": {**scores, "absent": {"median": None, "share_missing": 1.0}}}}
    chart = diagnostics.scores(replace(report, manifest={**report.manifest, "data": data}))
    assert chart is not None
    assert {"score, length", "score, ratio"} <= set(texts(chart.svg))
    assert "absent" not in texts(chart.svg)


def test_selections_that_are_nearly_the_same_are_named(report: Report) -> None:
    names = ["a", "b", "c"]
    matrix = [[1.0, 0.93, None], [0.93, 1.0, 0.1], [None, 0.1, 1.0]]
    data = {"overlap": {"names": names, "matrix": matrix, "nearly_same": [["a", "b"]]}}
    chart = diagnostics.overlap(replace(report, manifest={**report.manifest, "data": data}))
    assert chart is not None
    assert "Nearly the same: a and b." in chart.caption
    assert texts(chart.svg).count("93") == 2
    data["overlap"]["nearly_same"] = [["a", "b"], ["a", "c"], ["b", "c"]]
    chart = diagnostics.overlap(replace(report, manifest={**report.manifest, "data": data}))
    assert chart is not None
    assert "Nearly the same: all of them. " in chart.caption


def test_timing_shares_add_up(report: Report) -> None:
    chart = diagnostics.timing(report)
    assert chart is not None
    shares = [int(match) for match in re.findall(r"\((\d+) %\)", " ".join(texts(chart.svg)))]
    assert len(shares) == 5
    assert abs(sum(shares) - 100) <= 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not recorded"),
        (0.0, "0"),
        (-0.00004, "−0.00004000"),
        (1234567, "1\u202f234\u202f567"),
        (12.3456, "12.35"),
    ],
)
def test_numbers_for_readers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_rounded_to_nothing_has_no_sign() -> None:
    assert number(-0.0001, 3) == "0.000"
    assert number(0.0204, 3, signed=True) == "+0.020"


@pytest.mark.parametrize(("p", "text"), [(1e-9, "<0.0001"), (0.0123, "0.012"), (0.5, "0.50"), (None, "not recorded")])
def test_p_values_for_readers(p: float | None, text: str) -> None:
    assert p_text(p) == text


@given(st.floats(1e-6, 1e6))
def test_decimals_show_the_uncertainty(width: float) -> None:
    places = decimals_for(width)
    assert 0 <= places <= 6
    assert float(f"{width:.{places}f}") > 0 or width < 2e-6


@given(st.text(min_size=1, max_size=120))
def test_wrapped_labels_have_at_most_the_lines_asked_for(name: str) -> None:
    assert wrap(name, 20, 2).count("\n") <= 1
