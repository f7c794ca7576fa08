"""The significance report over two groups of training runs: the run is the unit of replication.

Every run is reduced to one number per metric, its mean over the steps that all runs have. Tests, intervals and effect
sizes are over these run means. Completions within a run share its seed, its data and its history; pooled over runs they
are shown for description (rates, Fisher's exact test) and decide nothing.

Shapes: A, B runs per arm; R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from finetrial import seeds
from finetrial.analyze.estimate import welch_df
from finetrial.analyze.permute import attainable_p, hedges_g
from finetrial.analyze.power import observations_per_arm, runs_per_arm
from finetrial.analyze.readers.run_logs import LIFTS, MEASURES, RunLog, common_steps
from finetrial.errors import UserError

UNIT = "training run (seed)"
IMPROVEMENT = "statistically_significant_improvement"
INSUFFICIENT = "insufficient_statistical_evidence"
DEGRADATION = "significant_degradation"


@dataclass(frozen=True)
class MeanTest:
    """One metric compared over run means. Numbers are None where two runs per arm are not there."""

    metric: str
    baseline_mean: float
    candidate_mean: float
    delta: float
    p_value: float | None
    """Two-sided permutation p of run labels."""
    p_adjusted: float | None
    """Holm over the metrics of the report."""
    attainable_p: float
    ci_low: float | None
    """Bootstrap of whole runs, percentile."""
    ci_high: float | None
    t_ci_low: float | None
    """Welch's t interval of the run means, on which the recommendation rests as well."""
    t_ci_high: float | None
    n_baseline: int
    """Runs."""
    n_candidate: int
    n_steps: int
    significant: bool
    significant_improvement: bool
    cohens_d: float | None
    """Over run means, pooled SD."""
    hedges_g: float | None
    test: str
    unit: str = UNIT
    family: str = "metrics of this report (Holm)"


@dataclass(frozen=True)
class Significance:
    """The report. `as_dict` is what `significance.json` holds."""

    alpha: float
    resamples: int
    baseline_runs: list[str]
    candidate_runs: list[str]
    mean_tests: list[MeanTest]
    rate_test: dict[str, Any] | None
    """Pooled completions; None where no counts were logged."""
    sample_size_estimates: list[dict[str, Any]]
    significant_improvement_metrics: list[str]
    recommendation: str
    reason: str
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def run_means(runs: Sequence[RunLog], measure: str, steps_T: np.ndarray) -> np.ndarray:
    """Mean of `measure` over the given steps, one number per run."""
    return np.array([run.values_T[measure][np.isin(run.steps_T, steps_T)].mean() for run in runs])


def welch_interval(candidate_A: np.ndarray, baseline_B: np.ndarray, alpha: float) -> tuple[float, float] | None:
    """Interval of the difference of means, unequal variances, degrees of freedom as `judge` takes them.

    None with fewer than two runs in an arm, or values that do not vary.
    """
    if min(len(candidate_A), len(baseline_B)) < 2:
        return None
    va, vb = (np.asarray(x.var(ddof=1) / len(x)) for x in (candidate_A, baseline_B))
    if not va + vb > 0:
        return None
    half = stats.t.isf(alpha / 2, welch_df(va, vb, len(candidate_A), len(baseline_B))) * math.sqrt(va + vb)
    delta = float(candidate_A.mean() - baseline_B.mean())
    return delta - float(half), delta + float(half)


def significance(
    baseline: Sequence[RunLog],
    candidate: Sequence[RunLog],
    *,
    alpha: float = 0.05,
    resamples: int = 20_000,
    margin: float | None = None,
) -> Significance:
    """Compare two groups of runs on every metric that they log.

    Args:
        baseline: runs of one recipe.
        candidate: runs of the other.
        alpha: two-sided error rate of the report.
        resamples: of the bootstrap, and of the permutation where not all arrangements are enumerated.
        margin: smallest improvement to act on, for sample sizes beside the observed effect; default: `LIFTS`.

    Raises:
        UserError: an arm has no run, one run is in both arms, or no metric is logged at a step that all runs have.
    """
    if not baseline or not candidate:
        raise UserError("both arms need at least one run")
    warnings = _warnings(baseline, candidate)
    both = [*baseline, *candidate]
    steps = {measure: common_steps(both, measure) for measure in MEASURES}
    measures = [measure for measure in MEASURES if len(steps[measure])]
    if not measures:
        raise UserError("no step at which every run has mean_reward or correct_rate: the runs cannot be compared")
    means = {m: (run_means(candidate, m, steps[m]), run_means(baseline, m, steps[m])) for m in measures}
    p = {m: _permutation(*means[m], m, resamples) for m in measures}
    adjusted = _holm(p)
    tests = [_mean_test(m, *means[m], p[m], adjusted[m], len(steps[m]), alpha, resamples) for m in measures]
    for run in both:
        lost = max(len(run.steps_T) - len(steps[m]) for m in measures)
        if lost:
            warnings.append(f"{run.name}: {lost} of {len(run.steps_T)} steps are not in every run and are left out")
    recommendation, reason = _recommend(tests, alpha)
    return Significance(
        alpha=alpha,
        resamples=resamples,
        baseline_runs=[run.name for run in baseline],
        candidate_runs=[run.name for run in candidate],
        mean_tests=tests,
        rate_test=_rate_test(baseline, candidate, steps.get("correct_rate", np.empty(0, dtype=int))),
        sample_size_estimates=[e for m in measures for e in _sample_sizes(m, *means[m], alpha, margin)],
        significant_improvement_metrics=[test.metric for test in tests if test.significant_improvement],
        recommendation=recommendation,
        reason=reason,
        warnings=warnings,
    )


