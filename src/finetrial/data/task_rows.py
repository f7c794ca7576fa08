"""One row of question and answer -> what a task is made of."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from finetrial.data.formats import GROUP_KEYS, ID_KEYS
from finetrial.data.messages import Malformed, normalise_messages
from finetrial.errors import UserError, nearest
from finetrial.grade.answers import boxed
from finetrial.grade.plain import normalised
from finetrial.identity import canonical
from finetrial.records import Message

QUESTION_KEYS = ("question", "prompt", "problem", "input")
ANSWER_KEYS = ("final_answer", "answer", "reference", "target", "answerKey", "solution")
"""In the order of looking: what is final before what may be worked out."""

Style = Literal["plain", "number", "####", "boxed", "choice", "environment", "graded", "code"]
"""How a reference was found."""


@dataclass(frozen=True)
class Question:
    """A task before its wording."""

    place: str
    """Where it was read, for errors."""
    id: str | None
    group: str | None
    messages: tuple[Message, ...]
    """The prompt; the last message is the user's."""
    reference: str
    gold: str | None
    style: Style
    meta: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """The question by its normalised spelling: the same problem, whatever its white space and case."""
        return "\n".join(normalised(str(message["content"])) for message in self.messages)


def question_of(row: Any, place: str) -> Question:
    """A row with a question, an answer and, where it has them, choices.

    `#### 72` in an answer (GSM8K, Cobbe et al. 2021) and the last `\\boxed{}` of a solution (MATH, Hendrycks et al.
    2021) are the reference, and the worked text the gold completion. Choices are a list, an object from label to
    text, or an object of `label` and `text`; the answer is a label, an index from 0 (an integer), or an option's text.
    Other columns that are JSON go to meta.

    Raises:
        UserError: with place and column.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{place}: a row is a {type(row).__name__}, not an object")
    columns = {str(key).strip().casefold(): key for key in row}
    asked = _column(columns, QUESTION_KEYS, place, "question")
    given = _column(columns, ANSWER_KEYS, place, "answer")
    messages = prompt_messages(row[asked], place, asked)
    answer = _text(row[given], place, given)
    used = {asked, given}
    meta = {str(key): value for key, value in row.items() if key not in used and _is_json(value)}
    gold: str | None = None
    style: Style = "plain"
    choices_key = columns.get("choices")
    if choices_key is not None and row[choices_key] is not None:
        choices = _choices(row[choices_key], f"{place}: {choices_key}")
        reference, style = _label(row[given], choices, f"{place}: {given}"), "choice"
        options = "\n".join(f"{label}. {option}" for label, option in choices.items())
        *before, last = messages
        messages = (*before, {**last, "content": f"{last['content']}\n{options}"})
        meta["choices"] = choices
    else:
        worked = columns.get("solution")
        reference, gold, style = _reference(answer)
        if style == "plain" and worked is not None and worked != given and isinstance(row[worked], str):
            final, text, marked = _reference(row[worked])
            if marked != "plain" and normalised(final) == normalised(answer):
                gold, style = text, marked
    if not reference.strip():
        raise UserError(f"{place}: {given} is empty; expected the answer to compare with")
    return Question(
        place=place,
        id=_first(row, ID_KEYS),
        group=_first(row, GROUP_KEYS),
        messages=messages,
        reference=reference,
        gold=gold,
        style=style,
        meta=meta,
    )


def _reference(answer: str) -> tuple[str, str | None, Style]:
    """Reference, gold completion and style of an answer that may be worked out."""
    if "####" in answer:
        return answer.rpartition("####")[2].strip(), answer, "####"
    final = boxed(answer)
    return (answer, None, "plain") if final is None else (final, answer, "boxed")


def _column(columns: Mapping[str, Any], names: Sequence[str], place: str, what: str) -> Any:
    for name in names:
        if name.casefold() in columns:
            return columns[name.casefold()]
    strange = [column for column in columns if column not in {*QUESTION_KEYS, *map(str.casefold, ANSWER_KEYS)}]
    near = next((hint for column in strange if (hint := nearest(column, names))), "")
    found = ", ".join(map(str, columns.values())) or "(none)"
    raise UserError(f"{place}: no {what} among the columns {found}; expected one of {', '.join(names)}{near}")


def prompt_messages(value: Any, place: str, column: str) -> tuple[Message, ...]:
    """A prompt, which is a text or a conversation that ends with the user.

    Raises:
        UserError: with place and column.
    """
    if isinstance(value, str) and value.strip():
        return ({"role": "user", "content": value},)
    if isinstance(value, list) and value:
        try:
            # A conversation has an assistant's turn; the one to come stands in for it.
            messages = normalise_messages([*value, {"role": "assistant", "content": "?"}])[:-1]
        except Malformed as error:
            raise UserError(f"{place}: {column}: {error}") from error
        if messages[-1]["role"] != "user":
            raise UserError(f"{place}: {column} ends with the {messages[-1]['role']}; expected the user")
        return messages
    raise UserError(f"{place}: {column} is {'empty' if not value else f'a {type(value).__name__}'}; expected a text")


def _text(value: Any, place: str, column: str) -> str:
    if value is None or (isinstance(value, float) and value != value):
        raise UserError(f"{place}: {column} is empty; expected the answer to compare with")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # 72.0, as a column of integers with gaps is stored
    if isinstance(value, (str, int, float)):
        return str(value).strip()
    raise UserError(f"{place}: {column} is a {type(value).__name__}; expected a text or a number")


def _choices(value: Any, place: str) -> dict[str, str]:
    if isinstance(value, Mapping) and isinstance(value.get("text"), Sequence) and "label" in value:
        value = dict(zip(value["label"], value["text"], strict=True))
    if isinstance(value, (list, tuple)):
        value = dict(zip(string.ascii_uppercase, value, strict=False)) if len(value) <= 26 else value
    if not isinstance(value, Mapping) or len(value) < 2:
        raise UserError(f"{place}: expected 2 to 26 options as a list, or as an object from label to text")
    return {str(label): str(option) for label, option in value.items()}


def _label(answer: Any, choices: Mapping[str, str], place: str) -> str:
    labels = list(choices)
    if isinstance(answer, int) and not isinstance(answer, bool):
        if str(answer) in choices and labels[0] == "1":
            return str(answer)
        if 0 <= answer < len(labels):
            return labels[answer]
    text = str(answer).strip().strip("().")
    same = [label for label in labels if label.casefold() == text.casefold()]
    same = same or [label for label in labels if normalised(choices[label]) == normalised(str(answer))]
    if len(same) != 1:
        raise UserError(f"{place} is {answer!r}; expected a label ({', '.join(labels)}), an index, or an option's text")
    return same[0]


def _first(row: Mapping[Any, Any], keys: Sequence[str]) -> str | None:
    return next((str(row[key]) for key in keys if row.get(key) is not None), None)


def _is_json(value: Any) -> bool:
    try:
        canonical(value)
    except TypeError:
        return False
    return value is not None
