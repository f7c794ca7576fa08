"""The Universal Scalability Law: known values, recovery from data, and what noise must not do."""

import json
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial import seeds
from finetrial.train.batch_sizing import Observations, UslFit, capacity, choose_rows, fields, fit_usl

ROWS = [1, 2, 4, 8, 16, 32, 64]


def measured(law: UslFit, rows=ROWS) -> tuple[list[float], list[float]]:
    return list(rows), [law.throughput(p) for p in rows]


def test_known_values():
    assert capacity(20, 0.05, 0.001) == pytest.approx(20 / 2.33)
    assert capacity(10, 0.1, 0.0) == pytest.approx(10 / 1.9)
    assert capacity(1, 0.3, 0.2) == 1
    assert UslFit(1.0, 0.05, 0.001).peak == pytest.approx(sqrt(0.95 / 0.001))


def test_exact_data_give_the_law_back():
    fit = fit_usl(*measured(UslFit(500.0, 0.08, 0.003)))
    assert fit is not None
    assert (fit.rate, fit.sigma, fit.kappa) == pytest.approx((500, 0.08, 0.003), rel=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.08, 1.0])
def test_without_coherency_there_is_no_peak(sigma):
    fit = fit_usl(*measured(UslFit(500.0, sigma, 0.0)))
    assert fit is not None
    assert fit.peak is None
    assert fit.sigma == pytest.approx(sigma, abs=1e-9)
    assert {fit.regime(rows) for rows in (1, 10, 1e6)} <= {"scaling", "saturating"}
    assert choose_rows(fit, 777) == 777


@given(
    sigma=st.floats(0, 1),
    kappa=st.just(0.0) | st.floats(1e-9, 0.1),
    rate=st.floats(0.1, 1e5),
    most=st.integers(1, 300),
)
def test_the_choice_is_the_best_and_the_regimes_follow_the_slope(sigma, kappa, rate, most):
    law = UslFit(rate, sigma, kappa)
    paces = [law.throughput(p) for p in range(1, most + 1)]
    assert law.throughput(choose_rows(law, most)) == pytest.approx(max(paces), rel=1e-9)
    if law.peak is not None and law.peak > 1.5:
        assert law.regime(0.99 * law.peak) != "retrograde"
        assert law.regime(1.01 * law.peak) == "retrograde"
        assert law.gain(law.peak) == pytest.approx(0, abs=1e-9)
    p, step = 7.0, 1e-6
    slope = np.log(law.throughput(p * (1 + step)) / law.throughput(p)) / np.log1p(step)
    assert law.gain(p) == pytest.approx(slope, abs=1e-4)


@given(sigma=st.floats(0, 0.9), kappa=st.floats(1e-5, 0.05), rate=st.floats(0.1, 1e5))
def test_any_law_is_recovered(sigma, kappa, rate):
    fit = fit_usl(*measured(UslFit(rate, sigma, kappa)))
    assert fit is not None
    assert fit.sigma == pytest.approx(sigma, abs=1e-6)
    assert fit.kappa == pytest.approx(kappa, rel=1e-4)
    assert fit.rate == pytest.approx(rate, rel=1e-4)


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(1e-3, 1e6)), min_size=3, max_size=30))
def test_whatever_is_measured_the_law_is_a_law(pairs):
    fit = fit_usl([p for p, _ in pairs], [pace for _, pace in pairs])
    if fit is not None:
        assert 0 <= fit.sigma <= 1
        assert fit.kappa >= 0
        assert fit.rate > 0


def test_noise_and_hiccups_move_little():
    random, law = seeds.stream(1, "noise"), UslFit(500.0, 0.08, 0.003)
    rows = np.repeat(ROWS, 20)
    paces = np.array([law.throughput(p) for p in rows]) * random.lognormal(0, 0.03, len(rows))
    paces[::7] /= 10  # every seventh pass was held up
    fit = fit_usl(rows, paces)
    assert fit is not None
    assert fit.peak == pytest.approx(law.peak, rel=0.1)
    assert law.throughput(choose_rows(fit, 64)) > 0.99 * law.throughput(choose_rows(law, 64))


