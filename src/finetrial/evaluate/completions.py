"""What the base and N adapters write when they are given tasks, in one sweep.

Sampling noise is a function of (seed, item, sample) alone: every model draws the same numbers for the same sample of
an item, so that conditions and seeds are paired in it, and the items beside it change nothing.

Shapes: G examined models, K items, J samples of each, T tokens of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetrial import seeds
from finetrial.errors import UserError
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Request, Shown, sample
from finetrial.model.adapters import Adapter, AdapterStack
from finetrial.model.distribution import Head
from finetrial.model.loss import head_of
from finetrial.records import Task


@dataclass(frozen=True)
class Written:
    """One completion of an item."""

    text: str
    tokens: int
    """Sampled tokens, the one that ended it included."""
    finished: bool
    """It ended itself rather than at the limit."""


def write(
    model: nn.Module,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    prompts: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    sampling: SamplingConfig,
    samples: int = 1,
    seed: int = 0,
    progress: Shown | None = None,
    base: bool = True,
) -> list[list[list[Written]]]:
    """Complete every task under every model: completions of (model, item, sample).

    Args:
        model: a transformers causal language model, plain; it is a plain base again afterwards.
        adapters: may be empty.
        tasks: K items.
        prompts: int64 tokens (T,) of each, generation prompt included.
        tokenizer: decodes.
        stop_ids: tokens that end a completion.
        sampling: how completions are drawn.
        samples: J per item.
        seed: of the sampling noise.
        progress: shown in units of completions.
        base: whether the base writes too; it then comes first.

    Raises:
        UserError: there are no items, or a prompt does not fit the base's context.
        NotFinite: an adapter's logits are not finite.
    """
    model.eval()
    head = head_of(model)
    models: list[int | None] = [*([None] if base else []), *range(len(adapters))]
    with AdapterStack(model, adapters) as stack:
        return write_in_stack(
            model, head, stack, models, tasks, prompts, tokenizer, stop_ids, sampling, samples, seed, progress
        )


def write_in_stack(
    model: nn.Module,
    head: Head,
    stack: AdapterStack,
    models: Sequence[int | None],
    tasks: Sequence[Task],
    prompts: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    sampling: SamplingConfig,
    samples: int = 1,
    seed: int = 0,
    progress: Shown | None = None,
) -> list[list[list[Written]]]:
    """As `write`, for adapters of a stack that exists already, as they are in it now; None among `models` is the base.

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
    written = [[Written(one.text, len(one.ids_T), one.finished) for one in mine] for mine in completions]
    return [written[start : start + len(tasks)] for start in range(0, len(written), len(tasks))]
