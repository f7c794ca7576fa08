"""Design before spending: what a design can detect, and the cheapest design that detects enough.

With σ²_seed between runs of a recipe, σ²_rp between items of the recipes' difference, σ²_sp of seed × item and σ²_w
between samples of one cell, S seeds per recipe, P items and K samples of each,

    Var(difference) = 2 σ²_seed / S + σ²_rp / P + 2 σ²_sp / (S P) + 2 σ²_w / (S P K)

(a frozen baseline has no seeds: every 2 becomes 1 and its own samples add σ²_w / (P K)). More items or samples never
pass the floor 2 σ²_seed / S. Power is the chance of CONFIRMED. `judge` compares with a critical value that itself
depends on the estimated variances; power is averaged over their distribution (scaled χ²), not taken at their mean.

Shapes: G grid points of the variances' distribution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from finetrial.analyze.components import Components
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.estimate import Estimate, critical_value, welch_df
from finetrial.analyze.prepare import prepare
from finetrial.analyze.table import OutcomeTable
from finetrial.analyze.verdict import MIN_SEEDS, skew_critical
from finetrial.errors import UserError

_POINTS = 14
"""Midpoint quantiles per estimated variance; power is then exact to about 0.003."""


@dataclass(frozen=True)
class Variances:
    """Variance components in squared units of the metric."""

    seed: float
    """Between runs of one recipe."""
    recipe_item: float = 0.0
    """Between items, of the two recipes' difference."""
    seed_item: float = 0.0
    """Of seed × item, sampling not included."""
    sampling: float = 0.0
    """Between samples of one cell."""

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if not (math.isfinite(value) and value >= 0)]
        if wrong:
            raise UserError(f"variance components must be numbers of at least 0: {', '.join(wrong)}")
        if not any(vars(self).values()):
            raise UserError("all variance components are 0: there is nothing to plan for")


@dataclass(frozen=True)
class Design:
    """Seeds per recipe, items, samples per item, and how the arms relate."""

    seeds: int
    items: int
    samples: int = 1
    paired: bool = False
    """Both recipes use the same seeds, and differences are taken seed by seed."""
    frozen: bool = False
    """The baseline is the frozen base, without seeds."""

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.items < 2 or self.samples < 1:
            raise UserError(
                f"a design needs at least 2 seeds, 2 items and 1 sample; got {self.seeds}, {self.items}, {self.samples}"
            )


@dataclass(frozen=True)
class Prices:
    """Cost of one run, of one item in one run, and of one sample of one item in one run, in any one currency."""

    run: float = 1.0
    item: float = 0.0
    sample: float = 1e-4

    def of(self, design: Design) -> float:
        """Cost of a contrast: every seed of both recipes (of one, against a frozen base)."""
        arms = 1 if design.frozen else 2
        return arms * design.seeds * (self.run + design.items * (self.item + design.samples * self.sample))


@dataclass(frozen=True)
class Pilot:
    """Variance components of a pilot, as estimated and at their upper confidence bound."""

    estimate: Variances
    upper: Variances
    confidence: float
    n_seeds: tuple[int, int]
    n_items: int
    n_samples: float
    warnings: tuple[str, ...]


def variance(design: Design, v: Variances) -> tuple[float, float]:
    """(part from seeds, part from items) of the variance of the difference."""
    s, p, k = design.seeds, design.items, design.samples
    one_arm = v.seed / s + v.seed_item / (s * p) + v.sampling / (s * p * k)
    if design.frozen:
        return one_arm, v.recipe_item / p + v.sampling / (p * k)
    return 2 * one_arm, v.recipe_item / p


def power(
    design: Design, v: Variances, effect: float, *, alpha: float = 0.05, margin: float = 0.0, contrasts: int = 1
) -> float:
    """Chance that `judge` confirms a true improvement of `effect` (oriented, raw units).

    Args:
        design: what would be run.
        v: variance components.
        effect: true improvement.
        alpha: two-sided error rate of the family.
        margin: smallest effect to act on; CONFIRMED needs the interval above it.
        contrasts: declared contrasts of the family, each then at alpha / contrasts (Holm's first step).
    """
    if design.seeds < MIN_SEEDS:
        return 0.0
    threshold_G = _thresholds(design, v, alpha / contrasts)
    sd = math.sqrt(sum(variance(design, v)))
    return float(special.ndtr((effect - margin) / sd - threshold_G).mean())


