"""A judge's control chart: the same answers judged anew in every session, and whether it still judges as before.

Shapes: K earlier sessions in control, N answers of the frozen baseline.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from finetrial.errors import UserError
from finetrial.identity import digest
from finetrial.judge.ask import judge_id
from finetrial.judge.grader import JudgeGrader
from finetrial.judge.prompts import prompt_hash
from finetrial.judge.selftest import chosen, gold_answer, wrong_answer
from finetrial.records import Task
from finetrial.store import read_json, write_json

THREE_SIGMA = 0.99865
"""Probability below three standard deviations of a normal variable."""

MIN_ANSWERS = 5
"""Answers that all sessions must have judged for them to be compared."""


@dataclass(frozen=True)
class Limits:
    """Where a session's mean may lie, given the earlier sessions."""

    centre: float
    low: float
    high: float
    n: int
    """Answers that all of them judged."""


@dataclass(frozen=True)
class Session:
    """One judging of the baseline; a point of the chart."""

    session: str
    """Its time in UTC."""
    scores: tuple[float | None, ...]
    """Of each answer, in [0, 1]; None where the reply could not be read."""
    mean: float | None
    centre: float | None
    """Of the earlier sessions in control; None in the first."""
    low: float | None
    high: float | None
    drifted: bool
    reason: str = ""


@dataclass(frozen=True)
class ControlChart:
    """All sessions of one judge on one frozen baseline, oldest first."""

    judge: str
    prompt: str
    baseline: str
    """Digest of the tasks and answers."""
    sessions: tuple[Session, ...]

    @property
    def in_control(self) -> bool:
        """Whether the last session was."""
        return bool(self.sessions) and not self.sessions[-1].drifted

    def facts(self) -> dict[str, Any]:
        """For records and reports, in JSON types."""
        return {**asdict(self), "in_control": self.in_control}


def limits(earlier_KN: np.ndarray, new_N: np.ndarray, tolerance: float) -> Limits:
    """The range of a new session's mean at which nothing has changed.

    Scores are x_kn = answer_n + session_k + e_kn. The centre is the mean of the earlier sessions' means. With s² the
    mean square of the residuals e over all K + 1 sessions, (N-1)K degrees of freedom, the limits are

        centre ± max(tolerance, t_{(N-1)K}(0.99865) · s · sqrt((1 + 1/K) / N)):

    three sigma, with Student's t in the place of 3 because s is estimated, and 1/K because the centre is (Montgomery,
    Introduction to Statistical Quality Control; the error of a mean of repeated measures). A shift of a whole session
    is no part of s. A judge that answers always the same has s = 0; `tolerance` keeps it from being blocked for one
    answer's rounding.

    Args:
        earlier_KN, new_N: scores in [0, 1] without missing ones.
        tolerance: change of the mean that is never drift.

    Raises:
        ValueError: no earlier session, or fewer than 2 answers.
    """
    k, n = earlier_KN.shape
    if k < 1 or n < 2 or new_N.shape != (n,):
        raise ValueError(f"{k} earlier sessions of {n} answers, {new_N.shape} new scores")
    all_KN = np.vstack([earlier_KN, new_N])
    residual_KN = all_KN - all_KN.mean(0) - all_KN.mean(1, keepdims=True) + all_KN.mean()
    freedom = (n - 1) * k
    error = float(np.sqrt((residual_KN**2).sum() / freedom * (1 + 1 / k) / n))
    half = max(tolerance, float(special.stdtrit(freedom, THREE_SIGMA)) * error)
    centre = float(earlier_KN.mean())
    return Limits(centre, centre - half, centre + half, n)


