"""Campaign TOML -> frozen, resolved `Spec`. Nothing here reads data or imports torch.

A condition inherits what it leaves out. Unknown keys are errors that name the file, the table and the nearest key,
because a misspelt key that is silently ignored runs another experiment than the one written down; so does a table
that has no effect, and it is refused as well.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.looks import LooksConfig
from finetrial.analyze.metrics import known
from finetrial.campaign.conditions import NAME, Condition, condition
from finetrial.campaign.contrasts import METRICS, resolved, suite_kinds
from finetrial.campaign.settings import (
    CampaignConfig,
    CommonTasksConfig,
    DataConfig,
    EvaluationConfig,
    File,
    LoggingConfig,
    SqueezeConfig,
    SuiteConfig,
)
from finetrial.campaign.tables import override, validated
from finetrial.data.score import ScoreConfig
from finetrial.data.split import SplitConfig
from finetrial.errors import UserError, nearest
from finetrial.model.config import ModelConfig
from finetrial.records import Config


class Spec(Config):
    """A campaign, fully resolved: what enters the manifest."""

    campaign: CampaignConfig
    model: ModelConfig
    data: DataConfig
    score: ScoreConfig
    split: SplitConfig | None
    """None: no pool is read, and no test sets are drawn from one."""
    tasks: CommonTasksConfig | None
    """None: no tasks are held out."""
    evaluation: EvaluationConfig
    suites: tuple[SuiteConfig, ...]
    analysis: AnalysisConfig
    looks: LooksConfig | None
    conditions: tuple[Condition, ...]
    contrasts: tuple[Contrast, ...]
    contrasts_declared: bool
    """False where the file has none and what is compared is the default."""
    squeeze: SqueezeConfig | None
    logging: LoggingConfig

    def condition(self, name: str) -> Condition:
        """The condition called `name`."""
        return next(condition for condition in self.conditions if condition.name == name)

    @property
    def supervised(self) -> tuple[Condition, ...]:
        """Conditions that train on selected rows."""
        return tuple(condition for condition in self.conditions if condition.rl is None)

    @property
    def practising(self) -> tuple[Condition, ...]:
        """Conditions that train on their own completions of tasks."""
        return tuple(condition for condition in self.conditions if condition.rl is not None)

    @property
    def by_default(self) -> str | None:
        """What is compared where the file declares no contrasts, in words; None where it does, or nothing is."""
        if self.contrasts_declared or not self.contrasts:
            return None
        listed = "; ".join(contrast.name for contrast in self.contrasts)
        return f"no [[contrasts]] are declared; {len(self.contrasts)} by default: {listed}"


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a campaign file, with what it extends, and apply `a.b=c` overrides.

    Raises:
        UserError: the file is absent or no TOML, a key is unknown, a value is out of range, names clash, or a
            contrast names something that does not exist; the message names file, table, key and nearest key.
    """
    raw = _tables(path, ())
    for one in overrides:
        override(raw, one)
    return resolve(raw, str(path), default_name=path.stem)


def _tables(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """The tables of a file. `extends = "other.toml"`, found beside it, gives what it leaves out (`_extended`)."""
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.toml")]) if path.parent.is_dir() else ""
        by = f" (which {extended_by[-1]} extends)" if extended_by else ""
        raise UserError(f"{path}: no such campaign file{by}{near}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    if "extends" not in raw:
        return raw
    name = raw.pop("extends")
    if not isinstance(name, str):
        raise UserError(f"{path}: extends is {name!r}; expected the name of a campaign file beside it")
    if path in extended_by:
        raise UserError(f"{path}: extends itself, by way of {', '.join(str(p) for p in extended_by)}")
    return _extended(_tables(path.parent / name, (*extended_by, path)), raw)


def _extended(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over each other, what is written last holds; but lists of tables (suites, ...) are appended."""
    both = {**common, **own}
    for key in common.keys() & own.keys():
        theirs, mine = common[key], own[key]
        if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
            both[key] = _extended(theirs, mine)
        elif isinstance(theirs, list) and isinstance(mine, list) and any(isinstance(one, Mapping) for one in theirs):
            both[key] = [*theirs, *mine]
    return both


def resolve(raw: Mapping[str, Any], place: str = "campaign", default_name: str = "campaign") -> Spec:
    """Resolve the tables of a campaign (as TOML gives them) into a `Spec`; `place` names them in errors."""
    file = validated(File, raw, place, "")
    name = file.campaign.name or default_name
    if not NAME.fullmatch(name):
        raise UserError(f"{place}: [campaign] name {name!r}: expected letters, digits and . _ + -")
    conditions = tuple(
        condition(table, i, raw, file.campaign, place)
        for i, table in enumerate(raw.get("campaign", {}).get("conditions", []))
    )
    if not conditions:
        raise UserError(
            f"{place}: no [[campaign.conditions]]: a campaign compares at least one condition with the base"
        )
    _check_names(conditions, place)
    _check_tables(raw, conditions, place)
    if file.campaign.max_steps is not None and {"max_steps", "epochs"} & set(raw.get("training", {})):
        raise UserError(f"{place}: [campaign] max_steps and [training] both say how long to train; keep one of them")
    practised = any(c.rl is not None for c in conditions)
    pool = any(c.rl is None for c in conditions) or bool({"split", "data"} & set(raw))
    tasks = practised or "tasks" in raw
    primary = file.campaign.primary_metric or METRICS["tasks" if practised else "perplexity"][0]
    _check_suites(file, pool, tasks, place)
    kinds = suite_kinds(file, pool, tasks)
    spec = Spec(
        campaign=file.campaign.model_copy(update={"name": name, "primary_metric": primary, "conditions": ()}),
        model=file.model,
        data=file.data,
        score=file.score,
        split=file.split if pool else None,
        tasks=file.tasks if tasks else None,
        evaluation=file.evaluation,
        suites=file.suites,
        analysis=file.analysis,
        looks=file.looks,
        conditions=conditions,
        contrasts=resolved(file, conditions, kinds, primary, place),
        contrasts_declared=bool(file.contrasts),
        squeeze=file.squeeze,
        logging=file.logging,
    )
    _check_looks(spec, place)
    return spec


def _check_names(conditions: Sequence[Condition], place: str) -> None:
    names = [condition.name for condition in conditions]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{place}: two conditions are called {name!r}; give each its own name")


def _check_tables(raw: Mapping[str, Any], conditions: Sequence[Condition], place: str) -> None:
    """Refuse tables that no condition reads."""
    if "rl" in raw and not any(condition.rl for condition in conditions):
        raise UserError(f"{place}: [rl] is of no effect: every condition's objective is sft")
    if "selection" in raw and all(condition.rl for condition in conditions):
        raise UserError(
            f"{place}: [selection] is of no effect: every condition's objective is rl; say training.objective = 'sft' "
            "where rows are to be learnt from"
        )


def _check_suites(file: File, pool: bool, tasks: bool, place: str) -> None:
    names = [*suite_kinds(file.model_copy(update={"suites": ()}), pool, tasks), *(suite.name for suite in file.suites)]
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(f"{place}: suite name {name!r}: expected letters, digits and . _ + -")
        if names.count(name) > 1:
            raise UserError(f"{place}: two suites are called {name!r}; give each its own name")


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
