"""Rows of the page's tables, as text ready to print. What was not recorded says so."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetrial.analyze.contrast import Finding
from finetrial.report.facts import Report, RunFacts, family_title, is_exploratory
from finetrial.report.theme import Mark, decimals_for, duration, mark_of, metric_words, number, p_text, slug

Table = tuple[list[str], list[list[str]]]
"""Headings and rows of text."""


@dataclass(frozen=True)
class LedgerRow:
    """One contrast of the ledger."""

    finding: Finding
    mark: Mark
    anchor: str
    exploratory: bool
    unit: str
    difference: str
    adjusted: str
    p_adjusted: str
    facts: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    """(anchor, words) of the charts that show it."""


@dataclass(frozen=True)
class LedgerFamily:
    """Contrasts that share an error rate, with what is the same for all of them."""

    title: str
    common: tuple[tuple[str, str], ...]
    rows: tuple[LedgerRow, ...]

    def own(self, row: LedgerRow) -> list[tuple[str, str]]:
        """What names a row's test, unit and n, where it is not what all rows of the family share."""
        return [fact for fact in row.facts if fact[0] in NAMING and fact not in self.common]


NAMING = ("test", "unit of replication", "seeds", "items", "margin")


def ledger(report: Report, charts: Iterable[str]) -> list[LedgerFamily]:
    """The families in order of first appearance.

    Args:
        report: the campaign.
        charts: names of the charts on the page, so that links point at something.
    """
    known = set(charts)
    families: dict[str, list[LedgerRow]] = {}
    for finding in report.findings:
        families.setdefault(family_title(finding), []).append(_ledger_row(finding, known))
    return [LedgerFamily(title, _common(rows), tuple(rows)) for title, rows in families.items()]


def _common(rows: Sequence[LedgerRow]) -> tuple[tuple[str, str], ...]:
    return tuple(fact for fact in rows[0].facts if fact[0] in NAMING and all(fact in row.facts for row in rows))


def _ledger_row(finding: Finding, charts: set[str]) -> LedgerRow:
    ci, adjusted = finding.ci, finding.ci_adjusted
    places = decimals_for(adjusted[1] - adjusted[0]) if adjusted else None
    metric = slug(finding.metric)
    named = ((f"forest-{metric}", "forest plot"), (f"seeds-{metric}", "every seed"), (f"heatmap-{metric}", "heatmap"))
    noise = (f"variance-{slug(finding.contrast)}", "where its noise comes from")
    more = (noise, (f"scaling-{metric}", "more data"), ("overlap", "shared training rows"))
    return LedgerRow(
        finding=finding,
        mark=mark_of(finding.verdict, finding.subtype),
        anchor=f"contrast-{slug(finding.contrast)}",
        exploratory=is_exploratory(finding),
        unit=metric_words(finding.metric).unit,
        difference="not estimable" if finding.estimate is None else number(finding.estimate, places, signed=True),
        adjusted=_interval(adjusted, places),
        p_adjusted="—" if finding.p_adjusted is None else p_text(finding.p_adjusted),
        facts=_ledger_facts(finding, _interval(ci, places)),
        links=tuple((name, words) for name, words in (*named, *more) if name in charts),
    )


def _ledger_facts(finding: Finding, interval: str) -> tuple[tuple[str, str], ...]:
    baseline = f"{finding.n_seeds[1]}" if finding.n_seeds[1] else "the frozen base"
    missing = f" ({finding.n_missing} values missing)" if finding.n_missing else ""
    facts = [
        ("unadjusted", f"{interval}, p {p_text(finding.p_value)}" if finding.ci else "not estimable"),
        ("test", finding.test),
        ("unit of replication", finding.unit),
        ("seeds", f"{finding.n_seeds[0]} against {baseline}"),
        ("items", f"{number(finding.n_items)}{missing}"),
        ("margin", f"{finding.margin:g} {metric_words(finding.metric).unit}"),
        ("family", f"{finding.family}, {finding.family_size}, {finding.correction}"),
    ]
    if finding.df is not None:
        facts.append(("degrees of freedom", number(finding.df, 1)))
    if finding.hedges_g is not None:
        facts.append(("Hedges’ g over seeds", number(finding.hedges_g, 2)))
    if finding.permutation_p is not None:
        facts.append(
            (
                "permutation of seeds",
                f"p {p_text(finding.permutation_p)}, least possible {p_text(finding.attainable_p)}",
            )
        )
    if finding.variance:
        spread = ", ".join(f"{name} {value**0.5:.2g}" for name, value in finding.variance.items())
        facts.append(("spread (SD)", spread))
    if finding.seeds_needed is not None:
        facts.append(("seeds needed per condition", str(finding.seeds_needed)))
    return tuple(facts)


