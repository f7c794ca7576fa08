"""Comparing conditions of anybody's outcomes: declared contrasts, or every condition against one baseline.

Recipes (several runs per condition) go to `judge`. Two single runs are two checkpoints: their difference is given with
its interval, and the verdict stays INCONCLUSIVE, because one run says nothing about the recipe that made it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from finetrial.analyze.checkpoints import UNIT, compare_checkpoints, is_checkpoint
from finetrial.analyze.contrast import AnalysisConfig, Contrast, Finding
from finetrial.analyze.families import adjusted_p
from finetrial.analyze.judge import LABELS, judge
from finetrial.analyze.metrics import Metric, direction, known, pass_at
from finetrial.analyze.readers.read import Reading
from finetrial.analyze.subsets import Subset, subset_risk
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError, nearest

EXPLORATORY = "exploratory"
_BASELINES = ("base", "baseline", "control")


@dataclass(frozen=True)
class Options:
    """What to compare and how."""

    baseline: str | None = None
    candidates: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    better: Literal["higher", "lower"] | None = None
    margin: float = 0.0
    alpha: float = 0.05
    family: str | None = None
    """Name of a declared family, corrected by Holm; default: exploratory, Benjamini-Hochberg."""
    pairing: Literal["seed", "none"] = "none"
    subset: int | None = None

    def config(self) -> AnalysisConfig:
        """How `judge` is to judge."""
        correction = "benjamini_hochberg" if self.family is None else "holm"
        return AnalysisConfig(alpha=self.alpha, margin=self.margin, correction=correction, pairing=self.pairing)


@dataclass(frozen=True)
class Compared:
    """Everything that `compare` found."""

    source: str
    format: str
    baseline: str
    findings: tuple[Finding, ...]
    groups: tuple[Finding, ...]
    """The same contrasts within each group of items; `suite` is the group."""
    by: str | None
    subsets: dict[str, Subset]
    """By contrast and metric: what random subsets of the items would show."""
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON types only: `contrasts`, `groups`, `subsets`, `notes`."""
        return {
            "source": self.source,
            "format": self.format,
            "baseline": self.baseline,
            "contrasts": [asdict(finding) for finding in self.findings],
            "by": self.by,
            "groups": [asdict(finding) for finding in self.groups],
            "subsets": {name: asdict(subset) for name, subset in self.subsets.items()},
            "notes": list(self.notes),
        }


def compare(reading: Reading, options: Options) -> Compared:
    """Compare every candidate with the baseline on every suite and metric.

    Raises:
        UserError: fewer than two conditions, no such baseline, candidate or metric, or nothing that both arms have.
    """
    table = reading.table
    notes = reading.sentences()
    baseline = _baseline(table, options, notes)
    config = options.config()
    contrasts = _contrasts(table, baseline, options, notes)
    findings = judge_any(table, contrasts, config)
    groups: list[Finding] = []
    if reading.groups is not None:
        within = _contrasts(reading.groups, baseline, options, [])
        family = f"{options.family or EXPLORATORY}, per {reading.by}"
        groups = judge_any(reading.groups, [_renamed(c, family) for c in within], config)
    subsets = {}
    if options.subset is not None:
        for contrast in contrasts:
            subset = _subset(reading, contrast, options.subset, config.alpha, notes)
            if subset is not None:
                subsets[f"{contrast.name} ({contrast.metric})"] = subset
    return Compared(
        reading.source, reading.format, baseline, tuple(findings), tuple(groups), reading.by, subsets, tuple(notes)
    )


def judge_any(table: OutcomeTable, contrasts: Sequence[Contrast], config: AnalysisConfig) -> list[Finding]:
    """Findings in the order of the contrasts: recipes by `judge`, pairs of single runs as checkpoints."""
    pairs = [i for i, c in enumerate(contrasts) if _single_runs(table, c)]
    rest = [i for i in range(len(contrasts)) if i not in set(pairs)]
    found = dict(zip(rest, judge(table, [contrasts[i] for i in rest], config, primary_metric=""), strict=True))
    found |= dict(zip(pairs, _checkpoints(table, [contrasts[i] for i in pairs], config), strict=True))
    return [found[i] for i in range(len(contrasts))]


