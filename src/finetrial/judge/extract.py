"""A judge's reply -> a score or a verdict, or what is wrong with the reply. Pure.

The levels in their order; the first one that a reply shows decides, also where it shows nonsense:

1. JSON: the whole reply, a fenced block, or an object with text around it; strict, then with invalid escapes
   (`\\(x\\)` of LaTeX), raw control characters and trailing commas repaired;
2. double brackets: `[[7]]`, `[[A]]`;
3. a named value: `Score: 7`, `**Rating:** 7/10`, `Verdict: A`;
4. the bare value, where it is the whole reply.

Values of one level that contradict each other are no answer, nor is a value outside the scale. Nothing is guessed:
what cannot be read is missing, with the reason.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetrial.grade.answers import THINKING

SHOWN = 60
"""Characters of a value that a problem quotes."""


@dataclass(frozen=True)
class Reading:
    """What was read in a reply."""

    value: float | None
    """A score on its scale; of a verdict the share of answer A: 1, 0.5 (tie) or 0. None where nothing was read."""
    how: str
    """`json`, `repaired json`, `brackets`, `named` or `bare`; empty where nothing was found."""
    problem: str = ""
    """Why there is no value, in words that can be told to the judge."""


Value = Callable[[Any], float]
"""Reads one value; raises `_Unfit`."""


class _Unfit(Exception):
    """A value that is none."""


NUMBER = r"[-+]?\d++(?:\.\d++)?+"
RANGE = r"(?!\s*(?:%|[-–—]\s*\d|to\s+\d))"
"""Not behind a score: `70%` is on no scale, `6-7` is two scores."""
OUT_OF = rf"(?:\s*(?:/|out\s+of)\s*(?:{NUMBER}))?"

SCORE_KEYS = ("score", "rating")
SCORE_BRACKETS = re.compile(rf"\[\[\s*({NUMBER}{OUT_OF})\s*\]\]")
SAYS = r"\b[\"'`*_]*\s*(?:is\b|[:=：])\s*(?:is\b)?[\"'`*_(\[]*\s*"
"""Between a name and its value: `: `, ` is `, `": "`, `:** `."""
SCORE_NAMED = re.compile(rf"\b(?:score|rating){SAYS}({NUMBER}{RANGE}{OUT_OF})", re.IGNORECASE)

VERDICT_KEYS = ("verdict", "winner", "better")
VERDICT_WORD = r"(?:(?:answer|assistant|response)\s+)?[ABC]|tie|draw|equal|both|neither"
VERDICT_BRACKETS = re.compile(rf"\[\[\s*({VERDICT_WORD})\s*\]\]", re.IGNORECASE)
VERDICT_NAMED = re.compile(rf"\b(?:verdict|winner){SAYS}({VERDICT_WORD})\b", re.IGNORECASE)
VERDICTS = {"a": 1.0, "b": 0.0, "c": 0.5, "tie": 0.5, "draw": 0.5, "equal": 0.5, "both": 0.5, "neither": 0.5}
"""`C` is the tie of MT-Bench's prompts (Zheng et al. 2023, arXiv 2306.05685)."""


def read_score(reply: str, low: float, high: float, is_cut: bool = False) -> Reading:
    """A score in [low, high].

    Args:
        reply: the judge's text; what stands before a closing `</think>` is not read.
        low, high: the scale.
        is_cut: the reply ended at the limit of tokens; a named or bare value may then be half of one and is not taken.
    """
    return _read(reply, lambda value: _score(value, low, high), SCORE_KEYS, SCORE_BRACKETS, SCORE_NAMED, is_cut)


def read_verdict(reply: str, is_cut: bool = False) -> Reading:
    """Which of two answers is better: 1 for A, 0 for B, 0.5 for a tie."""
    return _read(reply, _verdict, VERDICT_KEYS, VERDICT_BRACKETS, VERDICT_NAMED, is_cut)


def visible(text: str) -> str:
    """A text without its thinking, stripped; empty where the thinking never ends."""
    opening, closing = THINKING
    if closing in text:
        text = text.rpartition(closing)[2]
    elif opening in text:
        return ""
    return text.strip()


