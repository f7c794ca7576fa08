"""Configuration of the base model and of the adapters on it (no torch here)."""

from typing import Literal

from pydantic import Field, model_validator

from finetrial.records import Config


class ModelConfig(Config):
    """`[model]`: the frozen base and the shape of the adapters."""

    base: str = Field(default="builtin", description="`builtin`, a folder, or a model name of the hub")
    revision: str | None = Field(default=None, description="commit of a hub model; pins what the name means")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="numbers of the base; auto is bfloat16 on a GPU and float32 on a CPU"
    )
    max_length: int = Field(
        default=1024, ge=8, description="tokens of a rendered row; longer rows are truncated and counted"
    )
    lora_rank: int = Field(default=8, ge=1, description="rank of each adapter matrix pair")
    lora_alpha: float | None = Field(default=None, gt=0, description="scale numerator; default twice the rank")
    lora_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="dropout on the adapter's input, where rows of data are learnt from; never on completions that the "
        "adapter drew itself, so reinforcement learning needs 0",
    )
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)")
    init: Literal["lora", "pissa", "olora"] = Field(
        default="lora",
        description="lora: A random, B 0; pissa: the base's leading singular directions; olora: a QR factorisation of "
        "it. The last two take what they start from out of the base, so training starts at the base itself; they need "
        "lora_dropout = 0 and are saved as a LoRA of twice the rank and the same scale",
    )
    dora: bool = Field(default=False, description="learn each output's magnitude apart from its direction (DoRA)")
    targets: tuple[str, ...] = Field(
        default=("all-linear",),
        min_length=1,
        description="names of the linear layers that get an adapter; all-linear leaves out lm_head",
    )

    @model_validator(mode="after")
    def _whole_inputs(self) -> "ModelConfig":
        if self.init != "lora" and self.lora_dropout:
            raise ValueError(
                f"init = '{self.init}' needs lora_dropout = 0 (here {self.lora_dropout}): the part of the base that it "
                "trains would lose inputs that the rest of the base keeps, so training would not start at the base"
            )
        return self

    @property
    def alpha(self) -> float:
        """The scale numerator in force."""
        return self.lora_alpha if self.lora_alpha is not None else 2.0 * self.lora_rank

    @property
    def scale(self) -> float:
        """Effective scale of B A x: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        return self.alpha / (self.lora_rank**0.5 if self.rslora else self.lora_rank)
