"""What training kept and what it lost: changes item by item and by category, room at the ends, subsets.

Every change is oriented (larger is better) against a baseline on the same items. The lists are exploratory: the items
at their ends are there because they are at the ends, so part of each change is luck.

Shapes: S seeds of the candidate, T seeds of the baseline, I items.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from finetrial.analyze.changes import Change, Pair, change, has_spread, pair
from finetrial.analyze.estimate import estimate, welch_df
from finetrial.analyze.families import by_steps
from finetrial.analyze.metrics import Direction, Metric
from finetrial.analyze.subsets import Subset, subset_risk
from finetrial.analyze.table import Dense

MIN_CATEGORY = 5
"""Items that a category must have for an interval."""

SMALL_SUBSET = 16
"""Items of the random subsets that a suite is compared with."""

_DRAWS = 2000
"""Random subsets that are drawn: shares to within two points."""

HEADROOM = 0.05
"""Share of the range below which there is no room to move."""


@dataclass(frozen=True)
class ItemChange:
    """One item."""

    item: str
    baseline: float
    """Mean over the baseline's runs, in the metric's own direction."""
    value: float
    """Mean over the candidate's runs, in the metric's own direction."""
    change: float
    """Oriented."""
    ci: tuple[float, float] | None
    """t interval over seeds, uncorrected; None for one seed, and where all seeds agree exactly."""
    n_seeds: int


@dataclass(frozen=True)
class CategoryChange:
    """The items of one category."""

    category: str
    change: Change
    """Interval and p for this category alone; none with fewer than 5 items."""
    ci_adjusted: tuple[float, float] | None
    """Holm's, over the categories that have an interval."""
    p_adjusted: float | None
    baseline: float
    value: float


@dataclass(frozen=True)
class Ends:
    """How close one condition is to the ends of a metric's range."""

    at_lowest: float
    """Share of cells (run × item) at the least value possible."""
    at_highest: float
    room_up: float
    """Share of the range between the mean and the best value."""
    room_down: float
    """Share of the range between the mean and the worst value."""
    n_cells: int

    @property
    def cannot_gain(self) -> bool:
        """Whether no improvement worth the name can show."""
        return self.room_up < HEADROOM

    @property
    def cannot_lose(self) -> bool:
        """Whether no loss worth the name can show."""
        return self.room_down < HEADROOM


@dataclass(frozen=True)
class Nested:
    """A change on a suite, and on another that holds all its items and more."""

    subset: str
    full: str
    on_subset: Change
    on_full: Change


def item_changes(found: Pair, better: Direction, level: float = 0.95) -> list[ItemChange]:
    """Every item, the largest gain first; ties in the order of the items' names.

    The interval is Student's t over the runs: of the differences where runs are paired by seed or the baseline is
    frozen, else Welch's. It says how much training's luck moves this item; a frozen baseline's own luck in sampling is
    no part of it.
    """
    sign = 1.0 if better == "higher" else -1.0
    change_I, half_I = found.change_I, _half_widths(found, 1 - level)
    candidate_I, baseline_I = sign * np.nanmean(found.candidate_SI, 0), sign * np.nanmean(found.baseline_TI, 0)
    count_I = (~np.isnan(found.candidate_SI)).sum(0)
    order = sorted(range(len(found.items)), key=lambda i: (-change_I[i], str(found.items[i])))
    return [
        ItemChange(
            item=str(found.items[i]),
            baseline=float(baseline_I[i]),
            value=float(candidate_I[i]),
            change=float(change_I[i]),
            ci=(float(change_I[i] - half_I[i]), float(change_I[i] + half_I[i])) if np.isfinite(half_I[i]) else None,
            n_seeds=int(count_I[i]),
        )
        for i in order
    ]


def _half_widths(found: Pair, alpha: float) -> np.ndarray:
    """Half of each item's t interval over seeds; NaN where there is none."""
    if found.paired or found.n_seeds[1] == 0:
        difference_SI = found.candidate_SI - found.baseline_TI
        variance_I, count_I = _variance(difference_SI)
        df_I = count_I - 1.0
    else:
        (va_I, na_I), (vb_I, nb_I) = _variance(found.candidate_SI), _variance(found.baseline_TI)
        variance_I = va_I + vb_I
        counted = zip(va_I, vb_I, na_I.tolist(), nb_I.tolist(), strict=True)
        df_I = np.array([float(welch_df(*one)) for one in counted])
    usable_I = (variance_I > 0) & (df_I > 0)
    quantile_I = stats.t.isf(alpha / 2, np.where(usable_I, df_I, 1.0))
    return np.where(usable_I, quantile_I * np.sqrt(np.maximum(variance_I, 0.0)), np.nan)


