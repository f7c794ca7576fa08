"""Selections: which rows of a pool a condition trains on.

Draws are made by name: a row's place in a random order is a hash of (seed, id). A selection therefore depends
neither on the order of the pool nor on rows added to it elsewhere, and with one seed random-500 is part of
random-1000. Ties of a ranking are broken by content hash, then id.

Shapes: N rows of the pool.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from finetrial.data.score import ScoreTable
from finetrial.errors import LeakError, UserError
from finetrial.identity import digest
from finetrial.records import Config, Example
from finetrial.seeds import derive

Strategy = Literal["all", "top", "bottom", "longest", "random", "resolved_random", "token_matched_random"]

RANDOM = frozenset({"random", "resolved_random", "token_matched_random"})
GATED = frozenset({"top", "bottom", "longest", "resolved_random", "token_matched_random"})
CALIPER = 0.05
"""Token-matched rows are drawn within this share of the length they stand for, while there are any."""
TOKEN_TOLERANCE = 0.05
"""Largest deviation of the token total at which two selections still count as matched."""


class SelectionConfig(Config):
    """`[selection]`: how the rows of a condition are chosen."""

    strategy: Strategy = Field(
        default="all",
        description="all rows; top, bottom: by score; longest: by tokens; random: of all rows; resolved_random: of "
        "solved rows; token_matched_random: for each row of `match` a random row of nearly its length",
    )
    n: int | None = Field(default=None, ge=1, description="rows to select; not used by all")
    fraction: float | None = Field(
        default=None, gt=0, le=1, description="instead of n: share of the rows that could be selected, at least one"
    )
    by: str = Field(
        default="composite", description="column that top and bottom rank by: a dimension, an aggregate, turns"
    )
    without: str | None = Field(
        default=None,
        description="leave this dimension (or efficiency, style) out of the composite that ranks: an ablation",
    )
    per_group_cap: int | None = Field(default=None, ge=1, description="rows of one group (task) at most")
    gate: bool | None = Field(
        default=None,
        description="only rows that pass the gate of [score]; by default all strategies but all and random",
    )
    seed: int | Literal["run"] = Field(
        default="run",
        description="run: a random strategy draws anew for every training seed; a number fixes the subset",
    )
    match: str | None = Field(default=None, description="condition whose rows token_matched_random matches in length")

    @property
    def gated(self) -> bool:
        """Whether only rows that pass the gate are candidates."""
        return self.gate if self.gate is not None else self.strategy in GATED

    @property
    def sized(self) -> bool:
        """Whether it says how many rows."""
        return self.n is not None or self.fraction is not None

    @property
    def varies(self) -> bool:
        """Whether another training seed may select other rows."""
        return self.strategy in RANDOM and self.seed == "run"


@dataclass(frozen=True)
class Selection:
    """The rows of one condition (and seed), sorted by id whatever they were ranked by."""

    ids: tuple[str, ...]
    content_hashes: tuple[str, ...]
    groups: tuple[str, ...]
    tokens: tuple[int, ...]
    """Tokens of each row that fit the training context."""
    examples: tuple[Example, ...]
    facts: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """Digest of the set of (id, content hash): what training depends on, however the rows were found."""
        return digest([list(pair) for pair in zip(self.ids, self.content_hashes, strict=True)])


def select(
    table: ScoreTable,
    config: SelectionConfig,
    pool: Sequence[Example],
    exclude: Collection[str] | None,
    run_seed: int,
    tokens: Sequence[int],
    reference: Selection | None = None,
) -> Selection:
    """Select rows for training.

    Args:
        table: scores of the pool.
        pool: the N rows that were scored, in the same order.
        exclude: ids held out for testing; rows of their groups or with their content are left out too. None says
            that no test set is drawn from this pool; an empty collection is refused as a guard that fails open.
        run_seed: training seed, for `seed = "run"`.
        tokens: rendered length of each row.
        reference: the selection of `match`, for token_matched_random.

    Raises:
        LeakError: `exclude` is empty, or names a row that the pool does not have.
        UserError: a setting that does not fit the strategy, or fewer candidates than wanted (with the counts).
        ValueError: table, pool and tokens do not belong together.
    """
    if table.ids != tuple(example.id for example in pool) or len(tokens) != len(pool):
        raise ValueError("table, pool and tokens do not describe the same rows in the same order")
    _check(config, reference)
    seed = run_seed if config.seed == "run" else config.seed
    lengths = np.minimum(np.asarray(tokens, dtype=np.int64), table.max_length)
    candidates, excluded = _candidates(table, config, exclude)
    order = _order(table, config, candidates, seed, np.asarray(tokens))
    if config.strategy == "token_matched_random" and reference is not None:
        chosen = _matched(table, config, order, lengths, reference, excluded)
    else:
        chosen = _take(table, config, order, excluded)
    chosen.sort(key=lambda place: table.ids[place])
    facts = _facts(table, config, chosen, lengths, np.asarray(tokens)) | {
        "seed": seed if config.strategy in RANDOM else None,
        "candidates": len(candidates),
        "excluded": excluded,
    }
    if reference is not None and config.strategy == "token_matched_random":
        facts["token_ratio"] = facts["tokens"] / sum(reference.tokens)
    return Selection(
        ids=tuple(table.ids[place] for place in chosen),
        content_hashes=tuple(table.content_hashes[place] for place in chosen),
        groups=tuple(table.groups[place] for place in chosen),
        tokens=tuple(int(lengths[place]) for place in chosen),
        examples=tuple(pool[place] for place in chosen),
        facts=facts,
    )


def draw_order(seed: int, purpose: str, ids: Iterable[str]) -> dict[str, int]:
    """id -> its place in a random order, as a hash of (seed, purpose, id)."""
    return {name: derive(seed, purpose, name) for name in ids}


def _check(config: SelectionConfig, reference: Selection | None) -> None:
    strategy = config.strategy
    if config.n is not None and config.fraction is not None:
        raise UserError("selection: n and fraction both say how many rows; keep one of them")
    if strategy == "all" and config.sized:
        raise UserError("selection: strategy all takes every row and has no n (for n rows, say random) and no fraction")
    if strategy == "token_matched_random":
        if reference is None:
            raise UserError("selection: token_matched_random needs match, the condition whose tokens it matches")
        if config.fraction is not None:
            raise UserError(f"selection.fraction: token_matched_random takes as many rows as {config.match} has")
        if config.n not in (None, len(reference.ids)):
            raise UserError(f"selection.n is {config.n}, but {config.match} has {len(reference.ids)} rows to match")
    elif config.match is not None:
        raise UserError(f"selection.match is for token_matched_random; the strategy is {strategy}")
    elif strategy != "all" and not config.sized:
        raise UserError(f"selection: strategy {strategy} needs n, the number of rows, or fraction, a share of them")
    if strategy not in ("top", "bottom") and (config.by != "composite" or config.without is not None):
        raise UserError(f"selection.by and without rank for top and bottom; the strategy is {strategy}")


def _candidates(
    table: ScoreTable, config: SelectionConfig, exclude: Collection[str] | None
) -> tuple[list[int], dict[str, int]]:
    """Places of the rows that may be selected, and how many each setting leaves out (the first that applies)."""
    held_out = _held_out(table, exclude)
    passed = table.passed
    ranked = table.ranking(config.by, config.without) if config.strategy in ("top", "bottom") else None
    excluded: Counter[str] = Counter()
    candidates: list[int] = []
    for place in range(len(table)):
        if held_out[place]:
            excluded["test sets"] += 1
        elif config.gated and not passed[place]:
            excluded["gate"] += 1
        elif config.strategy == "resolved_random" and not table.resolved[place]:
            excluded["not resolved"] += 1
        elif ranked is not None and math.isnan(ranked[place]):
            excluded["score missing"] += 1
        else:
            candidates.append(place)
    return candidates, dict(sorted(excluded.items()))


def _held_out(table: ScoreTable, exclude: Collection[str] | None) -> list[bool]:
    if exclude is None:
        return [False] * len(table)
    if not exclude:
        raise LeakError("the list of held-out rows is empty: nothing would be kept out of training")
    held = set(exclude)
    unknown = sorted(held.difference(table.ids))
    if unknown:
        raise LeakError(f"{len(unknown)} held-out ids are not in the pool, {unknown[0]!r} first: ids have changed")
    rows = [place for place, name in enumerate(table.ids) if name in held]
    groups = {table.groups[place] for place in rows}
    contents = {table.content_hashes[place] for place in rows}
    return [
        group in groups or content in contents
        for group, content in zip(table.groups, table.content_hashes, strict=True)
    ]


def _order(
    table: ScoreTable, config: SelectionConfig, candidates: list[int], seed: int, tokens: np.ndarray
) -> list[int]:
    """Candidates in the order in which they are taken."""
    if config.strategy in RANDOM:
        drawn = draw_order(seed, "selection", (table.ids[place] for place in candidates))
        return sorted(candidates, key=lambda place: drawn[table.ids[place]])
    if config.strategy == "all":
        first = np.zeros(len(table))
    elif config.strategy == "longest":
        first = -tokens.astype(np.float64)
    else:
        ranking = table.ranking(config.by, config.without)
        first = -ranking if config.strategy == "top" else ranking
    return sorted(candidates, key=lambda place: (first[place], table.content_hashes[place], table.ids[place]))


def _take(table: ScoreTable, config: SelectionConfig, order: list[int], excluded: dict[str, int]) -> list[int]:
    share = 1.0 if config.fraction is None else config.fraction
    wanted = config.n if config.n is not None else max(1, round(share * len(order)))
    held: Counter[str] = Counter()
    chosen: list[int] = []
    for place in order:
        if len(chosen) == wanted:
            break
        if config.per_group_cap is not None and held[table.groups[place]] == config.per_group_cap:
            excluded["group cap"] = excluded.get("group cap", 0) + 1
            continue
        held[table.groups[place]] += 1
        chosen.append(place)
    if len(chosen) < wanted or not chosen:
        raise UserError(_too_few(table, config, wanted, len(chosen), excluded))
    return chosen


def _matched(
    table: ScoreTable,
    config: SelectionConfig,
    order: list[int],
    lengths: np.ndarray,
    reference: Selection,
    excluded: dict[str, int],
) -> list[int]:
    """For each reference row, longest first: the first free row of the random order within the caliper, else the
    nearest in length."""
    drawn = np.array(order, dtype=np.int64)
    length = lengths[drawn]
    free = np.ones(len(drawn), dtype=bool)
    members: dict[str, list[int]] = {}
    for index, place in enumerate(order):
        members.setdefault(table.groups[place], []).append(index)
    held: Counter[str] = Counter()
    chosen: list[int] = []
    for wanted in sorted(reference.tokens, reverse=True):
        if not free.any():
            raise UserError(_too_few(table, config, len(reference.ids), len(chosen), excluded))
        distance = np.where(free, np.abs(length - wanted), np.iinfo(np.int64).max)
        near = distance <= CALIPER * wanted
        index = int(near.argmax() if near.any() else distance.argmin())
        free[index] = False
        place = order[index]
        group = table.groups[place]
        held[group] += 1
        if held[group] == config.per_group_cap:
            free[members[group]] = False
        chosen.append(place)
    total, target = int(lengths[chosen].sum()), sum(reference.tokens)
    if abs(total - target) > TOKEN_TOLERANCE * target:
        raise UserError(
            f"selection: no {len(chosen)} of {len(order)} candidates match the {target} tokens of {config.match}: "
            f"the nearest have {total}"
        )
    return chosen


def _too_few(table: ScoreTable, config: SelectionConfig, wanted: int, found: int, excluded: dict[str, int]) -> str:
    told = ", ".join(f"{rows} by {setting}" for setting, rows in excluded.items()) or "none"
    asked = f"asks for {wanted} rows" if wanted else "selects no row"
    return f"selection: {config.strategy} {asked}; {found} of the pool's {len(table)} are eligible (left out: {told})"


def _facts(
    table: ScoreTable, config: SelectionConfig, chosen: list[int], lengths: np.ndarray, tokens: np.ndarray
) -> dict[str, Any]:
    """Examples, groups and their concentration, tokens after and beyond truncation, turns."""
    groups = Counter(table.groups[place] for place in chosen)
    return {
        "strategy": config.strategy,
        "examples": len(chosen),
        "groups": len(groups),
        "mean_per_group": len(chosen) / len(groups),
        "max_per_group": max(groups.values()),
        "tokens": int(lengths[chosen].sum()),
        "tokens_cut": int((tokens[chosen] - lengths[chosen]).sum()),
        "turns": int(table.turns[chosen].sum()),
        "resolved": sum(table.resolved[place] is True for place in chosen),
    }
