"""What became of the sets of completions that a run drew: counts, first and recent means, and alarms."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from finetrial.train.gradient_share import PROBES
from finetrial.train.rollouts import Group
from finetrial.train.set_scores import SetScore

RECENT = 3
"""Samplings whose mean is compared with the first one: a single one may be low by chance."""

COLLAPSED = 0.5
"""Share of its first value below which diversity or quality counts as collapsed."""


@dataclass(frozen=True)
class DrawnSet:
    """The completions of one prompt, scored."""

    group: Group
    """Its grades are qualities."""
    scored: SetScore | None
    missing: str = ""
    """Why there is no score."""


@dataclass
class SetLog:
    """What became of a run's sets; a checkpoint keeps it."""

    samplings: int = 0
    """Steps with a set that has a score."""
    sets: int = 0
    missing_sets: int = 0
    equal_sets: int = 0
    """Sets that taught nothing: no completion was worth more than another."""
    flat_sets: int = 0
    """Sets of which diversity said nothing: it was the same, below 1, whichever completion was left out."""
    saturated_sets: int = 0
    """Sets whose diversity had nothing left to gain: it was 1 whichever completion was left out."""
    first: dict[str, float] = field(default_factory=dict)
    """Mean diversity and quality of the first sampling."""
    recent: list[dict[str, float]] = field(default_factory=list)
    alarms: dict[str, str] = field(default_factory=dict)
    """What collapsed -> the sentence that tells so."""

    def enter(self, drawn: Sequence[DrawnSet], step: int) -> dict[str, float]:
        """Count a sampling, and raise the alarm where diversity or quality has collapsed.

        Args:
            drawn: the sets of the step.
            step: 1, 2, ...

        Returns:
            Mean diversity, quality and score of the sets; empty where none has a score.
        """
        scored = [one.scored for one in drawn if one.scored is not None]
        self.sets += len(drawn)
        self.missing_sets += len(drawn) - len(scored)
        self.equal_sets += sum(not one.advantage_N.any() for one in scored)
        self.flat_sets += sum(one.flat for one in scored)
        self.saturated_sets += sum(one.saturated for one in scored)
        if not scored:
            return {}
        self.samplings += 1
        whole = self.sets - self.missing_sets
        if self.samplings == PROBES and self.saturated_sets == whole:
            self.alarms["saturated"] = (
                f"saturated: the diversity of all {whole} sets drawn until step {step} is at its maximum of 1, "
                "whichever completion is left out; the term has no gradient from it until completions of a prompt "
                "resemble one another"
            )
        means = {
            name: float(np.mean([getattr(one, name) for one in scored])) for name in ("diversity", "quality", "score")
        }
        watched = {name: means[name] for name in ("diversity", "quality")}
        self.first = self.first or watched
        self.recent = [*self.recent, watched][-RECENT:]
        for name, first in self.first.items():
            now = sum(one[name] for one in self.recent) / len(self.recent)
            if name not in self.alarms and now < COLLAPSED * first:
                self.alarms[name] = (
                    f"collapse: mean {name} of sets of completions is {now:.3g} at step {step}, below half of the "
                    f"{first:.3g} that it was at first"
                )
        return means

    @property
    def deaf(self) -> bool:
        """Whether the measure of diversity has told nothing apart since the first sampling, though there was something
        to gain."""
        idle = self.flat_sets + self.saturated_sets
        return self.samplings >= PROBES and self.flat_sets > 0 and idle == self.sets - self.missing_sets
