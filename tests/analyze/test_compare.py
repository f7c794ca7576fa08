"""Comparing anybody's outcomes: recipes by their seeds, checkpoints as checkpoints, subsets as a warning."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar

from finetrial import seeds
from finetrial.analyze.checkpoints import compare_checkpoints
from finetrial.analyze.compare import Options, compare
from finetrial.analyze.readers.read import read
from finetrial.analyze.subsets import design_effect, subset_risk
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError
from finetrial.records import Outcome


def write(path, rows: list[dict]):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows_of(
    gains: dict[str, float], n_seeds: int | None, items: int, rng: np.random.Generator, metric: str = "score"
) -> list[dict]:
    level_I = rng.standard_normal(items)
    rows = []
    for condition, gain in gains.items():
        for seed in range(n_seeds) if n_seeds else [None]:
            run = 0.05 * rng.standard_normal()
            rows += [
                {
                    "condition": condition,
                    "seed": seed,
                    "suite": "t",
                    "metric": metric,
                    "item": f"q{i:03d}",
                    "value": level_I[i] + gain + run + 0.2 * rng.standard_normal(),
                    "kind": "easy" if i % 2 else "hard",
                }
                for i in range(items)
            ]
    return rows


def test_every_condition_against_the_baseline_is_exploratory(tmp_path):
    rows = rows_of({"base": 0.0, "good": 1.0, "same": 0.0, "bad": -1.0}, 5, 30, np.random.default_rng(0))
    compared = compare(read([write(tmp_path / "o.parquet", rows)]), Options())
    verdicts = {finding.candidate: (finding.verdict, finding.subtype) for finding in compared.findings}
    assert verdicts == {"good": ("CONFIRMED", None), "same": ("INCONCLUSIVE", None), "bad": ("FAILED", "HARMFUL")}
    for finding in compared.findings:
        assert finding.family == "exploratory"
        assert "Benjamini-Hochberg" in finding.correction
        assert finding.family_size == 3
        assert finding.n_seeds == (5, 5)
        assert "seed" in finding.unit


def test_a_declared_family_is_corrected_by_holm(tmp_path):
    rows = rows_of({"base": 0.0, "good": 1.0}, 4, 20, np.random.default_rng(1))
    found = compare(read([write(tmp_path / "o.parquet", rows)]), Options(family="mine")).findings[0]
    assert (found.family, found.correction) == ("mine", "Holm")


def test_json_has_what_the_contract_asks_for(tmp_path):
    rows = rows_of({"base": 0.0, "good": 1.0}, 4, 20, np.random.default_rng(1))
    compared = compare(read([write(tmp_path / "o.parquet", rows)], by="kind"), Options(subset=5, margin=0.1))
    payload = json.loads(json.dumps(compared.as_dict(), allow_nan=False))
    wanted = {
        "contrast",
        "metric",
        "estimate",
        "ci",
        "p_value",
        "test",
        "unit",
        "n_seeds",
        "n_items",
        "family",
        "margin",
    }
    for row in [*payload["contrasts"], *payload["groups"]]:
        assert wanted | {"verdict", "reason"} <= row.keys()
    assert [row["suite"] for row in payload["groups"]] == ["easy", "hard"]
    assert payload["groups"][0]["n_items"] == 10
    assert list(payload["subsets"]) == ["good vs base on t (score)"]


def test_single_runs_are_checkpoints_and_never_a_recipe_verdict(tmp_path):
    rows = rows_of({"base": 0.0, "good": 5.0}, 1, 60, np.random.default_rng(2))
    found = compare(read([write(tmp_path / "o.parquet", rows)]), Options()).findings[0]
    assert found.verdict == "INCONCLUSIVE"
    assert "one run each, so no verdict on the recipes" in found.reason
    assert "good is the better one" in found.reason
    assert "checkpoints" in found.unit
    assert "BCa" in found.test
    assert found.ci is not None
    assert found.ci[0] < 5 < found.ci[1] + 0.3


def test_lower_is_better_turns_the_words(tmp_path):
    rows = rows_of({"base": 0.0, "new": -2.0}, None, 30, np.random.default_rng(3), metric="nll")
    found = compare(read([write(tmp_path / "o.parquet", rows)]), Options()).findings[0]
    assert found.estimate is not None
    assert found.estimate < 0
    assert "new is the better one" in found.reason


def checkpoint(values: Sequence[float | None], groups: list[str] | None = None, name: str = "a"):
    rows = [
        Outcome(name, None, "t", f"q{i:04d}", 0, "m", value, group=None if groups is None else groups[i])
        for i, value in enumerate(values)
    ]
    return OutcomeTable.read(rows).dense(name, "t", "m")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=60))
def test_yes_or_no_items_get_mcnemar(pairs):
    a, b = ([float(pair[k]) for pair in pairs] for k in (0, 1))
    found = compare_checkpoints(checkpoint(a), checkpoint(b), 0.05)
    assert found is not None
    table = np.zeros((2, 2))
    for x, y in pairs:
        table[int(x), int(y)] += 1
    assert found.p_value == pytest.approx(min(1.0, vars(mcnemar(table, exact=True))["pvalue"]))
    assert "McNemar" in found.test
    assert found.estimate == pytest.approx(np.mean(a) - np.mean(b))


def test_checkpoint_intervals_cover():
    """t below 50 items, BCa from there: both cover 95 %, within two Monte-Carlo errors and 3 points."""
    for items, trials in ((10, 400), (80, 50)):
        covered = 0
        for trial in range(trials):
            rng = seeds.stream(trial, "coverage", items)
            a, b = rng.gamma(2.0, 1.0, items), rng.gamma(2.0, 1.0, items)
            found = compare_checkpoints(checkpoint(a.tolist()), checkpoint(b.tolist()), 0.05)
            assert found is not None
            assert found.ci is not None
            covered += found.ci[0] <= 0 <= found.ci[1]
        assert covered / trials >= 0.95 - 0.03 - 2 * math.sqrt(0.95 * 0.05 / trials)


def test_groups_of_items_are_the_replicates():
    """Ten questions asked ten times each are ten replicates, not a hundred."""
    rng = np.random.default_rng(0)
    own = np.repeat(rng.standard_normal(10), 10)
    groups = [f"g{k}" for k in np.repeat(np.arange(10), 10)]
    zeros = [0.0] * 100
    alone = compare_checkpoints(checkpoint(own.tolist()), checkpoint(zeros), 0.05)
    grouped = compare_checkpoints(checkpoint(own.tolist(), groups), checkpoint(zeros, groups), 0.05)
    assert alone is not None
    assert grouped is not None
    assert grouped.df == 9
    assert grouped.standard_error > 2.5 * alone.standard_error


def test_missing_values_leave_the_pair_and_are_counted():
    found = compare_checkpoints(checkpoint([1.0, 2.0, None, 4.0]), checkpoint([1.0, None, 3.0, 2.0]), 0.05)
    assert found is not None
    assert (found.n_items, found.n_missing, found.estimate) == (2, 2, 1.0)
    assert compare_checkpoints(checkpoint([None, 1.0]), checkpoint([1.0, None]), 0.05) is None


def test_baseline_is_asked_for_when_it_is_not_clear(tmp_path):
    rows = rows_of({"x": 0.0, "y": 1.0, "z": 0.0}, 3, 5, np.random.default_rng(0))
    reading = read([write(tmp_path / "o.parquet", rows)])
    with pytest.raises(UserError, match="--baseline is needed"):
        compare(reading, Options())
    with pytest.raises(UserError, match=r"no condition 'yy' \(did you mean 'y'\?\)"):
        compare(reading, Options(baseline="yy"))
    with pytest.raises(UserError, match=r"no metric 'scroe' \(did you mean 'score'\?\)"):
        compare(reading, Options(baseline="x", metrics=("scroe",)))
    assert [f.candidate for f in compare(reading, Options(baseline="x", candidates=("z",))).findings] == ["z"]


def test_direction_of_unknown_metrics_is_said(tmp_path):
    rows = rows_of({"base": 0.0, "new": 1.0}, 3, 5, np.random.default_rng(0), metric="zest")
    reading = read([write(tmp_path / "o.parquet", rows)])
    assert any("not known of zest: taken as higher" in note for note in compare(reading, Options()).notes)
    assert compare(reading, Options(better="lower")).findings[0].better == "lower"


def test_subsets_match_the_exact_distribution():
    """Sixteen of eighty: the mean's spread is that of sampling without replacement, σ²/n · (1 - n/N) · N/(N-1)."""
    d_I = np.random.default_rng(0).standard_normal(80) * 2 + 0.3
    found = subset_risk(d_I, 16, 0.05)
    sd = math.sqrt(d_I.var() / 16 * (1 - 16 / 80) * 80 / 79)
    z = (found.spread[1] - found.spread[0]) / 2 / sd
    assert z == pytest.approx(1.96, abs=0.06)
    assert found.half_width > 2 * found.full_half_width
    expected = 0.5 * math.erfc(abs(d_I.mean()) / sd / math.sqrt(2))
    assert found.opposite_sign == pytest.approx(expected, abs=0.02)