def mde(
    design: Design, v: Variances, *, target: float = 0.8, alpha: float = 0.05, margin: float = 0.0, contrasts: int = 1
) -> float:
    """Minimum detectable effect: the true improvement that is confirmed with probability `target`.

    Infinite where fewer than three seeds carry no verdict.
    """
    if not 0 < target < 1:
        raise UserError(f"power {target}: expected a number between 0 and 1")
    if design.seeds < MIN_SEEDS:
        return math.inf
    threshold_G = _thresholds(design, v, alpha / contrasts)
    low, high = float(threshold_G.min()) - 10, float(threshold_G.max()) + 10
    x = optimize.root_scalar(
        lambda x: float(special.ndtr(x - threshold_G).mean()) - target, bracket=(low, high), xtol=1e-6
    ).root
    return margin + float(x) * math.sqrt(sum(variance(design, v)))


@lru_cache(maxsize=4096)
def _thresholds(design: Design, v: Variances, level: float) -> np.ndarray:
    """What the estimate must exceed, in true standard errors, over the distribution of the estimated variances."""
    v_seed, v_rest = variance(design, v)
    noise = (v.seed_item + v.sampling / design.samples) / (design.seeds * design.items) * (1 if design.frozen else 2)
    quantile = (np.arange(_POINTS) + 0.5) / _POINTS
    df, df_item = design.seeds - 1.0, design.items - 1.0
    scale_seed, scale_item = (stats.chi2.ppf(quantile, nu) / nu for nu in (df, df_item))
    item_G = (v_rest + noise) * scale_item
    if design.paired or design.frozen:
        seed_G, item_G = (g.ravel() for g in np.meshgrid(v_seed * scale_seed, item_G))
        df_seed = np.full(seed_G.shape, df)
    else:
        half = v_seed / 2 * scale_seed
        a_G, b_G, item_G = (g.ravel() for g in np.meshgrid(half, half, item_G))
        seed_G, df_seed = a_G + b_G, welch_df(a_G, b_G, design.seeds, design.seeds)
    # As in `estimate`: V = max(V_seed + V_item - V_both, V_seed, V_item), with V_both at its mean (it has most df).
    rest_G = np.maximum(np.maximum(item_G - noise, item_G - seed_G), 0.0)
    e = Estimate(np.zeros_like(seed_G), seed_G, rest_G, df_seed, np.full(seed_G.shape, df_item))
    critical_G = critical_value(level, e)
    if design.frozen:
        one = np.ones(())
        seeds_alone = Estimate(np.zeros(()), one, 0 * one, np.asarray(df), np.asarray(df_item))
        skewed = skew_critical(level, seeds_alone, design.seeds, 0) - float(critical_value(level, seeds_alone))
        critical_G = critical_G + skewed * seed_G / (seed_G + rest_G)
    return critical_G * np.sqrt((seed_G + rest_G) / (v_seed + v_rest))


def optimal_samples(seeds: int, v: Variances, prices: Prices) -> float | None:
    """Samples per item that give the least variance for the money: √(c_item / c_sample · 2σ²_w / (S σ²_rp + 2σ²_sp)).

    None where it is not defined: samples cost nothing, or items add no variance.
    """
    spread = seeds * v.recipe_item + 2 * v.seed_item
    if prices.sample == 0 or spread == 0:
        return None
    return math.sqrt(prices.item / prices.sample * 2 * v.sampling / spread)


def cheapest(
    v: Variances,
    effect: float,
    prices: Prices,
    *,
    target: float = 0.8,
    alpha: float = 0.05,
    margin: float = 0.0,
    contrasts: int = 1,
    max_seeds: int = 64,
    max_items: int = 5000,
    samples: Sequence[int] = (1, 2, 4, 8, 16, 32),
    paired: bool = False,
    frozen: bool = False,
) -> Design | None:
    """The design of least cost that confirms `effect` with probability `target`; None where no allowed one does.

    Searches all numbers of seeds and of samples, and for each the fewest items that suffice. Of equal costs, the one
    with fewer seeds.
    """
    best: Design | None = None
    for seeds in range(MIN_SEEDS, max_seeds + 1):
        if best is not None and prices.of(Design(seeds, 2, min(samples), paired, frozen)) >= prices.of(best):
            break
        for k in samples:
            most = Design(seeds, max_items, k, paired, frozen)
            # Within one number of seeds and samples only designs that cost less than the best are of interest.
            if best is not None:
                per_item = prices.of(replace(most, items=3)) - prices.of(replace(most, items=2))
                room = prices.of(best) - prices.of(replace(most, items=2))
                affordable = max_items if per_item == 0 else 2 + math.ceil(room / per_item)
                most = replace(most, items=max(2, min(max_items, affordable)))
            found = _fewest_items(most, v, effect, target, alpha, margin, contrasts)
            if found is not None and (best is None or prices.of(found) < prices.of(best)):
                best = found
    return best


