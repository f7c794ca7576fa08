"""Words, phrases and a floor under prose: what the checkers of free text share."""

import re
from collections.abc import Iterable, Sequence

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")

FUNCTION_WORDS = frozenset(
    word
    for line in (
        "a an the and or but so if as at by for from in into of on over to up with without about after before until",
        "i me my you your we us our he she it its they them their this that these those there here",
        "am is are was were be been do does did not no have has had will would can could shall should may might must",
        "what which who when where why how because since than then too very just let please more less",
    )
    for word in line.split()
)
PROSE_SHARE = 0.15
"""Least share of function words in a text that counts as prose; a list of keywords has next to none."""
REPEATS = 0.5
"""Least share of different words in such a text."""


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation; typographic apostrophes count as plain ones."""
    return WORD.findall(text.lower().replace("\u2019", "'"))


def has_phrase(spoken: Sequence[str], phrase: str) -> bool:
    """Whether the words of `phrase` follow each other in `spoken` (words as `words` gives them)."""
    return f" {' '.join(words(phrase))} " in f" {' '.join(spoken)} "


def has_any(spoken: Sequence[str], phrases: Iterable[str]) -> bool:
    """Whether one of the phrases occurs."""
    return any(has_phrase(spoken, phrase) for phrase in phrases)


def content_words(text: str) -> set[str]:
    """The words of `text` that are no function words."""
    return set(words(text)) - FUNCTION_WORDS


def is_prose(spoken: Sequence[str]) -> bool:
    """Whether words are connected by function words and do not merely repeat: no list of keywords, no loop."""
    if not spoken:
        return False
    connected = sum(word in FUNCTION_WORDS for word in spoken) / len(spoken)
    return connected >= PROSE_SHARE and len(set(spoken)) / len(spoken) >= REPEATS
