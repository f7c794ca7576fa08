"""The adapter stack: N LoRA adapters over one frozen base, trained and evaluated in the same pass.

A row of a pass belongs to one adapter or to none, which is the base itself. The low-rank product of an adapted
linear layer is y = W x + s B^T A^T x (Hu et al. 2021, arXiv:2106.09685), with s = alpha / rank, or
alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732). docs/decisions/0003 says why things are stored as they are.

Shapes: N adapters, S rows (sequences) of a pass, T tokens of a padded row, I input and O output features of a
linear layer, R the largest rank of the stack, P numbers of one adapter over all layers.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetrial import seeds
from finetrial.errors import UserError, nearest
from finetrial.model.config import ModelConfig
from finetrial.model.lowrank import LoraLinear, RowGroups, row_groups

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter as a value, away from any model."""

    rank: int
    alpha: float
    rslora: bool
    dropout: float
    targets: tuple[str, ...] | str
    """Names as PEFT matches them: the end of a module's path; a string is a regular expression over whole paths."""
    weights: Mapping[str, tuple[Tensor, Tensor]]
    """Module path -> float32 (A_IR, B_RO) on the CPU."""

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def target_modules(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """Path -> linear layer for `targets`, in the model's order; `all-linear` is every one but the output head.

    Raises:
        UserError: a target matches nothing, matches something that is no plain `nn.Linear` (Conv1D of GPT-2,
            quantised layers), or is the output head.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    modules = dict(model.named_modules())
    linear = {path: module for path, module in modules.items() if type(module) is nn.Linear and module is not head}
    if tuple(targets) == (ALL_LINEAR,):
        if not linear:
            raise UserError(f"model.targets: {type(model).__name__} has no nn.Linear layers (Conv1D, quantised?)")
        return linear
    chosen = set()
    for target in targets:
        matches = [path for path in modules if path == target or path.endswith(f".{target}")]
        if not matches:
            leaves = sorted({path.rpartition(".")[2] for path in linear})
            raise UserError(
                f"model.targets: no layer is called '{target}'{nearest(target, leaves)}; there are {leaves}"
            )
        for path in matches:
            if path not in linear:
                kind = "the output head" if modules[path] is head else f"a {type(modules[path]).__name__}"
                raise UserError(f"model.targets: '{target}' is {kind}; adapters need an nn.Linear inside the model")
            chosen.add(path)
    return {path: module for path, module in linear.items() if path in chosen}


def fresh_adapter(model: nn.Module, config: ModelConfig, seed: int) -> Adapter:
    """A new adapter: A uniform in ±1/sqrt(I) (Kaiming with a = sqrt(5), as PEFT), B = 0.

    Each layer draws from its own CPU stream (seed, "adapter", path), so the numbers depend neither on the
    device, nor on neighbours, nor on which other layers are targets.
    """
    weights = {}
    for path, linear in target_modules(model, config.targets).items():
        generator = torch.Generator().manual_seed(seeds.derive(seed, "adapter", path))
        bound = 1 / math.sqrt(linear.in_features)
        a_RI = torch.empty(config.lora_rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        weights[path] = (a_RI.T.contiguous(), torch.zeros(config.lora_rank, linear.out_features))
    return Adapter(
        rank=config.lora_rank,
        alpha=config.alpha,
        rslora=config.rslora,
        dropout=config.lora_dropout,
        targets=_peft_targets(model, weights, config.targets),
        weights=weights,
    )


def _peft_targets(model: nn.Module, paths: Mapping[str, Any], targets: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest names that select exactly `paths` when matched at the end of a module's path."""
    if targets != (ALL_LINEAR,):
        return targets
    leaves = {path.rpartition(".")[2] for path in paths}
    matched = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in leaves}
    return tuple(sorted(leaves)) if matched == set(paths) else tuple(sorted(paths))


