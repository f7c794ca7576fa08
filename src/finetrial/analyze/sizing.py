"""One answer to "how large must it be?": what designs can detect, the cheapest that suffices, samples per item."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetrial.analyze.permute import attainable_p
from finetrial.analyze.power import Design, Prices, Variances, cheapest, mde, optimal_samples, power

SEEDS = (3, 4, 5, 6, 8, 10, 12, 16, 24, 32)


@dataclass(frozen=True)
class Goal:
    """What a design must reach."""

    effect: float | None = None
    """True improvement that should be confirmed; None asks only what can be detected."""
    target: float = 0.8
    """Chance of CONFIRMED."""
    alpha: float = 0.05
    margin: float = 0.0
    contrasts: int = 1
    """Declared contrasts that share alpha (Holm)."""


@dataclass(frozen=True)
class Option:
    """One design and what it can do."""

    seeds: int
    items: int
    samples: int
    mde: float | None
    """Improvement confirmed with the target's probability; None where no improvement is."""
    power: float | None
    """At the goal's effect; None without one."""
    attainable_p: float
    """Least two-sided p that permuting the seeds can reach."""
    cost: float


@dataclass(frozen=True)
class Sizing:
    """The answer; `as_dict` gives JSON types."""

    goal: Goal
    variances: Variances
    paired: bool
    frozen: bool
    options: tuple[Option, ...]
    cheapest: Option | None
    """None without an effect, or where no design within the limits reaches it."""
    optimal_samples: float | None
    """Samples per item of least variance for the money, at the cheapest (else the first) design's seeds."""
    floor: float
    """Standard deviation of the difference that remains at the largest number of seeds with endless items."""
    sentences: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def size(
    v: Variances,
    goal: Goal,
    prices: Prices,
    *,
    seeds: Sequence[int] = SEEDS,
    items: int = 200,
    samples: int = 1,
    paired: bool = False,
    frozen: bool = False,
    max_seeds: int = 64,
    max_items: int = 5000,
) -> Sizing:
    """Explore designs around (seeds, items, samples) and find the cheapest that reaches the goal."""
    designs = [Design(s, items, samples, paired, frozen) for s in seeds]
    options = tuple(_option(design, v, goal, prices) for design in designs)
    best = None
    if goal.effect is not None:
        best = cheapest(
            v,
            goal.effect,
            prices,
            target=goal.target,
            alpha=goal.alpha,
            margin=goal.margin,
            contrasts=goal.contrasts,
            max_seeds=max_seeds,
            max_items=max_items,
            paired=paired,
            frozen=frozen,
        )
    chosen = best.seeds if best else designs[0].seeds
    found = None if best is None else _option(best, v, goal, prices)
    sentences = _sentences(options, goal, found, prices, max_seeds, max_items)
    floor = math.sqrt((1 if frozen else 2) * v.seed / designs[-1].seeds)
    return Sizing(goal, v, paired, frozen, options, found, optimal_samples(chosen, v, prices), floor, sentences)


def _option(design: Design, v: Variances, goal: Goal, prices: Prices) -> Option:
    shared = {"alpha": goal.alpha, "margin": goal.margin, "contrasts": goal.contrasts}
    detectable = mde(design, v, target=goal.target, **shared)
    return Option(
        seeds=design.seeds,
        items=design.items,
        samples=design.samples,
        mde=detectable if math.isfinite(detectable) else None,
        power=None if goal.effect is None else power(design, v, goal.effect, **shared),
        attainable_p=attainable_p(design.seeds, 0 if design.frozen else design.seeds, design.paired),
        cost=prices.of(design),
    )


def _sentences(
    options: Sequence[Option], goal: Goal, best: Option | None, prices: Prices, max_seeds: int, max_items: int
) -> tuple[str, ...]:
    level = goal.alpha / goal.contrasts
    lines = []
    short = [option for option in options if option.attainable_p > level]
    if short:
        which = " and ".join(str(option.seeds) for option in short)
        lines.append(
            f"with {which} seeds per condition a permutation of the seeds can never fall below p = "
            f"{short[-1].attainable_p:.2g}, above the level {level:.2g}: such verdicts rest on roughly "
            "normal seed effects"
        )
    if goal.effect is None:
        return tuple(lines)
    if goal.effect <= goal.margin:
        lines.append(f"an effect of {goal.effect:g} is not above the margin {goal.margin:g}: it can never be CONFIRMED")
    if best is None:
        lines.append(
            f"no design up to {max_seeds} seeds and {max_items} items confirms an effect of {goal.effect:g} with "
            f"probability {goal.target:g}"
        )
    else:
        lines.append(
            f"cheapest: {best.seeds} seeds per condition, {best.items} items, {best.samples} samples per item, cost "
            f"{best.cost:.4g} (a run {prices.run:g}, an item {prices.item:g}, a sample {prices.sample:g}); power "
            f"{best.power:.2f} at an effect of {goal.effect:g}"
        )
    return tuple(lines)
