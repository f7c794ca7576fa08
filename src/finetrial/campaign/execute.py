"""Run a campaign, or go on with one: prepare, plan, train what is missing, evaluate what is missing, collect.

With `[looks]` the middle is repeated seed group by seed group, and conditions stop once their contrasts are decided.
Every stage result goes into the store under its key, so the same launch after a crash finds what is whole and makes
the rest; nothing is lost and nothing is done twice.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from finetrial.analyze.table import OutcomeTable
from finetrial.campaign import interim
from finetrial.campaign.folder import COMPLETIONS, Folder, Say, publish, write_outcomes
from finetrial.campaign.health import room
from finetrial.campaign.items import ITEMS, write_items
from finetrial.campaign.labelling import collect
from finetrial.campaign.launch import Launch
from finetrial.campaign.manifest import (
    base_facts,
    integrity,
    new_manifest,
    now,
    proven,
    run_entries,
    squeeze_facts,
)
from finetrial.campaign.plan import Decision, Plan, Run, cohorts, plan
from finetrial.campaign.practice import Graders
from finetrial.campaign.prepare import Prepared, prepare
from finetrial.campaign.spec import Spec
from finetrial.campaign.stages import STAGES, unfinished
from finetrial.campaign.tracking import tracking
from finetrial.model.base import load_base
from finetrial.model.peft_format import load_peft
from finetrial.records import Outcome
from finetrial.store import read_json


@dataclass(frozen=True)
class RunOptions:
    """How to run; nothing here changes a result."""

    logs: Path = Path("logs")
    max_steps: int | None = None
    """Dry run: this many steps per run, kept apart from real results (`<campaign>-dry`) and never judged."""
    device: str | None = None
    cohort_size: int = 16
    """Most runs in one stack."""


@dataclass
class Clock:
    """Seconds spent per part of a launch."""

    seconds: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """Book the time since the last lap on `part`."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._started
        self._started = now


def dry(spec: Spec, steps: int) -> Spec:
    """The same campaign, cut to `steps` per run, without looks and under a name of its own."""
    conditions = tuple(
        condition.model_copy(
            update={"training": condition.training.model_copy(update={"max_steps": steps, "epochs": None})}
        )
        for condition in spec.conditions
    )
    campaign = spec.campaign.model_copy(update={"name": f"{spec.campaign.name}-dry"})
    return spec.model_copy(update={"conditions": conditions, "campaign": campaign, "looks": None})


def make_plan(spec: Spec, options: RunOptions, say: Say = print) -> tuple[Prepared, Plan, Folder]:
    """Prepare the data and derive the plan; nothing is trained and no test set is frozen (`plan`, `why`)."""
    if options.max_steps is not None:
        spec = dry(spec, options.max_steps)
    folder = Folder(options.logs, spec.campaign.name)
    return (*_prepared(spec, folder, options, say, freeze_tests=False), folder)


def _prepared(spec: Spec, folder: Folder, options: RunOptions, say: Say, freeze_tests: bool) -> tuple[Prepared, Plan]:
    prepared = prepare(spec, folder, options.device, say, freeze_tests)
    is_dry = options.max_steps is not None
    return prepared, plan(spec, prepared.inputs, folder.store, folder.published(), folder.manifest(), is_dry)


def run(spec: Spec, options: RunOptions, say: Say = print) -> Folder:
    """Run or resume a campaign up to its outcomes; the report is made from the returned folder.

    Raises:
        UserError: bad input, or another process runs this campaign.
        Interrupted: a signal arrived; a checkpoint is written and the same command goes on from there.
    """
    is_dry = options.max_steps is not None
    if options.max_steps is not None:
        spec = dry(spec, options.max_steps)
    folder = Folder(options.logs, spec.campaign.name)
    clock = Clock()
    with contextlib.ExitStack() as exits:
        exits.enter_context(folder.lock())
        folder.store.sweep()
        prepared, decided = _prepared(spec, folder, options, say, freeze_tests=True)
        manifest = new_manifest(spec, prepared, decided, is_dry)
        previous = folder.manifest() or {}
        earlier = interim.carried(previous, manifest)
        if spec.looks is not None:
            manifest["looks"] = {"planned": list(interim.sizes(spec)), "taken": earlier}
        if previous.get("outcomes_of") != manifest["outcomes_of"]:
            for stale in ("outcomes.parquet", ITEMS, COMPLETIONS):
                (folder.path / stale).unlink(missing_ok=True)
        if labels := collect(spec, prepared.tasks, folder.path):
            manifest["labels"] = labels
        folder.write_manifest(manifest)
        clock.lap("data_s")
        _tell(spec, decided, say)
        graders = exits.enter_context(Graders(folder.store.root))
        checks = prepared.integrity + proven(graders.prove(prepared.tasks, folder.store))
        clock.lap("data_s")

        base = load_base(spec.model, options.device)
        manifest["base"] |= base_facts(base)
        launch = Launch(base, folder, spec, prepared, graders, say)
        exits.enter_context(tracking(spec, folder, decided.runs, say))
        clock.lap("model_io_s")
        records: dict[str, dict[str, Any]] = {}
        taken: list[interim.Look] = []
        for n_seeds in interim.sizes(spec):  # all seeds at once, unless [looks] plans to judge earlier
            part = interim.part(decided, spec, n_seeds, taken)
            if len(part.runs) == len(records):
                break  # every condition has stopped
            missing = [run for run in part.runs if run.decision != "REUSE" and run.name not in records]
            for cohort in _cohorts(folder, part, missing, options.cohort_size):
                STAGES["train"](launch, cohort)
                records |= {run.name: _publish(folder, run) for run in cohort}
                manifest["runs"] = run_entries(decided, records, taken)
                _squeeze(launch, decided, records, manifest)
                folder.write_manifest(manifest)
                clock.lap("train_s")
            records |= {run.name: _publish(folder, run) for run in part.runs}
            _squeeze(launch, decided, records, manifest)
            clock.lap("model_io_s")
            outcomes = STAGES["evaluate"](launch, part, records)
            if judges := graders.judges():
                manifest["judges"] = judges
            manifest["integrity"] = checks + integrity(part, records, outcomes, is_dry) + room(outcomes)
            if spec.looks is not None and interim.undecided(spec, taken):
                taken.append(_take_look(spec, n_seeds, decided, records, outcomes, taken, manifest, say))
            manifest["runs"] = run_entries(decided, records, taken)
            write_outcomes(folder.path / "outcomes.parquet", outcomes)
            write_items(folder.path, prepared.items, {suite.name: suite.category for suite in spec.suites})
            folder.write_manifest(manifest)
            clock.lap("evaluate_s")
        shutil.rmtree(folder.checkpoint, ignore_errors=True)

        manifest["timing"] = {**clock.seconds, "total_s": sum(clock.seconds.values())}
        manifest["provenance"]["finished"] = now()
        manifest["status"] = "dry" if is_dry else "complete"
        folder.write_manifest(manifest)
    return folder


