"""Grading rules that are pure functions: a task, a completion and the options in, a Grade out."""

import re
from collections.abc import Callable, Mapping

from finetrial.errors import UserError
from finetrial.grade.answers import find_answer
from finetrial.grade.config import GraderConfig
from finetrial.grade.plain import normalised, plain
from finetrial.grade.quantity import equal, last_quantity, read_quantity
from finetrial.records import Grade, Task

RIGHT, WRONG = 1.0, 0.0
SHOWN = 80
"""Characters of an answer that a reason quotes."""

NO_ANSWER = Grade(WRONG, "no answer found")


def exact(task: Task, text: str, config: GraderConfig) -> Grade:
    """1 where answer and reference have the same `normalised` spelling."""
    answer = find_answer(text, config.answer)
    if not answer:
        return NO_ANSWER
    return _told(normalised(answer) == normalised(task.reference), answer)


def numeric(task: Task, text: str, config: GraderConfig) -> Grade:
    """1 where answer and reference are equal as numbers, see `quantity.equal`.

    The unit wanted is `task.meta["unit"]`, else what stands behind the reference's number. An answer that is no
    number is wrong; `relaxed` takes the last number of the text in its stead.

    Raises:
        UserError: the reference is no number.
    """
    wanted = read_quantity(task.reference)
    if wanted is None:
        raise UserError(f"task {task.id}: the reference {_quoted(task.reference)} is no number; expected one")
    unit = task.meta.get("unit")
    if unit is not None:
        percent = str(unit).strip().casefold() in ("%", "percent", "per cent", "pct")
        wanted = type(wanted)(wanted.value, wanted.percent or percent, "" if percent else str(unit))
    answer = find_answer(text, config.answer)
    given = read_quantity(answer) if answer else None
    if given is not None:
        return _told(equal(given, wanted, config.tolerance), answer or "")
    last = last_quantity(text) if config.relaxed else None
    if last is not None:
        return _told(equal(last, wanted, config.tolerance), "the last number of the text")
    return Grade(WRONG, f"no number: {_quoted(answer)}") if answer else NO_ANSWER


LETTER = re.compile(r"[\s*_(\[{\"'`]*(\w{1,2})[\s*_)\]}.,:;\"'`]*")
LED = re.compile(r"[\s*_(\[{]*(\w{1,2})[*_]*[)\].:\-][)\]*_]*\s*\S.*", re.DOTALL)
NAMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[*_(\[]*([A-Za-z0-9])\b(?!['’])", re.IGNORECASE)


def choice(task: Task, text: str, config: GraderConfig) -> Grade:
    """1 where the answer names the option whose label is the reference.

    `task.meta["choices"]` maps labels to the options' texts. Strict: the answer is a label alone, in either case, in
    brackets or not (`B`, `(b)`, `**B.**`). `relaxed` also takes `B) its text`, the text of exactly one option, and
    the last `option B`, `answer is B` of the answer.

    Raises:
        UserError: the task has no choices, or the reference is none of their labels.
    """
    choices = task.meta.get("choices")
    if not isinstance(choices, Mapping) or task.reference not in choices:
        raise UserError(
            f"task {task.id}: expected meta.choices with the reference {_quoted(task.reference)} as a label"
        )
    answer = find_answer(text, config.answer)
    if not answer:
        return NO_ANSWER
    label = _label(LETTER.fullmatch(plain(answer)), choices)
    if label is not None:
        return _told(label == task.reference, answer)
    loose = _relaxed_label(answer, choices)
    if config.relaxed and loose is not None:
        return _told(loose == task.reference, answer)
    hint = f"; relaxed, it names {loose}" if loose is not None else ""
    return Grade(WRONG, f"no label of an option alone: {_quoted(answer)}{hint}")


def _relaxed_label(answer: str, choices: Mapping[str, str]) -> str | None:
    led = _label(LED.fullmatch(plain(answer)), choices)
    if led is not None:
        return led
    same = [label for label, option in choices.items() if normalised(str(option)) == normalised(answer)]
    if len(same) == 1:
        return same[0]
    named = list(NAMED.finditer(plain(answer)))
    return _label(named[-1], choices) if named else None


def _label(found: re.Match[str] | None, choices: Mapping[str, str]) -> str | None:
    if found is None:
        return None
    return next((label for label in choices if label.casefold() == found[1].casefold()), None)


def _told(right: bool, answer: str) -> Grade:
    return Grade(RIGHT) if right else Grade(WRONG, f"not equal: {_quoted(answer)}")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


RULES: dict[str, Callable[[Task, str, GraderConfig], Grade]] = {"exact": exact, "numeric": numeric, "choice": choice}
