"""A linter for training data: findings with a severity, and facts about lengths, languages and prompts.

Rows stream. Per row are held: a hash and the place of its content, 8 bytes for each length, and, for a row that
resembles no earlier one, about 4.5 KB in the index of near-duplicates.
"""

import hashlib
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field

from finetrial.data.workshop.columns import Columns
from finetrial.data.workshop.config import DEFAULT_RULES, StandardiseConfig
from finetrial.data.workshop.contamination import Contamination, N, item_parts
from finetrial.data.workshop.language import detect
from finetrial.data.workshop.near_duplicates import NearDuplicates
from finetrial.data.workshop.ngrams import WordHashes, split_words
from finetrial.data.workshop.pool_rows import PoolRow, pool_rows
from finetrial.data.workshop.secrets import find_secret
from finetrial.data.workshop.shapes import shapes
from finetrial.data.workshop.tally import shown
from finetrial.data.workshop.turns import refusal, turn_faults
from finetrial.records import Config, Example

Severity = Literal["error", "warning", "note"]

CHECKS: dict[str, tuple[Severity, str]] = {
    "unreadable": ("error", "rows that no reader understands; training drops them"),
    "role": ("error", "rows with a role that no chat template knows"),
    "order": ("error", "turns in an order that chat templates refuse or bend"),
    "empty turn": ("error", "turns without text"),
    "no answer": ("error", "conversations without a last word of the assistant"),
    "not rendered": ("error", "rows that the model's chat template refuses"),
    "nothing left": ("error", "rows that lose every supervised token to the cut"),
    "contamination": ("error", "items of suites that stand in the training rows"),
    "secret": ("error", "strings that look like keys or passwords"),
    "cut": ("warning", "rows longer than max_length: end and stop token are lost"),
    "duplicate": ("warning", "rows whose messages are those of an earlier row"),
    "near duplicate": ("warning", "rows that resemble an earlier row"),
    "shape": ("warning", "outputs of other shapes: see `finetrial standardise`"),
    "system prompt": ("warning", "rows with a system prompt among rows without one"),
    "language": ("note", "rows surely in another language than most"),
    "length": ("note", "outputs of more than 10 times the median of words"),
}
"""Check -> its severity and what it finds, in the order of the report."""

EXAMPLES = 3
LONG = 10
CHUNK = 256
"""Rows that are rendered at a time."""


class LintConfig(Config):
    """What the linter looks for."""

    similarity: float = Field(
        default=0.8, gt=0, lt=1, description="estimated Jaccard index of word shingles from which rows nearly agree"
    )
    near_duplicates: bool = Field(default=True, description="look for near-duplicates; most of the time goes there")
    ngram: int = Field(default=N, ge=3, description="words of the n-grams that training and suites may not share")
    tiny: int = Field(default=3, ge=0, description="characters up to which an output counts as tiny")


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """A row as the model would see it."""

    tokens: int
    """Before the cut."""
    supervised: int
    """Tokens that are learned from, after the cut."""
    cut: int
    """Tokens behind max_length."""
    refused: str = ""
    """Why the row cannot be trained on at all; the counts are then 0."""


CountTokens = Callable[[Sequence[Example]], Sequence[TokenFacts]]
"""Rows -> their facts in that order; the caller has the tokenizer."""


@dataclass
class _Finding:
    rows: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, place: str, text: str) -> None:
        self.rows += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append({"place": place, "text": shown(text)})


def lint(
    source: str,
    config: LintConfig,
    *,
    suites: Sequence[str] = (),
    limit: int | None = None,
    count_tokens: CountTokens | None = None,
) -> dict[str, Any]:
    """Check training data.

    Args:
        source: as of a campaign's `[data]`: file, folder, glob, `hf:NAME`, `world:NAME?...`.
        suites: sources of the same kinds whose items must not stand in the training rows.
        limit: the first so many rows only.
        count_tokens: of the base that will be trained; without it nothing is said about tokens.

    Returns:
        `rows`, `findings` (check, severity, rows, share, message, examples; only those that found something),
        `clusters` (near-duplicates), `contamination` (per suite), `lengths`, `languages`, `shapes`, `system_prompts`,
        in JSON types.

    Raises:
        UserError: a source cannot be read.
    """
    hashes = WordHashes()
    against = None
    if suites:
        items = ((suite, (row.example for row in pool_rows(suite) if row.example is not None)) for suite in suites)
        against = Contamination(items, hashes, config.ngram)
    run = _Run(config, hashes, against)
    held: list[PoolRow] = []
    for row in pool_rows(source, limit):
        run.look_at(row)
        if count_tokens is not None and row.example is not None:
            held.append(row)
            if len(held) == CHUNK:
                run.count(held, count_tokens)
                held.clear()
    if count_tokens is not None and held:
        run.count(held, count_tokens)
    return run.facts(source)


