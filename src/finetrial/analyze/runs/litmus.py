"""The litmus: a pass-or-fail gate of a candidate group of runs, with evidence requirements and uncertainty.

Each check asks whether the lift of one metric reaches its threshold. The interval of the lift over runs decides, never
the point estimate:

    CONFIRMED     evidence suffices and every interval lies above its threshold
    FAILED        evidence suffices and some interval lies below its threshold
    INCONCLUSIVE  otherwise: too little evidence, or an interval contains its threshold

Requiring all checks is an intersection-union test: each stands at alpha/2 one-sided without correction. A false FAILED
needs one of the two checks to err downwards, at most alpha/2 each, so alpha together.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import Field

from finetrial.analyze.readers.run_logs import LIFTS, RunLog, common_steps
from finetrial.analyze.runs.significance import UNIT, run_means, welch_interval
from finetrial.errors import UserError
from finetrial.records import Config


class LitmusConfig(Config):
    """Thresholds and evidence requirements."""

    mean_reward: float = Field(default=LIFTS["mean_reward"], description="lift of mean_reward that counts")
    correct_rate: float = Field(default=LIFTS["correct_rate"], description="lift of correct_rate that counts")
    min_runs: int = Field(
        default=3, ge=1, description="runs per arm; below two no interval exists, so nothing is concluded"
    )
    min_steps: int = Field(default=8, ge=1, description="steps of every run")
    min_generations: int = Field(default=32, ge=0, description="completions of every run")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="intervals have level 1 - alpha")


@dataclass(frozen=True)
class Check:
    """One threshold."""

    metric: str
    baseline: float
    candidate: float
    delta: float
    ci_low: float | None
    ci_high: float | None
    threshold: float
    passed: bool | None
    """None where the interval contains the threshold or does not exist."""
    test: str
    n_baseline: int
    n_candidate: int
    unit: str = UNIT


@dataclass(frozen=True)
class Litmus:
    """The gate's answer. `as_dict` is what `litmus.json` holds."""

    status: str
    reason: str
    thresholds: dict[str, float]
    evidence: dict[str, Any]
    evidence_ok: bool
    evidence_failures: list[str]
    checks: list[Check]
    baseline: list[dict[str, Any]]
    candidate: list[dict[str, Any]]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def litmus(baseline: Sequence[RunLog], candidate: Sequence[RunLog], config: LitmusConfig | None = None) -> Litmus:
    """Judge a candidate against thresholds.

    Raises:
        UserError: an arm has no run.
    """
    config = config or LitmusConfig()
    if not baseline or not candidate:
        raise UserError("both arms need at least one run")
    thresholds = {"mean_reward": config.mean_reward, "correct_rate": config.correct_rate}
    failures = _evidence(baseline, candidate, config)
    checks = []
    for metric, threshold in thresholds.items():
        check = _check(metric, threshold, baseline, candidate, config.alpha)
        if check is None:
            failures.append(f"{metric}: no step at which every run has it")
        else:
            checks.append(check)
    status, reason = _decide(checks, failures)
    return Litmus(
        status=status,
        reason=reason,
        thresholds=thresholds,
        evidence=config.model_dump(include={"min_runs", "min_steps", "min_generations", "alpha"}),
        evidence_ok=not failures,
        evidence_failures=failures,
        checks=checks,
        baseline=[_facts(run) for run in baseline],
        candidate=[_facts(run) for run in candidate],
        warnings=[f"{run.name}: {note}" for run in (*baseline, *candidate) for note in run.notes],
    )


def _evidence(baseline: Sequence[RunLog], candidate: Sequence[RunLog], config: LitmusConfig) -> list[str]:
    """What is missing, one sentence each."""
    failures = []
    for name, runs in (("baseline", baseline), ("candidate", candidate)):
        if len(runs) < config.min_runs:
            failures.append(f"{name}: {len(runs)} runs, {config.min_runs} required")
        for run in runs:
            if len(run.steps_T) < config.min_steps:
                failures.append(f"{run.name}: {len(run.steps_T)} steps, {config.min_steps} required")
            if run.completions < config.min_generations:
                failures.append(f"{run.name}: {run.completions} completions, {config.min_generations} required")
    return failures


def _check(
    metric: str, threshold: float, baseline: Sequence[RunLog], candidate: Sequence[RunLog], alpha: float
) -> Check | None:
    steps_T = common_steps([*baseline, *candidate], metric)
    if not len(steps_T):
        return None
    a_A, b_B = run_means(candidate, metric, steps_T), run_means(baseline, metric, steps_T)
    interval = welch_interval(a_A, b_B, alpha)
    passed = None
    if interval is not None and interval[0] > threshold:
        passed = True
    elif interval is not None and interval[1] < threshold:
        passed = False
    return Check(
        metric=metric,
        baseline=float(b_B.mean()),
        candidate=float(a_A.mean()),
        delta=float(a_A.mean() - b_B.mean()),
        ci_low=interval[0] if interval else None,
        ci_high=interval[1] if interval else None,
        threshold=threshold,
        passed=passed,
        test=f"Welch t over run means, {1 - alpha:.0%} interval",
        n_baseline=len(b_B),
        n_candidate=len(a_A),
    )


def _decide(checks: Sequence[Check], failures: Sequence[str]) -> tuple[str, str]:
    if failures:
        return "INCONCLUSIVE", f"not enough evidence: {'; '.join(failures)}"
    failed = [check.metric for check in checks if check.passed is False]
    if failed:
        return "FAILED", f"the whole interval of {' and '.join(failed)} lies below the threshold"
    open_ones = [check.metric for check in checks if check.passed is None]
    if open_ones:
        return "INCONCLUSIVE", f"the interval of {' and '.join(open_ones)} does not exclude the threshold"
    return "CONFIRMED", "every interval lies above its threshold"


def _facts(run: RunLog) -> dict[str, Any]:
    facts: dict[str, Any] = {"run": run.name, "condition": run.condition, "seed": run.seed}
    facts |= {"steps": len(run.steps_T), "completions": run.completions}
    for metric, values in run.values_T.items():
        facts[metric] = None if np.isnan(values).all() else float(np.nanmean(values))
    return facts
