"""Means and changes with two-way intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from finetrial.analyze.changes import average_change, between, change, mean_of, pair
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.judge import judge
from finetrial.analyze.table import Dense, OutcomeTable
from finetrial.errors import UserError
from finetrial.records import Outcome


def dense(values_SI: np.ndarray, seeds: tuple[int | None, ...], suite_hash: str = "h") -> Dense:
    """One arm with a sample per cell and items of their own groups."""
    items = np.array([f"i{k:03d}" for k in range(values_SI.shape[1])])
    there = ~np.isnan(values_SI)
    return Dense(
        values_SI=values_SI,
        count_SI=there.astype(float),
        failed_SI=np.zeros(values_SI.shape),
        squares_SI=values_SI**2,
        seeds=seeds,
        items=items,
        weight_I=np.ones(len(items)),
        groups=items,
        suite_hashes=frozenset({suite_hash}),
    )


def arms(gain: float = 0.2, n_seeds: int = 4, items: int = 12, seed: int = 0) -> tuple[Dense, Dense]:
    """A recipe and the frozen base that it improves on by `gain`."""
    rng = np.random.default_rng(seed)
    base_I = rng.standard_normal(items)
    noise_SI = 0.05 * rng.standard_normal((n_seeds, 1)) + 0.1 * rng.standard_normal((n_seeds, items))
    return dense(base_I + gain + noise_SI, tuple(range(n_seeds))), dense(base_I[None], (None,))


def test_change_agrees_with_the_judge() -> None:
    a, b = arms()
    rows = [
        Outcome(name, seed, "s", str(item), 0, "nll", float(value), suite_hash="h")
        for name, arm in (("a", a), ("base", b))
        for seed, values_I in zip(arm.seeds, arm.values_SI, strict=True)
        for item, value in zip(arm.items, values_I, strict=True)
    ]
    contrast = Contrast(candidate="a", baseline="base", suite="s")
    (finding,) = judge(OutcomeTable.read(rows), [contrast], AnalysisConfig(), primary_metric="nll")
    matched = pair(a, b, "lower")
    assert matched is not None
    found = change(matched)
    assert found.estimate == pytest.approx(-(finding.estimate or 0))
    assert found.ci == pytest.approx([-end for end in reversed(finding.ci or ())])
    assert found.p_value == pytest.approx(finding.p_value)
    assert (found.n_seeds, found.n_items) == ((4, 0), 12)


def test_mean_of_a_frozen_model_is_a_t_interval_over_items() -> None:
    values_I = np.random.default_rng(1).standard_normal(20)
    found = mean_of(dense(values_I[None], (None,)))
    assert found is not None
    low, high = stats.t.interval(0.95, 19, values_I.mean(), stats.sem(values_I))
    assert found.ci == pytest.approx((low, high))
    assert (found.n_seeds, found.n_items, found.n_missing) == (0, 20, 0)


def test_mean_of_runs_that_scatter_is_wider_than_that_of_items_alone() -> None:
    rng = np.random.default_rng(2)
    items_I = 0.01 * rng.standard_normal(50)
    runs_SI = np.array([[0.0], [1.0], [2.0]]) + items_I
    found = mean_of(dense(runs_SI, (1, 2, 3)))
    assert found is not None
    assert found.ci is not None
    assert found.value == pytest.approx(runs_SI.mean())
    low, high = stats.t.interval(0.95, 2, 1.0, stats.sem([0.0, 1.0, 2.0]))
    assert found.ci[1] - found.ci[0] == pytest.approx(high - low, rel=0.02)


def test_no_interval_without_two_runs_or_without_spread() -> None:
    one = pair(dense(np.array([[1.0, 2.0, 4.0]]), (1,)), dense(np.zeros((1, 3)), (None,)), "higher")
    same = pair(dense(np.ones((3, 3)), (1, 2, 3)), dense(np.zeros((1, 3)), (None,)), "higher")
    assert one is not None
    assert same is not None
    assert change(one).ci is None
    assert (change(same).estimate, change(same).ci, change(same).p_value) == (1.0, None, None)
    alone = mean_of(dense(np.array([[1.0, 2.0, 4.0]]), (1,)))
    assert alone is not None
    assert alone.ci is None


def test_missing_values_are_left_out_and_counted() -> None:
    values_SI = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    arm = dense(values_SI, (1, 2, 3))
    found = mean_of(arm)
    assert found is not None
    assert (found.value, found.n_seeds, found.n_items, found.n_missing) == (2.25, 2, 2, 6)
    matched = pair(arm, dense(np.zeros((1, 3)), (None,)), "higher")
    assert matched is not None
    assert list(matched.items) == ["i000", "i002"]
    assert matched.n_left_out == 1
    assert mean_of(dense(np.full((1, 2), np.nan), (1,))) is None
    assert pair(dense(np.full((1, 3), np.nan), (1,)), arm, "higher") is None


def test_another_version_of_the_suite_is_refused() -> None:
    with pytest.raises(UserError, match="different versions"):
        pair(dense(np.ones((1, 2)), (1,)), dense(np.ones((1, 2)), (None,), "other"), "higher")


def test_average_of_suites_with_one_of_them_twice_is_that_suite() -> None:
    matched = pair(*arms(), "higher")
    assert matched is not None
    alone, both = change(matched), average_change([matched, matched])
    assert both.estimate == pytest.approx(alone.estimate)
    assert both.n_items == 2 * alone.n_items
    assert both.ci is not None
    assert alone.ci is not None
    assert both.ci[1] - both.ci[0] <= alone.ci[1] - alone.ci[0] + 1e-12


def test_difference_between_suites_is_antisymmetric() -> None:
    first, second = pair(*arms(0.3, seed=1), "higher"), pair(*arms(0.1, seed=2), "higher")
    assert first is not None
    assert second is not None
    forward, backward = between(first, second), between(second, first)
    assert forward.estimate == pytest.approx(change(first).estimate - change(second).estimate)
    assert forward.estimate == pytest.approx(-backward.estimate)
    assert forward.ci == pytest.approx([-end for end in reversed(backward.ci or ())])


@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 1000))
def test_runs_average_to_the_change_and_items_too(n_seeds: int, items: int, seed: int) -> None:
    matched = pair(*arms(n_seeds=n_seeds, items=items, seed=seed), "lower")
    assert matched is not None
    found = change(matched)
    assert matched.change_S.mean() == pytest.approx(found.estimate)
    assert matched.change_I.mean() == pytest.approx(found.estimate)
