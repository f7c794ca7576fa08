"""The estimate of a contrast: difference of means with two-way cluster-robust variance over seeds and items.

Model of one cell: y = mean + recipe + seed (nested in recipe) + item + recipe × item + seed × item + sampling.
With d_i the difference of the two recipes' means on item i, and weights w_i that sum to 1:

    estimate = Σ_i w_i d_i
    V_seed   = variance of the estimate over seeds, whole rows moving together
    V_item   = variance of the estimate over items (or groups of items), whole columns moving together
    V_both   = variance of the cells once seed and item are removed (counted in both of the others)
    V        = max(V_seed + V_item - V_both, V_seed, V_item)

(Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering", with each term in its unbiased
analysis-of-variance form.) A shared item effect cancels in d_i; the frozen base has no seed term.

Critical values. V_seed has few degrees of freedom and V - V_seed many. One t distribution with Satterthwaite's
degrees of freedom rejects too often in such a mixture (7.5 % at 5 % with three seeds, docs/statistics.md), so the
critical value is the mean of the two t quantiles weighted by the two variances (Cochran and Cox 1950), which never
rejects too often under normal errors.

Shapes: ... any leading batch of replicates, S seeds, I items, G groups of items.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

_BISECTIONS = 60


@dataclass(frozen=True)
class Arm:
    """One recipe on one suite, reduced to what the contrast needs. Leading axes are replicates."""

    item_mean_I: np.ndarray
    present_I: np.ndarray
    """Whether the item has any value in this arm."""
    residual_SI: np.ndarray
    """Cell minus item mean; 0 where the cell is missing."""
    share_SI: np.ndarray
    """Weight of the cell within its item's mean: 1 / (cells present), 0 where missing."""


