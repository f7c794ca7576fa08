"""Advantages: what each completion is worth beside the others of its prompt.

A rule is a pure function of the rewards of one group (or of a whole step) and is listed in `ADVANTAGES` or
`BATCH_ADVANTAGES`. `advantages` applies the rule of a configuration to a step and is the only place where missing
grades and groups that teach nothing are handled.

Shapes: P groups (prompts) of a step, G completions of a group; a rule sees only graded completions.
"""

from collections.abc import Callable, Sequence
from math import comb

import numpy as np

from finetrial.errors import UserError
from finetrial.train.rl_config import AdvantageConfig, RLConfig

RELATIVE = 1e-12
"""Rewards whose spread is below this share of the largest are equal up to rounding."""


def advantages(
    config: RLConfig,
    rewards: Sequence[np.ndarray],
    tokens: Sequence[np.ndarray],
    clusters: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Advantages of all completions of a step, by `config.advantage_mode`.

    Args:
        config: mode and parameters.
        rewards: P arrays (G,) float64; NaN where a grade is missing.
        tokens: P arrays (G,) of counts; reinforce_pp and reinforce_pp_baseline weigh statistics by them.
        clusters: P arrays (G,) of integers, the strategy of each completion (`strategies`); poly_epo needs them.

    Returns:
        P arrays (G,). A completion without a grade has advantage 0 and enters no statistic. So do all completions of
        a group that is not `informative`. Two modes define this differently, for what they compare is not the rewards
        of a group: reinforce_pp has no group baseline, so the whole step must be informative; poly_epo prefers diverse
        sets, so equal rewards above 0 still teach. pass@k modes and poly_epo give 0 to a group with too few graded
        completions for sets of the configured size.

    Raises:
        UserError: maxrl, passk_training or pkpo meets a reward outside [0, 1]; poly_epo has no clusters.
    """
    mode = config.advantage_mode
    graded = [~np.isnan(r_G) for r_G in rewards]
    kept = [r_G[g_G] for r_G, g_G in zip(rewards, graded, strict=True)]
    if mode in BATCH_ADVANTAGES:
        counts = [t_G[g_G] for t_G, g_G in zip(tokens, graded, strict=True)]
        values = BATCH_ADVANTAGES[mode](kept, counts)
    else:
        if mode == "poly_epo" and clusters is None:
            raise UserError("advantage_mode 'poly_epo' needs the strategy of every completion; expected clusters")
        kinds = [np.zeros(len(r_G), np.int64) for r_G in rewards] if clusters is None else clusters
        rule = ADVANTAGES[mode]
        values = [rule(r_G, k_G[g_G], config.advantage) for r_G, k_G, g_G in zip(kept, kinds, graded, strict=True)]
    out = []
    for value_G, graded_G in zip(values, graded, strict=True):
        advantage_G = np.zeros(len(graded_G))
        advantage_G[graded_G] = value_G
        out.append(advantage_G)
    return out


def informative(rewards_G: np.ndarray) -> bool:
    """Whether a group can teach: at least two graded completions (not NaN) whose rewards are not all equal.

    All right, all wrong, one completion, no grade: the group gives no signal. Where rewards are successes in [0, 1]
    this also excludes the group without a success.
    """
    r_G = rewards_G[~np.isnan(rewards_G)]
    return len(r_G) >= 2 and bool(np.ptp(r_G) > RELATIVE * np.abs(r_G).max())


def strategies(labels: Sequence[str | None]) -> np.ndarray:
    """Clusters (G,) for poly_epo: one integer per distinct label (an extracted answer, a judge's name of the approach).

    None, where nothing could be extracted, becomes -1: such a completion adds no strategy to a set.
    """
    known = {label: i for i, label in enumerate(dict.fromkeys(x for x in labels if x is not None))}
    return np.array([-1 if label is None else known[label] for label in labels], dtype=np.int64)


def grpo(r_G: np.ndarray, ddof: int, eps: float) -> np.ndarray:
    """A = (r - mean) / (std + eps), std with divisor G - ddof (Shao et al. 2024, arXiv:2402.03300, section 4.1.2)."""
    if not informative(r_G):
        return np.zeros(len(r_G))
    return (r_G - r_G.mean()) / (r_G.std(ddof=ddof) + eps)


def dr_grpo(r_G: np.ndarray) -> np.ndarray:
    """A = r - mean (Liu et al. 2025, arXiv:2503.20783): no division, which would favour very easy and hard prompts."""
    return r_G - r_G.mean() if informative(r_G) else np.zeros(len(r_G))


def rloo(r_G: np.ndarray) -> np.ndarray:
    """A_i = r_i - mean of the others = G / (G - 1) (r_i - mean) (Ahmadian et al. 2024, arXiv:2402.14740)."""
    return dr_grpo(r_G) * (len(r_G) / max(len(r_G) - 1, 1))


def maxrl(r_G: np.ndarray, eps: float) -> np.ndarray:
    """A = (r - mean) / (mean + eps) (arXiv:2602.02710, eq. 10): rare successes count for more.

    Raises:
        UserError: a reward outside [0, 1]; the denominator is a rate of success.
    """
    _check_successes("maxrl", r_G)
    return dr_grpo(r_G) / (r_G.mean() + eps) if informative(r_G) else np.zeros(len(r_G))


def passk_training(r_G: np.ndarray, k: int, eps: float) -> np.ndarray:
    """Advantage of a completion as a member of sets of k (Chen et al. 2025, arXiv:2508.10751), all sets enumerated.

    A_i = (E[max_I r | i in I] - E[max_I r]) / (std[max_I r] + eps) over the subsets I of size k. For rewards 0 and 1
    this is the paper's closed form with R = 1 - C(N_neg, k) / C(N, k) and std = √(R (1 - R)). It vanishes when fewer
    than k completions failed: every set succeeds.

    Raises:
        UserError: a reward outside [0, 1].
    """
    _check_successes("passk_training", r_G)
    n = len(r_G)
    if n < k or not informative(r_G):
        return np.zeros(n)
    shares_G = best_of(r_G, k)
    mean = shares_G.sum() / k
    variance = best_of(r_G**2, k).sum() / k - mean**2  # max of r² is (max r)² for r >= 0
    if variance <= RELATIVE:
        return np.zeros(n)
    return (shares_G * (n / k) - mean) / (np.sqrt(variance) + eps)


def pkpo(r_G: np.ndarray, k: int, baseline: str) -> np.ndarray:
    """Gradient weights of E[max of k rewards] (Walder and Karkhanis 2025, arXiv:2505.15201).

    With s = `best_of(r, k)` and rho(r, k) the mean of max_I r over subsets I of size k:
    loo (eq. 29): s_i - k / (n - 1) rho(r without i, k), for k < n;
    loo_minus_one (eq. 33): s_i - k / n rho(r without i, k - 1), for k >= 2: what the sets of i gain by i.
    Neither sums to 0; loo_minus_one is never negative.

    Raises:
        UserError: a reward outside [0, 1]; loo_minus_one with k = 1, which leaves no set to compare with.
    """
    _check_successes("pkpo", r_G)
    n = len(r_G)
    if baseline == "loo_minus_one" and k < 2:
        raise UserError("rl.advantage.k: pkpo with baseline 'loo_minus_one' needs k >= 2; 'loo' takes k = 1")
    if not informative(r_G) or n < k + (baseline == "loo"):
        return np.zeros(n)
    # The subsets without i are all subsets minus those with i: rho(r without i, k) = n (rho - s_i) / (n - k).
    shares_G = best_of(r_G, k)
    if baseline == "loo":
        return shares_G - (k / (n - 1)) * (n / (n - k)) * (shares_G.sum() / k - shares_G)
    fewer_G = best_of(r_G, k - 1)
    return shares_G - (k / (n - k + 1)) * (fewer_G.sum() / (k - 1) - fewer_G)


def best_of(r_G: np.ndarray, k: int) -> np.ndarray:
    """s_i = (sum of max_I r over the subsets I of size k that contain i) / C(n, k), exactly, in O(n log n).

    Sorted upwards, i at rank a is the best of C(a, k - 1) sets and belongs to C(b - 1, k - 2) sets whose best is at
    rank b > a. The mean of max_I r over all subsets is sum(s) / k. Needs 1 <= k <= n.
    """
    n = len(r_G)
    order_G = np.argsort(r_G, kind="stable")
    sorted_G = r_G[order_G]
    total = comb(n, k)
    own_G = np.array([comb(a, k - 1) / total for a in range(n)])
    above_G = np.array([comb(b - 1, k - 2) / total if b >= 1 and k >= 2 else 0.0 for b in range(n)]) * sorted_G
    later_G = above_G[::-1].cumsum()[::-1] - above_G
    out_G = np.empty(n)
    out_G[order_G] = own_G * sorted_G + later_G
    return out_G


def poly_epo(r_G: np.ndarray, clusters_G: np.ndarray, set_size: int) -> np.ndarray:
    """Marginal advantage in sets that should succeed and differ (Poly-EPO, arXiv:2604.17654, eq. 8, 10, 11).

    A set S of n completions scores f(S) = mean reward x distinct strategies / n; A_i = mean of f over the sets with i
    minus the mean over all sets. All C(G, n) sets are counted, in closed form: a sum over pairs (member, strategy) of
    the number of sets that hold both, O(G²) whatever n. Sums to 0. Needs G > n, else every advantage is 0.

    Args:
        r_G: rewards.
        clusters_G: integers; completions of one strategy share one; negative for none (adds no strategy).
        set_size: n.
    """
    count, n = len(r_G), set_size
    if count <= n:
        return np.zeros(count)
    names, inverse_G = np.unique(clusters_G, return_inverse=True)
    sizes = np.bincount(inverse_G)
    valid = names >= 0
    holding = comb(count - 1, n - 1)  # sets that hold one given completion
    # Shares of these sets which also miss a strategy that the completion (alone), or it and another, do not have.
    missed = np.array([comb(max(count - 1 - m, 0), n - 1) / holding for m in sizes.tolist()]) * valid
    missed_pair = np.array([comb(max(count - 2 - m, 0), n - 2) / holding for m in sizes.tolist()]) * valid
    own_G = valid.sum() - (missed.sum() - missed[inverse_G])
    shared_G = missed_pair[inverse_G]
    same_GG = inverse_G[:, None] == inverse_G
    absent_GG = missed_pair.sum() - shared_G[:, None] - shared_G + same_GG * shared_G
    pair_GG = valid.sum() * (comb(count - 2, n - 2) / holding) - absent_GG
    np.fill_diagonal(pair_GG, own_G)
    scores_G = pair_GG @ r_G / n**2
    return scores_G - scores_G.mean()


def reinforce_pp(rewards: Sequence[np.ndarray], tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
    """REINFORCE++ (Hu et al. 2025, arXiv:2501.03262): A = (r - mean) / std over the tokens of the whole step.

    Every token of a completion carries its reward, so mean and (population) variance are weighted by tokens; the
    variance is at least 1e-8 (as in OpenRLHF). No group baseline. All 0 where the rewards of the step are all equal.
    """
    if not informative(np.concatenate([np.zeros(0), *rewards])):
        return [np.zeros(len(r_G)) for r_G in rewards]
    return _whiten(rewards, tokens)


def reinforce_pp_returns(returns: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """`reinforce_pp` of tokens whose returns differ, because a divergence entered the reward (arXiv:2501.03262, eq. 8).

    Args:
        returns: per group and completion the return (T,) from each token on, NaN where there is no grade.

    Returns:
        Advantages in the same places: whitened over all tokens of graded completions, 0 for those of the others.
    """
    flat = [return_T for group in returns for return_T in group]
    graded = [return_T[~np.isnan(return_T)] for return_T in flat]
    white = iter(_whiten(graded, [np.ones(len(return_T)) for return_T in graded]))
    spread = [value_T if len(value_T) else np.zeros(len(mine_T)) for value_T, mine_T in zip(white, flat, strict=True)]
    places = iter(spread)
    return [[next(places) for _ in group] for group in returns]


def reinforce_pp_baseline(rewards: Sequence[np.ndarray], tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
    """REINFORCE++ with baseline: r - group mean, then whitened over the tokens of the step as in `reinforce_pp`.

    The statistics cover all graded completions, as published. Groups that are not informative then get 0; left alone
    they would all be pushed by the same constant -mean / std.
    """
    white = _whiten([r_G - r_G.mean() if len(r_G) else r_G for r_G in rewards], tokens)
    return [a_G * informative(r_G) for a_G, r_G in zip(white, rewards, strict=True)]


def _whiten(values: Sequence[np.ndarray], tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
    value_N = np.concatenate([np.zeros(0), *values])
    weight_N = np.concatenate([np.zeros(0), *tokens])
    if weight_N.sum() == 0:
        return [np.zeros(len(v_G)) for v_G in values]
    mean = np.average(value_N, weights=weight_N)
    variance = np.average((value_N - mean) ** 2, weights=weight_N)
    return [(v_G - mean) / np.sqrt(max(variance, 1e-8)) for v_G in values]


def _check_successes(mode: str, r_G: np.ndarray) -> None:
    outside = r_G[(r_G < 0) | (r_G > 1)]
    if len(outside):
        raise UserError(
            f"advantage_mode '{mode}' needs rewards in [0, 1], rates of success; found {float(outside[0])!r}. "
            "Expected unshaped grades; 'grpo', 'dr_grpo' and 'rloo' take any reward"
        )


GroupRule = Callable[[np.ndarray, np.ndarray, AdvantageConfig], np.ndarray]
BatchRule = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[np.ndarray]]

ADVANTAGES: dict[str, GroupRule] = {
    "grpo": lambda r_G, clusters_G, c: grpo(r_G, c.ddof, c.eps),
    "dr_grpo": lambda r_G, clusters_G, c: dr_grpo(r_G),
    "rloo": lambda r_G, clusters_G, c: rloo(r_G),
    "maxrl": lambda r_G, clusters_G, c: maxrl(r_G, c.eps),
    "passk_training": lambda r_G, clusters_G, c: passk_training(r_G, c.k, c.eps),
    "pkpo": lambda r_G, clusters_G, c: pkpo(r_G, c.k, c.pkpo),
    "poly_epo": lambda r_G, clusters_G, c: poly_epo(r_G, clusters_G, c.set_size),
}
"""Mode -> rule of (graded rewards, their clusters, parameters) of one group."""

BATCH_ADVANTAGES: dict[str, BatchRule] = {
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}
"""Mode -> rule of (graded rewards, tokens) of all groups of a step."""
