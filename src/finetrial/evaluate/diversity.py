"""Diversity of the samples of a prompt, under the names of outcomes.

One prompt with a fixed number of samples gives one value per metric: the unit that statistics pair. Pooling the
samples of all prompts instead measures how prompts differ (`ngrams.corpus_distinct`). Noise is diverse too: judge
diversity beside quality and the share of degenerate samples, and at equal lengths (`distinct_n_matched`).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from finetrial.errors import UserError
from finetrial.evaluate.bleu import self_bleu_by_prompt
from finetrial.evaluate.degeneration import degeneration_rate
from finetrial.evaluate.ngrams import (
    distinct,
    duplicate_share,
    expectation_adjusted_distinct,
    gram_counts,
    type_token_ratio,
)
from finetrial.evaluate.semantic import semantic_diversity, vendi
from finetrial.evaluate.words import common_length, truncate, words

DISTINCT = (1, 2, 3)
SELF_BLEU = (2, 3, 4, 5)

RARE = ("degenerate", "duplicate_share")
"""Counts of rare events: 0 everywhere is a good result, not a dead instrument."""

TEXTUAL = (
    *(f"distinct_{n}" for n in DISTINCT),
    *(f"distinct_{n}_matched" for n in DISTINCT),
    *(f"self_bleu_{n}" for n in SELF_BLEU),
    "ead_2",
    "type_token_ratio",
    *RARE,
)
"""Metrics that read the samples' text."""

SEMANTIC = ("semantic_diversity", "vendi")
"""Metrics that need embeddings."""


def diversity(
    samples: Sequence[str],
    vocabulary: int | None = None,
    embedding_NH: np.ndarray | None = None,
    finished: Sequence[bool] | None = None,
    lower: bool = False,
    matched: int | None = None,
) -> dict[str, float | None]:
    """Every metric of one prompt by the name of its outcome; None where it has no meaning for these samples.

    See `diversity_by_prompt`, which is faster for many prompts.
    """
    embeddings = None if embedding_NH is None else [embedding_NH]
    ended = None if finished is None else [finished]
    return diversity_by_prompt([samples], vocabulary, embeddings, ended, lower, matched)[0]


def diversity_by_prompt(
    prompts: Sequence[Sequence[str]],
    vocabulary: int | None = None,
    embeddings: Sequence[np.ndarray] | None = None,
    finished: Sequence[Sequence[bool]] | None = None,
    lower: bool = False,
    matched: int | None = None,
) -> list[dict[str, float | None]]:
    """Every metric of every prompt by the name of its outcome; None where it has no meaning for these samples.

    The metrics of `TEXTUAL` (`ead_2` where a vocabulary is given) and of `SEMANTIC` (where embeddings are);
    `analyze.metrics` knows which direction of each is better.

    `distinct_n` falls with length, so a recipe that shortens its texts seems to widen them. `distinct_n_matched` is
    the same of samples that are all cut to the words of the prompt's shortest one that has any, or to `matched` words,
    which is the same for everything that is compared; samples below `matched` stay whole.

    Args:
        prompts: N completions of each prompt.
        vocabulary: V of `ngrams.expectation_adjusted_distinct`, the same for everything compared; a prompt with more
            different pairs of words than V has no `ead_2`.
        embeddings: (N, H) of each prompt's samples, as `model.embed.embed` gives them.
        finished: whether each sample ended by itself.
        lower: fold case.
        matched: words that samples are cut to; None for those of the prompt's shortest sample.

    Raises:
        UserError: embeddings or `finished` are not one per sample.
    """
    texts_P = [[words(sample, lower) for sample in samples] for samples in prompts]
    bleu_PK = self_bleu_by_prompt(texts_P, SELF_BLEU[-1])
    values_P = []
    for p, (samples, texts) in enumerate(zip(prompts, texts_P, strict=True)):
        cut = _matched(texts, matched)
        values: dict[str, float | None] = {f"distinct_{n}": distinct(texts, n) for n in DISTINCT}
        values |= {f"distinct_{n}_matched": distinct(cut, n) for n in DISTINCT}
        values |= {f"self_bleu_{n}": _or_none(bleu_PK[p, n - 1]) for n in SELF_BLEU}
        if vocabulary is not None:
            small = gram_counts(texts, 2)[0] > vocabulary
            values["ead_2"] = None if small else expectation_adjusted_distinct(texts, vocabulary, 2)
        values["type_token_ratio"] = type_token_ratio(texts)
        values["duplicate_share"] = duplicate_share(samples)
        values["degenerate"] = degeneration_rate(texts, None if finished is None else finished[p])
        if embeddings is not None:
            if len(embeddings[p]) != len(samples):
                raise UserError(f"{len(embeddings[p])} embeddings for {len(samples)} samples")
            values["semantic_diversity"] = semantic_diversity(embeddings[p])
            values["vendi"] = vendi(embeddings[p])
        values_P.append(values)
    return values_P


def _matched(texts: Sequence[Sequence[str]], matched: int | None) -> list[Sequence[str]]:
    """Samples at one length: as many words each, as far as they have them."""
    if not any(texts):
        return list(texts)
    return truncate(texts, matched or common_length([texts]))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


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
