"""The tables of a campaign file as they are written. `spec.py` resolves them; nothing here reads data."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.looks import LooksConfig
from finetrial.data.dialogues import TEMPERATURES
from finetrial.data.score import ScoreConfig
from finetrial.data.select import SelectionConfig
from finetrial.data.split import SplitConfig
from finetrial.data.subset import SubsetConfig
from finetrial.data.tasks import TaskConfig
from finetrial.evaluate.diversity import SEMANTIC, TEXTUAL
from finetrial.evaluate.reward_config import RewardModelConfig
from finetrial.evaluate.rouge import ROUGE
from finetrial.generate.config import SamplingConfig
from finetrial.grade.config import GraderConfig
from finetrial.model.config import ModelConfig
from finetrial.records import Config
from finetrial.train.config import TrainConfig
from finetrial.train.mixture_config import MixtureConfig
from finetrial.train.rl_config import RLConfig
from finetrial.train.stopping_config import StoppingConfig
from finetrial.train.term_config import AnchorConfig, SetDiversityConfig

BASE = "base"
"""Name of the implicit condition that is the frozen base; it has no seeds and is always evaluated."""

HELD_OUT = "held_out"
"""Name of the suite of tasks that `[tasks]` holds out."""

INSTRUMENTS = (*TEXTUAL, *SEMANTIC, *ROUGE)
"""What is measured of completions' texts where a suite asks for it."""

OWN_SETTINGS = ("samples", "temperature", "top_p", "max_tokens", "diversity", "semantic", "matched_words")
"""What a suite may say itself, and `[evaluation]` for all that do not."""


class DataConfig(Config):
    """`[data]`: the pool that training rows are selected from."""

    source: str = Field(
        default="world:shell?count=1200&seed=1",
        description="file, folder, glob, `hf:NAME[:config][@split]` or `world:NAME?count=N&seed=S`",
    )
    limit: int | None = Field(default=None, ge=1, description="read at most this many rows")
    on_malformed: Literal["error", "drop"] = Field(
        default="error", description="a broken row stops, or is dropped and counted"
    )
    drop_system: bool = Field(
        default=False, description="leave system messages out: a long policy that all rows share fills the context"
    )
    drop_duplicates: bool = Field(default=False, description="keep only the first row of each content")


class CommonTasksConfig(TaskConfig):
    """`[tasks]`: the tasks that are practised on, and how many of them are held out for everything's examination."""

    held_out: int = Field(default=200, ge=1, description="tasks of the suite `held_out`, which nobody practises on")
    held_out_seed: int = Field(default=0, description="names their draw; the same for all conditions and seeds")

    @property
    def pool(self) -> TaskConfig:
        """The tasks alone, as a condition may override them."""
        return TaskConfig.model_validate(self.model_dump(exclude={"held_out", "held_out_seed"}))


