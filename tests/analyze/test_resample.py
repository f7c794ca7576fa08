"""Bootstraps, suites, proportions, labels and pass@k against scipy, statsmodels and published numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from finetrial import seeds
from finetrial.analyze.labels import corrected_mean
from finetrial.analyze.passk import estimate_pass_at_k, pass_at_k
from finetrial.analyze.proportions import beta_binomial, wilson
from finetrial.analyze.resample import bootstrap, difference, perplexity_difference, perplexity_ratio
from finetrial.analyze.suites import (
    aggregate_improvement,
    aggregate_iqm,
    aggregate_profile,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from finetrial.errors import UserError


def rng(k: int = 0) -> np.random.Generator:
    return seeds.stream(k, "test resample")


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_items_alone_are_scipys_bootstrap(method: str) -> None:
    d_I = rng().gamma(1.0, 1.0, 80)
    ours = bootstrap(d_I[None], np.zeros((1, 80)), difference, rng(1), paired=False, method=method)
    theirs = stats.bootstrap(
        (d_I,), np.mean, method={"bca": "BCa"}.get(method, method), n_resamples=20_000, rng=rng(2)
    ).confidence_interval
    assert ours.ci == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_spread_over_seeds_is_unbiased() -> None:
    seed_S = rng(3).normal(size=6)
    flat_SI = np.tile(seed_S[:, None], (1, 5))
    result = bootstrap(flat_SI, np.zeros((1, 5)), difference, rng(4), paired=False, level=0.6827, method="percentile")
    assert (result.ci[1] - result.ci[0]) / 2 == pytest.approx(seed_S.std(ddof=1) / np.sqrt(6), rel=0.06)


def test_paired_seeds_cancel_and_items_are_the_same_in_both_arms() -> None:
    common_SI = rng(5).normal(size=(6, 1)) + rng(6).normal(size=40) * 10
    noise = rng(7).normal(size=(2, 6, 40)) * 0.01
    result = bootstrap(common_SI + noise[0], common_SI + noise[1], difference, rng(8), paired=True, resamples=2000)
    assert result.ci[1] - result.ci[0] < 0.01
    apart = bootstrap(common_SI + noise[0], common_SI + noise[1], difference, rng(8), paired=False, resamples=2000)
    assert apart.ci[1] - apart.ci[0] > 0.5


def test_perplexity_is_weighted_by_tokens_and_missing_cells_are_left_out() -> None:
    tokens = rng().integers(5, 50, size=(4, 30)).astype(float)
    nll = tokens * rng(1).gamma(20, 0.1, size=(4, 30))
    nll[1, 3:6] = np.nan
    a, b = np.stack([nll, tokens], -1), np.stack([tokens * 1.5, tokens], -1)
    log_a = np.nansum(nll) / tokens[~np.isnan(nll)].sum()
    ratio = bootstrap(a, b, perplexity_ratio, rng(), paired=True, resamples=200)
    gap = bootstrap(a, b, perplexity_difference, rng(), paired=True, resamples=200)
    assert ratio.estimate == pytest.approx(np.exp(log_a - 1.5))
    assert gap.estimate == pytest.approx(np.exp(log_a) - np.exp(1.5))
    assert ratio.ci[0] < ratio.estimate < ratio.ci[1]
    a[:, 1:] = np.nan
    with pytest.raises(UserError, match="some resamples are empty"):
        bootstrap(a, b, perplexity_ratio, rng(), paired=True, resamples=200)


def test_groups_of_items_are_drawn_as_a_whole() -> None:
    value_I = np.repeat(rng(9).normal(size=10), 20)
    group_I = np.repeat(np.arange(10), 20)
    zero = np.zeros((1, 200))
    apart, together = (
        bootstrap(
            value_I[None], zero, difference, rng(10), paired=False, resamples=4000, group_I=g, method="percentile"
        )
        for g in (None, group_I)
    )
    ratio = (together.ci[1] - together.ci[0]) / (apart.ci[1] - apart.ci[0])
    assert ratio == pytest.approx(np.sqrt(20), rel=0.1)


def test_the_stream_decides_and_misfits_are_refused() -> None:
    x = rng(11).normal(size=(3, 10))
    assert bootstrap(x, x[:2], difference, rng(12), paired=False, resamples=100) == bootstrap(
        x, x[:2], difference, rng(12), paired=False, resamples=100
    )
    for arms, paired, method, message in (
        ((x, x[:, :5]), False, "bca", "do not match"),
        ((x, x[:2]), True, "bca", "do not match"),
        ((x, x), False, "normal", "expected 'percentile' or 'bca'"),
        ((x[:1, :1], x[:1, :1]), False, "bca", "no spread to resample"),
    ):
        with pytest.raises(UserError, match=message):
            bootstrap(*arms, difference, rng(), paired=paired, method=method)


def test_pass_at_k_is_the_published_formula(data_dir: Path) -> None:
    cases = json.loads((data_dir.parent / "vectors" / "methods.json").read_text())
    (case,) = [c for c in cases if c["method"] == "pass_at_k"]
    n, c, k = map(list, zip(*case["inputs"]["cases"], strict=True))
    ours = [float(pass_at_k(np.array(x), np.array(y), z)) for x, y, z in zip(n, c, k, strict=True)]
    assert ours == pytest.approx(case["expected"]["unbiased"], abs=1e-9)


def test_pass_at_k_of_codegen_on_humaneval(data_dir: Path) -> None:
    counts = json.loads((data_dir / "codet_humaneval" / "derived_counts.json").read_text())
    n, c = np.array(counts["n"]), np.array(counts["c"])
    assert [round(float(pass_at_k(n, c, k).mean()), 3) for k in (1, 10, 100)] == [0.216, 0.496, 0.726]


def test_pass_at_k_has_an_interval_and_headroom() -> None:
    right = rng(30).binomial(20, rng(31).beta(1, 1, size=60), size=(5, 60))
    n = np.full(right.shape, 20)
    result = estimate_pass_at_k(n, right, 10, rng(32))
    assert result.ci[0] < result.estimate < result.ci[1] <= 1
    assert result.headroom == pytest.approx(1 - pass_at_k(n, right, 10).mean())
    assert result.steady
    assert not estimate_pass_at_k(n, right, 11, rng(32)).steady
    assert estimate_pass_at_k(n[:1], right[:1], 1, rng(33)).unit == "items, of this checkpoint"


def test_pass_at_k_refuses_more_tries_than_samples() -> None:
    with pytest.raises(UserError, match="pass@5 needs at least 5 samples of every item; some item has 4"):
        pass_at_k(np.array([10, 4]), np.array([1, 1]), 5)
    with pytest.raises(UserError, match="between 0 and the number of samples"):
        pass_at_k(np.array([4]), np.array([5]), 1)
    assert pass_at_k(np.array([4, 4]), np.array([0, 4]), 4).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("c", "n"), [(0, 10), (1, 10), (7, 200), (10, 10)])
def test_small_proportions_are_statsmodels(c: int, n: int) -> None:
    assert wilson(c, n) == pytest.approx(proportion_confint(c, n, method="wilson"), abs=1e-12)
    assert beta_binomial(c, n, prior=(0.5, 0.5)) == pytest.approx(stats.beta.interval(0.95, c + 0.5, n - c + 0.5))
    with pytest.raises(UserError, match="expected 0 <= successes"):
        wilson(n + 1, n)


def test_interquartile_mean_and_profiles_are_rliables() -> None:
    scores = rng(13).normal(size=(7, 5))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores.ravel(), 0.25))
    profile = performance_profile(scores, np.array([-10.0, 0.0, 10.0]))
    assert profile.tolist() == [1.0, pytest.approx((scores > 0).mean()), 0.0]


def test_probability_of_improvement_is_mann_whitney() -> None:
    a, b = np.round(rng(14).normal(0.5, 1, size=(6, 3)), 1), np.round(rng(15).normal(size=(8, 3)), 1)
    u = [stats.mannwhitneyu(a[:, t], b[:, t]).statistic / 48 for t in range(3)]
    assert probability_of_improvement(a, b) == pytest.approx(np.mean(u))


def test_aggregates_over_dopamine_runs(data_dir: Path) -> None:
    rows = json.loads((data_dir / "dopamine" / "atari" / "data" / "breakout.json").read_text())
    last = {}
    for row in rows:
        if row["Iteration"] >= 190:
            last.setdefault(row["Agent"], {}).setdefault(row["Iteration"], []).append(row["Value"])
    scores = {agent: np.array(list(by.values())).T for agent, by in last.items()}
    dqn, rainbow = scores["DQN"], scores["Rainbow"]
    assert dqn.shape[0] == 5
    iqm = aggregate_iqm(dqn, rng(16), resamples=500)
    assert dqn.min() <= iqm.ci[0] <= iqm.estimate <= iqm.ci[1] <= dqn.max()
    forth = aggregate_improvement(dqn, rainbow, rng(17), paired=False, resamples=500)
    back = aggregate_improvement(rainbow, dqn, rng(17), paired=False, resamples=500)
    assert forth.estimate + back.estimate == pytest.approx(1.0)
    assert forth.ci[0] <= forth.estimate <= forth.ci[1]
    share, low, high = aggregate_profile(dqn, np.linspace(0, 400, 9), rng(18), resamples=200)
    assert (np.diff(share) <= 0).all()
    assert ((low <= share) & (share <= high)).all()


def test_aggregates_refuse_what_has_no_spread() -> None:
    x = rng(19).normal(size=(2, 4))
    with pytest.raises(UserError, match="at least 3 are required"):
        aggregate_iqm(x, rng())
    y = rng(19).normal(size=(4, 4))
    with pytest.raises(UserError, match="they must be the same ones"):
        aggregate_improvement(y, y[:, :2], rng(), paired=False)
    y[0, 0] = np.nan
    with pytest.raises(UserError, match="lacks a score"):
        aggregate_iqm(y, rng())


def test_labels_correct_a_biased_judge() -> None:
    human = rng(20).normal(3.0, 1.0, size=5000)
    judge = human + 0.8 + rng(21).normal(size=5000) * 0.3
    result = corrected_mean(human[:60], judge[:60], judge[60:])
    assert result.ci[0] < human.mean() < result.ci[1]
    alone = 2 * human[:60].std(ddof=1) / np.sqrt(60)
    assert result.ci[1] - result.ci[0] < alone
    assert 0.8 < result.weight <= 1.0


def test_labels_by_hand() -> None:
    y, f, g = np.array([1.0, 2, 3, 6]), np.array([1.0, 1, 3, 5]), np.array([2.0, 2, 4, 4, 3, 3])
    result = corrected_mean(y, f, g)
    covariance = ((y - 3) * (f - 2.5)).sum() / 3
    pooled = np.r_[f, g]
    weight = covariance / ((1 + 4 / 6) * ((pooled - pooled.mean()) ** 2).sum() / 9)
    assert result.weight == pytest.approx(min(weight, 1.0))
    assert result.estimate == pytest.approx(3 - result.weight * (2.5 - 3.0))
    spread = (y - result.weight * f).var(ddof=1) / 4 + result.weight**2 * g.var(ddof=1) / 6
    assert result.standard_error == pytest.approx(np.sqrt(spread))


def test_a_useless_judge_is_ignored() -> None:
    human, judge = rng(22).normal(size=40), np.full(540, 7.0)
    result = corrected_mean(human, judge[:40], judge[40:])
    assert result.weight == 0
    assert result.estimate == pytest.approx(human.mean())
    t = stats.ttest_1samp(human, 0).confidence_interval(0.95)
    assert result.ci == pytest.approx((t.low, t.high))
    with pytest.raises(UserError, match="at least 3 are required"):
        corrected_mean(human[:2], judge[:2], judge)
