"""Whether instruments measured anything, and whether tries have room to move: pure functions of outcomes.

Nothing here imports torch.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from finetrial.analyze.contrast import Contrast
from finetrial.analyze.passk import pass_at_k
from finetrial.campaign.folder import Say
from finetrial.campaign.settings import INSTRUMENTS
from finetrial.errors import UserError
from finetrial.evaluate.diversity import RARE, refuse_constant
from finetrial.records import Outcome

CEILING, FLOOR = 0.95, 0.05
"""Beyond these a share of solved tasks has no room to move."""


def alive(outcomes: Sequence[Outcome], contrasts: Iterable[Contrast], primary: str, say: Say) -> list[Outcome]:
    """Outcomes without those of instruments that told nothing apart over all items and models of a suite.

    Such an instrument (constant, 0 or missing everywhere) is no result: it is told and left out. `primary` is the
    metric of contrasts that name none.

    Raises:
        UserError: a contrast is on one.
    """
    values: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for one in outcomes:
        if one.metric in INSTRUMENTS:
            values[one.suite.partition("@")[0], one.metric].append(one.value)
    dead: dict[tuple[str, str], str] = {}
    for (suite, metric), found in values.items():
        if metric in RARE and any(value is not None for value in found):
            continue
        try:
            refuse_constant(found, metric)
        except UserError as error:
            dead[suite, metric] = str(error)
    for contrast in contrasts:
        for suite in (contrast.suite, contrast.minus_suite or contrast.suite):
            reason = dead.get((suite.partition("@")[0], contrast.metric or primary))
            if reason is not None:
                raise UserError(f"[[contrasts]] {contrast.name!r} on suite {suite!r}: {reason}")
    for (suite, _), reason in dead.items():
        say(f"[{suite}] {reason}; it is left out")
    return [one for one in outcomes if (one.suite.partition("@")[0], one.metric) not in dead]


def room(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Notes for the manifest's integrity table: conditions that solve nearly all tasks of a suite, or nearly none.

    For every suite with several samples, pass@k at 1 and at the most samples that every item has.
    """
    grades: dict[tuple[str, str], dict[tuple[int | None, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in outcomes:
        if one.metric == "correct" and one.value is not None and "@" not in one.suite:
            grades[one.suite, one.condition][one.seed, one.item].append(one.value)
    notes, looked = [], False
    for (suite, condition), cells in grades.items():
        most = min(map(len, cells.values()))
        if most < 2 or not {value for values in cells.values() for value in values} <= {0.0, 1.0}:
            continue  # one sample, or shares of a rubric
        looked = True
        count_C = np.array([len(values) for values in cells.values()])
        right_C = np.array([int(sum(values)) for values in cells.values()])
        for k in (1, most):
            share = float(pass_at_k(count_C, right_C, k).mean())
            if not FLOOR <= share <= CEILING:
                notes.append(f"{condition} on {suite}: pass@{k} is {share:.1%}")
    told = "; ".join(notes) or f"pass@k lies between {FLOOR:.0%} and {CEILING:.0%} everywhere"
    check = {"check": "pass@k has room to move", "passed": True, "warning": bool(notes), "detail": told}
    return [check] if looked else []
