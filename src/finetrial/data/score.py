"""Scores of trajectory quality: a gate with reasons, one column per dimension, and their composite.

Shapes: N rows of the pool. NaN is missing; a missing value never becomes a number unless `fallback` names it.
"""

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from finetrial.data.dimensions import DIMENSIONS, NAN, DimensionConfig, trajectory
from finetrial.data.distribution import correlations, distribution, flags
from finetrial.errors import UserError, nearest
from finetrial.records import Example

V3: Mapping[str, Any] = {
    "error_test": "keyword",
    "step_reference": "group",
    "diversity_over": "used",
    "fallback": {
        "error_retry": 1.0,
        "step_ratio": 0.5,
        "action_diversity": 0.0,
        "observation_utilisation": 1.0,
    },
}
"""Options of the published score v3; `corrected` is what the fields' defaults say."""


class ScoreConfig(DimensionConfig):
    """`[score]`: gate, dimensions and weights. `version` sets the options that are not given."""

    version: Literal["v3", "corrected"] = Field(
        default="corrected",
        description="v3 is the published score of trajectory selection; corrected mends its error test, step "
        "reference and diversity, and leaves undefined dimensions missing. Options given beside it win",
    )
    efficiency: tuple[str, ...] = Field(default=("error_retry", "step_ratio"), description="dimensions of efficiency")
    style: tuple[str, ...] = Field(
        default=("action_diversity", "observation_utilisation"), description="dimensions of style"
    )
    efficiency_weight: float = Field(default=0.5, ge=0, description="weight of efficiency in the composite")
    style_weight: float = Field(default=0.5, ge=0, description="weight of style in the composite")
    require_resolved: bool = Field(default=True, description="the gate asks for solved tasks; unknown does not pass")
    require_parseable: bool = Field(default=True, description="the gate asks for whole turns, calls and observations")
    min_truncation_ratio: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="least share of a row's tokens that fits the training context (model.max_length)",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("version") == "v3":
            return {**V3, **given}
        return given

    @model_validator(mode="after")
    def _known(self) -> "ScoreConfig":
        included = [*self.efficiency, *self.style]
        for name in [*included, *self.fallback]:
            if name not in DIMENSIONS:
                raise ValueError(f"unknown dimension {name!r}{nearest(name, DIMENSIONS)}; {', '.join(DIMENSIONS)}")
        repeated = [name for name, times in Counter(included).items() if times > 1]
        if repeated:
            raise ValueError(f"{repeated[0]} counts twice in the composite")
        if not included or self.efficiency_weight + self.style_weight == 0:
            raise ValueError("the composite is empty: give it a dimension and a weight")
        wrong = [name for name, value in self.fallback.items() if not 0 <= value <= 1]
        if wrong:
            raise ValueError(f"fallback of {wrong[0]} is {self.fallback[wrong[0]]}; expected a number in [0, 1]")
        return self

    def identity(self) -> dict[str, Any]:
        """What enters a key: these options and the versions of the dimensions."""
        versions = {name: dimension.version for name, dimension in DIMENSIONS.items()}
        return {"options": self.model_dump(mode="json"), "dimensions": versions}


