"""What a report is made of: a campaign's manifest, outcomes, run records and findings, brought into one shape.

Only descriptions are computed here (means and ranges per seed); every claim is a `Finding` made by `analyze`.
A section that the campaign did not record is None and stays so: the page says "not recorded".
"""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetrial.analyze.contrast import Finding
from finetrial.analyze.judged import People
from finetrial.analyze.metrics import known, pass_at
from finetrial.analyze.prepare import read_arm
from finetrial.analyze.table import Dense, OutcomeTable
from finetrial.campaign.interim import next_look
from finetrial.errors import UserError
from finetrial.report.completions import Sample
from finetrial.report.forgetting import Forgetting
from finetrial.report.measured import Figure
from finetrial.report.sampled_sets import SampledSet
from finetrial.report.theme import count

VERDICTS = ("CONFIRMED", "FAILED", "INCONCLUSIVE", "INVALID")


@dataclass(frozen=True)
class SeedMean:
    """One dot: weighted mean over the items of a suite, of one run."""

    seed: int | None
    mean: float | None
    """None when no item has a value."""
    items: int
    """Items with a value."""
    missing: int
    """Items without a value."""


@dataclass(frozen=True)
class Cell:
    """One condition on one suite, in one metric."""

    condition: str
    suite: str
    metric: str
    seeds: tuple[SeedMean, ...]

    @property
    def values(self) -> list[float]:
        """The seeds' means that exist."""
        return [seed.mean for seed in self.seeds if seed.mean is not None]

    @property
    def mean(self) -> float | None:
        """Mean of the seeds' means."""
        return float(np.mean(self.values)) if self.values else None


@dataclass(frozen=True)
class RunFacts:
    """What one run left in its folder; None where it left nothing."""

    condition: str
    seed: int
    planned: Mapping[str, Any] | None
    realised: Mapping[str, Any] | None
    curve: tuple[Mapping[str, Any], ...]
    """Rows of `metrics.jsonl`."""
    stopped_at: int | None = None
    """Step after which its guard ended it."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """All of `record.json`."""

    @property
    def mismatches(self) -> list[str]:
        """Facts that were planned and realised with different values; a run that was stopped may be shorter."""
        if self.planned is None or self.realised is None:
            return []
        shorter = () if self.stopped_at is None else ("steps", "rows", "distinct_rows")
        both = [key for key in self.planned if key in self.realised and key not in shorter]
        return [key for key in both if not _same(self.planned[key], self.realised[key])]


@dataclass(frozen=True)
class Report:
    """Everything that the page, the Markdown and the machine's twin are rendered from."""

    manifest: Mapping[str, Any]
    findings: tuple[Finding, ...]
    cells: tuple[Cell, ...]
    runs: tuple[RunFacts, ...]
    unjudged: tuple[str, ...] = ()
    """Declared contrasts whose conditions or suites have no outcomes (yet)."""
    snapshots: tuple[Cell, ...] = ()
    """Cells of suites `<suite>@<step>`: a suite on the way, kept apart from those of trained conditions."""
    samples: tuple[Sample, ...] = ()
    """A few completions of training per condition."""
    sets: tuple[SampledSet, ...] = ()
    """A few sets of completions per condition."""
    figures: tuple[Figure, ...] = ()
    """Means with intervals of every condition on every suite in every metric."""
    forgetting: Forgetting | None = None
    """Every condition against the base; None where nothing was evaluated."""
    people: tuple[People, ...] = ()
    unused_labels: tuple[str, ...] = ()
    """Why people's labels of a suite could not be used."""
    """Judged contrasts corrected by people's labels."""

    def section(self, *path: str) -> Any:
        """A part of the manifest, or None where it was not recorded."""
        part: Any = self.manifest
        for key in path:
            part = part.get(key) if isinstance(part, Mapping) else None
        return None if part in ({}, [], "") else part

    @property
    def alpha(self) -> float | None:
        """Declared error rate of a family."""
        return self.section("spec", "analysis", "alpha")

    @property
    def primary_metric(self) -> str | None:
        """Metric of contrasts that name none."""
        return self.section("spec", "campaign", "primary_metric")

    @property
    def next_look(self) -> str | None:
        """`next look at 5 of 8 seeds` while planned looks are ahead; until then undecided contrasts show nothing."""
        return next_look(self.manifest)

    @property
    def metrics(self) -> list[str]:
        """Metrics with outcomes, the primary one first."""
        found = list(dict.fromkeys(cell.metric for cell in self.cells))
        return sorted(found, key=lambda metric: metric != self.primary_metric)

    @property
    def charted(self) -> list[str]:
        """Metrics that get charts: the primary one and those of the contrasts; the others get a table."""
        judged = {finding.metric for finding in self.findings}
        return [metric for metric in self.metrics if metric in {*judged, self.primary_metric}] or self.metrics[:1]

    @property
    def conditions(self) -> list[str]:
        """Conditions in declared order, the base first; those that only outcomes name come last."""
        declared = self.section("conditions") or []
        measured = list(dict.fromkeys(cell.condition for cell in self.cells))
        return [*declared, *(name for name in measured if name not in declared)]

    @property
    def suites(self) -> list[str]:
        """Suites in declared order."""
        declared = list(self.section("suites") or {})
        measured = list(dict.fromkeys(cell.suite for cell in self.cells))
        return [*(n for n in declared if n in measured), *(n for n in measured if n not in declared)]

    @property
    def failed_checks(self) -> list[Mapping[str, Any]]:
        """Integrity checks that did not pass."""
        return [check for check in self.section("integrity") or [] if not check["passed"]]

    @property
    def counts(self) -> dict[str, int]:
        """Verdict -> number of contrasts that are not exploratory."""
        return _counted(finding for finding in self.findings if not is_exploratory(finding))

    def cell(self, condition: str, suite: str, metric: str) -> Cell | None:
        """The measurements of a condition on a suite, if there are any."""
        key = (condition, suite, metric)
        return next((c for c in self.cells if (c.condition, c.suite, c.metric) == key), None)

    def base_mean(self, suite: str, metric: str) -> float | None:
        """Mean of the frozen base on a suite."""
        cell = self.cell("base", suite, metric)
        return cell.mean if cell else None


