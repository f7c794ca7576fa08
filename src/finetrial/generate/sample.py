"""Sample completions of many prompts under many adapters and the base, in batches of mixed rows.

A completion is a function of the weights, the prompt, its key and its configuration alone: neighbours, order and the
size of the batch do not enter, up to the rounding of logits. The same key draws the same noise under every adapter.

Shapes: T tokens of a prompt or of a completion.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetrial.errors import UserError
from finetrial.generate.config import SamplingConfig
from finetrial.generate.decode import Prompt, Row, Sampled, decode
from finetrial.generate.stops import StopTexts
from finetrial.model.adapters import AdapterStack
from finetrial.model.loss import Head


@dataclass(frozen=True)
class Request:
    """One prompt under one adapter, and how many completions of it are wanted."""

    prompt_T: np.ndarray
    """int64 ids, generation prompt included."""
    adapter: int | None
    """Adapter of the stack; None is the base."""
    noise: tuple[int, ...]
    """One key per wanted sample (a `seeds.derive(...)` number); their count is the number of samples."""
    sampling: SamplingConfig


@dataclass(frozen=True)
class Completion:
    """One sampled completion."""

    ids_T: np.ndarray
    """int64 sampled tokens; the stop token, where one ended it, is the last."""
    logp_T: np.ndarray
    """float64 log-probability under the distribution sampled from (after temperature and filters). At temperature 0
    that is a point mass, so it is 0."""
    raw_logp_T: np.ndarray
    """float64 log-probability under the plain softmax (temperature 1, no filters)."""
    entropy_T: np.ndarray
    """float64 nats: entropy of the plain softmax at each position."""
    text: str
    """Decoded without special tokens, without the stop token and cut before the stop text."""
    finished: bool
    """It ended itself (stop token or stop text) rather than being cut."""


class Shown(Protocol):
    """What shows progress (`evaluate.progress.Progress`)."""

    def update(self, done: int) -> None:
        """`done` completions are finished."""
        ...


@dataclass(frozen=True)
class _Wanted:
    """Completions of one prompt under one adapter that share one reading of it."""

    prompt: Prompt
    place: int
    """Of the prompt, in the order in which prompts were first seen."""
    rows: tuple[tuple[int, int], ...]
    """(request, sample)."""


def sample(
    model: nn.Module,
    head: Head,
    stack: AdapterStack,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    stop_ids: Sequence[int],
    rows: int = 256,
    observe: Callable[[int, float], None] | None = None,
    progress: Shown | None = None,
) -> list[list[Completion]]:
    """Complete every request; one list of completions per request, in the order of its keys.

    Each prompt is read once per adapter and batch, and its keys and values serve all its samples. Rows that have
    ended leave the batch. A completion is cut at its `max_tokens`, or where the context of the base ends.

    Args:
        model: a causal language model of transformers, with `stack` injected.
        head: its output head, `head_of` the plain base.
        stack: active; may be trainable, no gradients are kept.
        tokenizer: decodes.
        requests: may be empty.
        stop_ids: tokens that end a completion.
        rows: most rows of one batch.
        observe: told the rows of every decode step and its seconds.
        progress: shown in completions.

    Raises:
        UserError: a prompt has no tokens or fills the base's context, a stop text is empty, or the base's layers
            keep a state that rows cannot share.
        NotFinite: an adapter's logits are not finite.
    """
    return sample_batches(model, head, stack, tokenizer, requests, stop_ids, rows, observe, progress)


def sample_batches(
    model: nn.Module,
    head: Head,
    stack: AdapterStack,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    stop_ids: Sequence[int],
    rows: int,
    observe: Callable[[int, float], None] | None = None,
    progress: Shown | None = None,
    share: bool = True,
    remove: bool = True,
) -> list[list[Completion]]:
    """`sample` with switches for measurements: whether samples share their prompt, and ended rows leave."""
    if rows < 1:
        raise ValueError(f"a batch of {rows} rows holds nothing")
    most = _most_tokens(model, stack, requests)
    texts = StopTexts(tokenizer)
    completions: list[list[Completion | None]] = [[None] * len(request.noise) for request in requests]
    done = 0
    training = model.training
    model.eval()
    try:
        for wave in _waves(_wanted(requests, share), rows):
            places = [place for wanted in wave for place in wanted.rows]
            wave_rows = [
                Row(u, requests[i].noise[j], requests[i].sampling, most[i])
                for u, wanted in enumerate(wave)
                for i, j in wanted.rows
            ]
            prompts = [wanted.prompt for wanted in wave]
            with _folded(stack, prompts):
                found = decode(model, head, stack, prompts, wave_rows, stop_ids, texts, remove, observe)
            for (i, j), sampled in zip(places, found, strict=True):
                completions[i][j] = _completion(sampled, texts)
            done += len(places)
            if progress is not None:
                progress.update(done)
    finally:
        model.train(training)
    return [[completion for completion in found if completion is not None] for found in completions]


def _folded(stack: AdapterStack, prompts: Sequence[Prompt]) -> contextlib.AbstractContextManager[None]:
    """Fold the adapter into a copy of the weights where it serves all rows and the base is float32 on a CPU: there
    thin products of single tokens cost 12 to 17 % of the time. Elsewhere rows go through their own products."""
    adapters = {prompt.adapter for prompt in prompts}
    (first, *others) = adapters
    if first is None or others or stack.flat_NP.device.type != "cpu" or stack.dtype != torch.float32:
        return contextlib.nullcontext()
    return stack.merged(first)


def _most_tokens(model: nn.Module, stack: AdapterStack, requests: Sequence[Request]) -> list[int]:
    """Tokens after which each request's completions are cut."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr]
    most = []
    for i, request in enumerate(requests):
        tokens = len(request.prompt_T)
        if not tokens:
            raise UserError(f"request {i}: the prompt has no tokens; begin it with a BOS token")
        if context is not None and tokens >= context:
            raise UserError(f"request {i}: its prompt of {tokens} tokens fills the base's context of {context}")
        if request.adapter is not None and not 0 <= request.adapter < len(stack.templates):
            raise ValueError(f"request {i}: there is no adapter {request.adapter} in a stack of {len(stack.templates)}")
        if not all(request.sampling.stop):
            raise UserError("sampling.stop: a stop text is empty; expected at least one character")
        wanted = request.sampling.max_tokens
        most.append(wanted if context is None else min(wanted, context - tokens))
    return most


