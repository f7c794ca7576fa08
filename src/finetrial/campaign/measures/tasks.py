"""Suites of kind `tasks` and `conversation`: completions, their grades, and how samples of an item differ.

Three kinds of artefact. Grades are keyed by completions and grader, texts' metrics by completions and instruments: a
changed grader grades again what is stored, and nothing is written anew.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from finetrial.campaign.contrasts import graded_as
from finetrial.campaign.launch import Launch
from finetrial.campaign.measures import completions
from finetrial.campaign.measures.examinee import Examinee, put, stored
from finetrial.campaign.measures.rewards import prove, rewarded
from finetrial.campaign.plan import STAGE_VERSIONS, Suite
from finetrial.campaign.practice import Exam, Grading
from finetrial.errors import UserError
from finetrial.evaluate.perplexity import CPU_BATCH_TOKENS
from finetrial.evaluate.reward_config import RewardModelConfig
from finetrial.evaluate.texts import text_metrics
from finetrial.identity import digest, stage_key
from finetrial.judge.grader import PENDING
from finetrial.model.embed import embed
from finetrial.records import Outcome, Task

GRADES = pa.schema([("item", pa.string()), ("sample", pa.int64()), ("grade", pa.float64()), ("reason", pa.string())])
"""Columns of stored grades; `grade` is null where none could be given, of a reward model it is the raw reward."""

TEXTS = pa.schema([("item", pa.string()), ("sample", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])
"""Columns of stored metrics of texts, a row for each number; those of an item as a whole have sample 0."""

NO_REFERENCE = "the turn has no reference"


def measure(launch: Launch, suite: Suite, examinees: Sequence[Examinee]) -> None:
    """Complete, grade and measure what is lacking, and store it."""
    exam = launch.prepared.tasks.exams[suite.of]
    written = completions.STAGES[exam.kind]
    lacking = {one.name: _lacking(launch, exam, one) for one in examinees}
    if exam.grading.kind == "reward_model":
        found = prove(launch, suite.of, exam)
        if any(lacking.values()):
            launch.say(f"[{suite.name}] {found}")
    for one in examinees:
        if not lacking[one.name]:
            first = completions.key(launch, exam, completions.blocks(exam)[0], one)
            launch.say(f"[{suite.name}] {one.name} is already evaluated ({first[:12]})")
        elif written not in lacking[one.name]:
            again = " and ".join({"grades": "graded", "texts": "measured"}[stage] for stage in lacking[one.name])
            launch.say(f"[{suite.name}] {one.name}: its completions are stored; they are {again} without writing anew")
    completions.complete(launch, suite, exam, [one for one in examinees if written in lacking[one.name]])
    for one in examinees:
        if lacking[one.name]:
            _grade(launch, suite, exam, one)
            if exam.evaluation.instruments:
                _measure_texts(launch, suite, exam, one)
        if exam.grading.kind == "judge":
            blocks = zip(completions.blocks(exam), completions.read(launch, exam, one), strict=True)
            judged = [pair for block, table in blocks for pair in _gradable(exam, block, table.to_pylist())]
            launch.graders.rest_on(exam.grading, suite.name, one.name, judged)


def outcomes(launch: Launch, suite: Suite, one: Examinee) -> list[Outcome]:
    """Per item and sample its grades and `completion_tokens`; with `[evaluation] diversity` also what
    `finetrial.evaluate.diversity` measures of an item's samples and `rouge_n` of each sample.

    Grades are `correct`, or what `campaign.contrasts.graded_as` says of the grader. Choices are graded twice, strictly
    and, as `correct_relaxed`, with every way of naming an option. What could be graded and was not is there without a
    value; turns of conversations that never can be (no reference) have no grade.
    """
    exam = launch.prepared.tasks.exams[suite.of]
    groups = {task.id: task.group for task in exam.tasks}
    graded = {task.id for task in exam.graded}
    written = completions.read(launch, exam, one)
    found: list[Outcome] = []
    for block, texts in zip(completions.blocks(exam), written, strict=True):
        for row in texts.to_pylist():
            tokens = None if row["tokens"] is None else float(row["tokens"])
            found.append(
                one.outcome(suite, row["item"], groups[row["item"]], "completion_tokens", tokens, row["sample"])
            )
        broken = completions.is_broken(texts)
        for metric, grading, in_its_unit in _metrics(exam):
            for row in stored(launch, "grades", _grades_key(launch, exam, block, one, grading)).to_pylist():
                if row["item"] in graded:
                    value = None if broken or row["grade"] is None else in_its_unit(row["grade"])
                    found.append(one.outcome(suite, row["item"], groups[row["item"]], metric, value, row["sample"]))
        if exam.evaluation.instruments:
            for row in stored(launch, "texts", _texts_key(launch, exam, block, one)).to_pylist():
                value = None if broken else row["value"]
                found.append(one.outcome(suite, row["item"], groups[row["item"]], row["metric"], value, row["sample"]))
    return found


def answers(launch: Launch, suite: Suite, one: Examinee) -> pa.Table:
    """Everything that a model wrote on a suite, with grades and whose it is."""
    exam = launch.prepared.tasks.exams[suite.of]
    groups = {task.id: task.group for task in exam.tasks}
    tables = []
    for block, texts in zip(completions.blocks(exam), completions.read(launch, exam, one), strict=True):
        graded = stored(launch, "grades", _grades_key(launch, exam, block, one, exam.grading))
        table = texts.append_column("grade", graded["grade"]).append_column("reason", graded["reason"])
        if completions.is_broken(table):
            reasons = pa.array([completions.NOT_FINITE] * len(table))
            missing = {"grade": pa.nulls(len(table), pa.float64()), "reason": reasons}
            for name, column in missing.items():
                table = table.set_column(table.schema.get_field_index(name), name, column)
        tables.append(table)
    table = pa.concat_tables(tables)
    who = {
        "condition": pa.array([one.condition] * len(table)),
        "seed": pa.array([one.seed] * len(table), pa.int64()),
        "suite": pa.array([suite.name] * len(table)),
        "item": table["item"],
        "group": pa.array([groups[item] for item in table["item"].to_pylist()]),
    }
    return pa.table({**who, **{name: table[name] for name in table.column_names if name not in who}})


def gradings(exam: Exam) -> list[Grading]:
    """How completions are graded: by the suite's grader, and choices also loosely."""
    config = exam.grading.config
    if exam.grading.kind != "choice" or isinstance(config, RewardModelConfig) or config.relaxed:
        return [exam.grading]
    return [exam.grading, Grading(config.model_copy(update={"relaxed": True}), exam.grading.auto)]


