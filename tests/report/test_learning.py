"""Reinforcement learning in the report: curves, held-out tasks over steps, warnings, completions, squeeze."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rl_campaign_folder import POLICIES, SNAPSHOTS, SQUEEZE, Policy, write_rl_campaign

from finetrial.errors import UserError
from finetrial.report import learning, learning_charts, learning_tables, markdown, mechanism_charts, page
from finetrial.report.build import ReportPaths, draw, gather, write
from finetrial.report.completions import SHOWN, read_samples, shorten
from finetrial.report.curves import Look, limits, n_seeds
from finetrial.report.facts import Cell, Report, RunFacts, SeedMean, apart, twin
from finetrial.report.squeeze import squeeze
from finetrial.report.theme import SERIES

HICRA, SEPA = POLICIES[1].name, POLICIES[2].name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rl_campaign(tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module")
def rl(folder: Path) -> Report:
    return gather(folder)


@pytest.fixture(scope="module")
def rl_paths(folder: Path, rl: Report) -> ReportPaths:
    return write(rl, folder / "report")


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def with_rows(report: Report, change: Any) -> Report:
    """The report with every row of every run sent through `change`."""
    runs = tuple(replace(run, curve=tuple(change(dict(row)) for row in run.curve)) for run in report.runs)
    return replace(report, runs=runs)


def run_of(values: list[float | None], seed: int = 1, field: str = "correct_rate") -> RunFacts:
    rows = [{"step": k, **({} if value is None else {field: value})} for k, value in enumerate(values, 1)]
    return RunFacts("a", seed, None, None, tuple(rows))


def test_supervised_reports_have_nothing_of_it(report: Report, paths: ReportPaths) -> None:
    html = paths.html.read_text()
    assert 'id="policies"' not in html
    assert "Training loss of every condition" in html
    assert json.loads(paths.json.read_text())["reinforcement"] is None
    assert learning.warnings(report) == []
    assert learning_charts.learning(report) == learning_charts.held_out_curves(report) == []
    assert mechanism_charts.sepa(report) is mechanism_charts.diagnostics(report) is squeeze(report) is None


def test_every_chart_is_on_the_page_and_fits(rl: Report, rl_paths: ReportPaths) -> None:
    html = rl_paths.html.read_text()
    names = ["held-out-correct", "held-out-pass-4", "learning-correct-rate", "entropy", "surprisal", "sepa"]
    for name in [*names, "rl-diagnostics", "squeeze"]:
        assert html.count(f'<figure class="chart" id="{name}">') == 1
        svg = (rl_paths.html.parent / "charts" / f"{name}.svg").read_text()
        assert float(re.search(r'width="([\d.]+)"', svg)[1]) <= 940, name  # pyright: ignore[reportOptionalSubscript]
        assert min(float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)) >= 10
        assert "NaN" not in svg
    assert 'id="training-curves"' not in html
    assert "cannot be compared between conditions" in html


def test_wide_campaign_of_policies_fits(tmp_path: Path) -> None:
    many = [Policy("maxrl", f"gtpo_sepa_with_a_long_name_{k}", 0.1, 0.05) for k in range(7)]
    report = gather(write_rl_campaign(tmp_path, many, seeds=(1, 2), steps=70, shaped=True))
    drawn = {chart.name: chart for chart in draw(report)}
    assert {"learning-correct-rate", "learning-mean-reward", "rl-diagnostics"} <= drawn.keys()
    for chart in drawn.values():
        width = float(re.search(r'width="([\d.]+)"', chart.svg)[1])  # pyright: ignore[reportOptionalSubscript]
        assert width <= 940, chart.name
        assert len(chart.svg) < 400_000
    assert "bands" not in drawn["rl-diagnostics"].caption
    assert "Each point averages 2 steps." in drawn["learning-correct-rate"].caption


def test_reward_has_a_chart_of_its_own_only_where_it_differs(rl: Report) -> None:
    assert [chart.name for chart in learning_charts.learning(rl)] == ["learning-correct-rate"]
    shaped = with_rows(rl, lambda row: row | {"mean_reward": row["mean_reward"] - 0.1})
    assert [chart.name for chart in learning_charts.learning(shaped)] == [
        "learning-correct-rate",
        "learning-mean-reward",
    ]


def test_conditions_keep_their_colour_when_another_is_left_out(rl: Report) -> None:
    names = [policy.name for policy in POLICIES]
    assert Look(rl, names).colours == list(SERIES[:3])
    assert Look(rl, [SEPA]).colour(SEPA) == SERIES[2]


def test_one_seed_is_told_and_draws_no_band(tmp_path: Path) -> None:
    report = gather(write_rl_campaign(tmp_path, POLICIES[:1], seeds=(42,)))
    (chart,) = learning_charts.learning(report)
    assert "One seed per condition" in chart.caption
    assert "All conditions" not in texts(chart.svg)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=200))
def test_points_of_a_curve_are_means_of_what_is_there(values: list[float | None]) -> None:
    steps = len(values)
    rows = learning.binned([run_of(values), run_of(values, seed=2)], steps, "correct_rate")
    there = [value for value in values if value is not None]
    assert len(rows) <= learning.CURVE_POINTS
    assert bool(rows) == bool(there)
    for row in rows:
        assert row["low"] == row["high"] == pytest.approx(row["mean"])
        assert min(there) - 1e-12 <= row["mean"] <= max(there) + 1e-12


def test_absent_fields_are_gaps_and_not_zero(rl: Report) -> None:
    run = run_of([0.5, None, 0.7])
    assert learning.binned([run], 3, "correct_rate") == [
        {"step": 1.0, "mean": 0.5, "low": 0.5, "high": 0.5},
        {"step": 3.0, "mean": 0.7, "low": 0.7, "high": 0.7},
    ]
    silent = with_rows(rl, lambda row: {k: v for k, v in row.items() if "plan" not in k})
    chart = mechanism_charts.entropy(silent)
    assert chart is not None
    assert "planning mean" not in texts(chart.svg)
    assert "execution mean" in texts(chart.svg)


def test_limits_are_apart_and_seeds_are_counted() -> None:
    low, high = limits([{"low": 0.0, "high": 0.0}])
    assert low < 0 < high
    assert n_seeds([3, 3]) == "n = 3 seeds per condition"
    assert n_seeds([3, 1]) == "n = 1 to 3 seeds per condition"


def test_snapshots_stay_out_of_tables_and_heatmaps(rl: Report, rl_paths: ReportPaths) -> None:
    assert rl.suites == ["arithmetic", "word-problems"]
    assert {cell.suite for cell in rl.snapshots} == {f"arithmetic@{step}" for step in SNAPSHOTS}
    for name in ("heatmap-correct", "seeds-correct"):
        assert "@" not in " ".join(texts((rl_paths.html.parent / "charts" / f"{name}.svg").read_text()))
    assert not [row for row in json.loads(rl_paths.json.read_text())["conditions"] if "@" in row["suite"]]


def test_only_a_known_suite_has_snapshots() -> None:
    cells = [Cell("a", suite, "correct", (SeedMean(1, 0.5, 10, 0),)) for suite in ("x", "x@5", "y@5", "z@late", "w@7")]
    kept, way = apart(cells, ["w"])
    assert [cell.suite for cell in way] == ["x@5", "w@7"]
    assert [cell.suite for cell in kept] == ["x", "y@5", "z@late"]


def test_held_out_tasks_start_at_the_base_and_end_at_the_last_step(rl: Report) -> None:
    points = [point for point in learning.held_out(rl) if point.metric == "correct"]
    steps = {name: [p.step for p in points if p.condition == name] for name in rl.conditions}
    assert steps == {"base": [0], **{policy.name: [10, 20, 30] for policy in POLICIES}}
    for point in points:
        assert point.suite == "arithmetic"
        name = "arithmetic" if point.step in (0, 30) else f"arithmetic@{point.step}"
        cells = [cell for cell in (*rl.cells, *rl.snapshots) if cell.suite == name and cell.metric == "correct"]
        (cell,) = [cell for cell in cells if cell.condition == point.condition]
        assert list(point.values) == cell.values
    heads, rows = learning_tables.held_out_steps(rl, "correct")
    assert heads == ["condition", "test set", "step 0", "step 10", "step 20", "step 30"]
    assert rows[0][2:] == [f"{rl.base_mean('arithmetic', 'correct'):.3f}", "—", "—", "—"]


def test_snapshot_of_the_last_step_is_not_counted_twice(rl: Report) -> None:
    late = Cell(SEPA, "arithmetic@30", "correct", (SeedMean(42, 0.1, 40, 0),))
    grown = replace(rl, snapshots=(*rl.snapshots, late))
    assert learning.held_out(grown) == learning.held_out(rl)


def test_curves_end_where_runs_ended_and_show_no_kept_adapter_at_another_step(rl: Report) -> None:
    """One run was stopped at 20 and kept its last adapter, one kept an earlier one, one went on and kept an earlier."""
    stops = {42: (20, 20), 101: (20, 6), 202: (None, 6)}

    def guarded(run: RunFacts) -> RunFacts:
        if run.condition != SEPA:
            return run
        end, kept = stops[run.seed]
        last = {"stopped_at": end, "selected_step": kept, "last_adapter": "last"}
        guard = last | {"selected": "last" if kept == end else "other"}
        curve = tuple(row for row in run.curve if end is None or row["step"] <= end)
        return replace(run, stopped_at=end, curve=curve, record={**run.record, "stopping": guard})

    stopped = replace(rl, runs=tuple(map(guarded, rl.runs)))
    seeds = {
        point.step: len(point.values)
        for point in learning.held_out(stopped)
        if (point.condition, point.metric) == (SEPA, "correct")
    }
    assert seeds == {10: 3, 20: 3}
    at_20 = [p for p in learning.held_out(stopped) if (p.condition, p.metric, p.step) == (SEPA, "correct", 20)]
    cell, snapshot = rl.cell(SEPA, "arithmetic", "correct"), rl.snapshots
    (way,) = [c for c in snapshot if (c.condition, c.suite, c.metric) == (SEPA, "arithmetic@20", "correct")]
    assert cell is not None
    want = [cell.seeds[0].mean, *(seed.mean for seed in way.seeds[1:])]
    assert sorted(at_20[0].values) == sorted(mean for mean in want if mean is not None)
    told = learning.ends_told(stopped, [SEPA])
    assert "ends there" in told
    assert "kept an earlier adapter" in told
    assert learning.ends_told(stopped, [HICRA]) == ""


def test_pass_at_k_is_shown_as_it_is_judged(rl: Report) -> None:
    finding = next(finding for finding in rl.findings if finding.metric == "pass@4")
    candidate, baseline = rl.cell(SEPA, "arithmetic", "pass@4"), rl.cell(HICRA, "arithmetic", "pass@4")
    assert candidate is not None
    assert baseline is not None
    assert candidate.mean is not None
    assert baseline.mean is not None
    assert candidate.mean - baseline.mean == pytest.approx(finding.estimate)


def test_warnings_tell_what_is_doubtful(rl: Report, rl_paths: ReportPaths) -> None:
    told = learning.warnings(rl)
    assert any(t.startswith(f"{HICRA}: the reward in training rose") and "arithmetic did not" in t for t in told)
    assert any(t.startswith(f"{HICRA} (seed 101 of 3 runs)") and "no grade" in t for t in told)
    assert any(t.startswith("grpo+none") and "one reward" in t for t in told)
    assert any(t.startswith("grpo+none") and "cut at the limit" in t for t in told)
    assert not [t for t in told if t.startswith(SEPA)]
    html, words = rl_paths.html.read_text(), rl_paths.markdown.read_text()
    assert f"{len(told)} warnings about the training runs" in html
    assert html.count("What was learned may not carry over") == words.count("What was learned may not carry over") == 1


def test_clean_runs_raise_no_warning(rl: Report) -> None:
    def clean(row: dict[str, Any]) -> dict[str, Any]:
        fine = {"missing_grades": 0, "max_token_hit_rate": 0.2, "reward_uniform_group_rate": 0.5, "mean_reward": 0.5}
        return row | fine

    assert learning.warnings(with_rows(rl, clean)) == []


def test_what_each_run_did_adds_up(rl: Report, folder: Path) -> None:
    summary = next(run for run in learning.summaries(rl) if (run.condition, run.seed) == (HICRA, 101))
    path = folder / "runs" / f"{HICRA}_s101" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert summary.steps == len(rows) == 30
    assert summary.completions == 30 * 8 * 16
    assert summary.missing_grades == sum(row["missing_grades"] for row in rows)
    assert summary.trained_last == pytest.approx(sum(row["correct_rate"] for row in rows[-8:]) / 8)
    assert summary.held_out.keys() == {"arithmetic", "word-problems"}
    passed = with_rows(rl, lambda row: row | {"passed_over_groups": 2})
    assert learning.summaries(passed)[0].completions == 30 * 10 * 16


def test_fields_that_were_not_logged_are_not_recorded(rl: Report) -> None:
    bare = with_rows(rl, lambda row: {"step": row["step"], "mean_reward": row["mean_reward"]})
    summary = learning.summaries(bare)[0]
    assert summary.completions is summary.missing_share is summary.cut is summary.tokens is None
    assert "not recorded" in page.render(bare, [])
    assert "not recorded" in markdown.render(replace(bare, manifest={**bare.manifest, "campaign": None}))


def test_sepa_marks_the_gate_of_pooling_runs_alone(rl: Report) -> None:
    chart = mechanism_charts.sepa(rl)
    assert chart is not None
    assert "grpo+none" not in chart.alt
    assert "seed 42 at step 6" in chart.alt
    shut = with_rows(rl, lambda row: row | {"sepa_gate_open": False})
    closed = mechanism_charts.sepa(shut)
    assert closed is not None
    assert f"No opening was logged for {SEPA} seed 42" in closed.caption


def test_machines_get_the_same(rl: Report, rl_paths: ReportPaths) -> None:
    record = json.loads(rl_paths.json.read_text())
    told = record["reinforcement"]
    assert told["warnings"] == learning.warnings(rl)
    assert len(told["runs"]) == 9
    assert told["held_out_metric"] == "correct"
    assert {point["step"] for point in told["held_out_over_steps"]} == {0, 10, 20, 30}
    assert record["squeeze"]["recommended_rank"] == 32
    assert twin(replace(rl, manifest={}))["squeeze"] is None


def test_squeeze_says_what_it_measures(rl: Report) -> None:
    chart = squeeze(rl)
    assert chart is not None
    assert "recommended: 32" in texts(chart.svg)
    assert "wanted: 0.95" in texts(chart.svg)
    assert "not the quality on any task" in chart.caption
    assert "rank 16 would do" in chart.caption
    agreed = replace(rl, manifest={**rl.manifest, "squeeze": {**SQUEEZE, "mean_rank": 32}})
    same = squeeze(agreed)
    assert same is not None
    assert "would do" not in same.caption


def test_completions_are_escaped_and_of_both_ends(rl: Report, rl_paths: ReportPaths) -> None:
    mine = [sample for sample in rl.samples if sample.condition == SEPA]
    assert [(sample.step, sample.outcome) for sample in mine] == [
        (1, "right"),
        (1, "wrong"),
        (30, "right"),
        (30, "wrong"),
    ]
    html = rl_paths.html.read_text()
    assert "So x &lt; y &amp; done." in html
    assert "x < y" not in html


def test_completions_without_grades_are_shown_as_such(tmp_path: Path) -> None:
    run = {"condition": "a", "seed": 1, "folder": "runs/a_s1"}
    place = tmp_path / "runs/a_s1/emergence"
    place.mkdir(parents=True)
    row = {"step": 1, "task": "t", "prompt": "p", "completion": "<b>" * SHOWN, "correct": None, "no_grade": "timeout"}
    (place / "generations.jsonl").write_text(json.dumps(row) + '\n{"step": 2, "half')
    (sample,) = read_samples(tmp_path, {"runs": [run]})
    assert (sample.outcome, sample.no_grade, sample.finished) == ("no grade", "timeout", None)
    assert len(shorten(sample.completion)) < SHOWN + 40
    (place / "generations.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"generations\.jsonl.*'step'"):
        read_samples(tmp_path, {"runs": [run]})


@pytest.mark.parametrize("block", [64, 300, 1 << 20])
def test_last_step_is_found_from_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("finetrial.report.completions.BLOCK", block)
    place = tmp_path / "runs/a_s1/emergence"
    place.mkdir(parents=True)
    rows = [
        {"step": step, "task": f"{step}-{k}", "prompt": "é" * k, "completion": "c", "correct": float(k == 3)}
        for step in range(1, 9)
        for k in range(6)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (place / "generations.jsonl").write_text(text + '{"step": 9, "ta', encoding="utf-8")
    samples = read_samples(tmp_path, {"runs": [{"condition": "a", "seed": 1, "folder": "runs/a_s1"}]})
    assert [sample.task for sample in samples] == ["1-3", "1-0", "8-3", "8-0"]


def test_campaign_in_its_first_steps_has_curves(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    run = f"runs/{SEPA}_s42"
    (tmp_path / run).mkdir(parents=True)
    first = (folder / run / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (tmp_path / run / "metrics.jsonl").write_text(first)
    report = gather(tmp_path)
    drawn = draw(report)
    assert {"learning-correct-rate", "rl-diagnostics"} <= {chart.name for chart in drawn}
    assert 'id="policies"' in page.render(report, drawn)
