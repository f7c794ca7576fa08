"""Texts that went wrong: empty, caught in a loop, or cut at the limit; and how long texts are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from finetrial.errors import UserError
from finetrial.evaluate.words import Sample, tokens_of

LONGEST = 32
"""Most tokens of a phrase that counts as the unit of a loop."""
TIMES = 3
"""A loop says its phrase more often than this."""
LEAST = 12
"""Fewest tokens of a loop: `ha ha ha ha` and a row of dots are none."""


@dataclass(frozen=True)
class Degeneration:
    """How many samples of a prompt went wrong, and how. A sample may be cut and loop; `any` counts it once."""

    samples: int
    empty: int
    looping: int
    cut: int | None
    """None where it is not known which samples ended by themselves."""
    any: int

    @property
    def rate(self) -> float | None:
        """Share of samples with anything wrong, in [0, 1]; None without samples."""
        return self.any / self.samples if self.samples else None


@dataclass(frozen=True)
class Lengths:
    """Tokens of the samples of a prompt, empty samples included."""

    mean: float
    sd: float
    """Standard deviation of the samples (divided by n - 1); NaN for a single one."""
    shortest: int
    median: float
    longest: int


def loops(sample: Sample, longest: int = LONGEST, times: int = TIMES, least: int = LEAST) -> bool:
    """Whether a text ends in a phrase that repeats more than `times` times, its last repetition complete or not.

    Args:
        sample: text or tokens.
        longest: most tokens of the phrase.
        times: more whole repetitions than this are a loop.
        least: fewest tokens that the loop spans.

    Raises:
        UserError: `longest` or `times` is below 1.
    """
    if longest < 1 or times < 1:
        raise UserError(f"longest = {longest}, times = {times}: expected at least 1")
    (tokens,) = tokens_of([sample])
    return any(
        _repeats(tokens, period, max((times + 1) * period, least))
        for period in range(1, min(longest, len(tokens) // (times + 1)) + 1)
    )


def degeneration(
    samples: Iterable[Sample],
    finished: Sequence[bool] | None = None,
    longest: int = LONGEST,
    times: int = TIMES,
    least: int = LEAST,
) -> Degeneration:
    """Count the samples of a prompt that are empty, that loop (`loops`), and that were cut at the limit.

    Args:
        samples: texts or tokens.
        finished: whether each sample ended by itself; None where it is not known.
        longest, times, least: see `loops`.

    Raises:
        UserError: `finished` has another length than `samples`.
    """
    texts = tokens_of(samples)
    if finished is not None and len(finished) != len(texts):
        raise UserError(f"{len(finished)} values of `finished` for {len(texts)} samples")
    empty = [not tokens for tokens in texts]
    looping = [loops(tokens, longest, times, least) for tokens in texts]
    cut = [False] * len(texts) if finished is None else [not ended for ended in finished]
    wrong = sum(map(any, zip(empty, looping, cut, strict=True)))
    return Degeneration(len(texts), sum(empty), sum(looping), None if finished is None else sum(cut), wrong)


def degeneration_rate(samples: Iterable[Sample], finished: Sequence[bool] | None = None) -> float | None:
    """Share of a prompt's samples that are empty, loop or were cut, in [0, 1]; None without samples."""
    return degeneration(samples, finished).rate


def lengths(samples: Iterable[Sample]) -> Lengths | None:
    """Statistics of the samples' tokens; None without samples."""
    length_N = np.array([len(tokens) for tokens in tokens_of(samples)])
    if not len(length_N):
        return None
    return Lengths(
        mean=float(length_N.mean()),
        sd=float(length_N.std(ddof=1)) if len(length_N) > 1 else float("nan"),
        shortest=int(length_N.min()),
        median=float(np.median(length_N)),
        longest=int(length_N.max()),
    )


def _repeats(tokens: Sequence[str], period: int, span: int) -> bool:
    """Whether the last `span` tokens repeat with this period."""
    return span <= len(tokens) and tokens[-span + period :] == tokens[-span : len(tokens) - period]
