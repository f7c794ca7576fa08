"""Corrections against statsmodels and scipy, and the law that interval and decision agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from finetrial import seeds
from finetrial.analyze.estimate import Estimate, p_value
from finetrial.analyze.families import adjusted_p, by_steps, dunnett, max_t, step_levels
from finetrial.analyze.permute import max_t_paired, max_t_unpaired, sign_flip

P_VALUES = [seeds.stream(k, "test", "p").random(1 + k % 12) ** (1 + k % 4) for k in range(24)]


def made(value: float, v_seed: float = 1.0, df: float = 7.0) -> Estimate:
    return Estimate(*map(np.asarray, (value, v_seed, 0.0, df, 99.0)))


@pytest.mark.parametrize(("ours", "theirs"), [("holm", "holm"), ("benjamini_hochberg", "fdr_bh")])
def test_adjusted_p_and_decisions_are_statsmodels(ours: str, theirs: str) -> None:
    for p in P_VALUES:
        rejected, adjusted, _, _ = multipletests(p, alpha=0.05, method=theirs)
        assert adjusted_p(p, ours) == pytest.approx(adjusted, rel=1e-9)
        assert (p <= step_levels(p, 0.05, ours)).tolist() == rejected.tolist()


def test_levels_over_replicates_are_those_of_each_replicate() -> None:
    p_RJ = seeds.stream(0, "test").random((50, 6)) ** 3
    for correction in ("holm", "benjamini_hochberg", "none"):
        batch = step_levels(p_RJ, 0.05, correction)
        assert (batch == np.stack([step_levels(p_J, 0.05, correction) for p_J in p_RJ])).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(0.1, 4.0), st.integers(2, 20)), min_size=1, max_size=8))
def test_interval_excludes_the_margin_exactly_when_holm_rejects_it(parts: list[tuple[float, float, int]]) -> None:
    margin = 0.5
    family = [made(value, v, df) for value, v, df in parts]
    p = [float(p_value(e, margin)) for e in family]
    if any(abs(np.log(x / (0.05 / k))) < 1e-6 for x in p for k in range(1, 9)):
        return
    rejected, going = [False] * len(p), True
    for step, j in enumerate(np.argsort(p, kind="stable")):
        going = going and p[j] <= 0.05 / (len(p) - step)
        rejected[j] = going
    for e, adjusted, reject in zip(
        family, by_steps(family, [margin] * len(family), 0.05, "holm"), rejected, strict=True
    ):
        assert (abs(float(e.estimate) - margin) > adjusted.critical * float(e.standard_error)) == reject


def test_a_contrast_that_cannot_be_estimated_still_counts() -> None:
    alone = by_steps([made(3.0)], [0.0], 0.05, "holm")[0]
    beside = by_steps([made(3.0), None], [0.0, 0.0], 0.05, "holm")[0]
    assert beside.p == pytest.approx(2 * alone.p)
    assert beside.level == pytest.approx(0.025)


def test_dunnett_is_scipys_on_seed_means() -> None:
    rng = seeds.stream(5, "test")
    control = rng.normal(size=8)
    arms = [rng.normal(shift, size=8) for shift in (0.3, 1.0, 1.8)]
    pooled = np.mean([x.var(ddof=1) for x in (control, *arms)])
    family = [made(float(x.mean() - control.mean()), float(pooled) * 2 / 8, 28.0) for x in arms]
    family = [Estimate(e.estimate, e.v_seed, e.v_rest, e.df_seed, np.asarray(1e6)) for e in family]
    ours = dunnett(family, [(8, 8)] * 3, 0.05)
    theirs = stats.dunnett(*arms, control=control, rng=np.random.default_rng(0))
    assert [x.p for x in ours] == pytest.approx(theirs.pvalue, abs=4e-3)
    interval = theirs.confidence_interval(0.95)
    half = [x.critical * float(e.standard_error) for x, e in zip(ours, family, strict=True)]
    assert half == pytest.approx((interval.high - interval.low) / 2, rel=0.01)


def test_dunnett_critical_value_is_the_tabulated_one() -> None:
    # Dunnett 1955, two-sided 5 %: 4 treatments and a control, 20 degrees of freedom: 2.65.
    family = [Estimate(*map(np.asarray, (1.0, 1.0, 0.0, 20.0, 1e6)))] * 4
    assert dunnett(family, [(5, 5)] * 4, 0.05)[0].critical == pytest.approx(2.65, abs=0.02)


def test_max_t_of_one_contrast_is_the_sign_flip_test() -> None:
    difference = seeds.stream(6, "test").normal(0.8, 1.0, size=8)
    e = made(float(difference.mean()), float(difference.var(ddof=1)) / 8)
    reference, exact = max_t_paired(difference[None])
    assert exact
    assert max_t([e], reference, exact, 0.05)[0].p == pytest.approx(sign_flip(difference), abs=1e-12)


def test_max_t_cannot_decide_with_too_few_arrangements() -> None:
    reference, exact = max_t_paired(np.array([[1.0, 1.1, 0.9]]))
    adjusted = max_t([made(50.0)], reference, exact, 0.05)[0]
    assert np.isinf(adjusted.critical)
    assert adjusted.p >= 0.25


def test_max_t_interval_and_p_agree() -> None:
    rng = seeds.stream(7, "test")
    for k in range(20):
        d_JS = rng.normal(0.6, 1.0, size=(3, 9))
        family = [made(float(d.mean()), float(d.var(ddof=1)) / 9) for d in d_JS]
        for e, x in zip(family, max_t(family, *max_t_paired(d_JS), 0.05), strict=True):
            assert (x.p <= 0.05) == (abs(float(e.estimate)) > x.critical * float(e.standard_error)), k


def test_unpaired_max_t_is_near_dunnett_for_normal_runs() -> None:
    rng = seeds.stream(8, "test")
    base, arms = rng.normal(size=12), [rng.normal(size=12) for _ in range(4)]
    reference, exact = max_t_unpaired(arms, base)
    assert not exact
    critical = max_t([made(1.0)], reference, exact, 0.05)[0].critical
    assert critical == pytest.approx(dunnett([made(1.0, 1.0, 22.0)] * 4, [(12, 12)] * 4, 0.05)[0].critical, rel=0.12)
