"""Reasons in plain words with numbers: why a contrast has its verdict."""

import math

from finetrial.analyze.contrast import AnalysisConfig, Verdict
from finetrial.analyze.families import Adjusted
from finetrial.analyze.prepare import Prepared
from finetrial.analyze.words import count, number


def because(
    p: Prepared,
    verdict: Verdict,
    subtype: str | None,
    interval: tuple[float, float] | None,
    adjusted: Adjusted,
    size: int,
    config: AnalysisConfig,
    needed: int | None,
    refusal: str,
) -> str:
    """One sentence for a contrast with an estimate; improvement is positive whatever the metric's direction."""
    assert p.estimate is not None
    gain = float(p.estimate.estimate)
    change = f"{p.contrast.candidate} {'improves' if gain >= 0 else 'worsens'} {p.metric} by {number(abs(gain))}"
    if interval is None:
        return (
            f"{change}, but no arrangement of {_runs(p)} can reach the level {number(config.alpha)}: "
            "the correction has no finite interval"
        )
    spread = f"improvement between {number(interval[0])} and {number(interval[1])}, {_level(adjusted, size, config)}"
    head = f"{change} against {p.contrast.baseline} ({spread}; {_runs(p)}, {count(p.n_items, 'item')})"
    margin = f"the margin {number(p.margin)}" if p.margin else "0"
    if refusal:
        return f"{head}, but {refusal}"
    if verdict == "CONFIRMED":
        return f"{head}: all of it lies above {margin}"
    if verdict == "FAILED":
        kind = {"HARMFUL": ", and below 0: it harms", "EQUIVALENT": ", within the margin on both sides"}
        return f"{head}: all of it lies below {margin}{kind.get(subtype or '', '') if p.margin else ': it harms'}"
    more = (
        f"about {needed} runs per condition would decide if the estimate and its variance stand"
        if needed is not None
        else "more runs alone would not decide, more items might"
    )
    return f"{head}: it contains {margin}; {more}"


def cannot(p: Prepared) -> str:
    """One sentence for a contrast without an interval."""
    if p.problem:
        return p.problem
    a, b = p.contrast.candidate, p.contrast.baseline
    if p.n_seeds == (0, 0):
        return f"{a} and {b} are two checkpoints without training seeds: nothing can be said about recipes"
    single = [name for name, n in ((a, p.n_seeds[0]), (b, p.n_seeds[1])) if n == 1]
    if single:
        return (
            f"{' and '.join(single)} {'has' if len(single) == 1 else 'have'} one run: the items tell about this "
            "checkpoint, not about the recipe, whose spread between seeds is unknown; at least 3 runs are required"
        )
    return f"the difference in {p.metric} never varies between runs or items: there is no spread to judge by"


def _runs(p: Prepared) -> str:
    a, b = p.n_seeds
    if 0 in p.n_seeds:
        return f"{count(max(a, b), 'run')} against the frozen base"
    return f"{a} against {b} runs{', paired by seed' if p.paired else ''}"


def _level(adjusted: Adjusted, size: int, config: AnalysisConfig) -> str:
    # As many digits as tell the level apart from 100 %: looks spend levels such as 0.0003.
    percent = f"{100 * (1 - config.alpha):.{2 + math.ceil(-math.log10(config.alpha))}g}"
    if size == 1 or config.correction == "none":
        return f"{percent} % interval"
    return f"{percent} % over a family of {size}"
