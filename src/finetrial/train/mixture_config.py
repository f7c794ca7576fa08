"""Configuration of mixtures of rows inside every batch (no torch here)."""

from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from finetrial.records import Config

Schedule = tuple[tuple[float, float], ...]

SELECTED = "selected"
"""How logs and records call the rows of the selection."""


class PartConfig(Config):
    """`[[mixture.parts]]`: further rows that are mixed into every batch, such as replay of what must be kept."""

    name: str = Field(min_length=1, description="how logs and records call it; names its order of rows")
    source: str = Field(
        description="as `data.source`; what [data] says of broken rows, duplicates and system messages holds here too. "
        "Rows that share id, group or content with a test are left out, as are rows with nothing to learn"
    )
    limit: int | None = Field(default=None, ge=1, description="read at most this many rows")
    ratio: float | Schedule = Field(
        description="share of every batch; or a curriculum [[progress, ratio], ...], piecewise linear over the run's "
        "progress in [0, 1] (0 at its first step, 1 at its last)"
    )

    @field_validator("ratio")
    @classmethod
    def _possible(cls, ratio: "float | Schedule") -> "float | Schedule":
        points = ratio if isinstance(ratio, tuple) else ((0.0, ratio),)
        if not points or any(not 0 <= value <= 1 for _, value in points):
            raise ValueError("a part's share lies in [0, 1]; what is left is that of the selected rows")
        progress = [at for at, _ in points]
        if any(not 0 <= at <= 1 for at in progress) or progress != sorted(set(progress)):
            raise ValueError("progress rises from 0 to 1, each value once")
        return ratio

    @property
    def points(self) -> Schedule:
        """(progress, share) of the curriculum; one of them where the share stays."""
        return self.ratio if isinstance(self.ratio, tuple) else ((0.0, self.ratio),)

    def share_at(self, progress: np.ndarray) -> np.ndarray:
        """Share at each progress in [0, 1]: linear between the points, constant before the first and after the last."""
        at, value = zip(*self.points, strict=True)
        return np.interp(progress, at, value)


class MixtureConfig(Config):
    """`[mixture]`: what is mixed into the selected rows, in which proportion."""

    unit: Literal["rows", "tokens"] = Field(
        default="rows", description="what the ratios count: rows, or the tokens of them that are learnt"
    )
    parts: tuple[PartConfig, ...] = Field(description="`[[mixture.parts]]`, one or more")

    @model_validator(mode="after")
    def _adds_up(self) -> "MixtureConfig":
        names = [part.name for part in self.parts]
        if not names:
            raise ValueError("it has no parts: give [[mixture.parts]], or leave the table out")
        if len(set(names)) < len(names) or SELECTED in names:
            raise ValueError(f"parts need names of their own, other than '{SELECTED}', which stands for the selection")
        corners = self._corners
        total = np.sum([part.share_at(corners) for part in self.parts], axis=0)
        if total.max() > 1 + 1e-9:
            raise ValueError(f"at progress {corners[total.argmax()]:g} the parts' shares add up to {total.max():g}")
        if total.min() > 1 - 1e-9:
            raise ValueError("the parts' shares always add up to 1: the selected rows would never be read")
        return self

    @property
    def by_name(self) -> tuple[PartConfig, ...]:
        """The parts in the order of their names, which is how they are numbered: 1, 2, ...; 0 are the selected rows."""
        return tuple(sorted(self.parts, key=lambda part: part.name))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the selected rows and the parts, as they are numbered."""
        return (SELECTED, *(part.name for part in self.by_name))

    @property
    def selected_share(self) -> float:
        """Mean share of the selected rows over a long run."""
        corners = self._corners
        return 1 - float(sum(np.trapezoid(part.share_at(corners), corners) for part in self.parts))

    @property
    def _corners(self) -> np.ndarray:
        return np.unique([0.0, 1.0, *(at for part in self.parts for at, _ in part.points)])
