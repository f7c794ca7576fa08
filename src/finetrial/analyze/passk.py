"""pass@k: the chance that at least one of k samples is right, unbiased from n >= k samples.

Shapes: S seeds, I items.
"""

from dataclasses import dataclass

import numpy as np

from finetrial.analyze.resample import bootstrap, difference
from finetrial.errors import UserError


def pass_at_k(n: np.ndarray, c: np.ndarray, k: int) -> np.ndarray:
    """1 - C(n-c, k) / C(n, k) per cell, as 1 - Π_{j=0}^{c-1} (1 - k / (n - j)) (Chen et al. 2021, arXiv 2107.03374).

    Args:
        n: samples per cell, any shape.
        c: right ones among them, same shape.
        k: number of tries, at least 1.

    Raises:
        UserError: some cell has fewer than k samples (pass@k is then undefined), or c is not within 0..n.
    """
    n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if k < 1:
        raise UserError(f"pass@{k}: k must be at least 1")
    if n.size and int(n.min()) < k:
        raise UserError(f"pass@{k} needs at least {k} samples of every item; some item has {int(n.min())}")
    if np.any(c < 0) or np.any(c > n):
        raise UserError("pass@k: the number of right samples must lie between 0 and the number of samples")
    failing = np.ones(n.shape)
    for j in range(k):
        failing = failing * np.maximum(n - c - j, 0) / (n - j)
    return 1.0 - failing


@dataclass(frozen=True)
class PassAtK:
    """pass@k of one recipe."""

    k: int
    estimate: float
    ci: tuple[float, float]
    headroom: float
    """1 - estimate: no recipe can gain more on this suite."""
    steady: bool
    """Whether every cell has at least 2 k samples; below, single cells are very noisy."""
    unit: str = "whole training runs and whole items"


def estimate_pass_at_k(
    n_SI: np.ndarray, right_SI: np.ndarray, k: int, rng: np.random.Generator, *, level: float = 0.95
) -> PassAtK:
    """Mean pass@k of one recipe with a BCa interval over whole runs × whole items.

    Args:
        n_SI: samples of each cell; one row for a single checkpoint, whose interval is then over items only.
        right_SI: right ones among them.
        k: number of tries.
        rng: stream for the bootstrap.
        level: of the two-sided interval.

    Raises:
        UserError: as `pass_at_k` and `bootstrap`.
    """
    values_SI = pass_at_k(n_SI, right_SI, k)
    nothing = np.zeros((1, values_SI.shape[1]))
    result = bootstrap(values_SI, nothing, difference, rng, paired=False, level=level)
    steady = bool(int(np.min(n_SI)) >= 2 * k)
    low, high = (float(np.clip(end, 0.0, 1.0)) for end in result.ci)
    unit = PassAtK.unit if len(values_SI) > 1 else "items, of this checkpoint"
    return PassAtK(k, result.estimate, (low, high), 1.0 - result.estimate, steady, unit)
