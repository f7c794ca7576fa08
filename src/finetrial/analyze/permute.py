"""Exact permutation of seed labels and sign flips on seed means: the check that assumes no normal errors.

Shapes: R resamples, S seeds, J contrasts.
"""

import math
from itertools import combinations

import numpy as np

from finetrial import seeds

EXACT_UP_TO = 200_000
"""Arrangements that are enumerated; more are sampled."""
SAMPLED = 20_000
_TIE = 1e-12
"""Relative slack within which two statistics count as equal (sums in another order)."""


def sign_flip(difference_S: np.ndarray) -> float:
    """Two-sided p of mean 0 over all 2^S sign patterns of paired differences (sampled: (b+1)/(B+1)).

    Assumes that under no difference each difference is symmetric about 0.
    """
    signs_RS, exact = sign_patterns(len(difference_S))
    return _two_sided(signs_RS @ difference_S, float(difference_S.sum()), exact)


def permute_labels(a_S: np.ndarray, b_S: np.ndarray) -> float:
    """Two-sided p of equal means over all assignments of seed labels to two arms (sampled: (b+1)/(B+1)).

    The statistic is the difference of means; two-sided is twice the smaller tail, as in scipy.stats.permutation_test.
    """
    pooled = np.concatenate([a_S, b_S])
    n, n_a = len(pooled), len(a_S)
    exact = math.comb(n, n_a) <= EXACT_UP_TO
    if exact:
        chosen = np.array(list(combinations(range(n), n_a)))
    else:
        rng = seeds.stream(0, "permute_labels", n, n_a)
        chosen = np.argsort(rng.random((SAMPLED, n)), axis=1)[:, :n_a]
    sums_R = pooled[chosen].sum(1)
    weight = 1 / n_a + 1 / len(b_S)
    return _two_sided(sums_R * weight - pooled.sum() / len(b_S), float(a_S.mean() - b_S.mean()), exact)


def attainable_p(n_a: int, n_b: int, paired: bool) -> float:
    """Smallest two-sided p that permuting these seeds can reach: 2/2^S paired, 2/C(n_a+n_b, n_a) unpaired.

    n_b is 0 for a frozen baseline, whose test flips signs.
    """
    if paired or n_b == 0:
        return min(1.0, 2.0 / 2.0 ** max(n_a, n_b))
    return min(1.0, 2.0 / math.comb(n_a + n_b, n_a))


def sign_patterns(n: int) -> tuple[np.ndarray, bool]:
    """((R, n) of ±1, whether they are all there are); sampled beyond 2^17 patterns."""
    if 2**n <= EXACT_UP_TO:
        return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1), True
    return seeds.stream(0, "sign_flip", n).choice([-1.0, 1.0], (SAMPLED, n)), False


def max_t_paired(difference_JS: np.ndarray) -> tuple[np.ndarray, bool]:
    """(max over contrasts of |t| under each joint sign flip of the seeds, whether all patterns are there).

    One sign per seed for all contrasts keeps their correlation (Westfall and Young 1993).
    """
    signs_RS, exact = sign_patterns(difference_JS.shape[1])
    n = difference_JS.shape[1]
    mean_RJ = signs_RS @ difference_JS.T / n
    square_J = (difference_JS**2).sum(1)
    variance_RJ = np.maximum(square_J - n * mean_RJ**2, 0.0) / (n * (n - 1))
    return _abs_t(mean_RJ, variance_RJ).max(1), exact


def max_t_unpaired(arms: list[np.ndarray], baseline: np.ndarray) -> tuple[np.ndarray, bool]:
    """(max over arms of Welch's |t| against the baseline under permutations of all run labels, False: sampled)."""
    pooled = np.concatenate([*arms, baseline])
    rng = seeds.stream(0, "max_t", len(pooled), len(arms))
    shuffled_RS = pooled[np.argsort(rng.random((SAMPLED, len(pooled))), axis=1)]
    cuts = np.cumsum([len(values) for values in arms])
    parts = np.split(shuffled_RS, cuts, axis=1)
    base = parts.pop()
    worst_R = np.zeros(SAMPLED)
    for part in parts:
        variance_R = part.var(1, ddof=1) / part.shape[1] + base.var(1, ddof=1) / base.shape[1]
        worst_R = np.maximum(worst_R, _abs_t(part.mean(1) - base.mean(1), variance_R))
    return worst_R, False


def hedges_g(a_S: np.ndarray, b_S: np.ndarray | None) -> float | None:
    """Standardised difference over seed means, J · difference / pooled SD with J = 1 - 3 / (4 ν - 1) (Hedges 1981).

    With b_S None the baseline is frozen and a_S already the differences from it. None where the SD is 0.
    """
    if b_S is None:
        df, sd, difference = len(a_S) - 1, float(a_S.std(ddof=1)), float(a_S.mean())
    else:
        df = len(a_S) + len(b_S) - 2
        squares = ((a_S - a_S.mean()) ** 2).sum() + ((b_S - b_S.mean()) ** 2).sum()
        sd, difference = math.sqrt(squares / df), float(a_S.mean() - b_S.mean())
    return difference / sd * (1 - 3 / (4 * df - 1)) if sd > 0 else None


def _two_sided(statistic_R: np.ndarray, observed: float, exact: bool) -> float:
    slack = _TIE * max(1.0, float(np.abs(statistic_R).max()))
    above = int((statistic_R >= observed - slack).sum())
    below = int((statistic_R <= observed + slack).sum())
    extra = 0 if exact else 1
    return min(1.0, 2 * (min(above, below) + extra) / (len(statistic_R) + extra))


def _abs_t(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """|mean| / √variance; infinite for a mean that does not vary, 0 where both are 0."""
    flat = np.where(np.abs(mean) > 0, np.inf, 0.0)
    return np.divide(np.abs(mean), np.sqrt(variance), out=flat, where=variance > 0)
