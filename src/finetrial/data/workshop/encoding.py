"""Damage done to text by wrong encodings: what can be undone exactly, and what is lost.

Mojibake here is UTF-8 whose bytes were read as Windows-1252 (the five bytes that it leaves undefined as Latin-1, the
way browsers do). A sequence is repaired only when its bytes are valid UTF-8 and writing the repaired character the
wrong way gives the sequence back.
"""

import re


def _wrongly(byte: int) -> str:
    """A byte read as Windows-1252."""
    raw = bytes([byte])
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


_CHARACTERS = {byte: _wrongly(byte) for byte in range(0x80, 0x100)}
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def _one_of(*spans: tuple[int, int]) -> str:
    characters = (_CHARACTERS[byte] for first, last in spans for byte in range(first, last + 1))
    return f"[{re.escape(''.join(characters))}]"


_NEXT = _one_of((0x80, 0xBF))
_QUOTES = re.escape("‘’“”«»…–—")

MOJIBAKE = re.compile(
    "|".join(
        [
            # two bytes: Latin letters and signs, unless capitals or one letter stand in quotation marks
            rf"(?<![A-ZÀ-Þ“„‘‚«\"']){_one_of((0xC2, 0xC5))}{_NEXT}",
            rf"{_one_of((0xC2, 0xC5))}(?![{_QUOTES}]){_NEXT}",
            # two bytes, at least two letters in a row: Greek, Cyrillic, Hebrew, Arabic
            rf"(?:{_one_of((0xCE, 0xDB))}{_NEXT}){{2,}}",
            # three bytes: punctuation and signs, byte order mark and full-width forms
            rf"{_one_of((0xE2, 0xE2))}{_NEXT}{{2}}",
            rf"{_one_of((0xEF, 0xEF))}{_one_of((0xBB, 0xBD))}{_NEXT}",
            # three bytes, at least two in a row: Indic to Hangul (a single one may be accented text in quotes)
            rf"(?:{_one_of((0xE0, 0xED))}{_NEXT}{{2}}){{2,}}",
            # four bytes: emoji
            rf"{_one_of((0xF0, 0xF4))}{_NEXT}{{3}}",
        ]
    )
)

HALF = re.compile("â€(?!\\w)")
"""What remains of typographic quotes when their third byte was thrown away."""

LOST = re.compile(rf"[\ufffd\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]|{HALF.pattern}")

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\u200b\u2060]")
"""Control characters other than tab, line feed, carriage return and next line; invisible marks without a meaning."""

LATEX = {
    "a": ("alpha", "angle", "approx", "arccos", "arcsin", "arctan", "ast"),
    "b": ("bar", "begin", "beta", "bf", "big", "binom", "boldsymbol", "bullet"),
    "f": ("flat", "forall", "frac", "frown"),
    "n": ("nabla", "neq"),
    "r": ("rangle", "rho", "right", "rightarrow"),
    "t": ("tau", "text", "textbf", "textit", "theta", "times", "triangle"),
    "v": ("varepsilon", "varphi", "varrho", "vartheta", "vec", "vee"),
}
"""Commands of LaTeX whose first letter makes an escape of JSON and Python out of their backslash.

Left out are those that read like words after a line break or tab (`\\nu`, `\\tan`, `\\to`)."""

_EATEN = {
    escape: re.compile(f"{character}(?={'|'.join(name[1:] for name in LATEX[escape])})")
    for escape, character in (("a", "\x07"), ("b", "\x08"), ("f", "\x0c"), ("v", "\x0b"))
}


def repair_mojibake(text: str) -> str:
    """The text with every exactly reversible mojibake undone, also a repeated one."""
    while (repaired := MOJIBAKE.sub(lambda found: _undone(found[0]), text)) != text:
        text = repaired
    return text


def remove_control(text: str) -> str:
    """The text without control characters; one that was the escape in a LaTeX command becomes its letter."""
    for escape, eaten in _EATEN.items():
        text = eaten.sub(lambda _, letter=escape: f"\\{letter}", text)
    return CONTROL.sub("", text)


def _undone(sequence: str) -> str:
    try:
        repaired = bytes(_BYTES[character] for character in sequence).decode()
    except UnicodeDecodeError:
        return sequence
    again = "".join(chr(byte) if byte < 0x80 else _CHARACTERS[byte] for byte in repaired.encode())
    return repaired if again == sequence and not CONTROL.match(repaired) else sequence
