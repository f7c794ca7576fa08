"""The data workshop and single evaluations, without a campaign."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from finetrial.data.read import read
from finetrial.data.score import ScoreConfig, ScoreTable, score
from finetrial.errors import UserError
from finetrial.evaluate.perplexity import bits_per_byte, mean_item_nll, perplexity, token_perplexity
from finetrial.evaluate.progress import Progress
from finetrial.model.base import load_base
from finetrial.model.config import ModelConfig
from finetrial.model.peft_format import load_peft
from finetrial.model.render import render_batch
from finetrial.model.source import locate
from finetrial.records import Example


def score_source(
    source: str, config: ScoreConfig, base: str, max_length: int
) -> tuple[list[Example], ScoreTable, dict[str, Any]]:
    """Read and score a pool: (rows that can be rendered, their scores in that order, facts of the reading).

    Raises:
        UserError: the source cannot be read, or no row can be rendered.
    """
    result = read(source)
    tokenizer = AutoTokenizer.from_pretrained(locate(ModelConfig(base=base)))
    batch = render_batch((example.messages for example in result.examples), tokenizer, max_length=2**31 - 1)
    kept = [(e, len(row.ids_T)) for e, row in zip(result.examples, batch.rows, strict=True) if row is not None]
    if not kept:
        raise UserError(f"{source}: none of {len(result.examples)} rows can be rendered: {batch.refused[0]}")
    examples = [example for example, _ in kept]
    facts = result.summary() | {"not_rendered": dict(sorted(_count(batch.refused.values()).items()))}
    return examples, score(examples, config, [tokens for _, tokens in kept], max_length), facts


def evaluate_adapters(
    adapters: Sequence[Path], suite: str, limit: int | None, base: str, max_length: int, device: str | None
) -> list[dict[str, Any]]:
    """Perplexity of the base and of adapters on the assistant text of a suite, one row per model, base first.

    Raises:
        UserError: an adapter does not fit the base, or no item can be scored.
    """
    loaded = [load_peft(path) for path in adapters]
    result = read(suite, limit=limit)
    model = load_base(ModelConfig(base=base, max_length=max_length), device)
    batch = render_batch((example.messages for example in result.examples), model.tokenizer, max_length)
    items = {e.id: row for e, row in zip(result.examples, batch.rows, strict=True) if row is not None}
    if not items:
        raise UserError(f"{suite}: no item can be scored: {batch.refused[0]}")
    with Progress("eval", len(items) * (1 + len(loaded))) as progress:
        scores = perplexity(model.model, loaded, items, progress=progress)
    reference = mean_item_nll(scores.nll_GK[0], scores.tokens_K)
    rows = []
    for name, nll_K in zip(["base", *map(str, adapters)], scores.nll_GK, strict=True):
        mean = mean_item_nll(nll_K, scores.tokens_K)
        rows.append(
            {
                "model": name,
                "items": len(items),
                "items_not_scored": len(batch.refused),
                "tokens": int(scores.tokens_K.sum()),
                "perplexity": token_perplexity(nll_K, scores.tokens_K),
                "nll": mean,
                "bits_per_byte": bits_per_byte(nll_K, scores.bytes_K),
                "nll_minus_base": mean - reference,
            }
        )
    return rows


def _count(reasons: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts
