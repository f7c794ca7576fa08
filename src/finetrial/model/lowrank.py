"""The low-rank product of a pass whose rows belong to different adapters, forward and backward.

Shapes: N adapters, S rows (sequences) of a pass, T tokens of a padded row, M tokens of all adapted rows, I input
and O output features of a linear layer, R rank; k adapters of a block and m tokens of each of them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_LIMIT = 1023
"""Most groups that a grouped GEMM takes on CUDA."""

Block = tuple[int, int, int, int]
"""(first adapter, end, first row, end): consecutive adapters with equally many rows each; one bmm serves it."""


@dataclass(frozen=True)
class RowGroups:
    """Which adapter each row of a pass belongs to, prepared once for all layers."""

    adapter_S: tuple[int | None, ...]
    blocks: tuple[Block, ...]
    """The adapted rows."""
    scale_N11: Tensor
    """float32 scale of each adapter."""
    ends_N: Tensor | None
    """int32 end of each adapter's rows, counted from the first adapted row, where one grouped GEMM serves all."""
    dropout: tuple[tuple[int, float, int, int], ...]
    """(row, probability, tokens, stream key) of the rows that drop inputs."""
    frozen_NR: Tensor | None
    """bool directions of each adapter that get no gradient; None where all do."""
    norms: dict[str, list[tuple[Block, Tensor]]] = field(default_factory=dict)
    """Layer -> its rows with magnitudes (DoRA) and the norms there, kept by the first pass for those that follow."""

    def only(self, chosen_N: Sequence[bool]) -> tuple[Block, ...]:
        """The rows of these adapters alone."""
        return _blocks([n if n is not None and chosen_N[n] else None for n in self.adapter_S])

    @property
    def adapted(self) -> slice:
        """The rows from the first block to the last."""
        return slice(self.blocks[0][2], self.blocks[-1][3])

    def ends(self, x_STI: Tensor) -> Tensor:
        """int32 ends of the adapters' tokens."""
        assert self.ends_N is not None
        return self.ends_N * x_STI.shape[1]

    def scale_M1(self, x_STI: Tensor) -> Tensor:
        """float32 scale of each adapted token."""
        assert self.ends_N is not None
        rows_N = self.ends_N.diff(prepend=self.ends_N.new_zeros(1))
        tokens = (self.adapted.stop - self.adapted.start) * x_STI.shape[1]
        return self.scale_N11[:, 0, 0].repeat_interleave(rows_N * x_STI.shape[1], output_size=tokens)[:, None]


def row_groups(
    adapter_S: Sequence[int | None],
    scale_N: Tensor,
    dtype: torch.dtype,
    dropout: Sequence[tuple[int, float, int, int]] = (),
    frozen_NR: Tensor | None = None,
) -> RowGroups:
    """Prepare the rows of a pass; `adapter_S` may come in any order, equal neighbours side by side being fastest."""
    blocks = _blocks(adapter_S)
    ends_N = None
    if len(blocks) > 1 and len(scale_N) <= GROUP_LIMIT and has_grouped_mm(scale_N.device, dtype):
        ends_N = _ends(adapter_S, blocks, len(scale_N), scale_N.device)
    return RowGroups(tuple(adapter_S), blocks, scale_N[:, None, None], ends_N, tuple(dropout), frozen_NR)


def has_grouped_mm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `torch.nn.functional.grouped_mm` has a kernel here: bfloat16 on CUDA with SM >= 8.0."""
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and hasattr(F, "grouped_mm")
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _blocks(adapter_S: Sequence[int | None]) -> tuple[Block, ...]:
    segments: list[tuple[int, int, int]] = []
    for adapter, rows in itertools.groupby(range(len(adapter_S)), key=adapter_S.__getitem__):
        if adapter is not None:
            members = list(rows)
            segments.append((adapter, members[0], members[-1] + 1))
    blocks: list[Block] = []
    for adapter, start, end in segments:
        if blocks:
            first, last, begin, until = blocks[-1]
            if last == adapter and until == start and until - begin == (last - first) * (end - start):
                blocks[-1] = (first, adapter + 1, begin, end)
                continue
        blocks.append((adapter, adapter + 1, start, end))
    return tuple(blocks)


def _ends(
    adapter_S: Sequence[int | None], blocks: Sequence[Block], adapters: int, device: torch.device
) -> Tensor | None:
    """Ends of the adapters' rows if those ascend without gaps, as a grouped GEMM needs; else None."""
    if any(one[1] > two[0] or one[3] != two[2] for one, two in itertools.pairwise(blocks)):
        return None
    counts = [0] * adapters
    for n in adapter_S[blocks[0][2] : blocks[-1][3]]:
        assert n is not None
        counts[n] += 1
    return torch.tensor(counts).cumsum(0).to(device, torch.int32)


def view(rows_STX: Tensor, block: Block) -> Tensor:
    """The rows of a block as one matrix of tokens per adapter: (adapters, tokens, X)."""
    first, end, start, stop = block
    return rows_STX[start:stop].view(end - first, -1, rows_STX.shape[2])


class LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + scale (keep · x) A B, each row with its own adapter.

    Additions happen in place, only x and the R numbers of x A per token are kept for the backward pass, and the
    frozen weight gets no gradient, nor do frozen directions. A and B are rounded to the dtype of x; their gradients
    come back in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_STI: Tensor,
        a_NIR: Tensor,
        b_NRO: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        keep_STI: Tensor | None,
        groups: RowGroups,
    ) -> Tensor:
        """See the class; `keep_STI` is the dropout factor or None."""
        y_STO = F.linear(x_STI, weight_OI, bias_O)
        a_NIR, b_NRO = a_NIR.to(x_STI.dtype), b_NRO.to(x_STI.dtype)
        inputs_STI = x_STI if keep_STI is None else x_STI * keep_STI
        ctx.grouped = groups.ends_N is not None and x_STI.shape[2] % 8 == 0 and y_STO.shape[2] % 8 == 0
        low = (_add_grouped if ctx.grouped else _add_blocks)(y_STO, inputs_STI, a_NIR, b_NRO, groups)
        ctx.save_for_backward(x_STI, a_NIR, b_NRO, weight_OI, keep_STI, *low)
        ctx.groups = groups
        return y_STO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_STO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of x, A and B."""
        x_STI, a_NIR, b_NRO, weight_OI, keep_STI, *low = ctx.saved_tensors
        grad_STO = grad_STO.contiguous()
        inputs_STI = x_STI if keep_STI is None else x_STI * keep_STI
        grad_x_STI = grad_STO @ weight_OI if ctx.needs_input_grad[0] else None
        through_STI = grad_x_STI if grad_x_STI is None or keep_STI is None else torch.zeros_like(grad_x_STI)
        grad_a_NIR, grad_b_NRO = (_grouped_gradients if ctx.grouped else _block_gradients)(
            grad_STO, inputs_STI, a_NIR, b_NRO, low, through_STI, ctx.groups
        )
        if grad_x_STI is not None and through_STI is not None and keep_STI is not None:
            grad_x_STI.addcmul_(through_STI, keep_STI)
        if ctx.groups.frozen_NR is not None:
            grad_a_NIR.masked_fill_(ctx.groups.frozen_NR[:, None, :], 0.0)
            grad_b_NRO.masked_fill_(ctx.groups.frozen_NR[:, :, None], 0.0)
        return grad_x_STI, grad_a_NIR.float(), grad_b_NRO.float(), None, None, None, None


def _add_blocks(y_STO: Tensor, x_STI: Tensor, a_NIR: Tensor, b_NRO: Tensor, groups: RowGroups) -> list[Tensor]:
    """y += scale x A B, one bmm per block; returns each block's scale x A as (adapters, R, tokens)."""
    low = []
    for block in groups.blocks:
        n = slice(*block[:2])
        low_kRm = torch.bmm(a_NIR[n].transpose(1, 2), view(x_STI, block).transpose(1, 2))
        low_kRm.mul_(groups.scale_N11[n])
        view(y_STO, block).baddbmm_(low_kRm.transpose(1, 2), b_NRO[n])
        low.append(low_kRm)
    return low


def _block_gradients(
    grad_STO: Tensor,
    x_STI: Tensor,
    a_NIR: Tensor,
    b_NRO: Tensor,
    low: list[Tensor],
    into_STI: Tensor | None,
    groups: RowGroups,
) -> tuple[Tensor, Tensor]:
    """Gradients of A and B, and the one of x added to `into_STI`; an adapter without rows gets zeros."""
    grad_a_NRI, grad_b_NRO = torch.zeros_like(a_NIR.transpose(1, 2)), torch.zeros_like(b_NRO)
    for block, low_kRm in zip(groups.blocks, low, strict=True):
        n = slice(*block[:2])
        grad_kmO = view(grad_STO, block)
        grad_kRm = torch.bmm(b_NRO[n], grad_kmO.transpose(1, 2)).mul_(groups.scale_N11[n])
        grad_b_NRO[n].baddbmm_(low_kRm, grad_kmO)
        grad_a_NRI[n].baddbmm_(grad_kRm, view(x_STI, block))
        if into_STI is not None:
            view(into_STI, block).baddbmm_(grad_kRm.transpose(1, 2), a_NIR[n].transpose(1, 2))
    return grad_a_NRI.transpose(1, 2), grad_b_NRO


def _add_grouped(y_STO: Tensor, x_STI: Tensor, a_NIR: Tensor, b_NRO: Tensor, groups: RowGroups) -> list[Tensor]:
    """As `_add_blocks`, by grouped GEMM over all adapted rows; returns scale x A as one (M, R)."""
    rows, ends_N = groups.adapted, groups.ends(x_STI)
    low_MR = F.grouped_mm(x_STI[rows].flatten(0, 1), a_NIR, offs=ends_N)
    low_MR = low_MR.mul_(groups.scale_M1(x_STI))
    y_STO[rows].flatten(0, 1).add_(F.grouped_mm(low_MR, b_NRO, offs=ends_N))
    return [low_MR]


def _grouped_gradients(
    grad_STO: Tensor,
    x_STI: Tensor,
    a_NIR: Tensor,
    b_NRO: Tensor,
    low: list[Tensor],
    into_STI: Tensor | None,
    groups: RowGroups,
) -> tuple[Tensor, Tensor]:
    """As `_block_gradients`, by grouped GEMM."""
    rows, ends_N = groups.adapted, groups.ends(x_STI)
    grad_MO, x_MI = grad_STO[rows].flatten(0, 1), x_STI[rows].flatten(0, 1)
    grad_MR = F.grouped_mm(grad_MO, b_NRO.transpose(1, 2), offs=ends_N).mul_(groups.scale_M1(x_STI))
    if into_STI is not None:
        into_STI[rows].flatten(0, 1).add_(F.grouped_mm(grad_MR, a_NIR.transpose(1, 2), offs=ends_N))
    return F.grouped_mm(x_MI.T, grad_MR, offs=ends_N), F.grouped_mm(low[0].T, grad_MO, offs=ends_N)
