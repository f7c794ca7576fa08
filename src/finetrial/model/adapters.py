"""The adapter stack: N LoRA adapters over one frozen base, trained and evaluated in the same pass.

A row of a pass belongs to one adapter or to none, which is the base itself. The low-rank product of an adapted
linear layer is y = W x + s B^T A^T x (Hu et al. 2021, arXiv:2106.09685), with s = alpha / rank, or
alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732). docs/decisions/0003 says why things are stored as they are;
initial.py what else an adapter can start from, dora.py what magnitudes are.

Shapes: N adapters, S rows (sequences) of a pass, T tokens of a padded row, I input and O output features of a
linear layer, R the largest rank of the stack, P numbers of one adapter over all layers.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetrial import seeds
from finetrial.errors import UserError
from finetrial.model.config import ModelConfig
from finetrial.model.dora import Magnified, adapted_norms, row_norms
from finetrial.model.initial import Started, drawn
from finetrial.model.lowrank import LoraLinear, RowGroups, row_groups
from finetrial.model.targets import peft_targets, target_modules


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter as a value, away from any model."""

    rank: int
    """Directions of the low-rank product, the frozen ones among them."""
    alpha: float
    rslora: bool
    dropout: float
    targets: tuple[str, ...] | str
    """Names as PEFT matches them: the end of a module's path; a string is a regular expression over whole paths."""
    weights: Mapping[str, tuple[Tensor, Tensor]]
    """Module path -> float32 (A_IR, B_RO) on the CPU."""
    frozen: int = 0
    """How many of the rank's directions, the last ones, are never trained: what the first ones started as, with B
    negative, so that training starts at the base (PiSSA, OLoRA). Files do not tell them from others."""
    magnitudes: Mapping[str, Tensor] | None = None
    """DoRA: module path -> float32 m_O on the CPU, for every adapted layer; None for any other adapter."""

    @property
    def trained_rank(self) -> int:
        """Directions that training moves."""
        return self.rank - self.frozen

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def fresh_adapter(model: nn.Module, config: ModelConfig, seed: int) -> Adapter:
    """A new adapter; see `fresh_adapters`."""
    return fresh_adapters(model, [(config, seed)])[0]


def fresh_adapters(model: nn.Module, wanted: Sequence[tuple[ModelConfig, int]]) -> list[Adapter]:
    """New adapters of configurations and seeds, all of which start at the base, PiSSA and OLoRA up to rounding.

    By default A is uniform in ±1/sqrt(I) (Kaiming with a = sqrt(5), as PEFT) and B = 0. Each layer draws from its own
    CPU stream (seed, "adapter", path), so the numbers depend neither on the device, nor on neighbours, nor on which
    other layers are targets. PiSSA and OLoRA draw nothing: their factors are the base's, and are made once for all.
    They have twice the configured rank (`Adapter.frozen`) at the configured scale.

    Raises:
        UserError: targets that are no linear layers, or a rank above what a layer has directions for PiSSA or OLoRA.
    """
    started = Started(max((config.lora_rank for config, _ in wanted), default=0))
    fresh = []
    for config, seed in wanted:
        linears = target_modules(model, config.targets)
        weights = {
            path: drawn(linear, config.lora_rank, seed, path)
            if config.init == "lora"
            else started.both_halves(linear, path, config)
            for path, linear in linears.items()
        }
        frozen = 0 if config.init == "lora" else config.lora_rank
        growth = (config.lora_rank + frozen) / config.lora_rank
        adapter = Adapter(
            rank=config.lora_rank + frozen,
            alpha=config.alpha * (math.sqrt(growth) if config.rslora else growth),
            rslora=config.rslora,
            dropout=config.lora_dropout,
            targets=peft_targets(model, weights, config.targets),
            weights=weights,
            frozen=frozen,
        )
        if config.dora:
            lengths = {path: row_norms(linear.weight).cpu() for path, linear in linears.items()}
            adapter = replace(adapter, magnitudes=lengths)
        fresh.append(adapter)
    return fresh


