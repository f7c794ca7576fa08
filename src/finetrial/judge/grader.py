"""A judge as a grader: tasks and completions in, grades in [0, 1] out, like every other kind."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import Grader, grader, resolved
from finetrial.grade.judge_config import JudgeConfig
from finetrial.judge.ask import Question, Unjudged, ask_all, judge_id, keys_of
from finetrial.judge.endpoint import Endpoint
from finetrial.judge.judgments import Judgment, Judgments, one_judge
from finetrial.judge.prompts import check_template, prompt, prompt_hash
from finetrial.records import Grade, Task

FOLDER = "judgments"
"""In the store's root: what judges have said, and their control charts."""

PENDING = "not judged yet: "
"""How the reason of a grade begins that another launch can still give."""


@dataclass(frozen=True)
class Appraisal:
    """What a judge's replies to one answer come to."""

    value: float | None
    """Mean over repeats in [0, 1]; of a pair the share of the first answer."""
    repeats: tuple[float | None, ...]
    disagreements: int
    """Repeats whose verdict turned with the order of the answers; each counts as a tie."""
    reason: str
    is_pending: bool = False
    """A request failed or the budget was spent: nothing was judged, and another launch asks again."""


@dataclass
class Tally:
    """What happened since a judge was opened."""

    graded: int = 0
    missing: int = 0
    pending: int = 0
    asked_again: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    """How replies were read."""