def _read(
    reply: str, value: Value, keys: tuple[str, ...], brackets: re.Pattern[str], named: re.Pattern[str], is_cut: bool
) -> Reading:
    text = visible(reply)
    if not text:
        return Reading(None, "", "the reply ends inside its thinking" if reply.strip() else "the reply is empty")
    for how, found in _levels(text, keys, brackets, named, is_cut):
        if found:
            return _decided(how, found, value)
    ending = "; it was cut at the limit of tokens" if is_cut else ""
    return Reading(None, "", f"the reply shows no {' or '.join(keys[:2])}{ending}")


def _levels(
    text: str, keys: tuple[str, ...], brackets: re.Pattern[str], named: re.Pattern[str], is_cut: bool
) -> Iterator[tuple[str, list[Any]]]:
    """How each level is called, and the values that it finds."""
    strict, repaired = _objects(text)
    yield "json", _values(strict, keys)
    yield "repaired json", _values(repaired, keys)
    yield "brackets", brackets.findall(text)
    if not is_cut:
        yield "named", named.findall(text)
        yield "bare", [text] if len(text.split()) == 1 and "{" not in text else []


def _decided(how: str, found: list[Any], value: Value) -> Reading:
    try:
        values = sorted({value(one) for one in found})
    except _Unfit as unfit:
        return Reading(None, how, str(unfit))
    if len(values) > 1:
        told = " and ".join(repr(one) for one in dict.fromkeys(map(str, found)))
        return Reading(None, how, f"the reply contradicts itself: {told}"[:200])
    return Reading(values[0], how)


def _score(value: Any, low: float, high: float) -> float:
    if isinstance(value, str):
        found = re.fullmatch(rf"\s*({NUMBER})\s*(?:(?:/|out\s+of)\s*({NUMBER}))?[.*_]*\s*", value)
        if found is None:
            raise _Unfit(f"{_quoted(value)} is no number")
        if found[2] is not None and float(found[2]) != high:
            raise _Unfit(f"{_quoted(value)} is on another scale than {low:g} to {high:g}")
        value = float(found[1])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _Unfit(f"{_quoted(value)} is no number")
    if not low <= value <= high:
        raise _Unfit(f"{value:g} is outside {low:g} to {high:g}")
    return float(value)


def _verdict(value: Any) -> float:
    word = str(value).strip().strip("[]*_.\"'`").casefold()
    word = re.sub(r"^(?:answer|assistant|response)\s+", "", word)
    if not isinstance(value, str) or word not in VERDICTS:
        raise _Unfit(f"{_quoted(value)} is none of A, B and tie")
    return VERDICTS[word]


def _values(objects: list[dict[str, Any]], keys: tuple[str, ...]) -> list[Any]:
    """What the objects have under the first of the keys that any of them has."""
    for key in keys:
        found = [item for one in objects for name, item in one.items() if name.strip().casefold() == key]
        if found:
            return found
    return []


def _objects(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The outermost JSON objects of a text: those that are strictly JSON, and those that had to be repaired."""
    strict, repaired = [], []
    for body in _braced(text):
        try:
            strict.append(json.loads(body, parse_constant=str))
        except ValueError:
            mended = re.sub(r'\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})', r"\\\\", body)
            mended = re.sub(r",(\s*[}\]])", r"\1", mended)
            try:
                repaired.append(json.loads(mended, strict=False, parse_constant=str))
            except ValueError:  # no JSON even so; the next levels look at the text
                continue
    return strict, repaired


def _braced(text: str) -> Iterator[str]:
    """Every outermost `{...}`; braces inside of double quotes do not count."""
    start, depth, quoted, place = -1, 0, False, 0
    while place < len(text):
        character = text[place]
        if quoted and character == "\\":
            place += 1
        elif character == '"' and depth:
            quoted = not quoted
        elif character == "{" and not quoted:
            start, depth = (place, 1) if not depth else (start, depth + 1)
        elif character == "}" and not quoted and depth:
            depth -= 1
            if not depth:
                yield text[start : place + 1]
        place += 1


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
