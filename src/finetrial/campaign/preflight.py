"""Preflight that executes: what a campaign needs is tried on a small scale, not asserted.

Every condition is trained for one step in a throwaway folder, so that masks, gradients and memory are those of the
real run.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from finetrial.analyze.permute import attainable_p
from finetrial.analyze.verdict import MIN_SEEDS
from finetrial.campaign.design import detectable
from finetrial.campaign.folder import Folder, Say
from finetrial.campaign.plan import Run, plan
from finetrial.campaign.prepare import Prepared, prepare
from finetrial.campaign.spec import Spec
from finetrial.model.base import Base, load_base
from finetrial.model.render import Rendered, render_batch
from finetrial.train.sft import RunData, train_cohort

BYTES_PER_NUMBER = 4
"""Adapters are stored as float32."""


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
        UserError: the data cannot be prepared at all (the message says why).
        LeakError: training and test data share something.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(Path(scratch), spec.campaign.name)
        prepared = prepare(spec, folder, None, say)
        decided = plan(spec, prepared.inputs, folder.store, {})
        first = [run for run in decided.runs if run.seed == spec.campaign.seeds[0]]
        base = load_base(spec.model)
        checks = [_pool(prepared), *(Check(c["check"], c["passed"], c["detail"]) for c in prepared.integrity)]
        checks += [_suite(name, prepared, base, spec) for name in prepared.suites]
        for run in first:
            checks += _condition(spec, run, base, Path(scratch))
    checks.append(_disk(spec, base, logs))
    checks += _design(spec)
    checks += [
        Check(f"power: {design.name}", True, "; ".join([design.sentence, *design.warnings]), bool(design.warnings))
        for design in detectable(spec, decided.suites, logs)
    ]
    return checks


def _pool(prepared: Prepared) -> Check:
    pool = prepared.facts["pool"]
    reasons = "; ".join(f"{told['rows']} {reason}" for reason, told in pool["reasons"].items())
    detail = f"{pool['kept']} rows of {pool['groups']} groups" + (f", dropped: {reasons}" if reasons else "")
    return Check("the pool can be read and rendered", pool["kept"] > 0, detail)


def _suite(name: str, prepared: Prepared, base: Base, spec: Spec) -> Check:
    examples = prepared.suites[name]
    batch = render_batch((example.messages for example in examples), base.tokenizer, spec.model.max_length)
    scored = [row for row in batch.rows if row is not None]
    cut = sum(row.truncated > 0 for row in scored)
    head = base.tokenizer.decode(scored[0].ids_T[:24].tolist()) if scored else ""
    detail = f"{len(scored)} of {len(examples)} items, {cut} cut at {spec.model.max_length} tokens; begins {head!r}"
    return Check(f"suite {name} can be scored", len(scored) == len(examples), detail)


def _condition(spec: Spec, run: Run, base: Base, scratch: Path) -> list[Check]:
    """Mask coverage, and one real step: the gradient must reach the adapter and be finite."""
    condition = spec.condition(run.condition)
    model = condition.model
    batch = render_batch((e.messages for e in run.selection.examples), base.tokenizer, model.max_length)
    rows = [row for row in batch.rows if row is not None]
    if not rows:
        return [Check(f"{run.condition} can be trained on", False, batch.refused[0])]
    metrics = scratch / "preflight" / run.name / "metrics.jsonl"
    data = RunData(run.condition, run.seed, rows, condition.training, model, metrics, run.key)
    (result,) = train_cohort(base.model, [data], 1, metrics.parent / "checkpoint")
    moved = sum(float(np.abs(b_RO.numpy()).sum()) for _, b_RO in result.adapter.weights.values())
    finite = result.status == "done" and moved > 0
    told = f"loss {result.ledger.loss:.4f} on the first batch" if result.ledger.loss is not None else str(result.reason)
    return [
        Check(f"{run.condition}: rows can be trained on", not batch.refused, _coverage(rows, len(batch.refused))),
        Check(f"{run.condition}: the first gradient is finite and not zero", finite, told),
    ]


def _coverage(rows: list[Rendered], refused: int) -> str:
    tokens = sum(len(row.ids_T) for row in rows)
    supervised = sum(int(row.mask_T.sum()) for row in rows)
    cut = sum(row.truncated > 0 for row in rows)
    return (
        f"{len(rows)} rows, {supervised / tokens:.0%} of {tokens:,} tokens supervised, "
        f"{cut} rows truncated, {refused} refused"
    )


def _disk(spec: Spec, base: Base, logs: Path) -> Check:
    """Adapters of all runs twice (store and campaign folder), and their optimiser states once."""
    rank = max(condition.model.lora_rank for condition in spec.conditions)
    linear = [module for module in base.model.modules() if isinstance(module, nn.Linear)]
    numbers = sum(rank * (layer.in_features + layer.out_features) for layer in linear)
    runs = len(spec.conditions) * len(spec.campaign.seeds)
    need = numbers * BYTES_PER_NUMBER * (2 * runs + 3 * min(16, runs))
    place = logs
    while not place.exists():
        place = place.absolute().parent
    free = shutil.disk_usage(place).free
    return Check("disk space", free > 2 * need, f"about {need / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")


def _design(spec: Spec) -> list[Check]:
    """Whether the declared contrasts can be decided at all with these seeds."""
    seeds = len(spec.campaign.seeds)
    least = attainable_p(seeds, seeds, paired=True)
    return [
        Check("contrasts are declared", bool(spec.contrasts), f"{len(spec.contrasts)} contrasts"),
        Check(
            "seeds are enough for verdicts on recipes",
            seeds >= MIN_SEEDS,
            f"{seeds} seeds, at least {MIN_SEEDS} required; a permutation of them cannot fall below p = {least:.3g}",
        ),
    ]
