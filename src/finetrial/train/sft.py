"""Supervised fine-tuning of a cohort: N runs, one stack of adapters, one visible loop.

The loss of a run's step is the sum of the negative log-likelihoods of its supervised tokens divided by their
number in the whole step, so no split into passes changes a gradient. Runs share the step count and nothing else:
data, order, rates, clip, dropout and step size are each run's own, and a run whose loss or gradient is not finite
is quarantined while its neighbours go on bit for bit as if nothing had happened.

Shapes: N runs, S rows of a pass, M supervised tokens of a pass, P numbers of one adapter.
"""

import contextlib
import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from transformers.modeling_layers import GradientCheckpointingLayer

from finetrial import seeds
from finetrial.errors import Interrupted, UserError
from finetrial.evaluate.progress import Progress
from finetrial.model.adapters import Adapter, AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.loss import Stream, collate, head_of, stream, token_nll
from finetrial.model.render import Rendered
from finetrial.train import checkpoint as checkpoints
from finetrial.train.batches import layout, step_rows
from finetrial.train.config import TrainConfig
from finetrial.train.optimiser import StackedAdamW, clip_gradients, learning_rate


@dataclass(frozen=True)
class RunData:
    """One run of a cohort: what it learns from and how."""

    condition: str
    seed: int
    rows: Sequence[Rendered]
    """In the order of their ids; the loop shuffles."""
    train: TrainConfig
    model: ModelConfig
    metrics: Path
    """JSON lines, one object per step; an existing file is continued on resume and replaced otherwise."""
    key: str
    """Identity of the run; a checkpoint of other runs is refused."""

    @property
    def name(self) -> str:
        """How messages call the run."""
        return f"{self.condition} seed {self.seed}"


