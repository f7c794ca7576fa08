"""What acted beside the loss that runs were trained for: auxiliary terms, anchors, sets, mixtures, guards.

Only descriptions of what runs recorded are made here: what a term had of the gradient, how far an anchored run went
from the base, how varied sampled sets were, which rows a run was given, and what its guard saw.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetrial.report.facts import Report, RunFacts
from finetrial.report.learning import values
from finetrial.report.theme import count

WEAK, STRONG = 0.01, 0.9
"""Shares of the gradient below and above which a term is worth a warning."""
TERMS = {
    "anchor": "anchor to the base",
    "set_diversity": "set diversity",
    "entropy": "entropy bonus",
    "kl": "divergence in the policy’s loss",
}
"""Auxiliary terms in words; another one goes by its own name."""
ANCHORS = {"ref_student": "KL(base ‖ adapter)", "student_ref": "KL(adapter ‖ base)", "js": "Jensen–Shannon"}
"""Kinds of anchors as divergences."""


def by_condition(report: Report, runs: Iterable[RunFacts]) -> dict[str, list[RunFacts]]:
    """condition -> those of its runs, in the report's order."""
    given = list(runs)
    of = {name: [run for run in given if run.condition == name] for name in report.conditions}
    return {name: members for name, members in of.items() if members}


def condition_table(report: Report, condition: str, table: str) -> Mapping[str, Any] | None:
    """A resolved table of a condition; None where it has none."""
    for found in report.section("spec", "conditions") or []:
        if found.get("name") == condition:
            return found.get(table)
    return None


@dataclass(frozen=True)
class Pull:
    """What one auxiliary term did to the gradients of one condition, over its seeds."""

    condition: str
    term: str
    seeds: int
    shares: tuple[float, ...]
    """Of the gradient's norm, at every measured update of an adapter that had moved."""
    cosines: tuple[float, ...]
    """With the gradient of the main loss, at the updates where both are more than rounding."""
    target: float | None
    """The share that was asked for."""
    warnings: tuple[str, ...]
    """`seed 1, 2: ...` of the runs that tell so."""
    ended: tuple[str, ...]
    """`seed 1: ...` of runs that ended because the term had no gradient."""

    @property
    def share(self) -> float | None:
        """Median over updates and seeds."""
        return statistics.median(self.shares) if self.shares else None

    @property
    def flag(self) -> str:
        """What is odd about it, in a word or two."""
        if self.ended:
            return "no gradient at all: ended"
        if self.warnings:
            return "hardly acts" if not self.shares or max(self.shares) < STRONG else "leaves little else"
        return ""

    @property
    def cosine(self) -> float | None:
        """Median over updates and seeds."""
        return statistics.median(self.cosines) if self.cosines else None


def pulls(report: Report) -> list[Pull]:
    """One entry per condition and auxiliary term."""
    found = []
    for condition, runs in by_condition(report, (run for run in report.runs if run.record.get("terms"))).items():
        for term in sorted({term for run in runs for term in run.record["terms"]}):
            found.append(_pull(report, condition, term, [run for run in runs if term in run.record["terms"]]))
    return found


def _pull(report: Report, condition: str, term: str, runs: Sequence[RunFacts]) -> Pull:
    probes = [probe for run in runs for probe in run.record["terms"][term]["probes"]]
    asked = (condition_table(report, condition, term) or {}).get("gradient_share")
    return Pull(
        condition=condition,
        term=term,
        seeds=len(runs),
        shares=tuple(p["share"] for p in probes if p["moved"] and p["share"] is not None),
        cosines=tuple(p["cosine"] for p in probes if p["cosine"] is not None),
        target=asked,
        warnings=tuple(_together((run.seed, _rounded(run.record["terms"][term]["warning"])) for run in runs)),
        ended=tuple(_together((run.seed, run.record.get("reason")) for run in runs if _died_of(run, term))),
    )


def _rounded(warning: str | None) -> str | None:
    """A record's warning without the run's own figure, so that seeds say the same."""
    short = re.sub(r", at most [^:]+", "", warning or "")
    return re.sub(r"has [\d.]+% of the gradient, above (\d+%)", r"has more than \1 of the gradient", short) or None


def _died_of(run: RunFacts, term: str) -> bool:
    """Whether a run ended because this term taught nothing."""
    reason = run.record.get("reason") or ""
    return run.record.get("status") == "quarantined" and "teaches nothing" in reason and term in reason


def _together(told: Iterable[tuple[int, str | None]]) -> list[str]:
    """`seed 1, 2: sentence`, seeds with the same sentence in one."""
    seeds: dict[str, list[int]] = {}
    for seed, sentence in told:
        if sentence:
            seeds.setdefault(sentence, []).append(seed)
    return [f"seed{'s' if len(of) > 1 else ''} {', '.join(map(str, of))}: {words}" for words, of in seeds.items()]


