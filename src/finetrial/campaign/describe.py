"""What a plan costs and can detect, and how far a campaign is: plain facts for the terminal and for programs."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetrial.campaign.conditions import Condition
from finetrial.campaign.design import detectable
from finetrial.campaign.execute import RunOptions
from finetrial.campaign.folder import Folder
from finetrial.campaign.interim import next_look, sizes
from finetrial.campaign.plan import Plan, Run, cohorts
from finetrial.campaign.prepare import Prepared
from finetrial.campaign.spec import Spec
from finetrial.store import Store
from finetrial.train.mixture import shares
from finetrial.train.rl_config import RLConfig


def cost(spec: Spec, prepared: Prepared, decided: Plan, options: RunOptions) -> dict[str, Any]:
    """Rows, tokens, steps and time of a campaign before it is run."""
    first = spec.campaign.seeds[0]
    conditions = []
    for condition in spec.conditions:
        runs = [run for run in decided.runs if run.condition == condition.name]
        run = next(run for run in runs if run.seed == first)
        conditions.append(
            {
                "condition": condition.name,
                "seeds": len(runs),
                "examples": len(run.selection.ids),
                "groups": run.selection.facts["groups"],
                "tokens": run.selection.facts["tokens"],
                "steps": run.steps,
                "scale": condition.model.scale,
                "mixture": _mixed(condition, run),
                "decisions": ", ".join(f"{n} {d}" for d, n in Counter(r.decision for r in runs).items()),
            }
        )
    objectives = list(dict.fromkeys(run.objective for run in decided.pending))
    tokens = {
        objective: sum(_tokens(spec, run) for run in decided.pending if run.objective == objective)
        for objective in objectives
    }
    store = Store(options.logs / ".store")
    speeds = {
        objective: _measured_speed(store, prepared.inputs.numerics, prepared.inputs.base_key, objective)
        for objective in ("sft", "rl")
    }
    trained = sum(tokens.values())
    groups = list(cohorts(decided.pending, options.cohort_size))
    mixed = [told for row in conditions for told in row["mixture"].values()]
    sentences = [
        f"{len(decided.pending)} of {len(decided.runs)} runs to train, in {len(groups)} cohorts; "
        f"{'at most' if _at_most(spec, decided) else 'about'} {trained:,} tokens through the base",
        *(_time(objective, tokens[objective], speeds[objective]) for objective in objectives),
        *(part["sentence"] for part in mixed),
        *_guards(spec, decided),
    ]
    sentences += [f"suite {s.name} begins with {_end(s.prompt)!r}" for s in decided.suites if s.step is None]
    if spec.by_default:
        sentences.append(spec.by_default)
    if spec.looks is not None:
        at = ", ".join(map(str, sizes(spec)))
        sentences.append(f"looks at {at} of {len(spec.campaign.seeds)} seeds: less where contrasts are decided early")
    return {
        "campaign": spec.campaign.name,
        "runs": len(decided.runs),
        "to_train": len(decided.pending),
        "cohorts": [[run.name for run in group] for group in groups],
        "tokens": trained,
        "tokens_per_second": speeds,
        "conditions": conditions,
        "suites": [
            {
                "name": s.name,
                "items": len(s.items),
                "groups": s.groups,
                "description": s.description,
                "prompt": s.prompt,
                **s.facts,
            }
            for s in decided.suites
        ],
        "data": prepared.facts,
        "power": [design.as_dict() for design in detectable(spec, decided.suites, options.logs)],
        "sentences": sentences,
    }


def _end(text: str, most: int = 240) -> str:
    """The end of a text: what the assistant answers to."""
    return text if len(text) <= most else f"… {text[-most:]}"


def progress(folder: Folder) -> dict[str, Any]:
    """State of every run: done, quarantined, or the last step written of how many."""
    manifest = folder.manifest() or {}
    entries = manifest.get("runs", [])
    running = folder.locked()
    finished = sum(entry["status"] in ("done", "quarantined") for entry in entries)
    matrix: dict[str, dict[str, str]] = {}
    for entry in entries:
        cell = entry["status"]
        if cell == "pending":
            step = _last_step(folder.path / entry["folder"] / "metrics.jsonl")
            cell = "-" if step is None else f"{step}/{entry['steps']}"
        elif cell == "done":
            cell = "✓"
        matrix.setdefault(entry["condition"], {})[str(entry["seed"])] = cell
    state = manifest.get("status", "unknown")
    if state == "running" and not running:
        state = "interrupted (run it again to go on)"
    return {
        "campaign": manifest.get("campaign"),
        "status": state,
        "seeds": manifest.get("seeds", []),
        "runs": len(entries),
        "done": finished,
        "stopped": sum(entry["status"] == "stopped" for entry in entries),
        "next_look": next_look(manifest),
        "matrix": matrix,
    }


def _mixed(condition: Condition, run: Run) -> dict[str, dict[str, Any]]:
    """Part of a condition's mixture -> its rows, and how many of them, or which share of the tokens, a run is given."""
    if condition.mixture is None:
        return {}
    config, told = condition.mixture, {}
    share_G = shares(config, run.steps).mean(axis=0).tolist()
    for name, share in zip(config.names[1:], share_G[1:], strict=True):
        part = run.parts[name]
        rows = round(share * run.steps * condition.training.batch_size)
        what = f"of the rows, about {rows}," if config.unit == "rows" else "of the supervised tokens"
        left_out = sum(part.facts["left_out"].values())
        told[name] = {
            "rows": len(part.ids),
            "share": share,
            "left_out": part.facts["left_out"],
            "sentence": f"{condition.name} mixes in {name}: {share:.1%} {what} from {len(part.ids)} rows "
            f"({left_out} left out: tested, or nothing to learn)",
        }
    return told


