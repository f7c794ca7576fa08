"""What a judge must show before its grades count: answers of known worth, asked again, and shown in both orders."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetrial.errors import UserError
from finetrial.grade.answers import find_answer
from finetrial.grade.plain import normalised
from finetrial.grade.quantity import read_quantity
from finetrial.judge.grader import Appraisal, JudgeGrader
from finetrial.records import Task

ALIKE = 0.1
"""Two grades of one answer that differ by no more are alike."""

NOTHING = "I do not know."
"""The wrong answer to a task of which no other can be made."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried; a row of the report's table."""

    check: str
    n: int
    as_wanted: int
    missing: int
    """Answers without a grade; they count against the judge."""
    threshold: float
    passed: bool

    @property
    def share(self) -> float:
        """Of the answers that were graded as they should be."""
        return self.as_wanted / self.n if self.n else 0.0


@dataclass(frozen=True)
class SelfTest:
    """What came of it."""

    model: str
    checks: tuple[Check, ...]
    is_pending: bool
    """Requests failed: the test did not take place, and the judge may be right for all that is known."""

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return not self.is_pending and all(check.passed for check in self.checks)

    @property
    def sentence(self) -> str:
        """What failed, or that nothing did."""
        told = [
            f"{check.check}: {check.as_wanted} of {check.n}, at least {check.threshold:.0%} wanted"
            + (f" ({check.missing} without a grade)" if check.missing else "")
            for check in self.checks
            if not check.passed
        ]
        if self.is_pending:
            told.insert(0, "not all requests were answered")
        return f"judge {self.model}: " + ("; ".join(told) if told else f"{len(self.checks)} checks passed")

    def facts(self) -> dict[str, Any]:
        """For records and reports, in JSON types."""
        rows = [{**asdict(check), "share": check.share} for check in self.checks]
        return {"model": self.model, "passed": self.passed, "sentence": self.sentence, "checks": rows}


def chosen(tasks: Sequence[Task], count: int) -> list[Task]:
    """The tasks that a judge is tried on: those whose content hashes sort first, whatever the order of the suite."""
    return sorted({task.content_hash: task for task in tasks}.values(), key=lambda task: task.content_hash)[:count]


def gold_answer(task: Task) -> str:
    """An answer that must be graded at the top: the worked one, else the reference; of a choice with its text."""
    if task.gold is not None:
        return task.gold
    return _option(task, task.reference) or task.reference


def wrong_answer(task: Task, others: Sequence[Task]) -> str:
    """An answer that must be graded at the bottom, in the shape of a right one where that can be made.

    Of a choice another option; of a number another number; else the gold answer of another of the tasks, with another
    reference; and where all have the same, that nothing is known.
    """
    choices = task.meta.get("choices") or {}
    for label in choices:
        if label != task.reference:
            return _option(task, label)
    number = read_quantity(task.reference)
    if number is not None:
        unit = f" {number.unit}" if number.unit else ""
        return f"Answer: {float(number.value * 3 + 2):g}{'%' if number.percent else ''}{unit}"
    for other in others:
        if normalised(other.reference) != normalised(task.reference) and find_answer(gold_answer(other)):
            return gold_answer(other)
    return NOTHING


def self_test(grader: JudgeGrader, tasks: Sequence[Task]) -> SelfTest:
    """Try a judge on some of the tasks that it is to grade.

    Single: gold answers are at the top, wrong and empty ones at the bottom, and gold and wrong ones are graded alike
    (within 0.1 of the scale) when asked again. Pairwise: gold wins over wrong and empty answers, in whichever place,
    verdicts are alike when asked again, and do not turn with the order. What has no grade counts against the judge.

    Raises:
        UserError: the judge failed and `self_test.allow_failure` is not set, or requests were not answered; naming the
            checks. Or what `JudgeGrader.grade` raises.
    """
    judge = grader.judge
    some = chosen(tasks, judge.self_test.items)
    if not some:
        raise UserError(f"judge {judge.model}: there are no tasks to try it on")
    rows, pending = (_single if judge.kind == "single" else _pairwise)(grader, some)
    result = SelfTest(judge.model, tuple(rows), pending)
    if result.is_pending or not (result.passed or judge.self_test.allow_failure):
        raise UserError(
            f"the judge failed its self-test, so its grades would not count. {result.sentence}. Use another judge, "
            "mend the template, or set judge.self_test.allow_failure = true, which the report will say"
        )
    return result


def _single(grader: JudgeGrader, tasks: list[Task]) -> tuple[list[Check], bool]:
    wanted, n = grader.judge.self_test, len(tasks)
    golds = [gold_answer(task) for task in tasks]
    wrongs = [wrong_answer(task, tasks) for task in tasks]
    found = grader.appraise([*tasks, *tasks, *tasks], [*golds, *wrongs, *[""] * n], repeats=1)
    again = grader.appraise([*tasks, *tasks], [*golds, *wrongs], repeats=2)
    checks = [
        _check("gold answers at the top", found[:n], wanted.gold, lambda value: value >= wanted.top),
        _check("wrong answers at the bottom", found[n : 2 * n], wanted.wrong, lambda value: value <= wanted.bottom),
        _check("empty answers at the bottom", found[2 * n :], wanted.empty, lambda value: value <= wanted.bottom),
        _alike(again, wanted.repeat),
    ]
    return checks, any(one.is_pending for one in (*found, *again))


def _pairwise(grader: JudgeGrader, tasks: list[Task]) -> tuple[list[Check], bool]:
    wanted, n = grader.judge.self_test, len(tasks)
    golds = [gold_answer(task) for task in tasks]
    wrongs = [wrong_answer(task, tasks) for task in tasks]
    found = grader.appraise([*tasks, *tasks], [*golds, *golds], [*wrongs, *[""] * n], repeats=1)
    again = grader.appraise(tasks, golds, wrongs, repeats=2)
    steady = [one for one in found if one.value is not None]
    swapped = sum(one.disagreements == 0 for one in steady)
    checks = [
        _check("gold answers win over wrong ones", found[:n], wanted.wrong, lambda value: value == 1),
        _check("gold answers win over empty ones", found[n:], wanted.empty, lambda value: value == 1),
        _alike(again, wanted.repeat),
        Check(
            "pairs judged alike in both orders",
            2 * n,
            swapped,
            2 * n - len(steady),
            wanted.swap,
            swapped >= wanted.swap * 2 * n,
        ),
    ]
    return checks, any(one.is_pending for one in (*found, *again))


def _check(name: str, found: Sequence[Appraisal], threshold: float, is_wanted: Any) -> Check:
    values = [one.value for one in found if one.value is not None]
    hits = sum(map(is_wanted, values))
    return Check(name, len(found), hits, len(found) - len(values), threshold, hits >= threshold * len(found))


def _alike(found: Sequence[Appraisal], threshold: float) -> Check:
    pairs = [one.repeats for one in found if None not in one.repeats]
    hits = sum(abs((first or 0.0) - (second or 0.0)) <= ALIKE + 1e-12 for first, second in pairs)
    name = "answers graded alike when asked again"
    return Check(name, len(found), hits, len(found) - len(pairs), threshold, hits >= threshold * len(found))


def _option(task: Task, label: str) -> str:
    choices = task.meta.get("choices") or {}
    return f"Answer: {label}. {choices[label]}" if label in choices else ""
