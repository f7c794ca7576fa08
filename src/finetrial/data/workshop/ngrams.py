"""Texts as sequences of hashed words.

Shapes: W words of a text.
"""

import hashlib
import re
from collections.abc import Iterator

import numpy as np

_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai, Lao, kana and Han, which are written without spaces: every character is a word."""
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_MIXED = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")
_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplication modulo 2^64 loses nothing."""


def split_words(text: str) -> list[str]:
    """Lower-case words: letters, digits and underscores; punctuation does not count."""
    pattern = _WORD if text.isascii() or not _HAS_UNSPACED.search(text) else _MIXED
    return pattern.findall(text.lower())


class WordHashes:
    """64-bit hashes of words, the same on every machine; every distinct word is hashed once."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, words: list[str]) -> np.ndarray:
        """uint64 hashes_W."""
        known = self._known
        for word in words:
            if word not in known:
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                known[word] = int.from_bytes(digest, "little")
        return np.fromiter((known[word] for word in words), np.uint64, len(words))


def ngram_hashes(hashes_W: np.ndarray, n: int) -> np.ndarray:
    """uint64 hashes of all n-grams, in order (W - n + 1 of them; none of a shorter text): Σ hᵢ · bⁿ⁻ⁱ modulo 2⁶⁴."""
    return next((grams for length, grams in growing_ngrams(hashes_W, n) if length == n), np.empty(0, np.uint64))


def growing_ngrams(hashes_W: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """(n, hashes of all n-grams) for n = 1 ... `longest`, each made of the one before; ends where the text does."""
    grams = hashes_W
    for n in range(1, min(longest, len(hashes_W)) + 1):
        if n > 1:
            grams = grams[:-1] * _BASE + hashes_W[n - 1 :]
        yield n, grams