def _wanted(requests: Sequence[Request], share: bool) -> list[_Wanted]:
    """What is to be read and how often it is completed, longest prompts first, adapters of a prompt side by side."""
    places: dict[bytes, int] = {}
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for i, request in enumerate(requests):
        place = places.setdefault(np.asarray(request.prompt_T, np.int64).tobytes(), len(places))
        adapter = -1 if request.adapter is None else request.adapter
        for j in range(len(request.noise)):
            group = (place, adapter) if share else (place, adapter, i, j)
            groups.setdefault(group, []).append((i, j))
    wanted = [
        _Wanted(
            Prompt(np.asarray(requests[rows[0][0]].prompt_T, np.int64), requests[rows[0][0]].adapter),
            place,
            tuple(rows),
        )
        for (place, *_), rows in groups.items()
    ]
    return sorted(wanted, key=lambda one: (-len(one.prompt.ids_T), one.place))


def _waves(wanted: Sequence[_Wanted], rows: int) -> Iterator[list[_Wanted]]:
    """Batches of at most `rows` rows, rows of one adapter side by side; a prompt is split only if it must be."""
    wave: list[_Wanted] = []
    room = rows
    for one in wanted:
        pieces = [one.rows[start : start + rows] for start in range(0, len(one.rows), rows)]
        for piece in pieces:
            if len(piece) > room:
                yield sorted(wave, key=_by_adapter)
                wave, room = [], rows
            wave.append(_Wanted(one.prompt, one.place, piece))
            room -= len(piece)
    if wave:
        yield sorted(wave, key=_by_adapter)


def _by_adapter(wanted: _Wanted) -> int:
    return -1 if wanted.prompt.adapter is None else wanted.prompt.adapter


def _completion(sampled: Sampled, texts: StopTexts) -> Completion:
    ids = sampled.ids_T.tolist()
    if sampled.stopped and sampled.cut is None:
        ids.pop()
    return Completion(
        ids_T=sampled.ids_T,
        logp_T=sampled.logp_T,
        raw_logp_T=sampled.raw_logp_T,
        entropy_T=sampled.entropy_T,
        text=texts.text(ids)[: sampled.cut],
        finished=sampled.stopped,
    )