@dataclass(frozen=True)
class AnchorFacts:
    """How the anchor of one condition acted, over its seeds, and how far its runs are from the base in the end."""

    condition: str
    kind: str | None
    """None: no anchor; listed for comparison."""
    peak: float | None
    """Greatest coefficient of any step."""
    tokens: float | None
    """Anchored tokens of a step, mean."""
    capped: float | None
    """Share of anchored tokens beyond the cap; None without a cap."""
    kl_last: float | None
    """Divergence per anchored token over the last quarter of the anchored steps, mean of the seeds, in nats."""
    lower_bound: bool
    held_out: dict[str, dict[str, float]]
    """suite -> metric -> mean of the seeds, nats per token."""


def anchors(report: Report) -> list[AnchorFacts]:
    """One entry per trained condition where any condition has an anchor; none where no run logged one."""
    anchored = {run.condition for run in report.runs if values(run, "anchor_coef")}
    if not anchored:
        return []
    return [_anchor(report, name, runs, name in anchored) for name, runs in by_condition(report, report.runs).items()]


def _anchor(report: Report, condition: str, runs: Sequence[RunFacts], has: bool) -> AnchorFacts:
    table = condition_table(report, condition, "anchor") or {}
    lasts = [[value for _, value in found[-math.ceil(len(found) / 4) :]] for run in runs if (found := _kl(run))]
    every = [row for run in runs for row in run.curve]
    held: dict[str, dict[str, float]] = {}
    for cell in report.cells:
        if cell.condition == condition and cell.metric in ("kl_to_base", "kl_from_base") and cell.mean is not None:
            held.setdefault(cell.suite, {})[cell.metric] = cell.mean
    return AnchorFacts(
        condition=condition,
        kind=table.get("kind", "not recorded") if has else None,
        peak=max((v for run in runs for _, v in values(run, "anchor_coef")), default=None),
        tokens=mean_of(v for run in runs for _, v in values(run, "anchor_tokens")),
        capped=mean_of(v for run in runs for _, v in values(run, "anchor_capped_share")),
        kl_last=mean_of(math.fsum(found) / len(found) for found in lasts),
        lower_bound=any(row.get("anchor_lower_bound") for row in every),
        held_out=held,
    )


def _kl(run: RunFacts) -> list[tuple[int, float]]:
    return values(run, "anchor_kl")


def mean_of(found: Iterable[float]) -> float | None:
    """Mean; None of nothing."""
    every = list(found)
    return math.fsum(every) / len(every) if every else None


@dataclass(frozen=True)
class SetFacts:
    """The sets of completions that one condition drew, over its seeds."""

    condition: str
    weight: float | None
    """λ as it was written; None where a share of the gradient sets it."""
    weight_last: tuple[float, ...]
    """λ in force at the last sampling, per seed."""
    sets: int
    equal: int
    """Sets that taught nothing: no completion was worth more than another."""
    missing: int
    tokens: int
    first: dict[str, float]
    """Mean diversity and quality at the first sampling, mean of the seeds."""
    last: dict[str, float]
    """Over the last samplings (three at most)."""
    warnings: tuple[str, ...]
    alarms: tuple[str, ...]
    """What the warnings are of: `collapse`, `saturated`."""


def sets(report: Report) -> list[SetFacts]:
    """One entry per condition that drew sets."""
    drawn = [run for run in report.runs if (run.realised or {}).get("set_diversity")]
    return [_sets(report, name, runs) for name, runs in by_condition(report, drawn).items()]


