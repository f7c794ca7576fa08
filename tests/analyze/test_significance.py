"""The significance report: runs are the replicates, completions describe."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from finetrial.analyze.readers.run_logs import RunLog, expand, load_runs
from finetrial.analyze.runs.markdown import significance_markdown
from finetrial.analyze.runs.significance import (
    DEGRADATION,
    IMPROVEMENT,
    INSUFFICIENT,
    fisher,
    significance,
    welch_interval,
)
from finetrial.errors import UserError
from run_folders import write_arms, write_run


def arms(tmp_path, baseline: float, candidate: float, runs: int, **more) -> tuple[list[RunLog], list[RunLog]]:
    write_arms(tmp_path, {"b": baseline, "c": candidate}, runs, **more)
    return tuple(load_runs(expand([str(tmp_path / "runs" / f"{name}_s*")])) for name in "bc")  # pyright: ignore[reportReturnType]


def test_fisher_of_the_research_guide():
    assert fisher(342, 1024, 298, 1024)["p_value"] == pytest.approx(0.0403, abs=5e-5)
    assert fisher(5, 5, 0, 5)["odds_ratio"] is None


def test_improvement_degradation_and_insufficient(tmp_path):
    better = significance(*arms(tmp_path / "1", 0.3, 0.5, 5))
    assert better.recommendation == IMPROVEMENT
    assert better.significant_improvement_metrics == ["mean_reward", "correct_rate"]
    worse = significance(*arms(tmp_path / "2", 0.5, 0.3, 5))
    assert worse.recommendation == DEGRADATION
    assert worse.mean_tests[0].delta < 0
    assert significance(*arms(tmp_path / "3", 0.4, 0.4, 5)).recommendation == INSUFFICIENT


def test_three_against_three_can_never_be_significant(tmp_path):
    report = significance(*arms(tmp_path, 0.1, 0.9, 3))
    assert report.recommendation == INSUFFICIENT
    assert report.mean_tests[0].p_value == pytest.approx(0.1)
    assert "3 against 3 runs can never reach p below 0.1" in report.reason
    assert report.rate_test is not None
    assert report.rate_test["p_value"] < 1e-50
    assert report.rate_test["descriptive"]


def test_numbers_agree_with_scipy_on_run_means(tmp_path):
    baseline, candidate = arms(tmp_path, 0.3, 0.4, 4)
    report = significance(baseline, candidate, alpha=0.1)
    a, b = (np.array([run.values_T["mean_reward"].mean() for run in runs]) for runs in (candidate, baseline))
    test = report.mean_tests[0]
    assert test.delta == pytest.approx(a.mean() - b.mean())
    pooled = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert test.cohens_d == pytest.approx(test.delta / pooled)
    assert test.hedges_g == pytest.approx(test.delta / pooled * (1 - 3 / (4 * 6 - 1)))
    exact = stats.permutation_test((a, b), lambda x, y: x.mean() - y.mean(), permutation_type="independent")
    assert test.p_value == pytest.approx(exact.pvalue)
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert (test.t_ci_low, test.t_ci_high) == pytest.approx((welch.low, welch.high))
    assert test.ci_low is not None
    assert test.ci_low < test.delta < (test.ci_high or 0)
    assert (test.n_candidate, test.n_baseline, test.n_steps) == (4, 4, 12)


def test_run_level_test_holds_its_level_where_pooled_completions_do_not():
    """No difference between recipes, seeds that differ by 3 points: the pooled Fisher test rejects most of the time."""
    rng = np.random.default_rng(11)
    trials, runs, completions, alpha = 400, 8, 4000, 0.05
    run_level = pooled = 0
    for _ in range(trials):
        rate = np.clip(rng.normal(0.4, 0.03, (2, runs)), 0, 1)
        right = rng.binomial(completions, rate)
        means = right / completions
        interval = welch_interval(means[0], means[1], alpha)
        assert interval is not None
        run_level += not interval[0] <= 0 <= interval[1]
        n = runs * completions
        pooled += (fisher(int(right[0].sum()), n, int(right[1].sum()), n)["p_value"] or 0) < alpha
    assert run_level / trials <= alpha + 2 * math.sqrt(alpha * (1 - alpha) / trials)
    assert pooled / trials > 0.5


def test_sample_sizes_stand_at_the_lift_and_say_what_they_rest_on(tmp_path):
    report = significance(*arms(tmp_path, 0.3, 0.35, 5), margin=0.02)
    rows = {(row["metric"], row["basis"].split()[0]): row for row in report.sample_size_estimates}
    at_margin = rows["mean_reward", "margin"]
    assert at_margin["effect"] == 0.02
    assert at_margin["n_per_arm_80pct_upper_sd"] > at_margin["n_per_arm_80pct"]
    assert "circular" in rows["mean_reward", "observed"]["basis"]
    pooled = [row for row in report.sample_size_estimates if "completion" in row["unit"]]
    assert len(pooled) == 1
    assert "descriptive" in pooled[0]["unit"]


def test_only_common_steps_count_and_lost_ones_are_told(tmp_path):
    baseline, candidate = arms(tmp_path, 0.3, 0.3, 3)
    short = load_runs([write_run(tmp_path / "runs" / "c_s9", 0.3, np.random.default_rng(0), steps=7)])
    report = significance(baseline, [*candidate, *short])
    assert report.mean_tests[0].n_steps == 7
    assert any("b_s0: 5 of 12 steps are not in every run" in line for line in report.warnings)


def test_selected_completions_are_not_pooled(tmp_path):
    rng = np.random.default_rng(2)
    folders = [write_run(tmp_path / f"{c}_s{s}", 0.4, rng, generations="best") for c in "ab" for s in range(3)]
    report = significance(load_runs(folders[:3]), load_runs(folders[3:]))
    assert report.rate_test is not None
    assert report.rate_test["candidate_total"] == 3 * 12 * 32
    assert report.rate_test["candidate_rate"] == pytest.approx(0.4, abs=0.05)
    assert sum("not used" in line for line in report.warnings) == 6


def test_overlapping_arms_and_single_runs(tmp_path):
    baseline, candidate = arms(tmp_path, 0.3, 0.3, 2)
    with pytest.raises(UserError, match="in both arms"):
        significance(baseline, [*candidate, baseline[0]])
    report = significance(baseline[:1], candidate)
    assert report.mean_tests[0].p_value is None
    assert report.recommendation == INSUFFICIENT
    assert "single run" in report.reason


def test_json_and_markdown_carry_the_same_verdict(tmp_path):
    report = significance(*arms(tmp_path, 0.3, 0.5, 5))
    payload = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert {
        "alpha",
        "baseline_runs",
        "candidate_runs",
        "mean_tests",
        "rate_test",
        "sample_size_estimates",
    } <= payload.keys()
    assert {"metric", "delta", "p_value", "ci_low", "ci_high", "n_baseline", "cohens_d"} <= payload["mean_tests"][
        0
    ].keys()
    text = significance_markdown(report)
    assert report.recommendation in text
    for heading in ("Mean-Difference Tests", "Correctness Rate Test", "Sample Size Estimates", "Warnings"):
        assert heading in text
