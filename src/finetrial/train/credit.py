"""Token-level credit: how the advantage of a completion is shared out among its tokens.

Order: advantage -> uncertainty -> pooling (SEPA) -> weights (GTPO) -> planning tokens (HICRA). All of it is numpy on
sampled numbers, so no gradient can flow through a weight. A transform is a pure function and is listed in
`TRANSFORMS`; it sees the tokens of one group end to end.

Shapes: G completions of a group, T tokens of a completion, N tokens of the group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from finetrial.errors import UserError
from finetrial.train.advantages import informative
from finetrial.train.rl_config import RLConfig

LEAST_MEAN = 1e-7
"""Mean uncertainty of a completion below which GTPO leaves its tokens alike: nothing to weigh by."""


@dataclass(frozen=True)
class Credit:
    """Credit of a group, one array (T,) per completion."""

    advantage: list[np.ndarray]
    uncertainty_after: list[np.ndarray]
    """Uncertainty after pooling; as given where the transform does not pool."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a group end to end."""

    reward_G: np.ndarray
    """NaN where a grade is missing."""
    advantage_N: np.ndarray
    """The advantage of each token's completion, or its own."""
    uncertainty_N: np.ndarray
    planning_N: np.ndarray
    """bool; the others are execution tokens."""
    owner_N: np.ndarray
    """Index of each token's completion, ascending."""
    position_N: np.ndarray
    """Index of each token in its completion."""

    def mean_G(self, value_N: np.ndarray, among_N: np.ndarray | None = None) -> np.ndarray:
        """Mean per completion (over the tokens `among_N`, bool, where given); 0 where there is no such token."""
        weight_N = np.ones(len(value_N)) if among_N is None else among_N.astype(np.float64)
        total_G = np.bincount(self.owner_N, value_N * weight_N, minlength=len(self.reward_G))
        count_G = np.bincount(self.owner_N, weight_N, minlength=len(self.reward_G))
        return total_G / np.maximum(count_G, 1)


def credit(
    config: RLConfig,
    advantage: Sequence[float | np.ndarray],
    rewards_G: np.ndarray,
    uncertainty: Sequence[np.ndarray],
    planning: Sequence[np.ndarray],
    sepa_lambda: float,
) -> Credit:
    """Share the advantages of one group out among its tokens by `config.transform_mode`.

    Args:
        config: mode and parameters.
        advantage: (G,) from `advantages`; or G arrays (T,) where tokens have their own already.
        rewards_G: (G,) rewards, NaN where missing. gtpo_published and grpo_s start from these, not from the advantage.
        uncertainty: G arrays (T,), see `uncertainty`.
        planning: G arrays (T,) bool.
        sepa_lambda: strength of pooling in [0, 1]; of modes with sepa in their name.

    Raises:
        UserError: gtpo_published or grpo_s meets a reward other than 0 or 1.
    """
    lengths_G = np.array([len(u_T) for u_T in uncertainty], dtype=np.int64)
    if [len(p_T) for p_T in planning] != lengths_G.tolist() or not len(advantage) == len(rewards_G) == len(lengths_G):
        raise ValueError(f"shapes differ: {len(advantage)} advantages, tokens {lengths_G.tolist()}")
    starts_G = lengths_G.cumsum() - lengths_G
    owner_N = np.repeat(np.arange(len(lengths_G)), lengths_G)
    tokens = Tokens(
        reward_G=np.asarray(rewards_G, np.float64),
        advantage_N=np.concatenate([np.zeros(0), *map(np.broadcast_to, advantage, lengths_G)]),
        uncertainty_N=np.concatenate([np.zeros(0), *uncertainty]),
        planning_N=np.concatenate([np.zeros(0, bool), *planning]).astype(bool),
        owner_N=owner_N,
        position_N=np.arange(len(owner_N)) - starts_G[owner_N],
    )
    advantage_N, after_N = TRANSFORMS[config.transform_mode](tokens, config, sepa_lambda)
    cuts = starts_G[1:]
    return Credit(np.split(advantage_N, cuts), np.split(after_N, cuts)) if len(lengths_G) else Credit([], [])


def uncertainty(kind: str, raw_logp_T: np.ndarray, entropy_T: np.ndarray | None = None) -> np.ndarray:
    """How unsure the model was of each sampled token, (T,) >= 0.

    Args:
        kind: surprisal: -log p; entropy: of the whole distribution, as given; predictive_variance: p (1 - p).
        raw_logp_T: log p of the sampled token under the model itself: temperature 1, no top-p or top-k.
        entropy_T: entropy in nats of that distribution; only entropy needs it.
    """
    if kind == "surprisal":
        return -raw_logp_T
    if kind == "predictive_variance":
        return np.exp(raw_logp_T) * -np.expm1(raw_logp_T)
    if kind == "entropy" and entropy_T is not None:
        return entropy_T
    raise ValueError(f"no uncertainty of kind {kind!r}" + (": the entropies are missing" if kind == "entropy" else ""))


