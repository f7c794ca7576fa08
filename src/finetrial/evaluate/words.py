"""Texts as words: the units of every count of n-grams."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain

from finetrial.errors import UserError

Sample = str | Sequence[str]
"""A text, or the tokens of one."""

_WORD = re.compile(r"\w+(?:['’ʼ]\w+)*|[^\w\s]")


def words(text: str, lower: bool = False) -> list[str]:
    """Words and punctuation marks of a text.

    A word is a longest run of letters, digits and underscores of any script, with apostrophes inside it (`don't` is
    one word); every other visible character is a token of its own (`3.5` gives three). White space separates.
    Scripts that write without spaces give one word per run; pass token lists for them.

    Args:
        text: any string.
        lower: fold case first, so that `The` and `the` are one word.
    """
    return _WORD.findall(text.casefold() if lower else text)


def tokens_of(samples: Iterable[Sample]) -> list[Sequence[str]]:
    """The tokens of each sample: texts are split by `words`, token lists are taken as they are.

    Raises:
        UserError: `samples` is one string, whose letters would pass for samples.
    """
    if isinstance(samples, str):
        raise UserError("expected a list of samples, got a single string")
    return [words(sample) if isinstance(sample, str) else sample for sample in samples]


def truncate(samples: Iterable[Sample], length: int) -> list[Sequence[str]]:
    """The first `length` tokens of each sample, for metrics that depend on length; shorter samples stay whole.

    Raises:
        UserError: `length` is below 1.
    """
    if length < 1:
        raise UserError(f"length {length}: expected at least one token")
    return [tokens[:length] for tokens in tokens_of(samples)]


def common_length(compared: Iterable[Iterable[Sample]]) -> int:
    """Tokens of the shortest sample that has any, over everything compared: the length to `truncate` all to.

    Raises:
        UserError: no sample has a token.
    """
    lengths = [len(tokens) for tokens in chain.from_iterable(map(tokens_of, compared)) if tokens]
    if not lengths:
        raise UserError("no sample has a token, so there is no common length")
    return min(lengths)
