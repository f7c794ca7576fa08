"""Policy losses as functions of log-probabilities alone.

The log-probability of a completion's token enters a policy loss as one number, so the loss and its slope with respect
to that number are arithmetic on vectors. A pass over the model gives nll = -logp with its graph; weighted with
`-slope_M`, it carries the gradient of any loss below in one backward pass. An entropy bonus is a second term of that
pass: the entropy, weighted with -entropy_coef · weight_M.

Everything is computed in float64, since ratios are exponentials of small differences, and detached: advantages,
importance weights and references are numbers, never paths for gradients.

Shapes: S completions (rows) of one run in a pass, M tokens of all of them, row after row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finetrial.train.rl_config import LossConfig

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within ± this before they are exponentiated, in value and slope alike."""


@dataclass(frozen=True)
class Rows:
    """Completions of one run in a pass, whole rows, their tokens side by side (M)."""

    advantage_M: Tensor
    old_logp_M: Tensor
    """Under the trained model before the first update of the step."""
    sampler_logp_M: Tensor
    """Under the distribution that was sampled from: temperature and filters included, other kernels perhaps."""
    ref_logp_M: Tensor | None
    """Under the base; needed for a divergence in the loss, else only for the log."""
    mask_M: Tensor
    """bool: whether the token takes part. What else is said of a token that does not is never read."""
    row_M: Tensor
    """int64 row of each token, 0 to S - 1."""


@dataclass(frozen=True)
class PolicyLoss:
    """Per token (M); a token that takes no part has 0, False and ratio 1 everywhere."""

    loss_M: Tensor
    """float64 loss, weighted: its sum over all passes of an update is the update's loss."""
    slope_M: Tensor
    """d(sum of losses) / d(log-probability), in the dtype of the log-probabilities."""
    clipped_M: Tensor
    """bool: the clip is active, which changes the gradient."""
    ratio_M: Tensor
    """float64 probability over the old one; for gspo and grpo_s the row's geometric or arithmetic mean."""
    kl_M: Tensor | None
    """float64 configured estimate of the divergence from the base, unweighted; None without a reference."""
    tis_M: Tensor | None
    """float64 truncated importance weight; None where `tis_cap` is unset."""
    clamped_M: Tensor
    """bool: a log-ratio reached `LOG_RATIO_LIMIT`; more than a few mean that two models disagree."""


def policy_loss(config: LossConfig, logp_M: Tensor, rows: Rows, weight_M: Tensor) -> PolicyLoss:
    """Loss and slope of one run's completions in a pass.

    With ρ = π / π_old of a token and A its advantage, the loss of a token is w · (tis · policy + kl_coef · kl):

    - `ppo`: -min(ρ A, clip(ρ, 1 - clip_low, 1 + clip_high) A) (Schulman et al. 2017, arXiv:1707.06347; unequal bounds
      as in DAPO, arXiv:2503.14476, equation 10). `dual_clip` c bounds it by -c A where A < 0 (arXiv:1912.09729).
    - `gspo`: the same with the row's ratio s = exp(mean of log ρ over its tokens that take part), in the form with
      token advantages (Zheng et al. 2025, arXiv:2507.18071, section 4.3): the value is that of s, and a token's slope
      is -s A where s is not clipped. With one advantage and weight per row it is the gradient of the sequence form.
    - `grpo_s`: the same with the row's ratio s = mean of ρ over its tokens that take part (Tan et al. 2025,
      arXiv:2508.04349): a token's slope is -ρ A where s is not clipped.
    - `cispo`: -sg(clip(ρ, 1 - clip_low, 1 + clip_high)) A log π (MiniMax-M1, arXiv:2506.13585, equations 4 and 5);
      every token keeps a gradient. `clip_low` of 1 or more is no lower bound. Its value means nothing by itself.

    tis = min(π_old / π_sampler, tis_cap), a constant (truncated importance sampling: the trainer's policy is not
    quite the sampler's). kl is the term of `kl_penalty` where `kl_in` is "loss"; as a loss it has the derivative
    of its own formula, not of the divergence that its value estimates. In expectation over tokens drawn from π

    - k1 has slope 1: no gradient at all;
    - k2 has slope log(π / ref): the gradient of KL(π || ref);
    - k3 has slope 1 - ref / π: the gradient of KL(ref || π).

    After the first update of a step the tokens are no longer drawn from π, and this holds approximately.

    Args:
        config: which loss.
        logp_M: log-probabilities under the model that learns, at the temperature of sampling; detached.
        rows: what is known of the tokens.
        weight_M: weight of each token, `token_weights` of its row.

    Raises:
        ValueError: a divergence in the loss without a reference.
    """
    in_loss = config.kl_in == "loss" and config.kl_coef > 0
    if in_loss and rows.ref_logp_M is None:
        raise ValueError("kl_coef is above 0 with kl_in = 'loss': rows.ref_logp_M is needed")
    mask_M = rows.mask_M
    logp64_M = _read(logp_M, mask_M)
    advantage_M, weight64_M = _read(rows.advantage_M, mask_M), _read(weight_M, mask_M)

    gap_M = logp64_M - _read(rows.old_logp_M, mask_M)
    if config.kind == "gspo":
        gap_M = torch.where(mask_M, _row_means(gap_M, mask_M, rows.row_M), 0.0)
    clamped_M = gap_M.abs() > LOG_RATIO_LIMIT
    token_ratio_M = ratio_M = gap_M.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if config.kind == "grpo_s":
        ratio_M = torch.where(mask_M, _row_means(torch.where(mask_M, ratio_M, 0.0), mask_M, rows.row_M), 1.0)
    within_M = ratio_M.clamp(1 - config.clip_low, 1 + config.clip_high)
    if config.kind == "cispo":
        clipped_M = within_M != ratio_M
        slope_M = -within_M * advantage_M
        loss_M = slope_M * logp64_M
    else:
        loss_M = torch.maximum(-ratio_M * advantage_M, -within_M * advantage_M)
        if config.dual_clip is not None:
            bound_M = torch.where(advantage_M < 0, -config.dual_clip * advantage_M, math.inf)
            loss_M = torch.minimum(loss_M, bound_M)
        clipped_M = loss_M != -ratio_M * advantage_M
        slope_M = torch.where(clipped_M, 0.0, -token_ratio_M * advantage_M)

    tis_M = None
    if config.tis_cap is not None:
        excess_M = _read(rows.old_logp_M, mask_M) - _read(rows.sampler_logp_M, mask_M)
        tis_M = excess_M.clamp(max=math.log(config.tis_cap)).exp()
        loss_M, slope_M = loss_M * tis_M, slope_M * tis_M

    kl_M = None
    if rows.ref_logp_M is not None:
        ref_M = _read(rows.ref_logp_M, mask_M)
        kl_M = kl_penalty(config.kl, logp64_M, ref_M)
        if in_loss:
            loss_M = loss_M + config.kl_coef * kl_M
            slope_M = slope_M + config.kl_coef * _kl_slope(config.kl, logp64_M, ref_M)
            if config.kl == "k3":
                clamped_M = clamped_M | (ref_M - logp64_M > LOG_RATIO_LIMIT)
    return PolicyLoss(
        loss_M=loss_M * weight64_M,
        slope_M=(slope_M * weight64_M).to(logp_M.dtype),
        clipped_M=clipped_M,
        ratio_M=ratio_M,
        kl_M=kl_M,
        tis_M=tis_M,
        clamped_M=clamped_M,
    )


