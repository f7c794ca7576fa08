"""What a random subset of the items would have said: the answer to "16 questions are enough".

Random subsets of n of the N items are drawn without replacement; each is judged as if it were all there is, by a paired
t test over its items. What that gets wrong, how often, and how wide its interval is, is the warning.

Shapes: R subsets, N items, n items of a subset.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from finetrial import seeds
from finetrial.errors import UserError

_DRAWS, _MOST_NUMBERS = 20_000, 40_000_000


@dataclass(frozen=True)
class Subset:
    """What random subsets show, against all items."""

    n: int
    n_items: int
    draws: int
    full_difference: float
    full_half_width: float
    """Half of the t interval over all items."""
    opposite_sign: float
    """Share of subsets whose difference has the other sign."""
    significant: float
    """Share of subsets that a t test calls different at alpha."""
    significant_opposite: float
    """Share called different, in the direction opposite to all items."""
    half_width: float
    """Median half-width of the subsets' t intervals."""
    spread: tuple[float, float]
    """Central 95 % of the subsets' differences."""
    design_effect: float | None
    """1 + (m - 1) ρ of items within groups of m (Kish 1965), of the differences; None without groups."""
    alpha: float

    def sentence(self, by: str | None) -> str:
        """The warning in words."""
        text = (
            f"a random {self.n} of these {self.n_items} items would show the opposite sign in {self.opposite_sign:.0%} "
            f"of draws and a 'significant' difference in {self.significant:.1%} ({self.significant_opposite:.1%} in "
            f"the wrong direction); its interval would be ±{self.half_width:.3g} instead of "
            f"±{self.full_half_width:.3g}, around a difference of {self.full_difference:+.3g}"
        )
        if self.design_effect is not None:
            text += f"; design effect of items within one {by or 'group'}: {self.design_effect:.2f}"
        return text


def subset_risk(
    difference_I: np.ndarray, n: int, alpha: float, groups: Sequence[str] | None = None, most: int = _DRAWS
) -> Subset:
    """Draw random subsets of the items and judge each.

    Args:
        difference_I: candidate - baseline per item, nothing missing.
        n: items of a subset.
        alpha: two-sided level of each subset's test.
        groups: group of each item, for the design effect.
        most: subsets that are drawn, fewer where there are very many items.

    Raises:
        UserError: n is not between 2 and the number of items - 1.
    """
    n_items = len(difference_I)
    if not 2 <= n < n_items:
        raise UserError(f"a subset of {n} items: expected between 2 and {n_items - 1} of the {n_items} items")
    draws = int(min(most, max(200, _MOST_NUMBERS // n_items)))
    rng = seeds.stream(0, "subset", n_items, n)
    mean_R, sd_R = np.empty(draws), np.empty(draws)
    for start in range(0, draws, 1000):
        stop = min(start + 1000, draws)
        chosen = np.argpartition(rng.random((stop - start, n_items)), n, axis=1)[:, :n]
        picked = difference_I[chosen]
        mean_R[start:stop], sd_R[start:stop] = picked.mean(1), picked.std(1, ddof=1)
    half_R = stats.t.isf(alpha / 2, n - 1) * sd_R / math.sqrt(n)
    called_R = np.abs(mean_R) > half_R
    full = float(difference_I.mean())
    against_R = mean_R * full < 0
    low, high = np.quantile(mean_R, [0.025, 0.975])
    return Subset(
        n=n,
        n_items=n_items,
        draws=draws,
        full_difference=full,
        full_half_width=float(stats.t.isf(alpha / 2, n_items - 1) * difference_I.std(ddof=1) / math.sqrt(n_items)),
        opposite_sign=float(against_R.mean()),
        significant=float(called_R.mean()),
        significant_opposite=float((called_R & against_R).mean()),
        half_width=float(np.median(half_R)),
        spread=(float(low), float(high)),
        design_effect=None if groups is None else design_effect(difference_I, groups),
        alpha=alpha,
    )


def design_effect(value_I: np.ndarray, groups: Sequence[str]) -> float | None:
    """1 + (m - 1) ρ with ρ the intraclass correlation by analysis of variance and m the mean group size.

    How many times larger the variance of the mean is than with as many unrelated items, when the groups themselves are
    a sample. None where all items are in one group, or each in its own.
    """
    _, group_I = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    size_G = np.bincount(group_I)
    n, g = len(value_I), len(size_G)
    if g < 2 or g == n:
        return None
    mean_G = np.bincount(group_I, value_I) / size_G
    between = float((size_G * (mean_G - value_I.mean()) ** 2).sum()) / (g - 1)
    within = float(((value_I - mean_G[group_I]) ** 2).sum()) / (n - g)
    size = (n - float((size_G**2).sum()) / n) / (g - 1)
    if between + (size - 1) * within <= 0:
        return None
    rho = (between - within) / (between + (size - 1) * within)
    return 1 + (n / g - 1) * rho
