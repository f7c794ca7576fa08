"""Test sets, frozen before any selection, and the leak guard, which is run again for every selection.

A group (task) that gives a row to a test set leaves the training pool whole. Groups that share a row of identical
content count as one. Each such cluster belongs to one test set only, unless `exclusive_groups` is switched off.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from finetrial.data.score import ScoreTable
from finetrial.data.select import draw_order
from finetrial.errors import LeakError, UserError
from finetrial.identity import digest
from finetrial.records import Config, Example


class HoldoutConfig(Config):
    """`[split.test_sets.NAME]`: one test set."""

    kind: Literal["gold", "random", "low_quality"] = Field(
        description="gold, low_quality: drawn from the best and worst rows by composite of those that pass the gate; "
        "random: drawn from all other rows, solved or not"
    )
    n: int = Field(default=200, ge=1, description="rows")
    quantile: float = Field(
        default=0.1, gt=0, le=0.5, description="share of the ranked rows that counts as best or worst"
    )


class SplitConfig(Config):
    """`[split]`: the test sets drawn from the pool."""

    seed: int = Field(default=0, description="names the draw; test sets are the same for all conditions and seeds")
    test_sets: dict[str, HoldoutConfig] = Field(
        default_factory=lambda: {
            "gold": HoldoutConfig(kind="gold"),
            "random": HoldoutConfig(kind="random"),
            "low_quality": HoldoutConfig(kind="low_quality"),
        },
        description="name -> test set",
    )
    exclusive_groups: bool = Field(default=True, description="no group gives rows to two test sets")

    @field_validator("test_sets")
    @classmethod
    def _named(cls, test_sets: dict[str, HoldoutConfig]) -> dict[str, HoldoutConfig]:
        if not test_sets:
            raise ValueError("no test set: without one nothing is held out and nothing can be judged")
        return test_sets

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the test sets."""
        return tuple(self.test_sets)


@dataclass(frozen=True)
class Splits:
    """A pool divided into test sets, training rows, and rows held out because their group is tested."""

    test_sets: dict[str, tuple[str, ...]]
    """Name -> ids, sorted."""
    training_ids: tuple[str, ...]
    """Sorted."""
    held_out_ids: tuple[str, ...]
    """Sorted; every row that is not for training: the test sets and the rest of their groups."""
    facts: dict[str, Any]
    contents: Mapping[str, str]
    """Id -> content hash, of every row."""

    @cached_property
    def key(self) -> str:
        """Digest of which row, with which content, is on which side."""
        sides = {**self.test_sets, "\x1ftraining": self.training_ids}
        return digest({name: [[row, self.contents[row]] for row in ids] for name, ids in sides.items()})


@dataclass(frozen=True)
class GuardReport:
    """Proof that a comparison was made and found nothing shared. It cannot be built from zero comparisons."""

    training_rows: int
    test_rows: dict[str, int]
    """Test set -> rows."""
    compared: dict[str, int] = field(default_factory=dict)
    """ids, groups, contents -> pairs (training, test) of distinct values compared."""

    def __post_init__(self) -> None:
        counts = [self.training_rows, len(self.test_rows), *self.test_rows.values()]
        counts += [self.compared.get(kind, 0) for kind in KINDS]
        if min(counts) < 1:
            raise LeakError(f"the leak guard compared nothing: {self}")

    def facts(self) -> dict[str, Any]:
        """JSON types."""
        return {"training_rows": self.training_rows, "test_rows": self.test_rows, "compared": self.compared}


KINDS = ("ids", "groups", "contents")