def kl_penalty(kind: Literal["k1", "k2", "k3"], logp_M: Tensor, ref_logp_M: Tensor) -> Tensor:
    """Estimates (M,) of KL(π || ref) in nats at tokens drawn from π, detached (Schulman 2020, "Approximating KL").

    With r = ref / π: k1 = -log r, unbiased; k2 = (log r)² / 2, biased, never negative; k3 = r - 1 - log r, unbiased
    and never negative. Tokens that were not drawn from π, such as those of a data set, estimate nothing.
    """
    gap_M = (ref_logp_M - logp_M).detach()
    if kind == "k1":
        return -gap_M
    if kind == "k2":
        return gap_M.square() / 2
    return gap_M.clamp(max=LOG_RATIO_LIMIT).exp() - 1 - gap_M


def _kl_slope(kind: Literal["k1", "k2", "k3"], logp_M: Tensor, ref_logp_M: Tensor) -> Tensor:
    """Derivative of `kl_penalty` by log π."""
    gap_M = ref_logp_M - logp_M
    if kind == "k1":
        return torch.ones_like(gap_M)
    if kind == "k2":
        return -gap_M
    return 1 - gap_M.clamp(max=LOG_RATIO_LIMIT).exp()


def token_weights(
    aggregation: Literal["token_mean", "sequence_mean", "constant"],
    lengths_S: Sequence[int],
    max_tokens: int,
    rows_total: int,
    tokens_total: int,
) -> Tensor:
    """float64 weight (S,) of each token of a row.

    Denominators are of the run's whole update, so a loss does not depend on how its rows are laid out in passes.
    `token_mean` is 1 / tokens (DAPO, arXiv:2503.14476), `sequence_mean` 1 / (rows · tokens of the row) (GRPO,
    arXiv:2402.03300), `constant` 1 / (rows · max_tokens) (Dr. GRPO, arXiv:2503.20783).

    Args:
        aggregation: how token losses become one number.
        lengths_S: tokens of each row that take part; a row with none weighs 0.
        max_tokens: most tokens of a completion, as configured rather than as found in the batch.
        rows_total: completions of the update of which at least one token takes part.
        tokens_total: their tokens that take part.
    """
    length_S = torch.tensor(lengths_S, dtype=torch.float64)
    divisor_S = {
        "token_mean": torch.full_like(length_S, tokens_total),
        "sequence_mean": rows_total * length_S,
        "constant": torch.full_like(length_S, rows_total * max_tokens),
    }[aggregation]
    return torch.where(length_S > 0, 1 / divisor_S, 0.0)


def _read(numbers_M: Tensor, mask_M: Tensor) -> Tensor:
    """The numbers in float64, 0 at tokens that take no part, whatever stands there."""
    return torch.where(mask_M, numbers_M.detach().double(), 0.0)


def _row_means(numbers_M: Tensor, mask_M: Tensor, row_M: Tensor) -> Tensor:
    """Mean over each row's tokens that take part, at every token of the row."""
    rows = int(row_M.max()) + 1 if len(row_M) else 0
    total_S = numbers_M.new_zeros(rows).index_add_(0, row_M, numbers_M)  # 0 at tokens that take no part
    count_S = numbers_M.new_zeros(rows).index_add_(0, row_M, mask_M.to(numbers_M.dtype))
    return (total_S / count_S.clamp(min=1))[row_M]
