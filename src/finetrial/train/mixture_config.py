"""Configuration of mixtures of rows inside every batch (no torch here)."""

from typing import Literal

from pydantic import Field, field_validator

from finetrial.records import Config

Schedule = tuple[tuple[float, float], ...]


class PartConfig(Config):
    """`[[mixture.parts]]`: further rows that are mixed into every batch, such as replay of what must be kept."""

    name: str = Field(description="how logs and records call it")
    source: str = Field(description="as `data.source`")
    limit: int | None = Field(default=None, ge=1, description="read at most this many rows")
    ratio: float | Schedule = Field(
        description="share of every batch; or a curriculum [[progress, ratio], ...], piecewise linear over the run's "
        "progress in [0, 1]"
    )

    @field_validator("ratio")
    @classmethod
    def _possible(cls, ratio: "float | Schedule") -> "float | Schedule":
        points = ratio if isinstance(ratio, tuple) else ((0.0, ratio),)
        if not points or any(not 0 <= value < 1 for _, value in points):
            raise ValueError("a part's share lies in [0, 1); what is left is that of the selected rows")
        progress = [at for at, _ in points]
        if any(not 0 <= at <= 1 for at in progress) or progress != sorted(set(progress)):
            raise ValueError("progress rises from 0 to 1, each value once")
        return ratio


class MixtureConfig(Config):
    """`[mixture]`: what is mixed into the selected rows, in which proportion."""

    unit: Literal["rows", "tokens"] = Field(default="rows", description="what the ratios count")
    parts: tuple[PartConfig, ...] = Field(min_length=1)

    @field_validator("parts")
    @classmethod
    def _distinct(cls, parts: tuple[PartConfig, ...]) -> tuple[PartConfig, ...]:
        names = [part.name for part in parts]
        if len(set(names)) < len(names) or "selected" in names:
            raise ValueError("parts need names of their own, other than 'selected', which stands for the selection")
        return parts
