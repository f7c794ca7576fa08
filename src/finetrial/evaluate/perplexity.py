"""Perplexity of the base and of N adapters on the same items, in one sweep over the data.

The items are sorted and padded once; every adapter then sees the very same batches, whose composition depends on
neither the adapters nor their number. What rounding a batch brings is therefore common to all of them and cancels
in a contrast; where adapters are merged, one that is zero scores the base's numbers bit for bit. On demand each model's
divergence from the base is measured in the same sweep, from the base's hidden states of the same batches.

Shapes: G scored models (0 is the base, 1 + n is adapter n), K items.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetrial.errors import UserError
from finetrial.evaluate.gauge import token_gauge
from finetrial.evaluate.progress import Progress
from finetrial.model.adapters import Adapter, AdapterStack
from finetrial.model.distribution import Head, chunked_nll
from finetrial.model.loss import Batch, Stream, collate, head_of, stream, supervised_hidden
from finetrial.model.render import Rendered

ADAPTERS_PER_PASS = 8
"""Row groups of a pass over a base that adapters cannot be merged into; fixed, so N does not shape the batches."""

CPU_BATCH_TOKENS = 1024
"""Padded tokens after which a longer batch is slower on a CPU: its activations leave the cache."""


HIDDEN_BYTES = 2**28
"""The base's hidden states that are kept for the divergences of other models: items are swept in blocks of so many."""


@dataclass(frozen=True)
class Gauge:
    """Divergences from the base per model and item: nats summed over supervised tokens; row 0, the base's, is 0."""

    to_base_GK: np.ndarray
    """KL(base || model)."""
    from_base_GK: np.ndarray
    """KL(model || base)."""


@dataclass(frozen=True)
class Likelihoods:
    """Negative log-likelihoods per model and item."""

    items: tuple[str, ...]
    """Ids in the order in which they were given."""
    nll_GK: np.ndarray
    """float64 nats over an item's supervised tokens; row 0 is the base, row 1 + n adapter n."""
    tokens_K: np.ndarray
    """int64 supervised tokens."""
    bytes_K: np.ndarray
    """int64 UTF-8 bytes of those tokens' text."""
    gauge: Gauge | None = None
    """Where it was asked for."""


def perplexity(
    model: nn.Module,
    adapters: Sequence[Adapter],
    items: Mapping[str, Rendered],
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    merge: bool | None = None,
    gauge: bool = False,
) -> Likelihoods:
    """Score every item under the base and under each adapter.

    Args:
        model: a transformers causal language model, plain; it is a plain base again afterwards.
        adapters: may be empty.
        items: id -> rendered item.
        batch_tokens: most padded tokens of one batch of items (a CPU takes at most `CPU_BATCH_TOKENS`); a longer
            item is a batch of its own.
        progress: shown in units of one item under one model, with the running mean loss per token.
        merge: fold each adapter into a copy of the weights, one sweep per adapter, instead of row groups; the
            default does so for a float32 base on a CPU, where it is faster and equal up to rounding.
        gauge: measure each model's divergences from the base too; the other numbers stay as they are, bit for bit.

    Raises:
        UserError: there are no items, or one has no supervised token.
    """
    streams = {name: stream(row, f"item '{name}'") for name, row in items.items()}
    empty = [name for name, row in streams.items() if not len(row.target_M)]
    if empty or not streams:
        raise UserError(
            f"item '{empty[0]}' and {len(empty) - 1} more have no supervised token to score"
            if empty
            else "there are no items to score"
        )
    device, dtype = next((parameter.device, parameter.dtype) for parameter in model.parameters())
    if device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    if merge is None:
        merge = device.type == "cpu" and dtype == torch.float32
    model.eval()
    head = head_of(model)
    names = tuple(streams)
    places = {name: place for place, name in enumerate(names)}
    sums_QGK = np.zeros((3 if gauge else 1, 1 + len(adapters), len(names)))
    tokens_K = np.array([len(streams[name].target_M) for name in names])
    batches = [
        ([places[name] for name in chosen], collate([streams[name] for name in chosen], device))
        for chosen in _batches(streams, batch_tokens)
    ]
    seen_nll = seen_tokens = done = 0
    with AdapterStack(model, adapters) as stack, torch.inference_mode():
        for block in _blocks(batches, head.weight_VH, gauge):
            known: list[Tensor] = []
            for group in _groups(len(adapters), merge):
                with stack.merged(group[0] - 1) if merge and group[0] else contextlib.nullcontext():
                    for b, (chosen, batch) in enumerate(block):
                        hidden_MH, repeated = _hidden(model, stack, group, batch)
                        if gauge and group[0] == 0:
                            known.append(hidden_MH[: len(batch.target_M)].clone())
                        reference = known[b] if gauge and group != [0] else None  # the base alone is its own
                        sums_Qgk = _sums(hidden_MH, repeated, head, len(group), reference)
                        sums_QGK[np.ix_(range(len(sums_Qgk)), group, chosen)] = sums_Qgk
                        done += sums_Qgk[0].size
                        seen_nll += float(sums_Qgk[0].sum())
                        seen_tokens += len(group) * int(tokens_K[chosen].sum())
                        if progress is not None:
                            progress.update(done, seen_nll / seen_tokens)
    bytes_K = np.array([items[name].supervised_bytes for name in names])
    if not gauge:
        return Likelihoods(names, sums_QGK[0], tokens_K, bytes_K)
    sums_QGK[1:, 0] = 0.0  # the base lies at no distance from itself, also where rounding says otherwise
    return Likelihoods(names, sums_QGK[0], tokens_K, bytes_K, Gauge(sums_QGK[1], sums_QGK[2]))


