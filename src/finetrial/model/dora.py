"""DoRA (Liu et al. 2024, arXiv:2402.09353): an output row's magnitude is learnt apart from its direction.

W' = m ⊙ V / ‖V‖ with V = W + s (A B)^T, norms per output row. The norm follows V but gets no gradient (section 4.3 of
the paper), and m starts at ‖W‖, so that training starts at the base.

Shapes: N adapters, S rows (sequences) of a pass, T tokens of a padded row, I input and O output features of a linear
layer, R rank; k adapters of a block and m tokens of each of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetrial.model.lowrank import Block, view


def row_norms(weight_OI: Tensor) -> Tensor:
    """float32 ‖W‖ of each output row (O,): where magnitudes start."""
    return weight_OI.detach().float().square().sum(dim=1).sqrt()


def adapted_norms(weight_OI: Tensor, a_NIR: Tensor, b_NRO: Tensor, scale_N11: Tensor) -> Tensor:
    """float32 ‖W + s (A B)^T‖ of each output row, (N, 1, O), from thin products: no W + s (A B)^T is ever formed.

    ‖W‖² + 2 s Σ B (A^T W^T) + s² Σ B (A^T A B). Where B is 0 that is ‖W‖ to the last bit. A row of zeros has the root
    of the smallest normal number, so that nothing is divided by 0.
    """
    weight_OI, a_NIR, b_NRO = weight_OI.detach().float(), a_NIR.detach(), b_NRO.detach()
    cross_NRO = a_NIR.transpose(1, 2) @ weight_OI.T
    own_NRO = (a_NIR.transpose(1, 2) @ a_NIR) @ b_NRO
    change_N1O = (scale_N11 * b_NRO * (2 * cross_NRO + scale_N11 * own_NRO)).sum(dim=1, keepdim=True)
    return (weight_OI.square().sum(dim=1) + change_N1O).clamp_(min=torch.finfo(torch.float32).tiny).sqrt_()


class Magnified(torch.autograd.Function):
    """y + (m / ‖V‖ - 1) ⊙ z for the rows of DoRA's adapters; z is y without the bias.

    An adapter with dropout drops inputs of the whole of z, as PEFT has it: y = W x + bias + s (A B)^T d, with d what is
    kept of x, and z = W d + s (A B)^T d. Rows of other adapters keep their bits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y_STO: Tensor,
        m_N1O: Tensor,
        x_STI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        keep_STI: Tensor | None,
        norms: Sequence[tuple[Block, Tensor]],
    ) -> Tensor:
        """See the class; `norms` are the rows with magnitudes and ‖V‖ there, `keep_STI` the dropout factor."""
        products, magnified_STO = [], y_STO.clone()
        for block, norm_k1O in norms:
            z_kmO = view(y_STO, block) if bias_O is None else view(y_STO, block) - bias_O
            if keep_STI is not None:
                rows = slice(*block[2:])
                dropped_sTI = x_STI[rows] * (1 - keep_STI[rows])
                z_kmO = z_kmO - F.linear(dropped_sTI, weight_OI).view(z_kmO.shape)
            view(magnified_STO, block).addcmul_(z_kmO, _gain(m_N1O, norm_k1O, block).to(y_STO.dtype))
            products.append(z_kmO)
        ctx.save_for_backward(m_N1O, weight_OI, keep_STI, *products)
        ctx.norms = norms
        return magnified_STO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_STO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of y, m and, where something was dropped, of x."""
        m_N1O, weight_OI, keep_STI, *products = ctx.saved_tensors
        grad_y_STO, grad_m_N1O = grad_STO.clone(memory_format=torch.contiguous_format), torch.zeros_like(m_N1O)
        grad_x_STI = None
        if keep_STI is not None and ctx.needs_input_grad[2]:
            grad_x_STI = keep_STI.new_zeros(keep_STI.shape)
        for (block, norm_k1O), z_kmO in zip(ctx.norms, products, strict=True):
            grad_kmO = view(grad_y_STO, block)
            grad_m_N1O[slice(*block[:2])] += (grad_kmO * z_kmO).sum(1, True, dtype=torch.float32) / norm_k1O
            pulled_kmO = grad_kmO * _gain(m_N1O, norm_k1O, block).to(grad_STO.dtype)
            grad_kmO += pulled_kmO
            if grad_x_STI is not None and keep_STI is not None:
                rows = slice(*block[2:])
                through_sTI = (pulled_kmO @ weight_OI).view(-1, *keep_STI.shape[1:])
                grad_x_STI[rows] = through_sTI * (keep_STI[rows] - 1)
        return grad_y_STO, grad_m_N1O, grad_x_STI, None, None, None, None


def _gain(m_N1O: Tensor, norm_k1O: Tensor, block: Block) -> Tensor:
    """m / ‖V‖ - 1, in float32: near 0, where 16 bits still tell small numbers apart."""
    return m_N1O[slice(*block[:2])] / norm_k1O - 1
