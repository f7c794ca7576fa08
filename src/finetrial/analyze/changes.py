"""Means of a recipe, and its change against a baseline on the same items, with two-way intervals.

The interval is that of `estimate`: seeds and items are both a sample, seeds of both arms are paired where they are the
same ones. Nothing here is corrected for how many changes are looked at: these are descriptions, not verdicts.

Changes are oriented: larger is better whatever the metric.

Shapes: S seeds of the candidate, T seeds of the baseline (one row for the frozen base), I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from finetrial.analyze.estimate import Effect, Estimate, critical_value, effect, estimate, p_value
from finetrial.analyze.metrics import Direction
from finetrial.analyze.table import Dense
from finetrial.errors import UserError

_ROUNDING = 1e-12
"""Standard errors below this share of the largest value are rounding, not spread."""


@dataclass(frozen=True)
class Mean:
    """Weighted mean over the items of a suite, then over runs."""

    value: float
    ci: tuple[float, float] | None
    """Over runs × items; over items alone for a frozen model; None for a single run, a single item or no spread."""
    n_seeds: int
    """0 for a frozen model."""
    n_items: int
    n_missing: int
    """Cells (run × item) without a value."""


@dataclass(frozen=True)
class Change:
    """A difference to a baseline, oriented."""

    estimate: float
    ci: tuple[float, float] | None
    """Two-way interval; None where fewer than two runs, or values that never vary, give none."""
    p_value: float | None
    """Two-sided, of no change, for this change alone; None where there is no interval."""
    n_seeds: tuple[int, int]
    n_items: int


@dataclass(frozen=True)
class Pair:
    """Two arms on the items that both have a value of, oriented."""

    candidate_SI: np.ndarray
    baseline_TI: np.ndarray
    items: np.ndarray
    weight_I: np.ndarray
    groups: np.ndarray
    """Cluster of each item."""
    seeds: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    n_left_out: int
    """Items that one of the arms lacks."""

    @property
    def paired(self) -> bool:
        """Whether both arms have the same seeds."""
        return self.seeds[0] == self.seeds[1] and self.seeds[0] != (None,)

    @property
    def n_seeds(self) -> tuple[int, int]:
        """Runs of the candidate and of the baseline, 0 for a frozen model."""
        return _counted(self.seeds[0]), _counted(self.seeds[1])

    def only(self, keep_I: np.ndarray) -> "Pair":
        """The same arms on some of the items."""
        return replace(
            self,
            candidate_SI=self.candidate_SI[:, keep_I],
            baseline_TI=self.baseline_TI[:, keep_I],
            items=self.items[keep_I],
            weight_I=self.weight_I[keep_I],
            groups=self.groups[keep_I],
        )

    @property
    def effect(self) -> Effect:
        """What an interval of the difference needs."""
        _, group_I = np.unique(self.groups.astype(str), return_inverse=True)
        return effect(self.candidate_SI, self.baseline_TI, self.weight_I, group_I, self.paired)

    @property
    def change_I(self) -> np.ndarray:
        """Change of each item, averaged over seeds."""
        return np.nanmean(self.candidate_SI, 0) - np.nanmean(self.baseline_TI, 0)

    @property
    def change_S(self) -> np.ndarray:
        """Change of each of the candidate's runs: against the run of the same seed, or the mean of the baseline's."""
        found = self.effect
        against = found.baseline_means_S if self.paired else found.baseline_means_S.mean()
        return found.candidate_means_S - against


def comparable(candidate: Dense, baseline: Dense) -> bool:
    """Whether both arms were measured on one version of the suite."""
    return candidate.suite_hashes == baseline.suite_hashes and len(candidate.suite_hashes) == 1


def pair(candidate: Dense, baseline: Dense, better: Direction) -> Pair | None:
    """Match two arms; None where no item has a value in both.

    Runs without any value (a quarantined run's) are left out of their arm.

    Raises:
        UserError: the arms were measured on different versions of the suite.
    """
    if not comparable(candidate, baseline):
        raise UserError("the two arms were measured on different versions of the suite: they are not comparable")
    sign = 1.0 if better == "higher" else -1.0
    items, ia, ib = np.intersect1d(candidate.items, baseline.items, assume_unique=True, return_indices=True)
    a_SI, a_seeds = _usable(candidate, ia)
    b_TI, b_seeds = _usable(baseline, ib)
    both_I = ~np.isnan(a_SI).all(0) & ~np.isnan(b_TI).all(0) if a_seeds and b_seeds else np.zeros(len(items), bool)
    if not both_I.any():
        return None
    return Pair(
        candidate_SI=sign * a_SI[:, both_I],
        baseline_TI=sign * b_TI[:, both_I],
        items=items[both_I],
        weight_I=((candidate.weight_I[ia] + baseline.weight_I[ib]) / 2)[both_I],
        groups=candidate.groups[ia][both_I],
        seeds=(a_seeds, b_seeds),
        n_left_out=len(np.union1d(candidate.items, baseline.items)) - int(both_I.sum()),
    )


def change(pair: Pair, level: float = 0.95) -> Change:
    """Mean change over items and seeds, with its two-way interval."""
    return concluded(estimate([pair.effect], pair.paired), [pair], level)


def average_change(pairs: Sequence[Pair], level: float = 0.95) -> Change:
    """Mean of the changes on several suites of one metric, each suite weighing the same; the same runs in all of them.

    Raises:
        ValueError: the suites do not share their runs.
    """
    if len({one.seeds for one in pairs}) > 1:
        raise ValueError("the suites do not have the same runs")
    combined = _sum([one.effect for one in pairs], [1 / len(pairs)] * len(pairs))
    return concluded(estimate([combined], pairs[0].paired), pairs, level)


def between(a: Pair, b: Pair, level: float = 0.95) -> Change:
    """Change `a` minus change `b` of two recipes on two suites, against baselines on each.

    Their runs may be paired by seed; items of different suites are different samples. On one suite and baseline take
    `pair` of the two recipes instead: what they share on an item cancels.
    """
    paired = a.seeds[0] == b.seeds[0]
    ea, eb = a.effect, b.effect
    combined = replace(
        ea,
        estimate=ea.estimate - eb.estimate,
        baseline_S=eb.candidate_S,
        baseline_means_S=eb.candidate_means_S,
        v_item=ea.v_item + eb.v_item,
        v_both=ea.v_both + eb.v_both,
        n_groups=np.minimum(ea.n_groups, eb.n_groups),
    )
    found = concluded(estimate([combined], paired), [a, b], level)
    return replace(found, n_seeds=(a.n_seeds[0], b.n_seeds[0]))


def concluded(e: Estimate, pairs: Sequence[Pair], level: float) -> Change:
    """An estimate in plain numbers."""
    n_seeds, n_items = pairs[0].n_seeds, sum(len(one.items) for one in pairs)
    value = float(e.estimate)
    if not has_spread(e, pairs):
        return Change(value, None, None, n_seeds, n_items)
    half = float(critical_value(1 - level, e) * e.standard_error)
    return Change(value, (value - half, value + half), float(p_value(e)), n_seeds, n_items)


def has_spread(e: Estimate, pairs: Sequence[Pair]) -> bool:
    """Whether an interval can be given: at least two runs in every trained arm, and values that vary."""
    runs = [n for one in pairs for n in one.n_seeds if n]
    largest = max(float(np.nanmax(np.abs(arm))) for one in pairs for arm in (one.candidate_SI, one.baseline_TI))
    return bool(runs) and min(runs) >= 2 and float(e.standard_error) > _ROUNDING * largest


def mean_of(dense: Dense, level: float = 0.95) -> Mean | None:
    """Mean of one arm with its interval; None where nothing was measured."""
    values_SI, seeds = _usable(dense, np.arange(len(dense.items)))
    there_I = ~np.isnan(values_SI).all(0) if seeds else np.zeros(len(dense.items), bool)
    if not there_I.any():
        return None
    values_SI = values_SI[:, there_I]
    _, group_I = np.unique(dense.groups[there_I].astype(str), return_inverse=True)
    found = effect(values_SI, np.zeros((1, values_SI.shape[1])), dense.weight_I[there_I], group_I, False)
    e, n_seeds, value = estimate([found], False), _counted(seeds), float(found.estimate)
    ci = None
    if (
        n_seeds != 1
        and int(found.n_groups) > 1
        and float(e.standard_error) > _ROUNDING * float(np.nanmax(abs(values_SI)))
    ):
        # A frozen model has no training seeds: its variance is that of items alone, and so are its degrees of freedom.
        alone = -special.stdtrit(e.df_item, (1 - level) / 2)
        half = float((alone if dense.frozen else critical_value(1 - level, e)) * e.standard_error)
        ci = (value - half, value + half)
    return Mean(value, ci, n_seeds, int(there_I.sum()), int(np.isnan(dense.values_SI).sum()))


def _usable(dense: Dense, items_I: np.ndarray) -> tuple[np.ndarray, tuple[int | None, ...]]:
    """Values of some items in the runs that have any, and those runs' seeds."""
    rows_S = ~np.all(np.isnan(dense.values_SI), axis=1)
    seeds = tuple(seed for seed, there in zip(dense.seeds, rows_S.tolist(), strict=True) if there)
    return dense.values_SI[rows_S][:, items_I], seeds


def _sum(effects: Sequence[Effect], weights: Sequence[float]) -> Effect:
    """Weighted sum of effects on different suites with the same runs."""

    def total(name: str, power: int = 1) -> np.ndarray:
        parts = [weight**power * getattr(one, name) for one, weight in zip(effects, weights, strict=True)]
        return np.sum(parts, axis=0)

    return Effect(
        estimate=total("estimate"),
        candidate_S=total("candidate_S"),
        baseline_S=total("baseline_S"),
        candidate_means_S=total("candidate_means_S"),
        baseline_means_S=total("baseline_means_S"),
        v_item=total("v_item", 2),
        v_both=total("v_both", 2),
        n_groups=np.minimum.reduce([one.n_groups for one in effects]),
    )


def _counted(seeds: Sequence[int | None]) -> int:
    return 0 if tuple(seeds) == (None,) else len(seeds)