def item_nll(nll_K: np.ndarray, tokens_K: np.ndarray) -> np.ndarray:
    """Nats per supervised token of each item (K,): the unit that is paired between models. No tokens give NaN."""
    return np.divide(nll_K, tokens_K, out=np.full(len(nll_K), np.nan), where=tokens_K > 0)


def token_perplexity(nll_K: np.ndarray, tokens_K: np.ndarray) -> float:
    """exp(sum of nats / sum of tokens): each token weighs the same, so long items count more.

    Not comparable between tokenizers; `bits_per_byte` is.

    Raises:
        ValueError: there are no tokens.
    """
    if not tokens_K.sum():
        raise ValueError("perplexity of no tokens is undefined")
    return float(np.exp(nll_K.sum() / tokens_K.sum()))


def mean_item_nll(nll_K: np.ndarray, tokens_K: np.ndarray) -> float:
    """Mean over items of nats per token: each item weighs the same. Items without tokens are refused.

    Raises:
        ValueError: an item has no tokens.
    """
    if not len(tokens_K) or not tokens_K.all():
        raise ValueError("every item needs a supervised token")
    return float(item_nll(nll_K, tokens_K).mean())


def bits_per_byte(nll_K: np.ndarray, bytes_K: np.ndarray) -> float:
    """Sum of nats / (ln 2 · sum of bytes): comparable between tokenizers on the same text.

    Raises:
        ValueError: there are no bytes.
    """
    if not bytes_K.sum():
        raise ValueError("bits per byte of no bytes are undefined")
    return float(nll_K.sum() / (np.log(2) * bytes_K.sum()))


def _groups(adapters: int, merge: bool) -> list[list[int]]:
    """The models of each pass, as rows of nll_GK."""
    size = 1 if merge else ADAPTERS_PER_PASS
    everyone = list(range(1 + adapters))
    return [everyone[start : start + size] for start in range(0, len(everyone), size)]


def _batches(streams: Mapping[str, Stream], batch_tokens: int) -> list[list[str]]:
    """Items in batches of like length, longest first, so that memory peaks at once."""
    batches: list[list[str]] = []
    for name in sorted(streams, key=lambda name: -streams[name].tokens):  # stable: equal lengths keep their order
        if batches and streams[batches[-1][0]].tokens * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(name)
        else:
            batches.append([name])
    return batches


def _blocks(
    batches: Sequence[tuple[list[int], Batch]], weight_VH: Tensor, gauge: bool
) -> Iterator[Sequence[tuple[list[int], Batch]]]:
    """Batches that all models pass before the next ones: all at once, unless the base's hidden states are kept."""
    start = size = 0
    for b, (_, batch) in enumerate(batches):
        size += len(batch.target_M) * weight_VH.shape[1] * weight_VH.element_size()
        if gauge and size > HIDDEN_BYTES and b > start:
            yield batches[start:b]
            start, size = b, len(batch.target_M) * weight_VH.shape[1] * weight_VH.element_size()
    yield batches[start:]


def _hidden(model: nn.Module, stack: AdapterStack, group: Sequence[int], batch: Batch) -> tuple[Tensor, Batch]:
    """Hidden states (M, H) at the supervised positions of a batch under each model of `group`, one after another, and
    the batch so repeated."""
    rows, copies = len(batch.counts_S), len(group)
    starts_G1 = torch.arange(copies, device=batch.ids_ST.device)[:, None] * batch.ids_ST.numel()
    repeated = Batch(
        batch.ids_ST.repeat(copies, 1),
        (batch.index_M + starts_G1).flatten(),
        batch.target_M.repeat(copies),
        batch.counts_S * copies,
    )
    with stack.rows([g - 1 if g else None for g in group for _ in range(rows)]):
        return supervised_hidden(model, repeated), repeated


def _sums(hidden_MH: Tensor, batch: Batch, head: Head, copies: int, base_mH: Tensor | None) -> np.ndarray:
    """Nats of each item under each model: (quantities, models, items); both divergences where the base is given."""
    if base_mH is None:
        found = [chunked_nll(hidden_MH, batch.target_M, head)]
    else:
        gauge = token_gauge(hidden_MH, batch.target_M, base_mH, head)
        found = [gauge.nll_M, gauge.to_base_M, gauge.from_base_M]
    starts = np.concatenate([[0], np.cumsum(batch.counts_S)[:-1]])
    sums = [np.add.reduceat(values_M.double().cpu().numpy(), starts) for values_M in found]
    return np.stack(sums).reshape(len(found), copies, -1)