def _at_most(spec: Spec, decided: Plan) -> bool:
    """Whether runs may take fewer tokens than planned: completions end themselves, and guards stop."""
    if any("rl" in run.science or "set_diversity" in run.science for run in decided.pending):
        return True
    rules = [spec.condition(run.condition).stopping for run in decided.pending]
    return any(rule is not None and (rule.patience is not None or rule.floor is not None) for rule in rules)


def _guards(spec: Spec, decided: Plan) -> list[str]:
    """Which conditions are guarded, and that a run is too short for its guard."""
    told = []
    for condition in spec.conditions:
        steps = {run.steps for run in decided.runs if run.condition == condition.name}
        rule = condition.stopping
        if rule is None:
            continue
        told.append(
            f"{condition.name} is measured on {rule.suite} every {rule.every} steps; these measurements add time"
        )
        if min(steps) < rule.every:
            told.append(
                f"{condition.name} ends after {min(steps)} steps, before its guard has measured it: it is unguarded"
            )
    return told


def _tokens(spec: Spec, run: Run) -> int:
    """Tokens that a run puts through the base: batches of average rows, those of a mixture by their shares (shares of
    tokens taken for shares of rows). Of practice at most: prompts and completions of the greatest length, drawn as
    often as dynamic sampling may, and learnt from in every epoch over them. Sets of completions are drawn beside the
    rows, at most at their greatest length, too."""
    condition = spec.condition(run.condition)
    per_row = _per_row(run.selection.facts)
    if condition.rl is not None:
        completion = condition.rl.sampling.max_tokens
        drawn = _rounds(condition.rl) * completion
        per_row = condition.rl.group_size * (drawn + condition.rl.epochs * (per_row + completion))
    if condition.mixture is not None:
        share_G = shares(condition.mixture, run.steps).mean(axis=0)
        facts = [run.selection.facts, *(run.parts[name].facts for name in condition.mixture.names[1:])]
        per_row = float(share_G @ [_per_row(of) for of in facts])
    beside = 0
    if condition.set_diversity is not None:
        sets = condition.set_diversity
        samplings = math.ceil(run.steps / sets.every_n_steps)
        completions = sets.n_generations * min(sets.max_examples, len(run.selection.ids))
        beside = samplings * completions * sets.sampling.max_tokens
    return round(run.steps * condition.training.batch_size * per_row) + beside


def _per_row(facts: Mapping[str, Any]) -> float:
    return facts["tokens"] / max(1, facts["examples"])


def _rounds(rl: RLConfig) -> int:
    """How often a step may draw its completions."""
    return rl.dynamic_sampling.max_rounds if rl.dynamic_sampling.enabled else 1


def _time(objective: str, tokens: int, speed: float | None) -> str:
    kind = {"sft": "training", "rl": "practice"}[objective]
    if speed is None:
        return f"no {kind} time is known yet: nothing was trained so on this base and machine before"
    most = {"sft": "about", "rl": "at most"}[objective]
    return f"{most} {tokens / speed:.0f} s of {kind} at the {speed:,.0f} tokens/s measured here before"


def _measured_speed(store: Store, numerics: str, base_key: str, objective: str) -> float | None:
    """Tokens per second per cohort of the last results on this base and machine, weighted by time; None if none."""
    records = [store.record("train", key) for key in store.keys("train")]
    used = [
        r
        for r in records
        if r["numerics"] == numerics
        and r["base_key"] == base_key
        and r["seconds"] > 0
        and r.get("objective", "sft") == objective
    ]
    seconds = sum(record["seconds"] for record in used)
    tokens = sum(_went_through(record) for record in used)
    return tokens / seconds if seconds else None


def _went_through(record: Mapping[str, Any]) -> int:
    """Tokens that a finished run has put through the base: what it drew, and what it learnt from in every epoch."""
    epochs = record["science"].get("rl", {}).get("epochs", 1)
    return epochs * record["realised"]["tokens"] + record["realised"].get("sampled_tokens", 0)


def _last_step(path: Path) -> int | None:
    if not path.is_file():
        return None
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return json.loads(lines[-1])["step"] if lines else None