def test_subset_size_is_checked():
    for n in (1, 10, 11):
        with pytest.raises(UserError, match="a subset of"):
            subset_risk(np.arange(10.0), n, 0.05)


def test_design_effect():
    groups = [f"g{k}" for k in np.repeat(np.arange(5), 4)]
    same = np.repeat(np.arange(5.0), 4)
    assert design_effect(same, groups) == pytest.approx(4.0)
    rng = np.random.default_rng(0)
    many = [f"g{k}" for k in np.repeat(np.arange(500), 4)]
    assert design_effect(rng.standard_normal(2000), many) == pytest.approx(1.0, abs=0.15)
    assert design_effect(same, ["one"] * 20) is None
    assert design_effect(same, [str(i) for i in range(20)]) is None


def test_mt_bench_categories_and_subset_warning(data_dir):
    compared = compare(read([data_dir / "mt_bench" / "Stefanstud"]), Options(subset=16))
    whole = compared.findings[0]
    assert (whole.candidate, whole.baseline, whole.metric, whole.n_items) == ("phi-3-dpo", "phi-3", "win_rate", 73)
    assert whole.estimate == pytest.approx(2 / 73)
    assert len(compared.groups) == 8
    assert sum(group.n_items for group in compared.groups) == 73
    weighted = sum((group.estimate or 0) * group.n_items for group in compared.groups) / 73
    assert weighted == pytest.approx(whole.estimate)
    assert all(group.ci is not None for group in compared.groups)
    subset = next(iter(compared.subsets.values()))
    assert 0.25 < subset.opposite_sign < 0.45
    assert subset.half_width > 2 * subset.full_half_width
    assert "random 16 of these 73 items" in subset.sentence("category")
