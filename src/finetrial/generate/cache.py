"""Keys and values of a decode batch, in buffers that are written in place: no concatenation per token.

All rows of a batch share one count of columns: prompts end at the same column, shorter ones begin later (padding on
the left), and each step writes one column. A prompt is read once; its keys and values are copied to the rows of all
its samples as they are computed.

Shapes: S rows, P prompts of a pass, K key-value heads, T tokens of a padded prompt, C columns, D features of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from finetrial.errors import UserError

FIRST_COLUMNS = 64
"""Columns for sampled tokens that are allocated at first; they double whenever they are full."""


class KeyValues:
    """The cache of one decode batch: fill it with prompts, then advance it step by step.

    Args:
        model: a causal language model of transformers whose layers attend to all earlier tokens or to a window.
        rows: rows of the batch.
        width: tokens of the longest prompt.
        longest: most tokens that will be sampled in any row.

    Raises:
        UserError: the model keeps another kind of state, which rows cannot share.
    """

    def __init__(self, model: nn.Module, rows: int, width: int, longest: int):
        self.rows, self.width, self.column = rows, width, width
        self.most = width + longest
        self.capacity = min(self.most, width + FIRST_COLUMNS)
        self.passing: tuple[Tensor, Tensor] | None = None
        """While prompts are read: the rows to write (S,) and which prompt of the pass each takes (S,)."""
        layers = [_layer(model, layer, self) for layer in DynamicCache(config=model.config).layers]  # type: ignore[arg-type]
        self.cache = Cache(layers=layers)  # type: ignore[arg-type]
        self.layers = layers

    def read(self, rows_S: Sequence[int], prompt_S: Sequence[int], device: torch.device) -> None:
        """The next pass reads prompts from their beginning; `rows_S` take those of index `prompt_S`."""
        self.passing = (torch.tensor(rows_S, device=device), torch.tensor(prompt_S, device=device))

    def begin(self) -> None:
        """All prompts are read; each pass from now on reads one token per row."""
        self.passing = None

    def advance(self) -> None:
        """One token per row has been read."""
        self.column += 1
        if self.capacity == self.column < self.most:
            self.capacity = min(self.most, self.width + 2 * (self.capacity - self.width))
            for layer in self.layers:
                layer.grow(self.capacity)

    def select(self, keep_S: Tensor) -> None:
        """Keep only these rows, whose indices ascend."""
        for layer in self.layers:
            layer.select(keep_S)
        self.rows = len(keep_S)


class BufferLayer(CacheLayerMixin):
    """One layer's keys (S, K, C, D) and values, of which the first `of.rows` rows are in use."""

    def __init__(self, of: KeyValues, window: int | None):
        super().__init__()
        self.of, self.window = of, window
        self.is_sliding = window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate at the first pass, whose states tell heads, features, type and device."""
        sizes = self.of.rows, key_states.shape[1], self.of.capacity
        self.keys = key_states.new_empty(*sizes, key_states.shape[3])
        self.values = value_states.new_empty(*sizes, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new states; give back what the queries of this pass may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        of = self.of
        if of.passing is not None:
            rows_S, prompt_S = of.passing
            start = of.width - key_states.shape[2]
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                buffer[:, :, start : of.width].index_copy_(0, rows_S, states.index_select(0, prompt_S))
                if start:  # masked, but what is not a number would outlive the mask
                    buffer[:, :, :start].index_fill_(0, rows_S, 0.0)
            return key_states, value_states
        column, first = of.column, self._first()
        self.keys[: of.rows, :, column : column + 1] = key_states
        self.values[: of.rows, :, column : column + 1] = value_states
        return self.keys[: of.rows, :, first : column + 1], self.values[: of.rows, :, first : column + 1]

    def _first(self) -> int:
        """First column that the next token may attend to."""
        return 0 if self.window is None else max(0, self.of.column - self.window + 1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns given back by the next `update`, and the first of them."""
        if self.of.passing is not None:
            return query_length, 0
        return self.of.column - self._first() + query_length, self._first()

    def get_seq_length(self) -> int:
        """Columns written before the next pass."""
        return 0 if self.of.passing is not None else self.of.column

    def get_max_length(self) -> int:
        """Columns of the buffers, which grow: -1."""
        return -1

    def grow(self, capacity: int) -> None:
        """More columns; what is written stays."""
        column, rows = self.of.column, self.of.rows
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(rows, old.shape[1], capacity, old.shape[3])
            new[:, :, :column] = old[:rows, :, :column]
            setattr(self, name, new)

    def select(self, keep_S: Tensor) -> None:
        """Move these rows to the front."""
        assert self.keys is not None
        assert self.values is not None
        column = self.of.column
        for buffer in (self.keys, self.values):
            buffer[: len(keep_S), :, :column] = buffer[:, :, :column].index_select(0, keep_S)


def _layer(model: nn.Module, layer: Any, of: KeyValues) -> BufferLayer:
    if type(layer) is DynamicLayer:
        return BufferLayer(of, None)
    if type(layer) is DynamicSlidingWindowLayer:
        return BufferLayer(of, layer.sliding_window)
    raise UserError(
        f"{type(model).__name__}: layers that keep a {type(layer).__name__} cannot be sampled from; "
        "expected attention to all earlier tokens or to a window"
    )
