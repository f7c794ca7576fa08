"""What was kept and what was lost, from a campaign's outcomes: gathered here, printed and drawn elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from finetrial.analyze.changes import Change, change, comparable, pair
from finetrial.analyze.contrast import AnalysisConfig, Tradeoff
from finetrial.analyze.forgetting import (
    CategoryChange,
    Ends,
    ItemChange,
    Nested,
    category_changes,
    ends,
    item_changes,
    nested,
    small_subset,
)
from finetrial.analyze.metrics import known
from finetrial.analyze.prepare import read_arm
from finetrial.analyze.subsets import Subset
from finetrial.analyze.table import Dense, OutcomeTable
from finetrial.analyze.tradeoffs import Position, positions
from finetrial.campaign.contrasts import METRICS
from finetrial.campaign.items import ITEMS
from finetrial.campaign.settings import BASE

SHOWN = 12
"""Items of each list in `report.json` and at once on the page."""


GRADES = ("correct", "score", "reward", "exact_match", "acc", "nll")
"""What most suites are about, where neither their kind nor the campaign says."""


@dataclass(frozen=True)
class Asked:
    """What an item asks."""

    category: str | None
    prompt: str


@dataclass(frozen=True)
class Kept:
    """One condition against the base on one suite."""

    condition: str
    suite: str
    metric: str
    change: Change
    items: tuple[ItemChange, ...]
    """The largest gain first."""
    categories: tuple[CategoryChange, ...]
    subset: Subset | None
    """What 16 random items would have shown."""
    n_left_out: int
    """Items that one of the two lacks."""

    @property
    def gains(self) -> list[ItemChange]:
        """Items that are better than the base's, the largest gain first."""
        return [item for item in self.items if item.change > 0]

    @property
    def drops(self) -> list[ItemChange]:
        """Items that are worse, the largest drop first; ties by name."""
        return sorted((item for item in self.items if item.change < 0), key=lambda item: (item.change, item.item))


@dataclass(frozen=True)
class Room:
    """How close a condition is to the ends of a metric's range on a suite."""

    condition: str
    suite: str
    metric: str
    ends: Ends


@dataclass(frozen=True)
class Within:
    """A condition on a suite and on a larger one that holds it."""

    condition: str
    metric: str
    nested: Nested


@dataclass(frozen=True)
class Traded:
    """A declared trade-off and where everything stands in it."""

    tradeoff: Tradeoff
    positions: tuple[Position, ...]
    lacking: tuple[str, ...]
    """Conditions without outcomes on all of its suites."""


@dataclass(frozen=True)
class Forgetting:
    """Everything of the section."""

    kept: tuple[Kept, ...]
    room: tuple[Room, ...]
    within: tuple[Within, ...]
    traded: tuple[Traded, ...]
    asked: Mapping[tuple[str, str], Asked]
    """(suite, item) -> what it asks; empty where the campaign did not write it down."""
    level: float

    def of(self, suite: str) -> list[Kept]:
        """Conditions on one suite."""
        return [one for one in self.kept if one.suite == suite]

    @property
    def suites(self) -> list[str]:
        """Suites with changes, in order."""
        return list(dict.fromkeys(one.suite for one in self.kept))


def gather(
    table: OutcomeTable,
    manifest: Mapping[str, Any],
    conditions: Sequence[str],
    suites: Sequence[str],
    asked: Mapping[tuple[str, str], Asked],
) -> Forgetting:
    """Compare every condition with the base on every suite, in the suite's own metric.

    Args:
        table: outcomes.
        manifest: the campaign's.
        conditions: in order; the base is skipped.
        suites: in order, without snapshots.
        asked: `read_asked`.
    """
    spec = manifest.get("spec", {})
    config = AnalysisConfig.model_validate(spec.get("analysis", {}))
    level, primary = 1 - config.alpha, spec.get("campaign", {}).get("primary_metric") or ""
    trained = [name for name in conditions if name != BASE]
    kept: list[Kept] = []
    room: list[Room] = []
    within: list[Within] = []
    metrics = {suite: main_metric(table, suite, manifest.get("suites", {}).get(suite, {}), primary) for suite in suites}
    for suite, metric in metrics.items():
        fact = known(metric) if metric else None
        if metric is None or fact is None:
            continue
        categories = {item: one.category for (of, item), one in asked.items() if of == suite and one.category}
        for name in conditions:
            dense = arm(table, name, suite, metric)
            found = None if dense is None else ends(dense, fact)
            if found is not None:
                room.append(Room(name, suite, metric, found))
        base = arm(table, BASE, suite, metric)
        for name in trained:
            mine = arm(table, name, suite, metric)
            if base is None or mine is None or not comparable(mine, base):
                continue
            matched = pair(mine, base, fact.better)
            if matched is not None:
                parts = category_changes(matched, categories, fact.better, config.alpha)
                kept.append(
                    Kept(
                        condition=name,
                        suite=suite,
                        metric=metric,
                        change=change(matched, level),
                        items=tuple(item_changes(matched, fact.better, level)),
                        categories=tuple(parts) if len(parts) > 1 else (),
                        subset=small_subset(matched, config.alpha),
                        n_left_out=matched.n_left_out,
                    )
                )
    for metric in dict.fromkeys(metric for metric in metrics.values() if metric is not None):
        within += _within(table, trained, [suite for suite in suites if metrics[suite] == metric], metric, level)
    traded = [_traded(table, declared, trained, level) for declared in config.tradeoffs]
    return Forgetting(tuple(kept), tuple(room), tuple(within), tuple(traded), asked, level)


