"""The stage `evaluate`: adapters and suites become outcomes.

Every model's result on a suite is an artefact of its own, keyed by adapter and suite: a crash loses at most a sweep,
and what was measured once is not measured again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.campaign.launch import Launch
from finetrial.campaign.plan import STAGE_VERSIONS, Plan, Suite
from finetrial.campaign.practice import Exam
from finetrial.campaign.settings import BASE
from finetrial.errors import UserError
from finetrial.evaluate.perplexity import perplexity
from finetrial.evaluate.progress import Progress
from finetrial.evaluate.tasks import Answer, evaluate_tasks
from finetrial.generate.decode import NotFinite
from finetrial.identity import stage_key
from finetrial.model.adapters import Adapter
from finetrial.model.peft_format import load_peft
from finetrial.model.render import render_batch
from finetrial.records import Example, Grade, Outcome

ADAPTERS_PER_SWEEP = 16
"""Adapters evaluated before their results are stored: what a crash can lose."""

COMPLETIONS = "completions.parquet"
"""In the campaign's folder: what the models wrote, with grades."""

ANSWERS = pa.schema(
    [
        ("item", pa.string()),
        ("group", pa.string()),
        ("sample", pa.int64()),
        ("text", pa.string()),
        ("grade", pa.float64()),
        ("reason", pa.string()),
        ("tokens", pa.int64()),
        ("finished", pa.bool_()),
    ]
)
"""Columns of a stored examination; `grade` is null where none could be given."""


@dataclass(frozen=True)
class Examinee:
    """A model that a suite is measured on."""

    condition: str
    seed: int | None
    name: str
    adapter: str
    """Digest of the adapter; `base` for the base."""
    folder: Path | None
    """Where it is; None for the base."""

    def load(self) -> Adapter:
        """The adapter."""
        assert self.folder is not None
        return load_peft(self.folder)


Measure = Callable[[Launch, Suite, Sequence[Examinee]], list[pa.Table]]
"""Measures models on a suite in one sweep: a table per model."""


