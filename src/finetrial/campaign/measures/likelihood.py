"""Suites of kind `perplexity`: how likely given text is, and how far a model has gone from the base on it."""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import pyarrow as pa

from finetrial.campaign.launch import Launch
from finetrial.campaign.measures.examinee import Examinee, fill, stored, suite_key
from finetrial.campaign.plan import Suite
from finetrial.errors import UserError
from finetrial.evaluate.perplexity import perplexity
from finetrial.evaluate.progress import Progress
from finetrial.model.render import render_batch
from finetrial.records import Example, Outcome

STAGE = "evaluate"


def measure(launch: Launch, suite: Suite, examinees: Sequence[Examinee]) -> None:
    """Measure the models that lack the suite and store an artefact for each."""
    fill(launch, suite, STAGE, examinees, lambda sweep: _likelihoods(launch, suite, sweep), {"metric": suite.kind})


def outcomes(launch: Launch, suite: Suite, one: Examinee) -> list[Outcome]:
    """Five metrics per item; a value is missing where the item was not measured.

    `nll`: mean nats per supervised token, each item weighing the same (the unit that is paired). `log_perplexity`:
    the same values weighted by tokens, so that exp of their mean is the token-weighted perplexity.
    `bits_per_byte`: weighted by bytes, comparable between tokenizers. `kl_to_base` and `kl_from_base`: mean over
    supervised tokens of KL(base || model) and of KL(model || base), the gauge of forgetting (Shenfeld et al. 2025,
    arXiv:2509.04259); 0 for the base.
    """
    found = []
    for row in stored(launch, STAGE, suite_key(launch, STAGE, suite, one, {"metric": suite.kind})).to_pylist():
        tokens, size = row["tokens"], row["bytes"]
        known = row["nll"] is not None
        per_token = row["nll"] / tokens if known else None
        per_byte = row["nll"] / (log(2) * size) if known and size else None
        found += [
            one.outcome(suite, row["item"], row["group"], metric, value, weight=float(weight or 1))
            for metric, value, weight in (
                ("nll", per_token, 1),
                ("log_perplexity", per_token, tokens),
                ("bits_per_byte", per_byte, size),
                ("kl_to_base", row["kl_to_base"] / tokens if known else None, 1),
                ("kl_from_base", row["kl_from_base"] / tokens if known else None, 1),
            )
        ]
    return found


def _likelihoods(launch: Launch, suite: Suite, sweep: Sequence[Examinee]) -> list[pa.Table]:
    """Nats, tokens and bytes of each item under each model; null where an item cannot be rendered."""
    spec, base = launch.spec, launch.base
    examples = sorted(launch.prepared.suites[suite.of], key=lambda example: example.id)
    batch = render_batch((example.messages for example in examples), base.tokenizer, spec.model.max_length)
    items = {example.id: row for example, row in zip(examples, batch.rows, strict=True) if row is not None}
    if not items:
        raise UserError(f"suite {suite.name!r}: no item can be scored, for example: {batch.refused[0]}")
    adapters = [one.load() for one in sweep if one.folder is not None]
    with Progress(suite.name, len(items) * (1 + len(adapters))) as progress:
        scores = perplexity(base.model, adapters, items, spec.evaluation.batch_tokens, progress, gauge=True)
    assert scores.gauge is not None
    places = iter(range(1, 1 + len(adapters)))
    tables = []
    for one in sweep:
        g = 0 if one.folder is None else next(places)
        columns = {
            "nll": scores.nll_GK[g],
            "tokens": scores.tokens_K,
            "bytes": scores.bytes_K,
            "kl_to_base": scores.gauge.to_base_GK[g],
            "kl_from_base": scores.gauge.from_base_GK[g],
        }
        named = {"item": [example.id for example in examples], "group": [example.group for example in examples]}
        spread = {name: _spread(scores.items, values_K, examples) for name, values_K in columns.items()}
        tables.append(pa.table({**named, **spread}))
    return tables


def _spread(items: Sequence[str], values: np.ndarray, examples: Sequence[Example]) -> list[Any]:
    """Values by item in the order of all examples; None for one that could not be rendered."""
    known = dict(zip(items, values.tolist(), strict=True))
    return [known.get(example.id) for example in examples]
