"""Supervised fine-tuning: the rows of a step and what each token weighs.

The loss of a run's step is the sum of the negative log-likelihoods of its supervised tokens divided by their
number in the whole step, so no split into passes changes a gradient.
"""

from collections.abc import Sequence

from finetrial.errors import UserError
from finetrial.model.loss import Stream, stream
from finetrial.train.batches import step_rows
from finetrial.train.lesson import Lesson, Row
from finetrial.train.runs import RunData


def streams(run: RunData) -> list[Stream]:
    """The token streams of a run's rows.

    Raises:
        UserError: none of them has a supervised token.
    """
    made = [stream(row, f"{run.name}, row {place}") for place, row in enumerate(run.rows)]
    if not any(len(row.target_M) for row in made):
        raise UserError(
            f"{run.name}: none of its {len(made)} rows has a supervised token; expected rows with assistant text "
            "(is the chat template's assistant mask empty, or model.max_length too small?)"
        )
    return made


def supervised_lesson(run: RunData, rows: Sequence[Stream], step: int) -> Lesson:
    """The rows of step `step` (0, 1, ...), each supervised token weighing the same."""
    chosen = [rows[place] for place in step_rows(run.seed, len(rows), run.train.batch_size, step)]
    taught = [row for row in chosen if len(row.target_M)]
    supervised = sum(len(row.target_M) for row in taught)
    tokens = sum(row.tokens for row in taught)
    facts = {"tokens": tokens, "supervised_tokens": supervised}
    update = tuple(Row(row, 1 / supervised) for row in taught)
    return Lesson((update,) if update else (), run.train.batch_size, tokens, supervised, facts)
