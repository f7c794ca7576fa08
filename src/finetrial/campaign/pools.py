"""Pools of rows: read, rendered once for their lengths, scored, and the test sets that are frozen before any selection.

Rendered lengths are kept in the store; test sets are frozen by the first launch (`splits.json`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetrial.campaign.folder import Folder
from finetrial.campaign.plan import STAGE_VERSIONS
from finetrial.campaign.settings import DataConfig
from finetrial.campaign.spec import Spec
from finetrial.data.read import read
from finetrial.data.score import ScoreConfig, ScoreTable, score
from finetrial.data.select import Selection
from finetrial.data.split import SplitConfig, Splits, freeze
from finetrial.errors import UserError
from finetrial.identity import digest, stage_key
from finetrial.model.render import render_batch
from finetrial.records import Example
from finetrial.store import Store, read_json, write_json
from finetrial.train.mixture_config import PartConfig


@dataclass(frozen=True)
class Pool:
    """Rows that can be rendered, with their lengths."""

    examples: tuple[Example, ...]
    tokens: tuple[int, ...]
    """Tokens of each rendered row before truncation."""
    first: Mapping[str, int]
    """Id -> place of its first supervised token: a context that ends before it leaves nothing to learn."""
    key: str
    """Content of the pool as it was read."""
    facts: dict[str, Any]


@dataclass(frozen=True)
class TestSets:
    """The frozen sets and what is held out with them."""

    sets: Mapping[str, tuple[Example, ...]]
    key: str
    facts: dict[str, Any]


def read_pool(data: DataConfig, tokenizer: PreTrainedTokenizerBase, base: str, store: Store) -> Pool:
    """Read a pool and render it for its lengths.

    Raises:
        UserError: the source cannot be read, or no row can be rendered.
    """
    result = read(data.source, limit=data.limit, on_malformed=data.on_malformed, drop_duplicates=data.drop_duplicates)
    examples = [_without_system(example) for example in result.examples] if data.drop_system else result.examples
    lengths, first, refused = _lengths(examples, tokenizer, base, store)
    kept = [i for i in range(len(examples)) if i not in refused]
    if not kept:
        reason = next(iter(refused.values()))
        raise UserError(f"{data.source}: none of {len(examples)} rows can be rendered, for example: {reason}")
    summary = result.summary()
    for reason in refused.values():
        entry = summary["reasons"].setdefault(f"not rendered: {reason}", {"rows": 0, "places": []})
        entry["rows"] += 1
    summary["kept"], summary["dropped"] = len(kept), summary["rows"] - len(kept)
    return Pool(
        examples=tuple(examples[i] for i in kept),
        tokens=tuple(lengths[i] for i in kept),
        first={examples[i].id: first[i] for i in kept},
        key=digest([result.content_key, data.drop_system]),
        facts=summary,
    )


def part_source(part: PartConfig, data: DataConfig) -> DataConfig:
    """Where a part of a mixture is read from: as the condition's own rows but for source and limit."""
    return data.model_copy(update={"source": part.source, "limit": part.limit})


def part_rows(part: PartConfig, pool: Pool, tested: Collection[str], max_length: int) -> Selection:
    """The rows of a part of a mixture: its whole pool without what is tested, and without what teaches nothing.

    Args:
        part: of the mixture.
        pool: what its source holds.
        tested: ids that may not be trained on.
        max_length: of the condition; a row whose first supervised token lies behind it has nothing to learn.

    Raises:
        UserError: no row is left.
    """
    lost = frozenset(tested)
    free = [place for place, example in enumerate(pool.examples) if example.id not in lost]
    kept = [place for place in free if pool.first[pool.examples[place].id] < max_length]
    left_out = {"tested": len(pool.examples) - len(free), "nothing to learn": len(free) - len(kept)}
    if not kept:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise UserError(f"part {part.name}: none of the {len(pool.examples)} rows of {part.source} is left ({told})")
    kept.sort(key=lambda place: pool.examples[place].id)
    rows = [pool.examples[place] for place in kept]
    tokens = [min(pool.tokens[place], max_length) for place in kept]
    facts = {
        "source": part.source,
        "content": pool.key,
        "examples": len(rows),
        "groups": len({row.group for row in rows}),
        "tokens": sum(tokens),
        "tokens_cut": sum(pool.tokens[place] for place in kept) - sum(tokens),
        "left_out": left_out,
    }
    return Selection(
        ids=tuple(row.id for row in rows),
        content_hashes=tuple(row.content_hash for row in rows),
        groups=tuple(row.group for row in rows),
        tokens=tuple(tokens),
        examples=tuple(rows),
        facts=facts,
    )