def _metrics(exam: Exam) -> list[tuple[str, Grading, Callable[[float], float]]]:
    """Metric, how completions are graded for it, and the map from stored grades to its unit."""
    config = exam.grading.config
    if isinstance(config, RewardModelConfig):
        units: list[Callable[[float], float]] = [float, config.points]
        return [(name, exam.grading, unit) for name, unit in zip(graded_as(exam.kind, config), units, strict=False)]
    (name,) = graded_as(exam.kind, config)
    first, *relaxed = gradings(exam)
    low, high = config.judge.bounds if name == "score" and config.judge is not None else (0.0, 1.0)
    return [
        (name, first, lambda share: low + share * (high - low)),
        *(("correct_relaxed", grading, float) for grading in relaxed),
    ]


def _lacking(launch: Launch, exam: Exam, one: Examinee) -> list[str]:
    """Stages of which some block is not stored."""
    store, lacking = launch.folder.store, []
    for block in completions.blocks(exam):
        keys = [(completions.STAGES[exam.kind], completions.key(launch, exam, block, one))]
        keys += [("grades", _grades_key(launch, exam, block, one, grading)) for grading in gradings(exam)]
        if exam.evaluation.instruments:
            keys.append(("texts", _texts_key(launch, exam, block, one)))
        lacking += [stage for stage, key in keys if not store.has(stage, key)]
    return list(dict.fromkeys(lacking))


def _grades_key(launch: Launch, exam: Exam, block: Sequence[Task], one: Examinee, grading: Grading) -> str:
    inputs = {
        "completions": completions.key(launch, exam, block, one),
        "tasks": digest([task.content_hash for task in block]),
        "grader": grading.key,
    }
    if grading.kind == "reward_model":
        inputs["numerics"] = launch.prepared.inputs.numerics
    return stage_key("grades", STAGE_VERSIONS["grades"], {}, inputs)


def _texts_key(launch: Launch, exam: Exam, block: Sequence[Task], one: Examinee) -> str:
    inputs = {
        "completions": completions.key(launch, exam, block, one),
        "references": digest([task.gold or task.reference for task in block]),
    }
    return stage_key("texts", STAGE_VERSIONS["texts"], exam.evaluation.instruments, inputs)


