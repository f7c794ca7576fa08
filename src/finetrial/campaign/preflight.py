"""Preflight that executes: what a campaign needs is tried on a small scale, not asserted.

Every condition is trained for one step in a throwaway folder, so that masks, gradients and memory are those of the
real run; for a few where its loss has auxiliary terms, whose gradients are measured one by one.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetrial.analyze.permute import attainable_p
from finetrial.analyze.verdict import MIN_SEEDS
from finetrial.campaign.design import detectable
from finetrial.campaign.execute import RunOptions
from finetrial.campaign.folder import Folder, Say
from finetrial.campaign.labelling import collect
from finetrial.campaign.launch import Launch
from finetrial.campaign.manifest import proven
from finetrial.campaign.measures.rewards import prove
from finetrial.campaign.plan import Plan, Run, plan
from finetrial.campaign.practice import Exam, Graders, PracticeSet
from finetrial.campaign.prepare import Prepared, prepare
from finetrial.campaign.spec import Spec
from finetrial.campaign.stages import moved, run_data
from finetrial.model.base import Base, load_base
from finetrial.model.peft_format import saved_bytes
from finetrial.model.render import Rendered, render_batch
from finetrial.records import Task
from finetrial.train.cohort import train_cohort
from finetrial.train.gradient_share import FROM_BASE, NOISE, PROBES, WEAK, TermState, auxiliary_terms, term_facts
from finetrial.train.runs import RunData, TrainResult
from finetrial.train.set_log import SetLog


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    check: str
    passed: bool
    detail: str
    warning: bool = False
    """Nothing is broken, but the researcher should know before spending."""


def preflight(spec: Spec, logs: Path, say: Say) -> list[Check]:
    """Try everything a campaign needs; nothing is written below `logs`.

    Raises:
        UserError: the data cannot be prepared at all, or a grader grades its gold answers wrong (the message says why).
        LeakError: training and test data share something.
    """
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as exits:
        folder = Folder(Path(scratch), spec.campaign.name)
        graders = exits.enter_context(Graders(folder.store.root))
        prepared = prepare(spec, folder, None, say)
        decided = plan(spec, prepared.inputs, folder.store, {})
        first = [run for run in decided.runs if run.seed == spec.campaign.seeds[0]]
        labels = collect(spec, prepared.tasks, folder.path)
        known = proven(graders.prove(prepared.tasks, folder.store))
        base = load_base(spec.model)
        launch = Launch(base, folder, spec, prepared, graders, say)
        checks = _pool(prepared)
        checks += [Check(c["check"], c["passed"], c["detail"]) for c in (*prepared.integrity, *known)]
        checks += [_suite(name, prepared, base, spec) for name in prepared.suites]
        checks += [_exam(name, exam, launch) for name, exam in prepared.tasks.exams.items()]
        checks += [
            Check(f"suite {suite.name} can be asked", True, f"{suite.description}; begins {suite.prompt!r}")
            for suite in prepared.inputs.suites
            if suite.kind == "lm_eval"
        ]
        checks += [Check(f"labels of suite {one['suite']} fit it", True, f"{one['labels']} labels") for one in labels]
        for run in first:
            checks += _condition(launch, run, Path(scratch))
    checks.append(_disk(spec, decided, base, logs))
    checks += _design(spec)
    checks += [
        Check(f"power: {design.name}", True, "; ".join([design.sentence, *design.warnings]), bool(design.warnings))
        for design in detectable(spec, decided.suites, logs)
    ]
    return checks


def _pool(prepared: Prepared) -> list[Check]:
    pool = prepared.facts.get("pool")
    if pool is None:
        return []
    reasons = "; ".join(f"{told['rows']} {reason}" for reason, told in pool["reasons"].items())
    detail = f"{pool['kept']} rows of {pool['groups']} groups" + (f", dropped: {reasons}" if reasons else "")
    return [Check("the pool can be read and rendered", pool["kept"] > 0, detail)]


def _suite(name: str, prepared: Prepared, base: Base, spec: Spec) -> Check:
    examples = prepared.suites[name]
    batch = render_batch((example.messages for example in examples), base.tokenizer, spec.model.max_length)
    scored = [row for row in batch.rows if row is not None]
    cut = sum(row.truncated > 0 for row in scored)
    begins = next(suite.prompt for suite in prepared.inputs.suites if suite.name == name)
    detail = f"{len(scored)} of {len(examples)} items, {cut} cut at {spec.model.max_length} tokens; begins {begins!r}"
    return Check(f"suite {name} can be scored", len(scored) == len(examples), detail)


def _exam(name: str, exam: Exam, launch: Launch) -> Check:
    """The first item's prompt as the model will read it, and its reference; a reward model is tried on the items."""
    asked = next(suite.prompt for suite in launch.prepared.inputs.suites if suite.name == name)
    chance = "" if exam.chance is None else f", chance {exam.chance:.1%}"
    what = "tasks" if exam.script is None else f"turns of {len(exam.script.dialogues)} conversations"
    expected = exam.tasks[0].reference
    told = f"{len(exam.tasks)} {what}{chance}; {asked!r} " + (
        f"expects {expected!r}" if expected else "has no reference"
    )
    if exam.grading.kind == "reward_model":
        told += f"; {prove(launch, name, exam)}"
    return Check(f"suite {name} can be asked", True, told)


