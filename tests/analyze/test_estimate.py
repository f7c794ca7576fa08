"""Two-way variance, critical values and p-values against textbook special cases and other people's code."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from finetrial import seeds
from finetrial.analyze.estimate import (
    Estimate,
    critical_value,
    effect,
    effective_df,
    estimate,
    p_value,
    welch_df,
)


def two_arms(s_a: int, s_b: int, items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = seeds.stream(seed, "test", "two arms")
    item = rng.normal(size=items)
    arms = [
        item + rng.normal(size=(s, 1)) * 0.3 + rng.normal(size=items) * 0.2 + rng.normal(size=(s, items)) * 0.5
        for s in (s_a, s_b)
    ]
    return arms[0], arms[1]


def plain(a_SI: np.ndarray, b_SI: np.ndarray, *, paired: bool) -> Estimate:
    items = a_SI.shape[-1]
    return estimate([effect(a_SI, b_SI, np.ones(items), np.arange(items), paired)], paired)


def seeds_only(v_seed: float, df: float, value: float = 1.0) -> Estimate:
    return Estimate(*map(np.asarray, (value, v_seed, 0.0, df, 99.0)))


def test_seed_variance_is_the_paired_t_tests() -> None:
    a_SI, b_SI = two_arms(6, 6, 40)
    e = plain(a_SI, b_SI, paired=True)
    means = a_SI.mean(1) - b_SI.mean(1)
    only = Estimate(e.estimate, e.v_seed, np.zeros(()), e.df_seed, e.df_item)
    assert e.estimate == pytest.approx(means.mean(), abs=1e-12)
    assert p_value(only) == pytest.approx(stats.ttest_1samp(means, 0)[1], rel=1e-6)
    interval = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    half = float(critical_value(0.05, only) * only.standard_error)
    assert half == pytest.approx((interval.high - interval.low) / 2, rel=1e-9)


def test_seed_variance_is_welchs_where_runs_are_unpaired_and_equal_in_number() -> None:
    a_SI, b_SI = two_arms(5, 5, 40)
    e = plain(a_SI, b_SI, paired=False)
    only = Estimate(e.estimate, e.v_seed, np.zeros(()), e.df_seed, e.df_item)
    expected = stats.ttest_ind(a_SI.mean(1), b_SI.mean(1), equal_var=False)
    assert e.df_seed == pytest.approx(expected.df)  # pyright: ignore[reportAttributeAccessIssue]
    assert p_value(only) == pytest.approx(expected[1], rel=1e-6)


def test_welch_df_never_exceeds_those_of_the_design() -> None:
    # Welch alone would give up to 17 degrees of freedom to 3 against 16 runs.
    df = welch_df(np.asarray(1e-9), np.asarray(1.0), 3, 16)
    assert df == pytest.approx((1 / 3 + 1 / 16) ** 2 / (1 / (9 * 2) + 1 / (256 * 15)))
    assert welch_df(np.asarray(1.0), np.asarray(1.0), 8, 8) == pytest.approx(14)
    assert welch_df(np.asarray(1.0), np.asarray(0.0), 8, 1) == 7


def test_terms_are_the_analysis_of_variance_of_the_differences() -> None:
    a_SI, b_SI = two_arms(5, 5, 30)
    d_SI = a_SI - b_SI
    s, i = d_SI.shape
    e = effect(a_SI, b_SI, np.ones(i), np.arange(i), paired=True)
    residual = d_SI - d_SI.mean(0) - d_SI.mean(1, keepdims=True) + d_SI.mean()
    assert e.v_item == pytest.approx(d_SI.mean(0).var(ddof=1) / i)
    assert e.v_both == pytest.approx((residual**2).sum() / ((s - 1) * (i - 1)) / (s * i))


def test_two_way_variance_agrees_with_statsmodels_when_seeds_and_items_are_many() -> None:
    # cov_cluster_2groups has no small-sample form per dimension, so the two agree as both dimensions grow.
    a_SI, b_SI = two_arms(60, 60, 60, seed=3)
    d_SI = a_SI - b_SI
    s, i = np.indices(d_SI.shape)
    fit = sm.OLS(d_SI.ravel(), np.ones(d_SI.size)).fit()
    both, _, _ = cov_cluster_2groups(fit, s.ravel(), i.ravel(), use_correction=False)
    e = plain(a_SI, b_SI, paired=True)
    assert float(e.standard_error**2) == pytest.approx(float(np.squeeze(both)), rel=0.06)


def test_shared_item_difficulty_cancels() -> None:
    a_SI, b_SI = two_arms(4, 4, 20)
    e, shifted = (plain(a_SI + x, b_SI + x, paired=True) for x in (0.0, np.linspace(-50, 50, 20)))
    assert shifted.estimate == pytest.approx(e.estimate)
    assert shifted.standard_error == pytest.approx(e.standard_error)


def test_missing_hard_items_do_not_move_the_estimate() -> None:
    rng = seeds.stream(1, "test")
    item = rng.normal(size=50) * 10
    a_SI, b_SI = (np.tile(item, (4, 1)) + rng.normal(size=(4, 50)) * 0.01 for _ in range(2))
    a_SI[0, item > 0] = np.nan
    assert abs(float(plain(a_SI, b_SI, paired=True).estimate)) < 0.02
    assert np.nanmean(a_SI) - b_SI.mean() < -0.5


def test_items_without_a_value_in_one_arm_are_left_out() -> None:
    a_SI, b_SI = two_arms(4, 4, 30)
    a_SI[:, :5] = np.nan
    whole, part = plain(a_SI, b_SI, paired=True), plain(a_SI[:, 5:], b_SI[:, 5:], paired=True)
    assert whole.estimate == pytest.approx(part.estimate)
    assert whole.standard_error == pytest.approx(part.standard_error)
    assert whole.df_item == part.df_item == 24


def test_items_of_one_group_count_as_one() -> None:
    a_SI, b_SI = two_arms(4, 4, 30)
    group_I = np.repeat(np.arange(10), 3)
    grouped = effect(a_SI, b_SI, np.ones(30), group_I, paired=True)
    means_a, means_b = (x.reshape(4, 10, 3).mean(2) for x in (a_SI, b_SI))
    by_hand = effect(means_a, means_b, np.ones(10), np.arange(10), paired=True)
    for name in ("estimate", "v_item", "v_both", "n_groups"):
        assert getattr(grouped, name) == pytest.approx(getattr(by_hand, name)), name
    shuffled = seeds.stream(2, "test").permutation(30)
    moved = effect(a_SI[:, shuffled], b_SI[:, shuffled], np.ones(30), group_I[shuffled], paired=True)
    assert moved.v_item == pytest.approx(grouped.v_item)


def test_weights_make_a_weighted_mean() -> None:
    a_SI, b_SI = two_arms(3, 3, 12)
    weight_I = np.arange(1.0, 13.0)
    e = effect(a_SI, b_SI, weight_I, np.arange(12), paired=True)
    expected = np.average(a_SI, axis=1, weights=weight_I).mean() - np.average(b_SI, axis=1, weights=weight_I).mean()
    assert e.estimate == pytest.approx(expected)


def test_batch_of_replicates_equals_one_at_a_time() -> None:
    pairs = [two_arms(4, 4, 15, seed=k) for k in range(5)]
    batch = plain(np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]), paired=True)
    for k, (a, b) in enumerate(pairs):
        one = plain(a, b, paired=True)
        assert batch.estimate[k] == pytest.approx(one.estimate)
        assert batch.standard_error[k] == pytest.approx(one.standard_error)
        assert p_value(batch)[k] == pytest.approx(p_value(one), rel=1e-9)


def test_partly_shared_seeds_lie_between_paired_and_unpaired() -> None:
    rng = seeds.stream(4, "test")
    common = rng.normal(size=(8, 1))
    a_SI, b_SI = (common + rng.normal(size=(8, 40)) * 0.1 for _ in range(2))
    e = effect(a_SI, b_SI[:7], np.ones(40), np.arange(40), paired=False)
    seven = np.arange(7)
    matched, apart = estimate([e], False, (seven, seven)), estimate([e], False)
    assert float(matched.v_seed) < float(apart.v_seed) / 3
    assert float(matched.df_seed) == 6


def test_difference_of_differences_subtracts_seed_by_seed() -> None:
    a_SI, b_SI = two_arms(5, 5, 20)
    c_SI, d_SI = two_arms(5, 5, 30, seed=9)
    first = effect(a_SI, b_SI, np.ones(20), np.arange(20), True)
    second = effect(c_SI, d_SI, np.ones(30), np.arange(30), True)
    e = estimate([first, second], True)
    per_seed = (a_SI.mean(1) - b_SI.mean(1)) - (c_SI.mean(1) - d_SI.mean(1))
    assert e.estimate == pytest.approx(per_seed.mean())
    assert e.v_seed == pytest.approx(per_seed.var(ddof=1) / 5)
    assert float(e.df_item) == 19


@settings(deadline=None)
@given(st.floats(1e-6, 1.0), st.floats(0.0, 1.0), st.integers(1, 30), st.integers(1, 500), st.floats(0.001, 0.3))
def test_critical_value_lies_between_the_two_t_quantiles_and_p_inverts_it(
    v_seed: float, v_rest: float, df_seed: int, df_item: int, level: float
) -> None:
    e = Estimate(*map(np.asarray, (0.0, v_seed, v_rest, float(df_seed), float(df_item))))
    critical = float(critical_value(level, e))
    quantiles = [float(stats.t.isf(level / 2, df)) for df in (df_seed, df_item)]
    assert min(quantiles) * (1 - 1e-9) <= critical <= max(quantiles) * (1 + 1e-9)
    at = replace(e, estimate=np.asarray(critical * float(e.standard_error)))
    assert float(p_value(at)) == pytest.approx(level, rel=1e-6)


def test_effective_df_has_the_same_critical_value() -> None:
    e = Estimate(*map(np.asarray, (0.0, 0.7, 0.3, 4.0, 199.0)))
    assert stats.t.isf(0.025, effective_df(0.05, e)) == pytest.approx(float(critical_value(0.05, e)), rel=1e-6)
    assert effective_df(0.05, seeds_only(1.0, 7.0)) == pytest.approx(7, rel=1e-6)


def test_no_variance_gives_no_conclusion() -> None:
    e = seeds_only(0.0, 3.0)
    assert np.isinf(critical_value(0.05, e))
    assert p_value(e) == 1.0


def test_estimate_agrees_with_a_regression_with_item_effects() -> None:
    a_SI, b_SI = two_arms(3, 5, 12)
    rows = [(arm, i, y) for arm, x in ((1, a_SI), (0, b_SI)) for row in x for i, y in enumerate(row)]
    frame = pd.DataFrame(rows, columns=["arm", "item", "y"])
    fit = sm.OLS(frame.y, pd.concat([frame.arm, pd.get_dummies(frame.item, dtype=float)], axis=1)).fit()
    assert float(plain(a_SI, b_SI, paired=False).estimate) == pytest.approx(fit.params["arm"])