@dataclass
class Ledger:
    """What a run has really consumed; a checkpoint keeps it."""

    steps: int = 0
    """Optimiser steps taken."""
    rows: int = 0
    """Rows of those steps; a row of a second epoch counts again."""
    tokens: int = 0
    """Tokens read by the model, without padding."""
    supervised_tokens: int = 0
    loss: float | None = None
    """Of the last step that had one, in nats per supervised token."""
    quarantined_at: int | None = None
    """Step (1, 2, ...) whose loss or gradient was not finite; the adapter is as it was before that step."""
    reason: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What became of a run."""

    condition: str
    seed: int
    status: Literal["done", "quarantined"]
    reason: str | None
    ledger: Ledger
    distinct_rows: int
    """Rows of its data that the planned steps visit at least once."""
    truncated_rows: int
    """Rows of its data that were cut at the maximum length."""
    unsupervised_rows: int
    """Rows of its data without a supervised token, which teach nothing."""
    seconds: float
    """Wall time of the cohort's steps, which its runs share, over all resumed parts."""
    adapter: Adapter = field(repr=False)


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
        steps: optimiser steps of each run.
        checkpoint: folder of the cohort's state.
        progress: shown after each step.

    Raises:
        UserError: a run has no supervised token, or the checkpoint belongs to other runs or another device.
        Interrupted: SIGTERM or SIGINT came; the step was finished and a checkpoint written.
    """
    device = next(model.parameters()).device
    model.eval()
    streams = [_streams(run) for run in runs]
    budget = min(run.train.micro_batch_tokens for run in runs)
    save_every = min((run.train.save_every for run in runs if run.train.save_every), default=0)
    limit_N = torch.tensor([run.train.max_grad_norm for run in runs], device=device)
    ledgers, seconds = [Ledger() for _ in runs], 0.0
    head = head_of(model)
    with contextlib.ExitStack() as exits:
        stop = exits.enter_context(_termination())
        exits.enter_context(_recomputed(model, any(run.train.gradient_checkpointing for run in runs)))
        fresh = [fresh_adapter(model, run.model, run.seed) for run in runs]
        stack = exits.enter_context(AdapterStack(model, fresh, trainable=True))
        optimiser = StackedAdamW([run.train for run in runs], stack.flat_NP)
        grad_NP = stack.grad_NP
        state = _restored(checkpoint, runs, steps, stack, optimiser)
        if state is not None:
            ledgers, seconds = [Ledger(**facts) for facts in state.facts["ledgers"]], state.facts["seconds"]
        sizes = state.facts["metrics_bytes"] if state else [0] * len(runs)
        metrics = [exits.enter_context(_metrics(run, size)) for run, size in zip(runs, sizes, strict=True)]

        for step in range(state.step if state else 0, steps):
            began = time.perf_counter()
            batches = []
            for run, mine in zip(runs, streams, strict=True):
                chosen = step_rows(run.seed, len(run.rows), run.train.batch_size, step)
                batches.append([mine[row] for row in chosen if len(mine[row].target_M)])
            supervised = [sum(len(row.target_M) for row in batch) for batch in batches]
            share = [
                1 / count if count and ledger.quarantined_at is None else 0.0
                for count, ledger in zip(supervised, ledgers, strict=True)
            ]

            # Gradients: each token weighs 1 / (supervised tokens of its run in this step), in whichever pass.
            grad_NP.zero_()
            nll_N = torch.zeros(len(runs), dtype=torch.float64, device=device)
            for places in layout([[row.tokens for row in batch] for batch in batches], budget, device.type):
                batch = collate([batches[at.run][at.place] for at in places], device)
                adapter_S, lengths_S = [at.run for at in places], [at.tokens for at in places]
                dropout_S = [seeds.derive(runs[at.run].seed, "dropout", step, at.place) for at in places]
                share_S = torch.tensor([share[n] for n in adapter_S], device=device)
                counts_S = torch.tensor(batch.counts_S, device=device)
                with stack.rows(adapter_S, lengths_S, dropout_S):
                    nll_M = token_nll(model, head, batch)
                    stack.backward(nll_M, share_S.repeat_interleave(counts_S, output_size=len(nll_M)))
                _add_by_run(nll_N, nll_M.detach(), adapter_S, batch.counts_S)

            # Quarantine: what is not finite is found per run, before any number of the run is touched.
            norm_N = torch.linalg.vector_norm(grad_NP, dim=1)
            losses = [nll / count if count else None for nll, count in zip(nll_N.tolist(), supervised, strict=True)]
            norms = norm_N.tolist()
            active = [_passes(*facts, step + 1) for facts in zip(ledgers, losses, norms, strict=True)]
            active_N = torch.tensor(active, device=device)

            # Update: each run with its own clip, rate, moments and step count.
            rates = [learning_rate(run.train, step, steps) for run in runs]
            grad_NP.masked_fill_(~active_N[:, None], 0.0)
            clip_gradients(grad_NP, torch.where(active_N, norm_N, 0.0), limit_N)
            optimiser.step(grad_NP, torch.tensor(rates, dtype=torch.float64, device=device), active_N)

            # Record.
            elapsed = time.perf_counter() - began
            seconds += elapsed
            for n, (run, ledger) in enumerate(zip(runs, ledgers, strict=True)):
                if ledger.quarantined_at is not None and ledger.quarantined_at <= step:
                    continue
                tokens = sum(row.tokens for row in batches[n])
                if active[n]:
                    ledger.steps += 1
                    ledger.rows += run.train.batch_size
                    ledger.tokens += tokens
                    ledger.supervised_tokens += supervised[n]
                    ledger.loss = losses[n]
                row = {
                    "step": step + 1,
                    "condition": run.condition,
                    "seed": run.seed,
                    "loss": losses[n] if active[n] else None,
                    "learning_rate": rates[n],
                    "grad_norm": norms[n] if active[n] else None,
                    "tokens": tokens,
                    "supervised_tokens": supervised[n],
                    "seconds": round(elapsed, 4),
                }
                if ledger.quarantined_at is not None:
                    row["quarantined"] = ledger.reason
                metrics[n].write(json.dumps(row, allow_nan=False).encode() + b"\n")
                metrics[n].flush()
            if progress is not None:
                finite = [ledger.loss for ledger in ledgers if ledger.loss is not None]
                progress.update(step + 1, sum(finite) / len(finite) if finite else None)
            if stop.is_set() or (save_every and ((step + 1) % save_every == 0 or step + 1 == steps)):
                _save(checkpoint, step + 1, steps, runs, stack, optimiser, ledgers, seconds, metrics)
            if stop.is_set():
                raise Interrupted(f"stopped after step {step + 1} of {steps}; {checkpoint} holds the state")
        adapters = [stack.adapter(n) for n in range(len(runs))]
    return [
        _result(run, ledger, seconds, steps, streams[n], adapters[n])
        for n, (run, ledger) in enumerate(zip(runs, ledgers, strict=True))
    ]


def _streams(run: RunData) -> list[Stream]:
    streams = [stream(row, f"{run.name}, row {place}") for place, row in enumerate(run.rows)]
    if not any(len(row.target_M) for row in streams):
        raise UserError(
            f"{run.name}: none of its {len(streams)} rows has a supervised token; expected rows with assistant text "
            "(is the chat template's assistant mask empty, or model.max_length too small?)"
        )
    return streams


def _add_by_run(nll_N: Tensor, nll_M: Tensor, adapter_S: Sequence[int], counts_S: Sequence[int]) -> None:
    """Add each run's tokens; rows come ordered by run, so a sum never mixes runs and its order is fixed."""
    start = 0
    for n, rows in itertools.groupby(range(len(adapter_S)), key=adapter_S.__getitem__):
        end = start + sum(counts_S[s] for s in rows)
        nll_N[n] += nll_M[start:end].double().sum()
        start = end


