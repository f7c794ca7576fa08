"""report.json and verdict.md: complete, strict, and consistent with the findings."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetrial.analyze.contrast import Finding
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError
from finetrial.report import markdown, page
from finetrial.report.build import ReportPaths
from finetrial.report.facts import Report, read_runs, summarise, twin
from finetrial.report.sentences import summary


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


@pytest.fixture(scope="module")
def machine(paths: ReportPaths) -> dict[str, Any]:
    return json.loads(paths.json.read_text(), parse_constant=refuse)


def test_every_field_of_every_finding_is_there(machine: dict[str, Any], report: Report) -> None:
    assert len(machine["contrasts"]) == len(report.findings) == 6
    for record, finding in zip(machine["contrasts"], report.findings, strict=True):
        assert {field.name for field in fields(Finding)} <= set(record)
        assert record["contrast"] == finding.contrast
        assert record["ci"] == list(finding.ci or ())
        assert record["estimate"] == finding.estimate
        assert record["n_seeds"] == list(finding.n_seeds)


def test_verdicts_are_counted_apart_from_exploratory_ones(machine: dict[str, Any]) -> None:
    kinds = [(record["verdict"], record["exploratory"]) for record in machine["contrasts"]]
    for verdict, n in machine["verdicts"].items():
        assert n == kinds.count((verdict, False))
        assert machine["verdicts_exploratory"][verdict] == kinds.count((verdict, True))
    assert sum(machine["verdicts"].values()) == 5


def test_seed_means_agree_with_the_judge(report: Report) -> None:
    for finding in report.findings:
        candidate = report.cell(finding.candidate, finding.suite, finding.metric)
        baseline = report.cell(finding.baseline, finding.suite, finding.metric)
        assert candidate is not None
        assert baseline is not None
        assert candidate.mean is not None
        assert baseline.mean is not None
        assert finding.estimate is not None
        assert math.isclose(candidate.mean - baseline.mean, finding.estimate, abs_tol=1e-12)


def test_every_seed_of_every_cell_is_listed(machine: dict[str, Any]) -> None:
    assert len(machine["conditions"]) == 6 * 3
    for cell in machine["conditions"]:
        seeds = [seed["seed"] for seed in cell["seeds"]]
        assert seeds == ([None] if cell["condition"] == "base" else [1, 2, 3])
        assert (cell["difference_to_base"] is None) == (cell["condition"] == "base")


def test_numbers_that_are_not_finite_become_null(report: Report) -> None:
    finding = replace(report.findings[0], ci_adjusted=(-math.inf, math.inf), hedges_g=math.nan)
    record = twin(replace(report, findings=(finding,)))["contrasts"][0]
    assert record["ci_adjusted"] == [None, None]
    assert record["hedges_g"] is None
    json.dumps(record, allow_nan=False)


def test_what_could_not_be_estimated_is_never_zero(report: Report) -> None:
    empty = dict.fromkeys(("estimate", "ci", "p_value", "ci_adjusted", "p_adjusted", "standard_error", "df"))
    finding = replace(report.findings[0], **empty, verdict="INCONCLUSIVE", reason="no common items", n_items=0)
    bare = replace(report, findings=(finding,))
    assert twin(bare)["contrasts"][0]["estimate"] is None
    assert "not estimable" in page.render(bare, [])
    assert "not estimable" in markdown.render(bare)


def test_missing_values_are_counted_and_not_averaged(campaign: Path) -> None:
    table = pq.read_table(campaign / "outcomes.parquet")
    rows = table.to_pylist()
    gone = [r for r in rows if (r["condition"], r["seed"], r["suite"]) == ("top-500", 2, "gold")]
    for row in gone[:10]:
        row["value"] = None
    for row in [r for r in rows if (r["condition"], r["seed"], r["suite"]) == ("top-500", 3, "gold")]:
        row["value"] = None
    cells = summarise(OutcomeTable.read(pa.Table.from_pylist(rows, schema=table.schema)))
    cell = next(c for c in cells if (c.condition, c.suite) == ("top-500", "gold"))
    second, third = cell.seeds[1], cell.seeds[2]
    assert (second.items, second.missing) == (50, 10)
    kept = gone[10:]
    mean = sum(r["value"] * r["weight"] for r in kept) / sum(r["weight"] for r in kept)
    assert second.mean == pytest.approx(mean, rel=1e-12)
    assert (third.mean, third.items, third.missing) == (None, 0, 60)
    assert len(cell.values) == 2


def test_markdown_has_a_sentence_and_a_row_per_contrast(paths: ReportPaths, report: Report) -> None:
    lines = paths.markdown.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    bullets = [line for line in lines if line.startswith("- **")]
    assert len(rows) == len(report.findings) + 1
    assert len(bullets) == len(report.findings)
    assert len({row.count("|") for row in rows}) == 1
    for finding, row in zip(report.findings, rows[1:], strict=True):
        assert finding.contrast in row


def test_summary_counts_in_words(report: Report) -> None:
    base = replace(report.findings[0], verdict="CONFIRMED", family="declared")
    harmful = replace(base, verdict="FAILED", subtype="HARMFUL")
    hint = replace(base, family="exploratory")
    text = " ".join(summary(replace(report, findings=(base, base, harmful, hint))))
    assert "put 3 comparisons to the test" in text
    assert "Two were confirmed" in text
    assert "One failed" in text
    assert "1 made things worse" in text
    assert "One further contrast is exploratory" in text
    assert "inconclusive" not in text


def test_half_written_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    run = {"condition": "a", "seed": 1, "folder": "runs/a_s1"}
    (tmp_path / "runs/a_s1").mkdir(parents=True)
    metrics = tmp_path / "runs/a_s1/metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    (facts,) = read_runs(tmp_path, {"runs": [run]})
    assert facts.curve == ({"step": 1, "loss": 2.0},)
    assert facts.planned is facts.realised is None
    metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_runs(tmp_path, {"runs": [run]})
