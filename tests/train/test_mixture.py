"""Mixtures: every part follows its share at every place, whatever the shares and the lengths of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetrial.train.batches import rows_at
from finetrial.train.mixture import blend, by_rows, by_tokens, shares, slack, verify
from finetrial.train.mixture_config import MixtureConfig


def mixture(*ratios: object, unit: str = "rows") -> MixtureConfig:
    parts = [{"name": "abcdef"[i], "source": "x", "ratio": ratio} for i, ratio in enumerate(ratios)]
    return MixtureConfig.model_validate({"unit": unit, "parts": parts})


@st.composite
def any_shares(draw: st.DrawFn) -> np.ndarray:
    """Shares (K, G) that change from place to place as they like; some parts rest for a while."""
    parts, places = draw(st.integers(2, 7)), draw(st.integers(1, 60))
    weight = st.one_of(st.just(0.0), st.floats(1e-3, 1.0))
    rows = draw(st.lists(st.lists(weight, min_size=parts, max_size=parts), min_size=places, max_size=places))
    weights = np.array(rows)
    weights[weights.sum(axis=1) == 0, 0] = 1.0
    return weights / weights.sum(axis=1, keepdims=True)


@given(any_shares())
def test_rows_of_every_part_are_within_one_of_its_target_after_every_place(share_KG: np.ndarray) -> None:
    part_K = by_rows(share_KG)
    given_KG = np.cumsum(part_K[:, None] == np.arange(share_KG.shape[1]), axis=0)
    assert np.abs(given_KG - np.cumsum(share_KG, axis=0)).max() <= 1 + 1e-6


def test_always_taking_the_part_farthest_behind_would_break_the_promise() -> None:
    """Four parts: each place fills those that were not served yet, and the last one is more than a row behind."""
    share_KG = np.array([[1 / 4] * 4, [0, *[1 / 3] * 3], [0, 0, 1 / 2, 1 / 2]])
    behind_G = np.zeros(4)
    for share_G in share_KG:
        behind_G += share_G
        behind_G[behind_G.argmax()] -= 1
    assert behind_G.max() > 1
    given_G = np.bincount(by_rows(share_KG), minlength=4)
    assert np.abs(given_G - share_KG.sum(axis=0)).max() <= 1 + 1e-6


@given(any_shares(), st.data())
def test_tokens_of_every_part_are_within_the_slack_of_its_share(share_KG: np.ndarray, data: st.DataObject) -> None:
    places, parts = share_KG.shape
    lengths = st.lists(st.integers(1, 40), min_size=places, max_size=places)
    size_GK = np.array([data.draw(lengths) for _ in range(parts)])
    part_K = by_tokens(share_KG, size_GK)
    taken_G, behind_G, longest = [0] * parts, np.zeros(parts), 0
    for k, part in enumerate(part_K):
        size = int(size_GK[part, taken_G[part]])
        taken_G[part] += 1
        longest = max(longest, size)
        behind_G += share_KG[k] * size
        behind_G[part] -= size
        assert np.abs(behind_G).max() <= slack("tokens", parts, longest) + 1e-6


def test_two_parts_in_tokens_are_within_the_longest_row() -> None:
    assert slack("tokens", 2, 17) == 17
    assert slack("rows", 9, 17) == 1


def test_a_fifth_is_every_fifth_row() -> None:
    config = mixture(0.2)
    part_K = blend(config, 3, [np.full(7, 5), np.full(4, 5)], batch_size=5, steps=20).part_K.reshape(20, 5)
    assert (part_K.sum(axis=1) == 1).all()


def test_each_part_goes_through_its_own_permutations_and_the_selected_rows_through_those_without_a_mixture() -> None:
    made = blend(mixture(0.3, 0.25), 3, [np.full(7, 5), np.full(4, 5), np.full(9, 5)], batch_size=4, steps=30)
    selected_K = made.row_K[made.part_K == 0]
    assert selected_K.tolist() == rows_at(3, 7, range(len(selected_K)))
    for part, size in ((1, 4), (2, 9)):
        mine = made.row_K[made.part_K == part]
        epochs = [mine[start : start + size] for start in range(0, len(mine) - size + 1, size)]
        assert len(epochs) > 1
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)


def test_a_share_of_nothing_reads_what_is_read_without_a_mixture() -> None:
    for unit in ("rows", "tokens"):
        made = blend(mixture(0.0, unit=unit), 3, [np.arange(1, 8), np.full(4, 5)], batch_size=4, steps=30)
        assert not made.part_K.any()
        assert made.row_K.tolist() == rows_at(3, 7, range(120))


def test_a_curriculum_is_linear_between_its_points() -> None:
    config = mixture([[0.25, 0.0], [0.75, 1.0]], 0.0)
    share_UG = shares(config, 9)
    assert share_UG[:, 1].tolist() == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert share_UG.sum(axis=1).tolist() == pytest.approx([1] * 9)
    assert config.selected_share == pytest.approx(0.5)
    part_UB = blend(config, 1, [np.full(9, 1)] * 3, batch_size=8, steps=9).part_K.reshape(9, 8)
    assert part_UB.sum(axis=1).tolist() == [0, 0, 0, 2, 4, 6, 8, 8, 8]


def test_tokens_follow_their_shares_where_rows_of_a_part_are_long() -> None:
    made = blend(mixture(0.5, unit="tokens"), 1, [np.full(9, 10), np.full(9, 30)], batch_size=4, steps=50)
    rows = np.bincount(made.part_K)
    assert made.given_KG[-1].tolist() == [10 * rows[0], 30 * rows[1]]
    assert abs(made.given_KG[-1, 0] - made.given_KG[-1, 1]) <= 60


def test_the_order_in_which_parts_are_written_does_not_matter() -> None:
    parts = [{"name": name, "source": "x", "ratio": ratio} for name, ratio in (("b", 0.3), ("a", 0.3))]
    one, two = MixtureConfig(parts=tuple(parts)), MixtureConfig(parts=tuple(parts[::-1]))  # type: ignore[arg-type]
    assert one.names == two.names == ("selected", "a", "b")
    sizes = [np.full(5, 3)] * 3
    assert (blend(one, 1, sizes, 3, 9).part_K == blend(two, 1, sizes, 3, 9).part_K).all()


def test_what_was_given_is_compared_with_what_was_planned() -> None:
    config = mixture(0.25)
    made = blend(config, 1, [np.full(9, 2), np.full(9, 2)], batch_size=4, steps=6)
    verify("a seed 1", config, made, 24, {"selected": 18, "a": 6})
    verify("a seed 1", config, made, 12, {"selected": 9, "a": 3})
    with pytest.raises(RuntimeError, match=r"a seed 1: mixture of rows: selected was given 17; planned were 18"):
        verify("a seed 1", config, made, 24, {"selected": 17, "a": 7})


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((1.2,), "lies in"),
        ((0.6, 0.6), "add up to 1.2"),
        ((0.5, 0.5), "would never be read"),
        (([[0.5, 0.1], [0.5, 0.2]],), "each value once"),
        (([[0.0, 0.9], [1.0, 0.0]], [[0.0, 0.0], [0.5, 0.7], [1.0, 0.2]]), "at progress 0.5"),
    ],
)
def test_impossible_shares_are_refused(ratios: tuple, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        mixture(*ratios)


def test_parts_need_names_of_their_own() -> None:
    part = {"name": "selected", "source": "x", "ratio": 0.1}
    with pytest.raises(ValidationError, match="names of their own"):
        MixtureConfig.model_validate({"parts": [part]})
