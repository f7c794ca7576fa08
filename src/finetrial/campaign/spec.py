"""Campaign TOML -> frozen, resolved `Spec`. Nothing here reads data or imports torch.

A condition may override any field of the tables that describe a recipe (`model`, `data`, `score`, `selection`,
`training`); what it leaves out it inherits. Unknown keys are errors that name the file, the table and the nearest
key, because a misspelt key that is silently ignored runs another experiment than the one written down.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.looks import LooksConfig
from finetrial.analyze.metrics import known
from finetrial.campaign.tables import override, validated
from finetrial.data.score import ScoreConfig
from finetrial.data.select import SelectionConfig
from finetrial.data.split import SplitConfig
from finetrial.errors import UserError, nearest
from finetrial.model.config import ModelConfig
from finetrial.records import Config
from finetrial.train.config import TrainConfig

BASE = "base"
"""Name of the implicit condition that is the frozen base; it has no seeds and is always evaluated."""

METRICS = ("nll", "log_perplexity", "bits_per_byte")
"""What the suites of kind `perplexity` measure."""

RECIPE_TABLES = ("model", "data", "score", "selection", "training")
"""What a condition may override. The rest (split, evaluation, analysis) must be common to be comparable."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


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


class SuiteConfig(Config):
    """`[[suites]]`: a further evaluation set beside those that `[split]` draws from the pool."""

    name: str
    kind: Literal["perplexity"] = "perplexity"
    source: str = Field(description="as `data.source`")
    limit: int | None = Field(default=None, ge=1)


class EvaluationConfig(Config):
    """`[evaluation]`: how adapters are measured."""

    batch_tokens: int = Field(default=8192, ge=1, description="padded tokens of one pass; memory, never science")


class CampaignConfig(Config):
    """`[campaign]`: the question and its design, written down before any result."""

    name: str = Field(default="", description="names the folder of results; default: the file's name")
    question: str = Field(default="", description="what the campaign answers")
    hypothesis: str = Field(default="", description="what is expected, and why")
    decision_rule: str = Field(default="", description="what will be done on each verdict")
    primary_metric: str = Field(default="nll", description="metric of contrasts that name none")
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


class ConditionTable(Config):
    """`[[campaign.conditions]]` as written: a name and overrides."""

    name: str = ""
    question: str = ""
    advantage_mode: str | None = None
    transform_mode: str | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    score: dict[str, Any] = Field(default_factory=dict)
    selection: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


class Condition(Config):
    """One recipe, fully resolved."""

    name: str
    question: str
    model: ModelConfig
    data: DataConfig
    score: ScoreConfig
    selection: SelectionConfig
    training: TrainConfig


class SqueezeConfig(Config):
    """`[squeeze]`."""

    min_variance_retention: float = Field(default=0.95, gt=0, le=1)


class LoggingConfig(Config):
    """`[logging]`."""

    wandb_project: str | None = None


class _File(Config):
    """The tables of a campaign file."""

    campaign: CampaignConfig = CampaignConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    score: ScoreConfig = ScoreConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainConfig = TrainConfig()
    split: SplitConfig = SplitConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    suites: tuple[SuiteConfig, ...] = ()
    analysis: AnalysisConfig = AnalysisConfig()
    looks: LooksConfig | None = None
    contrasts: tuple[Contrast, ...] = ()
    squeeze: SqueezeConfig | None = None
    logging: LoggingConfig = LoggingConfig()


