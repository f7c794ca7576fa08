"""What a launch writes down: resolved spec, runs with decisions, integrity checks, provenance."""

import datetime as dt
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from finetrial.campaign import interim
from finetrial.campaign.plan import Plan, Run, reached
from finetrial.campaign.prepare import Prepared
from finetrial.campaign.settings import BASE
from finetrial.campaign.spec import Spec
from finetrial.data.select import Selection
from finetrial.identity import digest
from finetrial.model.adapters import Adapter
from finetrial.model.base import Base
from finetrial.model.squeeze import analyse, recommend
from finetrial.records import Outcome


def new_manifest(spec: Spec, prepared: Prepared, decided: Plan, is_dry: bool) -> dict[str, Any]:
    """The manifest of a launch before anything is trained."""
    return {
        "finetrial": version("finetrial"),
        "campaign": spec.campaign.name,
        "status": "running",
        "dry_run": is_dry,
        "spec": spec.model_dump(mode="json"),
        "conditions": [BASE, *(condition.name for condition in spec.conditions)],
        "seeds": list(spec.campaign.seeds),
        "base": {"name": spec.model.base, "key": prepared.inputs.base_key},
        "runs": run_entries(decided, {}, ()),
        "outcomes_of": outcomes_of(decided),
        "leftover": [{"run": name, "reason": reason} for name, reason in decided.leftover],
        "suites": {
            suite.name: {
                "hash": suite.hash,
                "items": len(suite.items),
                "groups": suite.groups,
                "description": suite.description,
                "kind": suite.kind,
                "prompt": suite.prompt,
                **suite.facts,
            }
            for suite in decided.suites
            if suite.step is None
        },
        "snapshots": sorted({suite.step for suite in decided.suites if suite.step is not None}),
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
            "started": now(),
        },
    }


def outcomes_of(decided: Plan) -> str:
    """Digest of everything that outcomes are made of: outcomes of another plan must not be judged as this one's."""
    return digest([sorted(run.key for run in decided.runs), sorted(suite.hash for suite in decided.suites)])


def base_facts(base: Base) -> dict[str, Any]:
    """What the manifest says of the loaded base."""
    return {
        "parameters": base.parameters,
        "vocabulary": base.vocabulary,
        "dtype": str(base.dtype).removeprefix("torch."),
        "device": str(base.device),
    }


def run_entries(
    decided: Plan, records: Mapping[str, Mapping[str, Any]], taken: Sequence[interim.Look]
) -> list[dict[str, Any]]:
    """One entry per run, in the order of the plan; `records` holds the finished ones."""
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
        "cohort": record["cohort"] if record else None,
        "steps": run.steps,
    }


def proven(tasks: int) -> list[dict[str, Any]]:
    """That graders were checked on so many tasks; nothing where there are none."""
    check = _check("gold answers are graded 1, empty completions not", True, [f"{tasks} tasks"])
    return [check] if tasks else []


def squeeze_facts(run: str, adapter: Adapter, min_variance_retention: float) -> dict[str, Any]:
    """The manifest's `squeeze` table: the recommended rank, and what powers of two (and it) keep."""
    report = analyse(adapter)
    found = recommend(report, min_variance_retention)
    powers = [2**i for i in range(report.rank.bit_length())]
    ranks = [report.at(rank) for rank in sorted({*powers, found.rank, found.mean_rank, report.rank})]
    shown = [{"worst" if key == "min" else key: value for key, value in at.items()} for at in ranks]
    return {"run": run, **found.facts(), "mean_rank": found.mean_rank, "ranks": shown}