def _warnings(baseline: Sequence[RunLog], candidate: Sequence[RunLog]) -> list[str]:
    shared = {run.folder.absolute() for run in baseline} & {run.folder.absolute() for run in candidate}
    if shared:
        raise UserError(f"{', '.join(sorted(map(str, shared)))}: in both arms; the patterns overlap")
    lines = [f"{run.name}: {note}" for run in (*baseline, *candidate) for note in run.notes]
    lines.append("rewards and rates come from the training prompts while training, not from a held-out evaluation")
    for name, runs in (("baseline", baseline), ("candidate", candidate)):
        conditions = sorted({run.condition for run in runs})
        if len(conditions) > 1:
            lines.append(f"the {name} mixes conditions: {', '.join(conditions)}; the interval then spans recipes")
        if len(runs) < 2:
            lines.append(f"the {name} has one run: nothing can be said of the recipe, only of this run")
    return lines


def _permutation(a_A: np.ndarray, b_B: np.ndarray, measure: str, resamples: int) -> float | None:
    """Two-sided p of the difference of means over assignments of runs to arms; None with one run per arm."""
    if min(len(a_A), len(b_B)) < 2:
        return None
    result = stats.permutation_test(
        (a_A, b_B),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        permutation_type="independent",
        vectorized=True,
        n_resamples=resamples,
        rng=seeds.stream(0, "significance", "permutation", measure),
    )
    return float(result.pvalue)


def _bootstrap(a_A: np.ndarray, b_B: np.ndarray, measure: str, alpha: float, resamples: int) -> tuple[float, float]:
    """Percentile interval of the difference, drawing whole runs."""
    rng = seeds.stream(0, "significance", "bootstrap", measure)
    means_R = [x[rng.integers(0, len(x), (resamples, len(x)))].mean(1) for x in (a_A, b_B)]
    low, high = np.quantile(means_R[0] - means_R[1], [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def _holm(p: dict[str, float | None]) -> dict[str, float | None]:
    known = sorted((value, name) for name, value in p.items() if value is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p)
    largest = 0.0
    for k, (value, name) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - k)))
        adjusted[name] = largest
    return adjusted


def _mean_test(
    measure: str,
    a_A: np.ndarray,
    b_B: np.ndarray,
    p: float | None,
    adjusted: float | None,
    n_steps: int,
    alpha: float,
    resamples: int,
) -> MeanTest:
    delta = float(a_A.mean() - b_B.mean())
    boot = None if p is None else _bootstrap(a_A, b_B, measure, alpha, resamples)
    student = welch_interval(a_A, b_B, alpha)
    away = boot is not None and student is not None and not any(low <= 0 <= high for low, high in (boot, student))
    significant = p is not None and p < alpha and away
    df = len(a_A) + len(b_B) - 2
    squares = float(((a_A - a_A.mean()) ** 2).sum() + ((b_B - b_B.mean()) ** 2).sum())
    exact = math.comb(len(a_A) + len(b_B), len(a_A)) <= resamples
    return MeanTest(
        metric=measure,
        baseline_mean=float(b_B.mean()),
        candidate_mean=float(a_A.mean()),
        delta=delta,
        p_value=p,
        p_adjusted=adjusted,
        attainable_p=attainable_p(len(a_A), len(b_B), False),
        ci_low=boot[0] if boot else None,
        ci_high=boot[1] if boot else None,
        t_ci_low=student[0] if student else None,
        t_ci_high=student[1] if student else None,
        n_baseline=len(b_B),
        n_candidate=len(a_A),
        n_steps=n_steps,
        significant=significant,
        significant_improvement=significant and delta > 0,
        cohens_d=delta / math.sqrt(squares / df) if df > 0 and squares > 0 else None,
        hedges_g=hedges_g(a_A, b_B) if df > 1 else None,
        test=f"{'exact' if exact else f'sampled ({resamples})'} permutation of run labels; bootstrap of whole runs",
    )