@dataclass(frozen=True)
class ScoreTable:
    """A scored pool, in the order in which it was given. Every sequence and array has N entries."""

    config: ScoreConfig
    max_length: int
    """Tokens of the training context that the gate was checked against."""
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    content_hashes: tuple[str, ...]
    resolved: tuple[bool | None, ...]
    gate: tuple[tuple[str, ...], ...]
    """Reasons why a row does not pass the gate; empty where it passes."""
    tokens: np.ndarray
    turns: np.ndarray
    columns: dict[str, np.ndarray]
    """Every dimension, `efficiency`, `style` and `composite`; float64, NaN is missing."""
    defaulted: dict[str, np.ndarray]
    """Dimension -> bool, True where `fallback` stands in for an undefined value."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def passed(self) -> np.ndarray:
        """bool (N,), True where the gate passes."""
        return np.array([not reasons for reasons in self.gate], dtype=bool)

    def ranking(self, by: str = "composite", without: str | None = None) -> np.ndarray:
        """The numbers a selection ranks by, float64 (N,): a column, `tokens` or `turns`.

        `without` leaves one dimension, or `efficiency` or `style` whole, out of the composite: without error_retry
        it is the weighted mean of step_ratio and style, and so on.

        Raises:
            UserError: no such column, or `without` names nothing that the column is made of.
        """
        if without is not None:
            parts = [name for name in ("efficiency", "style") if by in (name, "composite")]
            members = [*parts, *(name for part in parts for name in getattr(self.config, part))]
            members = [name for name in members if name != by]
            if without not in members:
                known = f"{by} is made of {', '.join(members)}" if members else f"{by} has no parts"
                raise UserError(f"selection.without is {without!r}{nearest(without, members)}; {known}")
            return aggregates(self.columns, self.config, without)[by]
        if by in ("tokens", "turns"):
            return getattr(self, by).astype(np.float64)
        if by not in self.columns:
            known = [*self.columns, "tokens", "turns"]
            raise UserError(f"selection.by is {by!r}{nearest(by, known)}; there are {', '.join(known)}")
        return self.columns[by]

    def to_arrow(self) -> pa.Table:
        """One row per Example; missing numbers are null."""
        named = {
            "id": pa.array(self.ids),
            "group": pa.array(self.groups),
            "content_hash": pa.array(self.content_hashes),
            "resolved": pa.array(self.resolved, pa.bool_()),
            "tokens": pa.array(self.tokens),
            "turns": pa.array(self.turns),
            "gate": pa.array(self.gate, pa.list_(pa.string())),
        }
        return pa.table(named | {name: pa.array(column, from_pandas=True) for name, column in self.columns.items()})

    def facts(self) -> dict[str, Any]:
        """Gate reasons, distribution per column (all rows, and those that pass), rank correlations and flags."""
        passed = self.passed
        none = np.zeros(len(self), dtype=bool)
        stand_ins = {name: self.defaulted.get(name, none) for name in self.columns}
        spread = {name: distribution(column, stand_ins[name]) for name, column in self.columns.items()}
        gated = {name: distribution(column[passed], stand_ins[name][passed]) for name, column in self.columns.items()}
        flagged = flags(gated if passed.any() else spread, tuple(DIMENSIONS))
        for name, facts in spread.items():
            facts["flagged"] = any(flag["dimension"] == name for flag in flagged)
        return {
            "rows": len(self),
            "passed": int(passed.sum()),
            "max_length": self.max_length,
            "gate": dict(sorted(Counter(reason for reasons in self.gate for reason in reasons).items())),
            "dimensions": spread,
            "dimensions_passed": gated,
            "correlation": correlations(self.columns | {"tokens": self.tokens.astype(np.float64)}),
            "flags": flagged,
        }


def score(examples: Sequence[Example], config: ScoreConfig, tokens: Sequence[int], max_length: int) -> ScoreTable:
    """Score a pool.

    Args:
        examples: N rows.
        tokens: rendered length of each row before truncation, as the caller's tokenizer counts.
        max_length: tokens of the training context.

    The composite is the mean of efficiency and style weighted by `efficiency_weight` and `style_weight`, each the
    mean of its dimensions; a missing dimension is left out of its mean, and what has no part left is missing.

    Raises:
        ValueError: `tokens` does not fit `examples`.
    """
    if len(tokens) != len(examples):
        raise ValueError(f"{len(tokens)} token counts for {len(examples)} examples")
    turns = [sum(message["role"] == "assistant" for message in example.messages) for example in examples]
    references = _reference_turns(examples, turns, config)
    values: dict[str, list[float]] = {name: [] for name in DIMENSIONS}
    gate: list[tuple[str, ...]] = []
    for example, reference, length in zip(examples, references, tokens, strict=True):
        run = trajectory(example, reference)
        for name, dimension in DIMENSIONS.items():
            values[name].append(dimension.function(run, config))
        gate.append(_gate(example, config, length, max_length))
    columns = {name: np.array(column, dtype=np.float64) for name, column in values.items()}
    defaulted: dict[str, np.ndarray] = {}
    for name, stand_in in config.fallback.items():
        defaulted[name] = np.isnan(columns[name])
        columns[name][defaulted[name]] = stand_in
    columns |= aggregates(columns, config)
    return ScoreTable(
        config=config,
        max_length=max_length,
        ids=tuple(example.id for example in examples),
        groups=tuple(example.group for example in examples),
        content_hashes=tuple(example.content_hash for example in examples),
        resolved=tuple(example.resolved for example in examples),
        gate=tuple(gate),
        tokens=np.array(tokens, dtype=np.int64),
        turns=np.array(turns, dtype=np.int64),
        columns=columns,
        defaulted=defaulted,
    )


def aggregates(
    columns: Mapping[str, np.ndarray], config: ScoreConfig, without: str | None = None
) -> dict[str, np.ndarray]:
    """`efficiency`, `style` and `composite`, float64 (N,), with one dimension or one of the two left out."""
    rows = len(next(iter(columns.values())))
    means: dict[str, np.ndarray] = {}
    for part, members in (("efficiency", config.efficiency), ("style", config.style)):
        kept = [columns[name] for name in members if without not in (name, part)]
        means[part] = _mean(kept, [1.0] * len(kept), rows)
    weights = [config.efficiency_weight, config.style_weight]
    return means | {"composite": _mean([means["efficiency"], means["style"]], weights, rows)}


def _mean(columns: Sequence[np.ndarray], weights: Sequence[float], rows: int) -> np.ndarray:
    total, mass = np.zeros(rows), np.zeros(rows)
    for column, weight in zip(columns, weights, strict=True):
        present = ~np.isnan(column)
        total[present] += weight * column[present]
        mass[present] += weight
    return np.divide(total, mass, out=np.full(rows, NAN), where=mass > 0)


def _reference_turns(examples: Sequence[Example], turns: Sequence[int], config: ScoreConfig) -> list[float]:
    """Median turns of the resolved runs of each row's group (with or without the row itself); NaN without any."""
    solved: dict[str, list[int]] = defaultdict(list)
    for example, count in zip(examples, turns, strict=True):
        if example.resolved:
            solved[example.group].append(count)
    for counts in solved.values():
        counts.sort()
    references: list[float] = []
    for example, count in zip(examples, turns, strict=True):
        counts = solved.get(example.group, [])
        if config.step_reference == "others" and example.resolved:
            own = bisect_left(counts, count)
            counts = counts[:own] + counts[own + 1 :]
        middle = len(counts) // 2
        references.append((counts[middle] + counts[~middle]) / 2 if counts else NAN)
    return references


