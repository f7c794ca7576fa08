"""Integer draws and the split of problems: what the worlds share.

Worlds promise the same bytes on every machine and with every numpy release. The raw output of PCG64 is frozen by
numpy's stability policy, the methods of its Generator are not; so draws are taken from the raw words.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

from finetrial.errors import UserError, nearest
from finetrial.seeds import stream

Item = TypeVar("Item")

Split = Literal["base", "campaign"]
"""`base`: problems that the built-in model was trained on. `campaign`: problems it has never seen."""

CAMPAIGN_SHARE = 64
"""Of 256 problems, how many are kept for campaigns."""


class Dice:
    """Integer draws from the stream (seed, *purpose)."""

    def __init__(self, seed: int, *purpose: str | int):
        self._raw = stream(seed, *purpose).bit_generator.random_raw

    def below(self, bound: int) -> int:
        """An integer in [0, bound); the bias of the remainder is below bound / 2^64."""
        return int(self._raw()) % bound

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True with a probability of `percent` in a hundred."""
        return self.below(100) < percent

    def pick(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items in random order (Fisher-Yates)."""
        pool = list(items)
        for i in range(count):
            j = self.between(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]


def problem_digest(problem: str) -> str:
    """SHA-256 (64 hex digits) of a problem's canonical text."""
    return hashlib.sha256(problem.encode()).hexdigest()


def split_of(problem: str) -> Split:
    """The side a problem is on: a function of the problem itself, never of a seed."""
    return "campaign" if int(problem_digest(problem)[:2], 16) < CAMPAIGN_SHARE else "base"


def check_request(count: int, split: str) -> None:
    """Refuse a negative count and an unknown split.

    Raises:
        UserError: with the nearest valid split.
    """
    if count < 0:
        raise UserError(f"count is {count}: a world generates 0 examples or more")
    if split not in get_args(Split):
        raise UserError(f"split is {split!r}, expected 'base' or 'campaign'{nearest(split, get_args(Split))}")
