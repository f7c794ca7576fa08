"""Hierarchical bootstrap: whole seeds × whole items, the same items in both arms.

For what is not a difference of means: perplexity, ratios, diversity of a corpus. A resample draws runs and items with
replacement; every cell of a drawn run and item comes along, with all its samples. Of S runs S - 1 are drawn, so that
the spread of a mean over runs is estimated without bias (Rao and Wu 1988; S draws would make it (S-1)/S too small).
Drawing both runs and items counts the noise of single cells twice: intervals are conservative (docs/statistics.md).

A resample never builds a resampled table: with counts w of runs and v of items a sum over cells is wᵀ X v, so a block
of resamples is two matrix products.

Shapes: S seeds, I items, G groups of items, M features of a cell, B resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from finetrial.errors import UserError

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(means of candidate (B, M), means of baseline (B, M)) -> (B,): a smooth function of means over cells."""

_BLOCK = 1000


@dataclass(frozen=True)
class Bootstrap:
    """A statistic with its bootstrap interval."""

    estimate: float
    ci: tuple[float, float]
    method: str
    resamples: int
    unit: str = "whole training runs and whole items"


def difference(a_BM: np.ndarray, b_BM: np.ndarray) -> np.ndarray:
    """Difference of the means of the first feature."""
    return a_BM[:, 0] - b_BM[:, 0]


def perplexity_difference(a_BM: np.ndarray, b_BM: np.ndarray) -> np.ndarray:
    """exp(Σ nll / Σ tokens) of the candidate minus that of the baseline; features (summed nll, tokens) of a cell."""
    return np.exp(a_BM[:, 0] / a_BM[:, 1]) - np.exp(b_BM[:, 0] / b_BM[:, 1])


def perplexity_ratio(a_BM: np.ndarray, b_BM: np.ndarray) -> np.ndarray:
    """Perplexity of the candidate over that of the baseline; features (summed nll, tokens) of a cell."""
    return np.exp(a_BM[:, 0] / a_BM[:, 1] - b_BM[:, 0] / b_BM[:, 1])


def bootstrap(
    candidate_SIM: np.ndarray,
    baseline_SIM: np.ndarray,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    paired: bool,
    group_I: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 20_000,
    method: str = "bca",
) -> Bootstrap:
    """Interval of `statistic` of two arms' mean features.

    Args:
        candidate_SIM: features of every cell, (S, I) or (S, I, M); NaN where the cell is missing.
        baseline_SIM: the same of the baseline on the same items; one row for a frozen model.
        statistic: a function of the two arms' means, vectorised over resamples.
        rng: the stream to draw from.
        paired: row s of both arms is the same seed and is drawn for both.
        group_I: code 0..G-1 of each item's cluster, drawn as a whole.
        level: of the two-sided interval.
        resamples: B.
        method: `percentile`, or `bca` (bias-corrected and accelerated, Efron 1987), the acceleration from leaving out
            each run and each item or cluster in turn.

    Raises:
        UserError: unknown method, arms on different items, paired arms of different length, one item and one run, or
            resamples without any cell.
    """
    a, b = _features(candidate_SIM), _features(baseline_SIM)
    if method not in ("percentile", "bca"):
        raise UserError(f"bootstrap method '{method}': expected 'percentile' or 'bca'")
    if a.shape[1] != b.shape[1] or (paired and len(a) != len(b)):
        raise UserError(f"bootstrap: arms of shape {a.shape[:2]} and {b.shape[:2]} do not match")
    items = np.unique(np.arange(a.shape[1]) if group_I is None else group_I, return_inverse=True)[1]
    n_groups = int(items.max()) + 1
    if n_groups < 2 and max(len(a), len(b)) < 2:
        raise UserError("bootstrap: one item and one run have no spread to resample")
    whole = [np.ones((1, n)) for n in (len(a), len(b), n_groups)]
    estimate = float(_evaluate(a, b, whole[0], whole[1], whole[2][:, items], statistic)[0])
    values_B = np.empty(resamples)
    for start in range(0, resamples, _BLOCK):
        n = min(_BLOCK, resamples - start)
        wa = _draw(rng, n, len(a), len(a) - 1)
        wb = wa if paired else _draw(rng, n, len(b), len(b) - 1)
        v = _draw(rng, n, n_groups, n_groups)
        values_B[start : start + n] = _evaluate(a, b, wa, wb, v[:, items], statistic)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        tails = _bca_tails(tails, values_B, estimate, _acceleration(a, b, items, statistic, paired))
    low, high = (float(np.quantile(values_B, tail)) for tail in tails)
    return Bootstrap(estimate, (low, high), method, resamples)


