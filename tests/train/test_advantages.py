"""Advantages agree with published numbers, keep the laws of their definitions, and treat odd groups in one way."""

from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from finetrial.errors import UserError
from finetrial.train.advantages import (
    ADVANTAGES,
    BATCH_ADVANTAGES,
    advantages,
    best_of,
    dr_grpo,
    grpo,
    informative,
    maxrl,
    passk_training,
    pkpo,
    poly_epo,
    reinforce_pp,
    reinforce_pp_baseline,
    reinforce_pp_returns,
    rloo,
    strategies,
)
from finetrial.train.rl_config import AdvantageMode, RLConfig

NAN = float("nan")
REWARDS = st.lists(st.integers(0, 20).map(lambda i: i / 20), min_size=2, max_size=9).map(np.array)
BINARY = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=9).map(np.array)


def config(mode: str, **advantage: Any) -> RLConfig:
    return RLConfig.model_validate({"advantage_mode": mode, "advantage": advantage})


def step(mode: str, *groups: list[float], **advantage: Any) -> list[np.ndarray]:
    clusters = [np.arange(len(group)) for group in groups]
    tokens = [np.ones(len(group), int) for group in groups]
    return advantages(config(mode, **advantage), [np.array(group) for group in groups], tokens, clusters)


def test_every_mode_has_one_rule():
    assert sorted([*ADVANTAGES, *BATCH_ADVANTAGES]) == sorted(get_args(AdvantageMode))


def test_grpo_names_its_deviation_and_epsilon():
    r_G = np.array([1.0, 0.0, 0.0, 1.0])
    assert grpo(r_G, 1, 1e-6) == pytest.approx([0.8660239038, -0.8660239038, -0.8660239038, 0.8660239038], abs=1e-10)
    assert grpo(r_G, 0, 0.0) == pytest.approx([1, -1, -1, 1])
    assert grpo(r_G, 1, 1e-4) == pytest.approx([0.8658754298, -0.8658754298, -0.8658754298, 0.8658754298], abs=1e-10)
    r_G = np.array([0.2, 0.9, 0.5, 0.5])
    assert grpo(r_G, 1, 1e-6) == pytest.approx([-1.1315008243, 1.3055778742, -0.0870385249, -0.0870385249], abs=1e-10)
    assert grpo(r_G, 0, 0.0) == pytest.approx([-1.3065491598, 1.5075567229, -0.1005037815, -0.1005037815], abs=1e-10)


def test_dr_grpo_and_rloo():
    r_G = np.array([0.2, 0.9, 0.5, 0.5])
    assert dr_grpo(r_G) == pytest.approx([-0.325, 0.375, -0.025, -0.025])
    assert rloo(r_G) == pytest.approx([-0.4333333333, 0.5, -0.0333333333, -0.0333333333], abs=1e-10)
    assert r_G - rloo(r_G) == pytest.approx([0.6333333333, 0.4, 0.5333333333, 0.5333333333], abs=1e-10)


def test_reinforce_pp_baseline_weighs_statistics_by_tokens():
    rewards = [np.array([1.0, 0, 0, 1]), np.array([0.0, 0, 0, 1])]
    tokens = [np.array([3, 5, 2, 4]), np.array([6, 1, 2, 5])]
    assert np.concatenate(reinforce_pp_baseline(rewards, tokens)) == pytest.approx(
        [0.906249292, -1.1237491221, -1.1237491221, 0.906249292, *[-0.6162495186] * 3, 1.4137488955],
        abs=1e-9,
    )
    centred = [r_G - r_G.mean() for r_G in rewards]
    assert np.concatenate(reinforce_pp(centred, tokens)) == pytest.approx(
        np.concatenate(reinforce_pp_baseline(rewards, tokens))
    )


