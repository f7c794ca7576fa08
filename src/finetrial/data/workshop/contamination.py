"""Items of suites that stand in training data, by shared n-grams of words (13 as in Brown et al. 2020, appendix C).

An item's prompt and output are looked for apart. A part shorter than n words is looked for as a whole, down to
`SHORTEST` words; what is shorter cannot be told from chance and is reported as not checked. An n-gram that many items
of its suite share is the suite's own boilerplate and proves nothing.

Shapes: W words of a text, M n-grams of one length in the index.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetrial.data.workshop.ngrams import WordHashes, growing_ngrams, ngram_hashes, split_words
from finetrial.records import Example

N = 13
SHORTEST = 6
COMMON = 5
"""Items of a suite that may share an n-gram before it counts as boilerplate."""
EXAMPLES = 3

HELD = 50_000
"""Words of training text that are looked through at a time."""
BETWEEN = 0xD1B54A32D192ED03

PARTS = ("prompt", "output")


@dataclass
class _Part:
    suite: str
    item: str
    name: str
    words: list[str]
    length: int
    """Words of the n-grams that stand for this part."""
    ngrams: int = 0
    """Distinct ones that are no boilerplate."""
    found: set[int] = field(default_factory=set)
    where: tuple[str, int] | None = None
    """Place of the first training row that shares an n-gram, and the n-gram's first word in this part."""


def item_parts(example: Example) -> dict[str, str]:
    """A conversation as prompt (what is no assistant's) and output, in the order of the turns."""
    texts: dict[str, list[str]] = {name: [] for name in PARTS}
    for message in example.messages:
        if message["role"] != "system":
            texts["output" if message["role"] == "assistant" else "prompt"].append(message["content"])
    return {name: "\n".join(parts) for name, parts in texts.items()}


class Contamination:
    """An index of suites' n-grams, and what of it was found in the rows that were scanned."""

    def __init__(self, suites: Iterable[tuple[str, Iterable[Example]]], hashes: WordHashes, n: int = N) -> None:
        self.n = n
        self._hashes = hashes
        self._items: Counter[str] = Counter()
        self._parts: list[_Part] = []
        self._held: list[tuple[str, np.ndarray]] = []
        self._held_words = 0
        self._boilerplate: Counter[str] = Counter()
        for suite, examples in suites:
            self._add(suite, examples)
        self._index: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        self._fill()
        self._sorted = {length: np.array(sorted(table), np.uint64) for length, table in self._index.items()}

    def _add(self, suite: str, examples: Iterable[Example]) -> None:
        for example in examples:
            self._items[suite] += 1
            for name, text in item_parts(example).items():
                words = split_words(text)
                self._parts.append(_Part(suite, example.id, name, words, min(self.n, len(words))))

    def _fill(self) -> None:
        grams = [ngram_hashes(self._hashes.of(part.words), part.length) for part in self._parts]
        shared: Counter[tuple[str, int]] = Counter()
        for part, hashes in zip(self._parts, grams, strict=True):
            if part.length >= SHORTEST:
                shared.update((part.suite, key) for key in set(hashes.tolist()))
        self._boilerplate.update(suite for (suite, _), items in shared.items() if items > COMMON)
        for number, (part, hashes) in enumerate(zip(self._parts, grams, strict=True)):
            if part.length < SHORTEST:
                continue
            own = {key: at for at, key in reversed(list(enumerate(hashes.tolist())))}
            kept = {key: at for key, at in own.items() if shared[part.suite, key] <= COMMON}
            part.ngrams = len(kept)
            for key, at in kept.items():
                self._index[part.length][key].append((number, at))

    def scan(self, place: str, hashes_W: np.ndarray) -> None:
        """Look for the suites' n-grams in one text of a training row; found by the time of `facts`."""
        self._held.append((place, hashes_W))
        self._held_words += len(hashes_W)
        if self._held_words >= HELD:
            self._look()

    def _look(self) -> None:
        """Look through the texts that are held, all at once; between two of them stands a word that no text has."""
        if not self._held or not self._sorted:
            return
        between = np.array([BETWEEN], np.uint64)
        texts = [part for _, hashes_W in self._held for part in (hashes_W, between)]
        starts = np.cumsum([0, *(len(hashes_W) + 1 for _, hashes_W in self._held)])
        for length, grams in growing_ngrams(np.concatenate(texts), self.n):
            known_M = self._sorted.get(length)
            if known_M is None:
                continue
            near = np.minimum(np.searchsorted(known_M, grams), len(known_M) - 1)
            for at in np.flatnonzero(known_M[near] == grams).tolist():
                key = int(grams[at])
                place = self._held[int(np.searchsorted(starts, at, side="right")) - 1][0]
                for number, start in self._index[length][key]:
                    part = self._parts[number]
                    part.found.add(key)
                    part.where = part.where or (place, start)
        self._held.clear()
        self._held_words = 0

    def facts(self) -> list[dict[str, Any]]:
        """Per suite, in JSON types: items, how many were checked and hit (by part and by either), and examples.

        An item is checked when a part of it has n-grams that are no boilerplate, and hit when one of them was found.
        `covered` of an example is the share of its part's n-grams that was found.
        """
        self._look()
        told = []
        for suite, items in self._items.items():
            parts = [part for part in self._parts if part.suite == suite]
            hits = [part for part in parts if part.found]
            checked = {part.item for part in parts if part.ngrams}
            either = {part.item for part in hits}
            worst = sorted(hits, key=lambda part: (-len(part.found) / part.ngrams, part.item))
            told.append(
                {
                    "suite": suite,
                    "items": items,
                    "checked": len(checked),
                    "hit": len(either),
                    "share": len(either) / len(checked) if checked else None,
                    "hit_by": {name: sum(part.name == name for part in hits) for name in PARTS},
                    "n": self.n,
                    "boilerplate_ngrams": self._boilerplate[suite],
                    "examples": [_example(part) for part in worst[:EXAMPLES]],
                }
            )
        return told


def _example(part: _Part) -> dict[str, Any]:
    assert part.where is not None  # a part with finds
    place, start = part.where
    return {
        "item": part.item,
        "part": part.name,
        "place": place,
        "covered": len(part.found) / part.ngrams,
        "text": " ".join(part.words[start : start + part.length]),
    }
