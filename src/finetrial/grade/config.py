"""Configuration of grading."""

from typing import Literal

from pydantic import Field, model_validator

from finetrial.grade.judge_config import JudgeConfig
from finetrial.records import Config

Kind = Literal["auto", "exact", "numeric", "math", "choice", "function", "environment", "judge", "code"]


class GraderConfig(Config):
    """How a completion is graded against a task's reference."""

    kind: Kind = Field(default="auto", description="auto: what the source of the tasks brings, else exact")
    answer: str | None = Field(
        default=None,
        description="regular expression whose last match's first group is the answer; default: the last of "
        "`Answer:`, `####`, \\boxed and <answer> in the text, else the whole text",
    )
    relaxed: bool = Field(
        default=False,
        description="`choice`: an option's text and `B) text` count beside its letter; `numeric`: where the answer is "
        "no number, the last number of the text counts",
    )
    tolerance: float = Field(default=1e-6, ge=0, description="relative tolerance of `numeric`")
    function: str | None = Field(
        default=None,
        description="kind `function`: path/to/file.py:name or package.module:name, called with (completion, reference, "
        "meta) or (completion, meta), gives a number in [0, 1]",
    )
    judge: JudgeConfig | None = Field(default=None, description="for kind `judge`: the model that grades")
    timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="seconds of one call of a user's function, of an environment or of `math`; "
        "processor seconds of `code`",
    )
    memory_mb: int = Field(default=1024, ge=64, description="memory of the worker that runs what may misbehave")
    network: Literal["none", "allowed"] = Field(
        default="none",
        description="`code`: none runs it in namespaces of its own or not at all; allowed runs it without them, where "
        "it sees the network and may write what its user may",
    )
    workers: int = Field(default=1, ge=1, description="worker processes; execution only")

    @model_validator(mode="after")
    def _consistent(self) -> "GraderConfig":
        if self.kind == "function" and self.function is None:
            raise ValueError("kind is function, but no function is named; expected function = 'path/to/file.py:name'")
        if self.function is not None and self.kind != "function":
            raise ValueError(f"a function is named, but kind is {self.kind}; expected kind = 'function'")
        if self.kind == "function" and self.answer is not None:
            raise ValueError("a function is given the whole completion; `answer` has no effect on it")
        if self.kind == "judge" and self.judge is None:
            raise ValueError("kind is judge, but no judge is given; expected judge = { model = '...' }")
        if self.judge is not None and self.kind != "judge":
            raise ValueError(f"a judge is given, but kind is {self.kind}; expected kind = 'judge'")
        if self.kind == "judge" and self.answer is not None:
            raise ValueError("a judge reads the whole completion; `answer` has no effect on it")
        if self.kind == "code" and self.answer is not None:
            raise ValueError("code is taken from the completion's fenced block; `answer` has no effect on it")
        return self
