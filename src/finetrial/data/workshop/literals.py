"""Text that is a data structure: JSON, JSON that an editor or LaTeX has broken, and Python literals."""

import ast
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from finetrial.data.workshop.encoding import LATEX

Dialect = Literal["json", "python", "broken"]

LONGEST = 1_000_000
"""Characters above which no Python literal is tried; its parser needs memory a hundred times the text."""

_BEGINS = re.compile(
    r"""\s*(?:
        \{\s*(?:["'}]|\\["']|[A-Za-z_][\w ]{0,40}:\s)   # an object: a quoted key, none, or a bare one
      | \[\s*(?:[\["'{\]]|-?\d|null|None|true|false|True|False)
      | \(\s*["'({\[]                                       # a tuple
    )""",
    re.VERBOSE,
)
_OBJECT_BEGINS = re.compile(r"""\s*\{\s*(?:["']|\\["'])[^"'\n]{0,80}\\?["']\s*:|\s*\[\s*\{\s*["']""")
_LIST_BEGINS = re.compile(r"""\s*\[\s*["'][^\]]*$|\s*\[\s*["'].*\]\s*$""", re.DOTALL)
_BARE_OBJECT = re.compile(r"""\s*\{\s*(?:[A-Za-z_]\w*\s*:\s[^{}]*|\\".*)\}\s*$""", re.DOTALL)
EMBEDDED = re.compile(r"""\{\s*(["'])[A-Za-z_][\w ]{0,40}\1\s*:""")
"""The beginning of an object, anywhere in a text."""

_COMMANDS = "|".join(sorted((name for names in LATEX.values() for name in names), key=len, reverse=True))
_LATEX_ESCAPE = re.compile(rf"(?<!\\)((?:\\\\)*)\\(?=(?:{_COMMANDS})(?![A-Za-z]))")
_BAD_ESCAPE = re.compile(r"""\\(?:(["\\/bfnrt]|u[0-9A-Fa-f]{4})|)""")
_BARE_MATHS = re.compile(r'("(?:\\.|[^"\\])*")|([-+]?\$[^$"\n]*\$)', re.DOTALL)
_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)


@dataclass(frozen=True)
class Structure:
    """What a text holds."""

    value: Any
    dialect: Dialect
    """broken: JSON after the repairs."""
    repairs: tuple[str, ...] = ()
    """What had to be mended, in words."""


def begins_structure(text: str) -> bool:
    """Whether the first characters are those of an object, a list or a tuple."""
    return _BEGINS.match(text) is not None


def read_structure(text: str) -> Structure | None:
    """The object, list or tuple that the whole text is, or None.

    A LaTeX command keeps its backslash, where a parser would read the escape of a form feed, backspace, line break or
    tab. Mended are backslashes that escape nothing, raw line breaks in strings, commas before a closing bracket, and
    values in dollar signs without quotes.
    Nothing is guessed: a structure that was cut off, or whose quotes do not pair, is None.
    """
    if not begins_structure(text):
        return None
    kept = _LATEX_ESCAPE.sub(r"\1\\\\", text)
    latex = ("LaTeX commands",) if kept != text else ()
    value = _json(kept)
    if isinstance(value, (dict, list)):
        return Structure(value, "json", latex)
    mended = _BAD_ESCAPE.sub(lambda found: found[0] if found[1] else "\\\\", kept)
    escapes = ("backslashes",) if mended != kept else ()
    closed = _COMMA.sub(lambda found: found[1] or "", mended)
    commas = ("commas",) if closed != mended else ()
    quoted = _BARE_MATHS.sub(lambda found: found[1] or f'"{found[2]}"', closed)
    maths = ("bare $maths$",) if quoted != closed else ()
    value = _json(quoted, strict=False)
    if isinstance(value, (dict, list)):
        raw = ("line breaks",) if _json(quoted) is None else ()
        return Structure(value, "broken", (*latex, *escapes, *commas, *maths, *raw))
    value = _python(kept)
    if isinstance(value, (dict, list, tuple)):
        return Structure(_plain(value), "python", latex)
    return None


def is_broken(text: str) -> bool:
    """Whether a text that is no structure began as one: a quoted key and a colon, or a list of quoted texts.

    An object followed by other text on its line is not broken.
    """
    if _BARE_OBJECT.match(text):
        return True
    if not (_OBJECT_BEGINS.match(text) or _LIST_BEGINS.match(text)):
        return False
    try:
        json.JSONDecoder(strict=False).raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return True
    return False


def has_leading_line(text: str) -> bool:
    """Whether the first of several lines is a structure of its own."""
    first, _, rest = text.strip().partition("\n")
    return bool(rest) and read_structure(first) is not None


def render_lines(text: str, render: Callable[[Any], str]) -> str:
    """The text with every line that is a structure replaced by what `render` makes of it."""
    lines = []
    for line in text.split("\n"):
        structure = read_structure(line)
        lines.append(line if structure is None else render(structure.value))
    return "\n".join(lines)


def _json(text: str, strict: bool = True) -> Any:
    try:
        return json.loads(text, strict=strict)
    except (ValueError, RecursionError):  # a number of thousands of digits is a ValueError of its own
        return None


def _python(text: str) -> Any:
    if len(text) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know; they keep their backslash
            return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """A Python literal in JSON types; what has none (bytes, a set, a complex number) as Python writes it."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else repr(value)
