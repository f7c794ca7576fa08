"""Configuration of reinforcement learning (no torch here).

Every difference between libraries that call their method by the same name is an option here: which standard
deviation, which epsilon, how token losses are aggregated, where a penalty enters.
"""

from typing import Literal

from pydantic import Field, model_validator

from finetrial.generate.config import SamplingConfig
from finetrial.records import Config

AdvantageMode = Literal[
    "grpo", "dr_grpo", "rloo", "maxrl", "reinforce_pp", "reinforce_pp_baseline", "passk_training", "pkpo", "poly_epo"
]
TransformMode = Literal[
    "none",
    "gtpo",
    "gtpo_hicra",
    "gtpo_sepa",
    "gtpo_sepa_amp",
    "gtpo_sepa_amp_c",
    "gtpo_published",
    "grpo_s",
    "entropy_mask",
    "delight",
    "delight_sepa",
]
OF_RIGHT_AND_WRONG = ("gtpo_published", "grpo_s")
"""Modes that start from plain grades, 0 or 1, and from entropies."""

UncertaintyKind = Literal["surprisal", "entropy", "predictive_variance"]


class AdvantageConfig(Config):
    """`[rl.advantage]`: parameters of the advantage estimators."""

    ddof: Literal[0, 1] = Field(default=1, description="grpo: divisor G - ddof of the standard deviation")
    eps: float = Field(default=1e-6, ge=0, description="added to the denominator (grpo, maxrl, passk_training)")
    k: int = Field(default=4, ge=1, description="k of passk_training and pkpo")
    pkpo: Literal["loo", "loo_minus_one"] = Field(default="loo_minus_one", description="baseline of pkpo")
    set_size: int = Field(default=4, ge=2, description="poly_epo: samples of a set, below the group size")


class GtpoConfig(Config):
    """`[rl.gtpo]`."""

    beta: float = Field(default=0.1, ge=0, description="weight of uncertainty in the multiplicative form")
    alpha1: float = Field(default=1.0, gt=0, description="gtpo_published, grpo_s: weight of the outcome")
    alpha2: float = Field(default=0.1, ge=0, description="gtpo_published, grpo_s: weight of the entropy share")
    entropy_floor: float = Field(default=0.01, gt=0, description="gtpo_published, grpo_s: least entropy in 1/H, nats")


class HicraConfig(Config):
    """`[rl.hicra]`."""

    alpha: float = Field(default=0.2, ge=0, description="amplification of planning tokens")


class SepaConfig(Config):
    """`[rl.sepa]`: how strongly execution tokens are pooled, over the run."""

    schedule: Literal["linear", "auto"] = Field(default="linear")
    steps: int | None = Field(default=None, ge=1, description="length of the ramp; default half of the run's steps")
    delay_steps: int | None = Field(default=None, ge=0, description="steps before it; default a tenth of the run")
    correct_rate_gate: float = Field(default=0.1, ge=0, le=1, description="strength stays 0 until this is reached once")
    ema: float = Field(default=0.99, ge=0, lt=1, description="auto: decay of the variance's moving average")
    threshold: float = Field(default=0.2, gt=0, description="auto: share of the first variance at which strength is 1")
    warmup_steps: int = Field(default=50, ge=1, description="auto: steps before the first variance is taken")


class MaskConfig(Config):
    """`[rl.mask]`: the entropy mask."""

    share: float = Field(default=0.2, gt=0, le=1, description="share of most uncertain tokens of a group that learn")


class DelightConfig(Config):
    """`[rl.delight]`: gate sigma(A s / eta)."""

    eta: float = Field(default=1.0, gt=0, description="softness of the gate")


class PlanningConfig(Config):
    """`[rl.planning]`: which tokens plan rather than execute."""

    detector: Literal["grams", "semantic"] = Field(default="grams", description="phrases, or nearness in embedding")
    grams: tuple[str, ...] = Field(default=(), description="phrases of planning; empty takes the built-in list")
    threshold: float = Field(default=0.02, ge=0, description="semantic: lead over execution that a window needs")


class LossConfig(Config):
    """`[rl.loss]`: the policy loss and how token losses become one number."""

    kind: Literal["ppo", "gspo", "grpo_s", "cispo"] = Field(
        default="ppo", description="gspo and grpo_s: one ratio per completion, the geometric or the arithmetic mean"
    )
    clip_low: float = Field(default=0.2, ge=0, description="ratios below 1 - clip_low are clipped")
    clip_high: float = Field(default=0.2, ge=0, description="ratios above 1 + clip_high are clipped")
    dual_clip: float | None = Field(default=None, gt=1, description="all but cispo: bound of the loss where A < 0")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        default="token_mean", description="over all tokens; per sequence first; or sum over (sequences x max_tokens)"
    )
    tis_cap: float | None = Field(
        default=None, gt=0, description="truncated importance sampling: cap of trainer over sampler probability"
    )
    kl_coef: float = Field(default=0.0, ge=0, description="weight of the divergence from the base")
    kl: Literal["k1", "k2", "k3"] = Field(default="k2", description="estimator; as a loss only k2 has the gradient")
    kl_in: Literal["loss", "reward"] = Field(default="loss", description="where the divergence enters")
    entropy_coef: float = Field(default=0.0, description="weight of the entropy bonus")

    @model_validator(mode="after")
    def _in_force(self) -> "LossConfig":
        if self.kind == "cispo" and self.dual_clip is not None:
            raise ValueError("dual_clip is of no effect with kind = 'cispo', whose weight is clipped above already")
        return self


