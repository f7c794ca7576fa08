"""Suites of kind `lm_eval`: tasks of lm-evaluation-harness for the base and all adapters in one pass."""

from collections.abc import Mapping, Sequence
from math import isfinite, log
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa

from finetrial.campaign.harness import BITS, Harness, named
from finetrial.campaign.launch import Launch
from finetrial.campaign.measures.examinee import Examinee, fill, stored, suite_key
from finetrial.campaign.plan import Suite
from finetrial.errors import UserError
from finetrial.generate.decode import NotFinite
from finetrial.records import Outcome

STAGE = "lm_eval"

MEASURED = pa.schema(
    [("item", pa.string()), ("metric", pa.string()), ("value", pa.float64()), ("weight", pa.float64())]
)
"""Columns: a row for each item and metric; the value is null where it is no finite number."""


def measure(launch: Launch, suite: Suite, examinees: Sequence[Examinee]) -> None:
    """Let the harness evaluate the models that lack the suite, and store an artefact for each.

    Raises:
        UserError: a metric on which there is a contrast has no value of any item.
    """
    fill(launch, suite, STAGE, examinees, lambda sweep: _evaluated(launch, suite, sweep))
    measured = {
        metric
        for one in examinees
        for metric in stored(launch, STAGE, suite_key(launch, STAGE, suite, one))["metric"].unique().to_pylist()
    }
    task = launch.prepared.harness[suite.of].config.task
    for contrast in launch.spec.contrasts:
        metric = contrast.metric or launch.spec.campaign.primary_metric
        if suite.name in (contrast.suite, contrast.minus_suite) and metric not in measured:
            raise UserError(f"[[contrasts]] {contrast.name!r}: {task} gave no item a value of {metric!r}")


def outcomes(launch: Launch, suite: Suite, one: Examinee) -> list[Outcome]:
    """The task's own metrics of each item, under the task's own names."""
    return [
        one.outcome(suite, row["item"], row["item"], row["metric"], row["value"], weight=row["weight"])
        for row in stored(launch, STAGE, suite_key(launch, STAGE, suite, one)).to_pylist()
    ]


def _evaluated(launch: Launch, suite: Suite, sweep: Sequence[Examinee]) -> list[pa.Table]:
    """What the harness makes of each model; of one whose logits are not finite all is missing, and the others go on."""
    from finetrial.evaluate import lm_eval_model

    harness = launch.prepared.harness[suite.of]
    adapters = {one.name: one.load() for one in sweep if one.folder is not None}
    names = {one.name: lm_eval_model.BASE if one.folder is None else one.name for one in sweep}
    alone = lm_eval_model.BASE not in names.values()
    found: Mapping[str, Mapping[str, Any]] = {}
    while adapters or not alone:
        try:
            found = lm_eval_model.evaluate_all(
                launch.base,
                adapters,
                list(harness.tasks.values()),
                num_fewshot=harness.config.num_fewshot,
                batch_tokens=launch.spec.evaluation.batch_tokens,
                seed=launch.spec.evaluation.seed,
                name=suite.name,
                alone=alone,
                limit=harness.config.limit,
                apply_chat_template=harness.config.chat_template,
                fewshot_as_multiturn=harness.config.chat_template,
                bootstrap_iters=0,
            )
            break
        except NotFinite as error:
            if error.adapter is None:
                raise
            del adapters[list(adapters)[error.adapter]]
    return [
        _table(harness, found[names[one.name]]["samples"]) if names[one.name] in found else _missing(harness)
        for one in sweep
    ]


def _missing(harness: Harness) -> pa.Table:
    """A table without any value."""
    rows = [
        {"item": item.id, "metric": metric, "value": None, "weight": 1.0}
        for item in harness.items
        for metric in harness.metrics
    ]
    return pa.Table.from_pylist(rows, schema=MEASURED)


def _table(harness: Harness, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> pa.Table:
    """Values of (item, metric) under one model; what is no number of an item is left out."""
    rows: list[dict[str, Any]] = []
    for name, task in harness.tasks.items():
        for sample in samples[name]:
            for metric in sample["metrics"]:
                names = named(task, metric)
                label = metric if len(names) == 1 else f"{metric},{sample['filter']}"
                value, weight = sample[metric], 1.0
                if metric == BITS:
                    nats, size = value
                    value, weight = (-nats / (log(2) * size) if size else None), float(size or 1)
                if label not in harness.metrics or not (value is None or isinstance(value, Real | np.bool_)):
                    continue
                number = None if value is None or not isfinite(value) else float(value)
                rows.append({"item": f"{name}/{sample['doc_id']}", "metric": label, "value": number, "weight": weight})
    return pa.Table.from_pylist(rows, schema=MEASURED)
