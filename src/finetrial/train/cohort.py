"""Training a cohort: N runs, one stack of adapters, one visible loop for every objective.

Runs share the step count and nothing else: data, objective, order, rates, clip, dropout and step size are each
run's own, and a run whose loss or gradient is not finite is quarantined while its neighbours go on as if nothing
had happened. Denominators are global over an update, so no split into passes changes a gradient.

Shapes: N runs, S rows of a pass, M supervised tokens of a pass, P numbers of one adapter.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetrial import seeds
from finetrial.errors import Interrupted, UserError
from finetrial.evaluate.progress import Progress
from finetrial.model.adapters import Adapter, AdapterStack, fresh_adapters
from finetrial.model.loss import collate, head_of, supervised_hidden
from finetrial.model.peft_format import save_peft
from finetrial.train import checkpoint as checkpoints
from finetrial.train import rl, sft
from finetrial.train.anchor import Anchors, References, objective_facts
from finetrial.train.batch_sizing import Observations
from finetrial.train.batches import rows_at
from finetrial.train.contexts import recomputed, termination
from finetrial.train.gradient_share import Gradients, acting
from finetrial.train.journal import GENERATIONS, METRICS, STEPS, journal
from finetrial.train.lesson import MAIN, Lesson, Objective, Report, Tally, passes, per_token, pull
from finetrial.train.mixture_config import SELECTED
from finetrial.train.optimiser import StackedAdamW, clip_gradients, learning_rate
from finetrial.train.rl_facts import policy_facts
from finetrial.train.rollouts import Engine
from finetrial.train.runs import Ledger, RunData, TrainResult
from finetrial.train.set_diversity import SetDiversity, loss_facts
from finetrial.train.watch import Guards


def train_cohort(
    model: nn.Module,
    runs: Sequence[RunData],
    steps: int,
    checkpoint: Path,
    progress: Progress | None = None,
) -> list[TrainResult]:
    """Train one adapter per run on the frozen `model`, resuming from `checkpoint` where it holds a state.

    Memory and pace are the strictest of what the runs' configurations ask: the smallest `micro_batch_tokens` and
    `save_every`, and gradient checkpointing if any run wants it. The checkpoint folder is left to the caller to
    remove once the adapters are stored.

    Args:
        model: a transformers causal language model; it is put into evaluation mode, so it drops nothing itself,
            and is a plain base again afterwards.
        runs: the cohort.
        steps: steps of each run.
        checkpoint: folder of the cohort's state.
        progress: shown after each step.

    Raises:
        UserError: a run has nothing to learn from, or the checkpoint belongs to other runs or another device.
        Interrupted: SIGTERM or SIGINT came; the step was finished and a checkpoint written.
    """
    device = next(model.parameters()).device
    model.eval()
    courses = {n: sft.course(run, steps) for n, run in enumerate(runs) if run.practice is None}
    for run in runs:
        if run.practice is not None and run.model.lora_dropout:
            raise UserError(f"{run.name}: model.lora_dropout must be 0: a policy is trained as it samples, without it")
    objectives = [Objective.of(run) for run in runs]
    entropic = any(objective.policy is not None and objective.policy.entropy_coef for objective in objectives)
    budget = min(run.train.micro_batch_tokens for run in runs)
    save_every = min((run.train.save_every for run in runs if run.train.save_every), default=0)
    limit_N = torch.tensor([run.train.max_grad_norm for run in runs], device=device)
    ledgers, seconds = [Ledger() for _ in runs], 0.0
    head = head_of(model)
    with contextlib.ExitStack() as exits:
        stop = exits.enter_context(termination())
        exits.enter_context(recomputed(model, any(run.train.gradient_checkpointing for run in runs)))
        fresh = fresh_adapters(model, [(run.model, run.seed) for run in runs])
        stack = exits.enter_context(AdapterStack(model, fresh, trainable=True))
        optimiser = StackedAdamW([run.train for run in runs], stack.flat_NP, stack.b_P, stack.frozen_NP)
        grad_NP = stack.grad_NP
        engine = Engine(model, head, stack)
        anchors = Anchors(objectives, References(model, head, stack, budget))
        diversity = exits.enter_context(SetDiversity(engine, runs))
        state = _restored(checkpoint, runs, steps, stack, optimiser)
        if state is not None:
            ledgers, seconds = [Ledger(**facts) for facts in state.facts["ledgers"]], state.facts["seconds"]
            engine.pace = Observations.restore(state.facts["pace"])
        gradients = Gradients(grad_NP, ledgers)
        guards = Guards(engine, runs, ledgers, budget, state.tensors.get("kept") if state else None)
        written = state.facts["written"] if state else [{} for _ in runs]
        journals = [
            exits.enter_context(journal(run.folder, _files(run), sizes))
            for run, sizes in zip(runs, written, strict=True)
        ]

        for step in range(state.step if state else 0, steps):
            began = time.perf_counter()

            # Lessons: rows of the data, or completions that the runs draw now, all of them in one batch; and rows of
            # the sets of completions that runs are taught variety by.
            made = rl.lessons(engine, runs, ledgers, step, steps, budget) | sft.lessons(runs, courses, ledgers, step)
            lessons = [made[n] for n in range(len(runs))]
            lessons = diversity.added(lessons, ledgers, step)

            # Updates: one for supervised rows; mini-batches and epochs over the completions for practice.
            rates = [learning_rate(run.train, step, steps) for run in runs]
            rate_N = torch.tensor(rates, dtype=torch.float64, device=device)
            reports = [Report() for _ in runs]
            anchors.begin(step, steps, lessons)
            for update in range(max(len(lesson.updates) for lesson in lessons)):
                rows_N = [lesson.updates[update] if update < len(lesson.updates) else () for lesson in lessons]
                tallies = [Tally() for _ in runs]

                # Gradients: a token's weight is its share of its run's update, in whichever pass it is.
                gradients.begin([acting(objectives[n], rows, anchors.acts(n, rows)) for n, rows in enumerate(rows_N)])
                for term, places in passes(rows_N, budget, device.type):
                    rows = [rows_N[at.run][at.place] for at in places]
                    batch = collate([row.stream for row in rows], device)
                    adapter_S, lengths_S = [at.run for at in places], [at.tokens for at in places]
                    dropout_S = [seeds.derive(runs[at.run].seed, "dropout", step, at.place) for at in places]
                    warm_M = per_token([objectives[n].temperature for n in adapter_S], batch.counts_S, device)
                    held = anchors.of(rows, adapter_S, batch.counts_S)
                    # Sampled rows are learnt from as they were drawn, without dropout (set_diversity.py).
                    with stack.rows(adapter_S, lengths_S, dropout_S if term == MAIN else None):
                        hidden_MH = supervised_hidden(model, batch)
                        stats = anchors.measure(hidden_MH, rows, adapter_S, batch, held, warm_M, entropic)
                        probe = gradients.probing and term == MAIN
                        pulled = pull(rows, adapter_S, batch.counts_S, stats, objectives, tallies, held, probe)
                        stack.backward(*pulled.losses, into_NP=gradients.of(term), keep=probe)
                        if probe and held is not None:
                            pulled.apart["anchor"] = anchors.alone(hidden_MH, rows, adapter_S, batch, held, warm_M)
                        for name, alone in pulled.apart.items():  # what a term does by itself, beside what trains
                            if gradients.acts(name):
                                stack.backward(alone, into_NP=gradients.apart(name), keep=True)
                gradients.combine([lesson.shares for lesson in lessons], step + 1)

                # Quarantine: what is not finite, or has a term that teaches nothing, is found per run, before any
                # number of the run is touched.
                norm_N = torch.linalg.vector_norm(grad_NP, dim=1)
                active = [
                    bool(rows_N[n])
                    and _finite(ledgers[n], tallies[n].loss, norm, step + 1)
                    and gradients.teaches(n, reports[n], step + 1)
                    for n, norm in enumerate(norm_N.tolist())
                ]
                active_N = torch.tensor(active, device=device)

                # Update: each run with its own clip, rate, moments and step count.
                grad_NP.masked_fill_(~active_N[:, None], 0.0)
                clip_gradients(grad_NP, torch.where(active_N, norm_N, 0.0), limit_N)
                optimiser.step(grad_NP, rate_N, active_N)
                for n in range(len(runs)):
                    if active[n]:
                        ledgers[n].updates += 1
                        reports[n].add(tallies[n], float(norm_N[n]))

            # Record.
            elapsed = time.perf_counter() - began
            seconds += elapsed
            watched = guards.look(step + 1, steps)
            for n, (run, ledger, lesson) in enumerate(zip(runs, ledgers, lessons, strict=True)):
                if any(end is not None and end <= step for end in (ledger.quarantined_at, ledger.stopped_at)):
                    continue
                whole = ledger.quarantined_at is None
                if whole and (lesson.updates or run.practice is not None):
                    _count(ledger, lesson, reports[n])
                    sft.count_parts(run, lesson, ledger)
                row = {
                    "step": step + 1,
                    "condition": run.condition,
                    "seed": run.seed,
                    "loss": reports[n].loss if whole else None,
                    "learning_rate": rates[n],
                    "grad_norm": reports[n].norm if whole else None,
                    **lesson.facts,
                    **objective_facts(objectives[n], anchors.coef_N[n], reports[n]),
                    **watched.get(n, {}),
                }
                if run.practice is None:
                    row["seconds"] = round(elapsed, 4)
                elif whole:
                    row |= policy_facts(reports[n], lesson, elapsed)
                if run.sets is not None and whole:
                    row |= loss_facts(run, ledger, lesson, reports[n])
                if not whole:
                    row["quarantined"] = ledger.reason
                journals[n].write(METRICS, [row])
                for name, lines in lesson.logs.items():
                    journals[n].write(name, lines)
            if progress is not None:
                finite = [ledger.loss for ledger in ledgers if ledger.loss is not None]
                progress.update(step + 1, sum(finite) / len(finite) if finite else None)
            for n, run in enumerate(runs):
                if step + 1 in run.snapshots and (ledgers[n].training or ledgers[n].stopped_at == step + 1):
                    target = run.folder / "snapshots" / f"step-{step + 1}"
                    save_peft(stack.adapter(n), target, run.model.base, run.model.revision)
            if stop.is_set() or (save_every and ((step + 1) % save_every == 0 or step + 1 == steps)):
                facts = {
                    **_identity(runs, steps, stack),
                    "ledgers": [asdict(ledger) for ledger in ledgers],
                    "seconds": seconds,
                    "pace": engine.pace.state(),
                    "written": [journal.sizes() for journal in journals],
                }
                tensors = {"adapters": stack.flat_NP, **optimiser.state(), **guards.tensors()}
                checkpoints.save(checkpoint, step + 1, tensors, facts)
            if stop.is_set():
                raise Interrupted(f"stopped after step {step + 1} of {steps}; {checkpoint} holds the state")
        chosen = [guards.chosen(n) for n in range(len(runs))]
    return [
        _result(run, ledger, seconds, steps, courses.get(n), *chosen[n])
        for n, (run, ledger) in enumerate(zip(runs, ledgers, strict=True))
    ]


def _finite(ledger: Ledger, loss: float, norm: float, step: int) -> bool:
    """Whether the run takes this update; puts it into quarantine if its loss or gradient is not finite."""
    if ledger.quarantined_at is not None:
        return False
    for value, what in ((loss, "loss"), (norm, "gradient norm")):
        if not math.isfinite(value):
            ledger.quarantined_at, ledger.reason = step, f"{what} is {value} at step {step}"
            return False
    return True


def _count(ledger: Ledger, lesson: Lesson, report: Report) -> None:
    ledger.steps += 1
    ledger.rows += lesson.rows
    ledger.tokens += lesson.tokens
    ledger.supervised_tokens += lesson.supervised_tokens
    ledger.loss = report.loss if report.loss is not None else ledger.loss


def _files(run: RunData) -> tuple[str, ...]:
    if run.practice is not None:
        return METRICS, STEPS, GENERATIONS
    return (METRICS,) if run.sets is None else (METRICS, GENERATIONS)


def _numerics(device: torch.device) -> str:
    return f"{device.type}-torch{torch.__version__}"


def _identity(runs: Sequence[RunData], steps: int, stack: AdapterStack) -> dict[str, Any]:
    return {"keys": [run.key for run in runs], "steps": steps, "numerics": _numerics(stack.flat_NP.device)}


def _restored(
    folder: Path, runs: Sequence[RunData], steps: int, stack: AdapterStack, optimiser: StackedAdamW
) -> checkpoints.Checkpoint | None:
    """Load the newest state into stack and optimiser. Random streams and data order are functions of the step."""
    state = checkpoints.load(folder)
    if state is None:
        return None
    for name, want in _identity(runs, steps, stack).items():
        if state.facts[name] != want:
            raise UserError(
                f"{folder}: the checkpoint has {name} {state.facts[name]}, this cohort {want}; "
                "delete the folder to train from the start"
            )
    stack.flat_NP.copy_(state.tensors["adapters"])
    optimiser.restore(state.tensors)
    return state


def _result(
    run: RunData,
    ledger: Ledger,
    seconds: float,
    steps: int,
    course: sft.Course | None,
    adapter: Adapter,
    last: Adapter | None,
) -> TrainResult:
    """What became of a run, once what it was given is proven to be what its mixture asks for."""
    if course is None:
        size = len(run.practice.tasks) if run.practice is not None else 0
        distinct = {SELECTED: len(set(rows_at(run.seed, size, range(min(ledger.prompts_drawn, 2 * size)))))}
    else:
        distinct = course.distinct(steps if ledger.stopped_at is None else ledger.stopped_at)
        if ledger.quarantined_at is None:
            sft.verify_mixture(run, course, ledger)
    return TrainResult(
        condition=run.condition,
        seed=run.seed,
        status="done" if ledger.quarantined_at is None else "quarantined",
        reason=ledger.reason,
        ledger=ledger,
        distinct_rows=distinct.pop(SELECTED),
        truncated_rows=sum(row.truncated > 0 for row in run.rows),
        unsupervised_rows=0 if course is None else sum(not len(row.target_M) for row in course.streams),
        seconds=seconds,
        adapter=adapter,
        last=last,
        part_rows=distinct,
    )
