"""From an adjusted interval to a verdict, and what would decide an undecided one.

With margin m and the adjusted interval [L, U] of the oriented difference (larger is better):
CONFIRMED if L > m; FAILED if U < m (HARMFUL if U < 0, EQUIVALENT if the interval lies within ±m); else INCONCLUSIVE.
"""

from functools import lru_cache

import numpy as np
from scipy import special

from finetrial import seeds
from finetrial.analyze.contrast import Verdict
from finetrial.analyze.estimate import Estimate, critical_value

MIN_SEEDS = 3
"""Fewer runs of a recipe than this carry no verdict: one degree of freedom measures no spread."""
MOST_SEEDS = 1000
_DRAWS, _BLOCK = 200_000, 20_000


def decide(low: float, high: float, margin: float) -> tuple[Verdict, str | None]:
    """(verdict, subtype) of the oriented interval [low, high]."""
    if low > margin:
        return "CONFIRMED", None
    if high < margin:
        return "FAILED", "HARMFUL" if high < 0 else "EQUIVALENT" if low > -margin else None
    return "INCONCLUSIVE", None


@lru_cache(maxsize=256)
def _skewed_t(n_a: int, n_b: int) -> np.ndarray:
    """Sorted draws of the t statistic of n_a exponential errors against n_b (0: against a constant), both signs."""
    rng = seeds.stream(0, "skewed_t", n_a, n_b)
    blocks = []
    for _ in range(_DRAWS // _BLOCK):
        a = rng.exponential(size=(_BLOCK, n_a)) - 1
        mean, variance = a.mean(1), a.var(1, ddof=1) / n_a
        if n_b:
            b = rng.exponential(size=(_BLOCK, n_b)) - 1
            mean, variance = mean - b.mean(1), variance + b.var(1, ddof=1) / n_b
        blocks.append(mean / np.sqrt(variance))
    return np.sort(np.concatenate(blocks))


def skew_critical(level: np.ndarray | float, e: Estimate, n_a: int, n_b: int) -> np.ndarray:
    """Critical value that still holds when seed effects are as skewed as an exponential distribution (skewness 2).

    Where equal numbers of runs are compared, the skew of two recipes cancels. Against the frozen base, or between
    unequal numbers, it does not: a recipe that collapses on few seeds looks better than it is until one collapses.
    """
    t_R = _skewed_t(n_a, n_b)
    half = np.asarray(level) / 2
    tail = np.maximum(-np.quantile(t_R, half), np.quantile(t_R, 1 - half))
    v = e.v_seed + e.v_rest
    share = np.divide(e.v_seed, v, out=np.ones_like(v), where=v > 0)
    student = -special.stdtrit(e.df_seed, half)
    return critical_value(level, e) + share * np.maximum(tail - student, 0.0)


def seeds_needed(e: Estimate, margin: float, n_now: int, level: float, paired: bool) -> int | None:
    """Runs per condition at which the interval of this estimate and these variances would exclude the margin.

    V_seed shrinks with the number of runs, the rest is the items' and stays; None where no number up to 1000 does it.
    """
    distance = abs(float(e.estimate) - margin)
    for n in range(max(n_now, MIN_SEEDS), MOST_SEEDS + 1):
        df = n - 1.0 if paired else 2.0 * (n - 1)
        planned = Estimate(e.estimate, e.v_seed * n_now / n, e.v_rest, np.asarray(df), e.df_item)
        if float(critical_value(level, planned) * planned.standard_error) < distance:
            return n
    return None
