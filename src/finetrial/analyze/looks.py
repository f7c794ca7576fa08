"""Planned interim looks over seeds, and a bet on futility.

A dashboard that is watched until something is significant raises false alarms far above alpha. Looks are therefore
planned as shares of the seeds, and alpha is spent over them: by a share t of the seeds each of the two sides has spent

    a(t) = 2 - 2 Φ(z_{a/2} / √t)    with a = alpha / 2

(Lan and DeMets 1983, the spending function that resembles O'Brien and Fleming 1979), little at first and nearly
everything at the end. The level of each look follows by simulating the t statistics of all looks together under
no difference. Between looks nothing is shown: `Schedule.at` gives None there and `decide` refuses.

A family of m contrasts spends a(t) / m on each. The family's level at a look is m times the level that spends it, so
that Holm's first step is exact. Its later steps, at m / r of that level for r contrasts left, stay within alpha / r:
the larger a level, the more often it is crossed at several looks at once, which counts once.

Futility is judged by a betting e-process (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables
by betting"), which is valid at every seed and never spends alpha. With few seeds it rarely stops anything.

Shapes: R simulated trials, K looks, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from pydantic import Field, model_validator
from scipy import stats

from finetrial import seeds
from finetrial.analyze.contrast import Finding
from finetrial.analyze.verdict import MIN_SEEDS
from finetrial.errors import UserError
from finetrial.records import Config

_DRAWS, _BLOCK = 400_000, 20_000


class LooksConfig(Config):
    """`[looks]`: after how many seeds the contrasts are judged; what only decided contrasts need is not trained on."""

    fractions: tuple[float, ...] | None = Field(
        default=None, description="ascending shares of the seeds, ending at 1, such as [0.5, 1.0]; or give `seeds`"
    )
    seeds: tuple[int, ...] | None = Field(default=None, description="ascending numbers of seeds, ending at all of them")
    futility: bool = Field(default=False, description="also stop where a bet against reaching the margin has paid off")
    span: float | None = Field(
        default=None,
        gt=0,
        description="largest |difference| of one seed's runs that is possible, which the bet needs; default: the range "
        "of the metric, where it has one",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "LooksConfig":
        if (self.fractions is None) == (self.seeds is None):
            raise ValueError("give fractions or seeds, one of them")
        return self

    def counts(self, n_seeds: int) -> tuple[int, ...]:
        """Seeds per condition at every look of a campaign of `n_seeds`.

        Raises:
            UserError: they do not ascend to `n_seeds`, or the first has too few for any verdict.
        """
        counts = self.seeds or tuple(round(share * n_seeds) for share in self.fractions or ())
        ascending = all(a < b for a, b in pairwise(counts))
        if not counts or not ascending or counts[0] < MIN_SEEDS or counts[-1] != n_seeds:
            raise UserError(
                f"looks at {', '.join(map(str, counts)) or 'no'} of {n_seeds} seeds: expected ascending numbers, the "
                f"first at least {MIN_SEEDS} (fewer carry no verdict), the last all {n_seeds}"
            )
        return counts


@dataclass(frozen=True)
class Look:
    """One planned look."""

    fraction: float
    n_seeds: int | None
    """Seeds per condition at which to look; None where only fractions were planned."""
    spent: float
    """Error rate spent by this look and those before it."""
    level: float
    """Two-sided level of this look alone, shared by the family's contrasts: judge with `alpha=level` here."""


@dataclass(frozen=True)
class Schedule:
    """All planned looks; the last is the final analysis."""

    alpha: float
    looks: tuple[Look, ...]

    def at(self, n_seeds: int) -> Look | None:
        """The look planned at `n_seeds` finished seeds per condition; None between looks, when nothing is shown."""
        return next((look for look in self.looks if look.n_seeds == n_seeds), None)


@dataclass(frozen=True)
class Decision:
    """What a look decides."""

    stop: bool
    verdict: str
    reason: str
    seeds_saved: int | None


def spent(fraction: float, alpha: float) -> float:
    """Two-sided error rate spent by share t of the seeds: 2 · (2 - 2 Φ(z_{a/2} / √t)) with a = alpha / 2 a side."""
    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / np.sqrt(fraction)))


def plan(
    fractions: Sequence[float],
    alpha: float = 0.05,
    *,
    n_seeds: int | None = None,
    paired: bool = False,
    contrasts: int = 1,
) -> Schedule:
    """Levels of looks at the given shares of the seeds.

    Args:
        fractions: ascending, in (0, 1]; the last must be 1.
        alpha: two-sided error rate of all looks together.
        n_seeds: seeds per condition at the end; looks then fall on whole seeds and levels hold for t statistics.
        paired: whether candidate and baseline share their seeds.
        contrasts: how many share alpha (Holm).

    Raises:
        UserError: the fractions do not ascend to 1, or two looks fall on the same seed or on fewer than 2 seeds.
    """
    given = tuple(float(f) for f in fractions)
    ascending = all(a < b for a, b in pairwise(given))
    if not given or not ascending or given[0] <= 0 or given[-1] != 1:
        raise UserError(f"looks at {given}: expected ascending shares of the seeds that end at 1, such as 0.5, 1")
    if not 0 < alpha < 1:
        raise UserError(f"alpha {alpha}: expected a number between 0 and 1")
    if n_seeds is None:
        at, shares, kind = given, given, "normal"
    else:
        counts = tuple(round(f * n_seeds) for f in given)
        if counts[0] < 2 or len(set(counts)) < len(counts):
            raise UserError(
                f"looks at {given} of {n_seeds} seeds fall on {counts} seeds: every look needs seeds of its own, the "
                "first at least 2"
            )
        at, shares, kind = counts, tuple(n / n_seeds for n in counts), "paired" if paired else "unpaired"
    spending = tuple(spent(share, alpha) for share in shares)
    levels = [contrasts * level for level in _levels(at, tuple(s / contrasts for s in spending), kind)]
    counts = (None,) * len(given) if n_seeds is None else tuple(int(n) for n in at)
    return Schedule(alpha, tuple(Look(*row) for row in zip(given, counts, spending, levels, strict=True)))


