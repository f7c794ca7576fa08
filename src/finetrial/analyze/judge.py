"""From outcomes and declared contrasts to findings: the one entry point of the statistics of recipes.

`judge` reads like the method: estimate every contrast, correct each family, decide each verdict, say why.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from finetrial.analyze import families
from finetrial.analyze.contrast import AnalysisConfig, Contrast, Finding, Verdict
from finetrial.analyze.estimate import Estimate, critical_value, effective_df, p_value
from finetrial.analyze.families import Adjusted
from finetrial.analyze.permute import (
    attainable_p,
    hedges_g,
    max_t_paired,
    max_t_unpaired,
    permute_labels,
    sign_flip,
)
from finetrial.analyze.prepare import Prepared, prepare
from finetrial.analyze.sentences import because, cannot
from finetrial.analyze.table import OutcomeTable
from finetrial.analyze.verdict import MIN_SEEDS, decide, seeds_needed, skew_critical
from finetrial.analyze.words import number
from finetrial.errors import UserError

LABELS = {
    "holm": "Holm",
    "dunnett": "Dunnett (one baseline, joint t)",
    "max_t": "max-|T| permutation (Westfall-Young)",
    "benjamini_hochberg": "Benjamini-Hochberg (exploratory: false discovery rate)",
    "none": "none",
}


def judge(
    table: OutcomeTable,
    contrasts: Sequence[Contrast],
    config: AnalysisConfig,
    *,
    primary_metric: str,
    integrity: Sequence[str] = (),
    given_up: Mapping[str, int] | None = None,
) -> list[Finding]:
    """One finding per contrast, in the order given.

    Args:
        table: the outcomes.
        contrasts: what was declared; contrasts with the same `family` share the error rate.
        config: error rate, margin, correction, pairing.
        primary_metric: metric of contrasts that name none.
        integrity: messages of failed integrity checks; any makes every verdict INVALID.
        given_up: family -> contrasts of it that are not judged here because they were given up or lack outcomes;
            they still count in its size.

    Raises:
        UserError: a contrast names what the table lacks, or a family does not fit its correction.
    """
    prepared = [prepare(table, contrast, config, primary_metric) for contrast in contrasts]
    members: dict[str, list[int]] = defaultdict(list)
    for position, p in enumerate(prepared):
        members[p.contrast.family].append(position)
    findings: dict[int, Finding] = {}
    for name, positions in members.items():
        family = [prepared[position] for position in positions]
        absent = (given_up or {}).get(name, 0)
        for position, p, adjusted in zip(positions, family, _correct(family, config, absent), strict=True):
            findings[position] = _finding(p, adjusted, len(family) + absent, config, integrity)
    return [findings[position] for position in range(len(prepared))]


def _judgeable(p: Prepared) -> bool:
    """Whether the contrast has runs enough to estimate the variance between them."""
    counts = [n for n in p.n_seeds if n]
    return p.estimate is not None and bool(counts) and min(counts) >= 2


def _correct(family: list[Prepared], config: AnalysisConfig, absent: int) -> list[Adjusted]:
    """The family's correction; contrasts without an estimate, and `absent` ones, still count in its size."""
    estimates = [p.estimate if _judgeable(p) else None for p in family]
    if config.correction in ("holm", "benjamini_hochberg", "none"):
        margins = [p.margin for p in family] + [0.0] * absent
        steps = families.by_steps([*estimates, *[None] * absent], margins, config.alpha, config.correction)
        return steps[: len(family)]
    first = family[0]
    if absent:
        raise UserError(
            f"family '{first.contrast.family}': correction '{config.correction}' cannot count contrasts that are not "
            "judged; use 'holm'"
        )
    for p in family:
        if p.contrast.baseline != first.contrast.baseline or p.better != first.better:
            raise UserError(
                f"family '{first.contrast.family}': correction '{config.correction}' needs one shared baseline, but "
                f"'{first.name}' and '{p.name}' differ in it; use 'holm'"
            )
    if config.correction == "dunnett":
        return families.dunnett(estimates, [p.n_seeds for p in family], config.alpha)
    usable = [p for p, e in zip(family, estimates, strict=True) if e is not None]
    if not usable:
        return families.max_t(estimates, np.zeros(1), True, config.alpha)
    return families.max_t(estimates, *_max_t_reference(usable), config.alpha)


