"""Log-probabilities at supervised positions only: what a pass reads, and the model's path from ids to a loss.

Shapes: S rows (sequences) of a pass, T tokens of a padded row, M supervised tokens of a pass, H hidden features,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetrial.errors import UserError
from finetrial.model.distribution import Head, chunked_nll
from finetrial.model.render import Rendered


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
        have_TV = head.logits(hidden_states(model, probe_ST)[0]).float()
    if not torch.allclose(have_TV, want_TV, rtol=1e-2, atol=1e-2 * float(want_TV.abs().max())):
        raise UserError(f"{type(model).__name__}: its logits are not head(last hidden state); it is not supported")
    return head


def hidden_states(model: nn.Module, ids_ST: Tensor) -> Tensor:
    """Last hidden states (S, T, H) of a transformers causal model, without cache, mask or logits."""
    return model.base_model(input_ids=ids_ST, use_cache=False).last_hidden_state  # type: ignore[operator]


def supervised_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states (M, H) at the supervised positions of a batch, row after row."""
    return hidden_states(model, batch.ids_ST).flatten(0, 1).index_select(0, batch.index_M)


def token_nll(model: nn.Module, head: Head, batch: Batch, chunk_numbers: int | None = None) -> Tensor:
    """Negative log-likelihood (M,) in nats of the supervised tokens of a batch, row after row."""
    return chunked_nll(supervised_hidden(model, batch), batch.target_M, head, chunk_numbers)