def evaluate(launch: Launch, decided: Plan, records: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
    """Measure the base and every finished adapter on every suite; what was measured before is not done again.

    A quarantined run has no adapter to measure: its outcomes are there and missing, so that no statistic can take
    the runs that survived for all. What models wrote is collected in `completions.parquet`.
    """
    outcomes: list[Outcome] = []
    written: list[pa.Table] = []
    for suite in decided.suites:
        examinees = _examinees(launch, suite, decided, records)
        keys = {one.name: _key(launch, suite, one) for one in examinees}
        _measure(launch, suite, examinees, keys)
        store = launch.folder.store
        for one in examinees:
            artefact = store.path("evaluate", keys[one.name])
            outcomes += OUTCOMES[suite.kind](artefact, one.condition, one.seed, suite)
            if suite.kind == "tasks":
                written.append(_signed(pq.read_table(artefact / "items.parquet"), one, suite))
        for run in decided.runs:
            if records[run.name]["status"] != "done" and (suite.step is None or suite.step in run.snapshots):
                outcomes += _missing(launch, suite, run.condition, run.seed)
    if written:
        _write(pa.concat_tables(written), launch.folder.path / COMPLETIONS)
    order = {
        name: place for place, name in enumerate([BASE, *(condition.name for condition in launch.spec.conditions)])
    }
    return sorted(outcomes, key=lambda o: (order[o.condition], o.seed or 0, o.suite, o.item, o.metric, o.sample))


def _examinees(launch: Launch, suite: Suite, decided: Plan, records: Mapping[str, Mapping[str, Any]]) -> list[Examinee]:
    """The base and every finished adapter; at a snapshot the adapters that were kept then."""
    examinees = [Examinee(BASE, None, BASE, BASE, None)] if suite.step is None else []
    for run in decided.runs:
        record, folder = records[run.name], launch.folder.store.path("train", run.key)
        if record["status"] != "done":
            continue
        if suite.step is None:
            examinees.append(Examinee(run.condition, run.seed, run.name, str(record["adapter"]), folder / "adapter"))
        elif suite.step in run.snapshots:
            kept = folder / "snapshots" / f"step-{suite.step}"
            examinees.append(
                Examinee(run.condition, run.seed, run.name, str(record["snapshots"][str(suite.step)]), kept)
            )
    return examinees


def _key(launch: Launch, suite: Suite, one: Examinee) -> str:
    inputs = {
        "adapter": one.adapter,
        "base": launch.prepared.inputs.base_key,
        "suite": suite.hash,
        "numerics": launch.prepared.inputs.numerics,
    }
    stage = {"perplexity": "evaluate", "tasks": "tasks"}[suite.kind]
    return stage_key(stage, STAGE_VERSIONS[stage], {"metric": suite.kind}, inputs)


def _measure(launch: Launch, suite: Suite, examinees: Sequence[Examinee], keys: Mapping[str, str]) -> None:
    """Measure the models that lack the suite, a sweep at a time, and store each result."""
    store, missing = launch.folder.store, {}
    for one in examinees:
        if store.has("evaluate", keys[one.name]):
            launch.say(f"[{suite.name}] {one.name} is already evaluated ({keys[one.name][:12]})")
        else:
            missing.setdefault(keys[one.name], one)
    waiting = list(missing.items())
    for start in range(0, len(waiting), ADAPTERS_PER_SWEEP):
        sweep = waiting[start : start + ADAPTERS_PER_SWEEP]
        tables = MEASURES[suite.kind](launch, suite, [one for _, one in sweep])
        for (key, one), table in zip(sweep, tables, strict=True):
            record = {"suite": suite.name, "kind": suite.kind, "model": one.name}
            with store.put("evaluate", key, record) as target:
                pq.write_table(table, target / "items.parquet")


def _likelihoods(launch: Launch, suite: Suite, sweep: Sequence[Examinee]) -> list[pa.Table]:
    """Nats, tokens and bytes of each item under each model; null where an item cannot be rendered."""
    spec, base = launch.spec, launch.base
    examples = sorted(launch.prepared.suites[suite.of], key=lambda example: example.id)
    batch = render_batch((example.messages for example in examples), base.tokenizer, spec.model.max_length)
    items = {example.id: row for example, row in zip(examples, batch.rows, strict=True) if row is not None}
    if not items:
        raise UserError(f"suite {suite.name!r}: no item can be scored, for example: {batch.refused[0]}")
    adapters = [one.load() for one in sweep if one.folder is not None]
    with Progress(suite.name, len(items) * (1 + len(adapters))) as progress:
        scores = perplexity(base.model, adapters, items, spec.evaluation.batch_tokens, progress)
    places = iter(range(1, 1 + len(adapters)))
    return [
        pa.table(
            {
                "item": [example.id for example in examples],
                "group": [example.group for example in examples],
                "nll": _spread(scores.items, scores.nll_GK[0 if one.folder is None else next(places)], examples),
                "tokens": _spread(scores.items, scores.tokens_K, examples),
                "bytes": _spread(scores.items, scores.bytes_K, examples),
            }
        )
        for one in sweep
    ]


def _spread(items: Sequence[str], values: np.ndarray, examples: Sequence[Example]) -> list[Any]:
    """Values by item in the order of all examples; None for one that could not be rendered."""
    known = dict(zip(items, values.tolist(), strict=True))
    return [known.get(example.id) for example in examples]


def _examined(launch: Launch, suite: Suite, sweep: Sequence[Examinee]) -> list[pa.Table]:
    """What each model wrote on each item, with its grades; of a model whose logits are not finite all are missing."""
    exam = launch.prepared.tasks.exams[suite.of]
    evaluation = exam.evaluation
    broken: set[int] = set()
    while True:
        able = [place for place in range(len(sweep)) if place not in broken]
        adapters = [place for place in able if sweep[place].folder is not None]
        try:
            with Progress(suite.name, len(exam.tasks) * evaluation.samples * len(able)) as progress:
                answers = evaluate_tasks(
                    launch.base.model,
                    [sweep[place].load() for place in adapters],
                    exam.tasks,
                    launch.prepared.prompts_of(exam.tasks),
                    launch.base.tokenizer,
                    launch.base.stop_ids,
                    launch.graders.of(exam.grading),
                    evaluation.sampling,
                    evaluation.samples,
                    evaluation.seed,
                    progress,
                    base=len(adapters) < len(able),
                )
            break
        except NotFinite as error:
            if error.adapter is None:
                raise
            broken.add(adapters[error.adapter])
    nothing = Answer("", Grade(None, "logits are not finite"), 0, False)
    found = dict(zip(sorted(able, key=lambda place: sweep[place].folder is not None), answers, strict=True))
    return [
        _answers(exam, found.get(place, [[nothing] * evaluation.samples for _ in exam.tasks]))
        for place in range(len(sweep))
    ]


def _answers(exam: Exam, answers: Sequence[Sequence[Answer]]) -> pa.Table:
    rows = [
        {
            "item": task.id,
            "group": task.group,
            "sample": j,
            "text": answer.text,
            "grade": answer.grade.value,
            "reason": answer.grade.reason,
            "tokens": answer.tokens,
            "finished": answer.finished,
        }
        for task, mine in zip(exam.tasks, answers, strict=True)
        for j, answer in enumerate(mine)
    ]
    return pa.Table.from_pylist(rows, schema=ANSWERS)


MEASURES: dict[str, Measure] = {"perplexity": _likelihoods, "tasks": _examined}
"""Kind of suite -> how it is measured."""


def _likelihood_outcomes(artefact: Path, condition: str, seed: int | None, suite: Suite) -> list[Outcome]:
    """Three metrics per item; a value is missing where the item was not measured.

    `nll`: mean nats per supervised token, each item weighing the same (the unit that is paired). `log_perplexity`:
    the same values weighted by tokens, so that exp of their mean is the token-weighted perplexity.
    `bits_per_byte`: weighted by bytes, comparable between tokenizers.
    """
    outcomes = []
    for row in pq.read_table(artefact / "items.parquet").to_pylist():
        nll, tokens, size = row["nll"], row["tokens"], row["bytes"]
        per_token = nll / tokens if nll is not None else None
        per_byte = nll / (log(2) * size) if nll is not None and size else None
        outcomes += [
            _outcome(condition, seed, suite, row["item"], row["group"], metric, value, float(weight or 1))
            for metric, value, weight in (
                ("nll", per_token, 1),
                ("log_perplexity", per_token, tokens),
                ("bits_per_byte", per_byte, size),
            )
        ]
    return outcomes


def _task_outcomes(artefact: Path, condition: str, seed: int | None, suite: Suite) -> list[Outcome]:
    """Two metrics per item and sample: `correct`, the grade, missing where there is none, and `completion_tokens`."""
    outcomes = []
    for row in pq.read_table(artefact / "items.parquet").to_pylist():
        correct = _outcome(condition, seed, suite, row["item"], row["group"], "correct", row["grade"])
        tokens = replace(correct, metric="completion_tokens", value=float(row["tokens"]))
        outcomes += [replace(one, sample=row["sample"]) for one in (correct, tokens)]
    return outcomes


def _outcome(
    condition: str,
    seed: int | None,
    suite: Suite,
    item: str,
    group: str,
    metric: str,
    value: float | None,
    weight: float = 1.0,
) -> Outcome:
    return Outcome(
        condition=condition,
        seed=seed,
        suite=suite.name,
        item=item,
        sample=0,
        metric=metric,
        value=value,
        weight=weight,
        group=group,
        suite_hash=suite.hash,
    )


OUTCOMES: dict[str, Callable[[Path, str, int | None, Suite], list[Outcome]]] = {
    "perplexity": _likelihood_outcomes,
    "tasks": _task_outcomes,
}
"""Kind of suite -> how a stored measurement becomes outcomes."""


def _missing(launch: Launch, suite: Suite, condition: str, seed: int) -> list[Outcome]:
    """What a run without an adapter to measure leaves: the base's outcomes on these items, without values."""
    base = Examinee(BASE, None, BASE, BASE, None)
    artefact = launch.folder.store.path("evaluate", _key(launch, suite, base))
    return [replace(outcome, value=None) for outcome in OUTCOMES[suite.kind](artefact, condition, seed, suite)]


def _signed(table: pa.Table, one: Examinee, suite: Suite) -> pa.Table:
    """A stored examination with whose it is."""
    rows = table.num_rows
    who = {"condition": one.condition, "seed": one.seed, "suite": suite.name}
    kinds = {"condition": pa.string(), "seed": pa.int64(), "suite": pa.string()}
    for place, (name, value) in enumerate(who.items()):
        table = table.add_column(place, name, pa.array([value] * rows, kinds[name]))
    return table


def _write(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
