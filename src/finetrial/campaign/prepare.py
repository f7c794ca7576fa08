"""The data stages of a campaign: read, measure, score, freeze test sets, select, guard against leaks.

All of it is cheap beside training and is made anew at every launch, but for two things: rendered lengths are kept
in the store, and test sets are frozen by the first launch (`splits.json`), before any selection exists.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetrial.campaign.folder import Folder
from finetrial.campaign.plan import STAGE_VERSIONS, Inputs, Suite
from finetrial.campaign.spec import Condition, DataConfig, Spec
from finetrial.data.overlap import overlap, side_by_side
from finetrial.data.read import read
from finetrial.data.score import ScoreConfig, ScoreTable, score
from finetrial.data.select import Selection, select
from finetrial.data.split import Splits, freeze, guard
from finetrial.errors import UserError
from finetrial.identity import digest, stage_key
from finetrial.model.render import render_batch
from finetrial.model.source import base_key, locate
from finetrial.records import Example
from finetrial.store import Store, read_json, write_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pool:
    """Rows that can be rendered, with their lengths."""

    examples: tuple[Example, ...]
    tokens: tuple[int, ...]
    """Tokens of each rendered row before truncation."""
    key: str
    """Content of the pool as it was read."""
    facts: dict[str, Any]


@dataclass(frozen=True)
class TestSets:
    """The frozen sets and what is held out with them."""

    sets: Mapping[str, tuple[Example, ...]]
    held_out: tuple[str, ...]
    """Ids of the main pool that may not be trained on."""
    key: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """Everything that planning, training and evaluation need to know of the data."""

    inputs: Inputs
    tokenizer: PreTrainedTokenizerBase
    suites: Mapping[str, tuple[Example, ...]]
    facts: dict[str, Any]
    """The manifest's `data` table."""
    integrity: list[dict[str, Any]] = field(default_factory=list)


def numerics_class(device: str | None) -> str:
    """Device family and torch version: results of different classes are not mixed."""
    family = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0]
    return f"{family}, torch {'.'.join(version('torch').split('+')[0].split('.')[:2])}"


