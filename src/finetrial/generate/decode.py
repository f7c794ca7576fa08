"""Decode one batch: read each prompt once, then one token per row and step until every row has ended.

Shapes: U prompts of the batch, S rows in the batch (A are still in it), P prompts of a pass, T tokens of a padded
prompt, J steps since the host last looked, W most tokens of a row, H hidden features, V vocabulary.
"""

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetrial import seeds
from finetrial.generate.cache import KeyValues
from finetrial.generate.config import SamplingConfig
from finetrial.generate.draw import Drawn, draw, rules
from finetrial.generate.stops import StopTexts
from finetrial.model.adapters import AdapterStack
from finetrial.model.loss import Head

PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Most padded prompt tokens of one pass: what stays in the cache of a CPU, and what fills a GPU."""

LOOK_STEPS = {"cpu": 1, "cuda": 8}
"""Steps after which the host looks which rows have ended; each look waits for the device."""

IDLE_SHARE = 1 / 8
"""Share of ended rows at which the others are moved together."""


class NotFinite(FloatingPointError):
    """Logits that are not finite, and the adapter whose they are (None for the base)."""

    def __init__(self, adapter: int | None):
        super().__init__(f"logits of {'the base' if adapter is None else f'adapter {adapter}'} are not finite")
        self.adapter = adapter


@dataclass(frozen=True)
class Prompt:
    """One prompt under one adapter."""

    ids_T: np.ndarray
    adapter: int | None


@dataclass(frozen=True)
class Row:
    """One wanted completion."""

    prompt: int
    """Index of its prompt in the batch."""
    key: int
    """Names its stream of noise."""
    sampling: SamplingConfig
    most: int
    """Tokens after which it is cut."""


@dataclass(frozen=True)
class Sampled:
    """The tokens of one completion and what was known about each; see `sample.Completion`."""

    ids_T: np.ndarray
    logp_T: np.ndarray
    raw_logp_T: np.ndarray
    entropy_T: np.ndarray
    stopped: bool
    """A stop token or a stop text ended it."""
    cut: int | None
    """Where in its text the stop text begins that ended it."""


@torch.inference_mode()
def decode(
    model: nn.Module,
    head: Head,
    stack: AdapterStack,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    stop_ids: Sequence[int],
    texts: StopTexts,
    remove: bool = True,
    observe: Callable[[int, float], None] | None = None,
) -> list[Sampled]:
    """Complete every row of one batch.

    Args:
        model: in evaluation mode, with `stack` injected.
        head: its output head.
        stack: the adapters.
        prompts: what is read, each once.
        rows: what is sampled, rows of one adapter side by side.
        stop_ids: tokens that end a completion.
        texts: finds stop texts.
        remove: whether ended rows leave the batch.
        observe: told the rows of each step and its seconds; the host then waits for every step.

    Raises:
        NotFinite: logits of a row are not finite.
    """
    device = head.weight_VH.device
    look = 1 if observe is not None else LOOK_STEPS.get(device.type, 1)
    width, longest = max(len(prompt.ids_T) for prompt in prompts), max(row.most for row in rows)
    lengths_S = np.array([len(prompts[row.prompt].ids_T) for row in rows])
    memory = KeyValues(model, len(rows), width, longest)
    with_positions = _takes_positions(model)
    logits_AV = _read(model, head, stack, prompts, rows, memory, with_positions)
    memory.begin()

    result = _Result(rows, longest, stop_ids, texts)
    alive_A = np.arange(len(rows))
    how = rules([row.sampling for row in rows], device)
    uniform_AW = _noise(rows, longest).to(device)
    position_A1 = torch.from_numpy(lengths_S)[:, None].to(device)
    mask_AC = _left_mask(width - lengths_S, width + longest, device)
    unseen: list[Drawn] = []
    began = time.perf_counter()
    with contextlib.ExitStack() as groups:
        groups.enter_context(stack.rows([prompts[row.prompt].adapter for row in rows]))
        for step in range(longest):
            drawn = draw(logits_AV, uniform_AW[:, step], how)
            unseen.append(drawn)
            token_A = drawn.token_S
            if len(unseen) == look or step + 1 == longest:
                result.take(alive_A, unseen)
                unseen.clear()
                going_A = ~result.ended_S[alive_A]
                if not going_A.any():
                    break
                if remove and 1 - going_A.mean() >= IDLE_SHARE:
                    alive_A = alive_A[going_A]
                    keep_A = torch.from_numpy(np.flatnonzero(going_A)).to(device)
                    memory.select(keep_A)
                    token_A, uniform_AW, position_A1 = token_A[keep_A], uniform_AW[keep_A], position_A1[keep_A]
                    mask_AC = None if mask_AC is None else mask_AC[keep_A]
                    how = rules([rows[s].sampling for s in alive_A], device)
                    groups.close()
                    groups.enter_context(stack.rows([prompts[rows[s].prompt].adapter for s in alive_A]))
            mask = None if mask_AC is None else mask_AC[:, : memory.column + 1]
            positions = position_A1 + step if with_positions else None
            hidden_A1H = _hidden(model, token_A[:, None], mask, positions, memory)
            memory.advance()
            logits_AV = head.logits(hidden_A1H[:, -1])
            if observe is not None:
                now = time.perf_counter()
                observe(len(alive_A), now - began)
                began = now
    return result.sampled(prompts)


def _read(
    model: nn.Module,
    head: Head,
    stack: AdapterStack,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    memory: KeyValues,
    with_positions: bool,
) -> Tensor:
    """Read every prompt once, prompts of like length together; the logits after each row's prompt (S, V)."""
    device = head.weight_VH.device
    rows_of: list[list[int]] = [[] for _ in prompts]
    for s, row in enumerate(rows):
        rows_of[row.prompt].append(s)
    logits_UV: Tensor | None = None
    for chosen in _passes(prompts, PREFILL_TOKENS.get(device.type, PREFILL_TOKENS["cpu"])):
        lengths_P = np.array([len(prompts[u].ids_T) for u in chosen])
        width = int(lengths_P.max())
        ids_PT = np.zeros((len(chosen), width), np.int64)
        for p, u in enumerate(chosen):
            ids_PT[p, width - lengths_P[p] :] = prompts[u].ids_T
        mask_PT = _left_mask(width - lengths_P, width, device)
        positions_PT = np.maximum(np.arange(width) - (width - lengths_P)[:, None], 0)
        positions = torch.from_numpy(positions_PT).to(device) if with_positions else None
        written = [(s, p) for p, u in enumerate(chosen) for s in rows_of[u]]
        memory.read([s for s, _ in written], [p for _, p in written], device)
        with stack.rows([prompts[u].adapter for u in chosen]):
            hidden_PTH = _hidden(model, torch.from_numpy(ids_PT).to(device), mask_PT, positions, memory)
        logits_PV = head.logits(hidden_PTH[:, -1])
        if logits_UV is None:
            logits_UV = logits_PV.new_empty(len(prompts), logits_PV.shape[1])
        logits_UV[torch.tensor(chosen, device=device)] = logits_PV
    assert logits_UV is not None
    return logits_UV[torch.tensor([row.prompt for row in rows], device=device)]


