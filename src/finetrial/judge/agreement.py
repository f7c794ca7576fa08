"""Agreement of raters beyond chance: a judge with people, and people with each other.

Shapes: N items, R raters, C categories.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

from finetrial.errors import UserError


@dataclass(frozen=True)
class Agreement:
    """A kappa."""

    kappa: float
    """1 where all agree, 0 as by chance."""
    ci: tuple[float, float]
    """Normal interval at the level asked for."""
    observed: float
    """Share of agreeing pairs of ratings."""
    expected: float
    """The same by chance."""
    n: int


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    weights: Literal["none", "linear", "quadratic"] = "none",
    level: float = 0.95,
) -> Agreement:
    """Agreement of two raters on N items.

        kappa = 1 - Σ w_ij p_ij / Σ w_ij p_i. p_.j

    (Cohen 1960; weighted: Cohen 1968) with w_ij = 1 for i ≠ j, or |i-j|, or (i-j)² over the ordered categories. The
    interval uses the large-sample variance of Fleiss, Cohen and Everitt 1969.

    Args:
        first, second: a category per item; with weights they must have an order (numbers).

    Raises:
        UserError: different lengths, fewer than 2 items, or all ratings in one category, where kappa is undefined.
    """
    if len(first) != len(second) or len(first) < 2:
        raise UserError(f"{len(first)} and {len(second)} ratings: kappa needs two of each of at least 2 items")
    order = sorted({*first, *second}, key=_rank)
    place = {category: index for index, category in enumerate(order)}
    share_CC = np.zeros((len(order), len(order)))
    np.add.at(share_CC, ([place[one] for one in first], [place[one] for one in second]), 1 / len(first))
    gap_CC = np.abs(np.subtract.outer(np.arange(len(order)), np.arange(len(order))))
    disagreement_CC = {"none": (gap_CC > 0).astype(float), "linear": gap_CC, "quadratic": gap_CC**2}[weights]
    if not disagreement_CC.any():
        raise UserError("all ratings are of one category: kappa is undefined")
    agree_CC = 1 - disagreement_CC / disagreement_CC.max()
    row_C, column_C = share_CC.sum(1), share_CC.sum(0)
    observed, expected = float((agree_CC * share_CC).sum()), float(row_C @ agree_CC @ column_C)
    kappa = (observed - expected) / (1 - expected)
    mean_CC = (agree_CC @ column_C)[:, None] + (row_C @ agree_CC)[None, :]
    variance = ((share_CC * (agree_CC - mean_CC * (1 - kappa)) ** 2).sum() - (kappa - expected * (1 - kappa)) ** 2) / (
        len(first) * (1 - expected) ** 2
    )
    return _with_interval(kappa, variance, observed, expected, len(first), level)


def fleiss_kappa(ratings: Sequence[Sequence[Hashable]], level: float = 0.95) -> Agreement:
    """Agreement of R raters, who need not be the same for every item.

        kappa = (P̄ - P̄_e) / (1 - P̄_e),  P̄ = mean_n Σ_c n_nc (n_nc - 1) / (R (R - 1)),  P̄_e = Σ_c p_c²

    (Fleiss 1971.) The interval is that of a jackknife over items.

    Args:
        ratings: for each of N items its R categories.

    Raises:
        UserError: fewer than 2 items or raters, items with different numbers of ratings, or a single category.
    """
    raters = {len(one) for one in ratings}
    if len(ratings) < 2 or len(raters) != 1 or min(raters) < 2:
        raise UserError(f"{len(ratings)} items with {sorted(raters)} ratings: expected the same number, at least 2")
    order = sorted({category for one in ratings for category in one}, key=str)
    if len(order) < 2:
        raise UserError("all ratings are of one category: kappa is undefined")
    count_NC = np.array([[one.count(category) for category in order] for one in map(list, ratings)], dtype=float)
    n, r = len(ratings), raters.pop()
    agree_N = (count_NC * (count_NC - 1)).sum(1) / (r * (r - 1))
    observed, expected = float(agree_N.mean()), float(((count_NC.sum(0) / (n * r)) ** 2).sum())
    without_N = (agree_N.sum() - agree_N) / (n - 1)
    chance_N = (((count_NC.sum(0) - count_NC) / ((n - 1) * r)) ** 2).sum(1)
    kappa = (observed - expected) / (1 - expected)
    with np.errstate(invalid="ignore", divide="ignore"):
        left_N = (without_N - chance_N) / (1 - chance_N)
    left_N = left_N[np.isfinite(left_N)]
    variance = (n - 1) / n * float(((left_N - left_N.mean()) ** 2).sum())
    return _with_interval(kappa, variance, observed, expected, n, level)


def _rank(category: Any) -> tuple[str, Any]:
    """Place in the order of categories: numbers by their size, whatever their type, before all else."""
    return ("" if isinstance(category, (int, float, np.number)) else str(type(category)), category)


def _with_interval(kappa: float, variance: float, observed: float, expected: float, n: int, level: float) -> Agreement:
    half = float(special.ndtri((1 + level) / 2)) * float(np.sqrt(max(0.0, variance)))
    return Agreement(float(kappa), (float(kappa) - half, min(1.0, float(kappa) + half)), observed, expected, n)