def _shown(launch: Launch, task: Task, most: int = 200) -> str:
    text = launch.base.tokenizer.decode(launch.prepared.prompts[task.content_hash].tolist())
    return repr(text if len(text) <= most else f"...{text[-most:]}")


def _condition(launch: Launch, run: Run, scratch: Path) -> list[Check]:
    """Real steps: what is learnt from, whether a finite gradient reaches the adapter, and what each term is of it.

    Whatever puts the run into quarantine is told: its first loss, a term without a gradient, or a check of its own.
    """
    folder = scratch / "preflight" / run.name
    data = _twin(run_data(launch, run, folder))
    steps = PROBES if auxiliary_terms(data) else 1
    (result,) = train_cohort(launch.base.model, [data], steps, folder / "checkpoint")
    rows = [json.loads(line) for line in data.metrics.read_text(encoding="utf-8").splitlines()]
    terms = _terms(run, data, result)
    if result.reason is not None and rows[0]["loss"] is not None and all(check.passed for check in terms):
        terms.append(Check(f"{run.condition}: its first {steps} steps go through", False, result.reason))
    if isinstance(run.selection, PracticeSet):
        if rows[0]["loss"] is None:
            return [Check(f"{run.condition}: one step of practice is finite", False, str(result.reason))]
        return [
            *_practised(run, run.selection, result, rows[0], _shown(launch, run.selection.tasks[0])),
            *terms,
        ]
    if result.ledger.sets is not None:
        terms.append(_sets(run, SetLog(**result.ledger.sets)))
    loss = rows[0]["loss"]
    told = f"loss {loss:.4f} on the first batch" if loss is not None else str(result.reason)
    finite = loss is not None and moved(result.adapter)
    return [
        Check(f"{run.condition}: rows can be trained on", True, _coverage(data.rows)),
        Check(f"{run.condition}: the first gradient is finite and not zero", finite, told),
        *terms,
    ]


def _twin(data: RunData) -> RunData:
    """The run with its auxiliary terms acting from the first step on, and without a guard."""
    anchor, sets = data.anchor, data.sets
    if anchor is not None:
        anchor = anchor.model_copy(update={"start_step": 0, "warmup_steps": 0, "decay_steps": 0, "final_coef": 0.0})
    if sets is not None:
        sets = replace(sets, config=sets.config.model_copy(update={"every_n_steps": 1}))
    return replace(data, anchor=anchor, sets=sets, snapshots=frozenset(), watch=None)


def _terms(run: Run, data: RunData, result: TrainResult) -> list[Check]:
    """The share of the gradient that each auxiliary term has at the first steps; one without any teaches nothing.

    A divergence from the base begins at 0 and grows as the adapter moves, so a small share of one is no doubt yet.
    """
    checks = []
    for term, facts in term_facts(result.ledger.terms, auxiliary_terms(data)).items():
        probes, share = facts["probes"], facts["share"]
        shares = [f"{probe['share']:.2%}" for probe in probes if probe["share"] is not None]
        told = f"{', '.join(shares)} of the gradient at its first steps" if shares else str(facts["warning"])
        alive = not TermState(**result.ledger.terms.get(term, {})).dead
        grows = term in FROM_BASE and share is not None and NOISE < share < WEAK
        warning = alive and facts["warning"] is not None and not grows
        checks.append(
            Check(
                f"{run.condition}: the term '{term}' has a gradient",
                alive,
                told if alive else f"{told}: it teaches nothing",
                warning=warning,
            )
        )
    return checks


