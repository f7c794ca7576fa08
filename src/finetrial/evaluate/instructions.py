"""Whether a text follows instructions that a function can check, in the manner of IFEval (Zhou et al. 2023,
arXiv:2311.07911), with wordings and checks of our own.

A task's `meta["instructions"]` lists them: `[{"name": "words", "at_most": 50}, {"name": "json"}]`. The graders are
functions of (completion, meta) for graders of kind `function`, such as `finetrial.evaluate.instructions:strict`:
`strict` and `loose` are 1 where all instructions are followed, `strict_share` and `loose_share` give the share that is.
An empty completion follows nothing. What stands before a closing `</think>` is not part of the answer.

No check knows a language: words are runs of letters and digits, sentences end at . ! ? and their like of other
scripts. Counts are bounded by `at_least`, `at_most` or `exactly`.
"""

import inspect
import json as json_format
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from finetrial.errors import UserError, nearest
from finetrial.grade.answers import THINKING

WORD = re.compile(r"\w+(?:['’-]\w+)*")
SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]+")
BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+\S", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]+\S", re.MULTILINE)
HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,2})(?![\s*])[^*\n]+?(?<!\s)\1(?!\*)")
PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
FENCED = re.compile(r"^```[^\n]*\n(.*?)\n?```$", re.DOTALL)
TITLE = re.compile(r"<<[^<>\n]*\w[^<>\n]*>>")


def words(text: str, **bounds: int) -> bool:
    """How many words the text has."""
    return within(len(WORD.findall(text)), **bounds)


def sentences(text: str, **bounds: int) -> bool:
    """How many sentences; what follows the last mark is one if it has a word."""
    ended = len(SENTENCE_END.findall(text))
    tail = SENTENCE_END.split(text)[-1]
    return within(ended + bool(WORD.search(tail)), **bounds)


def paragraphs(text: str, **bounds: int) -> bool:
    """How many parts that empty lines divide."""
    return within(sum(bool(part.strip()) for part in re.split(r"\n[ \t]*\n", text)), **bounds)


def lines(text: str, **bounds: int) -> bool:
    """How many lines that are not empty."""
    return within(sum(bool(line.strip()) for line in text.splitlines()), **bounds)


def bullets(text: str, **bounds: int) -> bool:
    """How many lines begin with a bullet (-, *, + or •)."""
    return within(len(BULLET.findall(text)), **bounds)


def numbered(text: str, **bounds: int) -> bool:
    """How many lines begin with a number and a point or a bracket."""
    return within(len(NUMBERED.findall(text)), **bounds)


def highlights(text: str, **bounds: int) -> bool:
    """How many pieces stand between asterisks."""
    return within(len(HIGHLIGHT.findall(text)), **bounds)


def placeholders(text: str, **bounds: int) -> bool:
    """How many pieces stand in square brackets."""
    return within(len(PLACEHOLDER.findall(text)), **bounds)


def contains(text: str, keywords: Sequence[str]) -> bool:
    """Every keyword occurs, as whole words, in any case."""
    return all(_occurrences(text, keyword) for keyword in keywords)


def avoids(text: str, keywords: Sequence[str]) -> bool:
    """No keyword occurs, as whole words, in any case."""
    return not any(_occurrences(text, keyword) for keyword in keywords)


def keyword(text: str, keyword: str, **bounds: int) -> bool:
    """How often a keyword occurs, as whole words, in any case."""
    return within(_occurrences(text, keyword), **bounds)


def characters(text: str, of: str, **bounds: int) -> bool:
    """How often any of the characters of `of` occurs, in any case; `exactly = 0` forbids them."""
    wanted = set(of.casefold())
    return within(sum(one in wanted for one in text.casefold()), **bounds)


def begins_with(text: str, phrase: str) -> bool:
    """The text begins with a phrase, in its case; white space around does not count."""
    return text.strip().startswith(phrase.strip())


def ends_with(text: str, phrase: str) -> bool:
    """The text ends with a phrase, in its case; white space around does not count."""
    return text.strip().endswith(phrase.strip())


def one_of(text: str, options: Sequence[str]) -> bool:
    """The text is one of the options, and nothing else but white space."""
    return text.strip() in [option.strip() for option in options]


def lower_case(text: str) -> bool:
    """There are letters with case, and none is large."""
    return text == text.lower() and text != text.upper()


def upper_case(text: str) -> bool:
    """There are letters with case, and none is small."""
    return text == text.upper() and text != text.lower()


def capital_words(text: str, **bounds: int) -> bool:
    """How many words have large letters alone, and two at least."""
    return within(sum(len(word) > 1 and word.isupper() for word in WORD.findall(text)), **bounds)


