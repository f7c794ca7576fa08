"""Scores of sets and advantages of their members: published numbers, laws, and the gradient that they estimate."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.train.advantages import poly_epo
from finetrial.train.set_scores import DIVERSITY, Members, advantages, score_set
from finetrial.train.term_config import EMBEDDED

TEXTS = ("the cat sat on the mat", "the cat sat on the rug", "a dog ran in the park")
WORDS = tuple(text.split() for text in TEXTS)
ONE_N = np.ones(3)


def members(texts=WORDS, embedding=None, strategy=None) -> Members:
    return Members(
        tuple(texts),
        None if embedding is None else np.array(embedding, dtype=np.float32),
        None if strategy is None else np.array(strategy, dtype=np.float64),
    )


def test_diversity_is_what_was_published():
    """Texygen's self-BLEU, distinct-n of Li et al., Vendi-Score's example, DQO's log-determinant."""
    assert DIVERSITY["distinct"](members(), 1) == pytest.approx(0.6111111111)
    assert DIVERSITY["distinct"](members(), 2) == pytest.approx(0.7333333333)
    assert DIVERSITY["self_bleu"](members(), 2) == pytest.approx(1 - 0.5635760629)
    assert DIVERSITY["self_bleu"](members(), 3) == pytest.approx(1 - 0.5436933584)
    assert DIVERSITY["semantic"](members(embedding=[[1, 0], [1, 1], [0, 2]]), 1) == pytest.approx(0.5285954792)
    at = math.sqrt(1 - 0.9**2)  # the angle whose cosine is 0.9
    vendi = DIVERSITY["vendi"](members(embedding=[[1, 0, 0], [0.9, at, 0], [0, 0, 1]]), 1)
    assert vendi == pytest.approx(2.1573004834 / 3, rel=1e-6)
    log_det = DIVERSITY["log_det"](members(embedding=[[1, 0], [1, 0], [0, 1]]), 1)
    assert log_det == pytest.approx(1.7917594692 / (3 * math.log(2)), rel=1e-6)
    assert DIVERSITY["clusters"](members(strategy=[0.1, 0.1, 0.7]), 1) == pytest.approx(2 / 3)


def test_scores_lie_between_copies_and_strangers():
    same, apart = [[1.0, 0.0, 0.0]] * 3, np.eye(3)
    copies, strangers = (["a", "b", "c"],) * 3, (["a", "b"], ["c", "d"], ["e", "f"])
    for kind, least in {"semantic": 0.0, "vendi": 1 / 3, "log_det": math.log(4) / math.log(8)}.items():
        assert DIVERSITY[kind](members(embedding=same), 1) == pytest.approx(least, abs=1e-9)
        assert DIVERSITY[kind](members(embedding=apart), 1) == pytest.approx(1.0)
    assert DIVERSITY["self_bleu"](members(copies), 2) == pytest.approx(0.0)
    assert DIVERSITY["self_bleu"](members(strangers), 2) == 1.0
    assert DIVERSITY["distinct"](members(copies), 2) == pytest.approx(1 / 3)
    assert DIVERSITY["distinct"](members(strangers), 2) == 1.0
    opposed = members(embedding=[[1, 0], [-1, 0], [0, 1]])
    assert DIVERSITY["semantic"](opposed, 1) == 1.0


@pytest.mark.parametrize("kind", [kind for kind in DIVERSITY if kind != "clusters"])
def test_one_text_beside_empty_ones_has_no_diversity(kind: str):
    some = members((["a", "b"], [], []), [[1, 0], [np.nan, np.nan], [np.nan, np.nan]])
    assert DIVERSITY[kind](some, 1) == 0.0


@pytest.mark.parametrize("kind", EMBEDDED)
def test_an_empty_text_adds_nothing_and_counts(kind: str):
    two = DIVERSITY[kind](members(WORDS[:2], [[1, 0], [0, 1]]), 1)
    three = DIVERSITY[kind](members((*WORDS[:2], []), [[1, 0], [0, 1], [np.nan, np.nan]]), 1)
    assert two == pytest.approx(1.0)
    assert three == pytest.approx(1.0 if kind == "semantic" else 2 / 3)


def test_a_set_that_the_rule_cannot_score_is_missing():
    """Bigrams of single words; and one text with bigrams, without which there is none."""
    assert score_set("distinct", members((["a"], ["b"], ["c"])), ONE_N, 2) is None
    assert score_set("distinct", members((["a", "b"], ["b"], ["c"])), ONE_N, 2) is None
    assert score_set("distinct", members((["a", "b"], ["b", "c"], ["c"])), ONE_N, 2) is not None


def test_two_completions_are_no_set_whose_members_could_be_compared():
    with pytest.raises(ValueError, match="expected 3"):
        score_set("distinct", members(WORDS[:2]), np.ones(2), 2)


def test_advantages_are_worth_without_each():
    scored = score_set("distinct", members(), ONE_N, 2)
    assert scored is not None
    # 10, 10 and 6 of 10 bigrams are distinct where the first, second, third completion is left out.
    assert scored.advantage_N == pytest.approx(np.array([-2 / 15, -2 / 15, 4 / 15]))
    assert (scored.score, scored.diversity, scored.quality) == (pytest.approx(11 / 15), pytest.approx(11 / 15), 1.0)


