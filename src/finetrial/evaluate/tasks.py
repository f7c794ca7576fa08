"""Graded completions of tasks under adapters of a stack that exists already, such as that of a training cohort.

Shapes: K items, T tokens of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetrial.evaluate.completions import write_in_stack
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Shown
from finetrial.grade.grade import Grader
from finetrial.judge.grader import JudgeGrader
from finetrial.model.adapters import AdapterStack
from finetrial.model.distribution import Head
from finetrial.model.render import prompt_text
from finetrial.records import Grade, Task


@dataclass(frozen=True)
class Answer:
    """One completion of an item."""

    text: str
    grade: Grade | None
    """None where nothing was asked of a grader."""
    tokens: int
    """Sampled tokens, the one that ended it included."""
    finished: bool
    """It ended itself rather than at the limit."""


def examine(
    model: nn.Module,
    head: Head,
    stack: AdapterStack,
    models: Sequence[int | None],
    tasks: Sequence[Task],
    prompts: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    grader: Grader | JudgeGrader | None,
    sampling: SamplingConfig,
    samples: int = 1,
    seed: int = 0,
    progress: Shown | None = None,
) -> list[list[list[Answer]]]:
    """Complete every task under every model and grade the completions: answers of (model, item, sample).

    Args:
        model: with `stack` injected.
        head: its output head.
        stack: may be trainable; adapters are examined as they are now.
        models: adapters of the stack, None for the base.
        tasks: K items.
        prompts: int64 tokens (T,) of each, generation prompt included.
        tokenizer: decodes.
        stop_ids: tokens that end a completion.
        grader: of these tasks; None where grades are not wanted.
        sampling: how completions are drawn.
        samples: of each item.
        seed: of the sampling noise.
        progress: shown in units of completions.

    Raises:
        UserError: there are no items, or a prompt does not fit the base's context.
        NotFinite: an adapter's logits are not finite.
    """
    written = write_in_stack(
        model, head, stack, models, tasks, prompts, tokenizer, stop_ids, sampling, samples, seed, progress
    )
    asked = [task for _ in models for task in tasks for _ in range(samples)]
    texts = [one.text for items in written for mine in items for one in mine]
    grades = iter([None] * len(texts) if grader is None else grader.grade(asked, texts))
    return [
        [[Answer(one.text, next(grades), one.tokens, one.finished) for one in mine] for mine in items]
        for items in written
    ]


def prompt_ids(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """int64 tokens (T,) of each task's prompt as the chat template renders it, generation prompt included."""
    texts = [prompt_text(task.messages, tokenizer) for task in tasks]
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array(ids, dtype=np.int64) for ids in encoded]