def _grade(launch: Launch, suite: Suite, exam: Exam, one: Examinee) -> None:
    """Grade what a model wrote by every grader of the suite that has not graded it yet."""
    gradable = {task.id for task in exam.graded}
    for block in completions.blocks(exam):
        for grading in gradings(exam):
            key = _grades_key(launch, exam, block, one, grading)
            if launch.folder.store.has("grades", key):
                continue
            written = _read(launch, exam, block, one)
            pairs = _gradable(exam, block, written)
            given = iter(_grades(launch, grading, *map(list, zip(*pairs, strict=True))) if pairs else [])
            rows = []
            for row in written:
                value, reason = None, NO_REFERENCE
                if row["text"] is None:
                    reason = completions.NOT_FINITE if row["finished"] is None else completions.NO_ROOM
                elif row["item"] in gradable:
                    value, reason = next(given)
                rows.append({"item": row["item"], "sample": row["sample"], "grade": value, "reason": reason})
            if waiting := [str(row["reason"]) for row in rows if str(row["reason"]).startswith(PENDING)]:
                raise UserError(
                    f"suite {suite.name!r}: {len(waiting)} of {len(rows)} completions of {one.name} are {waiting[0]}; "
                    "judgments that were given are kept, and the next launch goes on from there"
                )
            put(launch, "grades", key, suite, one, pa.Table.from_pylist(rows, schema=GRADES))


def _gradable(exam: Exam, block: Sequence[Task], written: Sequence[Mapping[str, Any]]) -> list[tuple[Task, str]]:
    """Of a block the completions that can be graded, each with the task that it answers."""
    gradable = {task.id for task in exam.graded}
    return [
        (task, row["text"])
        for task, row in zip(completions.as_asked(exam, block, written), written, strict=True)
        if row["text"] is not None and row["item"] in gradable
    ]


def _grades(launch: Launch, grading: Grading, tasks: list[Task], texts: list[str]) -> list[tuple[float | None, str]]:
    """A grade, or a raw reward, of each text and the reason."""
    if isinstance(grading.config, RewardModelConfig):
        return rewarded(launch, grading.config, tasks, texts)
    return [(grade.value, grade.reason) for grade in launch.graders.of(grading).grade(tasks, texts)]


def _read(launch: Launch, exam: Exam, block: Sequence[Task], one: Examinee) -> list[dict[str, Any]]:
    """What a model wrote on a block."""
    return stored(launch, completions.STAGES[exam.kind], completions.key(launch, exam, block, one)).to_pylist()


def _measure_texts(launch: Launch, suite: Suite, exam: Exam, one: Examinee) -> None:
    """Measure the samples of every item that has not been measured yet."""
    for block in completions.blocks(exam):
        key = _texts_key(launch, exam, block, one)
        if launch.folder.store.has("texts", key):
            continue
        written = _read(launch, exam, block, one)
        if any(row["text"] is None for row in written):
            written = [{**row, "text": "", "finished": False} for row in written]  # told as missing when it is read
        samples = exam.evaluation.samples
        by_item = [written[start : start + samples] for start in range(0, len(written), samples)]
        rows = _texts(launch, exam, block, by_item)
        put(launch, "texts", key, suite, one, pa.Table.from_pylist(rows, schema=TEXTS))


def _texts(
    launch: Launch, exam: Exam, block: Sequence[Task], by_item: Sequence[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Every metric of the samples of a block, a row for each number."""
    evaluation, embedding = exam.evaluation, None
    if evaluation.instruments["semantic"]:
        room = launch.spec.evaluation.batch_tokens
        room = min(room, CPU_BATCH_TOKENS) if launch.base.device.type == "cpu" else room
        embedding = partial(embed, launch.base.model, launch.base.tokenizer, batch_tokens=room)
    measured = text_metrics(
        [[row["text"] for row in mine] for mine in by_item],
        [[row["finished"] for row in mine] for mine in by_item],
        [task.gold or task.reference for task in block],
        launch.base.vocabulary,
        evaluation.matched_words,
        embedding,
    )
    return [
        {"item": task.id, "sample": j, "metric": name, "value": value}
        for task, found in zip(block, measured, strict=True)
        for name, values in found.items()
        for j, value in enumerate(values)
    ]