def _gate(example: Example, config: ScoreConfig, tokens: int, max_length: int) -> tuple[str, ...]:
    reasons: list[str] = []
    if config.require_resolved and not example.resolved:
        reasons.append("resolution unknown" if example.resolved is None else "not resolved")
    if config.require_parseable:
        problem = parse_problem(example)
        if problem is not None:
            reasons.append(f"not parseable: {problem}")
    if tokens < 1:
        reasons.append("no tokens")
    elif min(tokens, max_length) / tokens < config.min_truncation_ratio:
        reasons.append("truncated")
    return tuple(reasons)


def parse_problem(example: Example) -> str | None:
    """Why the turns of an Example do not fit together (calls, arguments, observations), or None."""
    open_calls = spoken = 0
    for message in example.messages:
        role = message["role"]
        if role == "assistant":
            calls = message.get("tool_calls", ())
            if not calls and not message["content"].strip():
                return "an empty assistant turn"
            for call in calls:
                if not call["name"]:
                    return "a call without a name"
                if call["arguments"].lstrip().startswith("{") and not _is_json(call["arguments"]):
                    return "arguments that are not JSON"
            spoken += 1
            open_calls = len(calls)
        elif role == "tool":
            if open_calls == 0:
                return "an observation without a call"
            open_calls -= 1
    return None if spoken else "no assistant turn"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True
