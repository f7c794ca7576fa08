"""From the outcome table to one contrast's estimate: which runs, which items, and why something cannot be judged.

Shapes: S seeds, I items.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from finetrial.analyze.components import Components, components
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.estimate import Effect, Estimate, effect, estimate
from finetrial.analyze.metrics import Direction, direction, known, pass_at
from finetrial.analyze.passk import pass_at_k
from finetrial.analyze.table import Dense, OutcomeTable
from finetrial.analyze.words import count
from finetrial.errors import UserError

_ROUNDING = 1e-12
"""Standard errors below this share of the largest value are rounding, not spread."""


@dataclass
class Prepared:
    """One contrast ready for its family. `estimate` is oriented (larger is better); None with `problem` said."""

    contrast: Contrast
    name: str
    metric: str
    better: Direction
    margin: float
    estimate: Estimate | None = None
    bounds: tuple[Estimate, Estimate] | None = None
    """Estimates with every failed measurement at its worst and at its best for the candidate."""
    problem: str = ""
    """Why no interval can be given."""
    invalid: str = ""
    """Why no comparison is allowed at all."""
    paired: bool = False
    n_seeds: tuple[int, int] = (0, 0)
    n_items: int = 0
    n_missing: int = 0
    candidate_S: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Oriented mean of each run; of the difference over suites where `minus_suite` is set."""
    baseline_S: np.ndarray = field(default_factory=lambda: np.empty(0))
    seeds: tuple[tuple[int | None, ...], tuple[int | None, ...]] = ((), ())
    components: Components | None = None
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """Why the verdict must stay open although there is an interval."""

    @property
    def sign(self) -> float:
        """+1 where higher is better, else -1."""
        return 1.0 if self.better == "higher" else -1.0


def prepare(table: OutcomeTable, contrast: Contrast, config: AnalysisConfig, primary_metric: str) -> Prepared:
    """Read, match and estimate one contrast.

    Raises:
        UserError: the contrast names a condition, suite or metric that the table lacks, compares a condition with
            itself, or uses a metric of unknown direction.
    """
    metric = contrast.metric or primary_metric
    c = contrast
    on = c.suite if c.minus_suite is None else f"{c.suite} minus {c.minus_suite}"
    p = Prepared(
        contrast=c,
        name=c.name or f"{c.candidate} vs {c.baseline} on {on}",
        metric=metric,
        better=direction(metric, c.better),
        margin=config.margin if c.margin is None else c.margin,
    )
    if c.candidate == c.baseline:
        raise UserError(f"contrast '{p.name}': candidate and baseline are both '{c.candidate}'")
    if c.minus_suite == c.suite:
        raise UserError(f"contrast '{p.name}': suite and minus_suite are both '{c.suite}'")
    suites = [c.suite] if c.minus_suite is None else [c.suite, c.minus_suite]
    arms = [(read_arm(table, c.candidate, s, metric), read_arm(table, c.baseline, s, metric)) for s in suites]
    for suite, (a, b) in zip(suites, arms, strict=True):
        if a.suite_hashes != b.suite_hashes or len(a.suite_hashes) > 1:
            p.invalid = (
                f"the suite '{suite}' is not the same for {c.candidate} and {c.baseline} "
                f"(hashes {_short(a.suite_hashes)} and {_short(b.suite_hashes)}): their values are not comparable"
            )
            return p
    _estimate(p, suites, arms, config)
    return p