class _Run:
    """Everything that is gathered while the rows pass."""

    def __init__(self, config: LintConfig, hashes: WordHashes, against: Contamination | None) -> None:
        self.config = config
        self.rows = 0
        self.found: dict[str, _Finding] = defaultdict(_Finding)
        self.lengths: dict[str, array[int]] = defaultdict(lambda: array("q"))
        self.languages: Counter[tuple[str, bool]] = Counter()
        self.language_at: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.shapes: Counter[str] = Counter()
        self.systems: Counter[str] = Counter()
        self._hashes = hashes
        self._against = against
        self._near = NearDuplicates(config.similarity) if config.near_duplicates else None
        self._shape_rules = StandardiseConfig(tiny=config.tiny)
        self._contents: dict[bytes, str] = {}
        self._starts: dict[int, str] = {}
        self._longest: list[tuple[int, str, str]] = []

    def look_at(self, row: PoolRow) -> None:
        """Everything that needs no tokenizer."""
        self.rows += 1
        if row.example is None:
            self.found[refusal(row.reason)].add(row.place, row.reason)
            return
        messages = row.example.messages
        faults = dict(reversed(list(turn_faults(messages))))
        for check, text in faults.items():
            self.found[check].add(row.place, text)
        system = "\n".join(message["content"] for message in messages if message["role"] == "system")
        self.systems[system] += 1
        if (secret := next(filter(None, (find_secret(m["content"]) for m in messages)), None)) is not None:
            self.found["secret"].add(row.place, secret)
        self._shape(row.place, row.example)
        self._words(row.place, row.example)

    def _shape(self, place: str, example: Example) -> None:
        found: dict[str, Any] = {}
        for path, prompt in Columns("messages").outputs({"messages": example.messages}):
            content = example.messages[int(path[1])]["content"]
            found |= dict.fromkeys(shapes(content, prompt, self._shape_rules), content)
        self.shapes.update(list(found) or ["text"])
        bad = {s: text for s, text in found.items() if DEFAULT_RULES[s] != "keep" and s not in ("empty", "blank")}
        for shape, text in list(bad.items())[:1]:
            self.found["shape"].add(place, f"{shape}: {text}")

    def _words(self, place: str, example: Example) -> None:
        parts = item_parts(example)
        split = {name: split_words(text) for name, text in parts.items()}
        for name, text in parts.items():
            self.lengths[f"{name} words"].append(len(split[name]))
            self.lengths[f"{name} characters"].append(len(text))
        language = detect(parts["output"], split["output"])
        self.languages[language.code, language.sure] += 1
        if language.sure and len(self.language_at[language.code]) < EXAMPLES:
            self.language_at[language.code].append((place, parts["output"]))
        count = len(split["output"])
        if len(self._longest) < EXAMPLES or count > self._longest[-1][0]:
            longest = [*self._longest, (count, place, shown(parts["output"], 60))]
            self._longest = sorted(longest, key=lambda item: -item[0])[:EXAMPLES]
        key = hashlib.blake2b(json.dumps(example.messages, sort_keys=True).encode(), digest_size=16).digest()
        if (earlier := self._contents.setdefault(key, place)) != place:
            self.found["duplicate"].add(place, f"the same as {earlier}")
        hashes_W = {name: self._hashes.of(words) for name, words in split.items()}
        if self._against is not None:
            for part in hashes_W.values():
                self._against.scan(place, part)
        whole_W = np.concatenate(list(hashes_W.values()))
        if self._near is not None and earlier == place and len(whole_W):
            self._starts[self.rows] = place
            self._near.add(self.rows, whole_W)

    def count(self, rows: Sequence[PoolRow], count_tokens: CountTokens) -> None:
        """What the base's tokenizer makes of rows."""
        examples = [row.example for row in rows if row.example is not None]
        for row, facts in zip(rows, count_tokens(examples), strict=True):
            if facts.refused:
                check = "nothing left" if "max_length" in facts.refused else "not rendered"
                self.found[check].add(row.place, facts.refused)
                continue
            self.lengths["tokens"].append(facts.tokens)
            self.lengths["supervised tokens"].append(facts.supervised)
            if facts.cut:
                self.found["cut"].add(row.place, f"{facts.tokens} tokens, {facts.cut} behind the cut")

    def facts(self, source: str) -> dict[str, Any]:
        """See `lint`."""
        clusters = self._clusters()
        contamination = self._against.facts() if self._against is not None else []
        for suite in contamination:
            finding = self.found["contamination"]
            finding.rows += suite["hit"]
            finding.examples += [
                {"place": e["place"], "text": f"{e['part']} of {e['item']}: {e['text']}"} for e in suite["examples"]
            ]
        self._system_prompts()
        self._odd_languages()
        self._odd_lengths()
        findings = [
            {
                "check": check,
                "severity": severity,
                "rows": self.found[check].rows,
                "share": self.found[check].rows / self.rows if check != "contamination" else None,
                "message": message,
                "examples": self.found[check].examples[:EXAMPLES],
            }
            for check, (severity, message) in CHECKS.items()
            if check in self.found and self.found[check].rows
        ]
        return {
            "source": source,
            "rows": self.rows,
            "findings": findings,
            "errors": sum(finding["severity"] == "error" for finding in findings),
            "warnings": sum(finding["severity"] == "warning" for finding in findings),
            "clusters": clusters,
            "contamination": contamination,
            "lengths": {name: _quantiles(values) for name, values in self.lengths.items()},
            "languages": self._languages(),
            "shapes": dict(self.shapes.most_common()),
            "system_prompts": {
                "distinct": len([text for text in self.systems if text]),
                "rows_without": self.systems[""],
                "commonest": [{"rows": n, "text": shown(t)} for t, n in self.systems.most_common(3) if t],
            },
        }

    def _clusters(self) -> list[dict[str, Any]]:
        found = self._near.clusters() if self._near is not None else {}
        told = []
        for first, members in found.items():
            rows = [{"place": self._starts[row], "similarity": alike} for row, alike in members]
            told.append({"first": self._starts[first], "rows": 1 + len(members), "members": rows[:EXAMPLES]})
            for member in rows:
                text = f"{member['similarity']:.0%} like {self._starts[first]}"
                self.found["near duplicate"].add(member["place"], text)
        return told[:20]

    def _system_prompts(self) -> None:
        without = self.systems[""]
        if without and without < sum(self.systems.values()):
            finding = self.found["system prompt"]
            finding.rows = sum(self.systems.values()) - without
            commonest = next(text for text, _ in self.systems.most_common() if text)
            finding.examples.append({"place": "", "text": shown(commonest)})

    def _languages(self) -> list[dict[str, Any]]:
        totals: Counter[str] = Counter()
        for (code, _), rows in self.languages.items():
            totals[code] += rows
        return [{"language": c, "rows": n, "sure": self.languages[c, True]} for c, n in totals.most_common()]

    def _odd_languages(self) -> None:
        sure = Counter({code: rows for (code, is_sure), rows in self.languages.items() if is_sure})
        for code, rows in sure.most_common()[1:]:
            finding = self.found["language"]
            finding.rows += rows
            finding.examples += [{"place": place, "text": shown(text)} for place, text in self.language_at[code]]

    def _odd_lengths(self) -> None:
        words = np.array(self.lengths["output words"])
        if len(words):
            bound = LONG * max(float(np.median(words)), 1.0)
            finding = self.found["length"]
            finding.rows = int((words > bound).sum())
            finding.examples = [{"place": p, "text": f"{n} words: {t}"} for n, p, t in self._longest if n > bound]


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    """Least, quantiles, largest, mean and sum."""
    given = np.array(values)
    levels = {"q05": 0.05, "median": 0.5, "q95": 0.95}
    quantiles = {name: float(np.quantile(given, level)) for name, level in levels.items()}
    return {"min": int(given.min()), **quantiles, "max": int(given.max()), "mean": float(given.mean()),
            "sum": int(given.sum())}  # fmt: skip
