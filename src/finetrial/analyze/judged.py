"""Contrasts of judged outcomes, corrected by the labels of people, and how far judge and people agree.

Both tables are outcomes: condition, seed, suite, item, sample, metric, value. The judged one has every completion, the
labelled one those that people have graded too, in the same units.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from finetrial.analyze.contrast import Finding
from finetrial.analyze.labels import Corrected, corrected_mean
from finetrial.analyze.verdict import decide
from finetrial.analyze.words import number
from finetrial.errors import UserError, nearest
from finetrial.judge.agreement import Agreement, cohen_kappa
from finetrial.records import Outcome

Place = tuple[int | None, int]
"""Seed and sample: which of a condition's completions of an item."""

Values = Mapping[str, Mapping[str, Mapping[Place, float]]]
"""Item -> condition -> completion -> value, without what is missing."""

SPEAKS_OF = "the items of these runs; of other seeds the verdict's own interval speaks"


@dataclass(frozen=True)
class People:
    """What people's labels make of one judged contrast; differences are candidate - baseline in units of the metric."""

    contrast: str
    candidate: str
    baseline: str
    suite: str
    metric: str
    corrected: Corrected | None
    """None where labels cannot correct it; `warnings` says why."""
    judge: float
    """The difference by the judge's grades alone, over the same items."""
    judge_ci: tuple[float, float]
    """Its interval over items (Student's t)."""
    level: float
    """Of all intervals here."""
    conclusion: str | None
    """What a verdict on `corrected` would be; the contrast's own verdict rests on seeds."""
    judge_conclusion: str
    kappa: Agreement | None
    """Cohen's, of judge and people, over labelled completions; None where either saw a single category."""
    weighted_kappa: Agreement | None
    """With quadratic weights; None where there are but two categories."""
    n_completions: int
    """Labelled completions."""
    speaks_of: str = SPEAKS_OF
    warnings: tuple[str, ...] = ()


def corrected_contrasts(
    findings: Sequence[Finding],
    judged: Sequence[Outcome],
    labels: Sequence[Outcome],
    bounds: Mapping[tuple[str, str], tuple[float, float]],
    level: float = 0.95,
    must: bool = True,
) -> list[People]:
    """What the labels make of each finding on their suites and metrics.

    Args:
        findings: of contrasts on judged suites. A difference in differences is not corrected.
        judged, labels: outcomes; those of other suites and metrics are of no effect.
        bounds: (suite, metric) -> least and greatest value.
        level: of the intervals.
        must: refuse labels of a suite that correct no finding; else each finding has a warning that says why not.

    Raises:
        UserError: labels of a metric that was not judged, what `check_labels` raises, or labels correct nothing.
    """
    found = []
    for suite, metric in sorted({(one.suite, one.metric) for one in labels}):
        mine = [one for one in labels if (one.suite, one.metric) == (suite, metric)]
        seen = [one for one in judged if (one.suite, one.metric) == (suite, metric)]
        if not seen:
            there = sorted({one.metric for one in judged if one.suite == suite})
            raise UserError(f"labels of suite {suite!r}: {metric!r} was not judged there; expected one of {there}")
        conditions, items = ({getattr(one, name) for one in seen} for name in ("condition", "item"))
        graded = {one.condition for one in seen if one.value is not None}
        check_labels(mine, conditions, items, bounds[suite, metric])
        on_it = [
            one
            for one in findings
            if (one.suite, one.metric, one.minus_suite) == (suite, metric, None)
            and {one.candidate, one.baseline} <= graded
        ]
        members = [_people(finding, seen, mine, bounds[suite, metric], level) for finding in on_it]
        if must and not any(one.corrected for one in members):
            why = members[0].warnings[0] if members else "no comparison is on it"
            labelled = sorted({one.condition for one in mine})
            raise UserError(
                f"labels of suite {suite!r} under {metric!r} correct nothing: {why}; labelled are {labelled}"
            )
        found += members
    place = {finding.contrast: k for k, finding in enumerate(findings)}
    return sorted(found, key=lambda one: place[one.contrast])


def check_labels(
    labels: Iterable[Outcome], conditions: Collection[str], items: Collection[str], bounds: tuple[float, float]
) -> None:
    """Refuse labels of one suite that cannot be right.

    Raises:
        UserError: no such condition or item, a value outside the bounds, or two labels of one completion.
    """
    seen: set[tuple[str, int | None, str, int]] = set()
    low, high = bounds
    for one in labels:
        for kind, name, known in (("condition", one.condition, conditions), ("item", one.item, items)):
            if name not in known:
                some = sorted(known)[:20]
                raise UserError(f"label of suite {one.suite!r}: no {kind} {name!r}{nearest(name, known)}; e.g. {some}")
        which = f"label of {one.condition}'s completion of item {one.item!r} (seed {one.seed}, sample {one.sample})"
        if one.value is not None and not low <= one.value <= high:
            raise UserError(
                f"{which}: {one.value:g} is outside {low:g}..{high:g}; expected the units of {one.metric!r}"
            )
        place = (one.condition, one.seed, one.item, one.sample)
        if place in seen:
            raise UserError(f"{which}: it is there twice; expected one label of a completion, such as the raters' mean")
        seen.add(place)