class AdapterStack:
    """N adapters injected into `model`; use it as a context manager, which restores the plain base at the end.

    All numbers live in one float32 tensor `flat_NP`, whatever the dtype of the base; each layer's A (N, I, R) and
    B (N, R, O) are views into it, and `grad_NP` holds the gradients in the same places. So clipping, optimising,
    checking and saving N runs are a handful of operations on rows. Adapters of smaller rank, or without some
    layer, are padded with zeros; A and B are zero there together, so their gradients are exactly zero too. In
    memory the rank comes first in A as well: thin products are several times faster that way.

    The products are computed in the dtype of the base. With a bfloat16 base the float32 numbers are rounded at
    use, as its activations are, while updates accumulate in float32 (docs/decisions/0003).

    Args:
        model: a causal language model of transformers; its own parameters are frozen while the stack is on.
        adapters: what to stack; may be empty.
        trainable: whether gradients are wanted.

    Raises:
        UserError: an adapter names a layer that the model lacks, or has another shape.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter], trainable: bool = False):
        self.model = model
        self.templates = tuple(adapters)
        device, self.dtype = next((parameter.device, parameter.dtype) for parameter in model.parameters())
        modules = dict(model.named_modules())
        paths = dict.fromkeys(path for adapter in adapters for path in adapter.weights)
        linears = {path: _fitting(path, modules.get(path), adapters) for path in paths}
        rank = max((adapter.rank for adapter in adapters), default=0)
        if device.type == "cuda":
            rank = -(-rank // 8) * 8  # grouped_mm needs strides of 16 bytes; the padding stays zero
        total = sum(rank * (linear.in_features + linear.out_features) for linear in linears.values())
        self.flat_NP = torch.zeros(len(adapters), total, device=device)
        self.trainable = trainable
        self.grad_NP = torch.zeros_like(self.flat_NP) if trainable else self.flat_NP.new_empty(0)
        self.scale_N = torch.tensor([adapter.scale for adapter in adapters], device=device)
        self.generator = torch.Generator(device)
        self.groups: RowGroups | None = None
        self._thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        self._leaves: list[tuple[Tensor, Tensor]] = []
        self.layers: dict[str, AdaptedLinear] = {}
        start = 0
        for path, linear in linears.items():
            a_NIR, start = self._slot(start, rank, linear.in_features, transposed=True)
            b_NRO, start = self._slot(start, rank, linear.out_features)
            for n, adapter in enumerate(adapters):
                if path in adapter.weights:
                    a_IR, b_RO = adapter.weights[path]
                    a_NIR.data[n, :, : adapter.rank] = a_IR
                    b_NRO.data[n, : adapter.rank] = b_RO
            self.layers[path] = AdaptedLinear(path, linear, self, a_NIR, b_NRO)
            _replace(model, path, self.layers[path])

    def _slot(self, start: int, rank: int, features: int, transposed: bool = False) -> tuple[Tensor, int]:
        """A view of the next rank × features numbers of each adapter, paired with where its gradient goes."""
        end = start + rank * features

        def window(flat_NP: Tensor) -> Tensor:
            view = flat_NP[:, start:end].view(-1, rank, features)
            return view.transpose(1, 2) if transposed else view

        leaf = window(self.flat_NP).detach()
        if self.trainable:
            self._leaves.append((leaf.requires_grad_(), window(self.grad_NP)))
        return leaf, end

    def __enter__(self) -> "AdapterStack":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Put the plain linear layers back and thaw what was trainable before."""
        for path, layer in self.layers.items():
            _replace(self.model, path, layer.base)
        self.layers = {}
        for parameter in self._thawed:
            parameter.requires_grad_()

    def backward(self, *terms: tuple[Tensor, Tensor], into_NP: Tensor | None = None, keep: bool = False) -> None:
        """Add the gradient of the sum of weight · loss to `grad_NP`, which the caller zeroes where a step begins.

        A term is a loss and its weight, of one shape and dtype, which gets no gradient. Likelihood, entropy and
        divergence of a pass are terms that share one backward pass through the model.

        Call it inside the `rows` of the pass that made the losses: a checkpointed layer runs again here.

        Args:
            terms: losses and weights.
            into_NP: where to add instead, contiguous and shaped like `grad_NP`.
            keep: whether another backward pass of the same losses follows.
        """
        if not self.trainable:
            raise RuntimeError("the stack was made without trainable=True")
        losses, weights = zip(*terms, strict=True)
        leaves = [leaf for leaf, _ in self._leaves]
        found = torch.autograd.grad(losses, leaves, weights, retain_graph=keep)
        for (leaf, total), grad in zip(self._leaves, found, strict=True):
            if into_NP is not None:  # a leaf is a window on `flat_NP`
                total = into_NP.as_strided(leaf.size(), leaf.stride(), leaf.storage_offset())
            total.add_(grad)

    @contextlib.contextmanager
    def rows(
        self,
        adapter_S: Sequence[int | None],
        lengths_S: Sequence[int] = (),
        dropout_S: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Declare the rows of the passes made inside the block: forward, and backward where there is one.

        Args:
            adapter_S: adapter of each row, None for the base. Rows of one adapter side by side are fastest.
            lengths_S: tokens of each row without padding; needed with `dropout_S`.
            dropout_S: key of each row's dropout stream; None switches dropout off. A row's mask is a function
                of its key, the layer's path and the token's position alone: neither neighbours nor padding nor
                micro-batches change it, and a recomputed forward (gradient checkpointing) finds the same one.
        """
        chances = [0.0 if n is None else self.templates[n].dropout for n in adapter_S]
        dropout = tuple(
            (s, chance, lengths_S[s], dropout_S[s]) for s, chance in enumerate(chances) if dropout_S and chance
        )
        previous = self.groups
        self.groups = row_groups(adapter_S, self.scale_N, self.dtype, dropout)
        try:
            yield
        finally:
            self.groups = previous

    @contextlib.contextmanager
    def merged(self, n: int) -> Iterator[None]:
        """Within the block every row runs through adapter `n`, folded into a copy of the weights: W + s (A B)^T.

        Faster than the low-rank products where the pass is long, and equal to them up to float32 rounding; an
        adapter that is zero gives the base's bits.

        Raises:
            ValueError: the base has 16 bits, whose rounding would swallow small updates.
        """
        if self.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(f"merging into {self.dtype} loses small updates; use rows() instead")
        for layer in self.layers.values():
            delta_IO = layer.a_NIR[n].detach() @ layer.b_NRO[n].detach()
            layer.merged_OI = layer.weight + float(self.scale_N[n]) * delta_IO.T
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.merged_OI = None

    def adapter(self, n: int) -> Adapter:
        """Adapter `n` as it is now, copied to the CPU at its own rank and layers."""
        template = self.templates[n]
        weights = {
            path: (
                self.layers[path].a_NIR[n, :, : template.rank].detach().cpu().clone(),
                self.layers[path].b_NRO[n, : template.rank].detach().cpu().clone(),
            )
            for path in template.weights
        }
        return Adapter(template.rank, template.alpha, template.rslora, template.dropout, template.targets, weights)

    def keep_mask(self, path: str, x_STI: Tensor) -> Tensor | None:
        """Dropout as a factor: 0 where an input is dropped, 1 / (1 - p) where kept; None when nothing drops."""
        assert self.groups is not None
        if not self.groups.dropout:
            return None
        keep_STI = torch.ones_like(x_STI)
        for s, chance, tokens, key in self.groups.dropout:
            self.generator.manual_seed(seeds.derive(key, path))
            keep_STI[s, :tokens].bernoulli_(1 - chance, generator=self.generator).div_(1 - chance)
        return keep_STI


def _fitting(path: str, module: nn.Module | None, adapters: Sequence[Adapter]) -> nn.Linear:
    if type(module) is not nn.Linear:
        kind = "is missing from" if module is None else f"is a {type(module).__name__} in"
        raise UserError(f"adapter layer '{path}' {kind} this base; was the adapter trained on another model?")
    for adapter in adapters:
        if path in adapter.weights:
            a_IR, b_RO = adapter.weights[path]
            have = (tuple(a_IR.shape), tuple(b_RO.shape))
            want = ((module.in_features, adapter.rank), (adapter.rank, module.out_features))
            if have != want:
                raise UserError(f"adapter layer '{path}' has shapes {have}, this base needs {want}")
    return module


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


class AdaptedLinear(nn.Module):
    """A frozen linear layer and its slice of the stack."""

    def __init__(self, path: str, base: nn.Linear, stack: AdapterStack, a_NIR: Tensor, b_NRO: Tensor):
        super().__init__()
        self.path = path
        self.base = base
        self.stack = stack
        self.a_NIR = a_NIR
        self.b_NRO = b_NRO
        self.merged_OI: Tensor | None = None
        self.in_features = base.in_features
        self.out_features = base.out_features

    @property
    def weight(self) -> Tensor:
        """The base's weight; some architectures ask a layer for its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Base product plus each row's own low-rank product; `x` is (S, T, I) or (S·T, I)."""
        if self.merged_OI is not None:
            return F.linear(x, self.merged_OI, self.base.bias)
        groups = self.stack.groups
        if groups is None:
            raise RuntimeError("a pass over an adapter stack must be made inside stack.rows(...)")
        x_STI = x.reshape(groups.rows, -1, self.in_features)
        keep_STI = self.stack.keep_mask(self.path, x_STI)
        y_STO = LoraLinear.apply(x_STI, self.a_NIR, self.b_NRO, self.base.weight, self.base.bias, keep_STI, groups)
        return y_STO.view(*x.shape[:-1], self.out_features)
