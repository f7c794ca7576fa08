"""A contrast of judged outcomes, corrected by the labels of people.

Both tables are outcomes: condition, seed, suite, item, sample, metric, value. The judged one has every completion, the
labelled one those that people have graded too, in the same units (both in 0..1).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from finetrial.analyze.labels import Corrected, corrected_mean
from finetrial.errors import UserError, nearest
from finetrial.records import Outcome

Place = tuple[int | None, int]
"""Seed and sample: which of a condition's completions of an item."""


def corrected_contrast(
    judged: Iterable[Outcome],
    labels: Iterable[Outcome],
    candidate: str,
    baseline: str,
    suite: str,
    metric: str = "correct",
    level: float = 0.95,
) -> Corrected:
    """Mean difference candidate - baseline in the units of the labels, over the suite's items.

    Each item gives one difference: the mean over the candidate's completions minus that over the baseline's. Of a
    labelled item Y is the difference of people's grades and f that of the judge's grades of the very same completions;
    of the other items f is the judge's alone. `labels.corrected_mean` puts them together. Because what is corrected is
    the difference, a judge that errs otherwise on one condition than on the other is corrected too. The interval holds
    for these runs: it speaks of other items, not of other seeds.

    Args:
        judged: outcomes by the judge; what it left missing is no part of an item's mean.
        labels: outcomes by people under the same suite and metric, of items drawn at random; an item counts as
            labelled if it has labels in both conditions.

    Raises:
        UserError: no such condition, labels of completions that the judge did not grade, several suite hashes, labels
            outside of 0..1, or what `corrected_mean` raises (fewer than 3 labelled items).
    """
    rows = [one for one in judged if (one.suite, one.metric) == (suite, metric)]
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
    judge = _by_item(rows, (candidate, baseline))
    human = _by_item((one for one in labels if (one.suite, one.metric) == (suite, metric)), (candidate, baseline))
    labelled = [item for item in human if all(human[item][condition] for condition in (candidate, baseline))]
    for item in labelled:
        for condition in (candidate, baseline):
            strange = sorted(map(str, human[item][condition].keys() - judge.get(item, {}).get(condition, {}).keys()))
            if strange:
                raise UserError(f"item {item!r}: the judge gave no grade to {condition}'s completion {strange[0]}")
            if not all(0 <= value <= 1 for value in human[item][condition].values()):
                raise UserError(f"item {item!r}: a label of {condition} is outside 0..1; expected the judge's units")
    wanted = {item: {c: set(human[item][c]) for c in (candidate, baseline)} for item in labelled}
    human_L = [_difference(human[item], candidate, baseline, wanted[item]) for item in labelled]
    judge_L = [_difference(judge[item], candidate, baseline, wanted[item]) for item in labelled]
    judge_U = [
        _difference(mine, candidate, baseline, {c: set(mine[c]) for c in (candidate, baseline)})
        for item, mine in judge.items()
        if item not in wanted and mine[candidate] and mine[baseline]
    ]
    return corrected_mean(np.array(human_L), np.array(judge_L), np.array(judge_U), level)


def _by_item(rows: Iterable[Outcome], conditions: tuple[str, str]) -> dict[str, dict[str, dict[Place, float]]]:
    """Item -> condition -> completion -> value, without what is missing; items in the order of their names."""
    found: dict[str, dict[str, dict[Place, float]]] = defaultdict(lambda: {name: {} for name in conditions})
    for one in rows:
        if one.condition in conditions and one.value is not None:
            found[one.item][one.condition][one.seed, one.sample] = one.value
    return dict(sorted(found.items()))


def _difference(
    values: Mapping[str, Mapping[Place, float]], candidate: str, baseline: str, wanted: Mapping[str, set[Place]]
) -> float:
    return float(
        np.mean([values[candidate][place] for place in wanted[candidate]])
        - np.mean([values[baseline][place] for place in wanted[baseline]])
    )
