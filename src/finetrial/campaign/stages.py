"""The stages that need a model, in the one dict `STAGES`: the only place that knows engine and store alike.

`train` turns a cohort of runs into artefacts of the store, `evaluate` (measure.py) turns adapters and suites into
outcomes.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetrial.campaign.folder import Folder
from finetrial.campaign.launch import Launch
from finetrial.campaign.measure import evaluate
from finetrial.campaign.mixing import mixture, mixture_facts
from finetrial.campaign.plan import Run
from finetrial.campaign.practice import PracticeSet
from finetrial.campaign.watching import guard_facts, watch
from finetrial.errors import UserError
from finetrial.evaluate.progress import Progress
from finetrial.evaluate.tasks import prompt_ids
from finetrial.identity import digest, file_digest
from finetrial.model.adapters import Adapter
from finetrial.model.config import ModelConfig
from finetrial.model.peft_format import WEIGHTS, load_peft, save_peft
from finetrial.model.render import Rendered, render_batch
from finetrial.records import Example, Task
from finetrial.store import read_json, write_json
from finetrial.train.cohort import train_cohort
from finetrial.train.gradient_share import auxiliary_terms, term_facts
from finetrial.train.runs import Ledger, Practice, RunData, SetPrompts, TrainResult
from finetrial.train.set_log import SetLog

COHORT = "cohort.json"
"""Keys of a cohort's runs, in its checkpoint folder."""


def train(launch: Launch, cohort: Sequence[Run]) -> None:
    """Train a cohort in one stack and store each run's adapter, metrics and record."""
    steps = cohort[0].steps
    names = ", ".join(run.name for run in cohort)
    launch.say(f"training {len(cohort)} runs in one stack, {steps} steps: {names}")
    folder = launch.folder
    checkpoint = folder.checkpoint / digest([run.key for run in cohort])[:16]
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_json(checkpoint / COHORT, [run.key for run in cohort])
    data = [run_data(launch, run, checkpoint / run.name) for run in cohort]
    for run, mine in zip(cohort, data, strict=True):
        folder.show_progress(run.name, mine.folder, run.objective)

    with Progress("train", steps) as progress:
        results = train_cohort(launch.base.model, data, steps, checkpoint, progress)
    for run, mine, result in zip(cohort, data, results, strict=True):
        if result.status == "quarantined":
            launch.say(f"{run.name} was quarantined: {result.reason}")
        _store_run(launch, run, mine, result, len(cohort))
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


def run_data(launch: Launch, run: Run, folder: Path) -> RunData:
    """What a run trains on, and where it writes: beside the checkpoint, never into another launch's files."""
    condition = launch.spec.condition(run.condition)
    return RunData(
        condition=run.condition,
        seed=run.seed,
        rows=_rendered(launch, run, condition.model),
        train=condition.training,
        model=condition.model,
        folder=folder,
        key=run.key,
        practice=_practice(launch, run),
        mixture=mixture(launch, run),
        watch=watch(launch, run),
        sets=_sets(launch, run),
        anchor=condition.anchor,
        snapshots=frozenset(run.snapshots),
    )


def _rendered(launch: Launch, run: Run, model: ModelConfig) -> list[Rendered]:
    """The rows of supervised fine-tuning; none where the run practises.

    Raises:
        UserError: a row cannot be trained on.
    """
    if isinstance(run.selection, PracticeSet):
        return []
    examples = run.selection.examples
    batch = render_batch((example.messages for example in examples), launch.base.tokenizer, model.max_length)
    if batch.refused:
        place, reason = next(iter(batch.refused.items()))
        raise UserError(
            f"{run.name}: {len(batch.refused)} of {len(batch.rows)} rows cannot be trained on, "
            f"{run.selection.ids[place]!r} first: {reason}"
        )
    return [row for row in batch.rows if row is not None]


def _practice(launch: Launch, run: Run) -> Practice | None:
    rl = launch.spec.condition(run.condition).rl
    if rl is None or not isinstance(run.selection, PracticeSet):
        return None
    return Practice(
        tasks=run.selection.tasks,
        prompts=launch.prepared.prompts_of(run.selection.tasks),
        grader=launch.graders.of(run.selection.grading),
        rl=rl,
        tokenizer=launch.base.tokenizer,
        stop_ids=launch.base.stop_ids,
    )


def _sets(launch: Launch, run: Run) -> SetPrompts | None:
    """What sets of completions are drawn for: every prompt of the run's rows that leaves room for a completion.

    Raises:
        UserError: none does.
    """
    condition = launch.spec.condition(run.condition)
    config = condition.set_diversity
    if config is None or isinstance(run.selection, PracticeSet):
        return None
    asked = {task.content_hash: task for task in map(last_turn, reversed(run.selection.examples)) if task.messages}
    tasks = sorted(asked.values(), key=lambda task: task.id)
    context = getattr(launch.base.model.config.get_text_config(), "max_position_embeddings", None)
    most = min(condition.model.max_length, context or condition.model.max_length)
    prompts = prompt_ids(tasks, launch.base.tokenizer)
    fitting = [n for n, prompt_T in enumerate(prompts) if len(prompt_T) + config.sampling.max_tokens <= most]
    if not fitting:
        raise UserError(
            f"{run.name}: none of the {len(tasks)} prompts of its rows leaves room for set_diversity.sampling."
            f"max_tokens = {config.sampling.max_tokens} tokens within {most}; ask for fewer"
        )
    return SetPrompts(
        config=config,
        tasks=[tasks[n] for n in fitting],
        prompts=[prompts[n] for n in fitting],
        tokenizer=launch.base.tokenizer,
        stop_ids=launch.base.stop_ids,
    )


