"""Scripts of conversations: what a user says, turn by turn, in the format of MT-Bench (Zheng et al. 2023,
arXiv:2306.05685)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetrial.data.files import RawRow
from finetrial.data.read import open_source
from finetrial.errors import UserError, nearest

QUESTION = ("question_id", "category", "turns", "reference")
"""Keys of a row of FastChat's question.jsonl; the reference may be missing."""
ANSWER = ("question_id", "answer_id", "model_id", "choices", "tstamp")
"""Keys of a row of its reference answers."""

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""What FastChat samples each category of MT-Bench at."""


@dataclass(frozen=True)
class Dialogue:
    """What a user says, turn by turn, whatever is answered."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    """Right answers to the first turns, for as many as there are; empty where a turn has none."""


def read_dialogues(source: str, references: str | None = None) -> list[Dialogue]:
    """Dialogues in the format of FastChat's question.jsonl: `question_id`, `category`, `turns` and maybe `reference`.

    Args:
        source: file, folder, glob, or `hf:NAME`.
        references: rows in the format of FastChat's reference answers, which go before `reference`.

    Raises:
        UserError: a row of another form, with its place and the nearest known key; an id that occurs twice; a
            reference without a question; nothing read.
    """
    better: dict[str, tuple[str, ...]] = {}
    for row in _rows(references) if references else ():
        choices = _known(row, ANSWER, ("question_id", "choices"))["choices"]
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise UserError(f"{row.place}: choices is no list of objects with `turns`")
        better[_id(row)] = _texts(choices[0].get("turns"), f"{row.place}: choices[0].turns", gaps=True)
    dialogues: dict[str, Dialogue] = {}
    for row in _rows(source):
        value = _known(row, QUESTION, ("question_id", "turns"))
        name = _id(row)
        if name in dialogues:
            raise UserError(f"{row.place}: question_id {name} occurs twice")
        turns = _texts(value["turns"], f"{row.place}: turns")
        given = value.get("reference")
        found = better.pop(name, None) or (_texts(given, f"{row.place}: reference", gaps=True) if given else ())
        if len(found) > len(turns):
            raise UserError(f"{row.place}: {len(found)} references for {len(turns)} turns")
        category = value.get("category", "")
        if not isinstance(category, str):
            raise UserError(f"{row.place}: category is a {type(category).__name__}; expected a text")
        dialogues[name] = Dialogue(name, category, turns, found)
    if better:
        raise UserError(f"{references}: question {next(iter(better))} has a reference but is not among the questions")
    if not dialogues:
        raise UserError(f"{source}: no dialogues")
    return list(dialogues.values())


def _rows(source: str) -> Iterable[RawRow]:
    for file in open_source(source):
        yield from file.rows


def _known(row: RawRow, keys: Sequence[str], needed: Sequence[str]) -> Mapping[str, Any]:
    """The row as an object of known keys."""
    if row.error is not None:
        raise UserError(f"{row.place}: {row.error}")
    if not isinstance(row.value, Mapping):
        raise UserError(f"{row.place}: a row is a {type(row.value).__name__}; expected an object of {', '.join(keys)}")
    strange = [key for key in row.value if key not in keys]
    missing = [key for key in needed if key not in row.value]
    if strange or missing:
        what = f"no {missing[0]}" if missing else f"unknown key {strange[0]!r}"
        hint = nearest(missing[0], strange) if missing else nearest(strange[0], keys)
        raise UserError(f"{row.place}: {what}{hint}; a row has {', '.join(keys)}")
    return row.value


def _id(row: RawRow) -> str:
    name = row.value["question_id"]
    if isinstance(name, bool) or not isinstance(name, (int, str)):
        raise UserError(f"{row.place}: question_id is a {type(name).__name__}; expected a number or a text")
    return str(name)


def _texts(value: Any, place: str, gaps: bool = False) -> tuple[str, ...]:
    """A list of texts, of which none is empty unless there may be gaps."""
    texts = isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
    if not texts or not (gaps or all(text.strip() for text in value)):
        raise UserError(f"{place}: expected a list of texts{'' if gaps else ' that are not empty'}")
    return tuple(value)