def _cohorts(folder: Folder, part: Plan, missing: Sequence[Run], size: int) -> Iterator[tuple[Run, ...]]:
    """Cohorts that an earlier launch began, whole, and then the rest."""
    begun = unfinished(folder, part.runs)
    yield from begun
    taken = {run.key for cohort in begun for run in cohort}
    yield from cohorts([run for run in missing if run.key not in taken], size)


def _squeeze(launch: Launch, decided: Plan, records: Mapping[str, Mapping[str, Any]], manifest: dict[str, Any]) -> None:
    """With `[squeeze]`: say once, of the first finished run without DoRA, how small a rank would have done."""
    plain = [run for run in decided.runs if not launch.spec.condition(run.condition).model.dora]
    done = [run for run in plain if records.get(run.name, {}).get("status") == "done"]
    config = launch.spec.squeeze
    if config is None or "squeeze" in manifest or not done:
        return
    adapter = load_peft(launch.folder.store.path("train", done[0].key) / "adapter")
    manifest["squeeze"] = found = squeeze_facts(done[0].name, adapter, config.min_variance_retention)
    launch.say(
        f"squeeze: rank {found['recommended_rank']} of {found['source_rank']} keeps {found['mean']:.3f} of the change "
        f"of {done[0].name}'s weights, {found['min']:.3f} of its worst layer's"
    )


def _tell(spec: Spec, decided: Plan, say: Say) -> None:
    counts = {d: sum(run.decision == d for run in decided.runs) for d in get_args(Decision)}
    listed = ", ".join(f"{count} {decision}" for decision, count in counts.items() if count)
    say(f"{len(decided.runs)} runs: {listed}; {len(decided.suites)} suites")
    for run in decided.runs:
        if run.decision in ("RETRAIN", "STALE"):
            say(f"  {run.name} {run.decision}: {run.reason}")
    if spec.by_default:
        say(spec.by_default)


def _publish(folder: Folder, run: Run) -> dict[str, Any]:
    """Show a finished run in the campaign's folder and give its record."""
    record = folder.store.record("train", run.key)
    target = folder.run(run.name)
    shown = target / "record.json"
    was_trained_again = (target / "metrics.jsonl").is_symlink()  # its metrics lie in a checkpoint that is gone
    if was_trained_again or not shown.is_file() or read_json(shown)["key"] != run.key:
        publish(folder.store.path("train", run.key), target, run.condition)
    return record


def _take_look(
    spec: Spec,
    n_seeds: int,
    decided: Plan,
    records: Mapping[str, Mapping[str, Any]],
    outcomes: list[Outcome],
    taken: list[interim.Look],
    manifest: dict[str, Any],
    say: Say,
) -> interim.Look:
    """Judge at a planned look, enter it into the manifest and tell what was decided and what that saves."""
    failed = interim.failed_checks(manifest)
    look = interim.take(spec, n_seeds, OutcomeTable.read(outcomes), taken, failed)
    saved = interim.savings(decided, look, records)
    entries = manifest["looks"]["taken"] if taken else []
    manifest["looks"]["taken"] = [*entries, look.entry(spec.campaign.seeds, saved)]
    closed = ", ".join(f"{finding.contrast} {finding.verdict}" for finding in look.findings)
    say(f"look at {n_seeds} of {len(spec.campaign.seeds)} seeds: {closed or 'nothing decided yet'}")
    if look.stopped:
        say(
            f"  {', '.join(look.stopped)} stopped: {saved['runs']} runs not trained, "
            f"{saved['steps']} steps, about {saved['tokens']:,} tokens and {saved['seconds']:.0f} s saved"
        )
    return look