class Spec(Config):
    """A campaign, fully resolved: what enters the manifest."""

    campaign: CampaignConfig
    model: ModelConfig
    data: DataConfig
    score: ScoreConfig
    split: SplitConfig
    evaluation: EvaluationConfig
    suites: tuple[SuiteConfig, ...]
    analysis: AnalysisConfig
    looks: LooksConfig | None
    conditions: tuple[Condition, ...]
    contrasts: tuple[Contrast, ...]

    def condition(self, name: str) -> Condition:
        """The condition called `name`."""
        return next(condition for condition in self.conditions if condition.name == name)


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a campaign file and apply `a.b=c` overrides.

    Raises:
        UserError: the file is absent or no TOML, a key is unknown, a value is out of range, names clash, or a
            contrast names something that does not exist; the message names file, table, key and nearest key.
    """
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.toml")]) if path.parent.is_dir() else ""
        raise UserError(f"{path}: no such campaign file{near}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    for one in overrides:
        override(raw, one)
    return resolve(raw, str(path), default_name=path.stem)


def resolve(raw: Mapping[str, Any], place: str = "campaign", default_name: str = "campaign") -> Spec:
    """Resolve the tables of a campaign (as TOML gives them) into a `Spec`; `place` names them in errors."""
    file = validated(_File, raw, place, "")
    if file.squeeze is not None:
        raise UserError(f"{place}: [squeeze] is not available in this version of finetrial")
    if file.logging.wandb_project is not None:
        raise UserError(f"{place}: [logging] wandb_project is not available in this version of finetrial")
    campaign = file.campaign.model_copy(update={"name": file.campaign.name or default_name})
    if not _NAME.fullmatch(campaign.name):
        raise UserError(f"{place}: [campaign] name {campaign.name!r}: expected letters, digits and . _ + -")
    conditions = tuple(
        _condition(table, i, raw, campaign, place)
        for i, table in enumerate(raw.get("campaign", {}).get("conditions", []))
    )
    if not conditions:
        raise UserError(
            f"{place}: no [[campaign.conditions]]: a campaign compares at least one condition with the base"
        )
    names = [condition.name for condition in conditions]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{place}: two conditions are called {name!r}; give each its own name")
    if campaign.max_steps is not None and {"max_steps", "epochs"} & set(raw.get("training", {})):
        raise UserError(f"{place}: [campaign] max_steps and [training] both say how long to train; keep one of them")
    _check_suites(file, place)
    spec = Spec(
        campaign=campaign.model_copy(update={"conditions": ()}),
        model=file.model,
        data=file.data,
        score=file.score,
        split=file.split,
        evaluation=file.evaluation,
        suites=file.suites,
        analysis=file.analysis,
        looks=file.looks,
        conditions=conditions,
        contrasts=tuple(_contrast(contrast, file, names, place) for contrast in file.contrasts),
    )
    _check_contrast_names(spec, place)
    _check_looks(spec, place)
    return spec


def _condition(
    table: Mapping[str, Any], index: int, raw: Mapping[str, Any], campaign: CampaignConfig, place: str
) -> Condition:
    where = f"campaign.conditions[{index}]"
    written = validated(ConditionTable, table, place, where)
    name = written.name
    if written.advantage_mode is not None or written.transform_mode is not None:
        mode = f"{written.advantage_mode or 'grpo'}+{written.transform_mode or 'none'}"
        raise UserError(
            f"{place}: [{where}] {name or mode}: advantage_mode and transform_mode ask for reinforcement learning, "
            "which is not available in this version of finetrial"
        )
    if not name:
        raise UserError(f"{place}: [{where}] has no name")
    if not _NAME.fullmatch(name) or name == BASE:
        raise UserError(
            f"{place}: [{where}] name {name!r}: expected letters, digits and . _ + -, and not the reserved {BASE!r}"
        )
    where = f"{where} ({name})"
    for key in ("base", "revision", "dtype"):
        if key in written.model:
            raise UserError(
                f"{place}: [{where}.model] {key}: the frozen base is common to all conditions; set it in [model]"
            )
    merged = {table: {**raw.get(table, {}), **getattr(written, table)} for table in RECIPE_TABLES}
    if {"epochs", "max_steps"} & set(written.training):
        for key in {"epochs", "max_steps"} - set(written.training):
            merged["training"].pop(key, None)
    elif campaign.max_steps is not None:
        merged["training"].pop("epochs", None)
        merged["training"]["max_steps"] = campaign.max_steps
    return Condition(
        name=name,
        question=written.question,
        model=validated(ModelConfig, merged["model"], place, f"{where}.model"),
        data=validated(DataConfig, merged["data"], place, f"{where}.data"),
        score=validated(ScoreConfig, merged["score"], place, f"{where}.score"),
        selection=validated(SelectionConfig, merged["selection"], place, f"{where}.selection"),
        training=validated(TrainConfig, merged["training"], place, f"{where}.training"),
    )


def _contrast(contrast: Contrast, file: _File, names: Sequence[str], place: str) -> Contrast:
    for role in ("candidate", "baseline"):
        name = getattr(contrast, role)
        if name not in (*names, BASE):
            raise UserError(f"{place}: [[contrasts]] {role} {name!r} is no condition{nearest(name, [*names, BASE])}")
    if contrast.candidate == contrast.baseline:
        raise UserError(f"{place}: [[contrasts]] {contrast.candidate!r} is compared with itself")
    suites = [*file.split.names, *(suite.name for suite in file.suites)]
    for suite in (contrast.suite, contrast.minus_suite):
        if suite is not None and suite not in suites:
            raise UserError(
                f"{place}: [[contrasts]] suite {suite!r} is not evaluated{nearest(suite, suites)}; there are {suites}"
            )
    if contrast.suite == contrast.minus_suite:
        raise UserError(f"{place}: [[contrasts]] suite {contrast.suite!r} minus itself is nothing")
    metric = contrast.metric or file.campaign.primary_metric
    if metric not in METRICS:
        where = "[[contrasts]] metric" if contrast.metric else "[campaign] primary_metric"
        known_metrics = f"{nearest(metric, METRICS)}; there are {', '.join(METRICS)}"
        raise UserError(f"{place}: {where} {metric!r} is not measured{known_metrics}")
    on = f"{contrast.suite} minus {contrast.minus_suite}" if contrast.minus_suite else contrast.suite
    return contrast.model_copy(update={"name": contrast.name or f"{contrast.candidate} vs {contrast.baseline} on {on}"})


def _check_suites(file: _File, place: str) -> None:
    names = [*file.split.names, *(suite.name for suite in file.suites)]
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"{place}: suite name {name!r}: expected letters, digits and . _ + -")
        if names.count(name) > 1:
            raise UserError(f"{place}: two suites are called {name!r}; give each its own name")


def _check_contrast_names(spec: Spec, place: str) -> None:
    seen: set[str] = set()
    for contrast in spec.contrasts:
        if contrast.name in seen:
            raise UserError(f"{place}: [[contrasts]] {contrast.name!r} is declared twice")
        seen.add(contrast.name)


def _check_looks(spec: Spec, place: str) -> None:
    """Refuse looks that could decide nothing, or whose error rate is not known."""
    if spec.looks is None:
        return
    try:
        spec.looks.counts(len(spec.campaign.seeds))
    except UserError as error:
        raise UserError(f"{place}: [looks] {error}") from error
    if not spec.contrasts:
        raise UserError(f"{place}: [looks] without [[contrasts]]: there is nothing to decide at a look")
    if spec.analysis.correction not in ("holm", "none"):
        raise UserError(
            f"{place}: [looks] with [analysis] correction {spec.analysis.correction!r}: expected 'holm' or 'none'; how "
            "the others share their error rate over looks is not known"
        )
    metrics = [contrast.metric or spec.campaign.primary_metric for contrast in spec.contrasts]
    unlimited = [metric for metric in metrics if (fact := known(metric)) is None or fact.high is None]
    if spec.looks.futility and spec.looks.span is None and unlimited:
        raise UserError(
            f"{place}: [looks] futility: {unlimited[0]} has no known range; give span, the largest difference of one "
            "seed's runs that is possible"
        )
