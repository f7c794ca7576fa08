"""The stage `evaluate`: adapters and suites become outcomes.

Every model's result on a suite is an artefact of its own (`measures`): a crash loses at most a sweep or a block, and
what was measured once is not measured again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.campaign.folder import COMPLETIONS
from finetrial.campaign.health import alive
from finetrial.campaign.launch import Launch
from finetrial.campaign.measures import choice, harness, likelihood, tasks
from finetrial.campaign.measures.examinee import Examinee
from finetrial.campaign.plan import Plan, Suite, reached
from finetrial.campaign.settings import BASE
from finetrial.records import Outcome

THE_BASE = Examinee(BASE, None, BASE, BASE, None)


@dataclass(frozen=True)
class Kind:
    """How suites of one kind are measured."""

    measure: Callable[[Launch, Suite, Sequence[Examinee]], None]
    """Makes and stores what is lacking of these models."""
    outcomes: Callable[[Launch, Suite, Examinee], list[Outcome]]
    """What is stored of a model, as outcomes."""
    answers: Callable[[Launch, Suite, Examinee], pa.Table] | None = None
    """What a model wrote, where suites of the kind make it write."""


KINDS: dict[str, Kind] = {
    "perplexity": Kind(likelihood.measure, likelihood.outcomes),
    "choice": Kind(choice.measure, choice.outcomes),
    "tasks": Kind(tasks.measure, tasks.outcomes, tasks.answers),
    "conversation": Kind(tasks.measure, tasks.outcomes, tasks.answers),
    "lm_eval": Kind(harness.measure, harness.outcomes),
}
"""Every kind of suite."""


def evaluate(launch: Launch, decided: Plan, records: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
    """Measure the base and every finished adapter on every suite; what was measured before is not done again.

    A quarantined run has no adapter to measure, nor has one that its guard stopped at the steps behind its end: their
    outcomes are there and missing, so that no statistic can take the runs that survived for all. What models wrote is
    collected in `completions.parquet`.

    Raises:
        UserError: a contrast is on an instrument that measured nothing.
    """
    outcomes: list[Outcome] = []
    written: list[pa.Table] = []
    for suite in decided.suites:
        kind, examinees = KINDS[suite.kind], _examinees(launch, suite, decided, records)
        kind.measure(launch, suite, examinees)
        for one in examinees:
            outcomes += kind.outcomes(launch, suite, one)
            if kind.answers is not None:
                written.append(kind.answers(launch, suite, one))
        for run in decided.runs:
            if not reached(records[run.name], suite.step) and (suite.step is None or suite.step in run.snapshots):
                gone = replace(THE_BASE, condition=run.condition, seed=run.seed)
                outcomes += [replace(outcome, value=None) for outcome in kind.outcomes(launch, suite, gone)]
    if written:
        _write(pa.concat_tables(written), launch.folder.path / COMPLETIONS)
    order = {
        name: place for place, name in enumerate([BASE, *(condition.name for condition in launch.spec.conditions)])
    }
    outcomes = alive(outcomes, launch.spec.contrasts, launch.spec.campaign.primary_metric, launch.say)
    return sorted(outcomes, key=lambda o: (order[o.condition], o.seed or 0, o.suite, o.item, o.metric, o.sample))


def _examinees(launch: Launch, suite: Suite, decided: Plan, records: Mapping[str, Mapping[str, Any]]) -> list[Examinee]:
    """The base and every finished adapter; at a snapshot the adapters that were kept then."""
    examinees = [THE_BASE] if suite.step is None else []
    for run in decided.runs:
        record, folder = records[run.name], launch.folder.store.path("train", run.key)
        if not reached(record, suite.step):
            continue
        if suite.step is None:
            examinees.append(Examinee(run.condition, run.seed, run.name, str(record["adapter"]), folder / "adapter"))
        elif suite.step in run.snapshots:
            kept = folder / "snapshots" / f"step-{suite.step}"
            examinees.append(
                Examinee(run.condition, run.seed, run.name, str(record["snapshots"][str(suite.step)]), kept)
            )
    return examinees


def _write(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
