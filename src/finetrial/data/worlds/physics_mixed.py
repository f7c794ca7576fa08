"""The physics world as a careless export leaves it: a share of the rows has outputs of other shapes.

Every row says in `meta["defect"]` what was planted (None for a clean row), so that tools which clean data can be
checked against the truth.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

from finetrial.data.worlds import physics
from finetrial.data.worlds.dice import Dice, Split
from finetrial.records import Example

VERSION = 1

DEFECT_SHARE = 35
"""Of a hundred rows, how many are given a defect."""

EARLIER = 64
"""How many rows back the original of a duplicate may lie."""


def as_json(text: str) -> str:
    """The output as a JSON object."""
    return json.dumps(_fields(text))


def as_python(text: str) -> str:
    """The output as the literal of a Python dict, which no JSON parser takes."""
    return repr(_fields(text))


def as_list(text: str) -> str:
    """The output as a JSON list of its sentences."""
    return json.dumps(_sentences(text))


def as_empty(text: str) -> str:
    """Nothing."""
    return text[:0]


def as_tiny(text: str) -> str:
    """At most three characters: the bare answer, or the first word's beginning."""
    return (physics.answer_of(text) or text)[:3].strip()


def as_mojibake(text: str) -> str:
    """Typographic text whose UTF-8 bytes were read as Windows-1252."""
    typographic = text.replace(" * ", " × ").replace(" / ", " ÷ ").replace(". ", ". \u2013 ")
    return typographic.encode().decode("cp1252")


DEFECTS: dict[str, Callable[[str], str]] = {
    "json": as_json,
    "python": as_python,
    "list": as_list,
    "empty": as_empty,
    "tiny": as_tiny,
    "mojibake": as_mojibake,
}
DUPLICATE = "duplicate"


def generate(count: int, seed: int, split: Split) -> Iterator[Example]:
    """Yield the rows of `physics.generate(count, seed, split)`, a share of them damaged.

    `meta` adds `defect`: a name of `DEFECTS`, "duplicate" (then `of` is the id of the earlier row with the same
    messages), or None.
    """
    clean: list[Example] = []
    names = [*DEFECTS, DUPLICATE]
    for number, row in enumerate(physics.generate(count, seed, split)):
        dice = Dice(seed, "worlds/physics_mixed", VERSION, number)
        identifier = f"physics_mixed-{split}-{seed}-{number}"
        defect = dice.pick(names) if dice.chance(DEFECT_SHARE) else None
        if defect == DUPLICATE and clean:
            original = dice.pick(clean[-EARLIER:])
            meta = {**original.meta, "defect": DUPLICATE, "of": original.id}
            yield replace(original, id=identifier, meta=meta)
        elif defect in DEFECTS:
            question, answer = row.messages
            damaged = {**answer, "content": DEFECTS[defect](answer["content"])}
            yield replace(row, id=identifier, messages=(question, damaged), meta={**row.meta, "defect": defect})
        else:
            intact = replace(row, id=identifier, meta={**row.meta, "defect": None})
            clean.append(intact)
            yield intact


def _fields(text: str) -> dict[str, str]:
    answer = physics.answer_of(text)
    if answer is None:
        return {"explanation": text}
    return {"explanation": text[: text.rindex("Answer:")].strip(), "answer": answer}


def _sentences(text: str) -> list[str]:
    return [sentence if sentence.endswith(".") else f"{sentence}." for sentence in text.split(". ")]