def sepa_pool(tokens: Tokens, strength: float) -> np.ndarray:
    """Selective entropy pooling: execution tokens move towards their completion's execution mean.

    S' = λ mean_exec + (1 - λ) S; planning tokens are untouched, bit by bit. Keeps the execution mean at every λ in
    [0, 1], hence also the weight of planning tokens: only the spread among execution tokens goes. λ = 0 changes
    nothing.
    """
    mean_N = _execution_mean(tokens)
    pooled_N = strength * mean_N + (1 - strength) * tokens.uncertainty_N
    return np.where(tokens.planning_N, tokens.uncertainty_N, pooled_N)


def sepa_amplify(tokens: Tokens, strength: float, floor: bool) -> np.ndarray:
    """The opposite of pooling: S' = (1 + λ) S - λ mean_exec for execution tokens; never below 0 with `floor`."""
    amplified_N = (1 + strength) * tokens.uncertainty_N - strength * _execution_mean(tokens)
    if floor:
        amplified_N = np.maximum(amplified_N, 0.0)
    return np.where(tokens.planning_N, tokens.uncertainty_N, amplified_N)


def gtpo_weights(tokens: Tokens, uncertainty_N: np.ndarray, beta: float) -> np.ndarray:
    """Multiplicative form of GTPO: w = max(0, 1 + β (S / mean S - 1)), mean over the completion.

    Their mean over a completion is 1 while none is cut at 0, so its advantage is moved, not changed. All 1 where
    the mean uncertainty is about 0.
    """
    mean_N = tokens.mean_G(uncertainty_N)[tokens.owner_N]
    usable_N = mean_N >= LEAST_MEAN
    relative_N = np.divide(uncertainty_N, mean_N, out=np.ones(len(mean_N)), where=usable_N)
    return np.maximum(0.0, 1 + beta * (relative_N - 1))


def hicra(advantage_N: np.ndarray, planning_N: np.ndarray, alpha: float) -> np.ndarray:
    """A + α |A| on planning tokens (arXiv:2509.03646): rewarded more when right, blamed less when wrong."""
    return advantage_N + alpha * np.abs(advantage_N) * planning_N


def gtpo_published(tokens: Tokens, alpha1: float, alpha2: float, entropy_floor: float) -> np.ndarray:
    """GTPO as published (arXiv:2508.04349, eq. 3, 5, 6): token-level rewards, normalised per sign and group.

    Right completions: α1 + α2 (H / sum H) d_t, sum and number d_t over the right ones that reach position t. Wrong
    ones: -α1 - α2 ((1/H) / sum 1/H) h_t likewise, with H at least `entropy_floor`, for 1/H grows without bound on
    certain tokens. Then both classes are brought to mean 0 and variance 1 (population, 1e-8 added), each for itself.

    This starts from rewards, not from the advantage, which it replaces. Mind what the normalisation does: within each
    class the sum is 0, so tokens of a right completion can be pushed down, and a class of one completion, whose
    shares are all 1, gets 0. Groups that are not informative get 0, as do completions without a grade.

    Raises:
        UserError: a reward other than 0 or 1.
    """
    out_N = np.zeros(len(tokens.owner_N))
    if not _right_or_wrong(tokens.reward_G, "gtpo_published"):
        return out_N
    for reward in (1.0, 0.0):
        mine_N = (tokens.reward_G == reward)[tokens.owner_N]
        out_N[mine_N] = _normalised(
            shaped(reward, tokens.uncertainty_N[mine_N], tokens.position_N[mine_N], alpha1, alpha2, entropy_floor)
        )
    return out_N


def grpo_s(tokens: Tokens, beta1: float, beta2: float, entropy_floor: float) -> np.ndarray:
    """GRPO-S (arXiv:2508.04349): the same as `gtpo_published` of whole completions and their mean entropies.

    Right completions have the reward β1 + β2 (Ĥ / sum Ĥ) n, wrong ones -β1 - β2 ((1/Ĥ) / sum 1/Ĥ) m, with Ĥ the mean
    entropy of a completion's tokens and n right, m wrong completions in the group. It belongs to a loss whose ratio is
    the completion's mean one (`loss.kind = "grpo_s"`). What `gtpo_published` says of the normalisation holds here too.

    Raises:
        UserError: a reward other than 0 or 1.
    """
    out_G = np.zeros(len(tokens.reward_G))
    if _right_or_wrong(tokens.reward_G, "grpo_s"):
        mean_G = tokens.mean_G(tokens.uncertainty_N)
        for reward in (1.0, 0.0):
            mine_G = tokens.reward_G == reward
            together = np.zeros(mine_G.sum(), np.int64)
            out_G[mine_G] = _normalised(shaped(reward, mean_G[mine_G], together, beta1, beta2, entropy_floor))
    return out_G[tokens.owner_N]