def test_reinforce_pp_compares_over_the_step_and_the_baseline_form_silences_equal_groups():
    first, second = step("reinforce_pp", [1.0, 1.0], [0.0, 0.0])
    assert first == pytest.approx([1, 1])
    assert second == pytest.approx([-1, -1])
    first, second = step("reinforce_pp_baseline", [1.0, 0.0], [1.0, 1.0])
    assert first == pytest.approx([np.sqrt(2), -np.sqrt(2)])
    assert second.tolist() == [0, 0]
    assert step("reinforce_pp", [1.0], [1.0])[0].tolist() == [0]
    assert step("reinforce_pp") == []


def test_reinforce_pp_moments_over_tokens_are_0_and_1():
    rewards, tokens = [np.array([0.1, 0.9]), np.array([0.4, 0.4, 1.0])], [np.array([7, 2]), np.array([1, 0, 4])]
    for rule in (reinforce_pp, reinforce_pp_baseline):
        value_N = np.repeat(np.concatenate(rule(rewards, tokens)), np.concatenate(tokens))
        assert value_N.mean() == pytest.approx(0, abs=1e-12)
        assert value_N.std() == pytest.approx(1)


def test_steps_without_tokens_teach_nothing():
    silent = advantages(config("reinforce_pp"), [np.array([0.0, 1.0])], [np.array([0, 0])])
    assert silent[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0, 0, 0, 0, 0], [6.9999440004] + [-0.9999920001] * 7),
        ([1, 1, 0, 0], [0.999998, 0.999998, -0.999998, -0.999998]),
        ([1, 1, 1, 1], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0.5, 0.25, 0.0, 0.25], [0.999996, 0, -0.999996, 0]),
    ],
)
def test_maxrl(rewards: list[float], expected: list[float]):
    assert maxrl(np.array(rewards, float), 1e-6) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("p", "n", "order"), [(0.2, 4, 0.3904), (0.5, 3, 0.375)])
def test_maxrl_follows_the_likelihood_up_to_order_n_minus_1(p: float, n: int, order: float):
    """Its expected gradient on a Bernoulli policy is that of the log likelihood's series cut after n - 1 terms."""
    expected = 0.0
    for k in range(n + 1):
        r_G = np.array([1.0] * k + [0.0] * (n - k))
        gradient = (maxrl(r_G, 0.0) * np.where(r_G == 1, 1 - p, -p)).mean()
        expected += comb(n, k) * p**k * (1 - p) ** (n - k) * gradient
    assert expected == pytest.approx(order)
    assert order == pytest.approx(p * (1 - p) * sum((1 - p) ** (k - 1) for k in range(1, n)))


def test_passk_training():
    a_G = passk_training(np.array([1.0, 1, 0, 0, 0, 0, 0, 0]), 4, 1e-6)
    assert a_G == pytest.approx([0.5222316951] * 2 + [-0.1740772317] * 6, abs=1e-7)
    a_G = passk_training(np.array([1.0, 1, 0, 0, 0, 0, 0, 0]), 4, 0.0)
    assert a_G == pytest.approx([0.5222329679] * 2 + [-0.174077656] * 6, abs=1e-10)


def test_passk_training_is_scaled_pkpo_and_vanishes_where_every_set_succeeds():
    r_G = np.array([1.0, 1, 0, 0, 0, 0, 0, 0])
    s_G = best_of(r_G, 4)
    assert passk_training(r_G, 4, 0.0) == pytest.approx((8 / 4) * (s_G - s_G.mean()) / 0.4103259033)
    assert passk_training(np.array([1.0, 1, 1, 0]), 2, 0.0).tolist() == [0, 0, 0, 0]


def test_pkpo_on_rewards_between():
    g_G = np.array([0.0, 0.5, 0.2, 1.0])
    assert best_of(g_G, 2) == pytest.approx([0.2833333333, 0.3333333333, 0.2833333333, 0.5], abs=1e-10)
    assert best_of(g_G, 2).sum() / 2 == pytest.approx(0.7)
    assert pkpo(g_G, 2, "loo") == pytest.approx([-0.2722222222, -0.1555555556, -0.2722222222, 0.2333333333], abs=1e-10)
    assert pkpo(g_G, 2, "loo_minus_one") == pytest.approx([0, 0.1333333333, 0.0333333333, 0.3833333333], abs=1e-10)
    assert pkpo(g_G, 4, "loo_minus_one") == pytest.approx([0, 0, 0, 0.5], abs=1e-12)


