"""Configuration of reward models as graders (no torch here)."""

from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from finetrial.errors import UserError
from finetrial.identity import digest
from finetrial.judge.scale import checked_map
from finetrial.model.config import ModelConfig
from finetrial.model.source import base_key
from finetrial.records import Config

VERSION = 1
"""Raised whenever the same model rewards the same conversation otherwise than before."""


class RewardModelConfig(Config):
    """`grader = { kind = "reward_model", ... }` of a suite: a sequence classifier with one output rates completions."""

    kind: Literal["reward_model"]
    model: str = Field(description="folder, or name of a model of the hub")
    revision: str | None = Field(default=None, description="commit of a hub model; pins what the name means")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of its numbers; auto is bfloat16 on a GPU and float32 on a CPU"
    )
    map: tuple[tuple[float, float], ...] | None = Field(
        default=None,
        description="[[reward, points], ...], rewards rising: a scale beside the raw reward, on straight lines between "
        "these and flat beyond them; it may never fall",
    )
    gold_above_empty: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="least share of items whose gold answer must be rewarded above an empty one; 0 uses it unproven",
    )

    @model_validator(mode="after")
    def _rises(self) -> "RewardModelConfig":
        if self.map is None:
            return self
        rewards = [reward for reward, _ in self.map]
        if len(rewards) < 2 or any(low >= high for low, high in pairwise(rewards)):
            raise ValueError(f"map: expected two or more [reward, points] with rising rewards; got rewards {rewards}")
        try:
            checked_map(self.points, rewards[0], rewards[-1])
        except UserError as error:
            raise ValueError(f"map: {error}") from error
        return self

    @property
    def source(self) -> ModelConfig:
        """Where its files are."""
        return ModelConfig(base=self.model, revision=self.revision, dtype=self.dtype)

    @property
    def key(self) -> str:
        """Identity of the raw rewards that it gives: the content of the model's files, and its numbers.

        Raises:
            UserError: there is no such model.
        """
        try:
            files = base_key(self.source)
        except UserError as error:
            raise type(error)(f"reward model {self.model!r}: {error}") from error
        return digest({"version": VERSION, "kind": self.kind, "model": files, "dtype": self.dtype})

    def points(self, reward: float) -> float:
        """The map: raw reward -> points."""
        assert self.map is not None
        reward_K, points_K = np.array(self.map).T
        return float(np.interp(reward, reward_K, points_K))
