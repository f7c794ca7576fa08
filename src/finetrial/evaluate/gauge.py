"""How far a model has gone from the base on given text: both divergences beside the likelihood, over all tokens.

KL(base || model) on held-out text is the gauge of forgetting (Shenfeld et al. 2025, arXiv:2509.04259: it predicts what
is lost of earlier tasks); the reverse tells what the model has taken up that the base would not say.

Shapes: M supervised tokens of a pass, m of them under one model, C of a chunk, H hidden features, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetrial.model.distribution import CHUNK_NUMBERS, Head


@dataclass(frozen=True)
class TokenGauge:
    """Per supervised token, in nats, float32 (or float64)."""

    nll_M: Tensor
    """-log p(target), bit for bit that of `model.distribution.chunked_nll`."""
    to_base_M: Tensor
    """KL(base || model) = Σ r log(r / p) over the vocabulary, r the base's and p the model's probabilities; 0 exactly
    where the hidden states are the base's."""
    from_base_M: Tensor
    """KL(model || base) = Σ p log(p / r)."""


@torch.no_grad()
def token_gauge(
    hidden_MH: Tensor, target_M: Tensor, base_mH: Tensor, head: Head, chunk_numbers: int | None = None
) -> TokenGauge:
    """Likelihood and both divergences, with two chunks of logits at once.

    Args:
        hidden_MH: last hidden states of one model after another on the same m tokens, M a multiple of m.
        target_M: int64 the tokens that follow.
        base_mH: the base's hidden states of those tokens.
        head: the output head.
        chunk_numbers: logits of one distribution that exist at once; by default what suits the device.
    """
    numbers = chunk_numbers or CHUNK_NUMBERS.get(hidden_MH.device.type, CHUNK_NUMBERS["cpu"])
    chunk = max(1, numbers // head.weight_VH.shape[0])
    wide = torch.float64 if hidden_MH.dtype == torch.float64 else torch.float32
    nll_M, to_base_M, from_base_M = (torch.empty(len(hidden_MH), dtype=wide, device=hidden_MH.device) for _ in range(3))
    for start in range(0, len(hidden_MH), chunk):
        rows = slice(start, start + chunk)
        here_C = torch.arange(start, min(start + chunk, len(hidden_MH)), device=hidden_MH.device) % len(base_mH)
        logp_CV, p_CV, nll_C1 = _distribution(head, hidden_MH[rows], target_M[rows, None])
        logr_CV, r_CV, _ = _distribution(head, base_mH[here_C], target_M[rows, None])
        nll_M[rows] = nll_C1[:, 0]
        gap_CV = logr_CV.sub_(logp_CV)
        to_base_M[rows] = r_CV.mul_(gap_CV).sum(dim=1).clamp_(min=0)  # rounding may fall below 0
        from_base_M[rows] = p_CV.mul_(gap_CV).sum(dim=1).neg_().clamp_(min=0)
    return TokenGauge(nll_M, to_base_M, from_base_M)


def _distribution(head: Head, hidden_CH: Tensor, target_C1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p and p (C, V), and -log p(target) (C, 1) in the order of operations of `token_stats`."""
    logits_CV = head.logits(hidden_CH)
    top_C1 = logits_CV.amax(dim=1, keepdim=True)
    own_C1 = logits_CV.gather(1, target_C1) - top_C1
    logits_CV.sub_(top_C1)
    weight_CV = logits_CV.exp()
    total_C1 = weight_CV.sum(dim=1, keepdim=True)
    log_total_C1 = total_C1.log()
    nll_C1 = log_total_C1 - own_C1
    return logits_CV.sub_(log_total_C1), weight_CV.div_(total_C1), nll_C1
