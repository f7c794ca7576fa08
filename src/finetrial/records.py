"""The nouns that cross layers: an example of training or test data, a task, its grade, and an outcome.

Everything below `campaign` speaks in these; nothing here computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from finetrial.identity import digest


class Config(BaseModel):
    """A frozen table of a campaign's TOML, kept beside the function that it configures.

    Unknown keys are errors. Every field carries its meaning and unit as `Field(description=...)`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """A truth value is no number and a text is neither: TOML says what it means."""
        allowed = str(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and "bool" not in allowed and ("int" in allowed or "float" in allowed):
            raise ValueError("expected a number, not a truth value")
        if isinstance(value, str) and allowed in ("<class 'bool'>", "<class 'int'>", "<class 'float'>"):
            raise ValueError(f"expected {allowed[8:-2]}, not a text")
        return value


Message = dict[str, Any]
"""`role` (system, user, assistant, tool), `content` (str), and where present `tool_calls`, a list of
`{"name": str, "arguments": str}` (arguments as the text the model wrote), and `name` (of the tool that answers)."""


@dataclass(frozen=True)
class Example:
    """One conversation: a row of a pool or an item of a suite."""

    id: str
    """Unique within its pool."""
    group: str
    """What must not straddle training and test: the task, problem or passage that the row is about."""
    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    """Names of the tools that were available, where the source tells (not only those used)."""
    resolved: bool | None = None
    """Whether the task was solved; None where the source does not tell (missing, not False)."""
    reward: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Source-specific facts in JSON types (trial, answer, hidden skill, ...); no part of the content."""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the messages: two rows with the same text are the same content, whatever their ids."""
        return digest([dict(message) for message in self.messages])


@dataclass(frozen=True)
class Task:
    """A prompt whose completions can be graded: a row of practice, or an item of a suite of tasks."""

    id: str
    """Unique within its source."""
    group: str
    """What must not straddle practice and test: the problem behind the wording."""
    messages: tuple[Message, ...]
    """The prompt; the assistant's turn comes next."""
    reference: str
    """What a grader compares with; never empty."""
    gold: str | None = None
    """A completion that must be graded 1, where the source knows one."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Source-specific facts in JSON types (choices, unit, entry of an environment, ...)."""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of all that a grade depends on: prompt, reference and facts (unit, choices, environment)."""
        return digest([[dict(message) for message in self.messages], self.reference, dict(self.meta)])


@dataclass(frozen=True)
class Grade:
    """What a grader says of one completion."""

    value: float | None
    """In [0, 1]; None when no grade could be given, which is missing and never 0."""
    reason: str = ""
    """Why there is no grade, or what was found."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measured number. The making half ends by writing these; the judging half begins by reading them."""

    condition: str
    seed: int | None
    """None for the frozen base, which has no training seed."""
    suite: str
    item: str
    sample: int
    metric: str
    value: float | None
    """None when the measurement is missing; never a stand-in number."""
    weight: float = 1.0
    group: str | None = None
    """Cluster of the item (several questions of one passage), where it has one."""
    suite_hash: str = ""
    """Hash of the suite's items, rendering and grader; values of different hashes are not comparable."""