def last_turn(example: Example) -> Task:
    """What a row asks before the assistant's last turn, which is the reference."""
    last = max(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
    said = str(example.messages[last].get("content") or "")
    return Task(example.id, example.group, example.messages[:last], said, meta=example.meta)


def _store_run(launch: Launch, run: Run, data: RunData, result: TrainResult, sharing: int) -> None:
    spec, model = launch.spec, data.model
    planned, realised = _facts(run, data, result)
    record: dict[str, Any] = {
        "campaign": spec.campaign.name,
        "condition": run.condition,
        "seed": run.seed,
        "objective": run.objective,
        "status": result.status,
        "reason": result.reason,
        "key": run.key,
        "science_key": run.science_key,
        "numerics": launch.prepared.inputs.numerics,
        "base_key": run.base_key,
        "science": run.science,
        "upstream": run.upstream,
        "planned": {"steps": run.steps, **planned, "rank": model.lora_rank, "scale": model.scale},
        "realised": {
            "steps": result.ledger.steps,
            **realised,
            "rank": result.adapter.trained_rank,
            "scale": result.adapter.scale,
            "tokens": result.ledger.tokens,
            "final_loss": result.ledger.loss,
        },
        "terms": term_facts(result.ledger.terms, auxiliary_terms(data)),
        "cohort": sharing,
        "seconds": result.seconds / sharing,
        "moved": moved(result.adapter),
    }
    with launch.folder.store.put("train", run.key, record) as target:
        save_peft(result.adapter, target / "adapter", spec.model.base, spec.model.revision)
        record["adapter"] = _identity(target / "adapter", result.adapter)
        last = None
        if result.last is not None:
            save_peft(result.last, target / "last", spec.model.base, spec.model.revision)
            last = _identity(target / "last", result.last)
        if data.watch is not None:
            record["stopping"] = guard_facts(data.watch, result, record["adapter"], last)
        if data.mixture is not None:
            record["mixture"] = mixture_facts(run, data, data.mixture, result)
        write_json(target / "rows.json", sorted(map(list, run.rows)))
        shutil.copytree(data.folder, target, dirs_exist_ok=True)
        record["snapshots"] = {
            str(step): _identity(at, load_peft(at))
            for step in run.snapshots
            if (at := target / "snapshots" / f"step-{step}").is_dir()
        }


def _facts(run: Run, data: RunData, result: TrainResult) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was planned and what came of it, in the terms of the objective."""
    ledger, rows = result.ledger, run.steps * data.train.batch_size
    if data.practice is None:
        planned = {"rows": rows} if data.mixture else {"rows": rows, "distinct_rows": min(len(data.rows), rows)}
        return planned, {
            "rows": ledger.rows,
            "distinct_rows": result.distinct_rows,
            "supervised_tokens": ledger.supervised_tokens,
            "truncated_rows": result.truncated_rows,
            "unsupervised_rows": result.unsupervised_rows,
            "selected_rows": len(data.rows),
            **({} if data.sets is None else {"set_diversity": _set_facts(data.sets, ledger)}),
        }
    return {"rows": rows * data.practice.rl.group_size}, {
        "rows": ledger.rows,
        "updates": ledger.updates,
        "prompts_drawn": ledger.prompts_drawn,
        "distinct_tasks": result.distinct_rows,
        "tasks": len(data.practice.tasks),
        "completions": ledger.graded + ledger.missing_grades,
        "sampled_tokens": ledger.sampled_tokens,
        "missing_grades": ledger.missing_grades,
        "correct": ledger.correct,
    }


def _set_facts(sets: SetPrompts, ledger: Ledger) -> dict[str, Any]:
    """What a run drew beside its rows; `warnings` say what collapsed."""
    log = SetLog(**ledger.sets) if ledger.sets else SetLog()
    return {
        "prompts": len(sets.tasks),
        "sets": log.sets,
        "missing_sets": log.missing_sets,
        "equal_sets": log.equal_sets,
        "saturated_sets": log.saturated_sets,
        "sampled_tokens": ledger.sampled_tokens,
        "first": log.first,
        "recent": log.recent,
        "warnings": list(log.alarms.values()),
    }


def _identity(folder: Path, adapter: Adapter) -> str:
    """Digest of what an adapter does."""
    return digest([file_digest(folder / WEIGHTS), adapter.rank, adapter.alpha, adapter.rslora])


def moved(adapter: Adapter) -> bool:
    """Whether the adapter changes anything: whether it is no longer where it started, at the base.

    B starts at 0, or, where directions are frozen, A and B start as what those take out again. DoRA's magnitudes need
    no look of their own: where they get a gradient, B gets one too.
    """
    if not adapter.frozen:
        return any(bool(b_RO.any()) for _, b_RO in adapter.weights.values())
    k = adapter.frozen
    return not all(
        a_IR[:, :k].equal(a_IR[:, k:]) and b_RO[:k].equal(-b_RO[k:]) for a_IR, b_RO in adapter.weights.values()
    )


STAGES: dict[str, Callable[..., Any]] = {"train": train, "evaluate": evaluate}
"""Stage name -> function; its version stands in `plan.STAGE_VERSIONS`."""
