"""What models write on a suite of tasks or in its conversations, kept apart from what is made of it.

A block of items under one model is an artefact of its own, keyed by all that completions depend on: adapter, base,
prompts, sampling, samples, seed, numerics. A crash loses at most a block; another grader finds the completions there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from finetrial.campaign.launch import Launch
from finetrial.campaign.measures.examinee import Examinee, put, stored, sweeps
from finetrial.campaign.plan import STAGE_VERSIONS, Suite
from finetrial.campaign.practice import Exam
from finetrial.evaluate.completions import Written, write
from finetrial.evaluate.conversation import converse
from finetrial.evaluate.progress import Part, Progress
from finetrial.generate.decode import NotFinite
from finetrial.identity import digest, stage_key
from finetrial.model.adapters import Adapter
from finetrial.records import Task

Answers = Sequence[Sequence[Written | None]]
"""Of one model: (item, sample); None where there was no room for an answer."""

STAGES = {"tasks": "completions", "conversation": "conversation"}
"""Kind of suite -> stage under which what is written is stored."""

BLOCK_ITEMS = 128
"""Items of a block: what a crash can lose. Constant, so that blocks of an earlier launch are found again."""

WRITTEN = pa.schema(
    [
        ("item", pa.string()),
        ("sample", pa.int64()),
        ("text", pa.string()),
        ("tokens", pa.int64()),
        ("finished", pa.bool_()),
    ]
)
"""Columns of a block. Where the model's logits were not finite all but the first two are null; where a conversation
had outgrown the base's context there is no text, and `finished` is false."""

NOT_FINITE = "logits are not finite"
NO_ROOM = "the conversation had outgrown the base's context"


def blocks(exam: Exam) -> list[tuple[Task, ...]]:
    """The items of an exam, a block at a time; the turns of a dialogue are not parted."""
    if exam.script is None:
        return [exam.tasks[start : start + BLOCK_ITEMS] for start in range(0, len(exam.tasks), BLOCK_ITEMS)]
    found: list[tuple[Task, ...]] = [()]
    for _, turns in groupby(exam.tasks, key=lambda task: task.group):
        mine = tuple(turns)
        if found[-1] and len(found[-1]) + len(mine) > BLOCK_ITEMS:
            found.append(())
        found[-1] += mine
    return found


def key(launch: Launch, exam: Exam, block: Sequence[Task], one: Examinee) -> str:
    """Identity of what a model writes on a block."""
    evaluation = exam.evaluation
    inputs = {
        "adapter": one.adapter,
        "base": launch.prepared.inputs.base_key,
        "prompts": digest(_said(launch, exam, block)),
        "numerics": launch.prepared.inputs.numerics,
    }
    drawn = {"sampling": evaluation.sampling.model_dump(mode="json"), "samples": evaluation.samples}
    stage = STAGES[exam.kind]
    return stage_key(stage, STAGE_VERSIONS[stage], drawn, inputs, evaluation.seed)


def _said(launch: Launch, exam: Exam, block: Sequence[Task]) -> list[Any]:
    """All that the models are asked on a block: prompts, or what is said in each conversation."""
    if exam.script is None:
        prompts = launch.prepared.prompts_of(block)
        return [[task.id, prompt_T.tolist()] for task, prompt_T in zip(block, prompts, strict=True)]
    script, names = exam.script, dict.fromkeys(task.group for task in block)
    said = [script.dialogues[name] for name in names]
    return [[script.system, one.id, list(one.turns), script.temperatures.get(one.category)] for one in said]


def complete(launch: Launch, suite: Suite, exam: Exam, examinees: Sequence[Examinee]) -> None:
    """Let the models write what they have not written yet, and store it block by block."""
    store, stage = launch.folder.store, STAGES[exam.kind]
    parts = [{one.name: key(launch, exam, block, one) for one in examinees} for block in blocks(exam)]
    idle = {one.name for one in examinees if all(store.has(stage, keys[one.name]) for keys in parts)}
    waiting = {tuple(keys[one.name] for keys in parts): one for one in examinees if one.name not in idle}
    for sweep in sweeps(list(waiting.values())):
        adapters = {one.name: one.load() for one in sweep if one.folder is not None}
        broken: set[str] = set()
        lacking = [[one for one in sweep if not store.has(stage, keys[one.name])] for keys in parts]
        total = sum(
            len(block) * len(mine) * exam.evaluation.samples for block, mine in zip(blocks(exam), lacking, strict=True)
        )
        with Progress(suite.name, total) as progress:
            before = 0
            for block, keys, mine in zip(blocks(exam), parts, lacking, strict=True):
                texts = _written(launch, exam, block, mine, adapters, broken, Part(progress, before))
                for one in mine:
                    put(launch, stage, keys[one.name], suite, one, _table(block, exam, texts.get(one.name)))
                before += len(block) * len(mine) * exam.evaluation.samples