def _max_t_reference(family: list[Prepared]) -> tuple[np.ndarray, bool]:
    """Distribution of max |t| under rearrangements of the seeds that leave every design of the family intact."""
    first = family[0]
    flips = all(p.paired or p.n_seeds[1] == 0 for p in family)
    if flips and all(p.seeds[0] == first.seeds[0] for p in family):
        return max_t_paired(np.stack([p.candidate_S - p.baseline_S for p in family]))
    same = all(
        (p.contrast.suite, p.contrast.minus_suite, p.metric)
        == (first.contrast.suite, first.contrast.minus_suite, first.metric)
        for p in family
    )
    if same and not any(p.paired or 0 in p.n_seeds for p in family):
        return max_t_unpaired([p.candidate_S for p in family], first.baseline_S)
    raise UserError(
        f"family '{first.contrast.family}': correction 'max_t' needs all contrasts on the same seeds, or all on one "
        "suite and metric with seeds that differ between the conditions; use 'holm'"
    )


def _finding(p: Prepared, adjusted: Adjusted, size: int, config: AnalysisConfig, integrity: Sequence[str]) -> Finding:
    """Decide one contrast and put it into words."""
    e = p.estimate
    judgeable = _judgeable(p) and e is not None and bool(e.standard_error > 0)
    warnings = list(p.warnings)
    ci = ci_adjusted = p_plain = df = None
    verdict: Verdict = "INCONCLUSIVE"
    subtype = needed = None
    if e is not None and judgeable:
        ci = _interval(e, float(critical_value(config.alpha, e)))
        ci_adjusted = _interval(e, adjusted.critical) if np.isfinite(adjusted.critical) else None
        p_plain, df = float(p_value(e)), effective_df(config.alpha, e)
        verdict, subtype = decide(*ci_adjusted, p.margin) if ci_adjusted else ("INCONCLUSIVE", None)
        refusal = "; ".join(p.refusals) or _refusal(p, e, adjusted, verdict)
        if refusal:
            verdict, subtype = "INCONCLUSIVE", None
        elif verdict == "INCONCLUSIVE":
            needed = seeds_needed(e, p.margin, max(p.n_seeds), adjusted.level, p.paired or 0 in p.n_seeds)
            while needed and config.correction == "max_t" and _least_p(p, needed) > config.alpha:
                needed += 1
        reason = because(p, verdict, subtype, ci_adjusted, adjusted, size, config, needed, refusal)
    else:
        reason = cannot(p)
    if p.invalid or integrity:
        verdict, subtype = "INVALID", None
        reason = "; ".join([*integrity, *([p.invalid] if p.invalid else [])])
    flip_p, least = _permutation(p) if judgeable else (None, None)
    if least is not None and least > adjusted.level:
        warnings.append(
            f"a permutation of these seeds can never fall below p = {number(least)}, above the level "
            f"{number(adjusted.level)}: the interval rests on roughly normal seed effects"
        )
    if judgeable and (unstable := _unstable(p)):
        warnings.append(unstable)
    if config.correction == "benjamini_hochberg":
        warnings.append("exploratory: the share of false discoveries is controlled, not the chance of any")
    if p.components is not None and p.components.truncated and judgeable:
        names = ", ".join(p.components.truncated)
        warnings.append(f"variance components estimated below 0 and shown as 0: {names}")
    return Finding(
        contrast=p.name,
        question=p.contrast.question,
        candidate=p.contrast.candidate,
        baseline=p.contrast.baseline,
        suite=p.contrast.suite,
        minus_suite=p.contrast.minus_suite,
        metric=p.metric,
        better=p.better,
        margin=p.margin,
        estimate=None if e is None else p.sign * float(e.estimate),
        ci=_turn(ci, p.sign),
        p_value=p_plain,
        ci_adjusted=_turn(ci_adjusted, p.sign),
        p_adjusted=adjusted.p if judgeable else None,
        standard_error=float(e.standard_error) if e is not None and judgeable else None,
        df=df,
        test=_test(p),
        unit=_unit(p),
        n_seeds=p.n_seeds,
        n_items=p.n_items,
        n_missing=p.n_missing,
        family=p.contrast.family,
        family_size=size,
        correction=LABELS[config.correction],
        verdict=verdict,
        subtype=subtype,
        reason=reason,
        seeds_needed=needed,
        permutation_p=flip_p,
        attainable_p=least,
        hedges_g=_hedges(p) if judgeable else None,
        variance={} if p.components is None else p.components.as_dict(),
        warnings=tuple(warnings),
    )


