"""Power before spending: what the declared contrasts can detect with the planned seeds and items.

The noise is taken from outcomes of an earlier launch of the campaign, else from `[analysis.variance]`, else it is
unknown and nothing but the least attainable p is said. Nothing here imports torch.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.permute import attainable_p
from finetrial.analyze.power import Design, Variances, mde, pilot
from finetrial.analyze.table import OutcomeTable
from finetrial.analyze.verdict import MIN_SEEDS
from finetrial.analyze.words import count, number
from finetrial.campaign.folder import Folder
from finetrial.campaign.interim import schedule_of
from finetrial.campaign.plan import Suite
from finetrial.campaign.settings import BASE
from finetrial.campaign.spec import Spec
from finetrial.errors import UserError

TARGET = 0.8
"""Chance of a verdict at the detectable effect; Cohen's (1988) convention."""


@dataclass(frozen=True)
class Detectable:
    """What one design can detect, for all contrasts that share it."""

    contrasts: tuple[str, ...]
    suite: str
    metric: str
    margin: float
    n_seeds: int
    items: int
    """Independent items: groups of the suite, as the variance counts them."""
    paired: bool
    frozen: bool
    level: float
    """Two-sided level of the family's first step (and of the last look, where looks are planned)."""
    attainable_p: float
    effect: float | None
    """Improvement that is confirmed with probability `TARGET`; None where the noise is unknown."""
    resolution: float | None
    """Distance from the margin that is decided with that probability, on either side of it."""
    source: str
    """Where the variance components come from, or why there are none."""
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The contrast, or how many on which suite."""
        if len(self.contrasts) == 1:
            return self.contrasts[0]
        return f"{len(self.contrasts)} contrasts on {self.suite}"

    @property
    def sentence(self) -> str:
        """One line: design, level, detectable effect beside the margin, attainable p, source of the components."""
        kind = "seeds against the frozen base" if self.frozen else "paired seeds" if self.paired else "seeds per arm"
        design = f"{self.n_seeds} {kind}, {count(self.items, 'independent item')}, level {number(self.level)}"
        least = f"least p of rearranging the seeds {number(self.attainable_p)}"
        if self.effect is None:
            return f"{design}: {least}; no detectable effect can be given: {self.source}"
        if math.isinf(self.effect):
            return f"{design}: {least}; nothing can be confirmed, fewer than {MIN_SEEDS} seeds carry no verdict"
        found = f"an improvement of {number(self.effect)} in {self.metric} is confirmed with probability {TARGET:g}"
        return f"{design}: {found}, margin {number(self.margin)}; {least}; noise from {self.source}"

    def as_dict(self) -> dict[str, Any]:
        """JSON types, an effect out of reach as None."""
        finite = {
            name: value if value is None or math.isfinite(value) else None
            for name, value in (("effect", self.effect), ("resolution", self.resolution))
        }
        return {**asdict(self), **finite, "name": self.name, "sentence": self.sentence}


def detectable(spec: Spec, suites: Sequence[Suite], logs: Path) -> list[Detectable]:
    """Every design of the declared contrasts, contrasts of the same design and noise together."""
    groups = {suite.name: suite.groups for suite in suites}
    outcomes = Folder(logs, spec.campaign.name).path / "outcomes.parquet"
    table = OutcomeTable.read(outcomes) if outcomes.is_file() else None
    noise = {contrast.name: _noise(spec, contrast, table) for contrast in spec.contrasts}
    shared: dict[tuple[Any, ...], list[Contrast]] = {}
    for c in spec.contrasts:
        same = (c.suite, c.minus_suite, c.metric, c.margin, c.family, BASE in (c.candidate, c.baseline), noise[c.name])
        shared.setdefault(same, []).append(c)
    return [_design(spec, members, groups, *noise[members[0].name]) for members in shared.values()]


def _noise(spec: Spec, contrast: Contrast, table: OutcomeTable | None) -> tuple[Variances | None, str]:
    """(variance components, where they are from or why there are none)."""
    if contrast.minus_suite is not None:
        return None, "for a difference in differences the components of both suites together are not known"
    declared = spec.analysis.variance
    why = "no earlier launch and no [analysis.variance] tells the variance components"
    if table is not None:
        try:
            found = pilot(table, contrast, spec.analysis, spec.campaign.primary_metric)
        except UserError as error:
            why = f"the earlier launch does not tell ({error}), nor does [analysis.variance]"
        else:
            runs = " + ".join(str(n) for n in found.n_seeds if n)
            return found.upper, f"{runs} runs of an earlier launch (upper {found.confidence:.0%} bounds)"
    if declared is None:
        return None, why
    sds = (declared.seed_sd, declared.recipe_item_sd, declared.seed_item_sd, declared.sampling_sd)
    return Variances(*(sd**2 for sd in sds)), "[analysis.variance]"


def _design(
    spec: Spec, members: Sequence[Contrast], groups: dict[str, int], variances: Variances | None, source: str
) -> Detectable:
    first, seeds = members[0], len(spec.campaign.seeds)
    frozen = BASE in (first.candidate, first.baseline)
    paired = spec.analysis.pairing == "seed" and not frozen
    margin = spec.analysis.margin if first.margin is None else first.margin
    sharing = _sharing(spec.analysis, sum(c.family == first.family for c in spec.contrasts))
    alpha = schedule_of(spec, first.family).looks[-1].level if spec.looks is not None else spec.analysis.alpha
    items = groups[first.suite] + (groups[first.minus_suite] if first.minus_suite else 0)
    effect = resolution = None
    if variances is not None and min(seeds, items) >= 2:
        design = Design(seeds, items, paired=paired, frozen=frozen)
        resolution = mde(design, variances, target=TARGET, alpha=alpha, contrasts=sharing)
        effect = margin + resolution
    elif variances is not None:
        source = f"{count(seeds, 'seed')} and {count(items, 'item')} measure no spread"
    return Detectable(
        contrasts=tuple(contrast.name for contrast in members),
        suite=first.suite,
        metric=first.metric or spec.campaign.primary_metric,
        margin=margin,
        n_seeds=seeds,
        items=items,
        paired=paired,
        frozen=frozen,
        level=alpha / sharing,
        attainable_p=attainable_p(seeds, 0 if frozen else seeds, paired),
        effect=effect,
        resolution=resolution,
        source=source,
        warnings=_warnings(spec.analysis, margin, effect, resolution),
    )


def _sharing(analysis: AnalysisConfig, family_size: int) -> int:
    """Contrasts that share alpha at the first step, reckoned as Holm does; exact for Holm, cautious for the others."""
    return 1 if analysis.correction == "none" else family_size


def _warnings(
    analysis: AnalysisConfig, margin: float, effect: float | None, resolution: float | None
) -> tuple[str, ...]:
    if effect is None or resolution is None:
        return ()
    lines = []
    if analysis.effect is not None and effect > analysis.effect:
        lines.append(f"the improvement of {number(analysis.effect)} that is hoped for would not be confirmed")
    if margin > 0 and resolution > margin:
        lines.append(
            f"the margin cannot be decided: a recipe without any effect lies {number(margin)} below it, and only "
            f"{number(resolution)} is told apart"
        )
    return tuple(lines)
