"""The next token of each row: softmax with temperature, filters, and inversion of the cumulative distribution.

One uniform number per position decides a token: the first one, in the order of the vocabulary, whose cumulative mass
lies beyond it. That takes one number where the Gumbel trick takes one per entry of the vocabulary, so the noise can
come from a stream that is named by its row and is the same on every device. Cumulative masses are float64 over blocks
of the vocabulary and then inside one block: no token of zero mass can be drawn and no tail is rounded away.

Shapes: S rows, V vocabulary, B blocks of W tokens each (V = B · W), F rows that need sorting.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetrial.generate.config import SamplingConfig

HEAD_TOKENS = 128
"""Likeliest tokens among which a nucleus is looked for on a CPU before all of the vocabulary is sorted."""


@dataclass(frozen=True)
class Rules:
    """How each row's token is drawn; None where no row asks for it."""

    temperature_S1: Tensor | None
    greedy_S: Tensor | None
    min_p_S1: Tensor | None
    sorted_F: Tensor | None
    """Rows with top_k or top_p."""
    top_k_F1: Tensor | None
    top_p_F1: Tensor | None

    @property
    def plain(self) -> bool:
        """Whether tokens come from the plain softmax."""
        return self.temperature_S1 is None and self.greedy_S is None and self.min_p_S1 is None and self.sorted_F is None


@dataclass(frozen=True)
class Drawn:
    """One token per row and what was known about it."""

    token_S: Tensor
    """int64."""
    logp_S: Tensor
    """Log-probability under the distribution drawn from; 0 where the likeliest token was taken."""
    raw_logp_S: Tensor
    """Log-probability under the plain softmax."""
    entropy_S: Tensor
    """Nats of the plain softmax."""


def rules(configs: Sequence[SamplingConfig], device: torch.device) -> Rules:
    """The rules of rows with these configurations."""
    greedy = [config.temperature == 0 for config in configs]
    temperature = [config.temperature or 1.0 for config in configs]
    min_p = [config.min_p for config in configs]
    chosen = [s for s, c in enumerate(configs) if (c.top_k or c.top_p < 1) and not greedy[s]]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    return Rules(
        temperature_S1=column(temperature) if any(t != 1 for t in temperature) else None,
        greedy_S=torch.tensor(greedy, device=device) if any(greedy) else None,
        min_p_S1=column(min_p) if any(min_p) else None,
        sorted_F=torch.tensor(chosen, device=device) if chosen else None,
        top_k_F1=torch.tensor([configs[s].top_k for s in chosen], device=device)[:, None] if chosen else None,
        top_p_F1=column([configs[s].top_p for s in chosen]) if chosen else None,
    )


def draw(logits_SV: Tensor, uniform_S: Tensor, how: Rules) -> Drawn:
    """Draw one token per row.

    Args:
        logits_SV: float32 or float64; overwritten.
        uniform_S: float64 in [0, 1).
        how: the rows' rules.
    """
    shifted_SV = logits_SV.sub_(logits_SV.amax(dim=1, keepdim=True))
    weight_SV = shifted_SV.exp()
    mass_SB = _masses(weight_SV)
    total_S = mass_SB.sum(dim=1)
    log_total_S = total_S.log()
    entropy_S = log_total_S - torch.linalg.vecdot(weight_SV, shifted_SV) / total_S
    if how.plain:
        token_S = _invert(weight_SV, mass_SB, uniform_S)
        raw_logp_S = _at(shifted_SV, token_S) - log_total_S
        return Drawn(token_S, raw_logp_S, raw_logp_S, entropy_S)
    if how.temperature_S1 is not None:
        weight_SV = (shifted_SV / how.temperature_S1).exp_()
    if how.sorted_F is not None:
        assert how.top_k_F1 is not None
        assert how.top_p_F1 is not None
        weight_SV[how.sorted_F] = filtered(weight_SV[how.sorted_F], how.top_k_F1, how.top_p_F1)
    if how.min_p_S1 is not None:
        weight_SV.masked_fill_(weight_SV < how.min_p_S1, 0.0)  # the likeliest token weighs 1
    mass_SB = _masses(weight_SV)
    token_S = _invert(weight_SV, mass_SB, uniform_S)
    if how.greedy_S is not None:
        token_S = torch.where(how.greedy_S, shifted_SV.argmax(dim=1), token_S)
    logp_S = _at(weight_SV, token_S).log() - mass_SB.sum(dim=1).log()
    if how.greedy_S is not None:
        logp_S = logp_S.masked_fill(how.greedy_S, 0.0)
    return Drawn(token_S, logp_S, _at(shifted_SV, token_S) - log_total_S, entropy_S)