def _single_runs(table: OutcomeTable, contrast: Contrast) -> bool:
    metric = contrast.metric or ""
    arms = [contrast.candidate, contrast.baseline]
    if not all(table.has(name, contrast.suite, metric) for name in arms):
        return False
    return all(is_checkpoint(table.dense(name, contrast.suite, metric)) for name in arms)


def _checkpoints(table: OutcomeTable, contrasts: Sequence[Contrast], config: AnalysisConfig) -> list[Finding]:
    """Findings about pairs of checkpoints, p-values adjusted within each family."""
    findings = [_checkpoint(table, contrast, config) for contrast in contrasts]
    for family in {finding.family for finding in findings}:
        members = [i for i, finding in enumerate(findings) if finding.family == family]
        plain = [findings[i].p_value for i in members]
        p_J = np.array([1.0 if p is None else p for p in plain])
        for i, p in zip(members, adjusted_p(p_J, config.correction), strict=True):
            adjusted = None if findings[i].p_value is None else float(p)
            findings[i] = replace(findings[i], p_adjusted=adjusted, family_size=len(members))
    return findings


def _checkpoint(table: OutcomeTable, c: Contrast, config: AnalysisConfig) -> Finding:
    metric = c.metric or ""
    a, b = (table.dense(name, c.suite, metric) for name in (c.candidate, c.baseline))
    better, fact = direction(metric, c.better), known(metric)
    result = None if a.suite_hashes != b.suite_hashes else compare_checkpoints(a, b, config.alpha)
    if a.suite_hashes != b.suite_hashes:
        verdict, reason = "INVALID", f"the suite '{c.suite}' is not the same for both: their values are not comparable"
    elif result is None:
        verdict, reason = "INCONCLUSIVE", f"no item of {c.suite} has a value of {metric} in both checkpoints"
    else:
        verdict, reason = "INCONCLUSIVE", _checkpoint_reason(c, result.ci, better)
    return Finding(
        contrast=c.name,
        question=c.question,
        candidate=c.candidate,
        baseline=c.baseline,
        suite=c.suite,
        minus_suite=None,
        metric=metric,
        better=better,
        margin=config.margin if c.margin is None else c.margin,
        estimate=result.estimate if result else None,
        ci=_within(result.ci, fact) if result else None,
        p_value=result.p_value if result else None,
        ci_adjusted=None,
        p_adjusted=None,
        standard_error=result.standard_error if result else None,
        df=result.df if result else None,
        test=result.test if result else "none",
        unit=UNIT,
        n_seeds=(0 if a.frozen else 1, 0 if b.frozen else 1),
        n_items=result.n_items if result else 0,
        n_missing=result.n_missing if result else 0,
        family=c.family,
        family_size=1,
        correction=LABELS[config.correction],
        verdict=verdict,
        subtype=None,
        reason=reason,
        seeds_needed=None,
    )


def _within(ci: tuple[float, float] | None, fact: Metric | None) -> tuple[float, float] | None:
    """The interval without differences that the metric's range makes impossible."""
    if ci is None or fact is None or fact.low is None or fact.high is None:
        return ci
    most = fact.high - fact.low
    return max(ci[0], -most), min(ci[1], most)


def _checkpoint_reason(c: Contrast, ci: tuple[float, float] | None, better: str) -> str:
    says = "one run each, so no verdict on the recipes"
    if ci is None:
        return f"{says}; the differences between the two checkpoints do not vary, so no interval exists"
    oriented = ci if better == "higher" else (-ci[1], -ci[0])
    if oriented[0] > 0:
        return f"{says}; of these two checkpoints {c.candidate} is the better one on items like these"
    if oriented[1] < 0:
        return f"{says}; of these two checkpoints {c.candidate} is the worse one on items like these"
    return f"{says}; these two checkpoints are not shown to differ on items like these"


