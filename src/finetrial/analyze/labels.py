"""A judge's scores corrected by a few human labels: prediction-powered inference (PPI++).

Shapes: L labelled items, U items that only the judge has seen.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from finetrial.errors import UserError


@dataclass(frozen=True)
class Corrected:
    """A mean in the units of the human labels."""

    estimate: float
    ci: tuple[float, float]
    standard_error: float
    weight: float
    """λ in 0..1: how far the judge's scores are used; 0 ignores them."""
    n_labelled: int
    n_judged: int
    """Items that only the judge has seen."""
    unit: str = "items; the labelled ones drawn at random from all"


def corrected_mean(human_L: np.ndarray, judge_L: np.ndarray, judge_U: np.ndarray, level: float = 0.95) -> Corrected:
    """Mean human score of all items, from few human labels and many judge scores.

        estimate = mean(Y_L) - λ (mean(f_L) - mean(f_U)),   λ = Cov(Y_L, f_L) / ((1 + L/U) Var(f)), clipped to 0..1
        variance = Var(Y_L - λ f_L) / L + λ² Var(f_U) / U

    (Angelopoulos, Duchi and Zrnic 2023, "PPI++", arXiv 2311.01453, the mean.) Unbiased however wrong the judge is; the
    interval uses Student's t with L - 1 degrees of freedom because labels are few. Where (nearly) all items are
    labelled, fewer than 2 being left, the judge is not needed and λ is 0.

    Raises:
        UserError: fewer than 3 labels, arrays of different length, or missing values.
    """
    y, f, g = (np.asarray(x, dtype=float) for x in (human_L, judge_L, judge_U))
    if len(y) < 3:
        raise UserError(f"{len(y)} labels: at least 3 are required")
    if y.shape != f.shape:
        raise UserError(f"{len(y)} human labels but {len(f)} judge scores of the labelled items")
    if not all(np.isfinite(x).all() for x in (y, f, g)):
        raise UserError("labels and judge scores must be finite; leave out what is missing, and bound it")
    n, big = len(y), len(g)
    weight = _weight(y, f, g) if big > 1 else 0.0
    estimate, variance = float(y.mean()), float((y - weight * f).var(ddof=1)) / n
    if weight:
        estimate -= weight * float(f.mean() - g.mean())
        variance += weight**2 * float(g.var(ddof=1)) / big
    error = variance**0.5
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * error
    return Corrected(estimate, (estimate - half, estimate + half), error, weight, n, big)


def _weight(y: np.ndarray, f: np.ndarray, g: np.ndarray) -> float:
    spread = float(np.concatenate([f, g]).var(ddof=1))
    return float(np.clip(np.cov(y, f)[0, 1] / ((1 + len(y) / len(g)) * spread), 0, 1)) if spread > 0 else 0.0