def read_arm(table: OutcomeTable, condition: str, suite: str, metric: str) -> Dense:
    """The arm's outcomes; `pass@k` is computed from `correct` where the table has no rows of its own."""
    k = pass_at(metric)
    if k is None or metric in table.metrics or "correct" not in table.metrics:
        return table.dense(condition, suite, metric)
    dense = table.dense(condition, suite, "correct")
    failed_SI = dense.failed_SI
    right_SI = np.round(np.nan_to_num(dense.values_SI) * dense.count_SI)
    rows_SI = dense.count_SI + failed_SI
    values_SI = _pass_at(dense.count_SI, right_SI, k)
    ends_SI = (_pass_at(rows_SI, right_SI, k), _pass_at(rows_SI, right_SI + failed_SI, k))
    one_SI = (dense.count_SI > 0).astype(float)
    return replace(dense, values_SI=values_SI, squares_SI=values_SI**2, count_SI=one_SI, ends_SI=ends_SI)


def _pass_at(n_SI: np.ndarray, right_SI: np.ndarray, k: int) -> np.ndarray:
    """pass@k of each cell that has samples, NaN elsewhere."""
    there = n_SI > 0
    values_SI = np.full(n_SI.shape, np.nan)
    values_SI[there] = pass_at_k(n_SI[there].astype(int), right_SI[there].astype(int), k)
    return values_SI


def _estimate(p: Prepared, suites: list[str], arms: list[tuple[Dense, Dense]], config: AnalysisConfig) -> None:
    """Fill in everything that the numbers give."""
    c = p.contrast
    a_seeds, b_seeds = (
        _runs(p, name, suites, [pair[side] for pair in arms]) for side, name in ((0, c.candidate), (1, c.baseline))
    )
    p.seeds = (a_seeds, b_seeds)
    frozen = (a_seeds == (None,), b_seeds == (None,))
    p.n_seeds = (0 if frozen[0] else len(a_seeds), 0 if frozen[1] else len(b_seeds))
    shared = sorted(set(a_seeds) & set(b_seeds) - {None}, key=str) if config.pairing == "seed" else []
    p.paired = bool(shared) and len(shared) == len(a_seeds) == len(b_seeds)
    matched = None
    if shared and not p.paired:
        matched = (np.array([a_seeds.index(s) for s in shared]), np.array([b_seeds.index(s) for s in shared]))
        p.warnings.append(
            f"{c.candidate} and {c.baseline} share {count(len(shared), 'seed')} but not all: shared seeds count as "
            "paired, the others as single runs"
        )
    main, low, high = [], [], []
    for suite, (a, b) in zip(suites, arms, strict=True):
        part = _suite_effects(p, suite, a, b)
        if part is None:
            return
        main.append(part[0])
        low.append(part[1])
        high.append(part[2])
    for name, n in ((c.candidate, len(a_seeds)), (c.baseline, len(b_seeds))):
        if n == 0:
            p.problem = f"{name} has no run with a value on {' and '.join(suites)}"
            return
    p.candidate_S, p.baseline_S = (
        p.sign * (means[0] - means[1] if len(means) == 2 else means[0])
        for means in ([e.candidate_means_S for e in main], [e.baseline_means_S for e in main])
    )
    p.estimate = _oriented(_exact(estimate(main, p.paired, matched), arms), p.sign)
    if low[0] is not None:
        # The second suite is subtracted, so its worst case for the candidate is its best one.
        ends = [(low[0], *high[1:]), (high[0], *low[1:])]
        worst, best = (_oriented(estimate(list(end), p.paired, matched), p.sign) for end in ends)
        p.bounds = (worst, best) if p.sign > 0 else (best, worst)


def _runs(p: Prepared, name: str, suites: list[str], dense: list[Dense]) -> tuple[int | None, ...]:
    """Seeds of a condition that have values on every suite of the contrast; the others are told."""
    have = [{s for s, row_I in zip(d.seeds, d.values_SI, strict=True) if not np.isnan(row_I).all()} for d in dense]
    usable = set.intersection(*have)
    lost = sorted({s for d in dense for s in d.seeds} - usable, key=str)
    if lost:
        runs = ", ".join(map(str, lost))
        p.warnings.append(f"{name}: runs without a value on {' and '.join(suites)}: seeds {runs}")
        failed = any(d.failed_SI[d.seeds.index(s)].any() for d in dense for s in lost if s in d.seeds)
        if failed:
            p.refusals.append(f"every measurement of {name} with seed {runs} failed, and what fails is not known")
    return tuple(s for s in dense[0].seeds if s in usable)


