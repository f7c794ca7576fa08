"""The stages that need a model, in the one dict `STAGES`: the only place that knows engine and store alike.

`train` turns a cohort of runs into artefacts of the store, `evaluate` turns adapters and suites into outcomes.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.campaign.folder import Folder, Say
from finetrial.campaign.plan import STAGE_VERSIONS, Plan, Run, Suite
from finetrial.campaign.prepare import Prepared
from finetrial.campaign.spec import BASE, Spec
from finetrial.errors import UserError
from finetrial.evaluate.perplexity import perplexity
from finetrial.evaluate.progress import Progress
from finetrial.identity import digest, file_digest, stage_key
from finetrial.model.adapters import Adapter
from finetrial.model.base import Base
from finetrial.model.peft_format import WEIGHTS, load_peft, save_peft
from finetrial.model.render import render_batch
from finetrial.records import Example, Outcome
from finetrial.store import read_json, write_json
from finetrial.train.sft import RunData, TrainResult, train_cohort

COHORT = "cohort.json"
"""Keys of a cohort's runs, in its checkpoint folder."""

ADAPTERS_PER_SWEEP = 16
"""Adapters evaluated before their results are stored: what a crash can lose."""


def train(base: Base, folder: Folder, spec: Spec, cohort: Sequence[Run], prepared: Prepared, say: Say) -> None:
    """Train a cohort in one stack and store each run's adapter, metrics and record."""
    steps = cohort[0].steps
    names = ", ".join(run.name for run in cohort)
    say(f"training {len(cohort)} runs in one stack, {steps} steps: {names}")
    checkpoint = folder.checkpoint / digest([run.key for run in cohort])[:16]
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_json(checkpoint / COHORT, [run.key for run in cohort])
    data = [_run_data(base, spec, run, checkpoint) for run in cohort]
    for run, mine in zip(cohort, data, strict=True):
        folder.show_progress(run.name, mine.metrics)
    with Progress("train", steps) as progress:
        results = train_cohort(base.model, data, steps, checkpoint, progress)
    for run, rendered, result in zip(cohort, data, results, strict=True):
        if result.status == "quarantined":
            say(f"{run.name} was quarantined: {result.reason}")
        _store_run(base, folder, spec, run, rendered, result, prepared.inputs.numerics, len(cohort))
    shutil.rmtree(checkpoint, ignore_errors=True)


