"""Variance components of one contrast: where the noise of a difference comes from.

Moments of the two-way layout (analysis of variance, method of moments). A negative moment estimate is truncated at 0
and named, because a printed 0 then means "not above 0", not "measured as 0".

Shapes: S seeds, I items.
"""

from dataclasses import dataclass

import numpy as np

from finetrial.analyze.table import Dense


@dataclass(frozen=True)
class Components:
    """Variances in squared units of the metric; the planner's inputs. None where the design cannot tell."""

    seed: float | None
    """Between runs of one recipe, pooled over the arms that have runs."""
    item: float
    """Between items, common to both arms: cancels in the difference."""
    recipe_item: float | None
    """Between items, of the two recipes' difference: what more seeds do not remove."""
    interaction: float | None
    """Seed × item of one cell's mean, sampling noise included."""
    sampling: float | None
    """Between samples of one cell; None with one sample per cell."""
    truncated: tuple[str, ...]
    """Components whose moment estimate was negative and is shown as 0."""

    def as_dict(self) -> dict[str, float]:
        """The components that could be estimated."""
        names = ("seed", "item", "recipe_item", "interaction", "sampling")
        return {name: float(getattr(self, name)) for name in names if getattr(self, name) is not None}


def components(candidate: Dense, baseline: Dense, candidate_SI: np.ndarray, baseline_SI: np.ndarray) -> Components:
    """Variance components from cell means on the common items (NaN missing), unweighted.

    Missing cells are handled by using each arm's residuals and the mean number of cells present.
    """
    arms = [(candidate_SI, candidate.frozen), (baseline_SI, baseline.frozen)]
    seed_moments, both_moments, means = [], [], []
    for values_SI, frozen in arms:
        means.append(np.nanmean(values_SI, axis=0))
        if frozen or len(values_SI) < 2:
            continue
        s, i = values_SI.shape
        residual_SI = values_SI - means[-1]
        deviation_S = np.nanmean(residual_SI, axis=1)
        residual_SI = residual_SI - deviation_S[:, None]
        filled = float(np.mean(~np.isnan(values_SI)))
        both = float(np.nansum(residual_SI**2)) / max((s - 1) * (i - 1) * filled, 1.0) if i > 1 else 0.0
        both_moments.append((both, s))
        seed_moments.append((float((deviation_S**2).sum()) / (s - 1) - both / (i * filled), s))
    truncated: list[str] = []

    def above_zero(name: str, value: float) -> float:
        if value < 0:
            truncated.append(name)
        return max(value, 0.0)

    seed = interaction = recipe_item = None
    if seed_moments:
        degrees = np.array([s - 1 for _, s in seed_moments])
        seed = above_zero("seed", float(np.average([v for v, _ in seed_moments], weights=degrees)))
        interaction = float(np.average([v for v, _ in both_moments], weights=degrees))
    noise = sum(both / s for both, s in both_moments)
    item = 0.0
    if len(means[0]) > 1:
        covariance = np.cov(np.stack(means))
        item = above_zero("item", float(covariance[0, 1]))
        if interaction is not None:
            difference = float(np.var(means[0] - means[1], ddof=1))
            recipe_item = above_zero("recipe_item", difference - noise)
    return Components(seed, item, recipe_item, interaction, _sampling(candidate, baseline), tuple(truncated))


def _sampling(candidate: Dense, baseline: Dense) -> float | None:
    """Pooled variance between the samples of a cell."""
    squares = degrees = 0.0
    for dense in (candidate, baseline):
        many = dense.count_SI > 1
        n, mean = dense.count_SI[many], dense.values_SI[many]
        squares += float(np.maximum(dense.squares_SI[many] - n * mean**2, 0.0).sum())
        degrees += float((n - 1).sum())
    return squares / degrees if degrees else None
