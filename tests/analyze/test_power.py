"""Design: predicted power is what `judge` realises; sample sizes agree with published formulas."""

import math

import numpy as np
import pytest
from statsmodels.stats.power import NormalIndPower, TTestIndPower

from finetrial import seeds
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.judge import judge
from finetrial.analyze.power import (
    Design,
    Prices,
    Variances,
    cheapest,
    mde,
    observations_per_arm,
    optimal_samples,
    pilot,
    power,
    runs_per_arm,
    variance,
)
from finetrial.analyze.sizing import Goal, size
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError
from finetrial.records import Outcome

NOISE = Variances(seed=1e-4, recipe_item=4e-3, seed_item=1e-3, sampling=0.1)


def simulate(design: Design, v: Variances, effect: float, rng: np.random.Generator) -> list[Outcome]:
    """One campaign from the crossed model; the base has no seeds where the design is frozen."""
    s, p, k = design.seeds, design.items, design.samples
    level_I = rng.standard_normal(p)
    rows = []
    for condition, gain in (("new", effect), ("base", 0.0)):
        frozen = condition == "base" and design.frozen
        runs = 1 if frozen else s
        run_S = np.zeros(1) if frozen else rng.normal(0, math.sqrt(v.seed), runs)
        both_SI = np.zeros((1, p)) if frozen else rng.normal(0, math.sqrt(v.seed_item), (runs, p))
        own_I = rng.normal(0, math.sqrt(v.recipe_item), p) if gain else np.zeros(p)
        noise_SIK = rng.normal(0, math.sqrt(v.sampling), (runs, p, k))
        value_SIK = (level_I + gain + own_I + run_S[:, None] + both_SI)[..., None] + noise_SIK
        for run in range(runs):
            # Seed numbers differ between the arms unless the design is paired: these runs share nothing.
            seed = None if frozen else run if design.paired or gain else 100 + run
            rows += [
                Outcome(condition, seed, "test", f"q{i:04d}", j, "score", float(value_SIK[run, i, j]))
                for i in range(p)
                for j in range(k)
            ]
    return rows


@pytest.mark.parametrize(
    "design",
    [
        Design(3, 30, 2),
        Design(6, 20, 1),
        Design(6, 20, 1, paired=True),
        Design(6, 20, 1, frozen=True),
    ],
)
def test_predicted_power_is_realised_by_judge(design):
    effect, trials = mde(design, NOISE, target=0.7), 250
    assert power(design, NOISE, effect) == pytest.approx(0.7, abs=1e-4)
    contrast = Contrast(candidate="new", baseline="base", suite="test", metric="score")
    config = AnalysisConfig(correction="none", pairing="seed" if design.paired else "none")
    confirmed = 0
    for trial in range(trials):
        rows = simulate(design, NOISE, effect, seeds.stream(trial, "test_power", repr(design)))
        finding = judge(OutcomeTable.read(rows), [contrast], config, primary_metric="score")[0]
        confirmed += finding.verdict == "CONFIRMED"
    error = math.sqrt(0.7 * 0.3 / trials)
    assert abs(confirmed / trials - 0.7) < 3 * error


def test_variance_is_the_formula():
    design = Design(4, 50, 3)
    expected = 2 * 1e-4 / 4 + 4e-3 / 50 + 2 * 1e-3 / 200 + 2 * 0.1 / 600
    assert sum(variance(design, NOISE)) == pytest.approx(expected)


def test_more_of_anything_never_detects_less_and_margin_adds():
    small = mde(Design(4, 50, 2), NOISE)
    assert mde(Design(5, 50, 2), NOISE) < small
    assert mde(Design(4, 60, 2), NOISE) < small
    assert mde(Design(4, 50, 4), NOISE) < small
    assert mde(Design(4, 50, 2), NOISE, margin=0.1) == pytest.approx(small + 0.1)
    assert mde(Design(4, 50, 2), NOISE, contrasts=3) > small


def test_two_seeds_carry_no_verdict():
    assert power(Design(2, 500), NOISE, 100.0) == 0
    assert mde(Design(2, 500), NOISE) == math.inf


def test_power_without_item_noise_is_the_two_sample_t_test():
    """Seeds only: a t test on run means, whose power statsmodels gives for pooled degrees of freedom."""
    design, v = Design(12, 1000), Variances(1.0)
    ours = power(design, v, 1.2)
    theirs = TTestIndPower().power(1.2, 12, 0.05)
    assert ours == pytest.approx(theirs, abs=0.01)