def _counted(findings: Iterable[Finding]) -> dict[str, int]:
    counted = Counter(finding.verdict for finding in findings)
    return {verdict: counted[verdict] for verdict in VERDICTS}


def is_exploratory(finding: Finding) -> bool:
    """Whether it is a hint for the next campaign and no result of this one.

    So are contrasts of a family called exploratory, and those whose false discoveries alone are controlled.
    """
    return finding.family.casefold().startswith("explor") or finding.correction.startswith("Benjamini")


def better_of(report: Report, metric: str) -> str | None:
    """`higher` or `lower` as the findings on this metric say, else as known of it; None where nothing is known."""
    declared = next((finding.better for finding in report.findings if finding.metric == metric), None)
    fact = known(metric)
    return declared or (fact.better if fact else None)


def family_title(finding: Finding) -> str:
    """A family with its size and how its error rate is controlled."""
    how = "not corrected" if finding.correction == "none" else f"correction: {finding.correction}"
    return f"Family “{finding.family}”: {count(finding.family_size, 'contrast')}, {how}"


def oriented(finding: Finding, interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval with its sign turned where lower is better, so that larger means improvement."""
    if interval is None or finding.better == "higher":
        return interval
    return -interval[1], -interval[0]


def summarise(table: OutcomeTable, judged: Iterable[str] = ()) -> tuple[Cell, ...]:
    """Means of every (condition, suite, metric, seed) over its items, with the weights that the judge gives them.

    Args:
        table: outcomes.
        judged: metrics of findings; a `pass@k` among them that has no rows of its own comes from `correct`, where
            every item has k samples.
    """
    keys = itertools.product(table.conditions, table.suites, table.metrics)
    cells = [_cell(*key, table.dense(*key)) for key in keys if table.has(*key)]
    for metric in sorted(set(judged) - set(table.metrics)):
        for condition, suite in itertools.product(table.conditions, table.suites):
            if table.has(condition, suite, "correct") and _samples(table, condition, suite) >= (pass_at(metric) or 1):
                cells.append(_cell(condition, suite, metric, read_arm(table, condition, suite, metric)))
    return tuple(cells)


def _samples(table: OutcomeTable, condition: str, suite: str) -> int:
    """Fewest graded samples of an item that has any."""
    count_SI = table.dense(condition, suite, "correct").count_SI
    return int(count_SI[count_SI > 0].min(initial=np.inf)) if (count_SI > 0).any() else 0


def apart(cells: Iterable[Cell], suites: Iterable[str]) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """(cells of suites, cells of snapshots `<suite>@<step>` of a suite that is declared or measured)."""
    cells = tuple(cells)
    names = {*suites, *(cell.suite for cell in cells)}
    way = {name for name in names if (match := _SNAPSHOT.fullmatch(name)) and match[1] in names}
    return tuple(c for c in cells if c.suite not in way), tuple(c for c in cells if c.suite in way)


_SNAPSHOT = re.compile(r"(.+)@(\d+)")


def snapshot_of(suite: str) -> tuple[str, int]:
    """(suite, step) of a snapshot's name `<suite>@<step>`. Raises ValueError for another name."""
    match = _SNAPSHOT.fullmatch(suite)
    if match is None:
        raise ValueError(f"{suite!r} is no name of a snapshot")
    return match[1], int(match[2])


def _cell(condition: str, suite: str, metric: str, dense: Dense) -> Cell:
    present_SI = ~np.isnan(dense.values_SI)
    weight_SI = dense.weight_I * present_SI
    total_S = (weight_SI * np.where(present_SI, dense.values_SI, 0.0)).sum(1)
    mass_S = weight_SI.sum(1)
    seeds = [
        SeedMean(
            seed=seed,
            mean=float(total_S[s] / mass_S[s]) if mass_S[s] > 0 else None,
            items=int(present_SI[s].sum()),
            missing=int((~present_SI[s]).sum()),
        )
        for s, seed in enumerate(dense.seeds)
    ]
    return Cell(condition, suite, metric, tuple(seeds))


def read_runs(folder: Path, manifest: Mapping[str, Any]) -> tuple[RunFacts, ...]:
    """Records and training metrics of the manifest's runs; runs without a folder keep None.

    Raises:
        UserError: a record or a complete line of metrics is not JSON.
    """
    return tuple(_read_run(folder, run) for run in manifest.get("runs", []))


def _read_run(folder: Path, run: Mapping[str, Any]) -> RunFacts:
    place = folder / run["folder"]
    record = read_json(place / "record.json") if (place / "record.json").is_file() else {}
    metrics = place / "metrics.jsonl"
    curve = tuple(_lines(metrics)) if metrics.is_file() else ()
    end = (record.get("stopping") or {}).get("stopped_at")
    planned, realised = record.get("planned"), record.get("realised")
    return RunFacts(run["condition"], run["seed"], planned, realised, curve, end, record)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for k, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            return  # a run in progress is writing this line
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {k}: expected one JSON object per line, got {line[:60]!r}") from error


def read_json(path: Path) -> Any:
    """A JSON file. Raises UserError naming file and place when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: expected JSON: {error.msg}") from error


def _same(planned: Any, realised: Any) -> bool:
    if isinstance(planned, float) or isinstance(realised, float):
        return math.isclose(planned, realised, rel_tol=1e-9)
    return planned == realised


def twin(report: Report) -> dict[str, Any]:
    """The report for machines: strict JSON (a number that is not finite becomes null)."""
    runs = report.section("runs") or []
    reuse_keys = ("condition", "seed", "status", "decision", "reason", "saves_s", "train_key", "cohort")
    content = {
        "finetrial": report.section("finetrial"),
        "campaign": report.section("campaign"),
        "status": report.section("status"),
        "question": report.section("spec", "campaign", "question"),
        "hypothesis": report.section("spec", "campaign", "hypothesis"),
        "decision_rule": report.section("spec", "campaign", "decision_rule"),
        "analysis": report.section("spec", "analysis"),
        "verdicts": report.counts,
        "verdicts_exploratory": _counted(finding for finding in report.findings if is_exploratory(finding)),
        "contrasts": [asdict(finding) | {"exploratory": is_exploratory(finding)} for finding in report.findings],
        "people": [asdict(one) for one in report.people],
        "unused_labels": list(report.unused_labels),
        "unjudged": list(report.unjudged),
        "looks": None if not report.section("looks") else report.section("looks") | {"next": report.next_look},
        "conditions": [_cell_record(report, cell) for cell in report.cells],
        "suites": report.section("suites"),
        "squeeze": report.section("squeeze"),
        "integrity": report.section("integrity"),
        "reuse": [{key: run.get(key) for key in reuse_keys} for run in runs] or None,
        "planned_and_realised": [_run_record(run) for run in report.runs] or None,
        "timing": report.section("timing"),
        "provenance": report.section("provenance"),
    }
    return finite(content)


def _run_record(run: RunFacts) -> dict[str, Any]:
    facts = {"condition": run.condition, "seed": run.seed, "planned": run.planned, "realised": run.realised}
    return facts | {"mismatches": run.mismatches}


def _cell_record(report: Report, cell: Cell) -> dict[str, Any]:
    base = report.base_mean(cell.suite, cell.metric)
    difference = None if base is None or cell.mean is None or cell.condition == "base" else cell.mean - base
    record = {"condition": cell.condition, "suite": cell.suite, "metric": cell.metric, "n_seeds": len(cell.values)}
    return record | {
        "mean_of_seeds": cell.mean,
        "difference_to_base": difference,
        "seeds": [asdict(seed) for seed in cell.seeds],
    }


def finite(value: Any) -> Any:
    """The same structure in plain JSON types, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if isinstance(value, np.generic):
        return finite(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
