"""Which tokens plan rather than execute, found in the text and carried back to tokens by character offsets.

Two detectors: phrases (`planning_mask`), and nearness in an embedding that the caller brings (`semantic_masks`).

Shapes: T tokens of a completion, C characters of its text, W windows of words, D features of an embedding.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from finetrial.errors import UserError

DEFAULT_GRAMS = (
    "let me think",
    "let me work it out",
    "let me see",
    "let me check",
    "let me verify",
    "let me try",
    "let me start",
    "let me reconsider",
    "let's think",
    "let's check",
    "let's verify",
    "let's try",
    "wait let me",
    "wait is this right",
    "is this right",
    "first i need to",
    "i need to",
    "we need to",
    "step by step",
    "notice that",
    "another way",
    "another approach",
    "the key is",
    "the idea is",
    "my plan is",
    "on second thought",
    "to double check",
    "that's not right",
    "that can't be right",
    "that doesn't work",
    "i made a mistake",
)
"""Phrases of planning, checking and turning back."""

APOSTROPHES = "'’ʼ"

PLANNING_EXAMPLES = (
    "Let me think about how to approach this problem before calculating.",
    "First I need to find out what is asked, then choose a method.",
    "Wait, that does not look right. Let me check the previous step again.",
    "Another way to solve this is to work backwards from the answer.",
    "The key idea is to split the problem into simpler parts.",
)
EXECUTION_EXAMPLES = (
    "Multiplying both sides by 3 gives 3x = 12.",
    "40 + 7 = 47, and 47 - 12 = 35.",
    "Substituting x = 2 into the equation we get y = 5.",
    "The derivative of x squared is 2x.",
    "So the sum of the first ten terms is 55.",
)
WINDOW, STRIDE = 12, 6
"""Words of a window that is embedded, and words from one to the next."""
LEAST_SIMILARITY = 0.25
"""Cosine similarity to planning below which a window is about neither."""

Encode = Callable[[list[str]], np.ndarray]
"""Texts -> embeddings (W, D)."""


def planning_mask(text: str, offsets_T2: np.ndarray, grams: Sequence[str]) -> np.ndarray:
    """Tokens (T,) bool of which at least one character lies in a phrase.

    Phrases match whole words, whatever their case; curly and straight apostrophes are one; any white space with at
    most one comma may stand between two words. Overlapping phrases all count. Nothing beside a phrase is marked,
    however the tokens cut it.

    Args:
        text: the completion's text.
        offsets_T2: characters [start, end) of each token in it (`model.pieces.token_offsets`); empty spans never count.
        grams: phrases; without any, nothing plans.

    Raises:
        UserError: a phrase without a word.
    """
    if not grams:
        return np.zeros(len(offsets_T2), bool)
    spans = [match.span(1) for match in _pattern(tuple(grams)).finditer(text)]
    return _overlapping(len(text), offsets_T2, spans)


@dataclass(frozen=True)
class Centroids:
    """Mean directions of planning and of execution in an embedding, each (D,) of length 1."""

    planning_D: np.ndarray
    execution_D: np.ndarray


def centroids(
    encode: Encode, planning: Sequence[str] = PLANNING_EXAMPLES, execution: Sequence[str] = EXECUTION_EXAMPLES
) -> Centroids:
    """Embed examples of both kinds; the embedding is the caller's (nothing is loaded or downloaded here)."""
    return Centroids(*(_unit(_unit(encode(list(texts))).mean(axis=0)) for texts in (planning, execution)))


def semantic_masks(
    texts: Sequence[str], offsets: Sequence[np.ndarray], encode: Encode, centres: Centroids, threshold: float
) -> list[np.ndarray]:
    """Tokens of each completion, (T,) bool, in words that are nearer to planning than to execution.

    Windows of 12 words, one every 6, are embedded, all texts in one call. A window votes with its lead, cosine
    similarity to planning minus that to execution, or with 0 where it is not near planning at all. A word plans when
    the mean vote of its windows exceeds `threshold`.
    """
    words = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
    windows = [
        (i, first, min(first + WINDOW, len(spans)))
        for i, spans in enumerate(words)
        for first in range(0, max(len(spans) - WINDOW + STRIDE, 1), STRIDE)
        if spans
    ]
    votes = [np.zeros(len(spans)) for spans in words]
    counts = [np.zeros(len(spans)) for spans in words]
    if windows:
        embedded_WD = _unit(encode([texts[i][words[i][first][0] : words[i][end - 1][1]] for i, first, end in windows]))
        near_W = embedded_WD @ centres.planning_D
        lead_W = np.where(near_W > LEAST_SIMILARITY, near_W - embedded_WD @ centres.execution_D, 0.0)
        for (i, first, end), lead in zip(windows, lead_W, strict=True):
            votes[i][first:end] += lead
            counts[i][first:end] += 1
    masks = []
    for text, offsets_T2, spans, vote, count in zip(texts, offsets, words, votes, counts, strict=True):
        chosen = [span for span, plans in zip(spans, vote > threshold * count, strict=True) if plans]
        masks.append(_overlapping(len(text), offsets_T2, chosen))
    return masks


@lru_cache(maxsize=16)
def _pattern(grams: tuple[str, ...]) -> re.Pattern[str]:
    """One expression that finds, at every start of a word, the longest phrase that begins there.

    The phrase is in a look-ahead, so that the search goes on inside it and finds phrases that overlap.
    """
    phrases = []
    for gram in grams:
        words = re.split(r"[\s,]+", gram.strip(" \t\n,"))
        if not all(re.search(r"\w", word) for word in words):
            raise UserError(f"rl.planning.grams: {gram!r} is no phrase; expected words such as 'let me check'")
        phrases.append(tuple(words))
    phrases.sort(key=lambda words: (-len(words), words))
    apostrophe = f"[{APOSTROPHES}]"
    spelled = [
        r"(?:\s*,\s*|\s+)".join(re.sub(apostrophe, apostrophe, re.escape(word)) for word in words) for words in phrases
    ]
    return re.compile(rf"(?<!\w)(?<!\w{apostrophe})(?=({'|'.join(spelled)})(?!{apostrophe}?\w))", re.IGNORECASE)


def _overlapping(characters: int, offsets_T2: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Tokens (T,) bool that share a character with one of the spans [start, end)."""
    edges = np.zeros(characters + 1, np.int64)
    for start, end in spans:
        edges[start] += 1
        edges[end] -= 1
    before = np.concatenate([[0], np.cumsum(edges.cumsum()[:-1] > 0)])
    return before[offsets_T2[:, 1]] > before[offsets_T2[:, 0]]


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
