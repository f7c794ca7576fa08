"""Log-probabilities at supervised positions only, in chunks: the logits of a long batch never exist.

Shapes: S rows (sequences) of a pass, T tokens of a padded row, M supervised tokens of a pass, C of a chunk,
H hidden features, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetrial.errors import UserError
from finetrial.model.render import Rendered

CHUNK_NUMBERS = {"cpu": 2**20, "cuda": 2**27}
"""Logits that exist at once: a chunk that fits the cache of a CPU, and one that fills a GPU."""


@dataclass(frozen=True)
class Stream:
    """What a causal model must read of one row to score its supervised tokens: nothing after the last of them."""

    ids_T: np.ndarray
    """int64 tokens read."""
    position_M: np.ndarray
    """int64 positions whose next token is supervised, ascending."""
    target_M: np.ndarray
    """int64 those next tokens."""

    @property
    def tokens(self) -> int:
        """Tokens read."""
        return len(self.ids_T)


def stream(row: Rendered, name: str) -> Stream:
    """The token stream of a rendered row; a row without supervised tokens gives an empty stream of one token.

    Raises:
        UserError: the very first token is supervised, which nothing predicts; `name` says which row.
    """
    if len(row.mask_T) and row.mask_T[0]:
        raise UserError(f"{name}: the first token is supervised but nothing precedes it; start rows with a BOS token")
    position_M = np.flatnonzero(row.mask_T[1:])
    end = int(position_M[-1]) + 1 if len(position_M) else 1
    ids_T = row.ids_T.astype(np.int64)
    return Stream(ids_T[:end], position_M, ids_T[1:][position_M])


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right. Causal attention never looks there, so no attention mask is needed."""

    ids_ST: Tensor
    index_M: Tensor
    """Supervised positions in the flattened (S·T) rows, row after row."""
    target_M: Tensor
    counts_S: tuple[int, ...]
    """Supervised tokens of each row; their sum is M."""


def collate(streams: Sequence[Stream], device: torch.device) -> Batch:
    """Pad streams to the longest of them (token id 0 fills up)."""
    width = max(row.tokens for row in streams)
    ids_ST = np.zeros((len(streams), width), dtype=np.int64)
    for s, row in enumerate(streams):
        ids_ST[s, : row.tokens] = row.ids_T
    index_M = np.concatenate([s * width + row.position_M for s, row in enumerate(streams)])
    target_M = np.concatenate([row.target_M for row in streams])
    return Batch(
        torch.from_numpy(ids_ST).to(device),
        torch.from_numpy(index_M).to(device),
        torch.from_numpy(target_M).to(device),
        tuple(len(row.target_M) for row in streams),
    )


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


def head_of(model: nn.Module) -> Head:
    """The output head of a transformers causal language model, proven on a short pass against the model's logits.

    Call it on the plain base, before an adapter stack is injected.

    Raises:
        UserError: the model computes its logits in a way that this module does not reproduce.
    """
    linear = model.get_output_embeddings()  # type: ignore[operator]
    if type(linear) is not nn.Linear:
        raise UserError(f"{type(model).__name__}: the output head is no nn.Linear; finetrial needs a causal model")
    config = model.config.get_text_config()  # type: ignore[union-attr]
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    head = Head(linear.weight.detach(), None if linear.bias is None else linear.bias.detach(), scale, softcap)
    probe_ST = torch.arange(1, 4, device=linear.weight.device)[None]
    with torch.no_grad():
        want_TV = model(input_ids=probe_ST, use_cache=False).logits[0].float()
        have_TV = head.logits(hidden_states(model, probe_ST)[0])
    if not torch.allclose(have_TV, want_TV, rtol=1e-2, atol=1e-2 * float(want_TV.abs().max())):
        raise UserError(f"{type(model).__name__}: its logits are not head(last hidden state); it is not supported")
    return head


def hidden_states(model: nn.Module, ids_ST: Tensor) -> Tensor:
    """Last hidden states (S, T, H) of a transformers causal model, without cache, mask or logits."""
    return model.base_model(input_ids=ids_ST, use_cache=False).last_hidden_state  # type: ignore[operator]


def token_nll(model: nn.Module, head: Head, batch: Batch, chunk_numbers: int | None = None) -> Tensor:
    """Negative log-likelihood (M,) in nats of the supervised tokens of a batch, row after row."""
    hidden_STH = hidden_states(model, batch.ids_ST)
    hidden_MH = hidden_STH.flatten(0, 1).index_select(0, batch.index_M)
    return chunked_nll(hidden_MH, batch.target_M, head, chunk_numbers)


def chunked_nll(hidden_MH: Tensor, target_M: Tensor, head: Head, chunk_numbers: int | None = None) -> Tensor:
    """-log softmax(head(h))[target] for each hidden state, with at most `chunk_numbers` logits at once.

    The head is frozen. The gradient of each token's loss with respect to its hidden state is computed while its
    logits are at hand, so the backward pass is one multiplication and logits are computed once.
    """
    numbers = chunk_numbers or CHUNK_NUMBERS.get(hidden_MH.device.type, CHUNK_NUMBERS["cpu"])
    chunk = max(1, numbers // head.weight_VH.shape[0])
    return _ChunkedNll.apply(hidden_MH, target_M, head, chunk)  # type: ignore[return-value]


class _ChunkedNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MH: Tensor, target_M: Tensor, head: Head, chunk: int) -> Tensor:
        wide = torch.float64 if hidden_MH.dtype == torch.float64 else torch.float32
        nll_M = torch.empty(len(hidden_MH), dtype=wide, device=hidden_MH.device)
        slope_MH = torch.empty_like(hidden_MH) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_MH), chunk):
            rows = slice(start, start + chunk)
            target_C1 = target_M[rows, None]
            logits_CV = head.logits(hidden_MH[rows])
            bend_CV = None
            if head.softcap is not None and slope_MH is not None:
                bend_CV = 1 - (logits_CV / head.softcap) ** 2
            top_C1 = logits_CV.amax(dim=1, keepdim=True)
            own_C1 = logits_CV.gather(1, target_C1) - top_C1
            weight_CV = logits_CV.sub_(top_C1).exp_()  # in place: one pass over the vocabulary less
            total_C1 = weight_CV.sum(dim=1, keepdim=True)
            nll_M[rows] = (total_C1.log() - own_C1)[:, 0]
            if slope_MH is None:
                continue
            slope_CV = weight_CV.div_(total_C1)
            slope_CV.scatter_add_(1, target_C1, torch.full_like(total_C1, -1.0))
            if bend_CV is not None:
                slope_CV.mul_(bend_CV)
            if head.scale != 1.0:
                slope_CV.mul_(head.scale)
            torch.mm(slope_CV.to(hidden_MH.dtype), head.weight_VH, out=slope_MH[rows])
        if slope_MH is not None:
            ctx.save_for_backward(slope_MH)
        return nll_M

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (slope_MH,) = ctx.saved_tensors
        return slope_MH * grad_M[:, None].to(slope_MH.dtype), None, None, None
