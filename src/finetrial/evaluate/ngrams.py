"""Diversity as counts: distinct n-grams and repeated texts among the samples of a prompt.

Distinct-n falls as texts grow, because words recur. Compare conditions at equal length (`words.truncate`) or with the
expectation-adjusted form.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from finetrial.errors import UserError
from finetrial.evaluate.words import Sample, tokens_of


def gram_counts(samples: Iterable[Sample], n: int) -> tuple[int, int]:
    """Distinct n-grams, and all n-grams, of the samples of a prompt; none crosses from one sample into the next.

    Raises:
        UserError: n is below 1.
    """
    if n < 1:
        raise UserError(f"n = {n}: n-grams have at least one token")
    grams = list(chain.from_iterable(_grams(tokens, n) for tokens in tokens_of(samples)))
    return len(set(grams)), len(grams)


def distinct(samples: Iterable[Sample], n: int = 2) -> float | None:
    """Distinct n-grams / n-grams, counted over the samples of a prompt together, in (0, 1] (Li et al. 2016).

    None where no sample has n tokens.

    Raises:
        UserError: n is below 1.
    """
    found, total = gram_counts(samples, n)
    return found / total if total else None


def mean_distinct(samples: Iterable[Sample], n: int = 2) -> float | None:
    """Mean over samples of distinct n-grams / n-grams *within* a sample, in (0, 1]; None where none has n tokens.

    It says nothing of differences between samples: ten copies of one text leave it as it is.
    """
    shares = [share for tokens in tokens_of(samples) if (share := distinct([tokens], n)) is not None]
    return sum(shares) / len(shares) if shares else None


def type_token_ratio(samples: Iterable[Sample]) -> float | None:
    """Mean over samples of different words / words: variety of words within a text. `mean_distinct` of n = 1."""
    return mean_distinct(samples, 1)


def expectation_adjusted_distinct(samples: Iterable[Sample], vocabulary: int, n: int = 1) -> float | None:
    """Distinct n-grams / their expected number if each were drawn evenly from `vocabulary` (Liu et al. 2022, EAD).

    N / (V (1 - ((V - 1) / V)^C)) for N distinct of C n-grams, which depends far less on length than N / C; it may
    exceed 1. None where no sample has n tokens.

    Args:
        samples: of a prompt.
        vocabulary: V, the same for everything that is compared, such as the tokenizer's size.
        n: length of the n-grams; V counts these.

    Raises:
        UserError: V is below 2 or below the number of distinct n-grams found.
    """
    found, total = gram_counts(samples, n)
    if vocabulary < max(2, found):
        raise UserError(
            f"vocabulary of {vocabulary}: expected at least 2 and no fewer than the {found} distinct {n}-grams found"
        )
    return found / (-vocabulary * np.expm1(total * np.log1p(-1 / vocabulary))) if total else None


def corpus_distinct(prompts: Iterable[Iterable[Sample]], n: int = 2) -> float | None:
    """Distinct-n over the samples of all prompts pooled. It measures mostly how prompts differ, and has no unit to
    replicate over: compare recipes by the values of single prompts."""
    return distinct(chain.from_iterable(map(tokens_of, prompts)), n)


def duplicate_share(samples: Iterable[Sample]) -> float | None:
    """Share of samples that repeat an earlier one of the prompt exactly, in [0, 1); lower is better.

    Texts are compared without the white space around them; empty ones are copies of each other. None for fewer than
    two samples.

    Raises:
        UserError: `samples` is one string.
    """
    if isinstance(samples, str):
        raise UserError("expected a list of samples, got a single string")
    seen: list[Hashable] = [sample.strip() if isinstance(sample, str) else tuple(sample) for sample in samples]
    return 1 - len(set(seen)) / len(seen) if len(seen) > 1 else None


def _grams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)