def test_noisy_linear_scaling_is_not_called_retrograde_where_it_was_measured():
    for seed in range(50):
        paces = 100 * np.array(ROWS) * seeds.stream(seed, "noise").lognormal(0, 0.02, len(ROWS))
        fit = fit_usl(ROWS, paces)
        assert fit is not None
        assert all(fit.regime(rows) == "scaling" for rows in ROWS[:-1])
        assert choose_rows(fit, 64) >= 32


@pytest.mark.parametrize("rows", [[], [8, 8, 8], [8, 16, 16], [100, 110, 120]])
def test_too_little_is_warmup(rows):
    assert fit_usl(rows, [100.0] * len(rows)) is None


@pytest.mark.parametrize(
    ("rows", "paces"), [([0, 1, 2], [1, 1, 1]), ([1, 2, 3], [1, 0, 1]), ([1, 2, 3], [1, np.inf, 1])]
)
def test_impossible_measurements_are_refused(rows, paces):
    with pytest.raises(ValueError, match="expected rows"):
        fit_usl(rows, paces)


@pytest.mark.parametrize("numbers", [(0, 1.0, 1), (1, 0.0, 1), (1, 1.0, 0), (1, float("nan"), 1)])
def test_impossible_observations_are_refused(numbers):
    with pytest.raises(ValueError, match="positive"):
        Observations().add(*numbers)


def test_until_there_is_a_law_three_numbers_of_rows_are_tried():
    law, seen, tried = UslFit(500.0, 0.08, 0.003), Observations(), []
    for _ in range(5):
        tried.append(seen.next_rows(64))
        seen.add(tried[-1], tried[-1] / law.throughput(tried[-1]))
    assert tried == [64, 32, 16, 18, 18]
    assert choose_rows(law, 64) in (17, 18)
    assert Observations().next_rows(1) == 1


def test_the_window_forgets_and_the_state_survives_json():
    seen = Observations(window=6)
    for rows in (5, 1, 2, 4):
        seen.add(rows, rows / 10)
    for rows in (3, 6, 9):
        seen.add(rows, 2.0, tokens=30 * rows)
    assert len(seen) == 6
    again = Observations.restore(json.loads(json.dumps(seen.state())))
    assert again.state() == seen.state()
    assert again.fit() == seen.fit()
    again.add(1, 0.1)
    assert len(again) == 6


def test_fields_before_and_after_there_is_a_law():
    law, seen = UslFit(500.0, 0.08, 0.003), Observations()
    before = fields(seen, rows=64, most=64, tokens=1000, seconds=2.0)
    assert before == {
        "bp_warmup": True,
        "bp_regime": "warmup",
        "bp_action": "hold",
        "bp_p_star": None,
        "bp_sigma": None,
        "bp_kappa": None,
        "bp_utilization": None,
        "bp_throughput": 500.0,
    }
    for rows in ROWS:
        seen.add(rows, rows / law.throughput(rows))
    tokens = round(law.throughput(64) * 10)
    after = fields(seen, rows=64, most=64, tokens=tokens, seconds=10.0)
    assert (after["bp_warmup"], after["bp_regime"], after["bp_action"]) == (False, "retrograde", "throttle")
    assert after["bp_p_star"] == pytest.approx(sqrt(0.92 / 0.003), rel=1e-4)
    assert after["bp_utilization"] == pytest.approx(law.throughput(64) / law.throughput(17.5), rel=1e-2)
    assert fields(seen, rows=4, most=64, tokens=1, seconds=1.0)["bp_action"] == "increase"
    assert fields(seen, rows=8, most=8, tokens=1, seconds=1.0)["bp_action"] == "hold"
    assert fields(seen, rows=2, most=8, tokens=1, seconds=1.0)["bp_regime"] == "scaling"
    assert fields(seen, rows=14, most=14, tokens=1, seconds=1.0)["bp_regime"] == "saturating"
    json.dumps(after, allow_nan=False)
