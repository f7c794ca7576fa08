"""Run a campaign, or go on with one: prepare, plan, train what is missing, evaluate what is missing, collect.

With `[looks]` the middle is repeated seed group by seed group, and conditions stop once their contrasts are decided.
Every stage result goes into the store under its key, so the same launch after a crash finds what is whole and makes
the rest; nothing is lost and nothing is done twice.
"""

import datetime as dt
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from finetrial.analyze.table import OutcomeTable
from finetrial.campaign import interim
from finetrial.campaign.folder import Folder, publish, write_outcomes
from finetrial.campaign.plan import Decision, Plan, Run, cohorts, plan
from finetrial.campaign.prepare import Prepared, prepare
from finetrial.campaign.spec import BASE, Spec
from finetrial.campaign.stages import STAGES
from finetrial.model.base import Base, load_base
from finetrial.records import Outcome
from finetrial.store import read_json

Say = Callable[[str], None]


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
    """Prepare the data and derive the plan without training anything (`plan`, `why`)."""
    if options.max_steps is not None:
        spec = dry(spec, options.max_steps)
    folder = Folder(options.logs, spec.campaign.name)
    prepared = prepare(spec, folder, options.device, say)
    return prepared, plan(spec, prepared.inputs, folder.store, folder.manifest(), options.max_steps is not None), folder


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
    clock, started = Clock(), _now()
    with folder.lock():
        prepared = prepare(spec, folder, options.device, say)
        decided = plan(spec, prepared.inputs, folder.store, folder.manifest(), is_dry)
        manifest = _manifest(spec, prepared, decided, started, is_dry)
        if spec.looks is not None:
            earlier = interim.carried(folder.manifest(), manifest)
            manifest["looks"] = {"planned": list(interim.sizes(spec)), "taken": earlier}
        folder.write_manifest(manifest)
        clock.lap("data_s")
        _tell(decided, say)

        base = load_base(spec.model, options.device)
        manifest["base"] |= _base_facts(base)
        clock.lap("model_io_s")
        records: dict[str, dict[str, Any]] = {}
        taken: list[interim.Look] = []
        for n_seeds in interim.sizes(spec):  # all seeds at once, unless [looks] plans to judge earlier
            part = interim.part(decided, spec, n_seeds, taken)
            if len(part.runs) == len(records):
                break  # every condition has stopped
            missing = [run for run in part.runs if run.decision != "REUSE" and run.name not in records]
            for cohort in cohorts(missing, options.cohort_size):
                STAGES["train"](base, folder, spec, cohort, prepared, say)
                clock.lap("train_s")
            records = {run.name: _publish(folder, run) for run in part.runs}
            clock.lap("model_io_s")
            outcomes = STAGES["evaluate"](base, folder, spec, part, records, prepared, say)
            manifest["integrity"] = prepared.integrity + _integrity(part, records, outcomes, is_dry)
            if spec.looks is not None and interim.undecided(spec, taken):
                taken.append(_take_look(spec, n_seeds, decided, records, outcomes, taken, manifest, say))
            manifest["runs"] = _run_entries(decided, records, taken)
            write_outcomes(folder.path / "outcomes.parquet", outcomes)
            folder.write_manifest(manifest)
            clock.lap("evaluate_s")
        shutil.rmtree(folder.checkpoint, ignore_errors=True)

        manifest["timing"] = {**clock.seconds, "total_s": sum(clock.seconds.values())}
        manifest["provenance"]["finished"] = _now()
        manifest["status"] = "dry" if is_dry else "complete"
        folder.write_manifest(manifest)
    return folder


def _tell(decided: Plan, say: Say) -> None:
    counts = {d: sum(run.decision == d for run in decided.runs) for d in get_args(Decision)}
    listed = ", ".join(f"{count} {decision}" for decision, count in counts.items() if count)
    say(f"{len(decided.runs)} runs: {listed}; {len(decided.suites)} suites")
    for run in decided.runs:
        if run.decision in ("RETRAIN", "STALE"):
            say(f"  {run.name} {run.decision}: {run.reason}")


def _publish(folder: Folder, run: Run) -> dict[str, Any]:
    """Show a finished run in the campaign's folder and give its record."""
    record = folder.store.record("train", run.key)
    target = folder.run(run.name)
    shown = target / "record.json"
    if not shown.is_file() or read_json(shown).get("key") != run.key:
        publish(folder.store.path("train", run.key), target)
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