def _interval(interval: tuple[float, float] | None, places: int | None) -> str:
    return f"[{number(interval[0], places)}, {number(interval[1], places)}]" if interval else "—"


def looks(report: Report) -> Table:
    """Planned looks: level, what was decided there, and what was not trained because of it."""
    section = report.section("looks") or {"planned": [], "taken": []}
    taken = {look["n_seeds"]: look for look in section["taken"]}
    return (
        ["seeds per condition", "level of the family", "decided", "stopped", "saved"],
        [_look(n, taken.get(n)) for n in section["planned"]],
    )


def _look(n_seeds: int, look: Mapping[str, Any] | None) -> list[str]:
    if look is None:
        return [str(n_seeds), "—", "not taken", "—", "—"]
    levels = look["levels"]
    shown = [f"{level:.2g}" if len(levels) == 1 else f"{family} {level:.2g}" for family, level in levels.items()]
    decided = [f"{finding['contrast']} {finding['verdict']}" for finding in look["findings"]]
    saved = look["saved"]
    told = f"{saved['runs']} runs, {number(saved['tokens'])} tokens, {duration(saved['seconds'])}"
    stopped = ", ".join(look["stopped"]) or "none"
    return [str(n_seeds), ", ".join(shown), ", ".join(decided) or "nothing", stopped, told if saved["runs"] else "—"]


def means(report: Report, metric: str) -> Table:
    """Every seed's mean of every condition and suite; a log perplexity is shown as the perplexity that it means."""
    order = report.conditions
    cells = sorted((c for c in report.cells if c.metric == metric), key=lambda cell: order.index(cell.condition))
    rows = [
        [
            cell.condition,
            cell.suite,
            _mean(cell.mean, metric),
            ", ".join(f"{_seed(seed.seed)} {_mean(seed.mean, metric)}" for seed in cell.seeds),
            _span(seed.items for seed in cell.seeds),
            str(sum(seed.missing for seed in cell.seeds)),
        ]
        for cell in cells
    ]
    head = "perplexity (token-weighted)" if metric == "log_perplexity" else "mean of seeds"
    return ["condition", "test set", head, "each seed", "items", "missing"], rows


def _mean(mean: float | None, metric: str) -> str:
    return number(math.exp(mean) if mean is not None and metric == "log_perplexity" else mean, 4)


def _seed(seed: int | None) -> str:
    return "frozen:" if seed is None else f"seed {seed}:"


def suites(report: Report) -> Table:
    """The test sets."""
    rows = [
        [
            name,
            number(suite.get("items")),
            number(suite.get("groups")),
            suite.get("description") or "not recorded",
            _short(suite.get("hash")),
        ]
        for name, suite in (report.section("suites") or {}).items()
    ]
    return ["test set", "items", "groups", "what it is", "hash"], rows


def selections(report: Report) -> Table:
    """What each condition trains on; a range where its seeds differ."""
    by_condition: dict[str, list[Mapping[str, Any]]] = {}
    for selection in report.section("data", "selections") or []:
        by_condition.setdefault(selection["condition"], []).append(selection)
    rows = []
    for condition, members in by_condition.items():
        keys = ("examples", "groups", "turns", "tokens", "tokens_cut")
        figures = [_span(member.get(key) for member in members) for key in keys]
        runs = [run for run in report.section("runs") or [] if run["condition"] == condition]
        identities = list(dict.fromkeys(_short(member.get("key")) for member in members))
        one = identities[0] if len(identities) == 1 else f"{len(identities)} selections"
        rows.append([condition, *figures, _span(run.get("steps") for run in runs), one])
    heads = ["condition", "examples", "groups", "turns", "tokens", "tokens cut off", "optimiser steps", "selection"]
    return heads, rows