def _passes(ledger: Ledger, loss: float | None, norm: float, step: int) -> bool:
    """Whether the run takes this step; puts it into quarantine if its loss or gradient is not finite."""
    if ledger.quarantined_at is not None or loss is None:
        return False
    for value, what in ((loss, "loss"), (norm, "gradient norm")):
        if not math.isfinite(value):
            ledger.quarantined_at, ledger.reason = step, f"{what} is {value} at step {step}"
            return False
    return True


@contextlib.contextmanager
def _termination() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal acts as it did before. Only the main thread can."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(*_: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


@contextlib.contextmanager
def _recomputed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Recompute each decoder layer in the backward pass. Only the layers' own training flag is raised: everything
    inside them stays in evaluation mode, so the base's own dropout remains off."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if wanted else []
    if wanted and not layers:
        raise UserError(f"training.gradient_checkpointing: {type(model).__name__} does not support it")
    rerun = partial(recompute, use_reentrant=False, preserve_rng_state=False)
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
        object.__setattr__(layer, "_gradient_checkpointing_func", rerun)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False


@contextlib.contextmanager
def _metrics(run: RunData, size: int) -> Iterator[BinaryIO]:
    """The run's metrics file cut to `size` bytes, what it held at the checkpoint, and open for appending."""
    run.metrics.parent.mkdir(parents=True, exist_ok=True)
    run.metrics.touch()
    have = run.metrics.stat().st_size
    if have < size:
        raise UserError(f"{run.metrics} has {have} bytes, the checkpoint knows of {size}; delete the checkpoint")
    with run.metrics.open("r+b") as stream:
        stream.truncate(size)
        stream.seek(size)
        yield stream


def _numerics(device: torch.device) -> str:
    return f"{device.type}-torch{torch.__version__}"


def _identity(runs: Sequence[RunData], steps: int, stack: AdapterStack) -> dict:
    return {"keys": [run.key for run in runs], "steps": steps, "numerics": _numerics(stack.flat_NP.device)}


def _save(
    folder: Path,
    step: int,
    steps: int,
    runs: Sequence[RunData],
    stack: AdapterStack,
    optimiser: StackedAdamW,
    ledgers: Sequence[Ledger],
    seconds: float,
    metrics: Sequence[BinaryIO],
) -> None:
    facts = {
        **_identity(runs, steps, stack),
        "ledgers": [asdict(ledger) for ledger in ledgers],
        "seconds": seconds,
        "metrics_bytes": [file.tell() for file in metrics],
    }
    checkpoints.save(folder, step, {"adapters": stack.flat_NP, **optimiser.state()}, facts)


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
    run: RunData, ledger: Ledger, seconds: float, steps: int, streams: Sequence[Stream], adapter: Adapter
) -> TrainResult:
    visited = set()
    for step in range(steps):
        visited.update(step_rows(run.seed, len(run.rows), run.train.batch_size, step))
        if len(visited) == len(run.rows):
            break
    return TrainResult(
        condition=run.condition,
        seed=run.seed,
        status="done" if ledger.quarantined_at is None else "quarantined",
        reason=ledger.reason,
        ledger=ledger,
        distinct_rows=len(visited),
        truncated_rows=sum(row.truncated > 0 for row in run.rows),
        unsupervised_rows=sum(not len(row.target_M) for row in streams),
        seconds=seconds,
        adapter=adapter,
    )
