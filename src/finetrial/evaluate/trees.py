"""Several texts in one row, so that what they begin with in common is read once: the options of a question, and
questions that begin alike (the same examples or instructions, say).

A row is a tree of tokens. Every token attends to its ancestors and itself alone and stands at the position of its
depth, so each path from the root is read as if it were a row of its own; keys and values are never copied. The last
token of a continuation is only predicted, never read.

Shapes: T tokens of a tree, S trees of a batch, U places whose next token is asked for, P most of them in a tree,
M scored tokens, O paths, H hidden features.
"""

import contextlib
import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Path = tuple[np.ndarray, np.ndarray]
"""int64 ids of a prompt and of what follows it, at least one each."""


@dataclass(frozen=True)
class Tree:
    """Prompts and what may follow them, in preorder: what stems from a token stands right behind it."""

    ids_T: np.ndarray
    """int64 tokens read."""
    depth_T: np.ndarray
    """int64 position of each token in its path."""
    end_T: np.ndarray
    """int64 place behind the last token that stems from each."""
    node_U: np.ndarray
    """int64 places whose next token is scored, ascending."""
    row_M: np.ndarray
    """int64 index into `node_U` of each scored token, ascending."""
    target_M: np.ndarray
    """int64 scored tokens."""
    option_M: np.ndarray
    """int64 path that each belongs to."""
    options: int

    @property
    def tokens(self) -> int:
        """Tokens read."""
        return len(self.ids_T)

    @property
    def branches(self) -> bool:
        """Whether it is more than a chain, which plain causal attention reads."""
        return int(self.depth_T[-1]) != self.tokens - 1


def tree(paths: Sequence[Path]) -> Tree:
    """The tree of some paths, each of which shares what it has in common with the path before it: sort them.

    A path with another beginning is a root of its own.
    """
    read_T, place_T, tokens = np.empty(0, np.int64), np.empty(0, np.int64), 0
    ids, depths, ends = list[np.ndarray](), list[np.ndarray](), list[tuple[np.ndarray, int]]()
    nodes = []
    for prompt_T, option_T in paths:
        before_T, read_T = read_T, np.concatenate([prompt_T, option_T[:-1]])
        shared = common(before_T, read_T)
        ends.append((place_T[shared:], tokens))
        place_T = np.concatenate([place_T[:shared], np.arange(tokens, tokens + len(read_T) - shared)])
        tokens += len(read_T) - shared
        ids.append(read_T[shared:])
        depths.append(np.arange(shared, len(read_T)))
        nodes.append(place_T[len(prompt_T) - 1 :])
    end_T = np.full(tokens, tokens)
    for closed, end in ends:
        end_T[closed] = end
    place_M = np.concatenate(nodes)
    order_M = np.argsort(place_M, kind="stable")
    node_U, row_M = np.unique(place_M[order_M], return_inverse=True)
    return Tree(
        ids_T=np.concatenate(ids),
        depth_T=np.concatenate(depths),
        end_T=end_T,
        node_U=node_U,
        row_M=row_M,
        target_M=np.concatenate([option_T for _, option_T in paths])[order_M],
        option_M=np.repeat(np.arange(len(paths)), [len(option_T) for _, option_T in paths])[order_M],
        options=len(paths),
    )


def common(one_T: np.ndarray, other_T: np.ndarray) -> int:
    """With how many equal tokens two texts begin."""
    shortest = min(len(one_T), len(other_T))
    differs_T = one_T[:shortest] != other_T[:shortest]
    return int(differs_T.argmax()) if differs_T.any() else shortest