def prepare(spec: Spec, folder: Folder, device: str | None, say: Say) -> Prepared:
    """Make or reuse every data stage.

    Raises:
        UserError: a source, a score, a selection or a test set does not work out; nothing was written.
        LeakError: training and test data share something, or the check could not be made.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate(spec.model))
    key = base_key(spec.model)
    pools = {digest(data): _pool(data, spec, tokenizer, key, folder.store) for data in _sources(spec)}
    main = pools[digest(spec.data)]
    say(f"pool: {len(main.examples)} rows of {main.facts['groups']} groups from {spec.data.source}")
    tables: dict[str, ScoreTable] = {}
    main_table = _table(tables, main, spec.score, spec.model.max_length)
    tests = _test_sets(spec, folder, main, main_table)
    extra = {suite.name: read(suite.source, limit=suite.limit) for suite in spec.suites}
    suites = {**tests.sets, **{name: tuple(result.examples) for name, result in extra.items()}}

    selections: dict[tuple[str, int], Selection] = {}
    compared = 0
    for seed in spec.campaign.seeds:
        for condition in _in_order_of_reference(spec):
            pool = pools[digest(condition.data)]
            table = _table(tables, pool, condition.score, condition.model.max_length)
            match = condition.selection.match
            try:
                selection = select(
                    table,
                    condition.selection,
                    pool.examples,
                    tests.held_out if pool is main else _shared(pool, suites),
                    seed,
                    pool.tokens,
                    selections[match, seed] if match is not None else None,
                )
            except UserError as error:
                raise type(error)(f"condition {condition.name}, seed {seed}: {error}") from error
            compared += sum(guard(selection.examples, suites).compared.values())
            selections[condition.name, seed] = selection

    inputs = Inputs(
        base_key=key,
        numerics=numerics_class(device),
        selections=selections,
        upstream={c.name: _upstream(c, pools[digest(c.data)], tests) for c in spec.conditions},
        suites=tuple(_suite(name, items, spec, key) for name, items in suites.items()),
    )
    guarded = f"{len(selections)} selections against {len(suites)} suites, {compared:,} pairs of values compared"
    return Prepared(
        inputs=inputs,
        tokenizer=tokenizer,
        suites=suites,
        facts=_facts(spec, main, main_table, tests, selections),
        integrity=[
            {"check": "no training row shares id, group or content with a test row", "passed": True, "detail": guarded}
        ],
    )


def _sources(spec: Spec) -> list[DataConfig]:
    return list({digest(data): data for data in (spec.data, *(c.data for c in spec.conditions))}.values())


def _pool(data: DataConfig, spec: Spec, tokenizer: PreTrainedTokenizerBase, base: str, store: Store) -> Pool:
    result = read(data.source, limit=data.limit, on_malformed=data.on_malformed, drop_duplicates=data.drop_duplicates)
    examples = [_without_system(example) for example in result.examples] if data.drop_system else result.examples
    lengths, refused = _lengths(examples, tokenizer, base, store)
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
        key=digest([result.content_key, data.drop_system]),
        facts=summary,
    )


def _without_system(example: Example) -> Example:
    return replace(example, messages=tuple(m for m in example.messages if m["role"] != "system"))


def _lengths(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, base: str, store: Store
) -> tuple[list[int], dict[int, str]]:
    """Tokens of every row without truncation, and why a row cannot be rendered; kept by content."""
    rows = digest([example.content_hash for example in examples])
    key = stage_key("lengths", STAGE_VERSIONS["render"], {}, {"rows": rows, "base": base})
    if not store.has("lengths", key):
        batch = render_batch((example.messages for example in examples), tokenizer, max_length=2**31 - 1)
        lengths = [0 if row is None else len(row.ids_T) for row in batch.rows]
        with store.put("lengths", key, {"rows": len(lengths)}) as path:
            write_json(
                path / "lengths.json", {"tokens": lengths, "refused": {str(i): r for i, r in batch.refused.items()}}
            )
    kept = read_json(store.path("lengths", key) / "lengths.json")
    return kept["tokens"], {int(i): reason for i, reason in kept["refused"].items()}


def _table(tables: dict[str, ScoreTable], pool: Pool, config: ScoreConfig, max_length: int) -> ScoreTable:
    """The scored pool, each combination once."""
    name = digest([pool.key, config, max_length])
    if name not in tables:
        tables[name] = score(pool.examples, config, pool.tokens, max_length)
    return tables[name]


def _test_sets(spec: Spec, folder: Folder, pool: Pool, table: ScoreTable) -> TestSets:
    """The test sets as the first launch froze them, or freshly frozen.

    They stay when the scorer changes, so that a changed weight does not change what everything is measured on; they
    are drawn again when `[split]` changed or a frozen item is gone from the pool.
    """
    path = folder.path / "splits.json"
    rows = {example.id: example for example in pool.examples}
    config = spec.split.model_dump(mode="json")
    frozen = read_json(path) if path.is_file() else None
    redrawn = None
    if frozen is not None:
        if frozen["config"] != config:
            redrawn = "[split] changed"
        elif any(i not in rows or rows[i].content_hash != h for ids in frozen["sets"].values() for i, h in ids):
            redrawn = "an item is gone from the pool or has other content"
    if frozen is None or redrawn:
        splits = freeze(table, pool.examples, spec.split)
        frozen = _frozen(splits, rows, config, spec)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(path, frozen)
    sets = {name: tuple(rows[i] for i, _ in ids) for name, ids in frozen["sets"].items()}
    groups = {example.group for items in sets.values() for example in items}
    contents = {example.content_hash for items in sets.values() for example in items}
    held_out = tuple(i for i, e in rows.items() if e.group in groups or e.content_hash in contents)
    same_scorer = frozen["score"] == digest(spec.score.identity())
    facts = {
        **frozen["facts"],
        "redrawn": redrawn,
        "scorer": "this scorer" if same_scorer else "an earlier scorer: the sets were frozen before it changed",
    }
    return TestSets(sets, held_out, digest(frozen["sets"]), facts)


def _frozen(splits: Splits, rows: Mapping[str, Example], config: Any, spec: Spec) -> dict[str, Any]:
    return {
        "config": config,
        "score": digest(spec.score.identity()),
        "sets": {name: [[i, rows[i].content_hash] for i in ids] for name, ids in splits.test_sets.items()},
        "facts": splits.facts,
    }


def _shared(pool: Pool, suites: Mapping[str, tuple[Example, ...]]) -> tuple[str, ...] | None:
    """Ids of another pool whose group or content is tested; None where nothing is shared (no test set is from it)."""
    groups = {example.group for items in suites.values() for example in items}
    contents = {example.content_hash for items in suites.values() for example in items}
    found = tuple(e.id for e in pool.examples if e.group in groups or e.content_hash in contents)
    return found or None


def _in_order_of_reference(spec: Spec) -> list[Condition]:
    """Conditions such that one that another matches comes first."""
    ordered: list[Condition] = []
    waiting = list(spec.conditions)
    while waiting:
        done = {condition.name for condition in ordered}
        ready = [c for c in waiting if c.selection.match is None or c.selection.match in done]
        if not ready:
            chain = ", ".join(f"{c.name} matches {c.selection.match}" for c in waiting)
            raise UserError(f"selection.match leads nowhere: {chain}")
        ordered += ready
        waiting = [c for c in waiting if c not in ready]
    return ordered


def _upstream(condition: Condition, pool: Pool, tests: TestSets) -> dict[str, Any]:
    """What a condition's rows come from; explains changes, enters no key."""
    return {
        "data": {"source": condition.data.source, "pool": pool.key},
        "score": condition.score.identity()["options"],
        "score_versions": condition.score.identity()["dimensions"],
        "selection": condition.selection.model_dump(mode="json"),
        "model": {"max_length": condition.model.max_length},
        "test_sets": tests.key,
    }