@dataclass(frozen=True)
class Effect:
    """Difference of two arms on one suite before any interval; contributions add up over suites."""

    estimate: np.ndarray
    candidate_S: np.ndarray
    """Contribution of each seed of the candidate to the estimate's error; sums to 0 over seeds."""
    baseline_S: np.ndarray
    candidate_means_S: np.ndarray
    """Mean of each seed, adjusted for the items that it misses."""
    baseline_means_S: np.ndarray
    v_item: np.ndarray
    v_both: np.ndarray
    n_groups: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A difference with everything that an interval needs. Arrays share one leading shape."""

    estimate: np.ndarray
    v_seed: np.ndarray
    v_rest: np.ndarray
    """V - V_seed: what more seeds of the same items would not remove at once."""
    df_seed: np.ndarray
    df_item: np.ndarray

    @property
    def standard_error(self) -> np.ndarray:
        """Square root of the two-way variance."""
        return np.sqrt(self.v_seed + self.v_rest)


def arm(values_SI: np.ndarray) -> Arm:
    """Item means and residuals of one arm; NaN cells are missing."""
    there_SI = ~np.isnan(values_SI)
    count_I = there_SI.sum(-2)
    share_SI = there_SI / np.maximum(count_I, 1)[..., None, :]
    values_SI = np.where(there_SI, values_SI, 0.0)
    item_mean_I = (values_SI * share_SI).sum(-2)
    residual_SI = np.where(there_SI, values_SI - item_mean_I[..., None, :], 0.0)
    return Arm(item_mean_I, count_I > 0, residual_SI, share_SI)


def effect(
    candidate_SI: np.ndarray, baseline_SI: np.ndarray, weight_I: np.ndarray, group_I: np.ndarray, paired: bool
) -> Effect:
    """Difference of two arms with the variances that items bring.

    Args:
        candidate_SI: cell means (..., S, I) of the candidate, NaN where missing.
        baseline_SI: the same of the baseline, on the same items; one row for the frozen base.
        weight_I: weight of each item; items without a value in both arms get none.
        group_I: code 0..G-1 of each item's cluster.
        paired: row s of both arms is the same seed, so their errors move together.
    """
    a, b = arm(candidate_SI), arm(baseline_SI)
    weight_I = np.where(a.present_I & b.present_I, weight_I, 0.0)
    weight_I = weight_I / np.maximum(weight_I.sum(-1, keepdims=True), np.finfo(float).tiny)
    difference_I = a.item_mean_I - b.item_mean_I
    estimate = (weight_I * difference_I).sum(-1)
    n_groups = (_by_group(weight_I, group_I) > 0).sum(-1)
    item_G = _by_group(weight_I * (difference_I - estimate[..., None]), group_I)
    v_item = _unbias(n_groups) * (item_G**2).sum(-1)
    ua_S, ma_S, ca_SG = _seed_parts(a, weight_I, group_I)
    ub_S, mb_S, cb_SG = _seed_parts(b, weight_I, group_I)
    if paired:
        both = _unbias(ua_S.shape[-1]) * ((ca_SG - cb_SG) ** 2).sum((-2, -1))
    else:
        both = sum(_unbias(c_SG.shape[-2]) * (c_SG**2).sum((-2, -1)) for c_SG in (ca_SG, cb_SG))
    mean_a, mean_b = ((weight_I * x.item_mean_I).sum(-1)[..., None] for x in (a, b))
    return Effect(estimate, ua_S, ub_S, mean_a + ma_S, mean_b + mb_S, v_item, _unbias(n_groups) * both, n_groups)


def estimate(effects: list[Effect], paired: bool, matched: tuple[np.ndarray, np.ndarray] | None = None) -> Estimate:
    """Combine the effects of one suite, or of two whose difference is taken, into one estimate.

    Args:
        effects: one effect, or (effect on `suite`, effect on `minus_suite`) with the same seeds.
        paired: both arms have the same seeds; V_seed is that of the differences, whether or not the two recipes'
            errors under one seed are correlated.
        matched: for arms that share only some seeds, positions of the shared seeds in candidate and baseline: they
            move together (clusters by seed number), and degrees of freedom fall to those of the smaller arm.
    """
    sign = (1.0, -1.0)
    ua_S = sum(s * e.candidate_S for s, e in zip(sign, effects, strict=False))
    ub_S = sum(s * e.baseline_S for s, e in zip(sign, effects, strict=False))
    value = sum(s * e.estimate for s, e in zip(sign, effects, strict=False))
    assert isinstance(ua_S, np.ndarray)
    assert isinstance(ub_S, np.ndarray)
    n_a, n_b = ua_S.shape[-1], ub_S.shape[-1]
    if paired:
        v_seed = _unbias(n_a) * ((ua_S - ub_S) ** 2).sum(-1)
        df_seed = np.broadcast_to(n_a - 1.0, v_seed.shape)
    else:
        va = _unbias(n_a) * (ua_S**2).sum(-1)
        vb = _unbias(n_b) * (ub_S**2).sum(-1)
        v_seed, df_seed = va + vb, welch_df(va, vb, n_a, n_b)
        if matched is not None:
            # A sum of squares over seed numbers, Σ (√f_a u_a - √f_b u_b)², so never negative.
            together = (ua_S[..., matched[0]] * ub_S[..., matched[1]]).sum(-1)
            v_seed = v_seed - 2 * np.sqrt(_unbias(n_a) * _unbias(n_b)) * together
            df_seed = np.broadcast_to(min(n_a, n_b) - 1.0, v_seed.shape)
    v_item, v_both = sum(e.v_item for e in effects), sum(e.v_both for e in effects)
    df_item = np.minimum.reduce([np.maximum(e.n_groups - 1.0, 1.0) for e in effects])
    v = np.maximum(np.maximum(v_seed + v_item - v_both, v_seed), v_item)
    return Estimate(np.asarray(value), v_seed, v - v_seed, np.asarray(df_seed), df_item)


def welch_df(va: np.ndarray, vb: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Degrees of freedom of a difference of two independent means with variances va and vb of the means.

    The smaller of Welch's (from the estimated variances) and Bell and McCaffrey's (2002, from the design under equal
    variances): Welch alone rejects 7 % at 5 % with 3 against 16 runs. An arm of one frozen row has variance 0 and no
    part in it.
    """
    if min(n_a, n_b) == 1:
        return np.broadcast_to(max(n_a, n_b) - 1.0, np.shape(va))
    tiny = np.finfo(float).tiny
    welch = (va + vb) ** 2 / np.maximum(va**2 / (n_a - 1) + vb**2 / (n_b - 1), tiny)
    design = (1 / n_a + 1 / n_b) ** 2 / (1 / (n_a**2 * (n_a - 1)) + 1 / (n_b**2 * (n_b - 1)))
    return np.clip(welch, min(n_a, n_b) - 1.0, design)


