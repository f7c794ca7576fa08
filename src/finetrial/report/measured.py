"""Every mean with its interval, suite by suite, ready to print: what each kind of suite measures, side by side.

Nothing is averaged over suites: items, chance and units differ, and a mean of means of different things means nothing.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetrial.analyze.changes import Mean, mean_of
from finetrial.analyze.metrics import known
from finetrial.analyze.prepare import read_arm
from finetrial.analyze.table import OutcomeTable
from finetrial.report.theme import decimals_for, metric_words, number

KINDS = {
    "perplexity": "Likelihood of given texts",
    "choice": "Multiple choice by log-probability",
    "tasks": "Graded completions",
    "conversation": "Conversations of several turns",
    "lm_eval": "Tasks of lm-evaluation-harness",
}
"""Kind of suite -> how its tables are headed; suites of other or unknown kinds come last."""

BLOCKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("", ("perplexity", "log_perplexity", "nll", "bits_per_byte", "kl_to_base", "kl_from_base")),
    ("", ("correct", "correct_relaxed", "score", "reward", "exact_match", "pass@", "completion_tokens")),
    ("", ("acc", "acc_norm", "acc_letter", "gold_logp", "gold_logp_letter")),
    ("Diversity of a prompt’s samples", ("distinct_", "ead_", "self_bleu_", "type_token_ratio")),
    ("", ("semantic_diversity", "vendi", "duplicate_share", "degenerate")),
    ("Likeness to the reference", ("rouge_",)),
)
"""Order of metrics in a table: (heading before them, beginnings of their names); others come last."""

PASS_AT = (1, 2, 5, 10, 20, 50, 100)
"""k of `pass@k` that are shown where items have as many samples, beside the most that they have."""

TITLES = {"correct_relaxed": "correct (relaxed)"}
TITLES |= {"acc": "right, by option’s text", "acc_norm": "right, by text per byte", "acc_letter": "right, by letter"}
TITLES |= {"nll": "loss per text (nll)", "log_perplexity": "perplexity (by token)", "ead_2": "ead_2 (fixed vocabulary)"}


@dataclass(frozen=True)
class Figure:
    """A condition on a suite in a metric."""

    condition: str
    suite: str
    metric: str
    mean: Mean


@dataclass(frozen=True)
class CellText:
    """One cell of a suite's table."""

    mean: str
    interval: str
    against_base: str
    """Difference to the base and what that is of the base, or nothing."""


@dataclass(frozen=True)
class Row:
    """One metric, or a heading where there are no cells."""

    title: str
    better: str
    """↑ where higher is better, ↓ where lower is, nothing where it is not known."""
    cells: tuple[CellText, ...]


@dataclass(frozen=True)
class SuiteTable:
    """One suite."""

    suite: str
    facts: str
    """n, chance, version, in words."""
    conditions: tuple[str, ...]
    runs: tuple[str, ...]
    """How many runs each condition's numbers are from."""
    rows: tuple[Row, ...]


def figures(table: OutcomeTable, suites: Iterable[str], level: float) -> tuple[Figure, ...]:
    """Means of every condition on these suites in every metric, `pass@k` from `correct` included."""
    found = []
    for suite, condition in itertools.product(suites, table.conditions):
        named = [metric for metric in table.metrics if table.has(condition, suite, metric)]
        for metric in [*named, *_pass_at(table, condition, suite, named)]:
            mean = mean_of(read_arm(table, condition, suite, metric), level)
            if mean is not None:
                found.append(Figure(condition, suite, metric, mean))
    return tuple(found)


def _pass_at(table: OutcomeTable, condition: str, suite: str, named: Sequence[str]) -> list[str]:
    """`pass@k` that can be had of an item's samples: grades of 0 and 1, at least two of every item."""
    if "correct" not in named or any(metric.startswith("pass@") for metric in table.metrics):
        return []
    dense = table.dense(condition, suite, "correct")
    there_SI = dense.count_SI > 0
    if not there_SI.any() or not np.allclose((dense.values_SI * dense.count_SI - dense.squares_SI)[there_SI], 0):
        return []
    most = int(dense.count_SI[there_SI].min())
    return [f"pass@{k}" for k in sorted({*(k for k in PASS_AT if k < most), most})] if most > 1 else []


def suite_tables(
    found: Sequence[Figure], conditions: Sequence[str], suites: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, list[SuiteTable]]]:
    """(kind's heading, its suites), each suite with the conditions in their order, the base first.

    Args:
        found: all figures.
        conditions: in the order of the report.
        suites: suite -> its facts in the manifest; the order of the suites.
    """
    by_kind: dict[str, list[SuiteTable]] = {}
    names = [*suites, *dict.fromkeys(one.suite for one in found if one.suite not in suites)]
    for suite in names:
        mine = {(one.condition, one.metric): one.mean for one in found if one.suite == suite}
        if mine:
            facts = suites.get(suite, {})
            kind = KINDS.get(facts.get("kind", ""), "Other measurements")
            by_kind.setdefault(kind, []).append(_suite_table(suite, facts, mine, conditions))
    order = [*KINDS.values(), "Other measurements"]
    return sorted(by_kind.items(), key=lambda entry: order.index(entry[0]))


