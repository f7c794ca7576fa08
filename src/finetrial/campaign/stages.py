"""The stages that need a model, in the one dict `STAGES`; the only place that knows engine and store alike.

`train` turns a cohort of runs into artefacts of the store, `evaluate` turns adapters and suites into outcomes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetrial.model.base import Base

Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """The base, loaded once for a launch."""

    base: Base

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of the base."""
        return {}


STAGES: dict[str, Callable[..., Any]] = {}