def unfinished(folder: Folder, runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Cohorts of these runs that an earlier launch began: they go on whole, so that each finds its checkpoint."""
    by_key = {run.key: run for run in runs}
    begun = [read_json(path) for path in sorted(folder.checkpoint.glob(f"*/{COHORT}"))]
    return [
        tuple(by_key[key] for key in keys)
        for keys in begun
        if by_key.keys() >= set(keys) and not all(folder.store.has("train", key) for key in keys)
    ]


def _run_data(base: Base, spec: Spec, run: Run, checkpoint: Path) -> RunData:
    """The metrics are written beside the checkpoint that they must agree with, never into another launch's file."""
    condition = spec.condition(run.condition)
    batch = render_batch(
        (example.messages for example in run.selection.examples), base.tokenizer, condition.model.max_length
    )
    if batch.refused:
        place, reason = next(iter(batch.refused.items()))
        raise UserError(
            f"{run.name}: {len(batch.refused)} of {len(batch.rows)} rows cannot be trained on, "
            f"{run.selection.ids[place]!r} first: {reason}"
        )
    rows = [row for row in batch.rows if row is not None]
    metrics = checkpoint / f"{run.name}.jsonl"
    return RunData(run.condition, run.seed, rows, condition.training, condition.model, metrics, run.key)


def _store_run(
    base: Base, folder: Folder, spec: Spec, run: Run, data: RunData, result: TrainResult, numerics: str, sharing: int
) -> None:
    model, ledger = data.model, result.ledger
    record: dict[str, Any] = {
        "campaign": spec.campaign.name,
        "condition": run.condition,
        "seed": run.seed,
        "status": result.status,
        "reason": result.reason,
        "key": run.key,
        "science_key": run.science_key,
        "numerics": numerics,
        "base_key": run.base_key,
        "science": run.science,
        "upstream": run.upstream,
        "planned": {
            "steps": run.steps,
            "rows": run.steps * data.train.batch_size,
            "distinct_rows": min(len(data.rows), run.steps * data.train.batch_size),
            "rank": model.lora_rank,
            "scale": model.scale,
        },
        "realised": {
            "steps": ledger.steps,
            "rows": ledger.rows,
            "distinct_rows": result.distinct_rows,
            "rank": result.adapter.rank,
            "scale": result.adapter.scale,
            "tokens": ledger.tokens,
            "supervised_tokens": ledger.supervised_tokens,
            "truncated_rows": result.truncated_rows,
            "unsupervised_rows": result.unsupervised_rows,
            "selected_rows": len(data.rows),
            "final_loss": ledger.loss,
        },
        "cohort": sharing,
        "seconds": result.seconds / sharing,
        "moved": _moved(result.adapter),
    }
    with folder.store.put("train", run.key, record) as target:
        save_peft(result.adapter, target / "adapter", spec.model.base, spec.model.revision)
        record["adapter"] = digest(
            [file_digest(target / "adapter" / WEIGHTS), result.adapter.rank, result.adapter.alpha, model.rslora]
        )
        write_json(target / "rows.json", sorted(map(list, run.rows)))
        shutil.copyfile(data.metrics, target / "metrics.jsonl")


def _moved(adapter: Adapter) -> bool:
    """Whether the adapter changes anything: B starts at 0 and the base is what it is until B moves."""
    return any(bool(b_RO.any()) for _, b_RO in adapter.weights.values())


def evaluate(
    base: Base,
    folder: Folder,
    spec: Spec,
    decided: Plan,
    records: Mapping[str, Mapping[str, Any]],
    prepared: Prepared,
    say: Say,
) -> list[Outcome]:
    """Measure the base and every finished adapter on every suite; what was measured before is not done again.

    A quarantined run has no adapter to measure: its outcomes are there and missing, so that no statistic can take
    the runs that survived for all.
    """
    finished = {run.name: run for run in decided.runs if records[run.name]["status"] == "done"}
    failed = [run for run in decided.runs if run.name not in finished]
    adapters = {name: str(records[name]["adapter"]) for name in finished}
    outcomes = []
    for suite in decided.suites:
        keys = {name: _evaluation_key(prepared, suite, adapter) for name, adapter in {BASE: BASE, **adapters}.items()}
        missing = {}
        for name, key in keys.items():
            if folder.store.has("evaluate", key):
                say(f"[{suite.name}] {name} is already evaluated ({key[:12]})")
            elif key not in missing.values():
                missing[name] = key
        _measure(base, folder, spec, suite, missing, finished, prepared)
        for name, key in keys.items():
            run = finished.get(name)
            condition, seed = (run.condition, run.seed) if run else (BASE, None)
            outcomes += _outcomes(folder.store.path("evaluate", key), condition, seed, suite)
        for run in failed:
            items = _outcomes(folder.store.path("evaluate", keys[BASE]), run.condition, run.seed, suite)
            outcomes += [replace(outcome, value=None) for outcome in items]
    order = {name: place for place, name in enumerate([BASE, *(condition.name for condition in spec.conditions)])}
    return sorted(outcomes, key=lambda o: (order[o.condition], o.seed or 0, o.suite, o.item, o.metric))


def _evaluation_key(prepared: Prepared, suite: Suite, adapter: str) -> str:
    inputs = {
        "adapter": adapter,
        "base": prepared.inputs.base_key,
        "suite": suite.hash,
        "numerics": prepared.inputs.numerics,
    }
    return stage_key("evaluate", STAGE_VERSIONS["evaluate"], {"metric": "perplexity"}, inputs)


def _measure(
    base: Base,
    folder: Folder,
    spec: Spec,
    suite: Suite,
    missing: Mapping[str, str],
    finished: Mapping[str, Run],
    prepared: Prepared,
) -> None:
    """Score the items of a suite under the models that lack it, a sweep at a time, and store each result."""
    if not missing:
        return
    examples = sorted(prepared.suites[suite.name], key=lambda example: example.id)
    batch = render_batch((example.messages for example in examples), base.tokenizer, spec.model.max_length)
    items = {example.id: row for example, row in zip(examples, batch.rows, strict=True) if row is not None}
    if not items:
        raise UserError(f"suite {suite.name!r}: no item can be scored, for example: {batch.refused[0]}")
    names = [name for name in missing if name != BASE]
    for start in range(0, max(1, len(names)), ADAPTERS_PER_SWEEP):
        sweep = names[start : start + ADAPTERS_PER_SWEEP]
        loaded = [load_peft(folder.store.path("train", finished[name].key) / "adapter") for name in sweep]
        with Progress(suite.name, len(items) * (1 + len(sweep))) as progress:
            scores = perplexity(base.model, loaded, items, spec.evaluation.batch_tokens, progress)
        for row, name in enumerate([BASE, *sweep]):
            if name in missing and not folder.store.has("evaluate", missing[name]):
                columns = {
                    "item": [example.id for example in examples],
                    "group": [example.group for example in examples],
                    "nll": _spread(scores.items, scores.nll_GK[row], examples),
                    "tokens": _spread(scores.items, scores.tokens_K, examples),
                    "bytes": _spread(scores.items, scores.bytes_K, examples),
                }
                record = {"suite": suite.name, "model": name, "refused": len(batch.refused)}
                with folder.store.put("evaluate", missing[name], record) as target:
                    pq.write_table(pa.table(columns), target / "items.parquet")


def _spread(items: Sequence[str], values: np.ndarray, examples: Sequence[Example]) -> list[Any]:
    """Values by item in the order of all examples; None for one that could not be rendered."""
    known = dict(zip(items, values.tolist(), strict=True))
    return [known.get(example.id) for example in examples]


def _outcomes(artefact: Path, condition: str, seed: int | None, suite: Suite) -> list[Outcome]:
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
        for metric, value, weight in (
            ("nll", per_token, 1),
            ("log_perplexity", per_token, tokens),
            ("bits_per_byte", per_byte, size),
        ):
            outcomes.append(
                Outcome(
                    condition=condition,
                    seed=seed,
                    suite=suite.name,
                    item=row["item"],
                    sample=0,
                    metric=metric,
                    value=value,
                    weight=float(weight or 1),
                    group=row["group"],
                    suite_hash=suite.hash,
                )
            )
    return outcomes


STAGES: dict[str, Callable[..., Any]] = {"train": train, "evaluate": evaluate}
"""Stage name -> function; its version stands in `plan.STAGE_VERSIONS`."""