def filtered(weight_FV: Tensor, top_k_F1: Tensor, top_p_F1: Tensor) -> Tensor:
    """Unnormalised masses with those of dropped tokens set to 0; the likeliest token always stays.

    First the `top_k` likeliest tokens are kept (0 keeps all), then of these the fewest likeliest ones whose share of
    the kept mass reaches `top_p` (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751). Among equal masses the
    lower token id is the likelier one.
    """
    vocabulary = weight_FV.shape[1]
    limit_F1 = torch.where(top_k_F1 > 0, top_k_F1, vocabulary)
    if weight_FV.device.type == "cpu":  # elsewhere a sort costs less than waiting for the answer
        head = max(HEAD_TOKENS, int(top_k_F1.max()) + 1)
        if head < vocabulary:
            top_FR = weight_FV.topk(head, dim=1).values
            kept_F1 = _kept(top_FR, limit_F1, top_p_F1, weight_FV)
            least_F1 = top_FR.gather(1, kept_F1 - 1)
            beyond_F1 = top_FR.gather(1, kept_F1.clamp(max=head - 1))
            if bool((beyond_F1 < least_F1).all()):  # else the cut lies further down, or between equal masses
                return weight_FV.masked_fill(weight_FV < least_F1, 0.0)
    sorted_FV, order_FV = torch.sort(weight_FV, dim=1, descending=True, stable=True)
    kept_F1 = _kept(sorted_FV, limit_F1, top_p_F1, weight_FV)
    drop_FV = torch.arange(vocabulary, device=weight_FV.device) >= kept_F1
    return weight_FV.masked_fill(torch.zeros_like(drop_FV).scatter_(1, order_FV, drop_FV), 0.0)


def _kept(sorted_FR: Tensor, limit_F1: Tensor, top_p_F1: Tensor, weight_FV: Tensor) -> Tensor:
    """How many of the likeliest tokens stay (F, 1), as far as the R likeliest ones tell."""
    ranks = sorted_FR.shape[1]
    rank_R = torch.arange(ranks, device=sorted_FR.device)
    mass_FR = sorted_FR.double().masked_fill(rank_R >= limit_F1, 0.0)
    reach_FR = mass_FR.cumsum(dim=1)
    whole_F1 = torch.where(limit_F1 > ranks, weight_FV.sum(dim=1, keepdim=True, dtype=torch.float64), reach_FR[:, -1:])
    goal_F1 = torch.where(top_p_F1 < 1, top_p_F1.double() * whole_F1, math.inf)
    return ((rank_R < limit_F1) & (reach_FR - mass_FR < goal_F1)).sum(dim=1, keepdim=True)


@functools.cache
def _width(vocabulary: int) -> int:
    """The largest divisor of the vocabulary that is not above its square root."""
    return next(width for width in range(math.isqrt(vocabulary), 0, -1) if vocabulary % width == 0)


def _masses(weight_SV: Tensor) -> Tensor:
    """Mass of each block of the vocabulary (S, B)."""
    return weight_SV.view(len(weight_SV), -1, _width(weight_SV.shape[1])).sum(dim=2)


def _invert(weight_SV: Tensor, mass_SB: Tensor, uniform_S: Tensor) -> Tensor:
    """The token at which the cumulative mass passes `uniform_S` of the whole (S,)."""
    rows, vocabulary = weight_SV.shape
    width = _width(vocabulary)
    block_S1, share_S1 = _beyond(mass_SB, uniform_S[:, None])
    inside_SW = weight_SV.view(rows, -1, width).gather(1, block_S1[:, :, None].expand(-1, -1, width))[:, 0]
    place_S1, _ = _beyond(inside_SW, share_S1)
    return (block_S1 * width + place_S1)[:, 0]


def _beyond(mass_SB: Tensor, share_S1: Tensor) -> tuple[Tensor, Tensor]:
    """First index whose cumulative mass exceeds the share of the whole, and how far into its own mass that is."""
    reach_SB = mass_SB.double().cumsum(dim=1)
    total_S1 = reach_SB[:, -1:]
    goal_S1 = torch.minimum(share_S1 * total_S1, torch.nextafter(total_S1, torch.zeros_like(total_S1)))
    # numbers that are not finite would give an index outside; the caller refuses them by their entropy
    index_S1 = torch.searchsorted(reach_SB, goal_S1, right=True).clamp_(max=mass_SB.shape[1] - 1)
    own_S1 = mass_SB.gather(1, index_S1).double()
    before_S1 = reach_SB.gather(1, index_S1) - own_S1
    return index_S1, ((goal_S1 - before_S1) / own_S1).clamp_(0.0, 1.0)


def _at(values_SV: Tensor, token_S: Tensor) -> Tensor:
    return values_SV.gather(1, token_S[:, None])[:, 0]