def _passes(prompts: Sequence[Prompt], tokens: int) -> Iterator[list[int]]:
    """Prompts read together: longest first, and within a pass those of one adapter side by side."""
    chosen: list[int] = []
    for u in sorted(range(len(prompts)), key=lambda u: -len(prompts[u].ids_T)):
        if chosen and len(prompts[chosen[0]].ids_T) * (len(chosen) + 1) > tokens:
            yield sorted(chosen, key=lambda u: _adapter_order(prompts[u].adapter))
            chosen = []
        chosen.append(u)
    yield sorted(chosen, key=lambda u: _adapter_order(prompts[u].adapter))


def _adapter_order(adapter: int | None) -> int:
    return -1 if adapter is None else adapter


def _hidden(
    model: nn.Module, ids_PT: Tensor, mask: Tensor | None, positions: Tensor | None, memory: KeyValues
) -> Tensor:
    """Last hidden states of a pass that reads from and writes to the cache."""
    named = {} if positions is None else {"position_ids": positions}
    return model.base_model(  # type: ignore[operator]
        input_ids=ids_PT, attention_mask=mask, past_key_values=memory.cache, use_cache=True, **named
    ).last_hidden_state


def _takes_positions(model: nn.Module) -> bool:
    """Whether the model takes the tokens' positions; one that does not finds them by its attention mask."""
    return "position_ids" in inspect.signature(model.base_model.forward).parameters  # type: ignore[union-attr]


