"""Exact tests on seed means against scipy, and the least p that a design can reach."""

import numpy as np
import pytest
from scipy import stats

from finetrial import seeds
from finetrial.analyze.permute import attainable_p, hedges_g, permute_labels, sign_flip


def mean_difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    return a.mean(axis) - b.mean(axis)


@pytest.mark.parametrize(("n_a", "n_b"), [(3, 3), (5, 5), (4, 7), (8, 8)])
def test_permutation_is_scipys(n_a: int, n_b: int) -> None:
    rng = seeds.stream(n_a, "test", n_b)
    a, b = rng.normal(1.0, 1.0, n_a), rng.normal(0.0, 1.0, n_b)
    exact = stats.permutation_test(
        (a, b), mean_difference, n_resamples=10**6, permutation_type="independent", vectorized=True
    )
    assert permute_labels(a, b) == pytest.approx(exact.pvalue)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_sign_flip_is_scipys(n: int) -> None:
    d = seeds.stream(n, "test").normal(0.7, 1.0, n)
    exact = stats.permutation_test(
        (d,), lambda x, axis: x.mean(axis), n_resamples=10**6, permutation_type="samples", vectorized=True
    )
    assert sign_flip(d) == pytest.approx(exact.pvalue)


def test_sampled_p_is_never_zero() -> None:
    a, b = np.arange(20.0), np.arange(20.0) + 1000
    assert permute_labels(a, b) == pytest.approx(2 / 20_001)
    assert sign_flip(np.full(40, 3.0) + np.arange(40) / 100) == pytest.approx(2 / 20_001)


@pytest.mark.parametrize(
    ("n", "paired", "least"),
    [(3, False, 0.10), (4, False, 0.029), (5, False, 0.0079), (6, False, 0.0022), (8, False, 0.00016),
     (3, True, 0.25), (5, True, 0.0625), (8, True, 0.0078)],
)  # fmt: skip
def test_attainable_p(n: int, paired: bool, least: float) -> None:
    assert attainable_p(n, n, paired) == pytest.approx(least, rel=0.04)
    extreme_a, extreme_b = np.arange(n) + 100.0, np.arange(n) * 1.01
    reached = sign_flip(extreme_a - extreme_b) if paired else permute_labels(extreme_a, extreme_b)
    assert reached == pytest.approx(attainable_p(n, n, paired))


def test_ties_do_not_depend_on_rounding() -> None:
    assert permute_labels(np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1])) == 1.0
    assert sign_flip(np.array([0.1, 0.2, -0.3])) == 1.0


def test_hedges_g_by_hand() -> None:
    a, b = np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])
    pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert hedges_g(a, b) == pytest.approx((4 - 2) / pooled * (1 - 3 / (4 * 4 - 1)))
    assert hedges_g(a, None) == pytest.approx(4 / 2 * (1 - 3 / (4 * 2 - 1)))
    assert hedges_g(np.ones(3), np.ones(3)) is None
