"""Where a completion gives its answer."""

import re
from collections.abc import Mapping
from functools import lru_cache

from finetrial.errors import UserError

MARKERS = {
    "answer": re.compile(
        r"\banswer\b(?:[ \t]+is)?[ \t]*(?:\*\*|__)?[ \t]*[:：][ \t]*(?:\*\*|__)?[ \t]*\n?", re.IGNORECASE
    ),
    "####": re.compile(r"(?<!\#)\#{4}(?!\#)"),
    "\\boxed": re.compile(r"\\boxed\b[ \t]*"),
    "\\fbox": re.compile(r"\\fbox\b[ \t]*"),
    "<answer>": re.compile(r"<answer>", re.IGNORECASE),
}
"""`Answer: X` (also `The answer is: X`, `**Answer:** X`), `#### X`, `\\boxed{X}` and `<answer>X</answer>`, each under
the text it is looked for by."""

LOWER = str.maketrans({chr(code): chr(code + 32) for code in range(ord("A"), ord("Z") + 1)})
THINKING = ("<think>", "</think>")


def find_answer(text: str, pattern: str | None = None) -> str | None:
    """The answer that a completion gives, stripped of white space; None where it gives none.

    What stands before a closing `</think>` is not searched; a completion whose `<think>` is never closed gives no
    answer. With a `pattern`, the answer is the first group (without groups: the whole) of its last match. Without,
    it follows the last of these markers: `Answer:` and `####` (the rest of the line), `\\boxed{...}` with balanced
    braces, `<answer>...</answer>`. A text without any marker is the answer as a whole.

    Raises:
        UserError: the pattern is no regular expression.
    """
    opening, closing = THINKING
    if closing in text:
        text = text.rpartition(closing)[2]
    elif opening in text:
        return None
    if pattern is not None:
        return _by_pattern(text, pattern)
    marked = _last_marked(text, tuple(MARKERS))
    return text.strip() or None if marked is None else marked


def is_marked(text: str) -> bool:
    """Whether a text carries a marker of an answer."""
    return _last_marked(text, tuple(MARKERS)) is not None


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, as the solutions of MATH (Hendrycks et al. 2021) mark their answer."""
    return _last_marked(text, ("\\boxed", "\\fbox"))


@lru_cache(maxsize=64)
def compiled(pattern: str) -> re.Pattern[str]:
    """A user's regular expression; `^` and `$` match at lines.

    Raises:
        UserError: with the place of the mistake.
    """
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise UserError(f"answer: {pattern!r} is no regular expression: {error}") from error


def _by_pattern(text: str, pattern: str) -> str | None:
    matches = list(compiled(pattern).finditer(text))
    if not matches:
        return None
    found = matches[-1][1] if matches[-1].re.groups else matches[-1][0]
    return found.strip() if found is not None else None


def _last_marked(text: str, markers: tuple[str, ...]) -> str | None:
    """What the last of some markers marks, stripped; from the end, for a solution is long and its answer short."""
    lower, last, found = text.translate(LOWER), -1, None
    closing = _closing_braces(text) if "\\boxed" in lower or "\\fbox" in lower else {}
    for marker in markers:
        place = lower.rfind(marker)
        while place > last:
            match = MARKERS[marker].match(text, place)
            answer = _after(marker, text, match.end(), closing) if match else None
            if answer is not None:
                last, found = place, answer.strip()
                break
            place = lower.rfind(marker, 0, place)
    return found


def _after(marker: str, text: str, start: int, closing: Mapping[int, int]) -> str | None:
    """What a marker that ends at `start` marks; None for a `\\boxed` whose braces do not balance."""
    if marker in ("\\boxed", "\\fbox"):
        if text.startswith("{", start):
            return text[start + 1 : closing[start]] if start in closing else None
        return re.split(r"[$\n]", text[start:], maxsplit=1)[0] or None
    ends = "</answer>" if marker == "<answer>" else "\n"
    end = text.translate(LOWER).find(ends, start)
    return text[start:end] if end >= 0 else text[start:]


def _closing_braces(text: str) -> dict[int, int]:
    """Place of each opening brace -> place of the one that closes it; `\\{` and `\\}` are no braces."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for found in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            closing[opened.pop()] = found.start()
    return closing
