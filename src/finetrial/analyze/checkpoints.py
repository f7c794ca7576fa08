"""Two checkpoints on the same items: one run per arm, so nothing is said of the recipes that made them.

Items (or groups of items, where several belong together) are the replicates. Yes-or-no values: McNemar's exact test.
Other values: the paired difference per group of items, with an exact or sampled sign-flip test. The interval of the
difference is Student's t over groups below 50 of them, where bootstraps are too narrow, and the paired BCa bootstrap
from there on.

Shapes: I items, G groups of items.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from finetrial import seeds
from finetrial.analyze.estimate import effect
from finetrial.analyze.permute import sign_flip
from finetrial.analyze.table import Dense

UNIT = "item, of these two checkpoints (one run each, so not of their recipes)"
BOOTSTRAP_FROM = 50
SIGN_FLIP_UP_TO = 500
RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """Difference of two checkpoints, candidate - baseline in raw units."""

    estimate: float
    ci: tuple[float, float] | None
    """None where the differences do not vary or there is one group."""
    p_value: float | None
    standard_error: float
    df: float
    test: str
    n_items: int
    n_missing: int
    difference_I: np.ndarray
    """Per common item, by name ascending."""
    items: np.ndarray


def is_checkpoint(dense: Dense) -> bool:
    """Whether the condition has a single run."""
    return len(dense.seeds) == 1


def compare_checkpoints(candidate: Dense, baseline: Dense, alpha: float) -> Paired | None:
    """Compare two single runs item by item; None where no item has a value in both.

    Args:
        candidate: outcomes of one run.
        baseline: outcomes of the other.
        alpha: the interval has level 1 - alpha.
    """
    items = np.intersect1d(candidate.items, baseline.items)
    ia, ib = np.searchsorted(candidate.items, items), np.searchsorted(baseline.items, items)
    a_I, b_I = candidate.values_SI[0, ia], baseline.values_SI[0, ib]
    both = ~np.isnan(a_I) & ~np.isnan(b_I)
    if not both.any():
        return None
    a_I, b_I, items = a_I[both], b_I[both], items[both]
    weight_I = (candidate.weight_I[ia] + baseline.weight_I[ib])[both]
    _, group_I = np.unique(candidate.groups[ia][both].astype(str), return_inverse=True)
    n_groups = int(group_I.max()) + 1
    if n_groups == len(items):
        group_I = np.arange(n_groups)
    e = effect(a_I[None], b_I[None], weight_I, group_I, paired=False)
    estimate, se, df = float(e.estimate), float(np.sqrt(e.v_item)), n_groups - 1.0
    d_I = a_I - b_I
    part_G = np.bincount(group_I, weight_I * d_I)
    mass_G = np.bincount(group_I, weight_I)
    binary = bool(np.isin([a_I, b_I], [0.0, 1.0]).all()) and n_groups == len(items)
    ci, how = _interval(part_G, mass_G, estimate, se, df, alpha)
    p, test = _p_value(d_I, part_G, binary, estimate, se, df)
    everything = len(candidate.items) + len(baseline.items) - len(np.intersect1d(candidate.items, baseline.items))
    per = "items" if n_groups == len(items) else f"{n_groups} groups of items"
    return Paired(estimate, ci, p, se, df, f"{test}; {how} over {per}", len(items), everything - len(items), d_I, items)


def _interval(
    part_G: np.ndarray, mass_G: np.ndarray, estimate: float, se: float, df: float, alpha: float
) -> tuple[tuple[float, float] | None, str]:
    """(interval of the weighted mean difference, how it was made)."""
    if not se > 0 or df < 1:
        return None, "no interval (the differences do not vary)"
    if len(part_G) < BOOTSTRAP_FROM:
        half = float(stats.t.isf(alpha / 2, df)) * se
        return (estimate - half, estimate + half), "paired t interval"
    boot = stats.bootstrap(
        (part_G, mass_G),
        lambda part, mass, axis: part.sum(axis) / mass.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(part_G)),
        confidence_level=1 - alpha,
        method="BCa",
        rng=seeds.stream(0, "checkpoints", len(part_G)),
    )
    interval = boot.confidence_interval
    return (float(interval.low), float(interval.high)), f"paired BCa bootstrap interval ({RESAMPLES} resamples)"


def _p_value(
    d_I: np.ndarray, part_G: np.ndarray, binary: bool, estimate: float, se: float, df: float
) -> tuple[float | None, str]:
    """(two-sided p of no difference, name of the test)."""
    if binary:
        better, worse = int((d_I > 0).sum()), int((d_I < 0).sum())
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
        return p, f"McNemar exact ({better} items better, {worse} worse)"
    if len(part_G) <= SIGN_FLIP_UP_TO:
        exact = "exact" if len(part_G) <= 17 else "sampled"
        return sign_flip(part_G), f"{exact} sign-flip of paired differences"
    p = float(2 * stats.t.sf(abs(estimate) / se, df)) if se > 0 else None
    return p, "paired t"