@dataclass(frozen=True)
class Forest:
    """Trees padded on the right to the longest of them, read in one pass."""

    ids_ST: Tensor
    depth_ST: Tensor
    end_ST: Tensor
    place_SP: Tensor
    """Places of each tree whose next token is scored; the first place fills up."""
    index_U: Tensor
    """The same without what fills up, in the flattened (S·T) rows."""
    row_M: np.ndarray
    """int64 index into `index_U` of each scored token, ascending."""
    target_M: Tensor
    option_M: np.ndarray
    """int64 path, counted over the whole forest."""
    options: int
    branches: bool

    @property
    def trees(self) -> int:
        """Trees read."""
        return len(self.ids_ST)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to attention scores (S, 1, T, T); None where plain causal attention reads every row."""
        if not self.branches:
            return None
        place_T = torch.arange(self.ids_ST.shape[1], device=self.ids_ST.device)
        seen_STT = (place_T <= place_T[:, None]) & (place_T[:, None] < self.end_ST[:, None])
        mask_STT = torch.zeros(seen_STT.shape, dtype=dtype, device=self.ids_ST.device)
        return mask_STT.masked_fill_(~seen_STT, torch.finfo(dtype).min)[:, None]


def forest(trees: Sequence[Tree], device: torch.device) -> Forest:
    """Collate trees (token id 0 fills up; it sees all padding before it, and nothing looks at it)."""
    width = max(one.tokens for one in trees)
    ids_ST = np.zeros((len(trees), width), np.int64)
    place_SP = np.zeros((len(trees), max(len(one.node_U) for one in trees)), np.int64)
    depth_ST = np.tile(np.arange(width), (len(trees), 1))
    end_ST = np.full((len(trees), width), width)
    for s, one in enumerate(trees):
        ids_ST[s, : one.tokens] = one.ids_T
        depth_ST[s, : one.tokens] = one.depth_T
        end_ST[s, : one.tokens] = one.end_T
        place_SP[s, : len(one.node_U)] = one.node_U
    before_U = _starts(len(one.node_U) for one in trees)
    before_O = _starts(one.options for one in trees)
    return Forest(
        ids_ST=torch.from_numpy(ids_ST).to(device),
        depth_ST=torch.from_numpy(depth_ST).to(device),
        end_ST=torch.from_numpy(end_ST).to(device),
        place_SP=torch.from_numpy(place_SP).to(device),
        index_U=torch.from_numpy(np.concatenate([s * width + one.node_U for s, one in enumerate(trees)])).to(device),
        row_M=np.concatenate([one.row_M + before for one, before in zip(trees, before_U, strict=True)]),
        target_M=torch.from_numpy(np.concatenate([one.target_M for one in trees])).to(device),
        option_M=np.concatenate([one.option_M + before for one, before in zip(trees, before_O, strict=True)]),
        options=sum(one.options for one in trees),
        branches=any(one.branches for one in trees),
    )


def read(model: nn.Module, batch: Forest, copies: int = 1, last: nn.Module | None = None) -> Tensor:
    """Last hidden states (copies · S, T, H) of a batch whose rows are read `copies` times, one copy after another.

    Args:
        model: a causal model of transformers.
        batch: what to read.
        copies: how often.
        last: `last_feed_forward` of the model: hidden states are right at the batch's scored places alone.
    """
    ids_ST = batch.ids_ST.repeat(copies, 1)
    mask = batch.mask(next(model.parameters()).dtype)
    told: dict[str, Any] = {}
    if mask is not None:
        told = {
            "attention_mask": mask.repeat(copies, 1, 1, 1),
            "position_ids": batch.depth_ST.repeat(copies, 1),
        }
    with _only_at(last, batch.place_SP.repeat(copies, 1)):
        return model.base_model(input_ids=ids_ST, use_cache=False, **told).last_hidden_state  # type: ignore[operator]


@contextlib.contextmanager
def _only_at(layer: nn.Module | None, place_SP: Tensor) -> Iterator[None]:
    """Within the block a layer that treats every token by itself (S, T, H) computes these places alone; its output is
    zero elsewhere."""
    if layer is None:
        yield
        return
    widths: list[int] = []

    def gather(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_STH = given[0]
        widths.append(hidden_STH.shape[1])
        return hidden_STH.gather(1, _spread(hidden_STH)), *given[1:]

    def scatter(_: nn.Module, given: tuple[Any, ...], output_SPH: Tensor) -> Tensor:
        output_STH = output_SPH.new_zeros(len(output_SPH), widths.pop(), output_SPH.shape[2])
        return output_STH.scatter_(1, _spread(output_SPH), output_SPH)

    def _spread(hidden_SXH: Tensor) -> Tensor:
        return place_SP[:, :, None].expand(-1, -1, hidden_SXH.shape[2])

    hooks = [layer.register_forward_pre_hook(gather), layer.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def last_feed_forward(model: nn.Module) -> nn.Module | None:
    """The feed-forward layer behind the last attention, if it can be computed for some tokens alone.

    No other token looks at what it makes of one. None where the base has no such layer under the name that nearly all
    transformers give it, or where a short pass proves otherwise. Call it on the plain base.
    """
    layers = getattr(model.base_model, "layers", None)
    last = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    if last is None:
        return None
    seen: list[Any] = []

    def note(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        seen.extend([*given, output])

    probe = forest([tree([(np.arange(1, 6), np.array([6, 7]))])], next(model.parameters()).device)
    hook = last.register_forward_hook(note)
    try:
        whole_TH = read(model, probe)[0].float()
    finally:
        hook.remove()
    if [isinstance(one, Tensor) and one.shape[1:] for one in seen] != [whole_TH.shape] * 2:
        return None
    some_TH = read(model, probe, last=last)[0].float()
    want_UH, have_UH = whole_TH[probe.index_U], some_TH[probe.index_U]
    same = torch.allclose(have_UH, want_UH, rtol=1e-2, atol=1e-2 * float(want_UH.abs().max()))
    return last if same else None


@torch.inference_mode()
def longest_path(model: nn.Module) -> float:
    """Tokens up to which paths of a tree are read like rows: 0 where this base cannot, infinity where any length is.

    A base can if its layers attend to all earlier tokens, or to a window (within which a path must lie), if it takes
    positions and a mask of its own; the last is proven on a short tree. Call it on the plain base.
    """
    named = inspect.signature(model.base_model.forward).parameters  # type: ignore[union-attr]
    config = model.config
    if "position_ids" not in named or getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return 0
    layers = DynamicCache(config=config).layers  # type: ignore[arg-type]
    windows = [layer.sliding_window for layer in layers if type(layer) is DynamicSlidingWindowLayer]
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    device = next(model.parameters()).device
    probe = tree([(np.array([1, 2, 3]), np.array(option)) for option in ([4, 5, 6], [7, 8, 9])])
    whole_TH = read(model, forest([probe], device))[0].float()
    for option in ([4, 5], [7, 8]):
        alone_TH = read(model, forest([tree([(np.array([1, 2, 3, *option]), np.array([1]))])], device))[0].float()
        place = int(np.flatnonzero(probe.ids_T == option[-1])[0])
        want_H = alone_TH[-1]
        if not torch.allclose(whole_TH[place], want_H, rtol=1e-2, atol=1e-2 * float(want_H.abs().max())):
            return 0
    return min(windows, default=math.inf)


def _starts(counts: Iterable[int]) -> list[int]:
    return [0, *itertools.accumulate(counts)][:-1]
