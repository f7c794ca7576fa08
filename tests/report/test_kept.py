"""What was kept and lost, figures by test set and judges: complete, offered to machines, and drawn legibly."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kept_campaign_folder import CONDITIONS, SUITES, judge_entry, write_kept_campaign

from finetrial.analyze.changes import Mean
from finetrial.analyze.table import OutcomeTable
from finetrial.analyze.tradeoffs import Position
from finetrial.report import forgetting_charts, forgetting_tables, judges, markdown
from finetrial.report.build import ReportPaths, build, draw, gather, write
from finetrial.report.facts import Report
from finetrial.report.forgetting import Forgetting, main_metric
from finetrial.report.labels import CHARACTER, LINE, place
from finetrial.report.measured import Figure, figures, suite_tables
from finetrial.report.theme import number


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kept_campaign(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return gather(folder)


@pytest.fixture(scope="module")
def paths(folder: Path, report: Report) -> ReportPaths:
    return write(report, folder / "report")


@pytest.fixture(scope="module")
def html(paths: ReportPaths) -> str:
    return paths.html.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found(report: Report) -> Forgetting:
    assert report.forgetting is not None
    return report.forgetting


def test_every_condition_stands_against_the_base_on_every_suite(found: Forgetting) -> None:
    assert [(one.suite, one.condition) for one in found.kept] == [(s, c) for s in SUITES for c in CONDITIONS]
    assert {one.suite: one.metric for one in found.kept} == {name: suite["metric"] for name, suite in SUITES.items()}
    for one in found.kept:
        assert len(one.items) == SUITES[one.suite]["items"]
        assert np.mean([item.change for item in one.items]) == pytest.approx(one.change.estimate)
        assert [item.change for item in one.drops] == sorted(item.change for item in one.drops)
        assert one.change.ci is not None


def test_means_of_the_figures_are_those_of_the_outcomes(folder: Path, report: Report) -> None:
    frame = pq.read_table(folder / "outcomes.parquet").to_pylist()
    for condition, metric in (("base", "self_bleu_2"), ("plain", "distinct_2"), ("plain", "correct_relaxed")):
        values = [
            row["value"]
            for row in frame
            if (row["condition"], row["suite"], row["metric"]) == (condition, "new_task", metric)
        ]
        (figure,) = [one for one in report.figures if (one.condition, one.metric) == (condition, metric)]
        assert figure.mean.value == pytest.approx(np.mean(values))
        assert figure.mean.n_seeds == (0 if condition == "base" else 3)


def test_pass_at_k_comes_from_the_grades(report: Report) -> None:
    named = {one.metric for one in report.figures if one.suite == "new_task"}
    assert {"pass@1", "pass@2", "pass@5", "pass@8"} <= named
    assert not {one.metric for one in report.figures if one.suite == "physics"} & {"pass@1"}
    by_metric = {one.metric: one.mean.value for one in report.figures if one.condition == "plain"}
    assert by_metric["pass@1"] == pytest.approx(by_metric["correct"])
    assert by_metric["pass@1"] < by_metric["pass@2"] < by_metric["pass@8"]


def test_suites_are_tabled_by_kind_with_n_and_chance_and_no_average(report: Report) -> None:
    tables = suite_tables(report.figures, report.conditions, report.section("suites"))
    assert [(kind, [one.suite for one in suites]) for kind, suites in tables] == [
        ("Likelihood of given texts", ["new_texts"]),
        ("Multiple choice by log-probability", ["physics", "arithmetic"]),
        ("Graded completions", ["new_task"]),
    ]
    physics = tables[1][1][0]
    assert physics.facts.startswith("n = 60 items, chance level 25.0 %, a frozen subset of 400, stratified by topic")
    assert physics.conditions == ("base", *CONDITIONS)
    assert physics.runs == ("frozen", *["3 runs"] * len(CONDITIONS))
    graded = {row.title: row for row in tables[2][1][0].rows}
    titles = list(graded)
    assert titles[:2] == ["correct (strict)", "correct (relaxed)"]
    assert titles.index("Diversity of a prompt’s samples") < titles.index("distinct_1") < titles.index("rouge_1")
    assert (graded["distinct_2"].better, graded["self_bleu_2, BLEU"].better) == ("↑", "↓")
    text = {row.title: row for row in tables[0][1][0].rows}
    mean = next(one.mean for one in report.figures if (one.condition, one.metric) == ("plain", "log_perplexity"))
    base = next(one.mean for one in report.figures if (one.condition, one.metric) == ("base", "log_perplexity"))
    shown = text["perplexity (by token)"].cells[1]
    assert shown.mean == number(float(np.exp(mean.value)), 2)
    share = 100 * (np.exp(mean.value - base.value) - 1)
    assert shown.against_base.endswith(f"({number(share, 1, signed=True)} %)")


def test_an_interval_is_cut_at_the_ends_of_the_range(report: Report) -> None:
    tables = suite_tables(report.figures, report.conditions, report.section("suites"))
    ends = [
        float(end)
        for *_, suites in tables
        for suite in suites
        for row in suite.rows
        if suite.suite == "arithmetic"
        for cell in row.cells
        for end in re.findall(r"[\d.]+", cell.interval)
    ]
    assert ends
    assert max(ends) == 1.0


def test_categories_ends_and_subsets_are_told(found: Forgetting) -> None:
    (physics, *_) = found.of("physics")
    assert [part.category for part in physics.categories] == ["heat", "mechanics", "optics", "waves"]
    assert not found.of("arithmetic")[0].categories
    assert physics.subset is not None
    assert physics.subset.n == 16
    base = next(one for one in found.room if (one.condition, one.suite) == ("base", "arithmetic"))
    assert base.ends.at_highest > 0.9
    crowded = replace(base, ends=replace(base.ends, room_up=0.01))
    told = forgetting_tables.room_warnings(replace(found, room=(crowded,)))
    assert told == ["arithmetic: base has less than 5 % of the range to gain: an improvement could hardly show."]


def test_the_picture_of_a_tradeoff_has_every_condition_and_its_table(found: Forgetting, html: str) -> None:
    first, second = found.traded
    assert {position.condition for position in first.positions} == {"base", *CONDITIONS}
    heads, rows = forgetting_tables.tradeoff(first)
    assert heads[1:4] == ["correct on new_task", "worst acc of 2", "mean of the 2"]
    assert {len(row) for row in rows} == {len(heads)}
    assert "beaten by, in the means" in html
    assert second.tradeoff.name == "new_task (correct) against new_task (distinct_2)"
    for name in ("tradeoff-0", "tradeoff-1", "checkpoints-0", "divergence-0", "judge-control-0"):
        assert f'id="{name}"' in html
    assert 'id="divergence-1"' not in html  # quality and diversity are of one suite


def test_curves_over_checkpoints_begin_at_the_base_and_show_the_divergence(report: Report) -> None:
    chart = next(one for one in forgetting_charts.checkpoints(report) if one.name == "checkpoints-0")
    assert "kl_to_base on new_texts" in chart.alt
    for step in (20, 40, 60):
        assert f"at step {step}" in chart.alt
    assert forgetting_charts.checkpoints(replace(report, snapshots=())) == []


def test_items_are_listed_with_what_they_ask(found: Forgetting, html: str) -> None:
    worst = found.of("physics")[0]
    lists = forgetting_tables.items(found, worst)
    assert [one.title for one in lists] == [
        f"Largest drops: {len(worst.drops)} items",
        f"Largest gains: {len(worst.gains)} items",
    ]
    heads, rows = lists[0].first
    assert heads == ["item", "category", "what it asks", "base", "plain", "change"]
    assert len(rows) == 12
    assert len(lists[0].rest[1]) == len(worst.drops) - 12
    assert rows[0][0] == worst.drops[0].item
    assert "how &lt;b&gt;fast&lt;/b&gt; is it?" in html
    assert "<b>fast" not in html


def test_all_items_are_in_the_file_beside_the_page(paths: ReportPaths) -> None:
    with (paths.html.parent / forgetting_tables.FILE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(CONDITIONS) * sum(suite["items"] for suite in SUITES.values())
    assert {row["category"] for row in rows if row["suite"] == "physics"} == {"heat", "mechanics", "optics", "waves"}


def test_machines_get_the_same(paths: ReportPaths, report: Report) -> None:
    machine = json.loads(paths.json.read_text())
    assert len(machine["figures"]) == len(report.figures)
    kept = machine["forgetting"]
    assert len(kept["changes"]) == len(CONDITIONS) * len(SUITES)
    assert all(len(one["gains"]) <= 12 and len(one["drops"]) <= 12 for one in kept["changes"])
    assert kept["tradeoffs"][0]["title"] == "New task against kept skills"
    positions = {one["condition"]: one for one in kept["tradeoffs"][0]["positions"]}
    assert positions["plain"]["optimal"] is True
    assert machine["judges"][0]["model"] == "judge-1"


def test_the_short_text_tells_losses_and_judges(report: Report) -> None:
    text = markdown.render(report)
    assert "## What was kept, what was lost" in text
    assert "Largest loss on physics: plain" in text
    assert "Judge judge-1, one answer at a time: passed its self-test and is in control (6 sessions)." in text
    assert "Outcomes rest on 640 grades, 3 missing." in text
    assert "Largest loss on new" not in text


def test_without_items_and_judges_the_rest_is_there(tmp_path: Path) -> None:
    folder = write_kept_campaign(tmp_path / "bare", judge=False)
    (folder / "items.parquet").unlink()
    report = gather(folder)
    assert report.forgetting is not None
    assert judges.control_charts(report) == []
    (lists, *_) = forgetting_tables.items(report.forgetting, report.forgetting.of("physics")[0])
    assert lists.first[0] == ["item", "base", "plain", "change"]


def test_a_campaign_without_a_base_or_outcomes_has_no_such_section(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text((folder / "manifest.json").read_text())
    page = build(tmp_path).html.read_text()
    assert 'id="kept"' not in page
    assert 'id="figures"' not in page


def test_what_outcomes_rest_on_stands_apart_from_what_the_last_launch_did(paths: ReportPaths) -> None:
    page = paths.html.read_text()
    for name, value in [("completions graded", "640"), ("judgments that the grades rest on", "612")]:
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert "at the very top of the scale</dt><dd>40.0 %</dd>" in page
    assert "In the last launch: completions 0;" in page
    assert "requests, with those of self-test and control chart 60;" in page
    assert "no longer in the store" not in page
    assert judges.launch({}) == ""


def test_a_judge_whose_proof_is_not_recorded_says_so(report: Report) -> None:
    entry: dict[str, Any] = {key: value for key, value in judge_entry().items() if key not in ("self_test", "control")}
    bare = replace(report, manifest={**report.manifest, "judges": [entry]})
    assert judges.self_test(entry)[1] == []
    assert judges.control_charts(bare) == []
    assert "nothing is recorded" in judges.sentences(bare)[0]
    assert len(draw(bare)) == len(draw(report)) - 1


def test_a_tradeoff_in_which_nobody_scored_anything_is_drawn(report: Report, found: Forgetting) -> None:
    def still(position: Position) -> Position:
        change = replace(position.x.change, estimate=0.0, ci=(0.0, 0.0))
        return replace(
            position, x=replace(position.x, change=change, seeds=tuple((seed, 0.0) for seed, _ in position.x.seeds))
        )

    traded = replace(found.traded[0], positions=tuple(map(still, found.traded[0].positions)))
    names = [chart.name for chart in draw(replace(report, forgetting=replace(found, traded=(traded,))))]
    assert "tradeoff-0" in names


@pytest.mark.parametrize("change", [{"outcomes": None}, {}])
def test_a_judge_of_practice_alone_has_no_totals(report: Report, tmp_path: Path, change: dict[str, Any]) -> None:
    entry = {key: value for key, value in judge_entry().items() if key != "outcomes"} | change
    assert not {name for name, _ in judges.facts(entry)} & {*judges.TOTALS.values(), *judges.SHARES.values()}
    bare = replace(report, manifest={**report.manifest, "judges": [entry]})
    assert "judge-1" in write(bare, tmp_path).html.read_text()


def test_a_control_chart_marks_what_drifted(report: Report) -> None:
    (chart,) = judges.control_charts(report)
    assert "6 sessions, 1 of them drifted" in chart.caption
    assert judges.OUTSIDE.lower() in chart.svg.lower()
    heads, rows = judges.self_test(judge_entry())
    assert rows[1][2:] == ["17 (85 %)", "1", "at least 80 %", "passed"]
    assert len(heads) == len(rows[0])


def test_a_first_session_is_a_baseline_and_stands_at_session_one(report: Report) -> None:
    """No band is spoken of where none is drawn, and the axis names whole sessions, each once."""
    entry = judge_entry()
    entry["control"] = {**entry["control"], "sessions": entry["control"]["sessions"][:1]}
    (chart,) = judges.control_charts(replace(report, manifest={**report.manifest, "judges": [entry]}))
    assert chart.title.endswith(": the first session")
    assert "One session is a baseline" in chart.caption
    assert "three sigma" not in chart.caption
    written = re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg)
    assert [text for text in written if text.isdigit()] == ["1"]


def test_the_only_grade_of_a_suite_is_not_called_strict(report: Report) -> None:
    """Strict and relaxed are told apart where both were measured; a rubric's grade is just `correct`."""
    alone = [figure for figure in report.figures if figure.metric != "correct_relaxed"]
    (suite,) = dict(suite_tables(alone, report.conditions, report.section("suites")))["Graded completions"]
    titles = [row.title for row in suite.rows]
    assert "correct" in titles
    assert "correct (strict)" not in titles


