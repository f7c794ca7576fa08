"""Token-level credit agrees with worked examples and moves what it says it moves, nothing else."""

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.errors import UserError
from finetrial.train.advantages import maxrl
from finetrial.train.credit import (
    TRANSFORMS,
    Credit,
    Tokens,
    credit,
    entropy_mask,
    grpo_s,
    gtpo_published,
    gtpo_weights,
    hicra,
    sepa_amplify,
    sepa_pool,
    shaped,
    uncertainty,
)
from finetrial.train.rl_config import OF_RIGHT_AND_WRONG, RLConfig, TransformMode

NAN = float("nan")
SURPRISAL = [0.2, 0.3, 1.8, 0.1, 0.9, 0.2, 2.1, 0.3, 0.1, 0.2]
PLANNING = [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


def tokens(
    values: list[list[float]],
    planning: list[list[int]] | None = None,
    rewards: list[float] | None = None,
    advantage: list[float] | None = None,
) -> Tokens:
    count = len(values)
    owner_N = np.repeat(np.arange(count), [len(row) for row in values])
    return Tokens(
        reward_G=np.array([1.0] * count if rewards is None else rewards),
        advantage_N=np.array([1.0] * count if advantage is None else advantage)[owner_N],
        uncertainty_N=np.array([v for row in values for v in row], float),
        planning_N=np.array([m for row in (planning or [[0] * len(r) for r in values]) for m in row], bool),
        owner_N=owner_N,
        position_N=np.array([t for row in values for t in range(len(row))], int),
    )


def shared(
    mode: str, advantage: list[float], values: list[list[float]], planning: list[list[int]], strength: float, **rl: Any
) -> Credit:
    rewards = np.array([1.0 if a > 0 else 0.0 for a in advantage])
    config = RLConfig.model_validate({"transform_mode": mode, **rl})
    return credit(
        config,
        np.array(advantage),
        rewards,
        [np.array(v, float) for v in values],
        [np.array(m, bool) for m in planning],
        strength,
    )


GROUP = st.lists(
    st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=12), min_size=1, max_size=5
)  # (uncertainty, planning) of each token of each completion


def split(group: list[list[tuple[float, bool]]]) -> tuple[list[list[float]], list[list[int]]]:
    return [[u for u, _ in row] for row in group], [[int(p) for _, p in row] for row in group]


def test_every_mode_has_one_rule():
    assert sorted(TRANSFORMS) == sorted(get_args(TransformMode))


def test_gtpo_weights():
    found = gtpo_weights(tokens([SURPRISAL]), np.array(SURPRISAL), 0.1)
    expected = [0.932258064, 0.948387096, 1.190322576, 0.916129032, 1.045161288, 0.932258064, 1.238709672]
    assert found == pytest.approx([*expected, 0.948387096, 0.916129032, 0.932258064], rel=2e-8)
    clamped = gtpo_weights(tokens([SURPRISAL]), np.array(SURPRISAL), 2.0)
    assert clamped == pytest.approx([0, 0, 4.8064515193, 0, 1.9032257596, 0, 5.7741934391, 0, 0, 0], rel=2e-7)
    assert gtpo_weights(tokens([[0.1, 0.5, 0.9]]), np.array([0.1, 0.5, 0.9]), 0.1) == pytest.approx([0.92, 1, 1.08])


@given(GROUP, st.floats(0, 1))
def test_gtpo_moves_credit_and_keeps_its_mean(group: list[list[tuple[float, bool]]], beta: float):
    values, _ = split(group)
    t = tokens(values)
    weights_N = gtpo_weights(t, t.uncertainty_N, beta)
    for i, row in enumerate(values):
        if row:
            assert weights_N[t.owner_N == i].mean() == pytest.approx(1, abs=1e-9)
    assert (weights_N >= 0).all()


def test_gtpo_leaves_tokens_alike_that_were_all_certain():
    assert gtpo_weights(tokens([[0.0, 0.0]]), np.zeros(2), 0.5).tolist() == [1, 1]