class JudgeGrader:
    """Grades completions by asking a judge; a context manager, for it holds a connection."""

    kind = "judge"

    def __init__(self, config: GraderConfig, folder: Path):
        """Open a judge whose judgments are kept below `folder`.

        Raises:
            UserError: `openai` is missing, the environment lacks base URL or key, or the template has fields that are
                none.
        """
        assert config.judge is not None
        self.config, self.judge, self.folder = config, config.judge, folder
        check_template(self.judge, ())
        self.judgments = Judgments(folder)
        self.endpoint = Endpoint(self.judge)
        self.tally = Tally()
        self.first_prompt = ""
        self.served = Counter[str]()

    def __enter__(self) -> "JudgeGrader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self.endpoint.close()

    def grade(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[Grade]:
        """One grade per task and completion: the score's place on the scale, as a share of it.

        The raw score stands in the reason and among the judgments. A reply that cannot be read after one more question
        gives no grade (None, with the reason; the text is kept); neither does a request that failed or came after the
        budget was spent (`PENDING`).

        Raises:
            UserError: a template that does not show all that an item has, a refused key, an unknown model, or a server
                that answered with several models.
        """
        rivals = [_rival(task, self.judge) for task in tasks] if self.judge.kind == "pairwise" else None
        found = self.appraise(tasks, texts, rivals)
        self.tally.graded += len(found)
        self.tally.missing += sum(one.value is None and not one.is_pending for one in found)
        self.tally.pending += sum(one.is_pending for one in found)
        return [Grade(one.value, PENDING + one.reason if one.is_pending else one.reason) for one in found]

    def appraise(
        self,
        tasks: Sequence[Task],
        texts: Sequence[str],
        rivals: Sequence[str] | None = None,
        repeats: int | None = None,
        session: str = "",
    ) -> list[Appraisal]:
        """What the judge says of each text, or of each text against its rival in both orders.

        Args:
            tasks, texts: as for `grade`.
            rivals: pairwise: the other answers.
            repeats: how often each is judged; default as configured.
            session: names a session in which everything is asked again (control charts).

        Raises:
            UserError: as `grade`.
        """
        if (rivals is None) == (self.judge.kind == "pairwise"):
            raise ValueError("rivals belong to pairwise judging, and to that alone")
        check_template(self.judge, tasks)
        count = self.judge.repeats if repeats is None else repeats
        questions = _questions(tasks, texts, rivals, count, session)
        if questions and not self.first_prompt:
            self.first_prompt = prompt(questions[0].task, self.judge, questions[0].answers)
        found = ask_all(questions, self.judge, self.endpoint, self.judgments)
        self._count(one for one in found if isinstance(one, Judgment))
        return _appraisals(found, count, rivals is not None)

    def facts(self) -> dict[str, Any]:
        """For records and reports, in JSON types: who judges, on what scale, and as `launch` what happened since it was
        opened."""
        tally, endpoint, (low, high) = self.tally, self.endpoint, self.judge.bounds
        return {
            "model": self.judge.model,
            "served": sorted(self.served),
            "judge": judge_id(self.judge),
            "prompt": prompt_hash(self.judge),
            "kind": self.judge.kind,
            "scale": [low, high],
            "launch": {
                "graded": tally.graded,
                "missing": tally.missing,
                "pending": tally.pending,
                "asked_again": tally.asked_again,
                "read_by": dict(sorted(tally.ways.items())),
                "requests": endpoint.requests,
                "retried": endpoint.retried,
                "tokens": endpoint.tokens,
            },
            "first_prompt": self.first_prompt,
        }

    def totals(self, tasks: Sequence[Task], texts: Sequence[str]) -> dict[str, Any]:
        """What the store knows of the grades of these completions, whichever launch asked for them; nothing is asked.

        In JSON types: `graded` completions and how many of them are `missing`; the `judgments` that they rest on (alike
        completions share theirs), how many were `asked_again`, the `served` names and how replies were read; shares of
        grades at the very bottom and top (a scale that is used up tells nothing apart), and of pairs whose verdict
        turned with the order (None of single answers); `lost` grades whose judgments the store has no more, which are
        no part of the other numbers.
        """
        rivals = [_rival(task, self.judge) for task in tasks] if self.judge.kind == "pairwise" else None
        questions = _questions(tasks, texts, rivals, self.judge.repeats, "")
        keys = keys_of(questions, self.judge)
        known = self.judgments.get(keys)
        found = [known.get(mine, Unjudged("not in the store")) for mine in keys]
        appraisals = _appraisals(found, self.judge.repeats, rivals is not None)
        whole = [one for one in appraisals if not one.is_pending]
        values = [one.value for one in whole if one.value is not None]
        pairs = 0 if rivals is None else sum(value is not None for one in whole for value in one.repeats)
        return {
            "graded": len(whole),
            "missing": len(whole) - len(values),
            "lost": len(appraisals) - len(whole),
            "judgments": len(known),
            "served": sorted({one.served for one in known.values()}),
            "asked_again": sum(len(one.replies) > 1 for one in known.values()),
            "read_by": dict(
                sorted(Counter("unread" if one.value is None else one.how for one in known.values()).items())
            ),
            "floor_share": sum(value == 0 for value in values) / len(values) if values else None,
            "ceiling_share": sum(value == 1 for value in values) / len(values) if values else None,
            "order_disagreement": sum(one.disagreements for one in whole) / pairs if pairs else None,
        }

    def _count(self, judgments: Iterator[Judgment]) -> None:
        rows = list(judgments)
        self.served.update(one.served for one in rows)
        one_judge(rows)
        if len(self.served) > 1:
            raise UserError(
                f"judge {self.judge.model}: the server answered as {' and as '.join(sorted(self.served))}; judgments "
                "of different models are not comparable: set judge.revision to judge everything anew"
            )
        self.tally.asked_again += sum(len(one.replies) > 1 for one in rows)
        self.tally.ways.update("unread" if one.value is None else one.how for one in rows)


def open_grader(config: GraderConfig, auto: str, root: Path) -> "Grader | JudgeGrader":
    """The grader of a configuration, of whatever kind; a judge's judgments are kept below `root` (of the store).

    Raises:
        UserError: what `grade.grader` and `JudgeGrader` raise.
    """
    if resolved(config, auto) == "judge":
        return JudgeGrader(config, root / FOLDER)
    return grader(config, auto)


def _questions(
    tasks: Sequence[Task], texts: Sequence[str], rivals: Sequence[str] | None, repeats: int, session: str
) -> list[Question]:
    """Of each text its repeats, and of pairs both orders of each; in the order that `_appraisals` reads."""
    shown = [
        [(text,)] if rivals is None else [(text, rivals[place]), (rivals[place], text)]
        for place, (_, text) in enumerate(zip(tasks, texts, strict=True))
    ]
    return [
        Question(task, answers, repeat, session)
        for task, orders in zip(tasks, shown, strict=True)
        for repeat in range(repeats)
        for answers in orders
    ]


def _appraisals(found: Sequence[Judgment | Unjudged], repeats: int, are_pairs: bool) -> list[Appraisal]:
    """What the answers to `_questions` come to, text by text."""
    orders = 2 if are_pairs else 1
    per_text = orders * repeats
    return [
        _appraised([list(found[start + k : start + k + orders]) for k in range(0, per_text, orders)])
        for start in range(0, len(found), per_text)
    ]


def _appraised(repeats: list[list[Judgment | Unjudged]]) -> Appraisal:
    """Repeats (each of one judgment, or of two in both orders) as one value.

    The mean is over the repeats that could be read, and the reason tells how many could not; a repeat that was not
    judged yet leaves the whole without a value, or it would change when it is.
    """
    waiting = [one.reason for orders in repeats for one in orders if isinstance(one, Unjudged)]
    if waiting:
        return Appraisal(None, (None,) * len(repeats), 0, waiting[0], is_pending=True)
    judged = [[one for one in orders if isinstance(one, Judgment)] for orders in repeats]
    combined = [_combined(orders) for orders in judged]
    values = tuple(value for value, _ in combined)
    turned = sum(disagrees for _, disagrees in combined)
    read = [value for value in values if value is not None]
    problems = [one.problem for orders in judged for one in orders if one.value is None]
    if not read:
        return Appraisal(None, values, turned, problems[0])
    first = judged[0][0]
    told = [f"{one.value:g}" if one.value is not None else "unread" for orders in judged for one in orders]
    reason = f"judged {', '.join(told)} on {first.low:g} to {first.high:g}"
    if len(judged[0]) == 2:
        reason = f"judged {', '.join(told)} for the answer shown first" + ("; the orders disagree" if turned else "")
    if len(read) < len(values):
        reason += f"; {len(values) - len(read)} of {len(values)} repeats could not be read: {problems[0]}"
    return Appraisal(sum(read) / len(read), values, turned, reason)


def _combined(orders: list[Judgment]) -> tuple[float | None, bool]:
    """One repeat: a single judgment, or a pair of verdicts; where these disagree it is a tie."""
    shares = [one.unit for one in orders]
    if len(shares) == 1:
        return shares[0], False
    first, second = shares
    if first is None or second is None:
        return None, False
    return (first, False) if first == 1 - second else (0.5, True)


def _rival(task: Task, judge: JudgeConfig) -> str:
    """What a completion is compared with.

    Raises:
        UserError: the task does not have it.
    """
    if judge.against is None:
        return task.gold if task.gold is not None else task.reference
    rival = task.meta.get(judge.against)
    if not isinstance(rival, str) or not rival.strip():
        raise UserError(f"task {task.id}: no text in meta.{judge.against}, which judge.against names")
    return rival