def critical_value(level: np.ndarray | float, e: Estimate) -> np.ndarray:
    """Two-sided critical value at error rate `level`: variance-weighted mean of the seeds' and the items' t quantile.

    Infinite where the variance is 0: nothing can be concluded from values that never vary.
    """
    share = _seed_share(e)
    q_seed = -special.stdtrit(e.df_seed, np.asarray(level) / 2)
    q_item = -special.stdtrit(e.df_item, np.asarray(level) / 2)
    return np.where(e.standard_error > 0, share * q_seed + (1 - share) * q_item, np.inf)


def p_value(e: Estimate, null: np.ndarray | float = 0.0) -> np.ndarray:
    """Two-sided p of estimate = null: the level at which the critical value equals |t|. 1 where the variance is 0."""
    se = e.standard_error
    t = np.abs(np.divide(e.estimate - null, se, out=np.zeros_like(e.estimate, dtype=float), where=se > 0))
    low, high = np.full(t.shape, -700.0), np.zeros(t.shape)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        reject = critical_value(np.exp(middle), e) < t
        low, high = np.where(reject, low, middle), np.where(reject, middle, high)
    return np.where(se > 0, np.exp(high), 1.0)


def effective_df(level: float, e: Estimate) -> float:
    """Degrees of freedom of the one t distribution that has the critical value of `e` at `level`."""
    target = float(critical_value(level, e))
    low, high = 0.5, 1e6
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if -special.stdtrit(middle, level / 2) > target else (low, middle)
    return float(np.sqrt(low * high))


def _seed_share(e: Estimate) -> np.ndarray:
    v = e.v_seed + e.v_rest
    return np.divide(e.v_seed, v, out=np.ones_like(v), where=v > 0)


def _seed_parts(a: Arm, weight_I: np.ndarray, group_I: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(contribution of each seed, deviation of each seed's mean, contribution of each seed × group) of one arm."""
    weight_SI = weight_I[..., None, :] * a.share_SI
    part_S = (weight_SI * a.residual_SI).sum(-1)
    mass_S = weight_SI.sum(-1)
    mean_S = np.divide(part_S, mass_S, out=np.zeros_like(part_S), where=mass_S > 0)
    return part_S, mean_S, _by_group(weight_SI * (a.residual_SI - mean_S[..., None]), group_I)


def _by_group(values_I: np.ndarray, group_I: np.ndarray) -> np.ndarray:
    """Sum over the items of each group; groups coded 0..G-1."""
    n = values_I.shape[-1]
    if np.array_equal(group_I, np.arange(n)):
        return values_I
    order = np.argsort(group_I, kind="stable")
    starts = np.flatnonzero(np.diff(group_I[order], prepend=-1))
    return np.add.reduceat(values_I[..., order], starts, axis=-1)


def _unbias(n: np.ndarray | int) -> np.ndarray:
    """n / (n - 1), and 0 for n = 1, where there is no variance to estimate."""
    n = np.asarray(n, dtype=float)
    return np.divide(n, n - 1, out=np.zeros_like(n), where=n > 1)