def freeze(table: ScoreTable, examples: Sequence[Example], config: SplitConfig) -> Splits:
    """Draw the test sets and hold out their groups. The result does not depend on the order of the rows.

    Test sets are drawn one after another, those with the fewest candidates first; random draws from what gold and
    low_quality leave. No content is in two test rows.

    Raises:
        UserError: fewer candidates than a test set asks for, or nothing left for training.
        ValueError: table and examples do not belong together, or ids are not unique.
    """
    if table.ids != tuple(example.id for example in examples):
        raise ValueError("table and examples do not describe the same rows in the same order")
    if len(set(table.ids)) != len(table):
        raise ValueError("ids are not unique")
    cluster = _clusters(table.groups, table.content_hashes)
    candidates = {name: _test_candidates(table, test_set) for name, test_set in config.test_sets.items()}
    owner: dict[str, str] = {}
    used_contents: set[str] = set()
    used_rows: set[int] = set()
    test_rows: dict[str, list[int]] = {}
    for name in sorted(
        config.test_sets, key=lambda one: (config.test_sets[one].kind == "random", len(candidates[one]), one)
    ):
        wanted = config.test_sets[name].n
        drawn = draw_order(config.seed, f"split/{name}", (table.ids[place] for place in candidates[name]))
        chosen: list[int] = []
        blocked = 0
        for place in sorted(candidates[name], key=lambda place: drawn[table.ids[place]]):
            if len(chosen) == wanted:
                break
            if place in used_rows or table.content_hashes[place] in used_contents:
                continue
            if config.exclusive_groups and owner.get(cluster[place], name) != name:
                blocked += 1
                continue
            owner.setdefault(cluster[place], name)
            used_contents.add(table.content_hashes[place])
            used_rows.add(place)
            chosen.append(place)
        if len(chosen) < wanted:
            raise UserError(_too_few(name, config.test_sets[name], table, len(candidates[name]), len(chosen), blocked))
        test_rows[name] = chosen
    training = [place for place in range(len(table)) if cluster[place] not in owner]
    if not training:
        raise UserError(
            f"split: the test sets take {sum(map(len, test_rows.values()))} rows, and their groups hold all "
            f"{len(table)} rows of the pool; nothing is left for training"
        )
    return _splits(table, config, test_rows, training, candidates)


def _splits(
    table: ScoreTable,
    config: SplitConfig,
    test_rows: Mapping[str, list[int]],
    training: list[int],
    candidates: Mapping[str, list[int]],
) -> Splits:
    composite = table.columns["composite"]
    ids = {name: tuple(sorted(table.ids[place] for place in test_rows[name])) for name in config.test_sets}
    training_ids = tuple(sorted(table.ids[place] for place in training))
    held_out = tuple(sorted(set(table.ids).difference(training_ids)))
    facts = {
        "rows": len(table),
        "groups": len(set(table.groups)),
        "training_rows": len(training),
        "training_groups": len({table.groups[place] for place in training}),
        "held_out_rows": len(held_out),
        "test_sets": {
            name: {
                "kind": config.test_sets[name].kind,
                "rows": len(rows),
                "groups": len({table.groups[place] for place in rows}),
                "candidates": len(candidates[name]),
                "resolved": sum(table.resolved[place] is True for place in rows),
                "tokens": int(table.tokens[rows].sum()),
                "composite": _mean(composite[rows]),
            }
            for name, rows in ((name, test_rows[name]) for name in config.test_sets)
        },
    }
    return Splits(ids, training_ids, held_out, facts, dict(zip(table.ids, table.content_hashes, strict=True)))


def _test_candidates(table: ScoreTable, test_set: HoldoutConfig) -> list[int]:
    if test_set.kind == "random":
        return list(range(len(table)))
    composite, passed = table.columns["composite"], table.passed
    ranked = [place for place in range(len(table)) if passed[place] and not math.isnan(composite[place])]
    sign = -1 if test_set.kind == "gold" else 1
    ranked.sort(key=lambda place: (sign * composite[place], table.content_hashes[place], table.ids[place]))
    return ranked[: math.ceil(test_set.quantile * len(ranked))]


def held_out(pool: Sequence[Example], tested: Iterable[Example]) -> tuple[str, ...]:
    """Ids of the rows that may not be trained on, sorted.

    A row is held out if it shares id, group or content with a tested row, and with it every row of its cluster
    (groups joined by identical content), as `freeze` does. The pool may be another than the one that was frozen, or
    have grown since.
    """
    theirs = _values(list(tested))
    cluster = _clusters([example.group for example in pool], [example.content_hash for example in pool])
    touched = {
        cluster[place]
        for place, example in enumerate(pool)
        if example.id in theirs["ids"]
        or example.group in theirs["groups"]
        or example.content_hash in theirs["contents"]
    }
    return tuple(sorted(example.id for place, example in enumerate(pool) if cluster[place] in touched))