def _suite(name: str, items: tuple[Example, ...], spec: Spec, base: str) -> Suite:
    if not items:
        raise UserError(f"suite {name!r} is empty")
    if len({item.id for item in items}) < len(items):
        raise UserError(f"suite {name!r} has repeated ids")
    content = sorted([item.id, item.content_hash] for item in items)
    described = spec.split.test_sets[name].kind if name in spec.split.test_sets else "declared in [[suites]]"
    return Suite(
        name=name,
        description=f"perplexity of assistant text, {described}",
        items=tuple(sorted(item.id for item in items)),
        groups=len({item.group for item in items}),
        hash=digest(
            {
                "kind": "perplexity",
                "items": content,
                "base": base,
                "max_length": spec.model.max_length,
                "render": STAGE_VERSIONS["render"],
            }
        ),
    )


def _facts(
    spec: Spec, pool: Pool, table: ScoreTable, tests: TestSets, selections: Mapping[tuple[str, int], Selection]
) -> dict[str, Any]:
    """The manifest's `data` table: pool, scores, test sets, selections side by side, overlap for the first seed."""
    first = {c.name: selections[c.name, spec.campaign.seeds[0]] for c in spec.conditions}
    steps = {c.name: c.training.steps(len(first[c.name].ids)) for c in spec.conditions}
    return {
        "pool": pool.facts,
        "scores": table.facts(),
        "test_sets": tests.facts,
        "selections": [
            {"condition": name, "seed": seed, **selection.facts, "key": selection.key}
            for (name, seed), selection in selections.items()
        ],
        "side_by_side": side_by_side(first, steps),
        "overlap": overlap(first),
    }