def test_hicra_rewards_planning_more_and_blames_it_less():
    found = hicra(np.array([0.5, -0.5, 0.0, 1.0, 1.0, -1.0]), np.array([1, 1, 1, 0, 1, 1], bool), 0.2)
    assert found == pytest.approx([0.6, -0.4, 0, 1, 1.2, -0.8])


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (1.0, [0.2875, 0.2875, 1.8, 0.2875, 0.2875, 0.2875, 2.1, 0.2875, 0.2875, 0.2875]),
        (0.5, [0.24375, 0.29375, 1.8, 0.19375, 0.59375, 0.24375, 2.1, 0.29375, 0.19375, 0.24375]),
        (0.0, SURPRISAL),
    ],
)
def test_pooling(strength: float, expected: list[float]):
    assert sepa_pool(tokens([SURPRISAL], [PLANNING]), strength) == pytest.approx(expected)


@given(GROUP, st.floats(0, 1))
def test_pooling_keeps_the_execution_mean_and_planning_tokens(group: list[list[tuple[float, bool]]], strength: float):
    t = tokens(*split(group))
    pooled_N = sepa_pool(t, strength)
    assert (pooled_N[t.planning_N] == t.uncertainty_N[t.planning_N]).all()
    for i in range(len(group)):
        execution_N = (t.owner_N == i) & ~t.planning_N
        if execution_N.any():
            assert pooled_N[execution_N].mean() == pytest.approx(t.uncertainty_N[execution_N].mean(), abs=1e-9)
    assert (sepa_pool(t, 0.0) == t.uncertainty_N).all()
    assert (sepa_amplify(t, 0.0, floor=False) == t.uncertainty_N).all()


def test_amplifying_spreads_execution_tokens():
    assert sepa_amplify(tokens([[0.1, 0.5, 0.9]], [[1, 0, 0]]), 1.0, False) == pytest.approx([0.1, 0.3, 1.1])
    assert sepa_amplify(tokens([[0.05, 0.95]]), 1.0, True) == pytest.approx([0, 1.4])
    assert sepa_amplify(tokens([[0.05, 0.95]]), 1.0, False) == pytest.approx([-0.4, 1.4])


def test_the_pipeline_from_reward_to_token():
    advantage = maxrl(np.array([1.0, 0, 0, 0]), 0.0).tolist()
    values, planning = [SURPRISAL, [0.5], [0.5], [0.5]], [PLANNING, [0], [0], [0]]
    plain = shared("gtpo_sepa", advantage, values, planning, 0.0).advantage[0]
    assert plain[:5] == pytest.approx([2.796774192, 2.845161288, 3.5709677279, 2.748387096, 3.1354838639], rel=2e-8)
    assert plain[5:] == pytest.approx([2.796774192, 3.7161290159, 2.845161288, 2.748387096, 2.796774192], rel=2e-8)
    pooled = shared("gtpo_sepa", advantage, values, planning, 1.0)
    execution, plans = 2.839112901, (3.5709677279, 3.7161290159)
    expected = [plans[PLANNING[:t].count(1)] if PLANNING[t] else execution for t in range(10)]
    assert pooled.advantage[0] == pytest.approx(expected, rel=2e-8)
    assert pooled.uncertainty_after[0][0] == pytest.approx(0.2875)
    amplified = hicra(pooled.advantage[0], np.array(PLANNING, bool), 0.2)
    assert amplified[[2, 6]] == pytest.approx([4.2851612735, 4.459354819], rel=2e-8)
    both = shared("gtpo_hicra", advantage, values, planning, 1.0).advantage[0]
    assert both == pytest.approx(hicra(plain, np.array(PLANNING, bool), 0.2))


def test_half_pooled_maxrl_on_a_group_of_two():
    advantage = maxrl(np.array([1.0, 0.0]), 1e-6).tolist()
    values, planning = [[0.5, 0.3, 0.1], [0.8, 0.6, 0.4]], [[0, 1, 0], [0, 0, 1]]
    found = shared("gtpo_sepa", advantage, values, planning, 0.5).advantage
    assert found[0] == pytest.approx([1.033331, 0.999998, 0.966665], abs=1e-6)
    assert found[1] == pytest.approx([-1.024998, -1.008331, -0.966665], abs=1e-6)


ENTROPIES = [[0.5, 1.0, 0.2], [1.5, 1.0], [0.1, 2.0, 0.4, 0.4], [0.4, 0.5]]


def test_gtpo_as_published():
    t = tokens(ENTROPIES, rewards=[1, 1, 0, 0])
    found = gtpo_published(t, 1.0, 0.1, 0.01)
    assert found[:5] == pytest.approx([-1.5811309244, 0, 0, 1.5811309244, 0], abs=1e-6)
    assert found[5:] == pytest.approx([-1.2247423003, 1.2247423394, 0, 0, 1.2247423003, -1.2247423394], abs=1e-6)


