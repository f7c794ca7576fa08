"""Reward models: sequence classifiers with one output, whose raw reward is the outcome.

A reward has no scale of its own, and its zero means nothing: it is compared, never read. Who needs a scale maps it by
`judge.scale.checked_map`, which refuses a map that ever falls.

Shapes: N conversations, S rows of a pass, T tokens of a padded row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetrial.errors import UserError
from finetrial.model.config import ModelConfig
from finetrial.model.source import base_key, locate
from finetrial.records import Outcome, Task

METRIC = "reward"


@dataclass(frozen=True)
class RewardModel:
    """A frozen sequence classifier with one output, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    key: str
    """`source.base_key`: identity by content."""
    context: int | None
    """Most tokens that it reads."""


def load_reward_model(config: ModelConfig, device: str | None = None) -> RewardModel:
    """Load a reward model from a folder or the hub onto `device` (default: the GPU where there is one, else the CPU).

    Raises:
        UserError: there is none, it has another number of outputs than one, its weights lack the output layer, or its
            tokenizer has no chat template or no padding token.
    """
    key, folder = base_key(config), locate(config)
    try:
        facts = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"reward model {config.base!r} cannot be read: {str(error).splitlines()[0]}") from error
    if facts.num_labels != 1:
        raise UserError(f"reward model {config.base!r} has {facts.num_labels} outputs; expected 1")
    if not tokenizer.chat_template:
        raise UserError(f"reward model {config.base!r}: its tokenizer has no chat template")
    if tokenizer.pad_token_id is None:
        raise UserError(f"reward model {config.base!r}: its tokenizer has no padding token")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config.dtype == "auto":
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    else:
        dtype = getattr(torch, config.dtype)
    model, told = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if told["missing_keys"]:
        lacking = ", ".join(sorted(told["missing_keys"])[:3])
        raise UserError(
            f"reward model {config.base!r}: its weights lack {lacking}; it was never trained to give rewards"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    torch.nn.Module.to(model.eval(), place)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return RewardModel(model, tokenizer, key, context)


def rewards(
    reward_model: RewardModel, tasks: Sequence[Task], texts: Sequence[str], batch_tokens: int = 8192
) -> list[float | None]:
    """The raw reward of each completion as the answer to its task; None where it does not fit the model's context.

    Nothing is cut: the reward of a part of an answer is another one's. Equal conversations get equal rewards.

    Args:
        reward_model: which rates.
        tasks, texts: prompts and completions.
        batch_tokens: most padded tokens of a pass; a longer conversation is a pass of its own.
    """
    rows = [_ids(reward_model, task, text) for task, text in zip(tasks, texts, strict=True)]
    fits = {ids for ids in rows if reward_model.context is None or len(ids) <= reward_model.context}
    waiting = sorted(fits, key=lambda ids: (len(ids), ids))
    found: dict[tuple[int, ...], float] = {}
    device, pad = next(reward_model.model.parameters()).device, reward_model.model.config.pad_token_id
    while waiting:
        width = len(waiting[-1])
        chosen = [waiting.pop() for _ in range(min(len(waiting), max(1, batch_tokens // width)))]
        ids_ST = torch.full((len(chosen), width), pad, dtype=torch.int64)
        mask_ST = torch.zeros_like(ids_ST)
        for s, ids in enumerate(chosen):
            ids_ST[s, : len(ids)], mask_ST[s, : len(ids)] = torch.tensor(ids), 1
        with torch.inference_mode():
            reward_S1 = reward_model.model(input_ids=ids_ST.to(device), attention_mask=mask_ST.to(device)).logits
        found |= dict(zip(chosen, reward_S1[:, 0].float().tolist(), strict=True))
    values = [found.get(ids) for ids in rows]
    return [value if value is not None and np.isfinite(value) else None for value in values]


def reward_outcomes(
    reward_model: RewardModel,
    tasks: Sequence[Task],
    texts: Sequence[str],
    condition: str,
    seed: int | None,
    suite: str,
    suite_hash: str = "",
) -> list[Outcome]:
    """Raw rewards as outcomes under the metric `reward`, the completions of a task numbered in their order."""
    counts: dict[str, int] = {}
    outcomes = []
    for task, value in zip(tasks, rewards(reward_model, tasks, texts), strict=True):
        sample = counts[task.id] = counts.get(task.id, -1) + 1
        outcomes.append(
            Outcome(condition, seed, suite, task.id, sample, METRIC, value, group=task.group, suite_hash=suite_hash)
        )
    return outcomes


def _ids(reward_model: RewardModel, task: Task, text: str) -> tuple[int, ...]:
    """Tokens of the whole conversation as the model's own template renders it."""
    messages = [dict(message) for message in (*task.messages, {"role": "assistant", "content": text})]
    rendered = str(reward_model.tokenizer.apply_chat_template(messages, tokenize=False))
    ids = reward_model.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(ids)  # type: ignore[arg-type]
