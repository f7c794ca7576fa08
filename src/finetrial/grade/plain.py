"""One spelling per answer: what wrappers, spacing and punctuation hide."""

import re
import unicodedata
from functools import lru_cache

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
VULGAR = re.compile("(?<=[0-9])(?=[¼½¾⅐-⅞])")
WRAPPERS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$(.+)\$\$",
        r"\$([^$]+)\$",
        r"\\\((.+)\\\)",
        r"\\\[(.+)\\\]",
        r"\*\*(.+)\*\*",
        r"__(.+)__",
        r"`([^`]+)`",
        r"\"([^\"]+)\"",
        r"'([^']+)'",
        r"“([^”]+)”",
        r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}",
    )
)
"""What may surround a whole answer: LaTeX's mathematics, a `\\text`, Markdown's emphasis, quotation marks."""

WRAPPED = 1000
"""Wrappers are taken off texts of so many characters at most; a longer one is prose."""

FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]+)\}|(\d))\s*(?:\{([^{}]+)\}|(\d))")
GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")


@lru_cache(maxsize=1024)
def plain(text: str) -> str:
    """Text without what typesetting adds; the case of letters stays.

    In this order: superscript digits become `^n`; Unicode NFKC; the minus, fraction and multiplication signs of
    Unicode become `-`, `/` and `×`; zero-width characters go; `\\$`, `\\%`, `\\&`, `\\#` and `\\_` become the
    character; `\\left`, `\\right`, `\\displaystyle` and LaTeX's spaces go; runs of white space become one space;
    then wrappers around the whole (`WRAPPERS`) are taken off until none is left. The result is a fixed point.
    """
    while (once := _plain_once(text)) != text:
        text = once
    return text


def _plain_once(text: str) -> str:
    text = re.sub(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^" + found[0].translate(SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", VULGAR.sub(" ", text))
    text = re.sub(r"[\u200b-\u200d\u2060\ufeff]", "", text)
    text = re.sub(r"[\u2212\u2010-\u2013]", "-", text).replace("\u2044", "/")
    text = re.sub(r"\\([$%&#_])", r"\1", text)
    text = re.sub(r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])|\\[,;:! ]|(?<=\d)~(?=\d)", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) > WRAPPED:
        return text
    for wrapper in WRAPPERS:
        if found := wrapper.fullmatch(text):
            text = found[1].strip()
    return text


@lru_cache(maxsize=1024)
def normalised(text: str) -> str:
    """The spelling that `exact` compares.

    `plain`; then `\\frac{a}{b}`, `\\dfrac` and `\\frac12` become `a/b`; case folded; commas between groups of three
    digits go (`1,234,567`, not `1,23`); white space, quotation marks and `.,;:` go from both ends (a `.` before a
    digit stays), a `?` or `!` from the end of a word of two letters or more (`5!` is a factorial). A text of which
    nothing would be left stays as `plain` has it. The result is a fixed point.
    """
    while (once := _normalised_once(text)) != text:
        text = once
    return text


def _normalised_once(text: str) -> str:
    text = plain(text)
    bare = FRACTION.sub(lambda found: f"{found[1] or found[2]}/{found[3] or found[4]}", text).casefold()
    bare = GROUPED.sub(lambda found: re.sub(r"[{},]", "", found[0]), bare)
    bare = re.sub(r"(?<=[^\W\d_]{2})[!?]+$", "", bare)
    bare = re.sub(r"^(?:[\s,;:\"'`]|\.(?!\d))+", "", bare).rstrip(" .,;:\"'`")
    return bare or text.casefold()