class AdapterStack:
    """N adapters injected into `model`; use it as a context manager, which restores the plain base at the end.

    All numbers live in one float32 tensor `flat_NP`, whatever the dtype of the base; each layer's A (N, I, R) and
    B (N, R, O) are views into it, and `grad_NP` holds the gradients in the same places. So clipping, optimising,
    checking and saving N runs are a handful of operations on rows. Adapters of smaller rank, or without some
    layer, are padded with zeros; A and B are zero there together, so their gradients are exactly zero too. In
    memory the rank comes first in A as well: thin products are several times faster that way. Where an adapter has
    magnitudes (DoRA), those of all layers (N, 1, O) follow at the end.

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
        magnified = {path: tuple(path in (adapter.magnitudes or ()) for adapter in adapters) for path in paths}
        magnified = {path: chosen_N for path, chosen_N in magnified.items() if any(chosen_N)}
        total = sum(rank * (linear.in_features + linear.out_features) for linear in linears.values())
        total += sum(linears[path].out_features for path in magnified)
        self.flat_NP = torch.zeros(len(adapters), total, device=device)
        self.trainable = trainable
        self.grad_NP = torch.zeros_like(self.flat_NP) if trainable else self.flat_NP.new_empty(0)
        self.scale_N = torch.tensor([adapter.scale for adapter in adapters], device=device)
        self.b_P = torch.zeros(total, dtype=torch.bool, device=device)
        """Which numbers are those of B: LoRA+ gives them a rate of their own."""
        self._frozen_NR = _frozen(adapters, rank, device)
        self.frozen_NP = None if self._frozen_NR is None else torch.zeros_like(self.flat_NP, dtype=torch.bool)
        """Which numbers no training may touch; None where there are none. Their gradients are zero."""
        self.generator = torch.Generator(device)
        self.groups: RowGroups | None = None
        self._thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        self._leaves: list[tuple[Tensor, Tensor]] = []
        self.layers: dict[str, AdaptedLinear] = {}
        start = 0
        for path, linear in linears.items():
            a_NIR, middle = self._slot(start, rank, linear.in_features, transposed=True)
            b_NRO, end = self._slot(middle, rank, linear.out_features)
            self.b_P[middle:end] = True
            if self._frozen_NR is not None and self.frozen_NP is not None:
                both = [self._frozen_NR.repeat_interleave(size, dim=1) for size in linear.weight.shape[::-1]]
                self.frozen_NP[:, start:end] = torch.cat(both, dim=1)
            start = end
            for n, adapter in enumerate(adapters):
                if path in adapter.weights:
                    a_IR, b_RO = adapter.weights[path]
                    a_NIR.data[n, :, : adapter.rank] = a_IR
                    b_NRO.data[n, : adapter.rank] = b_RO
            self.layers[path] = AdaptedLinear(path, linear, self, a_NIR, b_NRO)
            _replace(model, path, self.layers[path])
        for path, chosen_N in magnified.items():
            m_N1O, start = self._slot(start, 1, linears[path].out_features)
            for n, adapter in enumerate(adapters):
                if adapter.magnitudes is not None and chosen_N[n]:
                    m_N1O.data[n] = adapter.magnitudes[path]
            self.layers[path].m_N1O, self.layers[path].magnified_N = m_N1O, chosen_N

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
        self.groups = row_groups(adapter_S, self.scale_N, self.dtype, dropout, self._frozen_NR)
        try:
            yield
        finally:
            self.groups = previous

    @contextlib.contextmanager
    def merged(self, n: int) -> Iterator[None]:
        """Within the block every row runs through adapter `n`, folded into a copy of the weights: W + s (A B)^T, its
        rows brought to their magnitudes where the adapter has any.

        Faster than the low-rank products where the pass is long, and equal to them up to float32 rounding; an
        adapter that is zero gives the base's bits.

        Raises:
            ValueError: the base has 16 bits, whose rounding would swallow small updates.
        """
        if self.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(f"merging into {self.dtype} loses small updates; use rows() instead")
        for layer in self.layers.values():
            layer.merged_OI = layer.fold(n)
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
        if template.magnitudes is None:
            return replace(template, weights=weights)
        slots = {path: self.layers[path].m_N1O for path in template.magnitudes}
        magnitudes = {path: m_N1O[n, 0].detach().cpu().clone() for path, m_N1O in slots.items() if m_N1O is not None}
        return replace(template, weights=weights, magnitudes=magnitudes)

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
            magnitudes = 0 if adapter.magnitudes is None else len(adapter.magnitudes[path])
            if magnitudes not in (0, module.out_features):
                outputs = module.out_features
                raise UserError(f"adapter layer '{path}' has {magnitudes} magnitudes, this base needs {outputs}")
    return module


def _frozen(adapters: Sequence[Adapter], rank: int, device: torch.device) -> Tensor | None:
    """bool (N, R): which directions of each adapter are never trained; None where all are."""
    if not any(adapter.frozen for adapter in adapters):
        return None
    direction_R = torch.arange(rank)
    return torch.stack([(direction_R >= a.trained_rank) & (direction_R < a.rank) for a in adapters]).to(device)


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
        self.m_N1O: Tensor | None = None
        self.magnified_N: tuple[bool, ...] = ()
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

    def fold(self, n: int) -> Tensor:
        """The weight (O, I) of the plain linear layer that does what the base and adapter `n` do together."""
        delta_IO = self.a_NIR[n].detach() @ self.b_NRO[n].detach()
        folded_OI = self.weight + float(self.stack.scale_N[n]) * delta_IO.T
        if self.m_N1O is None or not self.magnified_N[n]:
            return folded_OI
        return folded_OI * (self.m_N1O[n].detach() / self._norms(n, n + 1)[0]).T

    def _norms(self, first: int, end: int) -> Tensor:
        some = slice(first, end)
        return adapted_norms(self.weight, self.a_NIR[some], self.b_NRO[some], self.stack.scale_N[some, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Base product plus each row's own low-rank product; `x` is (S, T, I) or (S·T, I)."""
        if self.merged_OI is not None:
            return F.linear(x, self.merged_OI, self.base.bias)
        groups = self.stack.groups
        if groups is None:
            raise RuntimeError("a pass over an adapter stack must be made inside stack.rows(...)")
        x_STI = x.reshape(len(groups.adapter_S), -1, self.in_features)
        keep_STI = self.stack.keep_mask(self.path, x_STI)
        weight_OI, bias_O = self.base.weight, self.base.bias
        y_STO = LoraLinear.apply(x_STI, self.a_NIR, self.b_NRO, weight_OI, bias_O, keep_STI, groups)
        if self.m_N1O is not None:
            if self.path not in groups.norms:
                blocks = groups.only(self.magnified_N)
                groups.norms[self.path] = [(block, self._norms(*block[:2])) for block in blocks]
            norms = groups.norms[self.path]
            y_STO = Magnified.apply(y_STO, self.m_N1O, x_STI, weight_OI, bias_O, keep_STI, norms)
        return y_STO.view(*x.shape[:-1], self.out_features)
