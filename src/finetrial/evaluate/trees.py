"""Several continuations of one prompt in one row: the prompt is read once, a common beginning of continuations too.

A row is a tree of tokens. Every token attends to its ancestors and itself alone and stands at the position of its
depth, so each path from the root is read as if it were a row of its own; keys and values are never copied. The last
token of a continuation is only predicted, never read.

Shapes: T tokens of a tree, S trees of a batch, B tokens behind the prompt, U places whose next token is asked for,
M scored tokens, O continuations.
"""

import inspect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


@dataclass(frozen=True)
class Tree:
    """A prompt and what may follow it."""

    ids_T: np.ndarray
    """int64 tokens read: the prompt, then the tokens behind it, a parent before its children."""
    parent_B: np.ndarray
    """int64 place of the token before each token behind the prompt."""
    node_U: np.ndarray
    """int64 places whose next token is scored, ascending."""
    row_M: np.ndarray
    """int64 index into `node_U` of each scored token, ascending."""
    target_M: np.ndarray
    """int64 scored tokens."""
    option_M: np.ndarray
    """int64 continuation that each belongs to."""
    options: int

    @property
    def tokens(self) -> int:
        """Tokens read."""
        return len(self.ids_T)

    @property
    def branches(self) -> bool:
        """Whether it is more than a chain, which plain causal attention reads."""
        return bool((self.parent_B != np.arange(self.prompt - 1, self.tokens - 1)).any())

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.tokens - len(self.parent_B)

    @cached_property
    def depth_T(self) -> np.ndarray:
        """int64 position of each token in its path."""
        depth_T = np.arange(self.tokens)
        for place, parent in enumerate(self.parent_B, start=self.prompt):
            depth_T[place] = depth_T[parent] + 1
        return depth_T

    @cached_property
    def seen_BT(self) -> np.ndarray:
        """bool: what each token behind the prompt attends to."""
        seen_BT = np.zeros((len(self.parent_B), self.tokens), bool)
        for b, parent in enumerate(self.parent_B):
            seen_BT[b, : self.prompt] = True
            if parent >= self.prompt:
                seen_BT[b] = seen_BT[parent - self.prompt]
            seen_BT[b, self.prompt + b] = True
        return seen_BT


def tree(prompt_T: np.ndarray, options: Sequence[np.ndarray]) -> Tree:
    """The tree of a prompt and its continuations.

    Args:
        prompt_T: int64 ids, at least one.
        options: int64 ids of each continuation, at least one each.
    """
    ids, parents = [int(token) for token in prompt_T], list[int]()
    children: dict[tuple[int, int], int] = {}
    scored: list[tuple[int, int, int]] = []
    for o, option in enumerate(options):
        node = len(prompt_T) - 1
        for place, token in enumerate(map(int, option)):
            scored.append((node, token, o))
            if place == len(option) - 1:
                break
            if (node, token) not in children:
                children[node, token] = len(ids)
                ids.append(token)
                parents.append(node)
            node = children[node, token]
    place_M, target_M, option_M = np.array(sorted(scored, key=lambda one: one[0]), np.int64).T
    node_U, row_M = np.unique(place_M, return_inverse=True)
    return Tree(np.array(ids), np.array(parents, np.int64), node_U, row_M, target_M, option_M, len(options))


@dataclass(frozen=True)
class Forest:
    """Trees padded on the right to the longest of them, read in one pass."""

    trees: tuple[Tree, ...]
    ids_ST: Tensor
    depth_ST: Tensor
    index_U: Tensor
    """Places whose next token is scored, in the flattened (S·T) rows."""
    row_M: np.ndarray
    """int64 index into `index_U` of each scored token, ascending."""
    target_M: Tensor
    option_M: np.ndarray
    """int64 continuation, counted over the whole forest."""
    options: int
    branches: bool

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to attention scores (S, 1, T, T); None where plain causal attention reads every row.

        Padding attends to all before it: nothing looks at it.
        """
        if not self.branches:
            return None
        width = self.ids_ST.shape[1]
        seen_STT = np.tile(np.tri(width, dtype=bool), (len(self.trees), 1, 1))
        for s, one in enumerate(self.trees):
            seen_STT[s, one.prompt : one.tokens, : one.tokens] = one.seen_BT
        mask_STT = torch.zeros(seen_STT.shape, dtype=dtype, device=self.ids_ST.device)
        hidden_STT = torch.from_numpy(~seen_STT).to(self.ids_ST.device)
        return mask_STT.masked_fill_(hidden_STT, torch.finfo(dtype).min)[:, None]


def forest(trees: Sequence[Tree], device: torch.device) -> Forest:
    """Collate trees (token id 0 fills up)."""
    width = max(one.tokens for one in trees)
    ids_ST = np.zeros((len(trees), width), np.int64)
    depth_ST = np.tile(np.arange(width), (len(trees), 1))
    for s, one in enumerate(trees):
        ids_ST[s, : one.tokens] = one.ids_T
        depth_ST[s, : one.tokens] = one.depth_T
    before_U = _starts(len(one.node_U) for one in trees)
    before_O = _starts(one.options for one in trees)
    return Forest(
        trees=tuple(trees),
        ids_ST=torch.from_numpy(ids_ST).to(device),
        depth_ST=torch.from_numpy(depth_ST).to(device),
        index_U=torch.from_numpy(np.concatenate([s * width + one.node_U for s, one in enumerate(trees)])).to(device),
        row_M=np.concatenate([one.row_M + before for one, before in zip(trees, before_U, strict=True)]),
        target_M=torch.from_numpy(np.concatenate([one.target_M for one in trees])).to(device),
        option_M=np.concatenate([one.option_M + before for one, before in zip(trees, before_O, strict=True)]),
        options=sum(one.options for one in trees),
        branches=any(one.branches for one in trees),
    )


def read(model: nn.Module, batch: Forest, copies: int = 1) -> Tensor:
    """Last hidden states (copies · S, T, H) of a batch whose rows are read `copies` times, one copy after another."""
    ids_ST = batch.ids_ST.repeat(copies, 1)
    mask = batch.mask(next(model.parameters()).dtype)
    if mask is None:
        return model.base_model(input_ids=ids_ST, use_cache=False).last_hidden_state  # type: ignore[operator]
    return model.base_model(  # type: ignore[operator]
        input_ids=ids_ST,
        attention_mask=mask.repeat(copies, 1, 1, 1),
        position_ids=batch.depth_ST.repeat(copies, 1),
        use_cache=False,
    ).last_hidden_state


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
    probe = tree(np.array([1, 2, 3]), [np.array([4, 5, 6]), np.array([7, 8, 9])])
    whole_TH = read(model, forest([probe], device))[0].float()
    for option in ([4, 5], [7, 8]):
        alone_TH = read(model, forest([tree(np.array([1, 2, 3, *option]), [np.array([1])])], device))[0].float()
        place = int(np.flatnonzero(probe.ids_T == option[-1])[0])
        want_H = alone_TH[-1]
        if not torch.allclose(whole_TH[place], want_H, rtol=1e-2, atol=1e-2 * float(want_H.abs().max())):
            return 0
    return min(windows, default=math.inf)


def _starts(counts: Iterable[int]) -> list[int]:
    return [0, *itertools.accumulate(counts)][:-1]