def quoted(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    inside = text.strip()
    return len(inside) > 2 and (inside[0], inside[-1]) in (('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"))


def title(text: str) -> bool:
    """A title stands in double angular brackets."""
    return TITLE.search(text) is not None


def json(text: str, keys: Sequence[str] = ()) -> bool:
    """The whole text, or the one fenced block that it is, is a JSON object or list; an object that has the keys."""
    inside = text.strip()
    fenced = FENCED.match(inside)
    try:
        value = json_format.loads(fenced[1] if fenced else inside)
    except (json_format.JSONDecodeError, RecursionError):
        return False
    return isinstance(value, (dict, list)) and (not keys or (isinstance(value, dict) and set(keys) <= set(value)))


CHECKS: dict[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        words, sentences, paragraphs, lines, bullets, numbered, highlights, placeholders, contains, avoids, keyword,
        characters, begins_with, ends_with, one_of, lower_case, upper_case, capital_words, quoted, title, json,
    )
}  # fmt: skip
"""Every instruction: name -> function of a text and of the instruction's arguments."""

BOUNDS = ("at_least", "at_most", "exactly")


def within(count: int, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> bool:
    """Whether a count lies within all bounds that are given."""
    return (
        (at_least is None or count >= at_least)
        and (at_most is None or count <= at_most)
        and (exactly is None or count == exactly)
    )


def checked(instructions: Any, place: str = "instructions") -> list[tuple[Callable[..., bool], dict[str, Any]]]:
    """The function and the arguments of each instruction.

    Raises:
        UserError: no list of objects with a `name`, an unknown name or argument (with the nearest), an argument that
            is missing or of another type, or a count without a bound.
    """
    if not isinstance(instructions, Sequence) or isinstance(instructions, str) or not instructions:
        raise UserError(
            f"{place}: expected a list of objects with a name, such as [{{'name': 'words', 'at_most': 50}}]"
        )
    found = []
    for number, one in enumerate(instructions):
        here = f"{place}[{number}]"
        if not isinstance(one, Mapping) or one.get("name") not in CHECKS:
            name = one.get("name") if isinstance(one, Mapping) else one
            raise UserError(
                f"{here}: no instruction {name!r}{nearest(str(name), CHECKS)}; there are {', '.join(CHECKS)}"
            )
        given = {key: value for key, value in one.items() if key != "name"}
        _check_arguments(one["name"], given, here)
        found.append((CHECKS[one["name"]], given))
    return found


def followed(text: str, instructions: Any) -> list[bool]:
    """Whether the text, as it stands, follows each instruction; an empty text follows none."""
    return [bool(text.strip()) and check(text, **given) for check, given in checked(instructions)]


def followed_loosely(text: str, instructions: Any) -> list[bool]:
    """Whether the text, or what is left of it without asterisks, its first line, its last line or several of these,
    follows each instruction: an introduction, a farewell or markup does not count against it."""
    pairs = checked(instructions)
    variants = list(_variants(text))
    return [any(check(variant, **given) for variant in variants) for check, given in pairs]


def strict(completion: str, meta: Mapping[str, Any]) -> float:
    """1 where all instructions of a task are followed."""
    return float(all(followed(answer_of(completion), meta.get("instructions"))))


def loose(completion: str, meta: Mapping[str, Any]) -> float:
    """1 where all instructions of a task are followed, loosely."""
    return float(all(followed_loosely(answer_of(completion), meta.get("instructions"))))


def strict_share(completion: str, meta: Mapping[str, Any]) -> float:
    """The share of a task's instructions that are followed."""
    found = followed(answer_of(completion), meta.get("instructions"))
    return sum(found) / len(found)


def loose_share(completion: str, meta: Mapping[str, Any]) -> float:
    """The share of a task's instructions that are followed, loosely."""
    found = followed_loosely(answer_of(completion), meta.get("instructions"))
    return sum(found) / len(found)


def answer_of(completion: str) -> str:
    """What follows the thoughts; nothing where they are never closed."""
    opening, closing = THINKING
    if closing in completion:
        return completion.rpartition(closing)[2]
    return "" if opening in completion else completion


def _occurrences(text: str, keyword: str) -> int:
    """How often a keyword stands in a text with no word going on at its ends."""
    wanted = keyword.strip()
    before = r"(?<!\w)" if wanted[:1].isalnum() else ""
    after = r"(?!\w)" if wanted[-1:].isalnum() else ""
    return len(re.findall(f"{before}{re.escape(wanted)}{after}", text, re.IGNORECASE))


def _variants(text: str) -> Iterator[str]:
    """The text as it stands and in seven shorter forms; those that are not empty."""
    rows = text.strip().split("\n")
    for cut in (text, "\n".join(rows[1:]), "\n".join(rows[:-1]), "\n".join(rows[1:-1])):
        for variant in (cut, cut.replace("*", "")):
            if variant.strip():
                yield variant


def _check_arguments(name: str, given: Mapping[str, Any], place: str) -> None:
    parameters = list(inspect.signature(CHECKS[name]).parameters.values())[1:]
    counted = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    named = [one for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]
    known = [*(one.name for one in named), *(BOUNDS if counted else ())]
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{place}: {name} has no {key!r}{nearest(key, known)}; it has {', '.join(known) or 'none'}")
        texts = (
            isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value)
        )
        if key in BOUNDS:
            fits, wanted = isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a count"
        elif key in ("keywords", "options", "keys"):
            fits, wanted = texts and bool(value) and all(one.strip() for one in value), "a list of texts"
        else:
            fits, wanted = isinstance(value, str) and bool(value.strip()), "a text"
        if not fits:
            raise UserError(f"{place}: {name}.{key} is {value!r}; expected {wanted}")
    missing = [one.name for one in named if one.default is inspect.Parameter.empty and one.name not in given]
    if missing:
        raise UserError(f"{place}: {name} needs {missing[0]}")
    if counted and not set(given) & set(BOUNDS):
        raise UserError(f"{place}: {name} counts; give {', '.join(BOUNDS[:-1])} or {BOUNDS[-1]}")