def shaped(
    reward: float, entropy_M: np.ndarray, place_M: np.ndarray, outcome: float, share: float, entropy_floor: float
) -> np.ndarray:
    """Rewards (M,) of right (1) or wrong (0) things, before they are normalised: ±(outcome + share · part · count).

    The part is that of a thing in the sum of H, of wrong ones in the sum of 1 / max(H, `entropy_floor`), over the
    things at its place, and the count is of those. So the rewards at a place sum to ± its count where outcome + share
    is 1 (proposition 2.2).

    Args:
        reward: 1 or 0.
        entropy_M: entropy in nats of each thing: tokens, or completions.
        place_M: int64, which of them compete: a token's index in its completion, or one number for all.
        outcome: weight of having been right or wrong.
        share: weight of the entropy.
        entropy_floor: least entropy inside 1/H.
    """
    mass_M = entropy_M if reward else 1 / np.maximum(entropy_M, entropy_floor)
    mean_M = (np.bincount(place_M, mass_M) / np.maximum(np.bincount(place_M), 1))[place_M]
    # Part times count is mass over mean mass; where nothing has any they share alike.
    relative_M = np.divide(mass_M, mean_M, out=np.ones(len(place_M)), where=mean_M > 0)
    return (1.0 if reward else -1.0) * (outcome + share * relative_M)


def _right_or_wrong(reward_G: np.ndarray, mode: str) -> bool:
    """Whether the group has something to tell; its rewards are 0, 1 or missing."""
    if odd := sorted({float(r) for r in reward_G[~np.isnan(reward_G)]} - {0.0, 1.0}):
        raise UserError(f"transform_mode '{mode}' needs rewards 0 or 1; found {odd[0]!r}. Expected plain grades")
    return informative(reward_G)


def _normalised(shaped_M: np.ndarray) -> np.ndarray:
    return (shaped_M - shaped_M.mean()) / np.sqrt(shaped_M.var() + 1e-8) if len(shaped_M) else shaped_M


def entropy_mask(tokens: Tokens, share: float) -> np.ndarray:
    """Which tokens learn, (N,) bool: the `share` most uncertain ones of the group's graded completions (and ties).

    Rounded down, at least one (Wang et al. 2025, arXiv:2506.01939, there over the batch).
    """
    graded_N = ~np.isnan(tokens.reward_G)[tokens.owner_N]
    candidates = tokens.uncertainty_N[graded_N]
    if not len(candidates):
        return graded_N
    keep = max(1, int(len(candidates) * share + 1e-9))
    threshold = np.partition(candidates, -keep)[-keep]
    return graded_N & (tokens.uncertainty_N >= threshold)


def delight_gate(tokens: Tokens, eta: float) -> np.ndarray:
    """Gate σ(A S / η) in (0, 1): opens for surprising tokens of good completions, closes for those of bad ones."""
    return expit(tokens.advantage_N * tokens.uncertainty_N / eta)


def _execution_mean(tokens: Tokens) -> np.ndarray:
    return tokens.mean_G(tokens.uncertainty_N, ~tokens.planning_N)[tokens.owner_N]


def _gtpo(tokens: Tokens, config: RLConfig, after_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tokens.advantage_N * gtpo_weights(tokens, after_N, config.gtpo.beta), after_N


def _gtpo_hicra(tokens: Tokens, config: RLConfig, _: float) -> tuple[np.ndarray, np.ndarray]:
    weighted_N, after_N = _gtpo(tokens, config, tokens.uncertainty_N)
    return hicra(weighted_N, tokens.planning_N, config.hicra.alpha), after_N


def _gtpo_published(tokens: Tokens, config: RLConfig, _: float) -> tuple[np.ndarray, np.ndarray]:
    c = config.gtpo
    return gtpo_published(tokens, c.alpha1, c.alpha2, c.entropy_floor), tokens.uncertainty_N


def _grpo_s(tokens: Tokens, config: RLConfig, _: float) -> tuple[np.ndarray, np.ndarray]:
    c = config.gtpo
    return grpo_s(tokens, c.alpha1, c.alpha2, c.entropy_floor), tokens.uncertainty_N


def _delight(tokens: Tokens, config: RLConfig, strength: float) -> tuple[np.ndarray, np.ndarray]:
    gate_N = delight_gate(tokens, config.delight.eta)
    return tokens.advantage_N * ((1 - strength) + strength * gate_N), tokens.uncertainty_N


Transform = Callable[[Tokens, RLConfig, float], tuple[np.ndarray, np.ndarray]]

TRANSFORMS: dict[str, Transform] = {
    "none": lambda t, c, strength: (t.advantage_N, t.uncertainty_N),
    "gtpo": lambda t, c, strength: _gtpo(t, c, t.uncertainty_N),
    "gtpo_hicra": _gtpo_hicra,
    "gtpo_sepa": lambda t, c, strength: _gtpo(t, c, sepa_pool(t, strength)),
    "gtpo_sepa_amp": lambda t, c, strength: _gtpo(t, c, sepa_amplify(t, strength, floor=False)),
    "gtpo_sepa_amp_c": lambda t, c, strength: _gtpo(t, c, sepa_amplify(t, strength, floor=True)),
    "gtpo_published": _gtpo_published,
    "grpo_s": _grpo_s,
    "entropy_mask": lambda t, c, strength: (t.advantage_N * entropy_mask(t, c.mask.share), t.uncertainty_N),
    "delight": lambda t, c, strength: _delight(t, c, 1.0),
    "delight_sepa": _delight,
}
"""Mode -> rule of (tokens of a group, parameters, strength of pooling) -> (advantage, uncertainty after pooling)."""
