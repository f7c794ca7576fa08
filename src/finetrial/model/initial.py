"""What A and B start as: random numbers and zeros, or factors of the base's weight that are taken out of it again.

PiSSA (Meng et al. 2024, arXiv:2404.02948) and OLoRA (Büyükakyüz 2024, arXiv:2406.01775) train factors A and B that
start as A0 and B0, made of the weight W, over the residual W - s (A0 B0)^T. Here W stays what it is for all runs: the
adapter holds both halves, y = W x + s (A B)^T x - s (A0 B0)^T x, and only the first is trained. That is the same
arithmetic as far as it can be rounded the same, and at the same time the form in which such an adapter can be
loaded on the plain base: a LoRA of twice the rank.

The factors are unique but for the sign of each direction, which is set by a rule, so that equal weights give equal
numbers. They are computed in float64: a direction must not depend on which processor rounded it.

Shapes: I input and O output features of a linear layer, R rank, K = min(I, O).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetrial import seeds
from finetrial.errors import UserError
from finetrial.model.config import ModelConfig


def principal(weight_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """PiSSA: A0 = V_R √S_R (I, R) and B0 = √S_R U_R^T (R, O) of the leading singular directions, at scale 1.

    At scale s each is divided by √s, so that s (A0 B0)^T is the best approximation of rank R of W whatever s is. The
    directions come from the eigenvectors of the smaller Gram matrix, which costs a fraction of a whole decomposition;
    that squares the condition number, which does no harm to leading directions in float64. In each direction the entry
    of A0 that is largest in size is positive.
    """
    weight_OI = weight_OI.detach().double()
    tall = weight_OI.shape[0] >= weight_OI.shape[1]
    square_KK = weight_OI.T @ weight_OI if tall else weight_OI @ weight_OI.T
    energy_R, vector_KR = (part[..., -rank:].flip(-1) for part in torch.linalg.eigh(square_KK))
    value_R = energy_R.clamp(min=0).sqrt()
    share_R = torch.where(value_R > 0, value_R.rsqrt(), 0.0)
    known_KR = vector_KR * value_R.sqrt()
    other_R = (weight_OI if tall else weight_OI.T) @ vector_KR * share_R
    a_IR, b_RO = (known_KR, other_R.T) if tall else (other_R, known_KR.T)
    return _signed(a_IR, b_RO, a_IR.gather(0, a_IR.abs().argmax(0, keepdim=True))[0])


def triangular(weight_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """OLoRA: A0 (I, R) the first rows of the triangular and B0 (R, O) the first columns of the orthogonal factor of W.

    The scale multiplies their product, it is not divided out: what is taken out of the base grows with it. The
    triangular factor's diagonal is positive.
    """
    q_OK, r_KI = torch.linalg.qr(weight_OI.detach().double())
    return _signed(r_KI[:rank].T, q_OK[:, :rank].T, r_KI.diagonal()[:rank])


def _signed(a_IR: Tensor, b_RO: Tensor, by_R: Tensor) -> tuple[Tensor, Tensor]:
    sign_R = torch.where(by_R < 0, -1.0, 1.0)
    return a_IR * sign_R, sign_R[:, None] * b_RO


FACTORS: dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]] = {"pissa": principal, "olora": triangular}
"""`model.init` -> float64 (A0_IR, B0_RO) of a weight, at scale 1 and for R up to K."""


def drawn(linear: nn.Linear, rank: int, seed: int, path: str) -> tuple[Tensor, Tensor]:
    """float32 A_IR, uniform in ±1/sqrt(I) from the stream (seed, "adapter", path), and B_RO = 0."""
    generator = torch.Generator().manual_seed(seeds.derive(seed, "adapter", path))
    bound = 1 / math.sqrt(linear.in_features)
    a_RI = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
    return a_RI.T.contiguous(), torch.zeros(rank, linear.out_features)


class Started:
    """Factors of the base's layers, each made once for all adapters that start from them.

    Args:
        rank: the largest that any of them asks for; smaller ones take the first directions, which are the same.
    """

    def __init__(self, rank: int):
        self.rank = rank
        self.known: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def both_halves(self, linear: nn.Linear, path: str, config: ModelConfig) -> tuple[Tensor, Tensor]:
        """float32 [A0, A0] (I, 2R) and [B0; -B0] (2R, O) on the CPU for the layer at `path`.

        Raises:
            UserError: the layer has fewer directions than the configured rank.
        """
        directions = min(linear.in_features, linear.out_features)
        if config.lora_rank > directions:
            raise UserError(
                f"model.lora_rank {config.lora_rank}: layer '{path}' has {directions} directions to start from; "
                f"expected at most that with model.init '{config.init}'"
            )
        if (config.init, path) not in self.known:
            a_IR, b_RO = FACTORS[config.init](linear.weight, min(self.rank, directions))
            self.known[config.init, path] = (a_IR.cpu(), b_RO.cpu())
        share = 1 / math.sqrt(config.scale) if config.init == "pissa" else 1.0
        a_IR, b_RO = self.known[config.init, path]
        a_IR, b_RO = (share * a_IR[:, : config.lora_rank]).float(), (share * b_RO[: config.lora_rank]).float()
        return torch.cat([a_IR, a_IR], dim=1), torch.cat([b_RO, -b_RO])