def _suite_table(
    suite: str, facts: Mapping[str, Any], means: Mapping[tuple[str, str], Mean], conditions: Sequence[str]
) -> SuiteTable:
    shown = [name for name in conditions if any(condition == name for condition, _ in means)]
    shown += sorted({condition for condition, _ in means} - {*shown})
    rows, heading = [], ""
    for metric in sorted({metric for _, metric in means}, key=_place):
        above = _heading(metric)
        if above and above != heading:
            rows.append(Row(above, "", ()))
        heading = above or heading
        base = means.get(("base", metric))
        mine = [means.get((name, metric)) for name in shown]
        places = _places([one for one in mine if one is not None], metric)
        cells = tuple(
            _cell_text(one, None if name == "base" else base, metric, places)
            for name, one in zip(shown, mine, strict=True)
        )
        fact = known(metric)
        arrow = "" if fact is None or _is_neutral(metric) else "↑" if fact.better == "higher" else "↓"
        strict = metric == "correct" and any(other == "correct_relaxed" for _, other in means)
        rows.append(Row("correct (strict)" if strict else _title(metric, facts.get("kind")), arrow, cells))
    n_items = sorted({mean.n_items for mean in means.values()})
    told = [f"n = {_range(n_items)} items"]
    if facts.get("groups") and facts["groups"] != facts.get("items"):
        told.append(f"in {number(facts['groups'])} groups")
    if facts.get("chance") is not None:
        told.append(f"chance level {number(100 * facts['chance'], 1)} %")
    if facts.get("subset"):
        told.append(_subset(facts["subset"]))
    runs = {name: max(mean.n_seeds for (condition, _), mean in means.items() if condition == name) for name in shown}
    counted = tuple("frozen" if not n else "1 run" if n == 1 else f"{n} runs" for n in runs.values())
    return SuiteTable(suite, ", ".join(told), tuple(shown), counted, tuple(rows))


def _subset(facts: Mapping[str, Any]) -> str:
    strata = f", stratified by {facts['by']}" if facts.get("by") else ""
    return (
        f"a frozen subset of {number(facts['of'])}{strata} (design effect {number(facts['design_effect'], 2)}; the "
        f"variance of a mean is {number(facts['variance_against_full'], 2)} times the full set’s)"
    )


def _shown(value: float, metric: str) -> float:
    """A log perplexity is shown as the perplexity that it means."""
    return math.exp(value) if metric == "log_perplexity" else value


def _places(means: Sequence[Mean], metric: str) -> int | None:
    """Decimals of a row: those that suit the middle one of its intervals."""
    widths = sorted(_shown(one.ci[1], metric) - _shown(one.ci[0], metric) for one in means if one.ci)
    return max(2, decimals_for(widths[len(widths) // 2])) if widths else None


def _cell_text(mean: Mean | None, base: Mean | None, metric: str, places: int | None) -> CellText:
    """The interval is cut at the ends of the metric's range, beyond which no mean can lie."""
    if mean is None:
        return CellText("—", "", "")
    value, fact = _shown(mean.value, metric), known(metric)
    interval = "" if mean.n_seeds == 0 else "no interval"
    if mean.ci is not None:
        low, high = mean.ci
        if fact is not None:
            low = low if fact.low is None else max(low, fact.low)
            high = high if fact.high is None else min(high, fact.high)
        interval = f"[{number(_shown(low, metric), places)}, {number(_shown(high, metric), places)}]"
    against = ""
    if base is not None and not metric.startswith("kl_"):
        start = _shown(base.value, metric)
        against = number(value - start, places, signed=True)
        if start:
            against += f" ({number(100 * (value - start) / abs(start), 1, signed=True)} %)"
    return CellText(number(value, places), interval, against)


def _is_neutral(metric: str) -> bool:
    """Whether the direction is a convention that most campaigns do not mean."""
    return metric == "completion_tokens"


def _title(metric: str, kind: str | None) -> str:
    """A metric's name; those of the harness keep theirs, whose options may be letters or texts."""
    unit = metric_words(metric).unit
    title = metric if kind == "lm_eval" else TITLES.get(metric, metric)
    shown = "perplexity" if metric == "log_perplexity" else unit
    return title if shown in ("proportion", title, "perplexity", metric) else f"{title}, {shown}"


def _place(metric: str) -> tuple[int, int, int, str]:
    """Order of a metric: block, place in it, k or n, name. A metric of answers read in several ways is one of them."""
    name = metric.partition(",")[0]
    digits = "".join(character for character in metric.partition("@")[2] if character.isdigit())
    for block, (_, beginnings) in enumerate(BLOCKS):
        for place, beginning in enumerate(beginnings):
            open_ended = beginning[-1] in "_@"
            if name == beginning or (open_ended and name.startswith(beginning)):
                return block, place, int(digits or 0), metric
    return len(BLOCKS), 0, 0, metric


def _heading(metric: str) -> str:
    block = _place(metric)[0]
    if block == 4:  # a continuation of the block before it
        block = 3
    return BLOCKS[block][0] if block < len(BLOCKS) else "Other"


def _range(values: Sequence[int]) -> str:
    return number(values[0]) if len(values) == 1 else f"{number(values[0])} to {number(values[-1])}"
