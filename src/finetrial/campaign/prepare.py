"""The data stages of a campaign: read, measure, score, freeze test sets, select, guard against leaks.

All of it is cheap beside training and is made anew at every launch, but for two things: rendered lengths are kept
in the store, and test sets are frozen by the first launch (`splits.json`), before any selection exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetrial.campaign.folder import Folder, Say
from finetrial.campaign.plan import STAGE_VERSIONS, Inputs, Suite
from finetrial.campaign.spec import Condition, DataConfig, Spec
from finetrial.data.overlap import overlap, side_by_side
from finetrial.data.read import read
from finetrial.data.score import ScoreConfig, ScoreTable, score
from finetrial.data.select import Selection, select
from finetrial.data.split import Splits, freeze, guard, held_out
from finetrial.errors import UserError, nearest
from finetrial.identity import digest, stage_key
from finetrial.model.config import ModelConfig
from finetrial.model.render import render_batch
from finetrial.model.source import base_key, locate
from finetrial.records import Example
from finetrial.store import Store, read_json, write_json


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


@dataclass(frozen=True)
class Prepared:
    """Everything that planning, training and evaluation need to know of the data."""

    inputs: Inputs
    tokenizer: PreTrainedTokenizerBase
    suites: Mapping[str, tuple[Example, ...]]
    facts: dict[str, Any]
    """The manifest's `data` table."""
    integrity: list[dict[str, Any]] = field(default_factory=list)


def numerics_class(model: ModelConfig, device: str | None) -> str:
    """Device family, torch version and number format of the base: results of different classes are not mixed.

    Raises:
        UserError: `device` is no device of this machine.
    """
    family = _device_family(device)
    auto = "bfloat16" if family == "cuda" else "float32"
    torch_version = ".".join(version("torch").split("+")[0].split(".")[:2])
    return f"{family}, torch {torch_version}, {auto if model.dtype == 'auto' else model.dtype}"


def _device_family(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}{nearest(device, ['cpu', 'cuda'])}: expected cpu, cuda or cuda:N") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return place.type


def prepare(spec: Spec, folder: Folder, device: str | None, say: Say, freeze_tests: bool = False) -> Prepared:
    """Make or reuse every data stage.

    Args:
        spec: the campaign.
        folder: where frozen test sets are found, and the store of rendered lengths.
        device: where runs will be trained; part of the numerics class.
        say: told what was read.
        freeze_tests: write the test sets down; only a launch that holds the campaign's lock may.

    Raises:
        UserError: a source, a score, a selection or a test set does not work out; nothing was written.
        LeakError: training and test data share something, or the check could not be made.
    """
    numerics = numerics_class(spec.model, device)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate(spec.model))
    key = base_key(spec.model)
    pools = {digest(data): _pool(data, tokenizer, key, folder.store) for data in _sources(spec)}
    main = pools[digest(spec.data)]
    say(f"pool: {len(main.examples)} rows of {main.facts['groups']} groups from {spec.data.source}")
    tables: dict[str, ScoreTable] = {}
    main_table = _table(tables, main, spec.score, spec.model.max_length)
    tests = _test_sets(spec, folder, main, main_table, freeze_tests)
    extra = {suite.name: tuple(read(suite.source, limit=suite.limit).examples) for suite in spec.suites}
    suites = {**tests.sets, **extra}
    tested = [example for items in suites.values() for example in items]
    held = {name: held_out(pool.examples, tested) for name, pool in pools.items()}

    selections: dict[tuple[str, int], Selection] = {}
    compared = 0
    for seed in spec.campaign.seeds:
        for condition in _in_order_of_reference(spec):
            name = digest(condition.data)
            pool = pools[name]
            table = _table(tables, pool, condition.score, condition.model.max_length)
            match = condition.selection.match
            reference = selections[match, seed] if match is not None else None
            exclude = held[name] or None  # None states that nothing of this pool is tested; () would be refused
            try:
                selection = select(table, condition.selection, pool.examples, exclude, seed, pool.tokens, reference)
                _refuse_unsupervised(selection, pool, condition.model.max_length)
            except UserError as error:
                raise type(error)(f"condition {condition.name}, seed {seed}: {error}") from error
            allowed = {example.id for example in pool.examples}.difference(held[name])
            compared += sum(guard(selection.examples, suites, allowed).compared.values())
            selections[condition.name, seed] = selection

    inputs = Inputs(
        base_key=key,
        numerics=numerics,
        selections=selections,
        upstream={c.name: _upstream(c, pools[digest(c.data)], tests) for c in spec.conditions},
        suites=tuple(_suite(name, items, spec, key) for name, items in suites.items()),
    )
    guarded = f"{len(selections)} selections against {len(suites)} suites, {compared:,} pairs of values compared"
    return Prepared(
        inputs=inputs,
        tokenizer=tokenizer,
        suites=suites,
        facts=_facts(spec, main, main_table, tests, held[digest(spec.data)], selections),
        integrity=[
            {"check": "no training row shares id, group or content with a test row", "passed": True, "detail": guarded}
        ],
    )


def _refuse_unsupervised(selection: Selection, pool: Pool, max_length: int) -> None:
    lost = [row for row in selection.ids if pool.first[row] >= max_length]
    if lost:
        raise UserError(
            f"{len(lost)} of {len(selection.ids)} selected rows have nothing to learn within model.max_length = "
            f"{max_length} tokens, {lost[0]!r} first (its assistant begins at token {pool.first[lost[0]]})"
        )


def _sources(spec: Spec) -> list[DataConfig]:
    return list({digest(data): data for data in (spec.data, *(c.data for c in spec.conditions))}.values())


def _pool(data: DataConfig, tokenizer: PreTrainedTokenizerBase, base: str, store: Store) -> Pool:
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


def _table(tables: dict[str, ScoreTable], pool: Pool, config: ScoreConfig, max_length: int) -> ScoreTable:
    """The scored pool, each combination once."""
    name = digest([pool.key, config, max_length])
    if name not in tables:
        tables[name] = score(pool.examples, config, pool.tokens, max_length)
    return tables[name]


def _test_sets(spec: Spec, folder: Folder, pool: Pool, table: ScoreTable, write: bool) -> TestSets:
    """The test sets as the first launch froze them, or freshly drawn.

    They stay when the scorer changes, so that a changed weight does not change what everything is measured on; they
    are drawn again when `[split]` changed or a frozen item is gone from the pool.
    """
    path = folder.path / "splits.json"
    rows = {example.id: example for example in pool.examples}
    config = spec.split.model_dump(mode="json")
    frozen: dict[str, Any] | None = read_json(path) if path.is_file() else None
    redrawn = None
    if frozen is not None:
        if frozen["config"] != config:
            redrawn = "[split] changed"
        elif any(i not in rows or rows[i].content_hash != h for ids in frozen["sets"].values() for i, h in ids):
            redrawn = "an item is gone from the pool or has other content"
    if frozen is None or redrawn is not None:
        frozen = _drawn(freeze(table, pool.examples, spec.split), rows, spec) | {"redrawn": redrawn}
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


def _drawn(splits: Splits, rows: Mapping[str, Example], spec: Spec) -> dict[str, Any]:
    return {
        "config": spec.split.model_dump(mode="json"),
        "score": digest(spec.score.identity()),
        "sets": {name: [[i, rows[i].content_hash] for i in ids] for name, ids in splits.test_sets.items()},
        "facts": splits.facts["test_sets"],
    }


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
    spec: Spec,
    pool: Pool,
    table: ScoreTable,
    tests: TestSets,
    held: tuple[str, ...],
    selections: Mapping[tuple[str, int], Selection],
) -> dict[str, Any]:
    """The manifest's `data` table: pool, scores, test sets, selections side by side, overlap for the first seed."""
    first = {c.name: selections[c.name, spec.campaign.seeds[0]] for c in spec.conditions}
    steps = {c.name: c.training.steps(len(first[c.name].ids)) for c in spec.conditions}
    return {
        "pool": pool.facts,
        "scores": table.facts(),
        "test_sets": {
            **tests.facts,
            "rows_held_out": len(held),
            "rows_for_training": len(pool.examples) - len(held),
        },
        "selections": [
            {"condition": name, "seed": seed, **selection.facts, "key": selection.key}
            for (name, seed), selection in selections.items()
        ],
        "side_by_side": side_by_side(first, steps),
        "overlap": overlap(first),
    }