def _clusters(groups: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Each row's cluster: groups joined by identical content, named by the first of them."""
    parent: dict[str, str] = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    first_with: dict[str, str] = {}
    for group, content in zip(groups, contents, strict=True):
        one, other = root(group), root(first_with.setdefault(content, group))
        parent[max(one, other)] = min(one, other)
    return [root(group) for group in groups]


def _too_few(name: str, test_set: HoldoutConfig, table: ScoreTable, candidates: int, found: int, blocked: int) -> str:
    if test_set.kind == "random":
        source = f"{candidates} rows of the pool"
    else:
        end = "best" if test_set.kind == "gold" else "worst"
        source = f"{candidates} rows, the {end} {test_set.quantile:.0%} of those that pass the gate with a composite"
    told = f"split.test_sets.{name} asks for {test_set.n} rows; {found} of {source} are free"
    if blocked:
        told += f" ({blocked} belong to groups of another test set; exclusive_groups = false lets them share)"
    reasons = Counter(reason for row in table.gate for reason in row)
    if test_set.kind != "random" and reasons:
        told += "; the gate refuses " + ", ".join(f"{rows} rows: {reason}" for reason, rows in sorted(reasons.items()))
        if "resolution unknown" in reasons:
            told += " (score.require_resolved = false lets rows pass whose source does not tell)"
    return told


def _mean(values: np.ndarray) -> float | None:
    present = np.sort(values[~np.isnan(values)])
    return float(present.mean()) if len(present) else None


def guard(
    selection: Iterable[Example] | None,
    test_sets: Mapping[str, Iterable[Example] | None],
    training_ids: Collection[str] | None = None,
) -> GuardReport:
    """Compare what a run trains on with everything it is tested on. Fails closed.

    Args:
        selection: the rows a run trains on.
        test_sets: name -> rows of each test set.
        training_ids: where given, the ids that may be trained on; any other id is refused.

    Raises:
        LeakError: an id, group or content is on both sides (the first few are named); the selection, a test set
            or `training_ids` is empty or absent; a row has no id or no group; an id is not for training.
    """
    training = _readable("the selection", selection)
    if not test_sets:
        raise LeakError("no test set was given: the leak guard cannot compare anything")
    tested = {name: _readable(f"test set {name}", rows) for name, rows in test_sets.items()}
    if training_ids is not None:
        if not training_ids:
            raise LeakError("the list of training ids is empty")
        unknown = sorted({example.id for example in training}.difference(training_ids))
        if unknown:
            raise LeakError(f"{len(unknown)} selected ids are not for training: {_few(unknown)}")
    ours = _values(training)
    compared: Counter[str] = Counter()
    leaks: list[str] = []
    for name, rows in tested.items():
        theirs = _values(rows)
        for kind in KINDS:
            compared[kind] += len(ours[kind]) * len(theirs[kind])
            shared = sorted(ours[kind] & theirs[kind])
            if shared:
                leaks.append(f"{len(shared)} {kind} of test set {name} are trained on: {_few(shared)}")
    if leaks:
        raise LeakError("; ".join(leaks))
    return GuardReport(len(training), {name: len(rows) for name, rows in tested.items()}, dict(compared))


def _readable(name: str, rows: Iterable[Example] | None) -> list[Example]:
    found = None if rows is None else list(rows)
    if not found:
        raise LeakError(f"{name} is {'absent' if found is None else 'empty'}: the leak guard cannot compare anything")
    for example in found:
        if not isinstance(example, Example) or not example.id or not example.group:
            raise LeakError(f"{name} holds a row without id or group: {str(example)[:80]}")
    return found


def _values(rows: Sequence[Example]) -> dict[str, set[str]]:
    return {
        "ids": {example.id for example in rows},
        "groups": {example.group for example in rows},
        "contents": {example.content_hash for example in rows},
    }


def _few(values: Sequence[str]) -> str:
    return ", ".join(values[:3]) + (", ..." if len(values) > 3 else "")