class OverlongConfig(Config):
    """`[rl.overlong]`: completions that reach the limit."""

    cache: int | None = Field(
        default=None, ge=1, description="DAPO: the penalty grows over the last so many tokens; unset for none"
    )
    mask_truncated: bool = Field(default=False, description="leave completions that were cut out of the loss")


class DynamicSamplingConfig(Config):
    """`[rl.dynamic_sampling]`: DAPO's replacement of groups that teach nothing."""

    enabled: bool = False
    max_rounds: int = Field(default=4, ge=1, description="rounds of sampling per step, the first included")


class BatchSizingConfig(Config):
    """`[rl.batch_sizing]`: rows of one sampling pass by the Universal Scalability Law."""

    enabled: bool = Field(
        default=False, description="choose rows by measured pace; changes rounding, so runs no longer repeat bit by bit"
    )
    rows: int = Field(default=256, ge=1, description="most rows of one sampling pass where nothing is chosen")


class RLConfig(Config):
    """`[rl]`: sampling, credit and loss. `training.batch_size` counts prompts of a step."""

    advantage_mode: AdvantageMode = "grpo"
    transform_mode: TransformMode = "none"
    uncertainty_kind: UncertaintyKind = "surprisal"
    group_size: int = Field(default=16, ge=1, description="completions of each prompt")
    epochs: int = Field(default=1, ge=1, description="passes over the completions of a step")
    mini_batches: int = Field(default=1, ge=1, description="optimiser updates of each pass")
    reward: Literal["grade", "random"] = Field(default="grade", description="random: a control, worth nothing")
    sampling: SamplingConfig = SamplingConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    gtpo: GtpoConfig = GtpoConfig()
    hicra: HicraConfig = HicraConfig()
    sepa: SepaConfig = SepaConfig()
    mask: MaskConfig = MaskConfig()
    delight: DelightConfig = DelightConfig()
    planning: PlanningConfig = PlanningConfig()
    loss: LossConfig = LossConfig()
    overlong: OverlongConfig = OverlongConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    batch_sizing: BatchSizingConfig = BatchSizingConfig()

    @model_validator(mode="after")
    def _possible(self) -> "RLConfig":
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0: greedy completions of a prompt are all the same")
        if self.group_size == 1 and self.advantage_mode != "reinforce_pp":
            raise ValueError(
                f"group_size is 1, and '{self.advantage_mode}' compares completions of one prompt: nothing could be "
                "learnt; expected 2 or more, or advantage_mode 'reinforce_pp', which compares those of a step"
            )
        if self.advantage_mode == "poly_epo" and self.advantage.set_size >= self.group_size:
            raise ValueError("advantage.set_size must be below group_size")
        if self.advantage_mode in ("passk_training", "pkpo") and self.advantage.k > self.group_size:
            raise ValueError("advantage.k must be at most group_size")
        if self.advantage_mode == "pkpo" and self.advantage.pkpo == "loo" and self.advantage.k == self.group_size:
            raise ValueError("advantage.k must be below group_size for advantage.pkpo = 'loo'")
        if self.advantage_mode == "pkpo" and self.advantage.pkpo == "loo_minus_one" and self.advantage.k < 2:
            raise ValueError("advantage.k must be at least 2 for advantage.pkpo = 'loo_minus_one'")
        if self.overlong.cache is not None and self.overlong.cache > self.sampling.max_tokens:
            raise ValueError("overlong.cache must be at most sampling.max_tokens")
        shaped = self.overlong.cache is not None or (self.loss.kl_in == "reward" and self.loss.kl_coef > 0)
        if shaped and self.advantage_mode in ("maxrl", "passk_training", "pkpo"):
            raise ValueError(
                f"advantage_mode '{self.advantage_mode}' needs rewards in [0, 1]; "
                "overlong.cache and loss.kl_in = 'reward' take from them"
            )
        if self.transform_mode in OF_RIGHT_AND_WRONG and shaped:
            raise ValueError(
                f"transform_mode '{self.transform_mode}' needs plain grades; "
                "overlong.cache and loss.kl_in = 'reward' change them"
            )
        if self.transform_mode in OF_RIGHT_AND_WRONG and self.uncertainty_kind != "entropy":
            raise ValueError(f"transform_mode '{self.transform_mode}' needs uncertainty_kind = 'entropy'")
        return self