def _sets(run: Run, log: SetLog) -> Check:
    """Whether the first sets leave anything to gain: where all are as diverse as can be, the term has no gradient from
    diversity, which is no defect, but may not be what was wanted."""
    whole = log.sets - log.missing_sets
    means = ", ".join(f"mean {name} {value:.3g}" for name, value in log.first.items())
    told = f"{log.saturated_sets} of {whole} sets are at the maximum of diversity; at the first step {means}"
    saturated = whole > 0 and log.saturated_sets == whole
    if not whole:
        told = f"none of {log.sets} sets has a score"
    elif saturated:
        told += "; the term has no gradient from it until completions of a prompt resemble one another"
    return Check(f"{run.condition}: sets of completions can gain diversity", True, told, warning=saturated or not whole)


def _practised(
    run: Run, practice: PracticeSet, result: TrainResult, row: Mapping[str, Any], prompt: str
) -> list[Check]:
    """What one step of practice showed: spread of rewards, completions cut at the limit, missing grades, gradient."""
    graded = result.ledger.graded + result.ledger.missing_grades
    groups, informative = row["batch_size"], row["informative_groups"]
    spread = f"{informative} of {groups} groups of {row['group_size']} completions differ in reward"
    if row["correct_rate"] is not None:
        spread += f"; {row['correct_rate']:.0%} right, mean reward {row['mean_reward']:.3f}"
    if not informative:
        spread += "; nothing is learnt where all rewards of a group are equal: easier or harder tasks, or larger groups"
    cut = row["max_token_hit_rate"]
    limit = f"{cut:.0%} of completions reach the limit of tokens" + (
        "; raise rl.sampling.max_tokens" if cut > 0.5 else ""
    )
    finite = moved(result.adapter) == (result.ledger.updates > 0)
    told = f"loss {row['loss']:.4g}, gradient norm {row['grad_norm'] or 0.0:.4g}"
    missing = f"{result.ledger.missing_grades} of {graded} completions have no grade"
    name = run.condition
    return [
        Check(f"{name}: tasks can be practised on", True, f"{len(practice.tasks)} tasks; the first: {prompt}"),
        Check(f"{name}: rewards differ within groups", True, spread, warning=not informative),
        Check(f"{name}: completions end themselves", True, limit, warning=cut > 0.5),
        Check(f"{name}: completions are graded", True, missing, warning=result.ledger.missing_grades > 0),
        Check(f"{name}: the first gradient is finite, and not zero where something is learnt", finite, told),
    ]


def _coverage(rows: Sequence[Rendered]) -> str:
    tokens = sum(len(row.ids_T) for row in rows)
    supervised = sum(int(row.mask_T.sum()) for row in rows)
    cut = sum(row.truncated > 0 for row in rows)
    return f"{len(rows)} rows, {supervised / tokens:.0%} of {tokens:,} tokens supervised, {cut} rows truncated"


def _disk(spec: Spec, decided: Plan, base: Base, logs: Path) -> Check:
    need = adapter_bytes(spec, decided, base) + _state_bytes(spec, decided, base)
    place = logs
    while not place.exists():
        place = place.absolute().parent
    free = shutil.disk_usage(place).free
    return Check("disk space", free > 2 * need, f"about {need / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")


def adapter_bytes(spec: Spec, decided: Plan, base: Base) -> int:
    """Bytes of all adapters in store and campaign folder: that of each run's end, its snapshots, and where it is
    guarded at most one that was not kept."""
    total = 0
    for run in decided.runs:
        condition = spec.condition(run.condition)
        kept = 1 + len(run.snapshots) + (condition.stopping is not None)
        total += 2 * kept * saved_bytes(base.model, condition.model)
    return total


def _state_bytes(spec: Spec, decided: Plan, base: Base) -> int:
    """Bytes of the largest cohort's state: its adapters as wide as the widest, two moments of each number, what guards
    keep; a new state is written before the old one goes."""
    widest = max(saved_bytes(base.model, condition.model) for condition in spec.conditions)
    guarded = any(condition.stopping is not None for condition in spec.conditions)
    return 2 * (3 + guarded) * min(RunOptions.cohort_size, len(decided.runs)) * widest


def _design(spec: Spec) -> list[Check]:
    """Whether the declared contrasts can be decided at all with these seeds."""
    seeds = len(spec.campaign.seeds)
    least = attainable_p(seeds, seeds, paired=True)
    told = spec.by_default or f"{len(spec.contrasts)} contrasts"
    return [
        Check("contrasts are declared", bool(spec.contrasts), told),
        Check(
            "seeds are enough for verdicts on recipes",
            seeds >= MIN_SEEDS,
            f"{seeds} seeds, at least {MIN_SEEDS} required; a permutation of them cannot fall below p = {least:.3g}",
        ),
    ]