def _recommend(tests: Sequence[MeanTest], alpha: float) -> tuple[str, str]:
    """(recommendation, reason).

    Improvement needs every metric to improve at alpha (intersection-union: no correction). Degradation of any metric
    at alpha after Holm is enough, because either alone is a reason not to ship.
    """
    if all(test.significant_improvement for test in tests):
        return IMPROVEMENT, f"every metric improves at p < {alpha:g} and no interval contains 0"
    worse = [t.metric for t in tests if t.significant and t.delta < 0 and (t.p_adjusted or 0.0) < alpha]
    if worse:
        return DEGRADATION, f"{' and '.join(worse)} falls at p < {alpha:g} (Holm) and no interval of it contains 0"
    least = tests[0].attainable_p
    if tests[0].p_value is None:
        return INSUFFICIENT, "one arm has a single run: runs cannot be compared as replicates of a recipe"
    if least >= alpha:
        n = f"{tests[0].n_candidate} against {tests[0].n_baseline} runs"
        return INSUFFICIENT, f"{n} can never reach p below {least:.2g} by permutation: more runs are needed"
    undecided = [test.metric for test in tests if not test.significant]
    return INSUFFICIENT, f"{' and '.join(undecided)}: p >= {alpha:g} or an interval contains 0"


def _rate_test(baseline: Sequence[RunLog], candidate: Sequence[RunLog], steps_T: np.ndarray) -> dict[str, Any] | None:
    """Pooled completions of the common steps, for description; None unless every run logged its counts."""
    totals = []
    for runs in (candidate, baseline):
        correct = total = 0.0
        for run in runs:
            at = np.isin(run.steps_T, steps_T)
            correct, total = correct + run.correct_T[at].sum(), total + run.total_T[at].sum()
        totals.append((correct, total))
    (ca, na), (cb, nb) = totals
    if not (na > 0 and nb > 0):
        return None
    return {
        "metric": "correct_rate",
        "candidate_success": int(ca),
        "candidate_total": int(na),
        "baseline_success": int(cb),
        "baseline_total": int(nb),
        "candidate_rate": float(ca / na),
        "baseline_rate": float(cb / nb),
        "delta": float(ca / na - cb / nb),
        **fisher(int(ca), int(na), int(cb), int(nb)),
        "test": "Fisher exact, two-sided",
        "unit": "completion, pooled over runs",
        "descriptive": True,
        "note": "completions of one run are not independent; this p rejects far too often and decides nothing here",
    }


def fisher(
    candidate_success: int, candidate_total: int, baseline_success: int, baseline_total: int
) -> dict[str, float | None]:
    """Fisher's exact test of two proportions of independent observations: `p_value` (two-sided) and `odds_ratio`.

    The odds ratio is None where it is infinite or undefined.
    """
    table = [
        [candidate_success, candidate_total - candidate_success],
        [baseline_success, baseline_total - baseline_success],
    ]
    odds, p = np.asarray(stats.fisher_exact(table), dtype=float).tolist()
    return {"p_value": p, "odds_ratio": odds if math.isfinite(odds) else None}


def _sample_sizes(
    measure: str, a_A: np.ndarray, b_B: np.ndarray, alpha: float, margin: float | None
) -> list[dict[str, Any]]:
    """Runs per arm for 80 % power: at the margin, and (labelled) at the observed effect."""
    df = len(a_A) + len(b_B) - 2
    if df < 1:
        return []
    squares = float(((a_A - a_A.mean()) ** 2).sum() + ((b_B - b_B.mean()) ** 2).sum())
    sd = math.sqrt(squares / df)
    upper = sd * math.sqrt(df / stats.chi2.ppf(0.2, df))
    observed = float(a_A.mean() - b_B.mean())
    rows: list[dict[str, Any]] = []
    kinds = [
        ("default lift" if margin is None else "margin", LIFTS[measure] if margin is None else margin),
        ("observed effect (circular: it repeats what p says; do not plan with it)", observed),
    ]
    for basis, effect in kinds:
        rows.append(
            {
                "metric": measure,
                "basis": basis,
                "observed_effect": observed,
                "effect": effect,
                "n_per_arm_80pct": runs_per_arm(effect, sd, alpha),
                "n_per_arm_80pct_upper_sd": runs_per_arm(effect, upper, alpha),
                "unit": UNIT,
                "note": "upper_sd: at the 80 % upper confidence bound of the spread between runs",
            }
        )
    rates = (float(b_B.mean()), float(a_A.mean()))
    if measure == "correct_rate" and all(0 <= rate <= 1 for rate in rates):
        rows.append(
            {
                "metric": measure,
                "basis": "observed effect, if completions were independent (they are not)",
                "observed_effect": observed,
                "effect": observed,
                "n_per_arm_80pct": observations_per_arm(*rates, alpha),
                "n_per_arm_80pct_upper_sd": None,
                "unit": "independent completion (descriptive)",
                "note": "a lower bound that spread between runs exceeds",
            }
        )
    return rows