def _baseline(table: OutcomeTable, options: Options, notes: list[str]) -> str:
    conditions = table.conditions
    for name in (options.baseline, *options.candidates):
        if name is not None and name not in conditions:
            raise UserError(f"no condition '{name}'{nearest(name, conditions)}; there are: {', '.join(conditions)}")
    if len(conditions) < 2:
        raise UserError(f"only one condition is there ({', '.join(conditions)}): nothing to compare it with")
    if options.baseline is not None:
        return options.baseline
    left = [name for name in conditions if name not in options.candidates]
    named = [name for name in _BASELINES if name in left]
    if named or len(left) == 1:
        return (named or left)[0]
    if len(conditions) == 2:
        notes.append(f"no baseline was named: '{left[0]}' is taken, the first by name")
        return left[0]
    raise UserError(f"--baseline is needed: which of {', '.join(left)} are the others compared with?")


def _contrasts(table: OutcomeTable, baseline: str, options: Options, notes: list[str]) -> list[Contrast]:
    """Every candidate against the baseline on every suite and metric that both have."""
    for metric in options.metrics:
        if metric not in table.metrics and pass_at(metric) is None:
            raise UserError(
                f"no metric '{metric}'{nearest(metric, table.metrics)}; there are: {', '.join(table.metrics)}"
            )
    metrics = options.metrics or table.metrics
    candidates = options.candidates or tuple(name for name in table.conditions if name != baseline)
    contrasts = []
    unknown: list[str] = []
    for suite in table.suites:
        for metric in metrics:
            stored = "correct" if pass_at(metric) is not None and metric not in table.metrics else metric
            for candidate in candidates:
                arms = [table.has(name, suite, stored) for name in (candidate, baseline)]
                if not all(arms):
                    if any(arms):
                        without = baseline if arms[0] else candidate
                        notes.append(
                            f"{without} has no outcomes of {suite}/{metric}: not compared with "
                            f"{candidate if arms[0] else baseline} there"
                        )
                    continue
                better = options.better
                if better is None and known(metric) is None:
                    plain = known(metric.split(",")[0].rsplit("/", 1)[-1])
                    better = plain.better if plain else "higher"
                    unknown += [] if plain else [metric]
                contrasts.append(
                    Contrast(
                        name=f"{candidate} vs {baseline} on {suite}",
                        candidate=candidate,
                        baseline=baseline,
                        suite=suite,
                        metric=metric,
                        better=better,
                        family=options.family or EXPLORATORY,
                    )
                )
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        notes.append(f"which direction is better is not known of {names}: taken as higher (--better lower turns it)")
    if not contrasts:
        raise UserError(f"{baseline} and {' and '.join(candidates)} share no suite and metric: nothing to compare")
    return contrasts


def _renamed(contrast: Contrast, family: str) -> Contrast:
    return contrast.model_copy(update={"family": family})


def _subset(reading: Reading, contrast: Contrast, n: int, alpha: float, notes: list[str]) -> Subset | None:
    """What random subsets of n items show of the items' mean differences."""
    metric = contrast.metric or ""
    if not all(reading.table.has(name, contrast.suite, metric) for name in (contrast.candidate, contrast.baseline)):
        return None
    a, b = (reading.table.dense(name, contrast.suite, metric) for name in (contrast.candidate, contrast.baseline))
    items = np.intersect1d(a.items, b.items)
    # Items without any value are rare and stay missing; their mean would only warn.
    means = [_item_means(d.values_SI)[np.searchsorted(d.items, items)] for d in (a, b)]
    both = ~np.isnan(means[0] - means[1])
    if not n < int(both.sum()):
        notes.append(f"{contrast.name}: {int(both.sum())} items are too few to draw subsets of {n} from")
        return None
    groups = None
    if reading.groups is not None:
        group_of = {
            str(item): suite
            for suite in reading.groups.suites
            if reading.groups.has(contrast.candidate, suite, metric)
            for item in reading.groups.dense(contrast.candidate, suite, metric).items
        }
        groups = [group_of.get(str(item), "none") for item in items[both]]
    return subset_risk((means[0] - means[1])[both], n, alpha, groups)


def _item_means(values_SI: np.ndarray) -> np.ndarray:
    """Mean over runs per item, NaN where no run has a value."""
    there_SI = ~np.isnan(values_SI)
    count_I = there_SI.sum(0)
    total_I = np.where(there_SI, values_SI, 0.0).sum(0)
    return np.divide(total_I, count_I, out=np.full(len(count_I), np.nan), where=count_I > 0)
