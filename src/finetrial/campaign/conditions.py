"""`[[campaign.conditions]]`: one recipe each, resolved from what it writes and what it inherits.

A condition may override any field of the tables that describe a recipe. What it trains by is its objective: `rl`
where it, or the file, asks for reinforcement learning, else `sft`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from finetrial.campaign.settings import BASE, CampaignConfig, DataConfig
from finetrial.campaign.tables import merged, validated
from finetrial.data.score import ScoreConfig
from finetrial.data.select import SelectionConfig
from finetrial.data.tasks import TaskConfig
from finetrial.errors import UserError
from finetrial.model.config import ModelConfig
from finetrial.records import Config
from finetrial.train.config import TrainConfig
from finetrial.train.mixture_config import MixtureConfig
from finetrial.train.rl_config import RLConfig
from finetrial.train.stopping_config import StoppingConfig
from finetrial.train.term_config import AnchorConfig, SetDiversityConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

SUPERVISED_TABLES = ("data", "score", "selection")
"""What only a condition of supervised fine-tuning depends on."""

PRACTICE_KEYS = ("advantage_mode", "transform_mode", "rl", "tasks")
"""What only a condition of reinforcement learning depends on."""

OPTIONAL_TABLES: dict[str, type[Config]] = {
    "anchor": AnchorConfig,
    "set_diversity": SetDiversityConfig,
    "mixture": MixtureConfig,
    "stopping": StoppingConfig,
}
"""Tables without which a recipe does without the thing; a condition writes `false` to go without a common one."""

SUPERVISED_OPTIONS = ("set_diversity", "mixture")
"""Those of them that only supervised fine-tuning has."""


class ConditionTable(Config):
    """`[[campaign.conditions]]` as written: a name and overrides."""

    name: str = Field(default="", description="default of reinforcement learning: `<advantage_mode>+<transform_mode>`")
    question: str = ""
    advantage_mode: str | None = Field(default=None, description="short for rl.advantage_mode")
    transform_mode: str | None = Field(default=None, description="short for rl.transform_mode")
    model: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    score: dict[str, Any] = Field(default_factory=dict)
    selection: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    tasks: dict[str, Any] = Field(default_factory=dict)
    rl: dict[str, Any] = Field(default_factory=dict)
    anchor: dict[str, Any] | Literal[False] = Field(default_factory=dict)
    set_diversity: dict[str, Any] | Literal[False] = Field(default_factory=dict)
    mixture: dict[str, Any] | Literal[False] = Field(default_factory=dict)
    stopping: dict[str, Any] | Literal[False] = Field(default_factory=dict)


class Condition(Config):
    """One recipe, fully resolved."""

    name: str
    question: str
    model: ModelConfig
    data: DataConfig
    """What rows are selected from; of no meaning where the condition practises."""
    score: ScoreConfig
    selection: SelectionConfig
    training: TrainConfig
    rl: RLConfig | None = None
    """None: supervised fine-tuning."""
    tasks: TaskConfig | None = None
    """What is practised on; None for supervised fine-tuning."""
    anchor: AnchorConfig | None = None
    set_diversity: SetDiversityConfig | None = None
    mixture: MixtureConfig | None = None
    stopping: StoppingConfig | None = None

    @property
    def objective(self) -> str:
        """`sft` or `rl`."""
        return "sft" if self.rl is None else "rl"

    def steps(self, rows: int) -> int:
        """Optimiser steps of a run over `rows` rows (or tasks).

        An epoch is over when the selected rows were read once: with a mixture that takes longer, by what it mixes in.
        """
        return self.training.steps(rows if self.mixture is None else rows / self.mixture.selected_share)


def condition(
    table: Mapping[str, Any], index: int, raw: Mapping[str, Any], campaign: CampaignConfig, place: str
) -> Condition:
    """Resolve one condition.

    Args:
        table: as written.
        index: its position, which messages name.
        raw: all tables of the file.
        campaign: the campaign's own table.
        place: the file, for messages.

    Raises:
        UserError: an unknown key, a value out of range, tables of two objectives at once, or no usable name.
    """
    where = f"campaign.conditions[{index}]"
    written = validated(ConditionTable, table, place, where)
    objective = _objective(written, raw, place, f"{where}{f' ({written.name})' if written.name else ''}")
    rl, shown = {}, written.name
    if objective == "rl":
        rl = _rl(written, raw, place, where)
        modes = RLConfig.model_fields
        advantage, transform = (rl.get(key, modes[key].default) for key in ("advantage_mode", "transform_mode"))
        shown = written.name or f"{advantage}+{transform}"
    if not shown:
        raise UserError(f"{place}: [{where}] has no name")
    if not NAME.fullmatch(shown) or shown == BASE:
        raise UserError(
            f"{place}: [{where}] name {shown!r}: expected letters, digits and . _ + -, and not the reserved {BASE!r}"
        )
    where = f"{where} ({shown})"
    for key in ("base", "revision", "dtype"):
        if key in written.model:
            raise UserError(
                f"{place}: [{where}.model] {key}: the frozen base is common to all conditions; set it in [model]"
            )
    for key in ("held_out", "held_out_seed"):
        if key in written.tasks:
            raise UserError(
                f"{place}: [{where}.tasks] {key}: the held-out tasks are common to all conditions; set it in [tasks]"
            )
    common = {key: value for key, value in raw.get("tasks", {}).items() if not key.startswith("held_out")}
    own = {name: {**raw.get(name, {}), **getattr(written, name)} for name in ("model", "training", *SUPERVISED_TABLES)}
    if {"epochs", "max_steps"} & set(written.training):
        for key in {"epochs", "max_steps"} - set(written.training):
            own["training"].pop(key, None)
    elif campaign.max_steps is not None:
        own["training"].pop("epochs", None)
        own["training"]["max_steps"] = campaign.max_steps
    practises = objective == "rl"
    if practises and own["training"].get("token_weighting") == "dft":
        raise UserError(
            f"{place}: [{where}.training] token_weighting = 'dft' weighs tokens of a data set; this condition's "
            "objective is rl, whose advantages weigh its tokens; write training.token_weighting = 'none' here"
        )
    options = {name: _option(name, written, raw, place, where, practises) for name in OPTIONAL_TABLES}
    training = validated(TrainConfig, own["training"], place, f"{where}.training")
    if options["mixture"] is not None and options["mixture"].unit == "tokens" and training.max_steps is None:
        raise UserError(
            f"{place}: [{where}.mixture] unit 'tokens': how many steps an epoch takes is not known before the rows are "
            "mixed; give training.max_steps"
        )
    model = validated(ModelConfig, own["model"], place, f"{where}.model")
    if model.lora_dropout and practises:
        raise UserError(
            f"{place}: [{where}.model] lora_dropout is {model.lora_dropout}, but completions are sampled without it: "
            "with it, a policy's update would begin at ratios other than 1 and clip what dropout did, and without it "
            "nothing would be dropped; write model.lora_dropout = 0 here"
        )
    return Condition(
        name=shown,
        question=written.question,
        model=model,
        data=validated(DataConfig, own["data"], place, f"{where}.data"),
        score=validated(ScoreConfig, own["score"], place, f"{where}.score"),
        selection=validated(SelectionConfig, own["selection"], place, f"{where}.selection"),
        training=training,
        rl=validated(RLConfig, rl, place, f"{where}.rl") if practises else None,
        tasks=validated(TaskConfig, merged(common, written.tasks), place, f"{where}.tasks") if practises else None,
        **options,
    )


def _option(name: str, written: ConditionTable, raw: Mapping[str, Any], place: str, where: str, practises: bool) -> Any:
    """An optional table of the condition laid over the file's; None where neither has it or the condition says no.

    An empty table is one that is written: it asks for the thing as it is by default.
    """
    own, common = getattr(written, name), raw.get(name, {})
    writes = name in written.model_fields_set
    if own is False or not (writes or name in raw):
        return None
    if practises and name in SUPERVISED_OPTIONS:
        if writes:
            raise UserError(f"{place}: [{where}.{name}] is of no effect: this condition's objective is rl")
        return None
    return validated(OPTIONAL_TABLES[name], merged(common, own), place, f"{where}.{name}")


def _objective(written: ConditionTable, raw: Mapping[str, Any], place: str, where: str) -> str:
    """What the condition trains by; what it writes for the other objective would have no effect and is refused."""
    said = {**raw.get("training", {}), **written.training}.get("objective")
    practice = [key for key in PRACTICE_KEYS if key in written.model_fields_set]
    supervised = [key for key in SUPERVISED_TABLES if key in written.model_fields_set]
    if said is not None:
        objective, because = str(said), f"training.objective is {said!r}"
    elif practice:
        objective, because = "rl", f"{practice[0]} is written"
    elif "rl" in raw or ("tasks" in raw and "data" not in raw):
        objective, because = "rl", f"the file has [{'rl' if 'rl' in raw else 'tasks'}]"
    else:
        objective, because = "sft", "nothing asks for reinforcement learning"
    foreign = {"rl": supervised, "sft": practice}.get(objective, [])
    if foreign:
        other = {"rl": "sft", "sft": "rl"}[objective]
        raise UserError(
            f"{place}: [{where}] {foreign[0]}: of no effect, since this condition's objective is {objective} "
            f"({because}); leave it out, or say training.objective = '{other}'"
        )
    return objective


def _rl(written: ConditionTable, raw: Mapping[str, Any], place: str, where: str) -> dict[str, Any]:
    """`[rl]`, the condition's own `rl`, and its two modes, which may stand beside its name."""
    modes = {key: value for key in ("advantage_mode", "transform_mode") if (value := getattr(written, key)) is not None}
    for key in modes:
        if key in written.rl:
            raise UserError(f"{place}: [{where}] {key} is written twice: directly and in rl; keep one of them")
    return merged(merged(raw.get("rl", {}), written.rl), modes)