def pool(report: Report) -> list[tuple[str, str]]:
    """What was read, kept and dropped, in this order, then everything else that is known of the pool."""
    section = report.section("data", "pool") or {}
    first = [key for key in ("source", "rows", "kept", "dropped", "reasons") if key in section]
    return flat({key: section[key] for key in [*first, *(key for key in section if key not in first)]})


def scored(report: Report) -> list[tuple[str, str]]:
    """How many rows were scored and passed the gate, and what was flagged."""
    section = report.section("data", "scores") or {}
    rows = flat({key: section.get(key) for key in ("rows", "passed", "max_length")})
    rows += [(f"gate: {reason}", number(n)) for reason, n in section.get("gate", {}).items()]
    return rows + [(f"flag: {flag['dimension']}", flag["reason"]) for flag in section.get("flags", [])]


def score_facts(dimensions: Mapping[str, Mapping[str, Any]]) -> Table:
    """Spread of every dimension of the score and the share of rows without a value of their own."""
    rows = [
        [
            name,
            number(facts.get("mean"), 3),
            number(facts.get("std"), 3),
            _percent(facts.get("share_missing")),
            _percent(facts.get("share_default")),
            "flagged" if facts.get("flagged") else "",
        ]
        for name, facts in dimensions.items()
    ]
    return ["dimension", "mean", "standard deviation", "missing", "at default", ""], rows


@dataclass(frozen=True)
class Fact:
    """One realised fact of a condition, over its seeds."""

    text: str
    matches: bool


def realised(runs: Sequence[RunFacts]) -> tuple[list[str], list[tuple[str, list[Fact]]]]:
    """(names of the facts, (condition, its facts)): what was realised, with the plan where it differs."""
    recorded = [run for run in runs if run.realised is not None or run.planned is not None]
    names = list(dict.fromkeys(key for run in recorded for part in (run.planned, run.realised) for key in part or ()))
    rows = []
    for condition in dict.fromkeys(run.condition for run in recorded):
        members = [run for run in recorded if run.condition == condition]
        rows.append((condition, [_fact(members, name) for name in names]))
    return names, rows


def _fact(members: Sequence[RunFacts], name: str) -> Fact:
    got = [(run.realised or {}).get(name) for run in members]
    if any(name in run.mismatches for run in members):
        return Fact(f"{_span(got)}; planned {_span((run.planned or {}).get(name) for run in members)}", False)
    return Fact(_span(got), True)


def mismatches(runs: Sequence[RunFacts]) -> list[str]:
    """A sentence per run and fact where plan and reality differ."""
    return [
        f"{run.condition}, seed {run.seed}: {key.replace('_', ' ')} {_value((run.realised or {})[key])} instead of "
        f"{_value((run.planned or {})[key])}"
        for run in runs
        for key in run.mismatches
    ]


def reuse(report: Report) -> Table:
    """Runs with the same decision and reason in one row."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in report.section("runs") or []:
        key = (run["condition"], run.get("decision") or "not recorded", run.get("reason") or "", run["status"])
        groups.setdefault(key, []).append(run)
    rows = []
    for (condition, decision, reason, status), members in groups.items():
        saved = [run["saves_s"] for run in members if run.get("saves_s")]
        listed = ", ".join(str(run["seed"]) for run in members)
        rows.append([condition, listed, decision, reason, duration(sum(saved)) if saved else "—", status])
    return ["condition", "seeds", "decision", "why", "saves", "status"], rows


def flat(table: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested table as (path of keys, text) pairs."""
    if isinstance(table, Mapping):
        return [
            pair for key, value in table.items() for pair in flat(value, f"{prefix}: {key}" if prefix else str(key))
        ]
    return [(prefix.replace("_", " "), _value(table))]


def _span(values: Iterable[Any]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "not recorded"
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found):
        low, high = min(found), max(found)
        return number(low) if low == high else f"{number(low)} to {number(high)}"
    return ", ".join(dict.fromkeys(_value(value) for value in found))


def _value(value: Any) -> str:
    if value is None or value == "":
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, (list, tuple)):
        if not value:
            return "none"
        return ", ".join(_value(inner) for inner in value)
    return str(value)


def _percent(share: float | None) -> str:
    return "not recorded" if share is None else f"{100 * share:.3g} %"


def _short(key: str | None) -> str:
    return key[:10] if key else "not recorded"
