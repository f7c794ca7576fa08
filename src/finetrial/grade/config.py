"""Configuration of grading."""

from typing import Literal

from pydantic import Field

from finetrial.records import Config


class GraderConfig(Config):
    """How a completion is graded against a task's reference."""

    kind: Literal["auto", "exact", "numeric", "math", "choice", "function", "environment"] = Field(
        default="auto", description="auto: what the source of the tasks brings, else exact"
    )
    answer: str | None = Field(
        default=None,
        description="regular expression whose last match's first group is the answer; default: `Answer:`, `####`, "
        "\\boxed, else the whole text",
    )
    tolerance: float = Field(default=1e-6, ge=0, description="relative tolerance of `numeric`")
    function: str | None = Field(default=None, description="path/to/file.py:name for kind `function`")
    timeout_s: float = Field(default=5.0, gt=0, description="seconds of one call of a user's function or of `math`")
    memory_mb: int = Field(default=1024, ge=64, description="memory of the worker that runs a user's function")
    workers: int = Field(default=1, ge=1, description="worker processes; execution only")