def integrity(
    decided: Plan, records: Mapping[str, Mapping[str, Any]], outcomes: list[Outcome], is_dry: bool
) -> list[dict[str, Any]]:
    """Checks over finished runs; a failed one makes every verdict INVALID.

    Practising runs may well give the same adapter: rules of credit coincide where a gate never opens or nobody plans.
    So may runs that differ only in what watches them, and those that a guard stopped before their recipes parted.
    """
    short = [
        f"{name}: {key} planned {due(record, key)}, realised {record['realised'][key]}"
        for name, record in records.items()
        if record["status"] == "done"
        for key in ("steps", "rows")
        if due(record, key) != record["realised"][key]
    ]
    guards = {name: r["stopping"] for name, r in records.items() if r["status"] == "done" and "stopping" in r}
    unguarded = [f"{name}: never measured on {guard['suite']}" for name, guard in guards.items() if not guard["ran"]]
    adapters: dict[str, dict[str, str]] = {}
    for run in decided.runs:
        record = records[run.name]
        guard = record.get("stopping", {})
        if isinstance(run.selection, Selection) and record["status"] == "done" and guard.get("stopped_at") is None:
            at_the_end = guard.get("last_adapter", record["adapter"])
            adapters.setdefault(at_the_end, {})[run.name] = _taught(run)
    twins = [" = ".join(taught) for taught in adapters.values() if len({*taught.values()}) > 1]
    idle = [name for name, record in records.items() if record["status"] == "done" and not record["moved"]]
    expected = {
        (run.condition, run.seed, suite.name)
        for run in decided.runs
        for suite in decided.suites
        if reached(records[run.name], suite.step) and (suite.step is None or suite.step in run.snapshots)
    }
    seen = {(outcome.condition, outcome.seed, outcome.suite) for outcome in outcomes if outcome.value is not None}
    absent = sorted(f"{condition}_s{seed} on {suite}" for condition, seed, suite in expected - seen)
    guarded = [_check("every guard of early stopping measured its run", not unguarded, unguarded)] if guards else []
    guarded += _ended_early(decided, records)
    return [
        _check("realised steps and rows are those planned", not short, short),
        *guarded,
        _check("no two different supervised runs gave the same adapter", not twins, twins),
        _check("every adapter differs from the base", not idle, idle),
        _check("every finished run was evaluated on every suite", not absent, absent),
        _check("not a dry run", not is_dry, ["--max-steps was given"] if is_dry else []),
        *_gradient_shares(records),
    ]


def _ended_early(decided: Plan, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A note on runs that their guards stopped before their last snapshot, and why; none where no run was."""
    told = []
    for run in decided.runs:
        record = records[run.name]
        lost = [str(step) for step in run.snapshots if record["status"] == "done" and not reached(record, step)]
        if lost:
            stopping = record["stopping"]
            told.append(
                f"{run.name} ended after step {stopping['stopped_at']} ({stopping['reason']}): no outcomes at step "
                f"{', '.join(lost)}"
            )
    return [{**_check("runs reached their snapshots", True, told), "warning": True}] if told else []


def _taught(run: Run) -> str:
    """Identity of what moves a run's adapter: rows, seed and recipe, but for a guard and for sets that are only drawn
    to be measured."""
    science = {key: value for key, value in run.science.items() if key != "stopping"}
    if science.get("set_diversity", {}).get("weight") == 0:
        del science["set_diversity"]
    return digest([science, run.selection.key, run.seed])


def _gradient_shares(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A note on auxiliary terms of the loss that do next to nothing or nearly everything; none without such terms."""
    terms = [(name, fact) for name, record in records.items() for fact in record.get("terms", {}).values()]
    doubts = [f"{name}: {fact['warning']}" for name, fact in terms if fact["warning"]]
    check = _check("auxiliary terms of the loss have their part in the gradient", True, doubts)
    return [{**check, "warning": bool(doubts)}] if terms else []


def due(record: Mapping[str, Any], key: str) -> int:
    """How many steps, or rows, a run should have gone through: as planned, or up to where its guard stopped it."""
    planned, end = record["planned"], (record.get("stopping") or {}).get("stopped_at")
    return planned[key] if end is None else planned[key] * end // planned["steps"]


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


def now() -> str:
    """The time in UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
