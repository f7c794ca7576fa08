"""Maps of rewards to a scale."""

import math

import pytest

from finetrial.errors import UserError
from finetrial.judge.scale import checked_map


def broken(reward: float) -> float:
    """A published map: 1 + 9 z clipped to 1..10, with z in three pieces that do not meet."""
    z = (reward + 5) / 10 if reward < 0 else reward if reward <= 1 else min(1.0, reward / 5)
    return min(10.0, max(1.0, 1 + 9 * z))


def test_a_map_whose_pieces_do_not_meet_is_refused():
    assert (broken(-0.1), broken(0), broken(1), broken(1.0001)) == pytest.approx((5.41, 1.0, 10.0, 2.8), abs=0.01)
    with pytest.raises(UserError, match=r"is not monotone: reward .* only"):
        checked_map(broken, -10, 10)
    for low, high in ((-1, 0.5), (0.5, 2)):
        with pytest.raises(UserError, match="is not monotone"):
            checked_map(broken, low, high, points=3)


@pytest.mark.parametrize(
    ("good", "low", "high"),
    [
        (lambda reward: 1 + 9 / (1 + math.exp(-reward)), -30, 30),
        (lambda reward: min(10.0, max(1.0, reward)), -5, 20),
        (lambda reward: float(reward > 0), -1, 1),
    ],
)
def test_a_map_that_never_falls_is_returned(good, low, high):
    assert checked_map(good, low, high) is good


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda reward: -reward, "not monotone"),
        (lambda _: 5.0, "everywhere"),
        (lambda reward: math.nan if reward > 0 else reward, "gives nan for reward"),
        (lambda reward: math.inf if reward > 3 else reward, "gives inf"),
    ],
)
def test_other_maps_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        checked_map(bad, -5, 5)