def _grader_named(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return f"<{(RewardModelConfig if kind == 'reward_model' else GraderConfig).__name__}>"


SuiteGrader = Annotated[
    Annotated[GraderConfig, Tag("<GraderConfig>")] | Annotated[RewardModelConfig, Tag("<RewardModelConfig>")],
    Discriminator(_grader_named),
]
"""What may grade the completions of a suite: any grader, or a reward model."""

SuiteKind = Literal["perplexity", "tasks", "choice", "conversation", "lm_eval"]

_ASKED = {"source", "instruction", "system", "where", "subset"}
_DRAWN = {"samples", "temperature", "top_p", "max_tokens"}
KEYS: dict[str, set[str]] = {
    "perplexity": {"source", "subset"},
    "tasks": {*_ASKED, "grader", *OWN_SETTINGS},
    "choice": {*_ASKED, "lead"},
    "conversation": {"source", "subset", "references", "system", "grader", "temperatures", *_DRAWN},
    "lm_eval": {"task", "include_path", "num_fewshot", "chat_template"},
}
"""What suites of each kind know beside `name`, `kind`, `limit` and `category`."""

NEEDED = {"conversation": ("source", "grader"), "lm_eval": ("task",)}
"""Keys that suites of a kind must have; of other kinds `source`."""

OF_CONVERSATIONS = ("judge", "reward_model", "function", "exact", "numeric", "math")
"""Graders that can read a turn of a conversation."""


class SuiteConfig(Config):
    """`[[suites]]`: a further evaluation set beside those that `[split]` and `[tasks]` draw."""

    name: str
    kind: SuiteKind = Field(
        default="perplexity",
        description="likelihood of given assistant text; graded completions of prompts; likelihood of each option of "
        "multiple choice; graded answers of conversations of several turns; or a task of lm-evaluation-harness",
    )
    source: str = Field(
        default="",
        description="as `data.source`; of tasks as `tasks.source`; of conversations FastChat's question.jsonl",
    )
    limit: int | None = Field(default=None, ge=1)
    subset: SubsetConfig | None = Field(default=None, description="a frozen stratified part of it, { n, by = 'fact' }")
    category: str = Field(
        default="",
        description="fact of the items that the report groups them by; default: the first of category, kind and topic",
    )
    where: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="tasks, choice: keep only those whose facts have these values"
    )
    instruction: str = Field(default="", description="tasks, choice: appended to each question")
    system: str = Field(default="", description="tasks, choice, conversation: system message before each question")
    lead: str = Field(default="Answer:", description="choice: begins the assistant's turn, before the option")
    grader: SuiteGrader | None = Field(
        default=None, description="tasks: default what the source brings; conversation: must be given"
    )
    samples: int | None = Field(
        default=None, ge=1, description="tasks, conversation: default [evaluation] samples, as the next three"
    )
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    diversity: bool | None = Field(default=None, description="tasks: default as [evaluation], as the next two")
    semantic: bool | None = None
    matched_words: int | None = Field(default=None, ge=1)
    references: str = Field(default="", description="conversation: a file of FastChat's reference answers")
    temperatures: Literal["mt_bench"] | dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="conversation: by category, in place of `temperature`; mt_bench: those of MT-Bench",
    )
    task: str = Field(default="", description="lm_eval: a task or group by name, or the path of its YAML")
    include_path: str = Field(default="", description="lm_eval: a folder with further tasks in YAML")
    num_fewshot: int | None = Field(
        default=None, ge=0, description="lm_eval: examples in the prompt; default the task's own number"
    )
    chat_template: bool = Field(
        default=False,
        description="lm_eval: prompts are a user's message in the base's chat template; false, as the harness has it: "
        "bare text",
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> "SuiteConfig":
        given = self.model_fields_set
        foreign = sorted(given - {"name", "kind", "limit", "category"} - KEYS[self.kind])
        if foreign:
            kinds = [kind for kind, keys in KEYS.items() if foreign[0] in keys]
            raise ValueError(f"{', '.join(foreign)}: only for kind = {' or '.join(map(repr, kinds))}")
        missing = [key for key in NEEDED.get(self.kind, ("source",)) if not getattr(self, key)]
        if missing:
            raise ValueError(f"suite {self.name!r} of kind {self.kind} needs {missing[0]!r}, which is missing")
        if self.kind == "conversation" and self.grader is not None and self.grader.kind not in OF_CONVERSATIONS:
            raise ValueError(
                f"grader of kind {self.grader.kind!r} does not grade conversations; expected one of "
                f"{', '.join(OF_CONVERSATIONS)}"
            )
        return self

    @property
    def tasks(self) -> TaskConfig:
        """What a suite of kind `tasks` or `choice` reads."""
        return TaskConfig(
            source=self.source,
            limit=self.limit,
            where=self.where,
            instruction=self.instruction,
            system=self.system,
            grader=self.grader if isinstance(self.grader, GraderConfig) else GraderConfig(),
        )

    @property
    def by_category(self) -> Mapping[str, float]:
        """Temperatures of a conversation's categories."""
        return TEMPERATURES if self.temperatures == "mt_bench" else self.temperatures


class EvaluationConfig(Config):
    """`[evaluation]`: how adapters are measured."""

    batch_tokens: int = Field(default=8192, ge=1, description="padded tokens of one pass; memory, never science")
    samples: int = Field(default=1, ge=1, description="tasks: completions of each prompt")
    temperature: float = Field(default=0.0, ge=0, description="tasks: 0 takes the likeliest token")
    top_p: float = Field(default=1.0, gt=0, le=1, description="tasks: keep the likeliest tokens that reach this mass")
    max_tokens: int = Field(default=128, ge=1, description="tasks: most tokens of a completion")
    seed: int = Field(default=0, description="tasks: of the sampling noise, which all conditions and seeds share")
    diversity: bool | None = Field(
        default=None,
        description="tasks: measure how the samples of a prompt differ and how they resemble its reference; unset: "
        "where there are several samples",
    )
    semantic: bool = Field(
        default=False,
        description="tasks: with diversity, measure it by embeddings of the base too (vendi, semantic_diversity); it "
        "costs about a third of what writing them did",
    )
    matched_words: int | None = Field(
        default=None,
        ge=1,
        description="tasks: words that distinct_n_matched cuts samples to; unset: those of a prompt's shortest one",
    )
    every: int = Field(default=0, ge=0, description="measure adapters also every so many steps; 0 for never")

    @model_validator(mode="after")
    def _samples_differ(self) -> "EvaluationConfig":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples = {self.samples} at temperature 0 are all the same; set temperature above 0 or samples = 1"
            )
        return self

    def of(self, suite: SuiteConfig) -> "EvaluationConfig":
        """What is in force for a suite: its own settings, and these where it has none.

        Raises:
            pydantic.ValidationError: together they make no sense.
        """
        own = {key: getattr(suite, key) for key in OWN_SETTINGS}
        changed = {key: value for key, value in own.items() if value is not None}
        return EvaluationConfig.model_validate({**self.model_dump(), **changed}) if changed else self

    @property
    def instruments(self) -> dict[str, Any]:
        """What is measured of completions' texts beside their grades; empty for nothing."""
        if self.diversity is False or (self.diversity is None and self.samples == 1):
            return {}
        return {"semantic": self.semantic, "matched_words": self.matched_words}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of those measurements."""
        if not self.instruments:
            return ()
        return tuple(name for name in INSTRUMENTS if self.semantic or name not in SEMANTIC)

    @property
    def sampling(self) -> SamplingConfig:
        """How completions of tasks are drawn."""
        return SamplingConfig(max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p)


class CampaignConfig(Config):
    """`[campaign]`: the question and its design, written down before any result."""

    name: str = Field(default="", description="names the folder of results; default: the file's name")
    question: str = Field(default="", description="what the campaign answers")
    hypothesis: str = Field(default="", description="what is expected, and why")
    decision_rule: str = Field(default="", description="what will be done on each verdict")
    primary_metric: str = Field(
        default="",
        description="metric of contrasts that name none; default `correct` where a condition practises on tasks, "
        "else `nll`",
    )
    seeds: tuple[int, ...] = Field(
        default=(42, 101, 202), min_length=1, description="training seeds; each is one replicate"
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="optimiser steps of every condition that sets none itself"
    )
    mix_numerics: bool = Field(
        default=False, description="allow results of other devices or torch versions to be reused"
    )
    conditions: tuple[dict[str, Any], ...] = Field(default=(), description="`[[campaign.conditions]]`")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds repeat: the same seed is the same run, not a replicate")
        return seeds


class SqueezeConfig(Config):
    """`[squeeze]`: after the first finished run, how small a rank would have done."""

    min_variance_retention: float = Field(
        default=0.95, gt=0, le=1, description="share of the change of weights that the recommended rank keeps"
    )


class LoggingConfig(Config):
    """`[logging]`: where metrics are sent besides the run's folder."""

    wandb_project: str | None = Field(default=None, description="project of Weights & Biases")


class File(Config):
    """All tables of a campaign file."""

    campaign: CampaignConfig = CampaignConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    score: ScoreConfig = ScoreConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainConfig = TrainConfig()
    tasks: CommonTasksConfig = CommonTasksConfig()
    rl: RLConfig = RLConfig()
    anchor: AnchorConfig | None = None
    set_diversity: SetDiversityConfig | None = None
    mixture: MixtureConfig | None = None
    stopping: StoppingConfig | None = None
    split: SplitConfig = SplitConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    suites: tuple[SuiteConfig, ...] = ()
    analysis: AnalysisConfig = AnalysisConfig()
    looks: LooksConfig | None = None
    contrasts: tuple[Contrast, ...] = ()
    squeeze: SqueezeConfig | None = None
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _suites_can_be_evaluated(self) -> "File":
        for suite in self.suites:
            try:
                self.evaluation.of(suite)
            except ValidationError as error:
                told = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"[[suites]] {suite.name!r}: {told}") from error
        return self