def _fewest_items(
    most: Design, v: Variances, effect: float, target: float, alpha: float, margin: float, contrasts: int
) -> Design | None:
    def enough(items: int) -> bool:
        design = replace(most, items=items)
        return power(design, v, effect, alpha=alpha, margin=margin, contrasts=contrasts) >= target

    if not enough(most.items):
        return None
    low, high = 1, most.items
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return replace(most, items=high)


def pilot(
    table: OutcomeTable, contrast: Contrast, config: AnalysisConfig, primary_metric: str, confidence: float = 0.8
) -> Pilot:
    """Variance components of a pilot contrast, with one-sided upper confidence bounds.

    A pilot of three seeds estimates σ²_seed within a factor of several, so plans should rest on the bound (Browne
    1995, "On the use of a pilot sample for sample size determination", recommends 80 %).

    Raises:
        UserError: the pilot has fewer than two runs of every recipe, or what `prepare` refuses.
    """
    p = prepare(table, contrast, config, primary_metric)
    if p.components is None or p.components.seed is None or p.components.interaction is None:
        raise UserError(
            f"pilot '{p.name}': {p.problem or p.invalid or 'no recipe has two runs'}; the variance between "
            "runs cannot be estimated"
        )
    n_samples = _samples_per_cell(table, contrast, p.metric)
    df = sum(n - 1 for n in p.n_seeds if n > 1)
    estimate, upper = _bounded(p.components, df, p.n_items, n_samples, confidence)
    warnings = [*p.warnings]
    if p.components.truncated:
        warnings.append(f"components estimated below 0 and taken as 0: {', '.join(p.components.truncated)}")
    if df < 8:
        warnings.append(
            f"{df} degrees of freedom measure the variance between runs: the plan rests on its upper "
            f"{confidence:.0%} bound"
        )
    return Pilot(estimate, upper, confidence, p.n_seeds, p.n_items, n_samples, tuple(warnings))


def _bounded(c: Components, df: int, items: int, n_samples: float, confidence: float) -> tuple[Variances, Variances]:
    """(point estimates, upper bounds) of the components; the moment of the runs' means is a scaled χ²."""
    seed, both, sampling = float(c.seed or 0.0), float(c.interaction or 0.0), float(c.sampling or 0.0)
    within = min(sampling / n_samples, both)
    recipe_item = float(c.recipe_item or 0.0)
    estimate = Variances(seed, recipe_item, both - within, within * n_samples)
    of_means = (seed + both / items) * df / stats.chi2.ppf(1 - confidence, df)
    of_items = (recipe_item + both) * (items - 1) / stats.chi2.ppf(1 - confidence, items - 1) if items > 1 else 0.0
    return estimate, replace(
        estimate, seed=float(max(of_means - both / items, 0.0)), recipe_item=float(max(of_items - both, 0.0))
    )


def _samples_per_cell(table: OutcomeTable, contrast: Contrast, metric: str) -> float:
    counts = [table.dense(name, contrast.suite, metric).count_SI for name in (contrast.candidate, contrast.baseline)]
    return float(np.mean([count[count > 0].mean() for count in counts if (count > 0).any()] or [1.0]))


def runs_per_arm(effect: float, sd: float, alpha: float = 0.05, target: float = 0.8) -> int | None:
    """Runs per arm at which a two-sample t test on run means detects `effect` with probability `target`.

    Exact for normal run means (noncentral t). None where it would take more than a million, or effect is 0.
    """
    if effect == 0 or not sd > 0:
        return None

    def reached(n: int) -> bool:
        df, shift = 2 * (n - 1), abs(effect) / sd * math.sqrt(n / 2)
        critical = stats.t.isf(alpha / 2, df)
        # The far tail adds nothing that matters, and scipy's noncentral t overflows there.
        return bool(shift - critical > 6) or bool(stats.nct.sf(critical, df, shift) >= target)

    high = 2
    while not reached(high):
        high *= 2
        if high > 2**20:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high if not (low >= 2 and reached(low)) else low


def observations_per_arm(p1: float, p2: float, alpha: float = 0.05, target: float = 0.8) -> int | None:
    """Independent yes-or-no observations per arm that tell proportions p1 and p2 apart (normal approximation).

    n = (z_{α/2} √(2 p̄ q̄) + z_β √(p1 q1 + p2 q2))² / (p1 - p2)² (Fleiss 1981). Completions of one run are not
    independent observations: the figure is descriptive. None where the proportions are equal.
    """
    if p1 == p2:
        return None
    mean = (p1 + p2) / 2
    spread = stats.norm.isf(alpha / 2) * math.sqrt(2 * mean * (1 - mean))
    spread += stats.norm.isf(1 - target) * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    return math.ceil(spread**2 / (p1 - p2) ** 2)
