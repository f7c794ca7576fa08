"""Maps from a raw reward to a scale, and the proof that they keep its order."""

from collections.abc import Callable

import numpy as np

from finetrial.errors import UserError

POINTS = 20_001


def checked_map(
    to_scale: Callable[[float], float], low: float, high: float, points: int = POINTS
) -> Callable[[float], float]:
    """A map of raw rewards to a scale, returned only if a larger reward never gets a smaller value.

    It is tried at `points` evenly spaced rewards from `low` to `high`, at the whole numbers among them, and right
    beside each of these, where maps that are made of pieces jump.

    Args:
        to_scale: the map.
        low, high: range of raw rewards that it is meant for.

    Raises:
        UserError: it falls somewhere (naming where), gives no finite number, or is the same everywhere.
    """
    if not low < high or points < 2:
        raise ValueError(f"{points} points from {low} to {high}")
    whole = np.arange(np.ceil(low), np.floor(high) + 1)
    grid = np.concatenate(
        [np.linspace(low, high, points), whole, np.nextafter(whole, -np.inf), np.nextafter(whole, np.inf)]
    )
    grid_P = np.unique(grid.clip(low, high))
    value_P = np.array([to_scale(float(reward)) for reward in grid_P], dtype=float)
    if not np.isfinite(value_P).all():
        place = int(np.flatnonzero(~np.isfinite(value_P))[0])
        raise UserError(f"the map to a scale gives {value_P[place]} for reward {grid_P[place]:.6g}")
    falls = np.flatnonzero(np.diff(value_P) < 0)
    if len(falls):
        worst = falls[np.diff(value_P)[falls].argmin()]
        raise UserError(
            f"the map to a scale is not monotone: reward {grid_P[worst]:.6g} becomes {value_P[worst]:.4g}, the larger "
            f"reward {grid_P[worst + 1]:.6g} only {value_P[worst + 1]:.4g}; expected a map that never falls"
        )
    if value_P[0] == value_P[-1]:
        raise UserError(f"the map to a scale is {value_P[0]:.4g} everywhere from {low:g} to {high:g}")
    return to_scale
