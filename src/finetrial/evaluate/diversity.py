"""Diversity of the samples of a prompt, under the names of outcomes.

One prompt with a fixed number of samples gives one value per metric: the unit that statistics pair. Pooling the
samples of all prompts instead measures how prompts differ (`ngrams.corpus_distinct`). Noise is diverse too: judge
diversity beside quality and the degeneration rate, and at equal lengths (`words.truncate`).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from finetrial.errors import UserError
from finetrial.evaluate.bleu import self_bleu_by_prompt
from finetrial.evaluate.degeneration import degeneration_rate
from finetrial.evaluate.ngrams import distinct, duplicate_share, expectation_adjusted_distinct, type_token_ratio
from finetrial.evaluate.semantic import semantic_diversity, vendi
from finetrial.evaluate.words import words

DISTINCT = (1, 2, 3)
SELF_BLEU = (2, 3, 4, 5)


def diversity(
    samples: Sequence[str],
    vocabulary: int | None = None,
    embedding_NH: np.ndarray | None = None,
    finished: Sequence[bool] | None = None,
    lower: bool = False,
) -> dict[str, float | None]:
    """Every metric of one prompt by the name of its outcome; None where it has no meaning for these samples.

    `distinct_1` to `distinct_3`, `self_bleu_2` to `self_bleu_5`, `type_token_ratio`, `duplicate_share` and
    `degeneration_rate`; `ead_1` to `ead_3` where a vocabulary is given, `vendi` and `semantic_diversity` where
    embeddings are. `analyze.metrics` knows which direction of each is better.

    Args:
        samples: N completions of the prompt.
        vocabulary: V of `ngrams.expectation_adjusted_distinct`, the same for everything compared.
        embedding_NH: of the samples, as `model.embed.embed` gives them.
        finished: whether each sample ended by itself.
        lower: fold case.

    Raises:
        UserError: embeddings or `finished` are not one per sample.
    """
    if embedding_NH is not None and len(embedding_NH) != len(samples):
        raise UserError(f"{len(embedding_NH)} embeddings for {len(samples)} samples")
    texts = [words(sample, lower) for sample in samples]
    values: dict[str, float | None] = {f"distinct_{n}": distinct(texts, n) for n in DISTINCT}
    if vocabulary is not None:
        values |= {f"ead_{n}": expectation_adjusted_distinct(texts, vocabulary, n) for n in DISTINCT}
    bleu_K = self_bleu_by_prompt([texts], SELF_BLEU[-1])[0]
    values |= {f"self_bleu_{n}": None if np.isnan(bleu_K[n - 1]) else float(bleu_K[n - 1]) for n in SELF_BLEU}
    values["type_token_ratio"] = type_token_ratio(texts)
    values["duplicate_share"] = duplicate_share(samples)
    values["degeneration_rate"] = degeneration_rate(texts, finished)
    if embedding_NH is not None:
        values["vendi"] = vendi(embedding_NH)
        values["semantic_diversity"] = semantic_diversity(embedding_NH)
    return values


def refuse_constant(values: Iterable[float | None], name: str) -> None:
    """Refuse an instrument that tells nothing apart: constant, zero everywhere or missing everywhere.

    For metrics that vary by their nature, over all prompts and models together. A count of rare events, such as the
    degeneration rate, may well be 0 everywhere. Missing values (None, NaN) are not looked at.

    Raises:
        UserError: there is no value, or there are several and all are equal (up to rounding), or all are 0.
    """
    found = np.array([value for value in values if value is not None and not np.isnan(value)], dtype=np.float64)
    if not len(found):
        raise UserError(f"metric '{name}': every value is missing; expected a number per prompt")
    if not found.any():
        raise UserError(f"metric '{name}': all {len(found)} values are 0; the instrument does not measure anything")
    if len(found) > 1 and np.ptp(found) <= 1e-9 * np.abs(found).max():
        raise UserError(
            f"metric '{name}': all {len(found)} values are {found[0]:.6g}; an instrument that is constant over prompts "
            "and models measures nothing"
        )
