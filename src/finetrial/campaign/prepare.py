"""The data stages of a campaign: read, measure, score, freeze test sets, select, hold out tasks, guard against leaks.

All of it is cheap beside training and is made anew at every launch, but for what `pools.py` keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from finetrial.campaign.conditions import Condition
from finetrial.campaign.folder import Folder, Say
from finetrial.campaign.harness import Harness, check_metrics, harness_suite, load
from finetrial.campaign.plan import Inputs
from finetrial.campaign.pools import (
    Pool,
    TestSets,
    part_rows,
    part_source,
    read_pool,
    refuse_unsupervised,
    scored,
    test_sets,
)
from finetrial.campaign.practice import PracticeSet, Tasks, part_of, questions, read_all
from finetrial.campaign.settings import HELD_OUT, DataConfig
from finetrial.campaign.spec import Spec
from finetrial.campaign.suites import exam_suite, text_suite
from finetrial.data.overlap import overlap, side_by_side
from finetrial.data.read import read
from finetrial.data.score import ScoreTable
from finetrial.data.select import Selection, select
from finetrial.data.split import guard, held_out
from finetrial.errors import UserError, nearest
from finetrial.evaluate.tasks import prompt_ids
from finetrial.identity import digest
from finetrial.model.config import ModelConfig
from finetrial.model.source import base_key, locate
from finetrial.records import Example, Task


@dataclass(frozen=True)
class Rows:
    """What supervised fine-tuning learns from: pools, their test sets, and what each run selects."""

    pools: Mapping[str, Pool]
    """By the digest of their `[data]`."""
    main: Pool
    table: ScoreTable
    """Scores of the main pool by the common scorer."""
    tests: TestSets
    held: Mapping[str, tuple[str, ...]]
    """Pool -> ids that may not be trained on."""
    selections: Mapping[tuple[str, int], Selection]
    parts: Mapping[str, Mapping[str, Selection]]
    """Condition -> part of its mixture -> the rows of that part."""
    compared: int
    """Pairs of values that the leak guard compared."""


@dataclass(frozen=True)
class Prepared:
    """Everything that planning, training and evaluation need to know of the data."""

    inputs: Inputs
    tokenizer: PreTrainedTokenizerBase
    suites: Mapping[str, tuple[Example, ...]]
    """Items of the suites of kind `perplexity`."""
    facts: dict[str, Any]
    """The manifest's `data` table."""
    tasks: Tasks
    """What is practised on, and the items of the suites of kind `tasks`, `choice` and `conversation`."""
    harness: Mapping[str, Harness] = field(default_factory=dict)
    """What the suites of kind `lm_eval` ask."""
    prompts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Content hash of a task -> int64 tokens of its prompt."""
    integrity: list[dict[str, Any]] = field(default_factory=list)

    @property
    def items(self) -> dict[str, Sequence[Example | Task]]:
        """Suite -> its items, of every kind."""
        exams = {name: exam.tasks for name, exam in self.tasks.exams.items()}
        return {**self.suites, **exams, **{name: one.items for name, one in self.harness.items()}}

    def prompts_of(self, tasks: Sequence[Task]) -> list[np.ndarray]:
        """The prompts of these tasks."""
        return [self.prompts[task.content_hash] for task in tasks]


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
    pools = {digest(data): read_pool(data, tokenizer, key, folder.store) for data in _sources(spec)}
    tables: dict[str, ScoreTable] = {}
    tests = None
    if spec.split is not None:
        main = pools[digest(spec.data)]
        say(f"pool: {len(main.examples)} rows of {main.facts['groups']} groups from {spec.data.source}")
        table = scored(tables, main, spec.score, spec.model.max_length)
        tests = test_sets(spec.split, spec, folder, main, table, freeze_tests)
    declared = [suite for suite in spec.suites if suite.kind == "perplexity"]
    parts = {suite.name: part_of(suite, read(suite.source, limit=suite.limit).examples) for suite in declared}
    suites = {**(tests.sets if tests else {}), **{name: tuple(items) for name, (items, _) in parts.items()}}
    examined = [suite for suite in spec.suites if suite.kind == "lm_eval"]
    harness = {suite.name: load(suite, tokenizer, AutoConfig.from_pretrained(locate(spec.model))) for suite in examined}
    check_metrics(spec, harness)
    asked = {name: questions(one.asked) for name, one in harness.items()}
    tasks = read_all(spec, {**suites, **asked})
    tasks = replace(tasks, examined={**tasks.examined, **asked})
    for name, exam in tasks.exams.items():
        say(f"tasks: {len(exam.tasks)} in suite {name}")
    rows = None
    if spec.split is not None and tests is not None:
        rows = _rows(spec, pools, tables, tests, suites, tasks)

    selections: dict[tuple[str, int], Selection | PracticeSet] = dict(rows.selections) if rows else {}
    prompts = _prompts(spec, tasks, tokenizer)
    tasks = replace(tasks, practice={name: _measured(mine, prompts) for name, mine in tasks.practice.items()})
    selections |= {(c.name, seed): tasks.practice[c.name] for c in spec.practising for seed in spec.campaign.seeds}
    upstream = {c.name: _upstream(c, pools, tests) for c in spec.supervised if tests}
    upstream |= {c.name: _practised(c, tasks) for c in spec.practising}
    planned = {
        name: text_suite(name, items, spec, key, tokenizer, parts[name][1] if name in parts else {})
        for name, items in suites.items()
    }
    planned |= {name: exam_suite(name, exam, spec, key, tokenizer) for name, exam in tasks.exams.items()}
    planned |= {name: harness_suite(one, spec, key) for name, one in harness.items()}
    order = [*(tests.sets if tests else {}), HELD_OUT, *(suite.name for suite in spec.suites)]
    inputs = Inputs(
        base_key=key,
        numerics=numerics,
        selections=selections,
        upstream=upstream,
        suites=tuple(planned[name] for name in order if name in planned),
        parts=rows.parts if rows else {},
    )
    return Prepared(
        inputs=inputs,
        tokenizer=tokenizer,
        suites=suites,
        facts=(_facts(spec, rows) if rows else {}) | (_task_facts(tasks) if tasks.exams else {}),
        tasks=tasks,
        harness=harness,
        prompts=prompts,
        integrity=_guarded(rows, tasks, len(planned)),
    )


def _rows(
    spec: Spec,
    pools: Mapping[str, Pool],
    tables: dict[str, ScoreTable],
    tests: TestSets,
    suites: Mapping[str, tuple[Example, ...]],
    tasks: Tasks,
) -> Rows:
    """Select the rows of every run from what is not tested, and prove that nothing tested is among them."""
    tested = [example for items in suites.values() for example in items]
    examined = [example for items in tasks.examined.values() for example in items]
    held = {
        name: tuple(
            sorted(
                {*held_out(pool.examples, tested), *held_out(questions(pool.examples) if examined else [], examined)}
            )
        )
        for name, pool in pools.items()
    }
    selections: dict[tuple[str, int], Selection] = {}
    parts: dict[str, dict[str, Selection]] = {}
    compared = 0

    def guarded(examples: Sequence[Example], name: str) -> int:
        """Prove that nothing tested is among these rows of a pool; how many pairs of values were compared."""
        allowed = {example.id for example in pools[name].examples}.difference(held[name])
        pairs = sum(guard(examples, suites, allowed).compared.values())
        if tasks.examined:
            pairs += sum(guard(questions(examples), tasks.examined, allowed).compared.values())
        return pairs

    for seed in spec.campaign.seeds:
        for condition in _in_order_of_reference(spec):
            name = digest(condition.data)
            pool = pools[name]
            table = scored(tables, pool, condition.score, condition.model.max_length)
            match = condition.selection.match
            reference = selections[match, seed] if match is not None else None
            exclude = held[name] or None  # None states that nothing of this pool is tested; () would be refused
            try:
                selection = select(table, condition.selection, pool.examples, exclude, seed, pool.tokens, reference)
                refuse_unsupervised(selection, pool, condition.model.max_length)
            except UserError as error:
                raise type(error)(f"condition {condition.name}, seed {seed}: {error}") from error
            compared += guarded(selection.examples, name)
            selections[condition.name, seed] = selection
    for condition in spec.supervised:
        for part in condition.mixture.by_name if condition.mixture is not None else ():
            name = digest(part_source(part, condition.data))
            try:
                mine = part_rows(part, pools[name], held[name], condition.model.max_length)
            except UserError as error:
                raise type(error)(f"condition {condition.name}: {error}") from error
            compared += guarded(mine.examples, name)
            parts.setdefault(condition.name, {})[part.name] = mine
    main = pools[digest(spec.data)]
    table = scored(tables, main, spec.score, spec.model.max_length)
    return Rows(pools, main, table, tests, held, selections, parts, compared)


def _guarded(rows: Rows | None, tasks: Tasks, suites: int) -> list[dict[str, Any]]:
    """What the leak guard has compared."""
    checks = []
    if rows is not None and rows.selections:
        mixed = sum(len(parts) for parts in rows.parts.values())
        what = f"{len(rows.selections)} selections" + (f" and {mixed} parts of mixtures" if mixed else "")
        told = f"{what} against {suites} suites, {rows.compared:,} pairs of values compared"
        checks.append(("no training row shares id, group or content with a test row", told))
    if tasks.practice:
        told = f"{len(tasks.practice)} conditions against {suites} suites, {tasks.compared:,} pairs of values compared"
        checks.append(("no task that is practised on shares id, group or question with an examined one", told))
    return [{"check": check, "passed": True, "detail": detail} for check, detail in checks]


def _prompts(spec: Spec, tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> dict[str, np.ndarray]:
    """The prompt of every task by content, each of which leaves room for its completion."""
    facts = AutoConfig.from_pretrained(locate(spec.model)).get_text_config()
    context = getattr(facts, "max_position_embeddings", None) or spec.model.max_length
    asked: list[tuple[str, tuple[Task, ...], int, int]] = [
        (f"suite {name}", exam.asked, 0 if exam.kind == "choice" else exam.evaluation.max_tokens, spec.model.max_length)
        for name, exam in tasks.exams.items()
    ]
    for condition in spec.practising:
        assert condition.rl is not None
        room = condition.rl.sampling.max_tokens
        practised = tasks.practice[condition.name].tasks
        asked.append((f"condition {condition.name}", practised, room, condition.model.max_length))
    distinct = {task.content_hash: task for _, mine, _, _ in asked for task in mine}
    prompts = dict(zip(distinct, prompt_ids(list(distinct.values()), tokenizer), strict=True))
    for who, mine, room, max_length in asked:
        most, what = min((max_length, "model.max_length"), (context, "the base's context"))
        long = [task for task in mine if len(prompts[task.content_hash]) + room > most]
        if long:
            raise UserError(
                f"{who}: {len(long)} of {len(mine)} prompts leave no room for {room} tokens within {what} = "
                f"{most}, {long[0].id!r} first ({len(prompts[long[0].content_hash])} tokens); ask for fewer tokens, or "
                "leave out long tasks"
            )
    return prompts


def _measured(practice: PracticeSet, prompts: Mapping[str, np.ndarray]) -> PracticeSet:
    """With the tokens of its prompts among its facts."""
    tokens = sum(len(prompts[task.content_hash]) for task in practice.tasks)
    return replace(practice, facts={**practice.facts, "tokens": tokens})


def _sources(spec: Spec) -> list[DataConfig]:
    if spec.split is None:
        return []
    mixed = [part_source(part, c.data) for c in spec.supervised if c.mixture is not None for part in c.mixture.parts]
    return list({digest(data): data for data in (spec.data, *(c.data for c in spec.supervised), *mixed)}.values())


def _in_order_of_reference(spec: Spec) -> list[Condition]:
    """Conditions such that one that another matches comes first."""
    ordered: list[Condition] = []
    waiting = list(spec.supervised)
    while waiting:
        done = {condition.name for condition in ordered}
        ready = [c for c in waiting if c.selection.match is None or c.selection.match in done]
        if not ready:
            chain = ", ".join(f"{c.name} matches {c.selection.match}" for c in waiting)
            raise UserError(f"selection.match leads nowhere: {chain}")
        ordered += ready
        waiting = [c for c in waiting if c not in ready]
    return ordered


def _upstream(condition: Condition, pools: Mapping[str, Pool], tests: TestSets) -> dict[str, Any]:
    """What a condition's rows come from; explains changes, enters no key."""
    sources = {
        part.name: part_source(part, condition.data)
        for part in (condition.mixture.parts if condition.mixture is not None else ())
    }
    mixed = {name: {"source": data.source, "pool": pools[digest(data)].key} for name, data in sources.items()}
    return {
        "data": {"source": condition.data.source, "pool": pools[digest(condition.data)].key},
        **({"mixture": mixed} if mixed else {}),
        "score": condition.score.identity()["options"],
        "score_versions": condition.score.identity()["dimensions"],
        "selection": condition.selection.model_dump(mode="json"),
        "model": {"max_length": condition.model.max_length},
        "test_sets": tests.key,
    }