def test_pkpo_on_successes():
    g_G = np.array([1.0, 1, 0, 0, 0, 0])
    assert best_of(g_G, 3) == pytest.approx([0.5, 0.5, 0.35, 0.35, 0.35, 0.35])
    assert best_of(g_G, 3).sum() / 3 == pytest.approx(0.8)
    assert pkpo(g_G, 3, "loo_minus_one") == pytest.approx([0.3, 0.3, 0, 0, 0, 0], abs=1e-12)


def _subsets(g_G: np.ndarray, k: int) -> list[tuple[int, ...]]:
    return list(combinations(range(len(g_G)), k))


@given(REWARDS, st.integers(1, 5))
def test_pkpo_is_what_enumeration_gives(g_G: np.ndarray, k: int):
    n = len(g_G)
    assume(k < n)
    best = {subset: g_G[list(subset)].max() for subset in _subsets(g_G, k)}
    s_G = [sum(value for subset, value in best.items() if i in subset) / len(best) for i in range(n)]
    assert best_of(g_G, k) == pytest.approx(s_G, abs=1e-12)
    others = [[g_G[list(subset)].max() for subset in best if i not in subset] for i in range(n)]
    loo_G = [s - k / (n - 1) * np.mean(rest) for s, rest in zip(s_G, others, strict=True)]
    assert pkpo(g_G, k, "loo") == pytest.approx(loo_G if informative(g_G) else [0] * n, abs=1e-12)
    if k >= 2:
        gain_G = [
            sum(v - g_G[[j for j in subset if j != i]].max() for subset, v in best.items() if i in subset) / len(best)
            for i in range(n)
        ]
        found_G = pkpo(g_G, k, "loo_minus_one")
        assert found_G == pytest.approx(gain_G, abs=1e-12)
        assert (found_G >= -1e-12).all()


@given(REWARDS, st.integers(1, 5))
def test_passk_training_is_what_enumeration_gives(r_G: np.ndarray, k: int):
    assume(k <= len(r_G))
    best = {subset: r_G[list(subset)].max() for subset in _subsets(r_G, k)}
    mean, std = np.mean(list(best.values())), np.std(list(best.values()))
    expected_G = [np.mean([v for subset, v in best.items() if i in subset]) - mean for i in range(len(r_G))]
    expected_G = np.array(expected_G) / (std + 1e-3) if std > 1e-6 else np.zeros(len(r_G))
    assert passk_training(r_G, k, 1e-3) == pytest.approx(expected_G, abs=1e-9)


@given(BINARY)
def test_passk_training_with_sets_of_one_is_grpo(r_G: np.ndarray):
    assert passk_training(r_G, 1, 0.0) == pytest.approx(grpo(r_G, 0, 0.0), abs=1e-9)


@given(REWARDS)
def test_pkpo_with_sets_of_one_is_a_reward_less_a_baseline_that_leaves_it_out(r_G: np.ndarray):
    n = len(r_G)
    others_G = (r_G.sum() - r_G) / (n - 1)
    expected_G = r_G / n - others_G / (n - 1) if informative(r_G) else np.zeros(n)
    assert pkpo(r_G, 1, "loo") == pytest.approx(expected_G, abs=1e-12)


def test_poly_epo():
    a_G = poly_epo(np.array([1.0, 1, 1, 0]), strategies(["a", "a", "b", "c"]), 2)
    assert a_G == pytest.approx([0, 0, 0.1666666667, -0.1666666667], abs=1e-10)
    a_G = poly_epo(np.array([1.0, 1, 1, 1, 0, 0, 0, 0]), strategies([*"aaabccde"]), 4)
    assert a_G == pytest.approx([0.025] * 3 + [0.0892857143] + [-0.0553571429] * 2 + [-0.0267857143] * 2, abs=1e-10)


