"""Planned looks of a campaign (`[looks]`): what the next look needs, what it decides, and whom it stops.

Seed group by seed group: train and evaluate what the next look needs, judge the undecided contrasts at that look's
level, and stop the conditions that no undecided contrast names any more. A decided contrast keeps the finding of its
look for good. All of it is a function of the spec and the outcomes, so that a resumed campaign decides the same.
Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from finetrial.analyze import looks
from finetrial.analyze.contrast import Contrast, Finding
from finetrial.analyze.judge import judge
from finetrial.analyze.looks import Schedule
from finetrial.analyze.metrics import known
from finetrial.analyze.prepare import prepare
from finetrial.analyze.table import OutcomeTable
from finetrial.analyze.words import count
from finetrial.campaign.plan import Plan
from finetrial.campaign.spec import Spec
from finetrial.errors import UserError

ONE_PLAN = ("looks", "analysis", "contrasts")
"""Tables that may not change once a look was taken: the error rate holds for the looks that were planned."""


@dataclass(frozen=True)
class Look:
    """One look that was taken."""

    n_seeds: int
    """Seeds per condition."""
    levels: Mapping[str, float]
    """family -> error rate that its contrasts shared at this look."""
    findings: tuple[Finding, ...]
    """Contrasts that were decided here, or given up as futile; at the last look all that were left."""
    stopped: Mapping[str, str]
    """condition -> why no further seeds of it are trained."""

    def entry(self, seeds: Sequence[int], saved: Mapping[str, float]) -> dict[str, Any]:
        """The look as the manifest keeps it; `saved` says what was not trained."""
        findings = [asdict(finding) for finding in self.findings]
        shown = {**asdict(replace(self, findings=())), "findings": findings, "saved": dict(saved)}
        return {**shown, "seeds": list(seeds[: self.n_seeds])}


def sizes(spec: Spec) -> tuple[int, ...]:
    """Seeds per condition at which the campaign is judged; all of them, once, without `[looks]`."""
    n_seeds = len(spec.campaign.seeds)
    return (n_seeds,) if spec.looks is None else spec.looks.counts(n_seeds)


def part(decided: Plan, spec: Spec, n_seeds: int, taken: Sequence[Look]) -> Plan:
    """The runs of the first `n_seeds` seeds; of stopped conditions only those before they were stopped."""
    reach = {condition: look.n_seeds for look in taken for condition in look.stopped}
    place = {seed: position for position, seed in enumerate(spec.campaign.seeds)}
    runs = tuple(run for run in decided.runs if place[run.seed] < reach.get(run.condition, n_seeds))
    return replace(decided, runs=runs)


def undecided(spec: Spec, taken: Sequence[Look]) -> list[Contrast]:
    """Contrasts that no look has closed yet."""
    closed = {finding.contrast for look in taken for finding in look.findings}
    return [contrast for contrast in spec.contrasts if contrast.name not in closed]


def take(spec: Spec, n_seeds: int, table: OutcomeTable, taken: Sequence[Look], failed: Sequence[str]) -> Look:
    """Judge the undecided contrasts at the look of `n_seeds` seeds.

    Args:
        spec: with `[looks]`.
        n_seeds: finished seeds per condition.
        table: outcomes of these seeds.
        taken: the looks before.
        failed: messages of failed integrity checks.

    Raises:
        UserError: no look is planned here.
    """
    waiting = undecided(spec, taken)
    last = n_seeds == sizes(spec)[-1]
    levels, findings = {}, []
    for family in dict.fromkeys(contrast.family for contrast in waiting):
        schedule = schedule_of(spec, family)
        look = schedule.at(n_seeds)
        if look is None:
            raise UserError(f"no look is planned at {n_seeds} seeds; looks are at {', '.join(map(str, sizes(spec)))}")
        members = [contrast for contrast in waiting if contrast.family == family]
        ready = [contrast for contrast in members if _measured(contrast, table)]
        judged = judge(
            table,
            ready,
            spec.analysis.model_copy(update={"alpha": look.level}),
            primary_metric=spec.campaign.primary_metric,
            integrity=failed,
            given_up={family: len(members) - len(ready) + _futile(taken, family)},
        )
        levels[family] = look.level
        for contrast, finding in zip(ready, judged, strict=True):
            bet = _bet(spec, contrast, table) if spec.looks and spec.looks.futility and not last else None
            decision = looks.decide(schedule, n_seeds, finding, bet)
            if decision.stop:
                size = sum(other.family == family for other in spec.contrasts)
                how = f"{finding.correction}, alpha spent over {len(schedule.looks)} looks (O'Brien-Fleming type)"
                findings.append(replace(finding, reason=decision.reason, family_size=size, correction=how))
    now = Look(n_seeds, levels, tuple(findings), {})
    return now if last else replace(now, stopped=_stopped(spec, [*taken, now]))


def schedule_of(spec: Spec, family: str) -> Schedule:
    """Levels of a family's looks; where designs differ within it, the stricter level of each look."""
    members = [contrast for contrast in spec.contrasts if contrast.family == family]
    n_seeds = len(spec.campaign.seeds)
    kinds = {spec.analysis.pairing == "seed" or "base" in (c.candidate, c.baseline) for c in members}
    schedules = [
        looks.plan(
            [n / n_seeds for n in sizes(spec)],
            spec.analysis.alpha,
            n_seeds=n_seeds,
            paired=paired,
            contrasts=1 if spec.analysis.correction == "none" else len(members),
        )
        for paired in sorted(kinds)
    ]
    strict = [min(same, key=lambda look: look.level) for same in zip(*(s.looks for s in schedules), strict=True)]
    return replace(schedules[0], looks=tuple(strict))


