"""ROUGE: how much of a reference a text shares, as words, pairs of words and order of words.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries" (ROUGE-N, section 2; ROUGE-L, section 3.1), as
F1 of precision and recall. Equal to the package `rouge-score` without stemming on texts of ASCII letters and digits;
letters of other scripts count here, which that package drops.
"""

import re
from collections import Counter
from collections.abc import Sequence

ROUGE = ("rouge_1", "rouge_2", "rouge_l")
LEAST_WORDS = 3
"""A reference of fewer words is an answer, not a text to resemble."""

_WORD = re.compile(r"[^\W_]+")


def rouge(text: str, reference: str) -> dict[str, float | None]:
    """F1 of `rouge_1`, `rouge_2` and `rouge_l` in [0, 1], by the names in `ROUGE`.

    0 where the text shares nothing; None where the reference has no n-gram of that order.
    """
    return rouge_of_words(rouge_words(text), rouge_words(reference))


def rouge_words(text: str) -> list[str]:
    """Runs of letters and digits, case folded; punctuation and underscores separate."""
    return _WORD.findall(text.casefold())


def rouge_of_words(given: Sequence[str], wanted: Sequence[str]) -> dict[str, float | None]:
    """As `rouge`, of words."""
    return {
        "rouge_1": _ngram_f1(given, wanted, 1),
        "rouge_2": _ngram_f1(given, wanted, 2),
        "rouge_l": _f1(common_subsequence(given, wanted), len(given), len(wanted)),
    }


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a word of `second` at a time.

    Bit i of the row is 0 where the length grows at word i of `first` (Crochemore et al. 2001, "A fast and practical
    bit-vector algorithm for the longest common subsequence problem"; Hyyrö 2004): row = (row + u) | (row - u) for the
    matches u of row and the word.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def _ngram_f1(given: Sequence[str], wanted: Sequence[str], n: int) -> float | None:
    have, want = _grams(given, n), _grams(wanted, n)
    return _f1((have & want).total(), have.total(), want.total())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _f1(shared: int, given: int, wanted: int) -> float | None:
    """2 P R / (P + R) of P = shared / given and R = shared / wanted, which is 2 shared / (given + wanted)."""
    return 2 * shared / (given + wanted) if wanted else None