@given(REWARDS, st.data(), st.integers(2, 5))
def test_poly_epo_is_what_enumeration_gives_and_sums_to_0(r_G: np.ndarray, data: st.DataObject, n: int):
    assume(n < len(r_G))
    names = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=len(r_G), max_size=len(r_G))))
    score = {
        subset: r_G[list(subset)].mean() * len({c for c in names[list(subset)] if c >= 0}) / n
        for subset in _subsets(r_G, n)
    }
    mean = np.mean(list(score.values()))
    expected_G = [np.mean([f for subset, f in score.items() if i in subset]) - mean for i in range(len(r_G))]
    a_G = poly_epo(r_G, names, n)
    assert a_G == pytest.approx(expected_G, abs=1e-12)
    assert a_G.sum() == pytest.approx(0, abs=1e-12)


def test_poly_epo_counts_all_sets_of_large_groups():
    r_G = (np.arange(16) % 3 == 0).astype(float)
    names = np.arange(16) % 5
    sets = np.array(list(combinations(range(16), 8)))
    f_K = r_G[sets].mean(axis=1) * np.array([len(set(row)) for row in names[sets].tolist()]) / 8
    holds_KG = (sets[:, :, None] == np.arange(16)).any(axis=1)
    expected_G = (f_K @ holds_KG) / holds_KG.sum(axis=0) - f_K.mean()
    assert poly_epo(r_G, names, 8) == pytest.approx(expected_G, abs=1e-12)


def test_poly_epo_teaches_variety_among_right_answers_and_asks_for_strategies():
    rewards, tokens = [np.ones(3), np.zeros(3)], [np.ones(3, int)] * 2
    rl = config("poly_epo", set_size=2)
    right, wrong = advantages(rl, rewards, tokens, [strategies(["a", "a", "b"])] * 2)
    assert right[2] > 0 > right[0]
    assert wrong.tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="needs the strategy of every completion"):
        advantages(rl, rewards, tokens)


def test_strategies_number_labels_and_leave_unknown_ones_out():
    assert strategies(["7", None, "8", "7"]).tolist() == [0, -1, 1, 0]
    assert strategies([]).tolist() == []


@given(REWARDS, st.floats(-5, 5))
def test_a_constant_on_all_rewards_changes_nothing(r_G: np.ndarray, shift: float):
    for rule in (lambda r: grpo(r, 1, 1e-6), dr_grpo, rloo):
        assert rule(r_G + shift) == pytest.approx(rule(r_G), abs=1e-6)


@pytest.mark.parametrize("mode", ["maxrl", "passk_training", "pkpo"])
@pytest.mark.parametrize("odd", [-0.5, 1.5])
def test_rates_of_success_are_refused_outside_0_and_1(mode: str, odd: float):
    with pytest.raises(UserError, match=rf"advantage_mode '{mode}' needs rewards in \[0, 1\].*found {odd}"):
        step(mode, [0.0, 1.0, 1.0, 0.0, odd])


def test_pkpo_refuses_sets_of_one_without_a_set_to_compare_with():
    with pytest.raises(UserError, match="needs k >= 2"):
        pkpo(np.array([0.0, 1.0]), 1, "loo_minus_one")


@given(REWARDS, st.floats(0.01, 1))
def test_scale(r_G: np.ndarray, scale: float):
    for rule in (lambda r: grpo(r, 0, 0.0), lambda r: maxrl(r, 0.0)):
        assert rule(r_G * scale) == pytest.approx(rule(r_G), abs=1e-9)
    for rule in (dr_grpo, rloo):
        assert rule(r_G * scale) == pytest.approx(scale * rule(r_G), abs=1e-12)


SUMS_TO_0: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda r: grpo(r, 1, 1e-6),
    dr_grpo,
    rloo,
    lambda r: maxrl(r, 1e-6),
    lambda r: passk_training(r, 2, 1e-6),
]


@given(REWARDS)
def test_group_baselines_sum_to_0(r_G: np.ndarray):
    for rule in SUMS_TO_0:
        assert rule(r_G).sum() == pytest.approx(0, abs=1e-9)