@pytest.mark.parametrize("rewards", [[1, 1, 1, 1], [0, 0, 0, 0], [1, NAN, NAN, NAN]])
def test_gtpo_as_published_is_silent_on_groups_that_teach_nothing(rewards: list[float]):
    assert not gtpo_published(tokens(ENTROPIES, rewards=rewards), 1.0, 0.1, 0.01).any()


def test_gtpo_as_published_leaves_out_missing_grades_and_single_completions_of_a_class():
    found = gtpo_published(tokens(ENTROPIES, rewards=[NAN, 1, 0, 0]), 1.0, 0.1, 0.01)
    assert not found[:5].any()
    assert found[5:] == pytest.approx([-1.2247423, 1.2247423, 0, 0, 1.2247423, -1.2247423], abs=1e-6)


def test_gtpo_as_published_survives_certain_tokens_and_refuses_partial_rewards():
    found = gtpo_published(tokens([[0.0, 0.0], [0.0, 1.0], [0.0], [1.0]], rewards=[1, 1, 0, 0]), 1.0, 0.1, 0.01)
    assert np.isfinite(found).all()
    with pytest.raises(UserError, match=r"needs rewards 0 or 1; found 0\.5"):
        gtpo_published(tokens(ENTROPIES, rewards=[1, 0.5, 0, 0]), 1.0, 0.1, 0.01)


@given(GROUP, st.data())
def test_gtpo_as_published_sums_to_0_within_each_class(group: list[list[tuple[float, bool]]], data: st.DataObject):
    values, _ = split(group)
    rewards = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(group), max_size=len(group)))
    t = tokens(values, rewards=rewards)
    found = gtpo_published(t, 1.0, 0.1, 0.01)
    for sign in (0.0, 1.0):
        assert found[(t.reward_G == sign)[t.owner_N]].sum() == pytest.approx(0, abs=1e-5)


def test_shaped_rewards_of_a_place_sum_to_how_many_there_are_where_the_weights_sum_to_1():
    t = tokens(ENTROPIES, rewards=[1, 1, 0, 0])
    for reward, want in ((1, [2, 2, 1]), (0, [-2, -2, -1, -1])):
        mine_N = (t.reward_G == reward)[t.owner_N]
        at_M = t.position_N[mine_N]
        found_M = shaped(reward, t.uncertainty_N[mine_N], at_M, 0.9, 0.1, 0.01)
        assert np.bincount(at_M, found_M) == pytest.approx(want)


def test_grpo_s_shapes_whole_completions():
    means = np.array([0.5666666667, 1.25, 0.725, 0.45])
    want = [1.0623853211, 1.1376146789, -1.0765957447, -1.1234042553]
    found = [
        *shaped(1, means[:2], np.zeros(2, int), 1.0, 0.1, 0.01),
        *shaped(0, means[2:], np.zeros(2, int), 1, 0.1, 0.01),
    ]
    assert found == pytest.approx(want)
    t = tokens(ENTROPIES, rewards=[1, 1, 0, 0])
    assert grpo_s(t, 1.0, 0.1, 0.01) == pytest.approx([-1] * 3 + [1] * 2 + [1] * 4 + [-1] * 2, abs=1e-4)
    three = tokens([[0.5], [1.0, 1.0], [3.0], [2.0], [1.0]], rewards=[1, 1, 1, 0, NAN])
    assert grpo_s(three, 1.0, 0.1, 0.01) == pytest.approx([-0.9258, -0.4629, -0.4629, 1.3887, 0, 0], abs=1e-4)


@pytest.mark.parametrize("rewards", [[1, 1, 1, 1], [0, 0, 0, 0], [1, NAN, NAN, NAN]])
def test_grpo_s_is_silent_on_groups_that_teach_nothing_and_refuses_partial_rewards(rewards: list[float]):
    assert not grpo_s(tokens(ENTROPIES, rewards=rewards), 1.0, 0.1, 0.01).any()
    with pytest.raises(UserError, match=r"'grpo_s' needs rewards 0 or 1; found 0\.5"):
        grpo_s(tokens(ENTROPIES, rewards=[1, 0.5, 0, 0]), 1.0, 0.1, 0.01)