def _features(x_SIM: np.ndarray) -> np.ndarray:
    """(S, I, M + 1): features with missing cells as 0, and last whether the cell is there."""
    x_SIM = x_SIM[..., None] if x_SIM.ndim == 2 else x_SIM
    there_SI = np.asarray(~np.isnan(x_SIM).any(-1))
    return np.concatenate([np.where(there_SI[..., None], x_SIM, 0.0), there_SI[..., None]], axis=-1)


def _draw(rng: np.random.Generator, n: int, size: int, draws: int) -> np.ndarray:
    """(n, size) counts of `draws` drawn with replacement from `size`; one alone is not drawn but kept."""
    if size == 1:
        return np.ones((n, 1))
    drawn = rng.integers(size, size=(n, draws)) + np.arange(n)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size).astype(float)


def _evaluate(
    a: np.ndarray, b: np.ndarray, wa_BS: np.ndarray, wb_BS: np.ndarray, v_BI: np.ndarray, statistic: Statistic
) -> np.ndarray:
    """The statistic under each resample's counts of runs and items."""
    means = []
    for x, w_BS in ((a, wa_BS), (b, wb_BS)):
        complete = bool(x[..., -1].all())
        sums_M = [np.einsum("bi,bi->b", w_BS @ x[..., m], v_BI) for m in range(x.shape[2] - (1 if complete else 0))]
        count = w_BS.sum(1) * v_BI.sum(1) if complete else sums_M.pop()
        if not (count > 0).all():
            raise UserError("bootstrap: so many cells are missing that some resamples are empty; leave out such runs")
        means.append(np.stack(sums_M, axis=1) / count[:, None])
    return statistic(means[0], means[1])


def _acceleration(a: np.ndarray, b: np.ndarray, items: np.ndarray, statistic: Statistic, paired: bool) -> float:
    """Σ_k Σ_j l³/n³ / (6 (Σ_k Σ_j l²/n²)^1.5) over the dimensions k (runs, items), l by the jackknife of each."""
    n_groups = int(items.max()) + 1
    cubes = squares = 0.0
    sizes = {"a": len(a), "items": n_groups} | ({} if paired else {"b": len(b)})
    for kind, n in sizes.items():
        if n < 2:
            continue
        left_out = 1.0 - np.eye(n)
        wa = left_out if kind == "a" else np.ones((n, len(a)))
        wb = left_out if kind == "b" or (paired and kind == "a") else np.ones((n, len(b)))
        v = left_out if kind == "items" else np.ones((n, n_groups))
        values = _evaluate(a, b, wa, wb, v[:, items], statistic)
        influence = (n - 1) * (values.mean() - values)
        cubes += float((influence**3).sum()) / n**3
        squares += float((influence**2).sum()) / n**2
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0


def _bca_tails(tails: np.ndarray, values_B: np.ndarray, estimate: float, acceleration: float) -> np.ndarray:
    """Percentiles of the bootstrap distribution that make up the bias-corrected, accelerated interval."""
    below = float((values_B < estimate).mean() + (values_B == estimate).mean() / 2)
    bias = float(special.ndtri(np.clip(below, 1 / len(values_B), 1 - 1 / len(values_B))))
    z = bias + special.ndtri(tails)
    return special.ndtr(bias + z / (1 - acceleration * z))