@given(REWARDS)
def test_relatives(r_G: np.ndarray):
    n = len(r_G)
    assert rloo(r_G) == pytest.approx(n / (n - 1) * dr_grpo(r_G), abs=1e-12)
    if r_G.any():
        assert maxrl(r_G, 0.0) == pytest.approx(dr_grpo(r_G) / r_G.mean(), abs=1e-12)


@pytest.mark.parametrize("mode", [mode for mode in ADVANTAGES if mode != "poly_epo"])
@pytest.mark.parametrize("rewards", [[], [1.0], [NAN], [1.0, NAN], [0.0] * 4, [1.0] * 4, [0.3] * 3 + [NAN], [0.1] * 7])
def test_groups_that_teach_nothing_get_0(mode: str, rewards: list[float]):
    assert not informative(np.array(rewards))
    (a_G,) = step(mode, rewards, k=2)
    assert a_G.tolist() == [0] * len(rewards)


def test_rewards_that_differ_by_rounding_only_are_equal():
    assert not informative(np.array([0.1 + 0.2, 0.3]))
    assert informative(np.array([0.3, 0.3 + 1e-6]))


@pytest.mark.parametrize("mode", [*ADVANTAGES, *BATCH_ADVANTAGES])
def test_missing_grades_get_0_and_enter_no_statistic(mode: str):
    whole, other = [0.0, 1.0, 0.0, 1.0, 0.5], [0.25, 1.0, 0.0]
    first, _ = step(mode, whole, other, k=2, set_size=2)
    holed, _ = step(mode, [NAN, *whole[:2], NAN, *whole[2:]], other, k=2, set_size=2)
    assert holed[[0, 3]].tolist() == [0, 0]
    assert np.delete(holed, [0, 3]) == pytest.approx(first)


@pytest.mark.parametrize("mode", ["passk_training", "pkpo", "poly_epo"])
def test_too_few_grades_for_a_set_teach_nothing(mode: str):
    (a_G,) = step(mode, [0.0, 1.0, NAN, NAN, NAN], k=3, set_size=3)
    assert a_G.tolist() == [0] * 5
    (a_G,) = step("pkpo", [0.0, 1.0, 1.0], k=3, pkpo="loo")
    assert a_G.tolist() == [0] * 3


@pytest.mark.parametrize(
    "table",
    [
        {"advantage_mode": "pkpo", "advantage": {"k": 1}},
        {"advantage_mode": "pkpo", "advantage": {"k": 16, "pkpo": "loo"}},
        {"advantage_mode": "maxrl", "overlong": {"cache": 8}},
        {"advantage_mode": "pkpo", "loss": {"kl_in": "reward", "kl_coef": 0.1}},
        {"overlong": {"cache": 129}},
        {"transform_mode": "gtpo_published"},
        {"transform_mode": "gtpo_published", "uncertainty_kind": "entropy", "overlong": {"cache": 8}},
    ],
)
def test_contradictions_are_refused_in_the_configuration(table: dict[str, Any]):
    with pytest.raises(ValueError, match=r"advantage|overlong|gtpo_published"):
        RLConfig.model_validate(table)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 5)), min_size=2, max_size=8))
def test_returns_that_are_alike_in_a_completion_are_its_reward(group):
    rewards, tokens = np.array([r for r, _ in group]), np.array([t for _, t in group])
    assume(np.ptp(rewards) > 0)
    found = reinforce_pp_returns([[np.full(t, r) for r, t in group]])
    for value_T, want in zip(found[0], reinforce_pp([rewards], [tokens])[0], strict=True):
        np.testing.assert_allclose(value_T, want, rtol=1e-12, atol=1e-12)


def test_returns_are_whitened_over_graded_tokens_and_what_has_no_grade_gets_none():
    found = reinforce_pp_returns([[np.array([1.0, 0.5]), np.array([np.nan, np.nan, np.nan])], [np.array([-0.5])]])
    values = np.concatenate([found[0][0], found[1][0]])
    assert values.mean() == pytest.approx(0, abs=1e-12)
    assert values.var() == pytest.approx(1)
    assert found[0][1].tolist() == [0, 0, 0]
