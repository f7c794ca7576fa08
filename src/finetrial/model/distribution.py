"""What a frozen output head says of the next token, in chunks: log-likelihood, entropy, distance to a reference.

The logits of a long batch never exist. What is asked for is computed chunk by chunk together with its gradient with
respect to the hidden state, so logits are computed once and the backward pass is one multiplication.

Shapes: M supervised tokens of a pass, C of a chunk, H hidden features, V vocabulary, K tokens kept of a reference
plus, where a function says so, one bucket for all others.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_NUMBERS = {"cpu": 2**20, "cuda": 2**27}
"""Logits that exist at once: a chunk that fits the cache of a CPU, and one that fills a GPU."""

DIVERGENCE_TENSORS = 4
"""A divergence keeps so many more tensors of a chunk than a likelihood, which must fit as well."""

Divergence = Literal["ref_student", "student_ref", "js"]

Weigh = Callable[[slice, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(which tokens, their -log p(target) (C,), their divergences (C,)) -> weights of the two (C,), which are constants."""


@dataclass(frozen=True)
class Head:
    """The output head: logits = cap(scale (W h + b)), cap(z) = softcap · tanh(z / softcap) where there is one."""

    weight_VH: Tensor
    bias_V: Tensor | None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """float32 (or float64) logits (C, V)."""
        logits_CV = F.linear(hidden_CH, self.weight_VH, self.bias_V)
        if logits_CV.dtype in (torch.bfloat16, torch.float16):
            logits_CV = logits_CV.float()
        if self.scale != 1.0:
            logits_CV.mul_(self.scale)
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_CV


@dataclass(frozen=True)
class TopReference:
    """A reference distribution cut to its K likeliest tokens, as a cache keeps it.

    What is left over stays one bucket. A divergence between distributions merged in this way is a *lower bound* of
    the full one (data-processing inequality), tight where the bucket holds little; renormalising the K would bias it.
    """

    ids_MK: Tensor
    """int64 the likeliest tokens, distinct in a row, K < V."""
    logp_MK: Tensor
    """Their log-probabilities, at the temperature at which they will be compared."""
    tail_M: Tensor
    """Log-probability of all others together; finite."""


@dataclass(frozen=True)
class TokenStats:
    """Per supervised token, in nats, of the distribution softmax(logits / temperature)."""

    nll_M: Tensor
    """-log p(target)."""
    entropy_M: Tensor | None = None
    """-Σ p log p over the vocabulary."""
    divergence_M: Tensor | None = None
    """Distance to the reference."""
    lower_bound: bool = False
    """Whether `divergence_M` is that of a `TopReference`, which is at most the full one."""
    blend: Tensor | None = None
    """Scalar: the weighted sum of `nll_M` and `divergence_M`, the only path for gradients where it was asked for."""


def chunked_nll(hidden_MH: Tensor, target_M: Tensor, head: Head, chunk_numbers: int | None = None) -> Tensor:
    """-log softmax(head(h))[target] (M,) for each hidden state, with at most `chunk_numbers` logits at once."""
    return token_stats(hidden_MH, target_M, head, chunk_numbers=chunk_numbers).nll_M


