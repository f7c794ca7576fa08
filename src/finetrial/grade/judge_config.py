"""Configuration of judges: models that grade (`finetrial.judge` asks them)."""

import math
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from finetrial.records import Config

PROMPT_VERSION = 1
"""Raised whenever a built-in template or the wording of the second question changes."""

PARSER_VERSION = 1
"""Raised whenever a reply is read otherwise than before."""

SCALE = (1.0, 10.0)

EXECUTION = frozenset(
    {
        "base_url",
        "base_url_variable",
        "key_variable",
        "max_tokens_field",
        "concurrency",
        "retries",
        "wait_s",
        "longest_wait_s",
        "timeout_s",
        "budget_requests",
        "budget_tokens",
        "self_test",
        "drift_tolerance",
    }
)
"""Fields that change no judgment; what they leave undone is missing until it is asked again."""


class SelfTestConfig(Config):
    """What a judge must show on answers of known worth before its grades count."""

    items: int = Field(default=12, ge=1, description="tasks it is tried on, chosen by their content")
    top: float = Field(default=0.75, gt=0, le=1, description="a grade of at least this (in 0..1) is at the top")
    bottom: float = Field(default=0.25, ge=0, lt=1, description="a grade of at most this (in 0..1) is at the bottom")
    gold: float = Field(default=0.9, ge=0, le=1, description="least share of gold answers at the top")
    wrong: float = Field(default=0.9, ge=0, le=1, description="least share of wrong answers at the bottom")
    empty: float = Field(default=0.9, ge=0, le=1, description="least share of empty answers at the bottom")
    repeat: float = Field(default=0.9, ge=0, le=1, description="least share of answers graded alike when asked again")
    swap: float = Field(default=0.8, ge=0, le=1, description="pairwise: least share of pairs judged alike both ways")
    allow_failure: bool = Field(default=False, description="use the judge although it failed; the report says so")

    @model_validator(mode="after")
    def _apart(self) -> "SelfTestConfig":
        if self.top <= self.bottom:
            raise ValueError(f"top = {self.top:g} is not above bottom = {self.bottom:g}")
        return self


class JudgeConfig(Config):
    """A model that grades, behind a server that speaks the OpenAI protocol, and how it is asked."""

    model: str = Field(min_length=1, description="as the server calls it")
    revision: str = Field(
        default="",
        description="what tells builds of one name apart; another revision is another judge, and everything is judged "
        "again",
    )
    base_url: str | None = Field(
        default=None, description="such as http://localhost:8000/v1; default: what `base_url_variable` says"
    )
    base_url_variable: str = Field(default="OPENAI_BASE_URL", description="environment variable with the base URL")
    key_variable: str = Field(
        default="OPENAI_API_KEY", description="environment variable with the API key; the key itself stands nowhere"
    )
    kind: Literal["single", "pairwise"] = Field(
        default="single", description="one answer on a scale, or which of two answers is better"
    )
    scale: tuple[float, float] = Field(default=SCALE, description="single: worst and best score")
    rubric: str = Field(default="", description="what a good answer is; stands beside the rubric of an item")
    template: str | None = Field(
        default=None,
        description="Jinja text of the prompt with the fields question, options, reference, rubric, answer (pairwise: "
        "answer_a, answer_b), low and high; default: a template of finetrial's own",
    )
    against: str | None = Field(
        default=None,
        description="pairwise: the fact of a task (meta) that holds the answer compared with; default: its gold answer",
    )
    temperature: float | None = Field(default=0.0, ge=0, description="not sent where it is not given (`none`)")
    max_tokens: int = Field(default=1024, ge=1, description="most tokens of a reply")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="what the server calls it; OpenAI's reasoning models want the second"
    )
    repeats: int = Field(default=1, ge=1, description="how often each answer is judged; its grade is the mean")
    concurrency: int = Field(default=16, ge=1, description="requests at a time; execution only")
    retries: int = Field(default=5, ge=0, description="how often a request is tried again; execution only")
    wait_s: float = Field(default=0.5, gt=0, description="seconds before the first retry; doubles; execution only")
    longest_wait_s: float = Field(
        default=120.0, gt=0, description="longest wait that is made, also where the server asks for more"
    )
    timeout_s: float = Field(default=120.0, gt=0, description="seconds of silence after which a request has failed")
    budget_requests: int | None = Field(default=None, ge=1, description="most requests of one launch")
    budget_tokens: int | None = Field(
        default=None, ge=1, description="tokens of one launch after which no request is made; those on their way count"
    )
    self_test: SelfTestConfig = SelfTestConfig()
    drift_tolerance: float = Field(
        default=0.02, ge=0, lt=1, description="change of the frozen baseline's mean (in 0..1) that is never drift"
    )

    @field_validator("temperature", mode="before")
    @classmethod
    def _unsent(cls, value: Any) -> Any:
        """TOML has no null."""
        return None if value == "none" else value

    @field_validator("base_url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{parts.scheme}:... is no base URL; expected such as http://localhost:8000/v1")
            if parts.username or parts.password or parts.query:
                raise ValueError("a base URL carries no user, password or query; name a `key_variable` instead")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "JudgeConfig":
        low, high = self.scale
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"scale = [{low:g}, {high:g}]: expected the worst score, then a larger best one")
        if self.against is not None and self.kind != "pairwise":
            raise ValueError("against: only for kind = 'pairwise'")
        if self.kind == "pairwise" and self.scale != SCALE:
            raise ValueError("scale: only for kind = 'single'; a pair has a better answer or a tie")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest score of one judgment; a verdict on a pair is 1, 0.5 (tie) or 0."""
        return (0.0, 1.0) if self.kind == "pairwise" else self.scale

    def science(self) -> dict[str, Any]:
        """Everything that changes grades, in JSON types: the fields but those of execution, and the versions."""
        fields = self.model_dump(mode="json", exclude=set(EXECUTION))
        return {**fields, "prompt_version": PROMPT_VERSION, "parser_version": PARSER_VERSION}
