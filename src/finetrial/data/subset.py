"""Frozen stratified subsets of an evaluation set."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import Field

from finetrial.errors import UserError, nearest
from finetrial.records import Config, Example, Task
from finetrial.seeds import derive

_Item = TypeVar("_Item", Example, Task)


class SubsetConfig(Config):
    """Part of a set, each stratum in its proportion."""

    n: int = Field(ge=1, description="items of the subset")
    by: str = Field(default="", description="fact of the items that names their stratum; empty for no strata")


def stratified(items: Sequence[_Item], config: SubsetConfig, place: str) -> tuple[tuple[_Item, ...], dict[str, Any]]:
    """`config.n` of the items, and facts about the choice.

    Every stratum gets its share of n, rounded by largest remainders. Within a stratum items rank by a hash of their
    id, which depends on nothing else: the subset is the same at every launch, and another item moves at most one.

    Facts, in JSON types: `n`, `of`, `by`, `strata` (value -> [taken, of]), `left_out` (strata that got nothing),
    `design_effect` (Kish 1965: n Σ w² / (Σ w)² of the weights w = N_h / n_h that would make the subset's mean that of
    the full set; 1 where shares are exact) and `variance_against_full` (that times N / n: by how much the variance of a
    mean over items exceeds the full set's).

    Raises:
        UserError: there are too few items, or no item has the fact (`place` names the suite).
    """
    if config.n > len(items):
        raise UserError(f"{place}: subset.n is {config.n}, but there are only {len(items)} items")
    strata: dict[str, list[_Item]] = defaultdict(list)
    known = sorted({fact for item in items for fact in item.meta})
    if config.by and config.by not in known:
        raise UserError(
            f"{place}: subset.by: no item has a fact {config.by!r}{nearest(config.by, known)}; there are {known}"
        )
    for item in items:
        strata[str(item.meta.get(config.by, "(none)")) if config.by else "all"].append(item)
    sizes = {name: len(mine) for name, mine in sorted(strata.items())}
    taken = allotted(sizes, config.n)
    chosen = {
        item.id
        for name, mine in strata.items()
        for item in sorted(mine, key=lambda item: (derive(0, "suites/subset", item.id), item.id))[: taken[name]]
    }
    weights = [(count, sizes[name] / count) for name, count in taken.items() if count]
    total = sum(count * weight for count, weight in weights)
    effect = config.n * sum(count * weight**2 for count, weight in weights) / total**2
    facts = {
        "n": config.n,
        "of": len(items),
        "by": config.by or None,
        "strata": {name: [taken[name], size] for name, size in sizes.items()},
        "left_out": [name for name, count in taken.items() if not count],
        "design_effect": effect,
        "variance_against_full": effect * len(items) / config.n,
    }
    return tuple(item for item in items if item.id in chosen), facts


def allotted(sizes: dict[str, int], n: int) -> dict[str, int]:
    """Shares of n in proportion to sizes, whole, adding up to n (Hamilton's method; ties by name)."""
    everything = sum(sizes.values())
    taken = {name: n * size // everything for name, size in sizes.items()}
    rest = sorted(sizes, key=lambda name: (-(n * sizes[name] % everything), name))
    for name in rest[: n - sum(taken.values())]:
        taken[name] += 1
    return taken
