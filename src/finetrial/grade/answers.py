"""Where a completion gives its answer."""

import re
from functools import lru_cache

from finetrial.errors import UserError

MARKER = re.compile(
    r"(?P<colon>\banswer\b(?:[ \t]+is)?[ \t]*(?:\*\*|__)?[ \t]*[:：][ \t]*(?:\*\*|__)?[ \t]*\n?)"
    r"|(?P<hashes>(?<!\#)\#{4}(?!\#))"
    r"|(?P<boxed>\\(?:boxed|fbox)\b[ \t]*)"
    r"|(?P<tag><answer>)",
    re.IGNORECASE,
)
"""`Answer: X` (also `The answer is: X`, `**Answer:** X`), `#### X`, `\\boxed{X}` and `<answer>X</answer>`."""

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
    for marker in reversed(list(MARKER.finditer(text))):
        answer = _after(marker, text)
        if answer is not None:
            return answer.strip()
    return text.strip() or None


def is_marked(text: str) -> bool:
    """Whether a text carries a marker of an answer."""
    return any(_after(marker, text) is not None for marker in MARKER.finditer(text))


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, as the solutions of MATH (Hendrycks et al. 2021) mark their answer."""
    for marker in reversed(list(MARKER.finditer(text))):
        if marker["boxed"]:
            found = _after(marker, text)
            if found is not None:
                return found.strip()
    return None


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


def _after(marker: re.Match[str], text: str) -> str | None:
    """What a marker marks; None for a `\\boxed` whose braces do not balance."""
    rest = text[marker.end() :]
    if marker["tag"]:
        return re.split(r"</answer>", rest, maxsplit=1, flags=re.IGNORECASE)[0]
    if marker["boxed"]:
        return _braced(rest) if rest.startswith("{") else re.split(r"[$\n]", rest, maxsplit=1)[0] or None
    return rest.split("\n", 1)[0]


def _braced(text: str) -> str | None:
    depth = 0
    for place, character in enumerate(text):
        escaped = place > 0 and text[place - 1] == "\\"
        if character == "{" and not escaped:
            depth += 1
        elif character == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return text[1:place]
    return None