def test_the_main_metric_is_that_of_the_kind_then_the_primary(folder: Path) -> None:
    table = OutcomeTable.read(folder / "outcomes.parquet")
    assert main_metric(table, "new_task", {"kind": "tasks"}, "distinct_2") == "correct"
    assert main_metric(table, "new_task", {}, "distinct_2") == "distinct_2"
    assert main_metric(table, "new_task", {}, "nll") in table.metrics
    assert len(figures(table, ["physics"], 0.9)) == 3 * (1 + len(CONDITIONS))


@pytest.mark.parametrize("seed", range(5))
def test_names_touch_neither_each_other_nor_the_edge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in rng.uniform((50, 50), (550, 350), (9, 2))]
    names = [f"condition-{k}" for k in range(9)]
    placed = place(names, points, (600, 400))
    boxes = [(one.x, one.y - LINE / 2, one.x + CHARACTER * len(one.text), one.y + LINE / 2) for one in placed]
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= 600
        assert y1 <= 400
        for u0, v0, u1, v1 in boxes[:k]:
            assert x0 >= u1 or u0 >= x1 or y0 >= v1 or v0 >= y1


def test_a_name_wider_than_the_drawing_is_still_placed() -> None:
    (placed,) = place(["x" * 200], [(50.0, 5.0)], (100, 60))
    assert (placed.x, placed.y, placed.far) == (0.0, LINE, False)


def test_metrics_of_the_harness_keep_their_names_and_stand_where_those_they_are_read_for_do() -> None:
    mean = Mean(0.5, (0.4, 0.6), 3, 10, 0)
    found = [Figure("a", "exam", metric, mean) for metric in ("likelihood", "acc", "exact_match,strict")]
    ((heading, (one,)),) = suite_tables(found, ["a"], {"exam": {"kind": "lm_eval"}})
    assert heading == "Tasks of lm-evaluation-harness"
    assert [(row.better, row.title) for row in one.rows] == [
        ("↑", "exact_match,strict"),
        ("↑", "acc"),
        ("", "Other"),
        ("", "likelihood"),
    ]