def token_stats(
    hidden_MH: Tensor,
    target_M: Tensor,
    head: Head,
    *,
    temperature_M: Tensor | None = None,
    entropy: bool = False,
    reference_MH: Tensor | TopReference | None = None,
    divergence: Divergence | None = None,
    js_beta: float = 0.5,
    measure_only: bool = False,
    weigh: Weigh | None = None,
    chunk_numbers: int | None = None,
) -> TokenStats:
    """Log-likelihood of the targets and, on demand, entropy and divergence from a reference.

    All of them are of the tempered distribution p = softmax(head(h) / T), the one that sampling at T draws from; the
    reference r is tempered alike. With p the student's and r the reference's probabilities, a divergence is

    - `ref_student`: KL(r || p) = Σ r log(r / p), forward; its gradient by the logits is p - r (times 1 / T);
    - `student_ref`: KL(p || r) = Σ p log(p / r), reverse; p (log(p / r) - KL);
    - `js`: β KL(r || m) + (1 - β) KL(p || m) with m = β r + (1 - β) p (Agarwal et al. 2023, arXiv:2306.13649,
      equation 1); (1 - β) p (log(p / m) - KL(p || m)). It tends to 0 with β or 1 - β and is at most log 2.

    The head is frozen and the reference gets no gradient.

    Args:
        hidden_MH: last hidden states at the supervised positions.
        target_M: int64 the tokens that follow.
        head: the output head.
        temperature_M: divides the logits of each token, above 0; None is 1, bit for bit.
        entropy: whether the entropy is wanted.
        reference_MH: last hidden states of the reference at the same positions, such as the base's of the same pass;
            or a cache of its likeliest tokens, already tempered, which gives a lower bound.
        divergence: which distance to the reference is wanted.
        js_beta: β of `js`, inside (0, 1).
        measure_only: entropy and divergence are only looked at: no gradient flows through them, which saves a
            product with the head for each.
        weigh: what likelihood and divergence of a token weigh in the loss, where that is known from these two numbers.
            Their derivatives then go through the head as one, which saves a product; only `blend` is differentiable.
        chunk_numbers: logits of one distribution that exist at once; by default what suits the device.

    Raises:
        ValueError: a divergence without a reference or a reference without a divergence; β outside (0, 1); `weigh`
            without a divergence, or beside an entropy.
    """
    if (divergence is None) != (reference_MH is None):
        raise ValueError("divergence and reference_MH go together; give both or neither")
    if not 0 < js_beta < 1:
        raise ValueError(f"js_beta is {js_beta}; it must lie inside (0, 1), where the divergence is not constantly 0")
    if weigh is not None and (divergence is None or entropy or measure_only):
        raise ValueError("weigh is for a divergence whose gradient is wanted, without an entropy")
    ask = _Ask(temperature_M, entropy, reference_MH, divergence, js_beta, measure_only, weigh)
    chunk = _chunk(hidden_MH, head, chunk_numbers, 1 if divergence is None else DIVERGENCE_TENSORS)
    found = iter(_ChunkedStats.apply(hidden_MH, target_M, head, ask, chunk))  # type: ignore[arg-type]
    blend = next(found) if weigh is not None else None
    return TokenStats(
        blend=blend,
        nll_M=next(found),
        entropy_M=next(found) if entropy else None,
        divergence_M=next(found) if divergence else None,
        lower_bound=isinstance(reference_MH, TopReference),
    )


@torch.no_grad()
def top_reference(
    reference_MH: Tensor,
    head: Head,
    k: int,
    temperature_M: Tensor | None = None,
    chunk_numbers: int | None = None,
) -> TopReference:
    """The `k` likeliest next tokens of a reference's hidden states, and the mass of all others; to be cached.

    Raises:
        ValueError: `k` leaves nothing of the vocabulary over.
    """
    if not 0 < k < len(head.weight_VH):
        raise ValueError(f"k is {k}; expected 1 to {len(head.weight_VH) - 1}, one below the size of the vocabulary")
    chunk, parts = _chunk(reference_MH, head, chunk_numbers), []
    for start in range(0, len(reference_MH), chunk):
        rows = slice(start, start + chunk)
        logp_CV = _log_softmax(head, reference_MH, temperature_M, rows)
        ids_CK = logp_CV.topk(k, dim=1).indices
        parts.append((ids_CK, logp_CV.gather(1, ids_CK), _others(logp_CV, ids_CK).logsumexp(1)))
    ids_MK, logp_MK, tail_M = (torch.cat(part) for part in zip(*parts, strict=True))
    return TopReference(ids_MK, logp_MK, tail_M)


