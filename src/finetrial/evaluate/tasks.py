"""Graded completions of tasks under the base and under N adapters, in one sweep.

Sampling noise is a function of (seed, item, sample) alone: every model draws the same numbers for the same sample of
an item, so that conditions and seeds are paired in it.

Shapes: G examined models, K items, J samples of each, T tokens of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetrial import seeds
from finetrial.errors import UserError
from finetrial.evaluate.progress import Progress
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Request, sample
from finetrial.grade.grade import Grader
from finetrial.model.adapters import Adapter, AdapterStack
from finetrial.model.distribution import Head
from finetrial.model.loss import head_of
from finetrial.model.render import prompt_text
from finetrial.records import Grade, Task


@dataclass(frozen=True)
class Answer:
    """One completion of an item."""

    text: str
    grade: Grade
    tokens: int
    """Sampled tokens, the one that ended it included."""
    finished: bool
    """It ended itself rather than at the limit."""


def evaluate_tasks(
    model: nn.Module,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    prompts: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    grader: Grader,
    sampling: SamplingConfig,
    samples: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    base: bool = True,
) -> list[list[list[Answer]]]:
    """Complete every task under every model and grade the completions: answers of (model, item, sample).

    Args:
        model: a transformers causal language model, plain; it is a plain base again afterwards.
        adapters: may be empty.
        tasks: K items.
        prompts: int64 tokens (T,) of each, generation prompt included.
        tokenizer: decodes.
        stop_ids: tokens that end a completion.
        grader: of these tasks.
        sampling: how completions are drawn.
        samples: J per item.
        seed: of the sampling noise.
        progress: shown in units of completions.
        base: whether the base is examined too; it then comes first.

    Raises:
        UserError: there are no items, or a prompt does not fit the base's context.
        NotFinite: an adapter's logits are not finite.
    """
    model.eval()
    head = head_of(model)
    models: list[int | None] = [*([None] if base else []), *range(len(adapters))]
    with AdapterStack(model, adapters) as stack:
        return examine(
            model, head, stack, models, tasks, prompts, tokenizer, stop_ids, grader, sampling, samples, seed, progress
        )


def examine(
    model: nn.Module,
    head: Head,
    stack: AdapterStack,
    models: Sequence[int | None],
    tasks: Sequence[Task],
    prompts: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    grader: Grader,
    sampling: SamplingConfig,
    samples: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[list[list[Answer]]]:
    """As `evaluate_tasks`, for adapters of a stack that exists already, as they are in it now.

    Args:
        model: with `stack` injected.
        head: its output head.
        stack: may be trainable.
        models: adapters of the stack, None for the base.
        tasks: K items.
        prompts: int64 tokens (T,) of each, generation prompt included.
        tokenizer: decodes.
        stop_ids: tokens that end a completion.
        grader: of these tasks.
        sampling: how completions are drawn.
        samples: J per item.
        seed: of the sampling noise.
        progress: shown in units of completions.

    Raises:
        UserError: there are no items, or a prompt does not fit the base's context.
        NotFinite: an adapter's logits are not finite.
    """
    if not tasks:
        raise UserError("there are no tasks to examine on")
    noise = [tuple(seeds.derive(seed, "evaluation", task.id, j) for j in range(samples)) for task in tasks]
    requests = [
        Request(prompt_T, adapter, keys, sampling)
        for adapter in models
        for prompt_T, keys in zip(prompts, noise, strict=True)
    ]
    if progress is not None:
        progress.update(0)  # batches are long: the first one must not pass for a single unit
    completions = sample(model, head, stack, tokenizer, requests, stop_ids, progress=progress)
    asked = [task for _ in models for task in tasks for _ in range(samples)]
    grades = iter(grader.grade(asked, [one.text for mine in completions for one in mine]))
    answers = [[Answer(one.text, next(grades), len(one.ids_T), one.finished) for one in mine] for mine in completions]
    return [answers[start : start + len(tasks)] for start in range(0, len(answers), len(tasks))]


def prompt_ids(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """int64 tokens (T,) of each task's prompt as the chat template renders it, generation prompt included."""
    texts = [prompt_text(task.messages, tokenizer) for task in tasks]
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array(ids, dtype=np.int64) for ids in encoded]