def _manifest(spec: Spec, prepared: Prepared, decided: Plan, started: str, is_dry: bool) -> dict[str, Any]:
    resolved = spec.model_dump(mode="json")
    return {
        "finetrial": version("finetrial"),
        "campaign": spec.campaign.name,
        "status": "running",
        "dry_run": is_dry,
        "spec": resolved,
        "conditions": [BASE, *(condition.name for condition in spec.conditions)],
        "seeds": list(spec.campaign.seeds),
        "base": {"name": spec.model.base, "key": prepared.inputs.base_key},
        "runs": _run_entries(decided, {}, ()),
        "leftover": [{"run": name, "reason": reason} for name, reason in decided.leftover],
        "suites": {
            suite.name: {
                "hash": suite.hash,
                "items": len(suite.items),
                "groups": suite.groups,
                "description": suite.description,
            }
            for suite in decided.suites
        },
        "data": prepared.facts,
        "integrity": prepared.integrity,
        "provenance": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "platform": platform.platform(),
            "numerics_class": prepared.inputs.numerics,
            "git": _git_state(),
            "command": " ".join(["finetrial", *sys.argv[1:]]),
            "started": started,
        },
    }


def _base_facts(base: Base) -> dict[str, Any]:
    return {
        "parameters": base.parameters,
        "vocabulary": base.vocabulary,
        "dtype": str(base.dtype).removeprefix("torch."),
        "device": str(base.device),
    }


def _run_entries(
    decided: Plan, records: Mapping[str, Mapping[str, Any]], taken: Sequence[interim.Look]
) -> list[dict[str, Any]]:
    stopped = {condition: reason for look in taken for condition, reason in look.stopped.items()}
    return [_run_entry(run, records.get(run.name), stopped.get(run.condition)) for run in decided.runs]


def _run_entry(run: Run, record: Mapping[str, Any] | None, stopped: str | None) -> dict[str, Any]:
    spared = stopped if record is None else None
    return {
        "condition": run.condition,
        "seed": run.seed,
        "folder": f"runs/{run.name}",
        "status": record["status"] if record else "stopped" if spared else "pending",
        "decision": run.decision,
        "reason": spared or run.reason,
        "saves_s": run.saves_s,
        "train_key": run.key,
        "adapter": record["adapter"] if record else None,
        "steps": run.steps,
    }


def _integrity(
    decided: Plan, records: Mapping[str, Mapping[str, Any]], outcomes: list[Outcome], is_dry: bool
) -> list[dict[str, Any]]:
    """Checks over finished runs; a failed one makes every verdict INVALID."""
    short = [
        f"{name}: {key} planned {record['planned'][key]}, realised {record['realised'][key]}"
        for name, record in records.items()
        if record["status"] == "done"
        for key in ("steps", "rows")
        if record["planned"][key] != record["realised"][key]
    ]
    adapters: dict[str, list[str]] = {}
    for name, record in records.items():
        if record["status"] == "done":
            adapters.setdefault(record["adapter"], []).append(name)
    keys = {run.name: run.key for run in decided.runs}
    twins = [" = ".join(names) for names in adapters.values() if len({keys[name] for name in names}) > 1]
    idle = [name for name, record in records.items() if record["status"] == "done" and not record["moved"]]
    expected = {(run.condition, run.seed) for run in decided.runs if records[run.name]["status"] == "done"}
    seen = {(outcome.condition, outcome.seed) for outcome in outcomes if outcome.value is not None}
    absent = sorted(f"{condition}_s{seed}" for condition, seed in expected - seen)
    return [
        _check("realised steps and rows are those planned", not short, short),
        _check("no two different runs gave the same adapter", not twins, twins),
        _check("every adapter differs from the base", not idle, idle),
        _check("every finished run was evaluated", not absent, absent),
        _check("not a dry run", not is_dry, ["--max-steps was given"] if is_dry else []),
    ]


def _check(check: str, passed: bool, details: list[str]) -> dict[str, Any]:
    return {"check": check, "passed": passed, "detail": "; ".join(details[:5])}


def _git_state() -> str | None:
    """Commit of the working folder, with `-dirty` where it has changes; None outside a checkout."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