def test_nothing_to_gain_is_told_from_nothing_told_apart():
    """Strangers are saturated, copies flat; neither has advantages. A set of which some subsets are at 1 is neither."""
    for kind, best, copies in (
        ("distinct", members((["a", "b"], ["c", "d"], ["e", "f"])), members((["a", "b"],) * 3)),
        ("clusters", members(strategy=[1, 2, 3]), members(strategy=[1, 1, 1])),
        ("vendi", members(embedding=np.eye(3)), members(embedding=[[1, 0, 0]] * 3)),
    ):
        top, same = score_set(kind, best, ONE_N, 1), score_set(kind, copies, ONE_N, 1)
        assert top is not None
        assert same is not None
        assert (top.saturated, top.flat, top.full, same.saturated, same.flat, same.full) == (
            True, False, True, False, True, False,
        )  # fmt: skip
        assert not top.advantage_N.any()
        assert not same.advantage_N.any()
        poor = score_set(kind, best, np.array([1.0, 0.5, 1.0]), 1)
        assert poor is not None
        assert (poor.saturated, poor.full) == (True, False)
        assert poor.advantage_N.any()
    mixed = score_set("clusters", members(strategy=[1, 1, 2]), ONE_N, 1)
    assert mixed is not None
    assert not mixed.flat
    assert not mixed.saturated


def test_quality_gates_what_differs():
    """The text that differs most is worthless where its quality is 0: it lowers the set's quality and its score."""
    kind, order = "self_bleu", 2
    good, poor = score_set(kind, members(), ONE_N, order), score_set(kind, members(), np.array([1.0, 1, 0]), order)
    assert good is not None
    assert poor is not None
    assert good.advantage_N[2] > 0
    assert poor.advantage_N[2] < good.advantage_N[2]
    assert poor.score == pytest.approx(good.score * 2 / 3)
    none = score_set(kind, members(), np.zeros(3), order)
    assert none is not None
    assert none.score == 0
    assert not none.advantage_N.any()


values = st.lists(st.floats(0, 1), min_size=3, max_size=8).map(np.array)


@given(values)
def test_advantages_add_up_to_nothing(without_N: np.ndarray):
    assert advantages(without_N).sum() == pytest.approx(0, abs=1e-12)


@given(st.floats(0, 1), st.integers(3, 9))
def test_subsets_that_score_alike_teach_nothing(value: float, count: int):
    noise_N = 1 + 1e-15 * np.arange(count)
    assert not advantages(value * noise_N).any()


labels = st.lists(st.integers(0, 3), min_size=3, max_size=7)


@given(labels, st.data())
def test_a_set_of_strategies_is_taught_as_by_poly_epo(strategy: list[int], data: st.DataObject):
    """N - 1 times the marginal advantage over all sets of N - 1, with rewards for quality."""
    count = len(strategy)
    quality_N = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=count, max_size=count)))
    scored = score_set("clusters", members(["x"] * count, strategy=strategy), quality_N, 1)
    assert scored is not None
    want_N = (count - 1) * poly_epo(quality_N, np.array(strategy), count - 1)
    assert scored.advantage_N == pytest.approx(want_N, abs=1e-9)


words = st.lists(st.sampled_from("abcd"), min_size=2, max_size=6)


@given(st.lists(words, min_size=3, max_size=6), st.randoms(), st.sampled_from(["distinct", "self_bleu"]))
def test_order_of_a_set_does_not_matter_and_copies_are_worth_the_same(texts, random, kind: str):
    order = random.sample(range(len(texts) + 1), len(texts) + 1)
    copied = [*texts, texts[0]]
    quality_N = np.array([1 - 0.1 * len(set(text)) for text in copied])
    one = score_set(kind, members(copied), quality_N, 2)
    two = score_set(kind, members([copied[i] for i in order]), quality_N[order], 2)
    assert one is not None
    assert two is not None
    assert two.advantage_N == pytest.approx(one.advantage_N[order], abs=1e-9)
    assert one.advantage_N[0] == pytest.approx(one.advantage_N[-1], abs=1e-9)


@given(st.lists(words, min_size=3, max_size=5, unique_by=tuple))
def test_a_copy_is_never_worth_more_than_the_original_was(texts):
    before = score_set("clusters", members(texts, strategy=range(len(texts))), np.ones(len(texts)), 1)
    after = score_set(
        "clusters", members([*texts, texts[0]], strategy=[*range(len(texts)), 0]), np.ones(len(texts) + 1), 1
    )
    assert before is not None
    assert after is not None
    assert before.advantage_N[0] == 0
    assert after.advantage_N[0] < 0 < after.advantage_N[1]


def test_advantages_give_the_gradient_of_the_expected_score_of_sets_of_one_less():
    """All sets of 3 from a softmax over 3 texts, enumerated: E[sum A ∇log p] = ∇E[f of sets of 2]."""
    texts, quality = [["a", "b"], ["a", "c"], ["d", "e"]], np.array([1.0, 0.7, 0.4])
    logits = np.array([0.3, -0.2, 0.1])

    def expected(logits: np.ndarray) -> float:
        p = np.exp(logits) / np.exp(logits).sum()
        total = 0.0
        for i, j in itertools.product(range(3), repeat=2):
            diversity = DIVERSITY["distinct"](members([texts[i], texts[j]]), 1)
            assert diversity is not None
            total += p[i] * p[j] * diversity * (quality[i] + quality[j]) / 2
        return total

    p = np.exp(logits) / np.exp(logits).sum()
    gradient = np.zeros(3)
    for drawn in itertools.product(range(3), repeat=3):
        chosen = list(drawn)
        scored = score_set("distinct", members([texts[i] for i in chosen]), quality[chosen], 1)
        assert scored is not None
        slopes = np.eye(3)[chosen] - p  # of log p(y_i)
        gradient += p[chosen].prod() * (scored.advantage_N @ slopes)
    step = 1e-6
    numeric = [(expected(logits + step * e) - expected(logits - step * e)) / (2 * step) for e in np.eye(3)]
    assert gradient == pytest.approx(np.array(numeric), abs=1e-8)