def _measured(contrast: Contrast, table: OutcomeTable) -> bool:
    """Whether there are outcomes of both conditions on the contrast's suites."""
    suites = {contrast.suite, contrast.minus_suite} - {None}
    return {contrast.candidate, contrast.baseline} <= {*table.conditions} and suites <= {*table.suites}


def _futile(taken: Sequence[Look], family: str) -> int:
    """Contrasts given up at earlier looks: never rejected, so they still count in their family."""
    closed = [finding for look in taken for finding in look.findings if finding.family == family]
    return sum(finding.verdict == "INCONCLUSIVE" for finding in closed)


def _bet(spec: Spec, contrast: Contrast, table: OutcomeTable) -> float | None:
    """Evidence against reaching the margin, seeds in the order of the spec; None where no fair bet can be made.

    None where runs do not come in pairs, or where a difference lies beyond the declared span.
    """
    assert spec.looks is not None
    p = prepare(table, contrast, spec.analysis, spec.campaign.primary_metric)
    fact = known(p.metric)
    span = spec.looks.span
    if span is None and fact is not None and fact.low is not None and fact.high is not None:
        span = fact.high - fact.low
    if p.estimate is None or p.invalid or span is None or not (p.paired or 0 in p.n_seeds):
        return None
    difference_S = p.candidate_S - p.baseline_S
    own = p.seeds[0] if p.n_seeds[0] else p.seeds[1]
    order = np.argsort([spec.campaign.seeds.index(seed) for seed in own if seed is not None])
    if (np.abs(difference_S) > span).any():
        return None
    return float(looks.e_process(difference_S[order], p.margin, span)[-1])


def _stopped(spec: Spec, taken: Sequence[Look]) -> dict[str, str]:
    """Conditions whose every contrast is closed, newly so at the last of these looks, with the reason.

    A condition that no contrast names goes on: it was asked for without a question that a look could answer.
    """
    verdicts = {finding.contrast: finding.verdict for look in taken for finding in look.findings}
    before = {condition for look in taken[:-1] for condition in look.stopped}
    stopped = {}
    for condition in spec.conditions:
        naming = [c.name for c in spec.contrasts if condition.name in (c.candidate, c.baseline)]
        if naming and condition.name not in before and all(name in verdicts for name in naming):
            told = ", ".join(f"{name} {verdicts[name]}" for name in naming)
            n = taken[-1].n_seeds
            stopped[condition.name] = f"stopped at the look of {n} seeds, no undecided contrast needs it: {told}"
    return stopped


def savings(decided: Plan, look: Look, records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What stopping at this look saves: runs, steps, and at the mean of each condition's finished runs tokens, seconds.

    Runs that lie finished in the store cost nothing and are not counted.
    """
    saved = {"runs": 0, "steps": 0, "tokens": 0, "seconds": 0.0}
    for condition in look.stopped:
        runs = [run for run in decided.runs if run.condition == condition]
        spared = [run for run in runs if run.name not in records and run.decision != "REUSE"]
        made = [records[run.name] for run in runs if run.name in records]
        saved["runs"] += len(spared)
        saved["steps"] += sum(run.steps for run in spared)
        saved["tokens"] += round(len(spared) * float(np.mean([record["realised"]["tokens"] for record in made])))
        saved["seconds"] += len(spared) * float(np.mean([record["seconds"] for record in made]))
    return saved


def carried(previous: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Looks that an earlier launch took at these very runs, until this launch takes them again.

    Raises:
        UserError: looks were taken, and what was planned for these runs was changed since.
    """
    taken = (previous or {}).get("looks", {}).get("taken", [])
    if previous is None or not taken:
        return []
    keys = [{run["train_key"] for run in of["runs"]} for of in (previous, manifest)]
    if not keys[0] & keys[1] or previous["suites"] != manifest["suites"]:
        return []
    changed = [name for name in ONE_PLAN if _plan_of(previous, name) != _plan_of(manifest, name)]
    changed += ["campaign.seeds"] if previous["seeds"] != manifest["seeds"] else []
    if changed:
        raise UserError(
            f"campaign {manifest['campaign']!r}: {count(len(taken), 'look')} at its outcomes already taken; changing "
            f"{', '.join(changed)} afterwards would break the error rate. Restore it, or give the campaign another "
            "name and other seeds"
        )
    return taken if keys[0] == keys[1] else []


def _plan_of(manifest: Mapping[str, Any], table: str) -> Any:
    """A table of the resolved spec, without what no verdict rests on."""
    value = manifest["spec"].get(table)
    if table != "analysis":
        return value
    return {key: part for key, part in value.items() if key not in ("variance", "effect", "labels")}


def failed_checks(manifest: Mapping[str, Any]) -> list[str]:
    """A message per integrity check that failed; any makes every verdict INVALID."""
    return [
        f"failed check “{check['check']}”: {check['detail'] or 'no detail recorded'}"
        for check in manifest.get("integrity", [])
        if not check["passed"]
    ]


def next_look(manifest: Mapping[str, Any]) -> str | None:
    """`next look at 5 of 8 seeds`; None where no looks are planned or none is left to take."""
    section = manifest.get("looks")
    if not section:
        return None
    closed = {finding["contrast"] for look in section["taken"] for finding in look["findings"]}
    left = [contrast["name"] for contrast in manifest["spec"]["contrasts"] if contrast["name"] not in closed]
    reached = section["taken"][-1]["n_seeds"] if section["taken"] else 0
    ahead = [n for n in section["planned"] if n > reached]
    return f"next look at {ahead[0]} of {section['planned'][-1]} seeds" if left and ahead else None