def _practised(condition: Condition, tasks: Tasks) -> dict[str, Any]:
    """What a condition's tasks come from; explains changes, enters no key."""
    assert condition.tasks is not None
    config = condition.tasks.model_dump(mode="json", exclude={"grader"})
    read_from = tasks.practice[condition.name].facts["content"]
    examined = digest(sorted({task.id for exam in tasks.exams.values() for task in exam.tasks}))
    return {"tasks": {**config, "content": read_from}, "examined": examined}


def _task_facts(tasks: Tasks) -> dict[str, Any]:
    """The manifest's `data.tasks` table: what is examined, and what each condition practises on."""
    return {
        "tasks": {
            "suites": {name: {"items": len(exam.tasks), **exam.facts} for name, exam in tasks.exams.items()},
            "practice": [{"condition": name, **practice.facts} for name, practice in tasks.practice.items()],
        }
    }


def _facts(spec: Spec, rows: Rows) -> dict[str, Any]:
    """The manifest's `data` table: pool, scores, test sets, selections side by side, overlap for the first seed."""
    held = rows.held[digest(spec.data)]
    facts: dict[str, Any] = {
        "pool": rows.main.facts,
        "scores": rows.table.facts(),
        "test_sets": {
            **rows.tests.facts,
            "rows_held_out": len(held),
            "rows_for_training": len(rows.main.examples) - len(held),
        },
    }
    if not rows.selections:
        return facts
    first = {c.name: rows.selections[c.name, spec.campaign.seeds[0]] for c in spec.supervised}
    steps = {c.name: c.steps(len(first[c.name].ids)) for c in spec.supervised}
    if rows.parts:
        facts["mixtures"] = [
            {"condition": condition, "part": name, **part.facts}
            for condition, parts in rows.parts.items()
            for name, part in parts.items()
        ]
    return {
        **facts,
        "selections": [
            {"condition": name, "seed": seed, **selection.facts, "key": selection.key}
            for (name, seed), selection in rows.selections.items()
        ],
        "side_by_side": side_by_side(first, steps),
        "overlap": overlap(first),
    }
