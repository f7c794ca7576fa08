"""The strength of pooling: ramp, variance, and a gate that opens once and without a jump."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.train.rl_config import SepaConfig
from finetrial.train.sepa import SepaState, observe, sepa_lambda

LINEAR = SepaConfig(steps=100, delay_steps=10, correct_rate_gate=0)


@pytest.mark.parametrize(
    ("step", "strength"), [(0, 0.0), (10, 0.0), (11, 0.01), (15, 0.05), (60, 0.5), (110, 1.0), (200, 1.0)]
)
def test_linear(step: int, strength: float):
    assert sepa_lambda(LINEAR, SepaState(), step, 200) == pytest.approx(strength)


def test_defaults_follow_the_length_of_the_run():
    config = SepaConfig(correct_rate_gate=0)
    assert sepa_lambda(config, SepaState(), 10, 100) == 0
    assert sepa_lambda(config, SepaState(), 35, 100) == pytest.approx(0.5)
    assert sepa_lambda(config, SepaState(), 60, 100) == 1
    assert sepa_lambda(config, SepaState(), 1, 1) == 1


def test_auto_follows_the_variance_from_the_end_of_the_warm_up():
    config = SepaConfig(
        schedule="auto", ema=0.9, threshold=0.2, warmup_steps=2, correct_rate_gate=0, delay_steps=10**6, steps=1
    )
    state, found = SepaState(), []
    for step, variance in enumerate([1.0, 1.0, *[0.0] * 20], start=1):
        state = observe(config, state, None, variance)
        found.append(sepa_lambda(config, state, step + 1, 100))
    expected = [0.0] * 17 + [0.0734899056, 0.166140915, 0.2495268235, 0.3245741412, 0.392116727]
    assert found == pytest.approx(expected, abs=1e-9)
    assert state.updates == state.steps == 22


def test_auto_is_at_least_the_ramp_and_ignores_missing_variances():
    config = SepaConfig(schedule="auto", warmup_steps=1, correct_rate_gate=0, delay_steps=0, steps=10)
    state = observe(config, observe(config, SepaState(), 0.5, None), 0.5, 2.0)
    assert (state.steps, state.updates, state.first_variance) == (2, 1, 2.0)
    assert sepa_lambda(config, state, 3, 10) == pytest.approx(0.3)
    still = observe(config, SepaState(), None, 0.0)
    assert sepa_lambda(config, still, 2, 10) == pytest.approx(0.2)


def test_the_gate_opens_once_acts_from_the_next_step_and_stays_open():
    config = SepaConfig(steps=10, delay_steps=0, correct_rate_gate=0.3)
    state = SepaState()
    for rate in (0.1, None, 0.29):
        state = observe(config, state, rate, 1.0)
        assert not state.gate_open
        assert sepa_lambda(config, state, state.steps + 1, 100) == 0
    state = observe(config, state, 0.3, 1.0)
    assert state.gate_open
    assert state.updates == 0
    assert sepa_lambda(config, state, 5, 100) == pytest.approx(0.1)
    assert observe(config, state, 0.0, 1.0).gate_open


@given(st.integers(0, 400), st.sampled_from(["linear", "auto"]))
def test_a_late_gate_does_not_make_the_strength_jump(closed: int, schedule: str):
    config = SepaConfig.model_validate(
        {"schedule": schedule, "steps": 100, "delay_steps": 10, "correct_rate_gate": 0.5, "warmup_steps": 3}
    )
    state, before = SepaState(), 0.0
    for step in range(1, closed + 30):
        strength = sepa_lambda(config, state, step, 500)
        assert 0 <= strength - before <= 0.01 + 1e-12
        before = strength
        state = observe(config, state, 0.6 if step > closed else 0.1, 1.0 if step > closed else 50.0)
    assert before > 0


def test_the_state_survives_json():
    state = observe(LINEAR, SepaState(), 0.5, 0.25)
    assert SepaState(**json.loads(json.dumps(asdict(state)))) == state