def _left_mask(padding_S: np.ndarray, columns: int, device: torch.device) -> Tensor | None:
    """1 where a column may be attended to, 0 in the padding; None where there is no padding."""
    if not padding_S.any():
        return None
    return torch.from_numpy((np.arange(columns) >= padding_S[:, None]).astype(np.int64)).to(device)


def _noise(rows: Sequence[Row], longest: int) -> Tensor:
    """Uniform numbers by row and position (S, W): the position-th of the stream that the row's key names."""
    noise_SW = np.zeros((len(rows), longest))
    for s, row in enumerate(rows):
        if row.sampling.temperature:
            noise_SW[s, : row.most] = seeds.stream(row.key).random(row.most)
    return torch.from_numpy(noise_SW)


class _Result:
    """What the host knows of a batch: tokens so far, and which rows have ended where."""

    def __init__(self, rows: Sequence[Row], longest: int, stop_ids: Sequence[int], texts: StopTexts):
        self.rows, self.texts = rows, texts
        self.stop_ids = np.array(stop_ids, np.int64)
        self.ids_SW = np.zeros((len(rows), longest), np.int64)
        self.facts_SW3 = np.zeros((len(rows), longest, 3))
        self.taken = 0
        self.most_S = np.array([row.most for row in rows])
        self.length_S = np.zeros(len(rows), np.int64)
        self.ended_S = np.zeros(len(rows), bool)
        self.stopped_S = np.zeros(len(rows), bool)
        self.cut: dict[int, int] = {}
        self.with_texts_S = np.array([bool(row.sampling.stop) for row in rows])

    def take(self, alive_A: np.ndarray, drawn: Sequence[Drawn]) -> None:
        """Read the tokens of the last J steps of the rows in the batch, and mark those that have ended."""
        ids_AJ = torch.stack([one.token_S for one in drawn], dim=1).cpu().numpy()
        facts = [torch.stack([one.logp_S, one.raw_logp_S, one.entropy_S], dim=1) for one in drawn]
        start, self.taken = self.taken, self.taken + len(drawn)
        self.ids_SW[alive_A, start : self.taken] = ids_AJ
        self.facts_SW3[alive_A, start : self.taken] = torch.stack(facts, dim=1).cpu().numpy()
        hit_AJ = (ids_AJ[:, :, None] == self.stop_ids).any(axis=2)
        at_A = np.where(hit_AJ.any(axis=1), start + hit_AJ.argmax(axis=1) + 1, self.most_S[alive_A] + 1)
        going_A = ~self.ended_S[alive_A]
        for a in np.flatnonzero(going_A & self.with_texts_S[alive_A]):
            self._look_for_text(int(alive_A[a]), start, int(at_A[a]))
        going_A &= ~self.ended_S[alive_A]
        stopped_A = going_A & (at_A <= self.most_S[alive_A])
        over_A = going_A & (stopped_A | (self.taken >= self.most_S[alive_A]))
        self.length_S[alive_A[over_A]] = np.minimum(at_A, self.most_S[alive_A])[over_A]
        self.stopped_S[alive_A[stopped_A]] = True
        self.ended_S[alive_A[over_A]] = True

    def _look_for_text(self, s: int, start: int, end: int) -> None:
        """Whether a token before the `end`-th of row `s` completes one of its stop texts."""
        ids = self.ids_SW[s, : self.taken].tolist()
        for length in range(start + 1, min(self.taken, end - 1, int(self.most_S[s])) + 1):
            cut = self.texts.cut(ids[:length], self.rows[s].sampling.stop)
            if cut is not None:
                self.cut[s], self.length_S[s] = cut, length
                self.ended_S[s] = self.stopped_S[s] = True
                return

    def sampled(self, prompts: Sequence[Prompt]) -> list[Sampled]:
        """The completions.

        Raises:
            NotFinite: logits of a row were not finite.
        """
        found = []
        for s, (row, length) in enumerate(zip(self.rows, self.length_S, strict=True)):
            facts_T3 = self.facts_SW3[s, :length]
            if not np.isfinite(facts_T3[:, 2]).all():
                raise NotFinite(prompts[row.prompt].adapter)
            found.append(
                Sampled(
                    self.ids_SW[s, :length].copy(),
                    *facts_T3.T.copy(),
                    stopped=bool(self.stopped_S[s]),
                    cut=self.cut.get(s),
                )
            )
        return found