def _refusal(p: Prepared, e: Estimate, adjusted: Adjusted, verdict: Verdict) -> str:
    """Why a decided interval still carries no verdict, or an empty string."""
    if verdict == "INCONCLUSIVE":
        return ""
    counts = [n for n in p.n_seeds if n]
    if min(counts) < MIN_SEEDS:
        return f"{min(counts)} runs of a recipe measure no spread; at least {MIN_SEEDS} are required"
    if p.bounds is not None:
        ends = [decide(*_interval(end, adjusted.critical), p.margin)[0] for end in p.bounds]
        if set(ends) != {verdict}:
            low, high = (number(float(end.estimate)) for end in p.bounds)
            return f"failed measurements could move the improvement anywhere from {low} to {high}, across the margin"
    if p.n_seeds[0] != p.n_seeds[1]:
        guard = float(skew_critical(adjusted.level, e, max(p.n_seeds), min(p.n_seeds)))
        if decide(*_interval(e, guard), p.margin)[0] != verdict:
            against = "the frozen base" if 0 in p.n_seeds else "another number of runs"
            return (
                f"the interval holds only if runs scatter evenly to both sides; against {against}, a recipe that fails "
                "on few seeds would look like this, too"
            )
    return ""


def _unstable(p: Prepared) -> str:
    """A warning where one recipe's runs scatter far more widely than the other's (F test at 1 %), or nothing."""
    if min(p.n_seeds) < MIN_SEEDS:
        return ""
    spread = {p.contrast.candidate: p.candidate_S, p.contrast.baseline: p.baseline_S}
    (wide, wide_S), (steady, steady_S) = sorted(spread.items(), key=lambda named: -float(named[1].std()))
    ratio = float(wide_S.var(ddof=1)) / max(float(steady_S.var(ddof=1)), np.finfo(float).tiny)
    if ratio <= stats.f.isf(0.005, len(wide_S) - 1, len(steady_S) - 1):
        return ""
    return (
        f"the runs of {wide} scatter more widely than those of {steady}; if {wide} fails on rare seeds only, the "
        "interval is too hopeful"
    )


def _interval(e: Estimate, critical: float) -> tuple[float, float]:
    half = critical * float(e.standard_error)
    return float(e.estimate) - half, float(e.estimate) + half


def _turn(interval: tuple[float, float] | None, sign: float) -> tuple[float, float] | None:
    """The oriented interval in raw units of the metric."""
    if interval is None:
        return None
    return interval if sign > 0 else (-interval[1], -interval[0])


def _least_p(p: Prepared, n_seeds: int) -> float:
    """Smallest p of rearranging `n_seeds` runs per condition in the contrast's design."""
    return attainable_p(n_seeds, 0 if 0 in p.n_seeds else n_seeds, p.paired)


def _permutation(p: Prepared) -> tuple[float | None, float | None]:
    """(p of rearranging the seeds, the least p that can be had that way)."""
    least = attainable_p(*p.n_seeds, p.paired) if p.n_seeds[0] else attainable_p(p.n_seeds[1], 0, False)
    if p.paired or 0 in p.n_seeds:
        return sign_flip(p.candidate_S - p.baseline_S), least
    return permute_labels(p.candidate_S, p.baseline_S), least


def _hedges(p: Prepared) -> float | None:
    """Hedges' g in raw direction (candidate - baseline)."""
    a_S, b_S = p.candidate_S, p.baseline_S
    g = hedges_g(a_S - b_S, None) if 0 in p.n_seeds else hedges_g(a_S, b_S)
    return None if g is None else p.sign * g


def _test(p: Prepared) -> str:
    kind = "one-sample" if 0 in p.n_seeds else "seed-paired" if p.paired else "two-sample"
    return f"{kind} t, two-way cluster-robust variance (seed, item), Cochran-Cox critical value"


def _unit(p: Prepared) -> str:
    if p.n_seeds == (0, 0):
        return "item, of two checkpoints (no training seeds)"
    return "training run (seed), crossed with items"