def test_cheapest_reaches_the_power_and_neighbours_do_not_do_it_for_less():
    prices = Prices(run=1.0, item=1e-3, sample=1e-3)
    best = cheapest(NOISE, 0.03, prices, max_items=800, samples=(1, 2, 4))
    assert best is not None
    assert power(best, NOISE, 0.03) >= 0.8
    for seeds_, k in [(best.seeds - 1, 1), (best.seeds, 1), (best.seeds + 1, 1), (best.seeds - 1, 4), (best.seeds, 2)]:
        for items in range(20, 800, 20):
            other = Design(max(seeds_, 3), items, k)
            if prices.of(other) < prices.of(best) * 0.999:
                assert power(other, NOISE, 0.03) < 0.8
    assert cheapest(NOISE, 1e-4, prices, max_seeds=10, max_items=100) is None


def test_optimal_samples_minimises_variance_for_the_money():
    v, prices, s = Variances(1e-4, 4e-3, 1e-3, 0.1), Prices(0.0, 8e-3, 1e-3), 4
    best = optimal_samples(s, v, prices)
    assert best is not None

    def variance_for_money(k: float) -> float:
        items = 1 / (prices.item + k * prices.sample)
        return v.recipe_item / items + 2 * v.seed_item / (s * items) + 2 * v.sampling / (s * items * k)

    for other in (best * 0.8, best * 1.25):
        assert variance_for_money(best) < variance_for_money(other)


def test_pilot_recovers_components_and_bounds_them_from_above():
    design, truth = Design(6, 80, 4), Variances(0.04, 0.09, 0.02, 0.3)
    contrast = Contrast(candidate="new", baseline="base", suite="test", metric="score")
    found = [
        pilot(OutcomeTable.read(simulate(design, truth, 1.0, seeds.stream(t, "pilot"))), contrast,
              AnalysisConfig(pairing="none"), "score")
        for t in range(30)
    ]  # fmt: skip
    for name in vars(truth):
        mean = np.mean([getattr(p.estimate, name) for p in found])
        assert mean == pytest.approx(getattr(truth, name), rel=0.35), name
    covered = np.mean([p.upper.seed > truth.seed for p in found])
    assert covered >= 0.8 - 2 * math.sqrt(0.8 * 0.2 / 30)
    assert all(p.upper.seed > p.estimate.seed for p in found)


def test_runs_per_arm_agrees_with_statsmodels():
    for effect in (0.3, 0.8, 1.5):
        theirs = TTestIndPower().solve_power(effect, power=0.8, alpha=0.05)
        assert runs_per_arm(effect, 1.0) == math.ceil(theirs)
    assert runs_per_arm(0.0, 1.0) is None
    assert runs_per_arm(1e-9, 1.0) is None


def test_observations_per_arm():
    """At a base rate of 50 % a lift of 1.3 points needs 23,217 independent completions per arm, not 2,400."""
    assert observations_per_arm(0.5, 0.513) == 23_217
    assert observations_per_arm(0.019, 0.032) == pytest.approx(2_400, rel=0.05)
    arcsine = 2 * (math.asin(math.sqrt(0.35)) - math.asin(math.sqrt(0.3)))
    assert observations_per_arm(0.3, 0.35) == pytest.approx(
        NormalIndPower().solve_power(arcsine, power=0.8, alpha=0.05), rel=0.01
    )
    assert observations_per_arm(0.3, 0.3) is None


def test_sizing_says_what_permutation_cannot_reach():
    found = size(NOISE, Goal(effect=0.03), Prices(), seeds=(3, 8), items=100)
    assert [option.attainable_p for option in found.options] == pytest.approx([0.1, 2 / 12870])
    assert any(
        "with 3 seeds per condition a permutation of the seeds can never fall below p = 0.1" in s
        for s in found.sentences
    )
    assert found.cheapest is not None
    assert found.cheapest.power is not None
    assert found.cheapest.power >= 0.8


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="variance components"):
        Variances(-1.0)
    with pytest.raises(UserError, match="all variance components are 0"):
        Variances(0.0)
    with pytest.raises(UserError, match="a design needs"):
        Design(1, 10)
