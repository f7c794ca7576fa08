"""How scores are distributed: what a dimension can tell apart, and what two dimensions tell twice.

Shapes: N values of one column; NaN is missing and left out.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from scipy.stats import rankdata

LOW_VARIANCE = 0.05
"""Standard deviation below which a dimension hardly tells rows apart."""
COMMON_SHARE = 0.5
"""Share of one value, of stand-ins or of missing values from which a dimension is flagged."""
MIN_PAIRS = 8
"""Rows below which a rank correlation is not reported: on four, a perfect one has p = .083."""

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def distribution(values_N: np.ndarray, defaulted_N: np.ndarray | None = None) -> dict[str, Any]:
    """Minimum, quantiles, maximum, mean and standard deviation (n - 1) of the values that are not missing.

    Beside them, as shares of all N rows: missing, stand-ins (`share_default`), and values at the floor 0 and at
    the cap 1; and the most common value with its share of the present ones. What is undefined is None.
    """
    rows = len(values_N)
    present = np.sort(values_N[~np.isnan(values_N)])
    facts: dict[str, Any] = {
        "rows": rows,
        "n": len(present),
        "share_missing": _share(rows - len(present), rows),
        "share_default": _share(0 if defaulted_N is None else int(defaulted_N.sum()), rows),
        "share_floor": _share(int((present == 0).sum()), rows),
        "share_cap": _share(int((present == 1).sum()), rows),
        "mode": None,
        "share_mode": None,
        "min": None,
        **dict.fromkeys(QUANTILES),
        "max": None,
        "mean": None,
        "std": None,
    }
    if not len(present):
        return facts
    distinct, counts = np.unique(present, return_counts=True)
    facts |= {
        "mode": float(distinct[counts.argmax()]),
        "share_mode": _share(int(counts.max()), len(present)),
        "min": float(present[0]),
        **{name: float(np.quantile(present, level)) for name, level in QUANTILES.items()},
        "max": float(present[-1]),
        "mean": float(present.mean()),
    }
    if len(present) > 1:
        facts["std"] = float(present.std(ddof=1))
    return facts


def correlations(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Spearman's rank correlation of every two columns over the rows where both are present.

    Returns:
        `names` and `matrix` (rows and columns in the order of `names`). An entry is None where fewer than
        `MIN_PAIRS` rows remain or one of the two columns is constant.
    """
    matrix: list[list[float | None]] = [[None] * len(columns) for _ in columns]
    for (i, first), (j, second) in combinations_with_replacement(enumerate(columns.values()), 2):
        both = ~np.isnan(first) & ~np.isnan(second)
        matrix[i][j] = matrix[j][i] = _spearman(first[both], second[both])
    return {"names": list(columns), "matrix": matrix}


def flags(distributions: Mapping[str, Mapping[str, Any]], dimensions: Sequence[str]) -> list[dict[str, str]]:
    """Dimensions that hardly tell rows apart, with the reason: constant or low variance, one value, stand-ins."""
    found: list[dict[str, str]] = []
    for name in dimensions:
        facts = distributions[name]
        if facts["n"] == 0:
            found.append({"dimension": name, "flag": "missing", "reason": "missing for every row"})
            continue
        if facts["std"] is not None and facts["std"] < LOW_VARIANCE:
            reason = f"standard deviation {facts['std']:.3g} is below {LOW_VARIANCE}"
            found.append({"dimension": name, "flag": "low variance", "reason": reason})
        if facts["share_mode"] >= COMMON_SHARE and facts["n"] > 1:
            reason = f"{facts['share_mode']:.0%} of the values are {facts['mode']:.4g}"
            found.append({"dimension": name, "flag": "one value", "reason": reason})
        for key, flag in (("share_default", "stand-ins"), ("share_missing", "missing")):
            if facts[key] >= COMMON_SHARE:
                found.append({"dimension": name, "flag": flag, "reason": f"{facts[key]:.0%} of the rows"})
    return found


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < MIN_PAIRS:
        return None
    x, y = rankdata(first), rankdata(second)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip((x @ y) / scale, -1.0, 1.0)) if scale > 0 else None


def _share(count: int, rows: int) -> float | None:
    return count / rows if rows else None
