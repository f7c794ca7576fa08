"""What models write on a suite of tasks, kept apart from what is made of it.

A block of items under one model is an artefact of its own, keyed by all that completions depend on: adapter, base,
prompts, sampling, samples, seed, numerics. A crash loses at most a block; another grader finds the completions there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from finetrial.campaign.launch import Launch
from finetrial.campaign.measures.examinee import Examinee, put, stored, sweeps
from finetrial.campaign.plan import STAGE_VERSIONS, Suite
from finetrial.campaign.practice import Exam
from finetrial.evaluate.completions import Written, write
from finetrial.evaluate.progress import Progress
from finetrial.generate.decode import NotFinite
from finetrial.identity import digest, stage_key
from finetrial.model.adapters import Adapter
from finetrial.records import Task

STAGE = "completions"

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
"""Columns of a block; all but the first two are null where the model's logits were not finite."""


@dataclass
class _Shown:
    """A bar over all blocks of a sweep, each of which counts from 0."""

    progress: Progress
    before: int = 0

    def update(self, done: int) -> None:
        self.progress.update(self.before + done)


def blocks(exam: Exam) -> list[tuple[Task, ...]]:
    """The items of an exam, a block at a time."""
    return [exam.tasks[start : start + BLOCK_ITEMS] for start in range(0, len(exam.tasks), BLOCK_ITEMS)]


def key(launch: Launch, exam: Exam, block: Sequence[Task], one: Examinee) -> str:
    """Identity of what a model writes on a block."""
    evaluation = exam.evaluation
    prompts = launch.prepared.prompts_of(block)
    inputs = {
        "adapter": one.adapter,
        "base": launch.prepared.inputs.base_key,
        "prompts": digest([[task.id, prompt_T.tolist()] for task, prompt_T in zip(block, prompts, strict=True)]),
        "numerics": launch.prepared.inputs.numerics,
    }
    drawn = {"sampling": evaluation.sampling.model_dump(mode="json"), "samples": evaluation.samples}
    return stage_key(STAGE, STAGE_VERSIONS[STAGE], drawn, inputs, evaluation.seed)


def complete(launch: Launch, suite: Suite, exam: Exam, examinees: Sequence[Examinee]) -> None:
    """Let the models write what they have not written yet, and store it block by block."""
    store = launch.folder.store
    parts = [{one.name: key(launch, exam, block, one) for one in examinees} for block in blocks(exam)]
    idle = {one.name for one in examinees if all(store.has(STAGE, keys[one.name]) for keys in parts)}
    waiting = {tuple(keys[one.name] for keys in parts): one for one in examinees if one.name not in idle}
    for sweep in sweeps(list(waiting.values())):
        adapters = {one.name: one.load() for one in sweep if one.folder is not None}
        broken: set[str] = set()
        lacking = [[one for one in sweep if not store.has(STAGE, keys[one.name])] for keys in parts]
        total = sum(
            len(block) * len(mine) * exam.evaluation.samples for block, mine in zip(blocks(exam), lacking, strict=True)
        )
        with Progress(suite.name, total) as progress:
            shown = _Shown(progress)
            for block, keys, mine in zip(blocks(exam), parts, lacking, strict=True):
                texts = _written(launch, exam, block, mine, adapters, broken, shown)
                for one in mine:
                    put(launch, STAGE, keys[one.name], suite, one, _table(block, exam, texts.get(one.name)))
                shown.before += len(block) * len(mine) * exam.evaluation.samples


def _written(
    launch: Launch,
    exam: Exam,
    block: Sequence[Task],
    models: Sequence[Examinee],
    adapters: dict[str, Adapter],
    broken: set[str],
    shown: _Shown,
) -> dict[str, list[list[Written]]]:
    """What each model wrote on a block; one whose logits are not finite joins `broken`, and the others go on."""
    evaluation = exam.evaluation
    while True:
        able = [one for one in models if one.name not in broken]
        named = [one.name for one in able if one.folder is not None]
        base = [one.name for one in able if one.folder is None]
        if not able:
            return {}
        try:
            found = write(
                launch.base.model,
                [adapters[name] for name in named],
                block,
                launch.prepared.prompts_of(block),
                launch.base.tokenizer,
                launch.base.stop_ids,
                evaluation.sampling,
                evaluation.samples,
                evaluation.seed,
                shown,
                base=bool(base),
            )
        except NotFinite as error:
            if error.adapter is None:
                raise
            broken.add(named[error.adapter])
        else:
            return dict(zip([*base, *named], found, strict=True))


def _table(block: Sequence[Task], exam: Exam, written: Sequence[Sequence[Written]] | None) -> pa.Table:
    rows = []
    for k, task in enumerate(block):
        for j in range(exam.evaluation.samples):
            row = {"item": task.id, "sample": j, "text": None, "tokens": None, "finished": None}
            if written is not None:
                one = written[k][j]
                row |= {"text": one.text, "tokens": one.tokens, "finished": one.finished}
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=WRITTEN)


def read(launch: Launch, exam: Exam, one: Examinee) -> list[pa.Table]:
    """What a model wrote, block by block; of one that broke anywhere everything is missing."""
    tables = [stored(launch, STAGE, key(launch, exam, block, one)) for block in blocks(exam)]
    if any(table["text"].null_count for table in tables):
        return [_table(block, exam, None) for block in blocks(exam)]
    return tables
