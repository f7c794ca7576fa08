"""Conversations of several turns, in the manner of MT-Bench (Zheng et al. 2023, arXiv:2306.05685), under N adapters.

All first turns are answered under all models in one batch; then all second turns, each with the model's own first
answer in its context; and so on. Sampling noise is a function of (seed, dialogue, turn, sample) alone, so that models
are paired in it.

Shapes: G models, K dialogues, J samples of each, T tokens of a prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetrial import seeds
from finetrial.data.dialogues import Dialogue
from finetrial.errors import UserError
from finetrial.evaluate.completions import Written
from finetrial.evaluate.progress import Part
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Request, Shown, sample
from finetrial.model.adapters import Adapter, AdapterStack
from finetrial.model.loss import head_of
from finetrial.model.render import prompt_text
from finetrial.records import Message


@dataclass(frozen=True)
class Conversations:
    """What every model answered."""

    answers: tuple[tuple[tuple[tuple[Written | None, ...], ...], ...], ...]
    """(model, dialogue, sample, turn); None where the conversation had outgrown the base's context before that turn."""
    first_prompt: str
    """The first dialogue's first turn as the chat template renders it, generation prompt included."""


def converse(
    model: nn.Module,
    adapters: Sequence[Adapter],
    dialogues: Sequence[Dialogue],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    sampling: SamplingConfig,
    temperatures: Mapping[str, float] | None = None,
    system: str = "",
    samples: int = 1,
    seed: int = 0,
    progress: Shown | None = None,
    base: bool = True,
) -> Conversations:
    """Hold every dialogue with every model.

    Args:
        model: a transformers causal language model, plain; it is a plain base again afterwards.
        adapters: may be empty.
        dialogues: K of them; their numbers of turns may differ.
        tokenizer: renders and decodes.
        stop_ids: tokens that end an answer.
        sampling: how answers are drawn.
        temperatures: by category, in place of `sampling`'s where one is given (`TEMPERATURES`).
        system: message before each dialogue; empty for none.
        samples: J conversations of each dialogue.
        seed: of the sampling noise.
        progress: shown in units of answers, of all turns together.
        base: whether the base answers too; it then comes first.

    Raises:
        UserError: there are no dialogues, or a first turn does not fit the base's context.
        NotFinite: an adapter's logits are not finite.
    """
    if not dialogues:
        raise UserError("there are no dialogues to hold")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr]
    models: list[int | None] = [*([None] if base else []), *range(len(adapters))]
    settings = [_at(sampling, (temperatures or {}).get(one.category)) for one in dialogues]
    held = [(one, k, j) for one in models for k in range(len(dialogues)) for j in range(samples)]
    answers: dict[tuple[int | None, int, int], list[Written | None]] = {one: [] for one in held}
    first_prompt = prompt_text(_messages(dialogues[0], [], system), tokenizer)
    model.eval()
    head = head_of(model)
    with AdapterStack(model, adapters) as stack:
        for turn in range(max(len(one.turns) for one in dialogues)):
            asked, requests = [], []
            for one in held:
                adapter, k, j = one
                dialogue, before = dialogues[k], answers[one]
                if turn >= len(dialogue.turns):
                    continue
                prompt_T = None if None in before else _prompt(_messages(dialogue, before, system), tokenizer)
                if prompt_T is None or (turn and context is not None and len(prompt_T) >= context):
                    before.append(None)
                    continue
                noise = seeds.derive(seed, "conversation", dialogue.id, turn, j)
                asked.append(one)
                requests.append(Request(prompt_T, adapter, (noise,), settings[k]))
            part = Part(progress, sum(map(len, answers.values()))) if progress is not None else None
            found = sample(model, head, stack, tokenizer, requests, stop_ids, progress=part)
            for one, (answer,) in zip(asked, found, strict=True):
                answers[one].append(Written(answer.text, len(answer.ids_T), answer.finished))
    return Conversations(
        tuple(
            tuple(tuple(tuple(answers[one, k, j]) for j in range(samples)) for k in range(len(dialogues)))
            for one in models
        ),
        first_prompt,
    )


def _messages(dialogue: Dialogue, before: Sequence[Written | None], system: str) -> list[Message]:
    """The conversation up to the turn that is answered next."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for said, answer in zip(dialogue.turns, before, strict=False):
        assert answer is not None
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer.text}]
    return [*messages, {"role": "user", "content": dialogue.turns[len(before)]}]


def _prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    return np.array(tokenizer.encode(prompt_text(messages, tokenizer), add_special_tokens=False), np.int64)


def _at(sampling: SamplingConfig, temperature: float | None) -> SamplingConfig:
    return sampling if temperature is None else sampling.model_copy(update={"temperature": temperature})
