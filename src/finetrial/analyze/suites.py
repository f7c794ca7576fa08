"""Several suites at once: interquartile mean, probability of improvement, performance profiles.

The estimators of Agarwal et al. 2021 ("Deep reinforcement learning at the edge of the statistical precipice",
arXiv 2108.13264) with whole runs resampled: a run's scores on all suites are drawn together, because they come from
one training. Suites are strata and are never resampled. Scores must be comparable across suites (normalised).

Shapes: S seeds, T suites, B resamples, K thresholds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetrial.errors import UserError


@dataclass(frozen=True)
class Aggregate:
    """A number over suites with its bootstrap interval."""

    estimate: float
    ci: tuple[float, float]
    n_seeds: tuple[int, ...]
    n_suites: int
    unit: str = "whole training runs"


def interquartile_mean(scores_ST: np.ndarray) -> np.ndarray:
    """Mean of the middle half of all run × suite scores; leading axes are replicates.

    A quarter of the scores (rounded down) is cut at each end, as in scipy.stats.trim_mean(scores, 0.25).
    """
    flat = np.sort(scores_ST.reshape(*scores_ST.shape[:-2], -1), axis=-1)
    cut = int(0.25 * flat.shape[-1])
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def probability_of_improvement(a_ST: np.ndarray, b_ST: np.ndarray) -> np.ndarray:
    """Mean over suites of P(a run of a scores above one of b), ties one half: Mann-Whitney's U / (S_a S_b)."""
    difference = a_ST[..., :, None, :] - b_ST[..., None, :, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((-3, -2)).mean(-1)


def performance_profile(scores_ST: np.ndarray, thresholds_K: np.ndarray) -> np.ndarray:
    """Share of run × suite scores above each threshold, (..., K)."""
    return (scores_ST[..., None] > thresholds_K).mean((-3, -2))


def aggregate_iqm(
    scores_ST: np.ndarray, rng: np.random.Generator, *, level: float = 0.95, resamples: int = 5000
) -> Aggregate:
    """Interquartile mean of one recipe with a percentile interval over runs.

    Raises:
        UserError: fewer than 3 runs, or a missing score.
    """
    estimate, low, high = _over_runs(interquartile_mean, [scores_ST], rng, False, level, resamples)
    return Aggregate(float(estimate), (float(low), float(high)), (len(scores_ST),), scores_ST.shape[1])


def aggregate_improvement(
    a_ST: np.ndarray,
    b_ST: np.ndarray,
    rng: np.random.Generator,
    *,
    paired: bool,
    level: float = 0.95,
    resamples: int = 5000,
) -> Aggregate:
    """Probability that a run of `a` beats a run of `b`, with a percentile interval over runs.

    `paired` draws the same seeds in both arms. Raises UserError as `aggregate_iqm`, or for different suites.
    """
    if a_ST.shape[1] != b_ST.shape[1]:
        raise UserError(f"the two recipes have {a_ST.shape[1]} and {b_ST.shape[1]} suites; they must be the same ones")
    estimate, low, high = _over_runs(probability_of_improvement, [a_ST, b_ST], rng, paired, level, resamples)
    return Aggregate(float(estimate), (float(low), float(high)), (len(a_ST), len(b_ST)), a_ST.shape[1])


def aggregate_profile(
    scores_ST: np.ndarray,
    thresholds_K: np.ndarray,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 5000,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(share above each threshold, its lower and upper pointwise limit over runs), each (K,)."""

    def profile(x_BST: np.ndarray) -> np.ndarray:
        return performance_profile(x_BST, thresholds_K)

    return _over_runs(profile, [scores_ST], rng, False, level, resamples)


def _over_runs(
    statistic: Callable[..., np.ndarray],
    arms: list[np.ndarray],
    rng: np.random.Generator,
    paired: bool,
    level: float,
    resamples: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(estimate, low, high) with whole rows of each arm resampled, in blocks."""
    for scores_ST in arms:
        if len(scores_ST) < 3:
            raise UserError(f"{len(scores_ST)} runs measure no spread; at least 3 are required")
        if np.isnan(scores_ST).any():
            raise UserError("a run lacks a score on some suite; leave the suite or the run out, and say so")
    if paired and len({len(scores_ST) for scores_ST in arms}) > 1:
        raise UserError("paired recipes need the same seeds")
    parts = []
    for start in range(0, resamples, 500):
        n = min(500, resamples - start)
        rows = [rng.integers(len(scores_ST), size=(n, len(scores_ST))) for scores_ST in arms]
        if paired:
            rows = [rows[0]] * len(arms)
        parts.append(statistic(*(scores_ST[index] for scores_ST, index in zip(arms, rows, strict=True))))
    low, high = np.quantile(np.concatenate(parts), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return statistic(*arms), low, high
