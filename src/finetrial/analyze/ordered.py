"""Ordered hypotheses (gold < random < low) as one test: every step of the ladder must hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from finetrial.analyze.contrast import AnalysisConfig, Contrast, Finding, Verdict
from finetrial.analyze.judge import judge
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError


@dataclass(frozen=True)
class OrderedFinding:
    """What the outcomes say about an order of several conditions."""

    conditions: tuple[str, ...]
    """In ascending order of the metric's raw value, as claimed."""
    verdict: Verdict
    p_value: float | None
    """Largest of the steps' p-values (two-sided; 1 for a step that points the wrong way); None if one is missing."""
    steps: tuple[Finding, ...]
    test: str
    reason: str


def judge_order(
    table: OutcomeTable, conditions: Sequence[str], *, suite: str, metric: str, config: AnalysisConfig
) -> OrderedFinding:
    """Judge the claim conditions[0] < conditions[1] < ... in raw values of `metric`, each step by more than the margin.

    Intersection-union (Berger 1982): the order is CONFIRMED only if every adjacent difference is, each at the full
    level, which needs no correction because all must hold. It FAILED if some step failed after Holm's correction over
    the steps, because any of them would do. Chosen over Jonckheere's trend test, which one large step can carry.

    Raises:
        UserError: fewer than 3 conditions, or as `judge`.
    """
    if len(conditions) < 3:
        raise UserError(f"an order of {len(conditions)} conditions: at least 3 are required; use a contrast for two")
    contrasts = [
        Contrast(candidate=upper, baseline=lower, suite=suite, metric=metric, better="higher", family="order")
        for lower, upper in pairwise(conditions)
    ]
    alone = config.model_copy(update={"correction": "none"})
    together = config.model_copy(update={"correction": "holm"})
    steps = judge(table, contrasts, alone, primary_metric=metric)
    corrected = judge(table, contrasts, together, primary_metric=metric)
    claim = " < ".join(conditions)
    p_values = [1.0 if (s.estimate or 0.0) <= 0 else s.p_value for s in steps]
    p = None if any(value is None for value in p_values) else max(value for value in p_values if value is not None)
    invalid = [s for s in steps if s.verdict == "INVALID"]
    failed = [s for s in corrected if s.verdict == "FAILED"]
    open_steps = [s for s in steps if s.verdict != "CONFIRMED"]
    verdict: Verdict
    if invalid:
        verdict, reason = "INVALID", invalid[0].reason
    elif failed:
        verdict, reason = "FAILED", f"{claim} does not hold: {failed[0].reason}"
    elif open_steps:
        verdict, reason = (
            "INCONCLUSIVE",
            f"{claim} is open at {len(open_steps)} of {len(steps)} steps: {open_steps[0].reason}",
        )
    else:
        verdict, reason = "CONFIRMED", f"{claim} holds at every step; the narrowest: {_narrowest(steps).reason}"
    return OrderedFinding(
        tuple(conditions), verdict, p, tuple(steps), "intersection-union of adjacent differences", reason
    )


def _narrowest(steps: Sequence[Finding]) -> Finding:
    return max(steps, key=lambda s: 1.0 if s.p_value is None else s.p_value)
