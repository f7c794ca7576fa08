"""Reward models beside the graders: they need torch, which graders do without."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from finetrial.campaign.launch import Launch
from finetrial.campaign.practice import Exam
from finetrial.errors import UserError
from finetrial.evaluate.reward_config import RewardModelConfig
from finetrial.evaluate.reward_model import RewardModel, load_reward_model, rewards
from finetrial.identity import digest, stage_key
from finetrial.judge.selftest import chosen, gold_answer
from finetrial.model.config import ModelConfig
from finetrial.records import Task

TOO_LONG = "the conversation does not fit the reward model's context, or its reward is not finite"

PROVEN_ON = 32
"""Most items that a reward model is tried on."""


def rewarded(
    launch: Launch, config: RewardModelConfig, tasks: Sequence[Task], texts: Sequence[str]
) -> list[tuple[float | None, str]]:
    """The raw reward of each text, or why there is none."""
    model = _loaded(config.model, config.revision, config.dtype, str(launch.base.device))
    found = rewards(model, tasks, texts, launch.spec.evaluation.batch_tokens)
    return [(value, TOO_LONG if value is None else "") for value in found]


def prove(launch: Launch, name: str, exam: Exam) -> str:
    """Check that a suite's reward model tells right answers from none, and say what was found.

    Once for all launches: what was found is stored. Items without a known answer are not among those it is tried on.

    Raises:
        UserError: too few gold answers are rewarded above an empty one; or there is no such model.
    """
    config, store = exam.grading.config, launch.folder.store
    assert isinstance(config, RewardModelConfig)
    tasks = chosen([task for task in exam.proven_on if task.gold or task.reference], PROVEN_ON)
    inputs = {
        "grader": config.key,
        "tasks": digest([task.content_hash for task in tasks]),
        "numerics": launch.prepared.inputs.numerics,
    }
    key = stage_key("prove", 1, {}, inputs)
    if not store.has("prove", key):
        golds = [value for value, _ in rewarded(launch, config, tasks, [gold_answer(task) for task in tasks])]
        empties = [value for value, _ in rewarded(launch, config, tasks, [""] * len(tasks))]
        pairs = [(a, b) for a, b in zip(golds, empties, strict=True) if a is not None and b is not None]
        with store.put("prove", key, {"tasks": len(tasks), "above": sum(a > b for a, b in pairs)}):
            pass
    found = store.record("prove", key)
    told = f"{found['above']} of {found['tasks']} gold answers are rewarded above an empty one"
    if found["above"] < config.gold_above_empty * found["tasks"]:
        raise UserError(
            f"suite {name!r}: reward model {config.model!r}: {told}, at least {config.gold_above_empty:.0%} wanted; "
            "its rewards would not count. Use another, or set gold_above_empty = 0, which uses it unproven"
        )
    return told


@lru_cache(maxsize=1)
def _loaded(
    model: str, revision: str | None, dtype: Literal["auto", "float32", "bfloat16"], device: str
) -> RewardModel:
    """One at a time, so that suites and snapshots that follow each other share it."""
    return load_reward_model(ModelConfig(base=model, revision=revision, dtype=dtype), device)
