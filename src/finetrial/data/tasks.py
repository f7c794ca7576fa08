"""Tasks: prompts whose completions can be graded."""

from pydantic import Field

from finetrial.grade.config import GraderConfig
from finetrial.records import Config


class TaskConfig(Config):
    """`[tasks]`: what runs of reinforcement learning practise on, and what everything is examined on."""

    source: str = Field(
        default="world:arithmetic?count=4000&seed=1",
        description="`world:NAME?count=N&seed=S`, `gym:NAME?count=N&seed=S` (reasoning-gym), `env:NAME` (verifiers), "
        "`hf:NAME[:config][@split]`, or JSON lines with question and answer",
    )
    limit: int | None = Field(default=None, ge=1, description="read at most this many tasks")
    instruction: str = Field(default="", description="appended to each question, on a line of its own")
    system: str = Field(default="", description="system message before each question; empty for none")
    grader: GraderConfig = GraderConfig()
