"""Penalties on length, the filter of dynamic sampling, and returns with the divergence in them."""

import numpy as np
import pytest

from finetrial.train.shaping import keep_group, kl_returns, overlong_penalty


def test_the_penalty_grows_over_the_last_tokens():
    length = np.array([10000, 16384, 17408, 18432, 20480, 20481])
    assert overlong_penalty(length, 20480, 4096).tolist() == [0, 0, -0.25, -0.5, -1, -1]


@pytest.mark.parametrize(
    ("grades", "keep"),
    [
        ([1, 1, 1, 1], False),
        ([0, 0, 0, 0], False),
        ([1, 0, 1, 0], True),
        ([-1, -1, -1, 1], True),
        ([0.5, 0.5, 0.5, 0.5], False),
        ([1, float("nan")], False),
        ([], False),
    ],
)
def test_groups_with_right_and_wrong_answers_are_kept(grades: list[float], keep: bool):
    assert keep_group(np.array(grades, float)) is keep


def test_returns_pay_for_the_divergence_from_each_token_on():
    logp_T, base_T = np.array([-1.0, -0.5, -2.0]), np.array([-1.2, -0.4, -1.5])
    assert kl_returns(1.0, logp_T, base_T, 0.1) == pytest.approx([1.04, 1.06, 1.05])
    assert len(kl_returns(1.0, logp_T[:0], base_T[:0], 0.1)) == 0