@lru_cache(maxsize=64)
def _levels(at: tuple[float, ...], spending: tuple[float, ...], kind: str) -> tuple[float, ...]:
    """Level of each look such that the chance of having rejected by look k is `spending[k]`, no more.

    Simulated jointly; the first look needs no simulation. Levels are never above the spending.
    """
    p_RK = _null_p_values(at, kind)
    alive_R = np.ones(len(p_RK), dtype=bool)
    levels = [spending[0]]
    alive_R &= p_RK[:, 0] > levels[0]
    for k in range(1, len(at)):
        room = int(np.floor(spending[k] * len(p_RK))) - int((~alive_R).sum())
        sorted_p = np.sort(p_RK[alive_R, k])
        level = min(float(sorted_p[room]) if room > 0 else 0.0, spending[k])
        levels.append(level)
        alive_R &= p_RK[:, k] >= level
    return tuple(levels)


def _null_p_values(at: tuple[float, ...], kind: str) -> np.ndarray:
    """Two-sided p-values of every look in simulated trials without a difference, (R, K).

    `normal`: a Brownian path at the shares `at`. `paired` and `unpaired`: t tests of the first `at` seeds.
    """
    rng = seeds.stream(0, "looks", kind, *map(repr, at))
    if kind == "normal":
        steps_RK = rng.standard_normal((_DRAWS, len(at))) * np.sqrt(np.diff(at, prepend=0.0))
        return 2 * stats.norm.sf(np.abs(steps_RK.cumsum(1)) / np.sqrt(at))
    blocks = []
    for _ in range(_DRAWS // _BLOCK):
        arms = [
            rng.standard_normal((_BLOCK, int(at[-1])), dtype=np.float32) for _ in range(1 if kind == "paired" else 2)
        ]
        columns = []
        for n in map(int, at):
            mean = arms[0][:, :n].mean(1) - (arms[1][:, :n].mean(1) if len(arms) == 2 else 0.0)
            variance = sum(arm[:, :n].var(1, ddof=1) for arm in arms) / n
            columns.append(2 * stats.t.sf(np.abs(mean) / np.sqrt(variance), len(arms) * (n - 1)))
        blocks.append(np.stack(columns, axis=1))
    return np.concatenate(blocks)


def decide(schedule: Schedule, n_seeds: int, finding: Finding, futility: float | None = None) -> Decision:
    """Whether to stop at this look.

    Args:
        schedule: from `plan` with `n_seeds`.
        n_seeds: finished seeds per condition.
        finding: judged on exactly these seeds with `alpha` set to the look's level.
        futility: last value of `e_process`, where one is kept; it stops when it reaches 1 / alpha.

    Raises:
        UserError: no look is planned here; nothing may be decided, or shown, between looks.
    """
    look = schedule.at(n_seeds)
    if look is None:
        planned = ", ".join(str(planned.n_seeds) for planned in schedule.looks)
        raise UserError(f"no look is planned at {n_seeds} seeds; looks are at {planned}")
    last = schedule.looks[-1]
    saved = (last.n_seeds or 0) - n_seeds
    if finding.verdict != "INCONCLUSIVE":
        return Decision(
            True, finding.verdict, f"decided at {n_seeds} seeds at level {look.level:.2g}: {finding.reason}", saved
        )
    if look is last:
        return Decision(True, "INCONCLUSIVE", f"undecided at the last look: {finding.reason}", 0)
    if futility is not None and futility >= 1 / schedule.alpha:
        reason = f"futile: the bet against reaching the margin has grown to {futility:.0f}, from 1"
        return Decision(True, "INCONCLUSIVE", reason, saved)
    return Decision(False, "INCONCLUSIVE", f"undecided at {n_seeds} seeds; the next look follows", None)


def e_process(difference_S: np.ndarray, margin: float, span: float) -> np.ndarray:
    """Evidence after each seed pair that the mean improvement is below `margin`: E_s = Π_j (1 - λ_j x_j).

    x_j = (d_j - margin) / (span + |margin|) lies in [-1, 1], and the stake λ_j in [0, 0.9] is chosen before d_j from
    those before it (their mean over their mean square, shrunk to 0; Waudby-Smith and Ramdas 2024, eq. 26). Under
    E[d] >= margin the chance of ever reaching 1/alpha is at most alpha (Ville), however often one looks.

    Args:
        difference_S: improvement of each seed pair (larger is better), in the order in which the seeds finished.
        margin: smallest improvement worth having.
        span: largest |difference| that is possible (1 for a proportion).

    Raises:
        UserError: a difference lies beyond `span`, so the bet would be unfair.
    """
    difference_S = np.asarray(difference_S, dtype=float)
    if span <= 0 or (np.abs(difference_S) > span).any() or np.isnan(difference_S).any():
        raise UserError(f"differences must be numbers within ±{span} (the range of the metric)")
    x_S = (difference_S - margin) / (span + abs(margin))
    evidence, total, squares = 1.0, 0.0, 0.25
    out = np.empty(len(x_S))
    for s, x in enumerate(x_S):
        stake = min(0.9, max(0.0, -total / squares))
        evidence *= 1 - stake * x
        out[s] = evidence
        total, squares = total + x, squares + x * x
    return out