def _chunk(hidden_MH: Tensor, head: Head, numbers: int | None, tensors: int = 1) -> int:
    numbers = numbers or CHUNK_NUMBERS.get(hidden_MH.device.type, CHUNK_NUMBERS["cpu"]) // tensors
    return max(1, numbers // head.weight_VH.shape[0])


@dataclass(frozen=True)
class _Ask:
    """What is wanted beside the log-likelihood; the arguments of `token_stats`."""

    temperature_M: Tensor | None
    entropy: bool
    reference_MH: Tensor | TopReference | None
    divergence: Divergence | None
    js_beta: float
    measure_only: bool
    weigh: Weigh | None


class _ChunkedStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MH: Tensor, target_M: Tensor, head: Head, ask: _Ask, chunk: int) -> tuple[Tensor, ...]:
        wide = torch.float64 if hidden_MH.dtype == torch.float64 else torch.float32
        more = ask.entropy + (ask.divergence is not None)
        values = [torch.empty(len(hidden_MH), dtype=wide, device=hidden_MH.device) for _ in range(1 + more)]
        weigh, blend = ask.weigh, hidden_MH.new_zeros((), dtype=torch.float64)
        differentiable = 1 if ask.measure_only or weigh else 1 + more
        slopes = [torch.empty_like(hidden_MH) for _ in range(differentiable if ctx.needs_input_grad[0] else 0)]
        for start in range(0, len(hidden_MH), chunk):
            rows = slice(start, start + chunk)
            target_C1 = target_M[rows, None]
            logits_CV = head.logits(hidden_MH[rows])
            bend_CV = None
            if head.softcap is not None and slopes:
                bend_CV = 1 - (logits_CV / head.softcap) ** 2
            _temper(logits_CV, ask.temperature_M, rows)
            if weigh is not None:
                logp_CV = logits_CV.log_softmax(dim=1)
                p_CV = torch.exp(logp_CV, out=logits_CV)
                ((value_C1, pull_CV),) = _asked(ask, head, logp_CV, p_CV, rows)
                nll_C, value_C = -logp_CV.gather(1, target_C1)[:, 0], value_C1[:, 0]
                values[0][rows], values[1][rows] = nll_C, value_C
                nll_weight_C, weight_C = weigh(rows, nll_C, value_C)
                blend += (nll_weight_C.double() * nll_C + weight_C.double() * value_C).sum()
                if slopes:
                    nll_weight_C1 = nll_weight_C[:, None].to(p_CV.dtype)
                    pull_CV.mul_(weight_C[:, None].to(p_CV.dtype)).addcmul_(p_CV, nll_weight_C1)
                    pull_CV.scatter_add_(1, target_C1, -nll_weight_C1)
                    _through_head(pull_CV, bend_CV, head, ask, rows, slopes[0])
                continue
            top_C1 = logits_CV.amax(dim=1, keepdim=True)
            own_C1 = logits_CV.gather(1, target_C1) - top_C1
            logits_CV.sub_(top_C1)
            weight_CV = logits_CV.exp() if more else logits_CV.exp_()  # in place: one pass over the vocabulary less
            total_C1 = weight_CV.sum(dim=1, keepdim=True)
            values[0][rows] = (total_C1.log() - own_C1)[:, 0]
            if not (more or slopes):
                continue
            p_CV = weight_CV.div_(total_C1)
            if more:
                logp_CV = logits_CV.sub_(total_C1.log())
                for k, (value_C1, pull_CV) in enumerate(_asked(ask, head, logp_CV, p_CV, rows), start=1):
                    values[k][rows] = value_C1[:, 0]
                    if k < len(slopes):
                        _through_head(pull_CV, bend_CV, head, ask, rows, slopes[k])
            if slopes:
                pull_CV = p_CV.scatter_add_(1, target_C1, torch.full_like(total_C1, -1.0))
                _through_head(pull_CV, bend_CV, head, ask, rows, slopes[0])
        ctx.set_materialize_grads(False)
        if ask.measure_only:
            ctx.mark_non_differentiable(*values[1:])
        if weigh is not None:
            ctx.mark_non_differentiable(*values)
        ctx.save_for_backward(*slopes)
        return (blend, *values) if weigh is not None else tuple(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        total_MH = None
        for slope_MH, grad_M in zip(ctx.saved_tensors, grads, strict=False):  # what is only measured has no slope
            if grad_M is not None:
                term_MH = slope_MH * grad_M[..., None].to(slope_MH.dtype)
                total_MH = term_MH if total_MH is None else total_MH.add_(term_MH)
        return total_MH, None, None, None, None


def _temper(numbers_CV: Tensor, temperature_M: Tensor | None, rows: slice) -> None:
    """Divide in place by each token's temperature: logits, and derivatives by them on the way back."""
    if temperature_M is not None:
        numbers_CV.div_(temperature_M[rows, None].to(numbers_CV.dtype))


def _through_head(
    pull_CV: Tensor, bend_CV: Tensor | None, head: Head, ask: _Ask, rows: slice, slope_MH: Tensor
) -> None:
    """Turn a derivative by the tempered logits, which is used up, into one by the hidden states."""
    _temper(pull_CV, ask.temperature_M, rows)
    if bend_CV is not None:
        pull_CV.mul_(bend_CV)
    if head.scale != 1.0:
        pull_CV.mul_(head.scale)
    torch.mm(pull_CV.to(slope_MH.dtype), head.weight_VH, out=slope_MH[rows])


def _asked(ask: _Ask, head: Head, logp_CV: Tensor, p_CV: Tensor, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """Entropy and divergence, those that are wanted: value (C, 1) and derivative (C, V) by the tempered logits."""
    if ask.entropy:
        plogp_CV = p_CV * logp_CV
        entropy_C1 = -plogp_CV.sum(dim=1, keepdim=True)
        yield entropy_C1, plogp_CV.addcmul_(p_CV, entropy_C1).neg_()
    if ask.divergence is None:
        return
    if isinstance(ask.reference_MH, Tensor):
        logr_CV = _log_softmax(head, ask.reference_MH, ask.temperature_M, rows)
        yield _divergence(ask.divergence, logr_CV, logp_CV, p_CV, ask.js_beta)
    elif ask.reference_MH is not None:
        top = ask.reference_MH
        ids_CK = top.ids_MK[rows]
        others_CV = _others(logp_CV, ids_CK)
        tail_C1 = others_CV.logsumexp(dim=1, keepdim=True)
        logr_CK = torch.cat([top.logp_MK[rows], top.tail_M[rows, None]], dim=1).to(logp_CV.dtype)
        logp_CK = torch.cat([logp_CV.gather(1, ids_CK), tail_C1], dim=1)
        value_C1, pull_CK = _divergence(ask.divergence, logr_CK, logp_CK, logp_CK.exp(), ask.js_beta)
        # A token of the bucket gets its share of the bucket's derivative.
        pull_CV = others_CV.sub_(tail_C1).exp_().mul_(pull_CK[:, -1:])
        yield value_C1, pull_CV.scatter_(1, ids_CK, pull_CK[:, :-1])


def _log_softmax(head: Head, hidden_MH: Tensor, temperature_M: Tensor | None, rows: slice) -> Tensor:
    logits_CV = head.logits(hidden_MH[rows])
    _temper(logits_CV, temperature_M, rows)
    return logits_CV.log_softmax(dim=1)


def _others(logp_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """A copy of the log-probabilities without those tokens (-inf there)."""
    return logp_CV.scatter(1, ids_CK, -math.inf)


def _divergence(kind: Divergence, logr_CV: Tensor, logp_CV: Tensor, p_CV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Value (C, 1) and derivative (C, V) by the logits of p; `token_stats` has the formulas. Uses `logr_CV` up."""
    if kind == "ref_student":
        r_CV = logr_CV.exp()
        value_C1 = _dots(r_CV, logr_CV.sub_(logp_CV))
        return value_C1, torch.sub(p_CV, r_CV, out=r_CV)
    if kind == "student_ref":
        gap_CV = logp_CV - logr_CV
        value_C1 = _dots(p_CV, gap_CV)
        return value_C1, gap_CV.sub_(value_C1).mul_(p_CV)
    logm_CV = torch.logaddexp(logr_CV + math.log(beta), logp_CV + math.log1p(-beta))
    own_CV = logp_CV - logm_CV
    own_C1 = _dots(p_CV, own_CV)
    theirs_C1 = _dots(logr_CV.exp(), logm_CV.neg_().add_(logr_CV))
    return beta * theirs_C1 + (1 - beta) * own_C1, own_CV.sub_(own_C1).mul_(p_CV).mul_(1 - beta)


def _dots(one_CV: Tensor, other_CV: Tensor) -> Tensor:
    """Inner product (C, 1) of each row."""
    return torch.linalg.vecdot(one_CV, other_CV)[:, None]