def _variance(values_SI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(variance of the mean over seeds, seeds with a value) of each item; 0 for one seed and for rounding."""
    there_SI = ~np.isnan(values_SI)
    count_I = there_SI.sum(0)
    mean_I = np.nanmean(values_SI, 0)
    square_I = np.where(there_SI, (values_SI - mean_I) ** 2, 0.0).sum(0)
    variance_I = square_I / np.maximum(count_I - 1, 1) / count_I
    rounding_I = (1e-12 * np.maximum(np.nanmax(np.abs(values_SI), 0), 1e-300)) ** 2
    return np.where(variance_I > rounding_I, variance_I, 0.0), count_I


def category_changes(
    found: Pair, categories: Mapping[str, str], better: Direction, alpha: float = 0.05
) -> list[CategoryChange]:
    """Change of every category, in the order of their names, with Holm's correction over them.

    Args:
        found: the arms.
        categories: item -> category; items that are absent form none.
        better: direction of the metric, for the plain means.
        alpha: error rate, of each interval alone and of the corrected ones together.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(found.items):
        if str(item) in categories:
            places[categories[str(item)]].append(i)
    parts = {name: found.only(np.array(mine)) for name, mine in sorted(places.items())}
    estimates = {name: estimate([part.effect], part.paired) for name, part in parts.items()}
    judged = [
        name for name, part in parts.items() if len(part.items) >= MIN_CATEGORY and has_spread(estimates[name], [part])
    ]
    adjusted = by_steps([estimates[name] for name in judged], [0.0] * len(judged), alpha, "holm") if judged else []
    corrected = dict(zip(judged, adjusted, strict=True))
    sign = 1.0 if better == "higher" else -1.0
    rows = []
    for name, part in parts.items():
        alone, mine, e = change(part, 1 - alpha), corrected.get(name), estimates[name]
        if mine is None:
            alone = Change(alone.estimate, None, None, alone.n_seeds, alone.n_items)
        half = None if mine is None else mine.critical * float(e.standard_error)
        weight_I = part.weight_I / part.weight_I.sum()
        rows.append(
            CategoryChange(
                category=name,
                change=alone,
                ci_adjusted=None if half is None else (alone.estimate - half, alone.estimate + half),
                p_adjusted=None if mine is None else mine.p,
                baseline=sign * float((weight_I * np.nanmean(part.baseline_TI, 0)).sum()),
                value=sign * float((weight_I * np.nanmean(part.candidate_SI, 0)).sum()),
            )
        )
    return rows


def ends(dense: Dense, metric: Metric) -> Ends | None:
    """Cells at the ends of the range; None for a metric without two ends, or where nothing was measured."""
    cells = dense.values_SI[~np.isnan(dense.values_SI)]
    if metric.low is None or metric.high is None or not len(cells):
        return None
    width = metric.high - metric.low
    above = (float(cells.mean()) - metric.low) / width
    up, down = (1 - above, above) if metric.better == "higher" else (above, 1 - above)
    return Ends(
        at_lowest=float(np.isclose(cells, metric.low, rtol=0, atol=1e-9 * width).mean()),
        at_highest=float(np.isclose(cells, metric.high, rtol=0, atol=1e-9 * width).mean()),
        room_up=up,
        room_down=down,
        n_cells=len(cells),
    )


def small_subset(found: Pair, alpha: float = 0.05, n: int = SMALL_SUBSET) -> Subset | None:
    """What random subsets of `n` items would have shown; None where the suite has no more than that."""
    if len(found.items) <= n:
        return None
    return subset_risk(found.change_I, n, alpha, [str(group) for group in found.groups], _DRAWS)


def nested(arms: Mapping[str, tuple[Dense, Dense]], better: Direction, level: float = 0.95) -> list[Nested]:
    """Suites all of whose items are in a larger one, with the change on both; an item is known by its id and group.

    Args:
        arms: suite -> (candidate, baseline).
    """
    items = {
        suite: frozenset(zip(map(str, baseline.items), map(str, baseline.groups), strict=True))
        for suite, (_, baseline) in arms.items()
    }
    found: list[Nested] = []
    for subset, full in _inclusions(items):
        small, large = (pair(*arms[suite], better) for suite in (subset, full))
        if small is not None and large is not None:
            found.append(Nested(subset, full, change(small, level), change(large, level)))
    return found


def _inclusions(items: Mapping[str, frozenset[tuple[str, str]]]) -> Sequence[tuple[str, str]]:
    return [(a, b) for a in items for b in items if items[a] < items[b]]
