"""Supervised fine-tuning: the rows of a step and what each token weighs.

The loss of a run's step is the sum of the negative log-likelihoods of its supervised tokens divided by their
number in the whole step, so no split into passes changes a gradient. Where other rows are mixed into the selected
ones (mixture.py), they share that denominator.

Shapes: U steps, B rows of a step, R rows of a run's data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetrial.errors import UserError
from finetrial.model.loss import Stream, stream
from finetrial.model.render import Rendered
from finetrial.train.batches import rows_at
from finetrial.train.lesson import Lesson, Row
from finetrial.train.mixture import Blend, blend, verify
from finetrial.train.mixture_config import SELECTED
from finetrial.train.runs import Ledger, RunData


@dataclass(frozen=True)
class Course:
    """A run's rows and which of them form each step."""

    streams: Sequence[Stream]
    """The selected rows, then those of each part of a mixture, by its name."""
    parts: Mapping[str, range]
    """Part (the selected rows are `selected`) -> its places in `streams`."""
    order_UB: np.ndarray
    """int64 places in `streams`."""
    blend: Blend | None
    """What was planned to be mixed; None without a mixture."""

    def distinct(self, steps: int) -> dict[str, int]:
        """How many different rows of each part the first `steps` steps visit."""
        visited = np.unique(self.order_UB[:steps])
        return {name: int(((visited >= mine.start) & (visited < mine.stop)).sum()) for name, mine in self.parts.items()}


def course(run: RunData, steps: int) -> Course:
    """What a run reads in `steps` steps.

    Raises:
        UserError: no selected row has a supervised token, or a row of a mixture has none.
    """
    streams = _streams(run, SELECTED, run.rows)
    if not any(len(row.target_M) for row in streams):
        raise UserError(
            f"{run.name}: none of its {len(streams)} rows has a supervised token; expected rows with assistant text "
            "(is the chat template's assistant mask empty, or model.max_length too small?)"
        )
    batch_size, parts = run.train.batch_size, {SELECTED: range(len(streams))}
    if run.mixture is None:
        order_UB = np.array(rows_at(run.seed, len(streams), range(steps * batch_size))).reshape(steps, batch_size)
        return Course(streams, parts, order_UB, None)
    for part in run.mixture.config.by_name:
        mine = _streams(run, part.name, run.mixture.parts[part.name])
        parts[part.name] = range(len(streams), len(streams) + len(mine))
        streams += mine
    tokens = [np.array([len(streams[place].target_M) for place in mine]) for mine in parts.values()]
    for name, tokens_R in zip(parts, tokens, strict=True):
        if not len(tokens_R) or not tokens_R.all():
            raise UserError(
                f"{run.name}: part {name} of its mixture has {int((tokens_R == 0).sum())} of {len(tokens_R)} rows "
                "without a supervised token; expected rows that all have something to learn"
            )
    planned = blend(run.mixture.config, run.seed, tokens, batch_size, steps)
    first_G = np.array([mine.start for mine in parts.values()])
    order_UB = (first_G[planned.part_K] + planned.row_K).reshape(steps, batch_size)
    return Course(streams, parts, order_UB, planned)


def _streams(run: RunData, part: str, rows: Sequence[Rendered]) -> list[Stream]:
    of = "" if part == SELECTED else f"{part} "
    return [stream(row, f"{run.name}, {of}row {place}") for place, row in enumerate(rows)]


def lessons(
    runs: Sequence[RunData], courses: Mapping[int, Course], ledgers: Sequence[Ledger], step: int
) -> dict[int, Lesson]:
    """What every run that reads rows learns from in step `step` (0, 1, ...), by its place in the cohort.

    A run that its guard has stopped reads nothing more. One in quarantine reads on, so that the passes stay as they
    are for its neighbours, bit for bit.
    """
    return {
        n: supervised_lesson(runs[n], mine, step) if ledgers[n].stopped_at is None else Lesson((), 0, 0, 0, {})
        for n, mine in courses.items()
    }


def supervised_lesson(run: RunData, course: Course, step: int) -> Lesson:
    """The rows of step `step` (0, 1, ...), each supervised token weighing the same."""
    places = course.order_UB[step].tolist()
    taught = [row for row in (course.streams[place] for place in places) if len(row.target_M)]
    supervised = sum(len(row.target_M) for row in taught)
    tokens = sum(row.tokens for row in taught)
    facts = {"tokens": tokens, "supervised_tokens": supervised}
    if run.mixture is not None:
        for name, part in course.parts.items():
            mine = [course.streams[place] for place in places if place in part]
            facts |= {f"rows_{name}": len(mine), f"tokens_{name}": sum(len(row.target_M) for row in mine)}
    update = tuple(Row(row, 1 / supervised) for row in taught)
    return Lesson((update,) if update else (), run.train.batch_size, tokens, supervised, facts)


def count_parts(run: RunData, lesson: Lesson, ledger: Ledger) -> None:
    """Enter what a step has mixed."""
    names = () if run.mixture is None else run.mixture.config.names
    for name in names:
        counted = ledger.parts.setdefault(name, {"rows": 0, "tokens": 0})
        for unit in counted:
            counted[unit] += lesson.facts[f"{unit}_{name}"]


def verify_mixture(run: RunData, course: Course, ledger: Ledger) -> None:
    """Compare what a run was given with what was planned and asked for.

    Raises:
        RuntimeError: it is not the same.
    """
    if run.mixture is None or course.blend is None:
        return
    config = run.mixture.config
    given = {name: counted[config.unit] for name, counted in ledger.parts.items()}
    verify(run.name, config, course.blend, ledger.steps * run.train.batch_size, given)