def corrected_contrast(
    judged: Iterable[Outcome],
    labels: Iterable[Outcome],
    candidate: str,
    baseline: str,
    suite: str,
    metric: str = "correct",
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Corrected:
    """Mean difference candidate - baseline in the units of the labels, over the suite's items.

    Each item gives one difference: the mean over the candidate's completions minus that over the baseline's. Of a
    labelled item Y is the difference of people's grades and f that of the judge's grades of the very same completions;
    of the other items f is the judge's alone. `labels.corrected_mean` puts them together. Because what is corrected is
    the difference, a judge that errs otherwise on one condition than on the other is corrected too. Items of one group
    (turns of a conversation) move together and count as one: their differences are averaged. The interval holds for
    these runs: it speaks of other items, not of other seeds.

    Args:
        judged: outcomes by the judge; what it left missing is no part of an item's mean.
        labels: outcomes by people under the same suite and metric, of items drawn at random; an item counts as
            labelled if it has labels in both conditions.
        bounds: least and greatest value of the metric.

    Raises:
        UserError: no such condition, labels of completions that the judge did not grade, several suite hashes, what
            `check_labels` refuses, or what `corrected_mean` raises (fewer than 3 labelled items).
    """
    rows = [one for one in judged if (one.suite, one.metric) == (suite, metric)]
    mine = [one for one in labels if (one.suite, one.metric) == (suite, metric)]
    _check_arms(rows, candidate, baseline, suite, metric)
    check_labels(mine, {one.condition for one in rows}, {one.item for one in rows}, bounds)
    human_L, judge_L, judge_U = _differences(rows, mine, candidate, baseline)
    if len(human_L) < 3:
        raise UserError(
            f"{candidate} against {baseline} on {suite!r}: {len(human_L)} items have labels in both conditions; at "
            "least 3 are required"
        )
    return corrected_mean(human_L, judge_L, judge_U, level)


def _people(
    finding: Finding, judged: Sequence[Outcome], labels: Sequence[Outcome], bounds: tuple[float, float], level: float
) -> People:
    """One finding beside its correction; labels that cannot correct it, such as too few, are told and harm no other."""
    a, b = finding.candidate, finding.baseline
    corrected, told = None, list[str]()
    try:
        corrected = corrected_contrast(judged, labels, a, b, finding.suite, finding.metric, level, bounds)
    except UserError as error:
        told.append(f"not corrected by people's labels: {error}")
    everything = _unit_means(_by_item(judged, (a, b)), _units(judged), a, b)
    alone_I = np.array([everything[unit] for unit in sorted(everything)])
    half = float(special.stdtrit(len(alone_I) - 1, (1 + level) / 2) * alone_I.std(ddof=1) / np.sqrt(len(alone_I)))
    judge = float(alone_I.mean())
    judge_ci = (judge - half, judge + half)
    alone = _conclusion(judge_ci, finding)
    people = None if corrected is None else _conclusion(corrected.ci, finding)
    if corrected is not None and people is not None:
        told += _warnings(finding, corrected, judge, judge_ci, people, alone)
    kappas, n = _agreement(judged, labels, (a, b), bounds, level)
    return People(
        contrast=finding.contrast, candidate=a, baseline=b, suite=finding.suite, metric=finding.metric,
        corrected=corrected, judge=judge, judge_ci=judge_ci, level=level, conclusion=people,
        judge_conclusion=alone, kappa=kappas[0], weighted_kappa=kappas[1], n_completions=n, warnings=tuple(told),
    )  # fmt: skip


def _conclusion(ci: tuple[float, float], finding: Finding) -> str:
    low, high = ci if finding.better == "higher" else (-ci[1], -ci[0])
    return decide(low, high, finding.margin)[0]


def _warnings(
    finding: Finding, corrected: Corrected, judge: float, judge_ci: tuple[float, float], people: str, alone: str
) -> list[str]:
    told = []
    by_people = f"{number(corrected.estimate)} ({number(corrected.ci[0])} to {number(corrected.ci[1])})"
    if judge * corrected.estimate < 0:
        told.append(f"judge and people disagree in sign: {number(judge)} by the judge's grades, {by_people} corrected")
    if finding.verdict in ("CONFIRMED", "FAILED") and people != finding.verdict:
        told.append(
            f"the verdict {finding.verdict} rests on the judge's grades; corrected by people's labels these runs are "
            f"{people}: {by_people}"
        )
    elif people != alone:
        told.append(
            f"by the judge's grades these runs are {alone} ({number(judge_ci[0])} to {number(judge_ci[1])}), corrected "
            f"by people's labels {people}: {by_people}"
        )
    return told


def _agreement(
    judged: Iterable[Outcome],
    labels: Iterable[Outcome],
    conditions: tuple[str, str],
    bounds: tuple[float, float],
    level: float,
) -> tuple[tuple[Agreement | None, Agreement | None], int]:
    """(plain and weighted kappa, labelled completions of the two conditions that both graded).

    The categories are the values that people gave and the ends of the scale; a judge's grade, often a mean over
    repeats, counts as the nearest of them.
    """
    judge, human = _by_item(judged, conditions), _by_item(labels, conditions)
    pairs = [
        (judge[item][condition][place], value)
        for item, of in human.items()
        for condition, mine in of.items()
        for place, value in mine.items()
        if place in judge.get(item, {}).get(condition, {})
    ]
    scale_C = np.unique([*bounds, *(value for _, value in pairs)])
    said = [scale_C[np.abs(scale_C - grade).argmin()] for grade, _ in pairs]
    meant = [value for _, value in pairs]
    if len({*said, *meant}) < 2:
        return (None, None), len(pairs)
    weighted = cohen_kappa(said, meant, "quadratic", level) if len(scale_C) > 2 else None
    return (cohen_kappa(said, meant, level=level), weighted), len(pairs)


def _check_arms(rows: Sequence[Outcome], candidate: str, baseline: str, suite: str, metric: str) -> None:
    known = sorted({one.condition for one in rows})
    for condition in (candidate, baseline):
        if condition not in known:
            raise UserError(
                f"no judged outcomes of {condition!r} on suite {suite!r} under {metric!r}{nearest(condition, known)}; "
                f"there are {known}"
            )
    hashes = sorted({one.suite_hash for one in rows if one.condition in (candidate, baseline)})
    if len(hashes) > 1:
        raise UserError(f"suite {suite!r} was judged under {len(hashes)} hashes; they are not comparable")


def _differences(
    judged: Sequence[Outcome], labels: Sequence[Outcome], candidate: str, baseline: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(people's differences of labelled units, the judge's of the same completions, the judge's of all other units)."""
    arms = (candidate, baseline)
    judge, human = _by_item(judged, arms), _by_item(labels, arms)
    unit_of = _units(judged)
    labelled = {item: of for item, of in human.items() if all(of[condition] for condition in arms)}
    graded: dict[str, dict[str, dict[Place, float]]] = {}
    for item, of in labelled.items():
        graded[item] = {}
        for condition in arms:
            known = judge.get(item, {}).get(condition, {})
            strange = sorted(map(str, of[condition].keys() - known.keys()))
            if strange:
                raise UserError(f"item {item!r}: the judge gave no grade to {condition}'s completion {strange[0]}")
            graded[item][condition] = {place: known[place] for place in of[condition]}
    people, same = (_unit_means(values, unit_of, candidate, baseline) for values in (labelled, graded))
    rest = {item: of for item, of in judge.items() if unit_of[item] not in people}
    others = _unit_means(rest, unit_of, candidate, baseline)
    order = sorted(people)
    return (
        np.array([people[unit] for unit in order]),
        np.array([same[unit] for unit in order]),
        np.array([others[unit] for unit in sorted(others)]),
    )


def _units(judged: Iterable[Outcome]) -> dict[str, str]:
    """Item -> its group, or itself where it has none."""
    return {one.item: one.item if one.group is None else one.group for one in judged}


def _by_item(rows: Iterable[Outcome], conditions: tuple[str, str]) -> dict[str, dict[str, dict[Place, float]]]:
    """Item -> condition -> completion -> value, without what is missing."""
    found: dict[str, dict[str, dict[Place, float]]] = defaultdict(lambda: {name: {} for name in conditions})
    for one in rows:
        if one.condition in conditions and one.value is not None:
            found[one.item][one.condition][one.seed, one.sample] = one.value
    return found


def _unit_means(values: Values, unit_of: Mapping[str, str], candidate: str, baseline: str) -> dict[str, float]:
    """Unit -> mean over its items of the difference of the means over completions; of items that both arms have."""
    found: dict[str, list[float]] = defaultdict(list)
    for item, of in values.items():
        if of[candidate] and of[baseline]:
            means = [float(np.mean([*of[condition].values()])) for condition in (candidate, baseline)]
            found[unit_of[item]].append(means[0] - means[1])
    return {unit: float(np.mean(differences)) for unit, differences in found.items()}
