"""Mixtures: which part every place of every batch is given to, as a pure function of shares, sizes and steps.

Each part has its own endless order of rows, so that the place of a row in a run is a function of the step and a
resumed run needs no state.

Shapes: U steps, B rows of a step, K = U · B places of a run, G parts (0 are the selected rows).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetrial import seeds
from finetrial.train.batches import rows_at
from finetrial.train.mixture_config import SELECTED, MixtureConfig

ROUNDED = 9
"""Decimals of a cumulative target: ten times a tenth is one, whatever the sum of ten rounded tenths says."""


@dataclass(frozen=True)
class Blend:
    """The rows of a run, place by place."""

    part_K: np.ndarray
    """int64 part of each place."""
    row_K: np.ndarray
    """int64 row of that part."""
    target_KG: np.ndarray
    """float64: what each part should have been given after each place, in rows or tokens."""
    given_KG: np.ndarray
    """int64: what it was given."""


def blend(config: MixtureConfig, seed: int, tokens: Sequence[np.ndarray], batch_size: int, steps: int) -> Blend:
    """The rows of a run.

    Args:
        config: unit and shares.
        seed: the run's seed.
        tokens: supervised tokens of every row of each part, the selected rows first, then the parts by name.
        batch_size: rows of a step.
        steps: steps of the run.
    """
    share_KG = np.repeat(shares(config, steps), batch_size, axis=0)
    every_K = np.arange(len(share_KG))
    order_GK = np.stack(
        [
            rows_at(stream_of(seed, name), len(mine), every_K.tolist())
            for name, mine in zip(config.names, tokens, strict=True)
        ]
    )
    if config.unit == "rows":
        size_GK = np.ones_like(order_GK)
        part_K = by_rows(share_KG)
    else:
        size_GK = np.stack([mine[order_K] for mine, order_K in zip(tokens, order_GK, strict=True)])
        part_K = by_tokens(share_KG, size_GK)
    chosen_KG = part_K[:, None] == np.arange(len(tokens))
    turn_K = np.cumsum(chosen_KG, axis=0)[every_K, part_K] - 1
    size_K1 = size_GK[part_K, turn_K][:, None]
    return Blend(
        part_K=part_K,
        row_K=order_GK[part_K, turn_K],
        target_KG=np.cumsum(share_KG * size_K1, axis=0),
        given_KG=np.cumsum(chosen_KG * size_K1, axis=0),
    )


def stream_of(seed: int, part: str) -> int:
    """What names a part's order of rows; that of the selected rows is the run's own, as without a mixture."""
    return seed if part == SELECTED else seeds.derive(seed, "mixture", part)


def shares(config: MixtureConfig, steps: int) -> np.ndarray:
    """Share (U, G) of the selected rows and of every part in each step; a row adds up to 1."""
    progress_U = np.arange(steps) / max(1, steps - 1)
    part_UG = np.stack([part.share_at(progress_U) for part in config.by_name], axis=1)
    return np.concatenate([1 - part_UG.sum(axis=1, keepdims=True), part_UG], axis=1).clip(0, 1)


def by_rows(share_KG: np.ndarray) -> np.ndarray:
    """The part (K,) of each place, so that after every place each part is within one row of its target.

    A part's target is the sum of its shares so far. Among the parts that are below theirs, the place goes to the one
    that would fall a whole row behind first, were it passed over. So its n-th row comes no earlier than its target
    exceeds n - 1 and no later than the target reaches n: unit jobs with releases and deadlines, of which the shares
    themselves are a fractional schedule, so that earliest deadline first meets them all. (That a schedule within one
    row exists for any shares: Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980. Always taking
    the part farthest behind keeps this promise for three parts, and breaks it for more.)
    """
    places, parts = share_KG.shape
    target_KG = np.round(np.cumsum(share_KG, axis=0), ROUNDED)
    due_GN = [np.searchsorted(target_KG[:, g], np.arange(1, places + 2)).tolist() for g in range(parts)]
    given_G = [0] * parts
    part_K = np.empty(places, dtype=np.int64)
    for k, target_G in enumerate(target_KG.tolist()):
        below = [g for g in range(parts) if target_G[g] > given_G[g]]
        part_K[k] = part = min(below, key=lambda g: due_GN[g][given_G[g]])
        given_G[part] += 1
    return part_K


def by_tokens(share_KG: np.ndarray, size_GK: np.ndarray) -> np.ndarray:
    """The part (K,) of each place, so that each part's tokens stay near its share of all tokens.

    A part's target is the sum of share · tokens over the places so far. A place goes to the part whose tokens are
    farthest below it (of equals, to the one with the larger share), and what row comes is that part's next. How far a
    part can get from its target: `slack`.

    Args:
        share_KG: shares.
        size_GK: tokens of each part's rows in the order in which they come.
    """
    places, parts = share_KG.shape
    behind_G = np.zeros(parts)
    given_G = [0] * parts
    part_K = np.empty(places, dtype=np.int64)
    for k, share_G in enumerate(share_KG):
        part_K[k] = part = int(np.lexsort((share_G, np.round(behind_G, ROUNDED)))[-1])
        size = size_GK[part, given_G[part]]
        given_G[part] += 1
        behind_G += share_G * size
        behind_G[part] -= size
    return part_K


def slack(unit: str, parts: int, longest: int) -> float:
    """The farthest that any of `parts` parts can be from its target: a row, or so many tokens.

    For tokens w · H(G - 1) with w tokens in the longest row and H the harmonic numbers, so w itself for two parts. Let
    A_k be the largest sum of k deficits, so A_G = 0. A place whose part is among the k largest afterwards does not
    raise A_k; otherwise the k others were k / (k + 1) · A_(k+1) at most before, and grew by w at most. So
    A_k / k <= A_(k+1) / (k + 1) + w / k.
    """
    return 1.0 if unit == "rows" else longest * sum(1 / k for k in range(1, parts))


def verify(who: str, config: MixtureConfig, planned: Blend, places: int, given: Mapping[str, int]) -> None:
    """Compare what a run has really been given with what was planned and with the shares that were asked for.

    Args:
        who: the run, for the message.
        config: unit and shares.
        planned: the run's rows.
        places: how many of them it went through.
        given: rows, or supervised tokens, of each part as the run counted them.

    Raises:
        RuntimeError: they differ, or a part is farther from its share than the rule allows.
    """
    if not places:
        return
    want_G, target_G = planned.given_KG[places - 1], planned.target_KG[places - 1]
    longest = int(np.diff(planned.given_KG[:places].sum(axis=1), prepend=0).max())
    most = slack(config.unit, len(config.names), longest) + 1e-6
    for name, want, target in zip(config.names, want_G.tolist(), target_G.tolist(), strict=True):
        have = given.get(name, 0)
        if have != want or abs(have - target) > most:
            raise RuntimeError(
                f"{who}: mixture of {config.unit}: {name} was given {have}; planned were {want}, its share is "
                f"{target:.1f}"
            )