def _without_system(example: Example) -> Example:
    return replace(example, messages=tuple(m for m in example.messages if m["role"] != "system"))


def _lengths(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, base: str, store: Store
) -> tuple[list[int], list[int], dict[int, str]]:
    """Of every row: tokens without truncation, place of the first supervised one; and why a row cannot be rendered.

    Kept in the store by content.
    """
    rows = digest([example.content_hash for example in examples])
    key = stage_key("lengths", STAGE_VERSIONS["render"], {}, {"rows": rows, "base": base})
    if not store.has("lengths", key):
        batch = render_batch((example.messages for example in examples), tokenizer, max_length=2**31 - 1)
        lengths = {
            "tokens": [0 if row is None else len(row.ids_T) for row in batch.rows],
            "first": [0 if row is None else int(row.mask_T.argmax()) for row in batch.rows],
            "refused": {str(i): reason for i, reason in batch.refused.items()},
        }
        with store.put("lengths", key, {"rows": len(examples)}) as path:
            write_json(path / "lengths.json", lengths)
    kept = read_json(store.path("lengths", key) / "lengths.json")
    return kept["tokens"], kept["first"], {int(i): reason for i, reason in kept["refused"].items()}


def scored(tables: dict[str, ScoreTable], pool: Pool, config: ScoreConfig, max_length: int) -> ScoreTable:
    """The scored pool, each combination once."""
    name = digest([pool.key, config, max_length])
    if name not in tables:
        tables[name] = score(pool.examples, config, pool.tokens, max_length)
    return tables[name]


def test_sets(split: SplitConfig, spec: Spec, folder: Folder, pool: Pool, table: ScoreTable, write: bool) -> TestSets:
    """The test sets as the first launch froze them, or freshly drawn.

    They stay when the scorer changes, so that a changed weight does not change what everything is measured on; they
    are drawn again when `[split]` changed or a frozen item is gone from the pool.
    """
    path = folder.path / "splits.json"
    rows = {example.id: example for example in pool.examples}
    config = split.model_dump(mode="json")
    frozen: dict[str, Any] | None = read_json(path) if path.is_file() else None
    redrawn = None
    if frozen is not None:
        if frozen["config"] != config:
            redrawn = "[split] changed"
        elif any(i not in rows or rows[i].content_hash != h for ids in frozen["sets"].values() for i, h in ids):
            redrawn = "an item is gone from the pool or has other content"
    if frozen is None or redrawn is not None:
        frozen = _drawn(freeze(table, pool.examples, split), rows, config, spec) | {"redrawn": redrawn}
        if write:
            folder.path.mkdir(parents=True, exist_ok=True)
            write_json(path, frozen)
    same_scorer = frozen["score"] == digest(spec.score.identity())
    facts = {
        "sets": frozen["facts"],
        "redrawn": frozen["redrawn"],
        "scorer": "this scorer" if same_scorer else "an earlier scorer: the sets were frozen before it changed",
    }
    sets = {name: tuple(rows[i] for i, _ in ids) for name, ids in frozen["sets"].items()}
    return TestSets(sets, digest(frozen["sets"]), facts)


def _drawn(splits: Splits, rows: Mapping[str, Example], config: dict[str, Any], spec: Spec) -> dict[str, Any]:
    return {
        "config": config,
        "score": digest(spec.score.identity()),
        "sets": {name: [[i, rows[i].content_hash] for i in ids] for name, ids in splits.test_sets.items()},
        "facts": splits.facts["test_sets"],
    }


def refuse_unsupervised(selection: Selection, pool: Pool, max_length: int) -> None:
    """Refuse a selection with rows that teach nothing.

    Raises:
        UserError: a row's first supervised token lies behind the cut.
    """
    lost = [row for row in selection.ids if pool.first[row] >= max_length]
    if lost:
        raise UserError(
            f"{len(lost)} of {len(selection.ids)} selected rows have nothing to learn within model.max_length = "
            f"{max_length} tokens, {lost[0]!r} first (its assistant begins at token {pool.first[lost[0]]})"
        )