def _suite_effects(p: Prepared, suite: str, a: Dense, b: Dense) -> tuple[Effect, Effect | None, Effect | None] | None:
    """(effect, effect with failures at their worst for a higher value, at their best) on one suite."""
    c = p.contrast
    items = np.intersect1d(a.items, b.items)
    alone = len(a.items) + len(b.items) - 2 * len(items)
    if alone:
        p.warnings.append(f"{count(alone, 'item')} of {suite} measured in one arm only: left out")
    ia, ib = np.searchsorted(a.items, items), np.searchsorted(b.items, items)
    ra = [a.seeds.index(s) for s in p.seeds[0]]
    rb = [b.seeds.index(s) for s in p.seeds[1]]
    a_SI, b_SI = a.values_SI[ra][:, ia], b.values_SI[rb][:, ib]
    both = ~np.isnan(a_SI).all(0) & ~np.isnan(b_SI).all(0) if ra and rb else np.zeros(len(items), dtype=bool)
    if not both.any():
        p.problem = f"no item of {suite} has a value of {p.metric} in both {c.candidate} and {c.baseline}"
        return None
    p.n_items += int(both.sum())
    p.n_missing += int(np.isnan(a_SI).sum() + np.isnan(b_SI).sum())
    weight_I = (a.weight_I[ia] + b.weight_I[ib]) / 2
    if not np.allclose(a.weight_I[ia], b.weight_I[ib], rtol=1e-6):
        p.warnings.append(f"items of {suite} have different weights in the two arms; their mean is used")
    if not (weight_I > 0).all():
        raise UserError(f"suite '{suite}', metric '{p.metric}': every weight must be above 0")
    _, group_I = np.unique(a.groups[ia].astype(str), return_inverse=True)
    p.components = p.components or components(a, b, a_SI[:, both], b_SI[:, both])
    main = effect(a_SI, b_SI, weight_I, group_I, p.paired)
    if main.n_groups < 2:
        p.warnings.append(f"{suite} has one item: the interval speaks of this item only, not of others like it")
    failed_a, failed_b = a.failed_SI[ra][:, ia].sum(), b.failed_SI[rb][:, ib].sum()
    if failed_a + failed_b == 0:
        return main, None, None
    fact = known(p.metric)
    if fact is None or fact.low is None or fact.high is None:
        p.warnings.append(
            f"{int(failed_a)} measurements of {c.candidate} and {int(failed_b)} of {c.baseline} on {suite} failed, and "
            f"{p.metric} has no known range to bound them by: the verdict assumes that failing tells nothing"
        )
        return main, None, None
    (a_low, a_high), (b_low, b_high) = a.bounds(fact.low, fact.high), b.bounds(fact.low, fact.high)
    lowest, highest = (
        effect(x_SI[ra][:, ia], y_SI[rb][:, ib], weight_I, group_I, p.paired)
        for x_SI, y_SI in ((a_low, b_high), (a_high, b_low))
    )
    return main, lowest, highest


def _exact(e: Estimate, arms: list[tuple[Dense, Dense]]) -> Estimate:
    """The estimate with variances that are nothing but rounding of the values set to 0."""
    largest = max(float(np.nanmax(np.abs(dense.values_SI))) for pair in arms for dense in pair)
    if float(e.standard_error) > _ROUNDING * largest:
        return e
    return replace(e, v_seed=np.zeros(()), v_rest=np.zeros(()))


def _oriented(e: Estimate, sign: float) -> Estimate:
    return replace(e, estimate=sign * e.estimate)


def _short(hashes: frozenset[str]) -> str:
    return " and ".join(sorted(h[:12] or "none" for h in hashes))
