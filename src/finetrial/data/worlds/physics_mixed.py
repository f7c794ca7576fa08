"""The physics world as a careless export leaves it: a share of the rows has outputs of other shapes.

Every row says in `meta["defect"]` what was planted (None for a clean row), so that tools which clean data can be
checked against the truth. `generate(..., clean=True)` is the same export made with care: whoever compares the two
changes the form of outputs and nothing else.
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
    return typographic(text).encode().decode("cp1252")


def typographic(text: str) -> str:
    """With signs beyond ASCII, which a wrong encoding spoils."""
    return text.replace(" * ", " × ").replace(" / ", " ÷ ").replace(". ", ". \u2013 ")


DEFECTS: dict[str, Callable[[str], str]] = {
    "json": as_json,
    "python": as_python,
    "list": as_list,
    "empty": as_empty,
    "tiny": as_tiny,
    "mojibake": as_mojibake,
}
DUPLICATE = "duplicate"


def generate(count: int, seed: int, split: Split, clean: bool = False) -> Iterator[Example]:
    """Yield the rows of `physics.generate(count, seed, split)`, a share of them damaged.

    `meta` adds `defect`: a name of `DEFECTS`, "duplicate" (then `of` is the id of the earlier row with the same
    messages), or None.

    Args:
        count, seed, split: as for every world.
        clean: leave every row as it was before the damage, under the same id and with the same `defect`: the text
            behind the structure or the wrong encoding, what empty and tiny outputs had lost, and in the place of a
            duplicate the row that it stands on.
    """
    intact: list[Example] = []
    names = [*DEFECTS, DUPLICATE]
    for number, problem in enumerate(physics.generate(count, seed, split)):
        dice = Dice(seed, "worlds/physics_mixed", VERSION, number)
        defect = dice.pick(names) if dice.chance(DEFECT_SHARE) else None
        row = replace(problem, id=f"physics_mixed-{split}-{seed}-{number}", meta={**problem.meta, "defect": None})
        if defect == DUPLICATE and intact:
            original = dice.pick(intact[-EARLIER:])
            if clean:
                yield replace(row, meta={**row.meta, "defect": DUPLICATE})
            else:
                yield replace(original, id=row.id, meta={**original.meta, "defect": DUPLICATE, "of": original.id})
        elif defect in DEFECTS:
            question, answer = row.messages
            whole = typographic if defect == "mojibake" else str
            written = {**answer, "content": (whole if clean else DEFECTS[defect])(answer["content"])}
            yield replace(row, messages=(question, written), meta={**row.meta, "defect": defect})
        else:
            intact.append(row)
            yield row


def _fields(text: str) -> dict[str, str]:
    answer = physics.answer_of(text)
    if answer is None:
        return {"explanation": text}
    return {"explanation": text[: text.rindex("Answer:")].strip(), "answer": answer}


def _sentences(text: str) -> list[str]:
    return [sentence if sentence.endswith(".") else f"{sentence}." for sentence in text.split(". ")]
