"""What every world promises: the same bytes everywhere, and problems held out by their own hash."""

from dataclasses import asdict

import pytest

from finetrial.data.worlds import VERSIONS, WORLDS
from finetrial.data.worlds.dice import CAMPAIGN_SHARE, Dice, split_of
from finetrial.errors import UserError
from finetrial.identity import digest
from finetrial.records import Example

GOLDEN = {
    ("shell", "base"): "2d490fce709b87559ba21fba9b7ed75744c46cb72c2b3fa8d6d41a470f54a02b",
    ("shell", "campaign"): "e7f7da8d59f131347639cb560a9532cd1d3d08bbd9ee1381b4fd5ea1b4704026",
    ("arithmetic", "base"): "27eead73004be1d5e3153069b8042091e02c1e56e99c8fa0c76259f738782c86",
    ("arithmetic", "campaign"): "c5f755a0e936eeb334827828c420cf20cc802aae5c821a05f5a8c58b59e1f949",
    ("replies", "base"): "338646cae49eb87e643589e88b106d47ab1ebfe65baee71465e465f507c4a6cc",
    ("replies", "campaign"): "2a8dc649937cbd56fce51130977951b59fb12dceb7e4cf1eb4c3823dac0d06df",
    ("physics", "base"): "a84222b2607fb58744492ebb623df06c05c0751ca30e1fbfccf1842df9b6e4a0",
    ("physics", "campaign"): "552f85140ce31a157e4b1e737d4352fe5bde0bce1e7bcbf9f8aee4e12d90210c",
    ("physics_mixed", "base"): "a4839d0180ada8d0bc645ea02928baa4a46e848a2ebb6068b84cbf5853d108f8",
    ("physics_mixed", "campaign"): "9cd288a0d209e212f05af3fff9e7ec39d0822a3db41688f184fa897c53d1e3d2",
    ("physics_clean", "base"): "470a5f38f5729322455a59e629f2556b83a2b3ded29031a0acd76bacf93cc7e1",
    ("physics_clean", "campaign"): "93eff9c52733b3c71f067d456850e9a83b88c970baa614f0d716dc7e622b250e",
    ("tickets", "base"): "a375e9bac730c850230d1c45273598f942b52537304deee06490f538aa5be86d",
    ("tickets", "campaign"): "acc8d0601a2587e882b86e9990056ed6d416e5d4ac8ca6dc2dc15c8b3cfc102c",
}
"""SHA-256 of the first 200 examples of seed 0. New bytes need a new VERSION and a new base model."""


def examples(world: str, split: str, count: int = 200, seed: int = 0) -> list[Example]:
    return list(WORLDS[world](count, seed, split))  # type: ignore[arg-type]


@pytest.mark.parametrize(("world", "split"), GOLDEN)
def test_bytes_are_the_same_on_every_machine(world: str, split: str) -> None:
    assert VERSIONS[world] == 1
    assert digest([asdict(example) for example in examples(world, split)]) == GOLDEN[world, split]


@pytest.mark.parametrize("world", WORLDS)
def test_a_longer_pool_begins_with_the_shorter(world: str) -> None:
    assert examples(world, "base", 300)[:101] == examples(world, "base", 101)


@pytest.mark.parametrize("world", WORLDS)
def test_ids_are_unique_and_counts_exact(world: str) -> None:
    rows = examples(world, "campaign", 301)
    assert len({row.id for row in rows}) == len(rows) == 301
    assert examples(world, "campaign", 0) == []


@pytest.mark.parametrize("world", WORLDS)
def test_no_problem_is_in_both_splits(world: str) -> None:
    base = {row.group for seed in range(3) for row in examples(world, "base", 2000, seed)}
    campaign = {row.group for seed in range(3) for row in examples(world, "campaign", 2000, seed)}
    assert base
    assert campaign
    assert not base & campaign


@pytest.mark.parametrize("world", WORLDS)
def test_seeds_give_different_rows(world: str) -> None:
    assert examples(world, "base", 20, 0) != examples(world, "base", 20, 1)


def test_a_quarter_of_the_problems_is_kept_for_campaigns() -> None:
    n = 4000
    kept = sum(split_of(f"{i} + {i}") == "campaign" for i in range(n))
    # Binomial(4000, 1/4) has sd 27; five of them.
    assert abs(kept - n * CAMPAIGN_SHARE / 256) < 5 * 27.4


@pytest.mark.parametrize("world", WORLDS)
def test_bad_requests_name_the_nearest(world: str) -> None:
    with pytest.raises(UserError, match="did you mean 'campaign'"):
        examples(world, "campain")
    with pytest.raises(UserError, match="count is -1"):
        examples(world, "base", -1)


def test_dice_stay_within_their_bounds_and_reach_them() -> None:
    dice = Dice(0, "test")
    draws = [dice.between(3, 6) for _ in range(400)]
    assert set(draws) == {3, 4, 5, 6}
    assert sorted(dice.sample("abcd", 4)) == list("abcd")
    assert not any(dice.chance(0) for _ in range(100))
    assert all(dice.chance(100) for _ in range(100))
