"""Looks: the error rate over all looks holds, nothing shows between looks, bets are fair."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from finetrial.analyze import looks
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.judge import judge
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError
from finetrial.records import Outcome


def test_brownian_boundaries_are_the_published_ones():
    """Two and four equal looks at alpha .05: z = 2.963, 1.969 and 4.333, 2.963, 2.359, 2.014 (Lan-DeMets tables)."""
    for fractions, published in (([0.5, 1.0], [2.963, 1.969]), ([0.25, 0.5, 0.75, 1.0], [4.333, 2.963, 2.359, 2.014])):
        schedule = looks.plan(fractions)
        z = [float(stats.norm.isf(look.level / 2)) for look in schedule.looks]
        np.testing.assert_allclose(z[1:], published[1:], atol=0.06)
        assert z[0] == pytest.approx(published[0], abs=0.002)


def test_everything_is_spent_at_the_end_and_one_look_is_alpha():
    assert looks.spent(1.0, 0.05) == pytest.approx(0.05)
    assert looks.plan([1.0], 0.05).looks[0].level == pytest.approx(0.05)
    spending = [look.spent for look in looks.plan([0.3, 0.6, 1.0]).looks]
    assert spending == sorted(spending)


@pytest.mark.parametrize("paired", [False, True])
def test_false_alarms_over_all_looks_stay_below_alpha(paired):
    """Fresh trials without a difference, t tests of few seeds: watching every seed would give far more."""
    n, trials, alpha = 12, 40_000, 0.05
    schedule = looks.plan([1 / 3, 2 / 3, 1.0], alpha, n_seeds=n, paired=paired)
    rng = np.random.default_rng(5)
    arms = rng.standard_normal((2, trials, n))

    def p_at(k: int) -> np.ndarray:
        if paired:
            return np.asarray(stats.ttest_1samp(arms[0, :, :k] - arms[1, :, :k], 0, axis=1))[1]
        return np.asarray(stats.ttest_ind(arms[0, :, :k], arms[1, :, :k], axis=1))[1]

    crossed = np.zeros(trials, dtype=bool)
    for look in schedule.looks:
        assert look.n_seeds is not None
        crossed |= p_at(look.n_seeds) < look.level
    error = math.sqrt(alpha * (1 - alpha) / trials)
    assert crossed.mean() <= alpha + 2 * error
    assert crossed.mean() >= alpha - 6 * error
    peeking = np.any([p_at(k) < alpha for k in range(3, n + 1)], axis=0)
    assert peeking.mean() > 0.1


def test_schedules_that_make_no_sense_are_refused():
    for fractions in ([], [0.5], [0.6, 0.5, 1.0], [0.0, 1.0]):
        with pytest.raises(UserError, match="expected ascending shares"):
            looks.plan(fractions)
    with pytest.raises(UserError, match="every look needs seeds of its own"):
        looks.plan([0.1, 0.2, 1.0], n_seeds=6)


def finding(shift: float, n: int, level: float):
    rng = np.random.default_rng(0)
    rows = [
        Outcome(c, s if c == "a" else 100 + s, "t", f"q{i}", 0, "score", float(shift * (c == "a") + rng.normal() / 10))
        for c in "ab"
        for s in range(n)
        for i in range(5)
    ]
    contrast = Contrast(candidate="a", baseline="b", suite="t", metric="score")
    return judge(OutcomeTable.read(rows), [contrast], AnalysisConfig(alpha=level), primary_metric="score")[0]


def test_decisions_only_at_planned_looks():
    schedule = looks.plan([0.5, 1.0], n_seeds=8)
    assert schedule.at(5) is None
    first = schedule.at(4)
    assert first is not None
    clear, open_ = finding(1.0, 4, first.level), finding(0.0, 4, first.level)
    with pytest.raises(UserError, match="no look is planned at 5 seeds; looks are at 4, 8"):
        looks.decide(schedule, 5, clear)
    decided = looks.decide(schedule, 4, clear)
    assert (decided.stop, decided.verdict, decided.seeds_saved) == (True, "CONFIRMED", 4)
    assert not looks.decide(schedule, 4, open_).stop
    assert looks.decide(schedule, 4, open_, futility=25.0).reason.startswith("futile")
    assert looks.decide(schedule, 8, replace(open_, reason="open")).stop


def test_betting_never_calls_a_worthwhile_recipe_futile_too_often():
    rng = np.random.default_rng(3)
    trials, hits = 4000, 0
    for _ in range(trials):
        difference_S = np.clip(0.05 + 0.3 * rng.standard_normal(40), -1, 1)
        hits += looks.e_process(difference_S, margin=0.05, span=1.0).max() >= 20
    assert hits / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_betting_recognises_a_harmful_recipe():
    difference_S = np.full(60, -0.3) + np.tile([0.1, -0.1], 30)
    evidence_S = looks.e_process(difference_S, margin=0.0, span=1.0)
    assert evidence_S[0] == 1.0
    assert evidence_S[-1] > 20
    with pytest.raises(UserError, match="within"):
        looks.e_process(np.array([0.1, 2.0]), margin=0.0, span=1.0)
