"""Configuration of early stopping and of the choice among a run's checkpoints (no torch here)."""

from typing import Literal

from pydantic import Field

from finetrial.records import Config


class StoppingConfig(Config):
    """`[stopping]`: a guard that measures each run while it trains, stops it, and chooses the adapter that is kept."""

    suite: str = Field(description="suite of [split], [tasks] or [[suites]] that is watched; no contrast may use it")
    metric: str | None = Field(default=None, description="default: what suites of that kind measure first")
    every: int = Field(default=10, ge=1, description="steps from one measurement to the next")
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many measurements without improvement; unset: never for that"
    )
    threshold: float = Field(default=0.0, ge=0, description="least improvement that counts")
    floor: float | None = Field(
        default=None, ge=0, description="stop as soon as the metric is worse than the base's by more than this"
    )
    select: Literal["best", "last"] = Field(default="best", description="which adapter is kept and evaluated")
    items: int | None = Field(default=None, ge=1, description="measure on so many items of the suite; unset for all")