def test_the_mask_keeps_the_most_uncertain_tokens_of_the_group():
    t = tokens([[1.0, 4.0], [3.0, 2.0]])
    assert entropy_mask(t, 0.5).tolist() == [False, True, True, False]
    assert entropy_mask(t, 0.01).tolist() == [False, True, False, False]
    assert entropy_mask(t, 1.0).all()
    holed = tokens([[9.0, 9.0], [3.0, 2.0]], rewards=[NAN, 1.0])
    assert entropy_mask(holed, 0.5).tolist() == [False, False, True, False]
    assert not entropy_mask(tokens([[1.0]], rewards=[NAN]), 0.5).any()
    found = shared("entropy_mask", [1.0, -1.0], [[1, 4], [3, 2]], [[0, 0], [0, 0]], 0.0, mask={"share": 0.5})
    assert [a_T.tolist() for a_T in found.advantage] == [[0, 1], [-1, 0]]


def test_delight_gates_by_advantage_times_surprisal():
    values, planning = [[0.0, 2.0], [2.0]], [[0, 0], [0]]
    found = shared("delight", [1.0, -1.0], values, planning, 0.0).advantage
    assert found[0] == pytest.approx([0.5, 1 / (1 + np.exp(-2))])
    assert found[1] == pytest.approx([-1 / (1 + np.exp(2))])
    soft = shared("delight", [1.0, -1.0], values, planning, 0.0, delight={"eta": 2.0}).advantage
    assert soft[1] == pytest.approx([-1 / (1 + np.exp(1))])
    half = shared("delight_sepa", [1.0, -1.0], values, planning, 0.5).advantage
    assert half[1] == pytest.approx([-(0.5 + 0.5 / (1 + np.exp(2)))])
    none = shared("delight_sepa", [1.0, -1.0], values, planning, 0.0).advantage
    assert [a_T.tolist() for a_T in none] == [[1, 1], [-1]]


@given(GROUP, st.sampled_from(sorted(set(TRANSFORMS) - {*OF_RIGHT_AND_WRONG})), st.floats(0, 1))
def test_credit_keeps_shapes_and_no_advantage_stays_none(
    group: list[list[tuple[float, bool]]], mode: str, strength: float
):
    values, planning = split(group)
    found = shared(mode, [0.0] * len(group), values, planning, strength)
    assert [len(a_T) for a_T in found.advantage] == [len(row) for row in group]
    assert [len(u_T) for u_T in found.uncertainty_after] == [len(row) for row in group]
    assert not any(a_T.any() for a_T in found.advantage)
    assert shared(mode, [], [], [], strength).advantage == []


@given(GROUP, st.sampled_from(sorted(set(TRANSFORMS) - {*OF_RIGHT_AND_WRONG, "entropy_mask"})))
def test_completions_do_not_depend_on_their_neighbours(group: list[list[tuple[float, bool]]], mode: str):
    values, planning = split(group)
    together = shared(mode, [2.0] * len(group), values, planning, 0.7).advantage
    for i in range(len(group)):
        (alone,) = shared(mode, [2.0], values[i : i + 1], planning[i : i + 1], 0.7).advantage
        assert alone == pytest.approx(together[i])


def test_the_published_form_starts_from_rewards():
    planning = [[0] * len(row) for row in ENTROPIES]
    found = shared("gtpo_published", [9.0, 3, -1, -2], ENTROPIES, planning, 0.0, uncertainty_kind="entropy")
    assert found.advantage[0] == pytest.approx([-1.5811309244, 0, 0], abs=1e-6)


def test_kinds_of_uncertainty():
    logp_T, entropy_T = np.log([0.25, 1.0]), np.array([0.7, 0.0])
    assert uncertainty("surprisal", logp_T) == pytest.approx([np.log(4), 0])
    assert uncertainty("predictive_variance", logp_T) == pytest.approx([0.1875, 0])
    assert uncertainty("entropy", logp_T, entropy_T).tolist() == [0.7, 0]
    with pytest.raises(ValueError, match="entropies are missing"):
        uncertainty("entropy", logp_T)
    with pytest.raises(ValueError, match="no uncertainty of kind 'perplexity'"):
        uncertainty("perplexity", logp_T)


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        shared("none", [1.0], [[1.0, 2.0]], [[0]], 0.0)
