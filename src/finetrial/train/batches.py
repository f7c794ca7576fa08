"""Which rows form an optimiser step, in which order, and how they are laid out in passes.

The first two are science: a pure function of (seed, number of rows, batch size, step). The third is execution:
it changes the time and the memory of a step, never which rows it sees.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from finetrial import seeds

PASS_OVERHEAD = {"cpu": 64, "cuda": 4096}
"""What starting a pass costs, in tokens of computing: rows are split only if that saves more padding."""
PASS_TOKENS = {"cpu": 2048}
"""Padded tokens after which a longer pass is no faster: on a CPU its activations leave the cache."""


def step_rows(seed: int, rows: int, batch_size: int, step: int) -> list[int]:
    """Indices of the rows of optimiser step `step` (0, 1, ...).

    Each epoch is a permutation of the rows drawn from the stream (seed, "data order", epoch); epochs follow one
    another without a gap, so a batch may take the last rows of one and the first of the next. Position in the
    data is therefore a function of the step, and a resumed run needs no other state.

    Args:
        seed: the run's seed.
        rows: how many rows there are, in the order of their ids.
        batch_size: rows of a step.
        step: which step.
    """
    return rows_at(seed, rows, range(step * batch_size, (step + 1) * batch_size))


def rows_at(seed: int, rows: int, places: Iterable[int]) -> list[int]:
    """Indices of the rows at these places of the endless order: epoch after epoch, each its own permutation."""
    return [_order(seed, rows, place // rows)[place % rows] for place in places]


@lru_cache(maxsize=256)
def _order(seed: int, rows: int, epoch: int) -> tuple[int, ...]:
    return tuple(int(row) for row in seeds.stream(seed, "data order", epoch).permutation(rows))


@dataclass(frozen=True)
class Place:
    """One row of a step: which run it belongs to, its place in that run's batch, and its length in tokens."""

    run: int
    place: int
    tokens: int


def layout(lengths: Sequence[Sequence[int]], budget: int, device: str) -> list[list[Place]]:
    """Lay the rows of a step out in passes, runs side by side.

    Rows are put into slots, longest first, and a pass is a stretch of slots, so rows of like length share a pass.
    On a CPU a slot is one row: padding is what costs there. On a GPU the longest rows of all runs form a slot, the
    second longest the next, and so on, so that runs with equal batch sizes have equally many rows in a pass, and
    one batched product serves them. Stretches are chosen to minimise padded tokens plus the cost of starting a
    pass, by dynamic programming over slots. A slot over budget is cut between runs.

    Args:
        lengths: tokens of each row of the step, per run.
        budget: most padded tokens of a pass; a single row may exceed it.
        device: `cpu` or `cuda`.

    Returns:
        Passes; the rows of a pass are ordered by run.
    """
    budget = min(budget, PASS_TOKENS.get(device, budget))
    overhead = PASS_OVERHEAD.get(device, PASS_OVERHEAD["cuda"])
    columns = [
        sorted((Place(run, place, tokens) for place, tokens in enumerate(row)), key=lambda p: (-p.tokens, p.place))
        for run, row in enumerate(lengths)
    ]
    if device == "cpu":
        every = sorted(itertools.chain.from_iterable(columns), key=lambda p: (-p.tokens, p.run, p.place))
        slots = [[place] for place in every]
    else:
        ranks = itertools.zip_longest(*columns, fillvalue=None)
        slots = [[place for place in rank if place is not None] for rank in ranks]
    passes = []
    for start, end in _stretches(slots, budget, overhead):
        rows = sorted(itertools.chain.from_iterable(slots[start:end]), key=lambda p: (p.run, -p.tokens, p.place))
        width = max(place.tokens for place in rows)
        size = len(rows) if end - start > 1 else max(1, budget // width)
        passes += [rows[i : i + size] for i in range(0, len(rows), size)]
    return passes


def _stretches(slots: Sequence[Sequence[Place]], budget: int, overhead: int) -> list[tuple[int, int]]:
    """Cut the slots into stretches of least cost; only a stretch of one slot may exceed the budget."""
    best = [0.0] + [float("inf")] * len(slots)
    cut = [0] * (len(slots) + 1)
    widths = [max(place.tokens for place in slot) for slot in slots]
    for start in range(len(slots)):
        rows = width = 0
        for end in range(start + 1, len(slots) + 1):
            rows += len(slots[end - 1])
            width = max(width, widths[end - 1])
            if end > start + 1 and rows * width > budget:
                break
            cost = best[start] + rows * width + overhead
            if cost < best[end]:
                best[end], cut[end] = cost, start
    stretches, end = [], len(slots)
    while end:
        stretches.append((cut[end], end))
        end = cut[end]
    return stretches[::-1]
