"""Outputs of any shape -> text of the declared format, step by step until nothing is left to do."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetrial.data.workshop import encoding
from finetrial.data.workshop.config import FIELD, StandardiseConfig
from finetrial.data.workshop.literals import read_structure, render_lines
from finetrial.data.workshop.shapes import LEADING, MARKER, TRAILING, fenced, shapes
from finetrial.errors import nearest

MOST_STEPS = 12
"""A row that needs more is left as it is; three shapes at once (a fence, JSON in it, mojibake) are already rare."""


class Refused(ValueError):
    """A rule cannot be applied; the message says what the row holds and what it would take."""


@dataclass(frozen=True)
class Rewritten:
    """What became of one output."""

    value: Any
    """The new output, or the original where nothing was done."""
    steps: tuple[str, ...]
    """Shapes that were rewritten, in order; the last one dropped the row where `dropped`."""
    dropped: bool = False
    refused: tuple[str, str] | None = None
    """(shape, why its rule could not be applied); the value is then the original."""


def rewrite(value: Any, prompt: str, config: StandardiseConfig) -> Rewritten:
    """Apply the rules to one output until it has no shape that they forbid."""
    steps: list[str] = []
    current = value
    while True:
        shape = next((s for s in shapes(current, prompt, config) if config.actions[s] != "keep"), None)
        if shape is None:
            return Rewritten(current, tuple(steps))
        if config.actions[shape] == "drop":
            return Rewritten(value, (*steps, shape), dropped=True)
        try:
            if len(steps) == MOST_STEPS:
                raise Refused(f"still not text after {MOST_STEPS} steps")
            current = STEPS[shape](current, prompt, config)
        except Refused as reason:
            return Rewritten(value, tuple(steps), refused=(shape, str(reason)))
        steps.append(shape)


def render(fields: Mapping[str, Any], config: StandardiseConfig) -> str:
    """An object by the first template whose fields it has and that leaves none of its keys out.

    A key fits a field that has its name (case, spaces, `_` and `-` do not count) or lists it in `config.fields`. Null
    and empty values are as if absent.

    Raises:
        Refused: no template fits and `otherwise` is refuse; the message names what is missing or has no place, and
            the nearest key.
    """
    filled = {key: value for key, value in fields.items() if value not in (None, "", [], {})}
    wanted: dict[str, None] = {}
    for template in config.templates:
        taken = {field: _key_of(field, filled, config) for field in FIELD.findall(template)}
        missing = [field for field, key in taken.items() if key is None]
        spare = [key for key in filled if key not in taken.values() and key not in config.ignore]
        if not missing and not spare:
            texts = {field: text_of(filled[key], config) for field, key in taken.items() if key is not None}
            return "".join(texts[part] if at % 2 else part for at, part in enumerate(FIELD.split(template)))
        wanted |= dict.fromkeys(f"{field!r} is missing{nearest(field, spare)}" for field in missing)
        wanted |= dict.fromkeys(f"{key!r} has no place{nearest(key, taken)}" for key in spare if not missing)
    if config.otherwise == "labels":
        return config.join.join(f"{_label(key)}: {text_of(value, config)}" for key, value in filled.items())
    keys = ", ".join(sorted(filled)) or "(none)"
    if not config.templates:
        lines = "\\n".join(f"{_label(key)}: {{{key}}}" for key in filled)
        raise Refused(f"keys {keys}: no template is declared; perhaps --template '{lines}'")
    raise Refused(f"keys {keys}: no template fits, {'; '.join(wanted)}")


def _label(key: str) -> str:
    """A key as it begins a line: `final_answer` -> `Final answer`."""
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def text_of(value: Any, config: StandardiseConfig) -> str:
    """A value inside a structure as text: scalars as JSON writes them, lists joined, objects as `key: value` parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return config.join.join(f"{key}: {text_of(item, config)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return config.join.join(text_of(item, config) for item in value)
    return json.dumps(value)


def _key_of(field: str, filled: Mapping[str, Any], config: StandardiseConfig) -> str | None:
    names = [_plain(name) for name in (field, *config.fields.get(field, ()))]
    return next((key for name in names for key in filled if _plain(key) == name), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _structured(value: Any, config: StandardiseConfig) -> str:
    if isinstance(value, Mapping):
        return render(value, config)
    if isinstance(value, (list, tuple)):
        parts = [render(item, config) if isinstance(item, Mapping) else text_of(item, config) for item in value]
        return config.join.join(parts)
    return text_of(value, config)


def _value(value: Any, prompt: str, config: StandardiseConfig) -> str:
    return _structured(value, config)


def _parsed(value: Any, prompt: str, config: StandardiseConfig) -> str:
    structure = read_structure(value)
    if structure is None:
        raise Refused("cut off, or its quotes and brackets do not pair")
    return _structured(structure.value, config)


def _by_lines(value: Any, prompt: str, config: StandardiseConfig) -> str:
    text = render_lines(value, lambda found: _structured(found, config))
    if text == value:
        raise Refused("the structure does not fill a line")
    return text


def _unfenced(value: Any, prompt: str, config: StandardiseConfig) -> str:
    found = fenced(value)
    assert found is not None  # the shape was found by the same function
    return found[1]


def _unquoted(value: Any, prompt: str, config: StandardiseConfig) -> str:
    try:
        return json.loads(value, strict=False)
    except json.JSONDecodeError as error:
        raise Refused(f"no JSON string: {error.msg}") from error


def _unmarked(value: Any, prompt: str, config: StandardiseConfig) -> str:
    lead = LEADING.match(value)
    text = value[lead.end() :] if lead else value
    while end := next((token for token in TRAILING if text.rstrip().endswith(token)), None):
        text = text.rstrip().removesuffix(end).rstrip()
    if left := MARKER.search(text):
        raise Refused(f"{left[0].strip()!r} stands in the middle: another turn has leaked into the output")
    return text


def _unechoed(value: Any, prompt: str, config: StandardiseConfig) -> str:
    return value.lstrip().removeprefix(prompt.strip()).lstrip()


STEPS: dict[str, Callable[[Any, str, StandardiseConfig], str]] = {
    "object": _value,
    "list": _value,
    "number": _value,
    "mojibake": lambda value, prompt, config: encoding.repair_mojibake(value),
    "control": lambda value, prompt, config: encoding.remove_control(value),
    "markers": _unmarked,
    "echo": _unechoed,
    "fence": _unfenced,
    "quoted": _unquoted,
    "json": _parsed,
    "json_list": _parsed,
    "python": _parsed,
    "python_list": _parsed,
    "lines": _by_lines,
    "broken": _parsed,
    "embedded": _by_lines,
}
"""Shape -> what rewrites it: (output, prompt, config) -> text nearer to the format. Raises Refused."""
