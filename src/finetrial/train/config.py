"""Configuration of training (no torch here)."""

from typing import Literal

from pydantic import Field, model_validator

from finetrial.records import Config


class TrainConfig(Config):
    """`[training]`: how each run is trained. All counts are per run, never per cohort."""

    objective: Literal["sft", "rl"] | None = Field(
        default=None, description="default: rl where a condition or the file asks for reinforcement learning, else sft"
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="after the warm-up, down to 0"
    )
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1, description="share of the steps that warm up linearly")
    batch_size: int = Field(default=8, ge=1, description="rows (or prompts) of one optimiser step")
    epochs: float | None = Field(default=None, gt=0, description="passes over the selection; give this or max_steps")
    max_steps: int | None = Field(default=None, ge=1, description="optimiser steps; give this or epochs")
    micro_batch_tokens: int = Field(
        default=16384, ge=1, description="padded tokens of one forward pass over the cohort; memory, never science"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    token_weighting: Literal["none", "dft"] = Field(
        default="none",
        description="sft: dft weighs each token's loss with the probability the adapter gives it (no gradient through "
        "the weight); with an anchor of kind ref_student that is ASFT",
    )
    lora_plus_ratio: float = Field(default=1.0, gt=0, description="LoRA+: learning rate of B over that of A")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="clip of each run's own gradient norm; 0 switches it off"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations; memory, never science")
    save_every: int = Field(default=50, ge=0, description="steps between checkpoints; 0 writes them only on a signal")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give epochs or max_steps, not both")
        return self

    def steps(self, rows: float) -> int:
        """Optimiser steps of a run over `rows` examples (one epoch where neither length is given)."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, round((self.epochs or 1.0) * rows / self.batch_size))
