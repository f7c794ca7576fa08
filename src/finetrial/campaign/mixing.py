"""Mixtures of a campaign's runs: the rows that the loop gets, and what a record says of them."""

from typing import Any

from finetrial.campaign.launch import Launch
from finetrial.campaign.plan import Run
from finetrial.errors import UserError
from finetrial.model.render import render_batch
from finetrial.train.mixture import shares
from finetrial.train.mixture_config import SELECTED
from finetrial.train.runs import Mixture, RunData, TrainResult


def mixture(launch: Launch, run: Run) -> Mixture | None:
    """What is mixed into a run's rows; None without a mixture.

    Raises:
        UserError: a row cannot be trained on.
    """
    condition = launch.spec.condition(run.condition)
    if condition.mixture is None:
        return None
    parts = {}
    for name, part in run.parts.items():
        messages = (example.messages for example in part.examples)
        batch = render_batch(messages, launch.base.tokenizer, condition.model.max_length)
        if batch.refused:
            place, reason = next(iter(batch.refused.items()))
            raise UserError(
                f"{run.name}: {len(batch.refused)} of {len(batch.rows)} rows of part {name} cannot be trained on, "
                f"{part.ids[place]!r} first: {reason}"
            )
        parts[name] = [row for row in batch.rows if row is not None]
    return Mixture(condition.mixture, parts)


def mixture_facts(run: Run, data: RunData, mixture: Mixture, result: TrainResult) -> dict[str, Any]:
    """What was asked for and what was given, by part; shares are of rows or of supervised tokens, as the mixture says.

    Planned are the shares over the steps that the run went through, and the rows or tokens that they come to.
    """
    config, ledger = mixture.config, result.ledger
    unit = config.unit
    total = sum(given[unit] for given in ledger.parts.values())
    asked_U = shares(config, run.steps)[: ledger.steps]
    sizes = {SELECTED: len(data.rows), **{name: len(rows) for name, rows in mixture.parts.items()}}
    distinct = {SELECTED: result.distinct_rows, **result.part_rows}
    parts = {}
    for place, name in enumerate(config.names):
        given = ledger.parts.get(name, {"rows": 0, "tokens": 0})
        share = float(asked_U[:, place].mean()) if len(asked_U) else None
        parts[name] = {
            "planned": {"share": share, **({} if share is None else {unit: share * total})},
            "realised": {
                "share": given[unit] / total if total else None,
                "rows": given["rows"],
                "supervised_tokens": given["tokens"],
                "distinct_rows": distinct[name],
            },
            "rows": sizes[name],
        }
    return {"unit": unit, "parts": parts}