def _sets(report: Report, condition: str, runs: Sequence[RunFacts]) -> SetFacts:
    logs = [(run.realised or {})["set_diversity"] for run in runs]
    table = condition_table(report, condition, "set_diversity") or {}
    ends = [found[-1][1] for run in runs if (found := values(run, "set_weight"))]

    def mean(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
        given = [part for part in parts if part]
        return {key: math.fsum(p[key] for p in given) / len(given) for key in ("diversity", "quality") if given}

    asked = table.get("weight")
    return SetFacts(
        condition=condition,
        weight=1.0 if asked is None and table.get("gradient_share") is None else asked,
        weight_last=tuple(ends),
        sets=sum(log["sets"] for log in logs),
        equal=sum(log["equal_sets"] for log in logs),
        missing=sum(log["missing_sets"] for log in logs),
        tokens=sum(log["sampled_tokens"] for log in logs),
        first=mean(log["first"] for log in logs),
        last=mean(mean(log["recent"]) for log in logs),
        warnings=tuple(_together((run.seed, w) for run, log in zip(runs, logs, strict=True) for w in log["warnings"])),
        alarms=tuple(sorted({warning.partition(":")[0] for log in logs for warning in log["warnings"]})),
    )


@dataclass(frozen=True)
class PartFacts:
    """One part of a condition's mixture, over its seeds."""

    condition: str
    part: str
    unit: str
    asked: tuple[float, ...]
    """Share that was asked for over the steps that the run went through, per seed."""
    given: tuple[float, ...]
    """Share that it got, per seed."""
    rows: tuple[int, ...]
    tokens: tuple[int, ...]
    distinct: tuple[int, ...]
    available: tuple[int, ...]


def mixtures(report: Report) -> list[PartFacts]:
    """One entry per condition and part, the selected rows first."""
    found = []
    mixed = (run for run in report.runs if run.record.get("mixture"))
    for condition, runs in by_condition(report, mixed).items():
        mixes = [run.record["mixture"] for run in runs]
        names = dict.fromkeys(name for mix in mixes for name in mix["parts"])
        for name in sorted(names, key=lambda name: (name != "selected", name)):
            parts = [mix["parts"][name] for mix in mixes if name in mix["parts"]]
            got = [part["realised"] for part in parts]
            found.append(
                PartFacts(
                    condition,
                    name,
                    mixes[0]["unit"],
                    tuple(p["planned"]["share"] for p in parts if p["planned"]["share"] is not None),
                    tuple(p["share"] for p in got if p["share"] is not None),
                    tuple(p["rows"] for p in got),
                    tuple(p["supervised_tokens"] for p in got),
                    tuple(p["distinct_rows"] for p in got),
                    tuple(p["rows"] for p in parts),
                )
            )
    return found


@dataclass(frozen=True)
class GuardFacts:
    """What the guard of one run saw and did."""

    condition: str
    seed: int
    suite: str
    metric: str
    better: str
    ran: bool
    baseline: float | None
    floor: float | None
    """The value, in the metric's units, beyond which it stops the run."""
    watched: tuple[tuple[int, float | None], ...]
    """(step, value)."""
    best: tuple[int, float] | None
    last: tuple[int, float | None] | None
    stopped_at: int | None
    reason: str | None
    selected_step: int | None


def guards(report: Report) -> list[GuardFacts]:
    """One entry per guarded run, in the report's order."""
    guarded = by_condition(report, (run for run in report.runs if run.record.get("stopping")))
    return [_guard(report, run) for runs in guarded.values() for run in runs]


def _guard(report: Report, run: RunFacts) -> GuardFacts:
    seen = run.record["stopping"]
    margin = (condition_table(report, run.condition, "stopping") or {}).get("floor")
    base = seen["baseline"]
    floor = None if margin is None or base is None else base - margin if seen["better"] == "higher" else base + margin
    best, last = ((one["step"], one["value"]) if (one := seen[key]) else None for key in ("best", "last"))
    return GuardFacts(
        run.condition,
        run.seed,
        seen["suite"],
        seen["metric"],
        seen["better"],
        seen["ran"],
        base,
        floor,
        tuple((one["step"], one["value"]) for one in seen["watched"]),
        best,
        last,
        seen["stopped_at"],
        seen["reason"],
        seen["selected_step"],
    )


def warnings(report: Report) -> list[str]:
    """What of all this makes results doubtful, a sentence per condition and kind."""
    told = []
    for pull in pulls(report):
        told += [f"{pull.condition}, {sentence}." for sentence in (*pull.warnings, *pull.ended)]
    for drawn in sets(report):
        told += [f"{drawn.condition}, {sentence}." for sentence in drawn.warnings]
    idle: dict[tuple[str, str], list[int]] = {}
    for guard in guards(report):
        if not guard.ran:
            idle.setdefault((guard.condition, guard.suite), []).append(guard.seed)
    for (condition, suite), seeds in idle.items():
        told.append(f"{condition}: the guard on {suite} never measured {count(len(seeds), 'run')}; nothing watched it.")
    return told


def has_any(report: Report) -> bool:
    """Whether the campaign has anything of this kind."""
    return bool(pulls(report) or anchors(report) or sets(report) or mixtures(report) or guards(report))


def doubts(report: Report) -> list[str]:
    """One note at the top of the page for all of these warnings, which stand further below."""
    n = len(warnings(report))
    return (
        [f"{count(n, 'warning')} about what acted beside the main loss: see terms, mixtures and guards."] if n else []
    )


def facts(report: Report) -> dict[str, Any] | None:
    """The same for machines; None where the campaign has nothing of this kind."""
    if not has_any(report):
        return None
    return {
        "gradients": [asdict(pull) | {"share": pull.share, "cosine": pull.cosine} for pull in pulls(report)],
        "anchors": [asdict(anchor) for anchor in anchors(report)],
        "sets": [asdict(drawn) for drawn in sets(report)],
        "mixtures": [asdict(part) for part in mixtures(report)],
        "guards": [asdict(guard) for guard in guards(report)],
        "warnings": warnings(report),
    }