def _written(
    launch: Launch,
    exam: Exam,
    block: Sequence[Task],
    models: Sequence[Examinee],
    adapters: dict[str, Adapter],
    broken: set[str],
    shown: Part,
) -> Mapping[str, Answers]:
    """What each model wrote on a block; one whose logits are not finite joins `broken`, and the others go on."""
    while True:
        able = [one for one in models if one.name not in broken]
        named = [one.name for one in able if one.folder is not None]
        base = [one.name for one in able if one.folder is None]
        if not able:
            return {}
        try:
            found = _answers(launch, exam, block, [adapters[name] for name in named], bool(base), shown)
        except NotFinite as error:
            if error.adapter is None:
                raise
            broken.add(named[error.adapter])
        else:
            return dict(zip([*base, *named], found, strict=True))


def _answers(
    launch: Launch, exam: Exam, block: Sequence[Task], adapters: Sequence[Adapter], base: bool, shown: Part
) -> Iterable[Answers]:
    """What each model wrote on a block, the base first where it writes too."""
    evaluation, examined = exam.evaluation, launch.base
    if exam.script is None:
        return write(
            examined.model,
            adapters,
            block,
            launch.prepared.prompts_of(block),
            examined.tokenizer,
            examined.stop_ids,
            evaluation.sampling,
            evaluation.samples,
            evaluation.seed,
            shown,
            base=base,
        )
    held = converse(
        examined.model,
        adapters,
        [exam.script.dialogues[name] for name in dict.fromkeys(task.group for task in block)],
        examined.tokenizer,
        examined.stop_ids,
        evaluation.sampling,
        exam.script.temperatures,
        exam.script.system,
        evaluation.samples,
        evaluation.seed,
        shown,
        base=base,
    )
    return [[list(turn) for samples in mine for turn in zip(*samples, strict=True)] for mine in held.answers]


def _table(block: Sequence[Task], exam: Exam, written: Answers | None) -> pa.Table:
    rows = []
    for k, task in enumerate(block):
        for j in range(exam.evaluation.samples):
            row = {"item": task.id, "sample": j, "text": None, "tokens": None, "finished": None}
            if written is not None:
                one = written[k][j]
                row |= {"finished": False} if one is None else vars(one)
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=WRITTEN)


def read(launch: Launch, exam: Exam, one: Examinee) -> list[pa.Table]:
    """What a model wrote, block by block; of one that broke anywhere everything is missing."""
    tables = [stored(launch, STAGES[exam.kind], key(launch, exam, block, one)) for block in blocks(exam)]
    if any(map(is_broken, tables)):
        return [_table(block, exam, None) for block in blocks(exam)]
    return tables


def is_broken(table: pa.Table) -> bool:
    """Whether the model's logits were not finite on this block."""
    return bool(table["finished"].null_count)


def as_asked(exam: Exam, block: Sequence[Task], written: Sequence[Mapping[str, Any]]) -> list[Task]:
    """The task that each row of a block answers: in conversations with what the model itself had answered before."""
    tasks = {task.id: task for task in block}
    if exam.script is None:
        return [tasks[row["item"]] for row in written]
    said: dict[tuple[str, int], list[str]] = {}
    found = []
    for row in written:  # turn by turn in each dialogue
        task = tasks[row["item"]]
        before = said.setdefault((task.group, row["sample"]), [])
        answers = iter(before)
        messages = tuple(
            {**one, "content": next(answers)} if one["role"] == "assistant" else one for one in task.messages
        )
        found.append(replace(task, messages=messages))
        before.append(row["text"])
    return found
