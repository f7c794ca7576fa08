"""Scores of sets of completions, and what each completion of a set is worth to it.

A completion cannot be diverse alone: a set of n completions of one prompt gets one score f, and a completion's
advantage is what the set would lose without it. Nothing here is differentiable and nothing needs to be: the advantages
are constants of a policy gradient.

Shapes: N completions of a set, H features of an embedding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetrial.evaluate.bleu import self_bleu
from finetrial.evaluate.ngrams import distinct
from finetrial.evaluate.semantic import semantic_diversity, vendi

ROUNDING = 1e-9
"""Scores of subsets that differ by less are equal: what is left of them is rounding, and would be taught."""


@dataclass(frozen=True)
class Members:
    """What the rules know of the completions of one set; each rule reads what it needs."""

    texts: tuple[Sequence[str], ...]
    """Words of each completion."""
    embedding_NH: np.ndarray | None = None
    """A row of NaN is a text without tokens."""
    strategy_N: np.ndarray | None = None
    """Equal numbers are the same strategy."""

    def without(self, i: int) -> "Members":
        """The set that is left when completion `i` is taken out."""
        embedding_NH = None if self.embedding_NH is None else np.delete(self.embedding_NH, i, axis=0)
        strategy_N = None if self.strategy_N is None else np.delete(self.strategy_N, i)
        return Members(self.texts[:i] + self.texts[i + 1 :], embedding_NH, strategy_N)


@dataclass(frozen=True)
class SetScore:
    """One set, scored."""

    diversity: float
    """In [0, 1]."""
    quality: float
    """Mean over the completions, in [0, 1]."""
    advantage_N: np.ndarray
    """float64, adds up to 0; see `advantages`."""
    flat: bool
    """Diversity is the same, below 1, whichever completion is left out; what advantages there are come from quality."""
    saturated: bool = False
    """Diversity is 1 whichever completion is left out: it has nothing to gain; advantages as above."""

    @property
    def full(self) -> bool:
        """Whether no set of completions could score more."""
        return self.saturated and self.quality >= 1 - ROUNDING

    @property
    def score(self) -> float:
        """f = quality × diversity (Polychromic objectives, arXiv:2509.25424)."""
        return self.quality * self.diversity


def score_set(kind: str, members: Members, quality_N: np.ndarray, order: int) -> SetScore | None:
    """Score a set and its completions; None where the rule cannot score the set or one of its subsets.

    f(S) = mean quality × diversity, also for every subset without one completion: a completion of low quality lowers
    f although it differs, so noise is not rewarded.

    Args:
        kind: a rule of `DIVERSITY`.
        members: of the set, three or more.
        quality_N: float64 in [0, 1].
        order: n of `distinct` and `self_bleu`.

    Raises:
        ValueError: fewer than three completions, whose subsets could not be compared.
    """
    count = len(members.texts)
    if count < 3:
        raise ValueError(f"a set of {count}: expected 3 completions or more, so that what is left still is a set")
    rule = DIVERSITY[kind]
    whole = rule(members, order)
    rest_N = [rule(members.without(i), order) for i in range(count)]
    if whole is None or any(value is None for value in rest_N):
        return None
    diversity_N = np.array(rest_N, dtype=np.float64)
    kept_N = (quality_N.sum() - quality_N) / (count - 1)
    same = not advantages(diversity_N).any()
    saturated = same and min(whole, *diversity_N) >= 1 - ROUNDING
    worth_N = advantages(kept_N * diversity_N)
    return SetScore(whole, float(quality_N.mean()), worth_N, flat=same and not saturated, saturated=saturated)


def advantages(without_N: np.ndarray) -> np.ndarray:
    """A_i = mean of f(S without j) over j - f(S without i): what the set loses without completion i. float64 (N,).

    f(S without i) does not depend on completion i, so it is a baseline that biases nothing, and sum_i A_i ∇log p(y_i)
    is an unbiased estimate of the gradient of E[f] for sets of N - 1 completions. It is N - 1 times the marginal
    advantage of Poly-EPO (arXiv:2604.17654, eq. 8 and 11) over all sets of N - 1. Sums to 0, unlike f(S) - f(S without
    i): sets of different size have scores of different size, and their common difference would only be noise.
    Exactly 0 where all subsets score the same: such a set teaches nothing.

    Args:
        without_N: f(S without i).
    """
    if np.ptp(without_N) <= ROUNDING * np.abs(without_N).max():
        return np.zeros(len(without_N))
    return without_N.mean() - without_N


def _distinct(members: Members, order: int) -> float | None:
    """Distinct n-grams / n-grams of all completions together (Li et al. 2016, arXiv:1510.03055). Falls as texts grow,
    so it also rewards brevity."""
    return distinct(members.texts, order) if _some_differ(members) else 0.0


def _self_bleu(members: Members, order: int) -> float | None:
    """1 - mean BLEU-`order` of each completion against the others (Zhu et al. 2018, arXiv:1802.01886)."""
    if not _some_differ(members):
        return 0.0
    value = self_bleu(members.texts, order)
    return None if value is None else 1 - value


def _semantic(members: Members, order: int) -> float | None:
    """1 - mean cosine of pairs, at most 1."""
    value = semantic_diversity(_embedding(members)) if _some_differ(members) else 0.0
    return None if value is None else min(1.0, value)


def _vendi(members: Members, order: int) -> float | None:
    """Vendi score / N (Friedman and Dieng 2023, arXiv:2210.02410): the share of completions that count as different."""
    value = vendi(_embedding(members)) if _some_differ(members) else 0.0
    return None if value is None else value / len(members.texts)


def _log_det(members: Members, order: int) -> float | None:
    """ln det(L + I) / (N ln 2) for the cosines L (DQO, arXiv:2509.04784): 1 where all completions are orthogonal.

    L + I is positive definite, so copies, whose own determinant is 0, have a finite score.
    """
    if not _some_differ(members):
        return 0.0
    embedding_NH = _embedding(members)
    kept_NH = embedding_NH[~np.isnan(embedding_NH).any(axis=1)].astype(np.float64)
    unit_NH = kept_NH / np.linalg.norm(kept_NH, axis=1, keepdims=True)
    _, log_det = np.linalg.slogdet(unit_NH @ unit_NH.T + np.eye(len(unit_NH)))
    return float(log_det) / (len(members.texts) * math.log(2))


def _clusters(members: Members, order: int) -> float | None:
    """Distinct strategies / N (Poly-EPO, arXiv:2604.17654, eq. 10)."""
    assert members.strategy_N is not None
    return len(np.unique(members.strategy_N)) / len(members.strategy_N)


def _some_differ(members: Members) -> bool:
    """Whether two completions have words at all. One text beside empty ones has no diversity, however rich it is."""
    return sum(bool(words) for words in members.texts) >= 2


def _embedding(members: Members) -> np.ndarray:
    assert members.embedding_NH is not None
    return members.embedding_NH


DIVERSITY: dict[str, Callable[[Members, int], float | None]] = {
    "distinct": _distinct,
    "self_bleu": _self_bleu,
    "semantic": _semantic,
    "vendi": _vendi,
    "log_det": _log_det,
    "clusters": _clusters,
}
"""Kind -> rule of (members, n of n-grams): diversity in [0, 1]; None where it has no meaning for these texts."""
