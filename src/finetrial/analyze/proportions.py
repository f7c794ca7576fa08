"""Intervals of small proportions, where the normal approximation fails.

What stands here speaks of one rate of one fixed model. It says nothing about recipes, whose spread between seeds it
does not see.
"""

import numpy as np
from scipy import special

from finetrial.errors import UserError


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of independent trials (Wilson 1927); holds near 0 and 1."""
    _check(successes, trials)
    z = float(special.ndtri((1 + level) / 2))
    p = successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    high = 1.0 if successes == trials else min(1.0, float(centre + half))
    return low, high


def beta_binomial(
    successes: int, trials: int, level: float = 0.95, prior: tuple[float, float] = (1.0, 1.0)
) -> tuple[float, float]:
    """Equal-tailed posterior interval Beta(a + c, b + n - c) of a proportion (Bowyer et al. 2025, arXiv 2503.01747)."""
    _check(successes, trials)
    a, b = prior[0] + successes, prior[1] + trials - successes
    low, high = special.betaincinv(a, b, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials or trials < 1:
        raise UserError(f"{successes} of {trials}: expected 0 <= successes <= trials and at least one trial")