def arm(table: OutcomeTable, condition: str, suite: str, metric: str) -> Dense | None:
    """Outcomes, or None where there are none; `pass@k` from `correct`."""
    source = "correct" if metric.startswith("pass@") and metric not in table.metrics else metric
    return read_arm(table, condition, suite, metric) if table.has(condition, suite, source) else None


def main_metric(table: OutcomeTable, suite: str, facts: Mapping[str, Any], primary: str) -> str | None:
    """What a suite is about: the first metric of its kind, else the campaign's primary one, else what grades it."""
    named = [metric for metric in table.metrics if any(table.has(c, suite, metric) for c in table.conditions)]
    wanted = [*METRICS.get(facts.get("kind", ""), ())[:1], primary, *GRADES, *named]
    return next((metric for metric in wanted if metric in named and known(metric)), None)


def _within(
    table: OutcomeTable, trained: Iterable[str], suites: Sequence[str], metric: str, level: float
) -> list[Within]:
    fact = known(metric)
    assert fact is not None
    found: list[Within] = []
    for name in trained:
        arms = {suite: (arm(table, name, suite, metric), arm(table, BASE, suite, metric)) for suite in suites}
        both = {s: (a, b) for s, (a, b) in arms.items() if a is not None and b is not None and comparable(a, b)}
        found += [Within(name, metric, one) for one in nested(both, fact.better, level)]
    return found


def _traded(table: OutcomeTable, declared: Tradeoff, trained: Sequence[str], level: float) -> Traded:
    def better(metric: str) -> Any:
        fact = known(metric)
        assert fact is not None  # the spec admits known metrics only
        return fact.better

    names = [name for name in trained if name != declared.baseline]
    placed = positions(declared, names, lambda c, s, m: arm(table, c, s, m), better, level)
    there = {position.condition for position in placed}
    return Traded(declared, tuple(placed), tuple(name for name in names if name not in there))


def read_asked(folder: Path) -> dict[tuple[str, str], Asked]:
    """(suite, item) -> what it asks, from the campaign's `items.parquet`; empty where there is none."""
    path = folder / ITEMS
    if not path.is_file():
        return {}
    rows = pq.read_table(path, columns=["suite", "item", "category", "prompt"]).to_pylist()
    return {(row["suite"], row["item"]): Asked(row["category"], row["prompt"]) for row in rows}


def facts(found: Forgetting | None) -> dict[str, Any] | None:
    """The section for machines: lists of items cut to the 12 largest gains and drops."""
    if found is None:
        return None
    return {
        "interval_level": found.level,
        "note": "intervals are exploratory: corrected over the categories of a suite where they say so, else not",
        "changes": [
            {
                "condition": one.condition,
                "suite": one.suite,
                "metric": one.metric,
                **asdict(one.change),
                "items_better": len(one.gains),
                "items_worse": len(one.drops),
                "items_left_out": one.n_left_out,
                "gains": [asdict(item) for item in one.gains[:SHOWN]],
                "drops": [asdict(item) for item in one.drops[:SHOWN]],
                "categories": [asdict(part) for part in one.categories],
                "random_subset": None if one.subset is None else asdict(one.subset),
            }
            for one in found.kept
        ],
        "room": [
            {"condition": one.condition, "suite": one.suite, "metric": one.metric, **asdict(one.ends)}
            | {"cannot_gain": one.ends.cannot_gain, "cannot_lose": one.ends.cannot_lose}
            for one in found.room
        ],
        "subsets": [{"condition": one.condition, "metric": one.metric, **asdict(one.nested)} for one in found.within],
        "tradeoffs": [
            {
                "title": one.tradeoff.name,
                **one.tradeoff.model_dump(mode="json", include={"x", "y", "baseline"}),
                "positions": [asdict(position) | {"optimal": position.optimal} for position in one.positions],
                "lacking": list(one.lacking),
            }
            for one in found.traded
        ],
    }