def judged(name: str, scores: Sequence[float | None], earlier: Sequence[Session], tolerance: float) -> Session:
    """A new session against the earlier ones; those that drifted are not what it is compared with.

    Answers that could not be read in any of these sessions are left out. Fewer than 5 left is drift too: a check that
    cannot be made has failed.
    """
    read = [score for score in scores if score is not None]
    average = sum(read) / len(read) if read else None
    calm = [session for session in earlier if not session.drifted]
    common = [place for place in range(len(scores)) if all(s.scores[place] is not None for s in calm)]
    common = [place for place in common if scores[place] is not None]
    if len(common) < MIN_ANSWERS:
        reason = f"only {len(common)} answers were read in every session; at least {MIN_ANSWERS} are required"
        return Session(name, tuple(scores), average, None, None, None, True, reason)
    if not calm:
        return Session(name, tuple(scores), average, None, None, None, False, "first session: the baseline")
    earlier_KN = np.array([[session.scores[place] for place in common] for session in calm], dtype=float)
    new_N = np.array([scores[place] for place in common], dtype=float)
    found = limits(earlier_KN, new_N, tolerance)
    mean = float(new_N.mean())
    drifted = not found.low - 1e-12 <= mean <= found.high + 1e-12
    where = "outside" if drifted else "within"
    reason = f"mean {mean:.4f} is {where} {found.low:.4f} to {found.high:.4f} ({len(calm)} earlier sessions)"
    return Session(name, tuple(scores), mean, found.centre, found.low, found.high, drifted, reason)


def baseline(tasks: Sequence[Task], items: int) -> tuple[list[Task], list[str]]:
    """Answers of good, middling and bad worth, frozen by the tasks: gold, the first half of gold, wrong."""
    some = chosen(tasks, items)
    golds = [gold_answer(task) for task in some]
    halves = [gold[: max(1, len(gold) // 2)] for gold in golds]
    return [*some, *some, *some], [*golds, *halves, *[wrong_answer(task, some) for task in some]]


def control(grader: JudgeGrader, tasks: Sequence[Task], texts: Sequence[str], session: str = "") -> ControlChart:
    """Judge the frozen baseline anew, add the session to the judge's chart on the disk, and return the chart.

    A drifted session is written down too, but is no part of later centres. `refuse_drift` blocks.

    Args:
        grader: a single judge, or a pairwise one (the first third of its verdicts is against the gold answer).
        tasks, texts: the baseline, the same in every session (`baseline` makes one).
        session: name of the session; default the time.

    Raises:
        UserError: requests failed, so that the session did not take place; or what `grade` raises.
    """
    judge = grader.judge
    name = session or dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
    frozen = digest([[task.content_hash, text] for task, text in zip(tasks, texts, strict=True)])
    identity = {"judge": judge_id(judge), "prompt": prompt_hash(judge), "baseline": frozen}
    path = grader.folder / f"control-{digest(identity)[:16]}.json"
    earlier = _sessions(path)
    if any(one.session == name for one in earlier):
        return ControlChart(**identity, sessions=earlier)
    rivals = [gold_answer(task) for task in tasks] if judge.kind == "pairwise" else None
    found = grader.appraise(tasks, texts, rivals, repeats=1, session=name)
    if any(one.is_pending for one in found):
        reason = next(one.reason for one in found if one.is_pending)
        raise UserError(f"judge {judge.model}: its control chart could not be made: {reason}")
    new = judged(name, [one.value for one in found], earlier, judge.drift_tolerance)
    chart = ControlChart(**identity, sessions=(*earlier, new))
    write_json(path, asdict(chart))
    return chart


def refuse_drift(chart: ControlChart, model: str) -> None:
    """Block comparisons with a judge that no longer judges as before.

    Raises:
        UserError: the last session lies outside the limits.
    """
    if not chart.in_control:
        reason = chart.sessions[-1].reason if chart.sessions else "it has no session"
        raise UserError(
            f"judge {model} has drifted: {reason}. Comparisons are blocked; set judge.revision to a new name to judge "
            "everything anew"
        )


def _sessions(path: Path) -> tuple[Session, ...]:
    if not path.is_file():
        return ()
    rows = read_json(path)["sessions"]
    return tuple(Session(**{**row, "scores": tuple(row["scores"])}) for row in rows)
