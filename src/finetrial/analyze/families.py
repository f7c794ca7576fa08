"""Families of contrasts: how one error rate is shared, with intervals that agree with the decisions.

Every estimate here is oriented (larger is better) and tested against its margin m. For each correction the adjusted
interval excludes m exactly when the correction rejects `difference = m`, so verdict and interval never disagree.

- holm: the contrast decided at step k of n gets its interval at level alpha / (n - k + 1), undecided ones at the
  level of the step that failed (Holm 1979). Controls the chance of any false decision in the family.
- benjamini_hochberg: all intervals at level R · alpha / n for R rejections (Benjamini and Yekutieli 2005). Controls
  the expected share of false decisions; exploratory.
- dunnett: one critical value for all contrasts with one baseline, from the joint t distribution of their maximum
  (Dunnett 1955), equal variances assumed for its correlation only.
- max_t: the same from permutations of the seeds (Westfall and Young 1993), nothing assumed but exchangeability.
- none: every contrast at alpha.

Shapes: J contrasts, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from finetrial import seeds
from finetrial.analyze.estimate import Estimate, critical_value, p_value

_DRAWS = 200_000


@dataclass(frozen=True)
class Adjusted:
    """One contrast after its family's correction."""

    critical: float
    """Half-width of the adjusted interval in standard errors; infinite where no decision can be reached."""
    p: float
    """Adjusted two-sided p of no difference."""
    level: float
    """Error rate that this contrast alone may spend (for checks beside the interval)."""


def step_levels(p_J: np.ndarray, alpha: float, correction: str) -> np.ndarray:
    """Level of each contrast's interval under holm, benjamini_hochberg or none, from p-values at the margin.

    `p_J` may have leading axes of replicates. A contrast that could not be estimated enters with p = 1.
    """
    n = p_J.shape[-1]
    if correction == "none":
        return np.full(p_J.shape, alpha)
    order = np.argsort(p_J, axis=-1, kind="stable")
    sorted_p = np.take_along_axis(p_J, order, -1)
    step = np.arange(n)
    if correction == "benjamini_hochberg":
        passing = sorted_p <= alpha * (step + 1) / n
        rejected = np.where(passing.any(-1), n - np.argmax(passing[..., ::-1], -1), 0)
        return np.broadcast_to(alpha * np.maximum(rejected, 1)[..., None] / n, p_J.shape)
    decided = np.minimum.accumulate(sorted_p <= alpha / (n - step), axis=-1)
    last = np.minimum(decided.sum(-1, keepdims=True), n - 1)
    levels = alpha / (n - np.minimum(step, last))
    out = np.empty(p_J.shape)
    np.put_along_axis(out, order, levels, -1)
    return out


def adjusted_p(p_J: np.ndarray, correction: str) -> np.ndarray:
    """Adjusted p-values under holm, benjamini_hochberg or none."""
    n = len(p_J)
    order = np.argsort(p_J, kind="stable")
    sorted_p = p_J[order]
    if correction == "holm":
        sorted_p = np.maximum.accumulate(sorted_p * (n - np.arange(n)))
    elif correction == "benjamini_hochberg":
        sorted_p = np.minimum.accumulate((sorted_p * n / (np.arange(n) + 1))[::-1])[::-1]
    out = np.empty(n)
    out[order] = np.minimum(sorted_p, 1.0)
    return out


def by_steps(
    estimates: Sequence[Estimate | None], margins: Sequence[float], alpha: float, correction: str
) -> list[Adjusted]:
    """Holm, Benjamini-Hochberg or no correction over a family; None stands for a contrast without an estimate."""
    at_margin = np.array([1.0 if e is None else float(p_value(e, m)) for e, m in zip(estimates, margins, strict=True)])
    at_zero = np.array([1.0 if e is None else float(p_value(e)) for e in estimates])
    levels, p = step_levels(at_margin, alpha, correction), adjusted_p(at_zero, correction)
    return [
        Adjusted(np.inf if e is None else float(critical_value(level, e)), float(p_j), float(level))
        for e, level, p_j in zip(estimates, levels, p, strict=True)
    ]


def dunnett(estimates: Sequence[Estimate | None], n_seeds: Sequence[tuple[int, int]], alpha: float) -> list[Adjusted]:
    """One joint critical value for contrasts that share a baseline.

    The correlation of two contrasts through the shared baseline is √(λ_j λ_k), λ = 1 / (1 + n_baseline / n_j), as of
    equal variances; 0 for the frozen base, which adds no seed noise.
    """
    n = len(estimates)
    loading = tuple(0.0 if b == 0 else (1 / (1 + b / a)) ** 0.5 for a, b in n_seeds)
    present = [e for e in estimates if e is not None]
    if not present:
        return [Adjusted(np.inf, 1.0, alpha / n)] * n
    seed_R = _max_t(loading, float(min(e.df_seed for e in present)))
    item_R = _max_t(loading, float(min(e.df_item for e in present)))
    out = []
    for e in estimates:
        if e is None or not e.standard_error > 0:
            out.append(Adjusted(np.inf, 1.0, alpha / n))
            continue
        share = float(e.v_seed / (e.v_seed + e.v_rest))
        joint_R = share * seed_R + (1 - share) * item_R
        t = abs(float(e.estimate / e.standard_error))
        p = (int((joint_R >= t).sum()) + 1) / (_DRAWS + 1)
        out.append(Adjusted(_upper(joint_R, alpha, exact=False), min(1.0, p), alpha / n))
    return out


def max_t(estimates: Sequence[Estimate | None], reference_R: np.ndarray, exact: bool, alpha: float) -> list[Adjusted]:
    """One critical value from permutations: `reference_R` holds max |t| of each arrangement of the seeds."""
    n, extra = len(estimates), 0 if exact else 1
    critical = _upper(reference_R, alpha, exact)
    out = []
    for e in estimates:
        if e is None or not e.standard_error > 0:
            out.append(Adjusted(np.inf, 1.0, alpha / n))
            continue
        # The two-way error can be below that of seed means alone: the arrangement as observed always counts.
        t = min(abs(float(e.estimate / e.standard_error)), float(reference_R.max()))
        p = (int((reference_R >= t * (1 - 1e-12)).sum()) + extra) / (len(reference_R) + extra)
        out.append(Adjusted(critical, min(1.0, p), alpha / n))
    return out


def _upper(sample_R: np.ndarray, alpha: float, exact: bool) -> float:
    """The value that a statistic must exceed for its Monte-Carlo p to be at most alpha; infinite if none can."""
    extra = 0 if exact else 1
    allowed = int(np.floor(alpha * (len(sample_R) + extra) * (1 + 1e-12))) - extra
    if allowed < 1 - extra:
        return np.inf
    return float(np.partition(sample_R, -1 - allowed)[-1 - allowed])


@lru_cache(maxsize=64)
def _max_t(loading: tuple[float, ...], df: float) -> np.ndarray:
    """Sorted draws of max_j |t_j|, t_j = (√(1 - l_j²) z_j - l_j z_0) / √(χ²_df / df)."""
    rng = seeds.stream(0, "dunnett", *map(repr, loading), repr(df))
    common_R = rng.standard_normal(_DRAWS)
    worst_R = np.zeros(_DRAWS)
    for weight in loading:
        own_R = rng.standard_normal(_DRAWS)
        np.maximum(worst_R, np.abs((1 - weight**2) ** 0.5 * own_R - weight * common_R), out=worst_R)
    return np.sort(worst_R / np.sqrt(rng.chisquare(df, _DRAWS) / df))
