"""Configuration of what pulls at an adapter beside its main loss: an anchor to the base, a reward for variety.

No torch here.
"""

from typing import Literal

from pydantic import Field, model_validator

from finetrial.generate.config import SamplingConfig
from finetrial.records import Config

EMBEDDED = ("semantic", "vendi", "log_det")
"""Scores of sets that read embeddings."""


class AnchorConfig(Config):
    """`[anchor]`: a divergence from the frozen base, added to the loss of every learnt token."""

    kind: Literal["ref_student", "student_ref", "js"] = Field(
        default="ref_student",
        description="ref_student: KL(base || adapter), forward; student_ref: KL(adapter || base), reverse; js: "
        "generalised Jensen-Shannon",
    )
    js_beta: float = Field(default=0.5, gt=0, lt=1, description="js: weight of the base in the mixture")
    coef: float = Field(default=0.05, ge=0, description="weight; 0 trains bit for bit as without an anchor")
    start_step: int = Field(default=0, ge=0, description="steps before it acts")
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the weight rises from 0 after that")
    decay_steps: int = Field(default=0, ge=0, description="steps at the end over which the weight falls")
    final_coef: float = Field(default=0.0, ge=0, description="weight at the very end, where decay_steps is set")
    tail_tokens: int | None = Field(
        default=None, ge=1, description="only the last so many learnt tokens of each row; unset for all"
    )
    cap: float | None = Field(
        default=None, gt=0, description="nats; a token beyond it adds the cap and has no gradient (its share is logged)"
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="keep only the base's likeliest tokens and one bucket for all others: less memory, and a lower "
        "bound of the divergence; unset for the whole vocabulary",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "AnchorConfig":
        if self.final_coef and not self.decay_steps:
            raise ValueError("final_coef has no effect without decay_steps: give both")
        if self.final_coef and not self.coef:
            raise ValueError("final_coef has no effect where coef is 0, which means no anchor; give a coef above 0")
        return self


class SetDiversityConfig(Config):
    """`[set_diversity]`: completions of a prompt are drawn as a set and rewarded for how much they differ."""

    score: Literal["distinct", "self_bleu", "semantic", "vendi", "log_det", "clusters"] = Field(
        default="distinct",
        description="of a set, in [0, 1]: share of distinct n-grams; 1 - self-BLEU; mean distance of embeddings; Vendi "
        "score over the set's size; log-determinant of DQO; share of distinct strategies",
    )
    order: int = Field(default=2, ge=1, le=5, description="n of distinct n-grams, highest n of self-BLEU")
    weight: float | None = Field(
        default=None,
        ge=0,
        description="lambda of CE - lambda x score; the gradient is lambda / n_generations times that of the expected "
        "score; 0 measures and does not teach; default 1",
    )
    gradient_share: float | None = Field(
        default=None, gt=0, lt=1, description="instead of a weight: the share of the gradient's norm it should have"
    )
    n_generations: int = Field(
        default=5, ge=3, description="completions of a set; each is compared with what is left without it"
    )
    max_examples: int = Field(default=8, ge=1, description="prompts of the run's rows that are sampled in a step")
    every_n_steps: int = Field(default=1, ge=1, description="steps from one sampling to the next")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(),
        description="the gradient is exact at temperature 1 without filters; elsewhere it is that of the plain "
        "distribution",
    )
    embedding: Literal["base", "sentence-transformers"] = Field(
        default="base", description="semantic, vendi, log_det: the base's own hidden states, or an extra package"
    )
    embedding_model: str = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="embedding = 'sentence-transformers': its folder or its name on the hub",
    )
    quality: str | None = Field(
        default=None,
        description="`path/to/file.py:name` or `package.module:name`, a function of (text, meta) in [0, 1]: a set's "
        "score is its mean quality x its diversity; unset: 0 for degenerate completions, else 1",
    )
    clusters: str | None = Field(
        default=None,
        description="score = 'clusters': a function of (text, meta) that names the strategy, by a text or whole number",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SetDiversityConfig":
        if self.weight is not None and self.gradient_share is not None:
            raise ValueError("give weight or gradient_share, not both")
        if (self.score == "clusters") != (self.clusters is not None):
            raise ValueError("score = 'clusters' and clusters = 'path/to/file.py:name' go together")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0: greedy completions of a prompt are all the same")
        return self

    @property
    def functions(self) -> dict[str, str]:
        """Key of this table -> the user's function that it names, of those that are set."""
        named = {"quality": self.quality, "clusters": self.clusters}
        return {key: function for key, function in named.items() if function is not None}

    @property
    def encoder(self) -> str | None:
        """The sentence encoder that scores the sets; None where none does."""
        return self.embedding_model if self.embedding != "base" and self.score in EMBEDDED else None

    @property
    def factor(self) -> float:
        """Lambda of the rows; 1 where a share of the gradient sets it."""
        return 1.0 if self.weight is None else self.weight


SAYS = {"quality": "gives a number in [0, 1]", "clusters": "names a strategy by a text or a whole number"}


def function_error(key: str, error: Exception) -> str:
    """What is wrong with a function of `[set_diversity]`, under the name of its key, and what is expected of it."""
    told = str(error).removeprefix("function: ")
    return f"[set_diversity] {key}: {told}; expected a function of (text, meta) that {SAYS[key]}"
