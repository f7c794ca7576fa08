"""Planning tokens are found in the text, not in the tokens' joints, and nothing beside a phrase is marked."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.data.worlds import arithmetic
from finetrial.errors import UserError
from finetrial.train.planning import (
    DEFAULT_GRAMS,
    EXECUTION_EXAMPLES,
    PLANNING_EXAMPLES,
    centroids,
    planning_mask,
    semantic_masks,
)


def cut(pieces: list[str]) -> tuple[str, np.ndarray]:
    ends = np.cumsum([0, *(len(piece) for piece in pieces)])
    return "".join(pieces), np.stack([ends[:-1], ends[1:]], axis=1)


def marked(pieces: list[str], *grams: str) -> list[int]:
    return planning_mask(*cut(pieces), grams).astype(int).tolist()


PUBLISHED = ("wait let me check", "that's not right", "notice that")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["Wait", " let", " me", " check", " that", "'s", " not", " right"], [1, 1, 1, 1, 1, 1, 1, 1]),
        (["Wait", ",", " let", " me", " see"], [0, 0, 0, 0, 0]),
        ([" So", " then", " we", " notice", " that", " x"], [0, 0, 0, 1, 1, 0]),
    ],
)
def test_offsets_in_the_text_decide(pieces: list[str], expected: list[int]):
    assert marked(pieces, *PUBLISHED) == expected


@pytest.mark.parametrize(
    ("pieces", "gram", "expected"),
    [
        (["Wait", ",", " let", " me", " see"], "wait let me", [1, 1, 1, 1, 0]),
        (["Wait", " ,", "\n", "LET", "  me"], "wait, let me", [1, 1, 1, 1, 1]),
        (["ver", "ify", " it"], "verify", [1, 1, 0]),
        (["that", "’", "s", " not", " right"], "that's not right", [1, 1, 1, 1, 1]),
        (["that's", " not right"], "that’s not right", [1, 1]),
        (["outlet", " me", " think"], "let me think", [0, 0, 0]),
        (["let", " me", " thinking"], "let me think", [0, 0, 0]),
        (["let", "'s", " go"], "let", [0, 0, 0]),
        (["wait", ". ", "let"], "wait let", [0, 0, 0]),
        (["so. Let", " me think. x"], "let me think", [1, 1]),
        (["let", "", " me"], "let me", [1, 0, 1]),
        (["x", " ", "let"], "let", [0, 0, 1]),
    ],
)
def test_matching(pieces: list[str], gram: str, expected: list[int]):
    assert marked(pieces, gram) == expected


def test_overlapping_phrases_all_count():
    pieces = ["wait", " let", " me", " check", " twice"]
    assert marked(pieces, "wait let me", "let me check", "check") == [1, 1, 1, 1, 0]
    assert marked(pieces, "let me", "let me check twice") == [0, 1, 1, 1, 1]


def test_without_phrases_or_text_nothing_plans():
    assert marked(["let", " me"]) == [0, 0]
    assert planning_mask("", np.zeros((0, 2), np.int64), DEFAULT_GRAMS).tolist() == []
    with pytest.raises(UserError, match="is no phrase"):
        marked(["x"], " , ")


def test_the_built_in_list_knows_what_the_built_in_world_writes():
    for sentence in (*arithmetic.OPENINGS, *arithmetic.CHECKS):
        assert planning_mask(*cut(list(sentence)), DEFAULT_GRAMS).any(), sentence
    for example in arithmetic.generate(300, seed=1, split="base"):
        text = str(example.messages[1]["content"])
        sentences = [s for s in (*arithmetic.OPENINGS, *arithmetic.CHECKS) if s.strip() in text]
        assert planning_mask(*cut(list(text)), DEFAULT_GRAMS).any() == bool(sentences), text
    assert len(set(DEFAULT_GRAMS)) == len(DEFAULT_GRAMS)


@given(st.lists(st.sampled_from(["let", "me", "think", "wait", "12", "+"]), max_size=12), st.data())
def test_how_tokens_are_cut_does_not_matter(words: list[str], data: st.DataObject):
    text = " ".join(words)
    by_character = planning_mask(*cut(list(text)), ("let me think", "wait let"))
    places = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    offsets = np.array(list(pairwise(places)), np.int64).reshape(-1, 2)
    found = planning_mask(text, offsets, ("let me think", "wait let"))
    assert found.tolist() == [bool(by_character[a:b].any()) for a, b in offsets]


def encode(texts: list[str]) -> np.ndarray:
    """Shares of words that plan, of digits, and a constant: enough to tell the examples apart."""
    rows = []
    for text in texts:
        words = text.lower().split()
        plans = sum(
            word.strip(".,") in {"let", "me", "check", "think", "wait", "need", "way", "idea"} for word in words
        )
        digits = sum(character.isdigit() for character in text)
        rows.append([plans, digits, 0.1])
    return np.array(rows, float)


def test_nearness_marks_the_words_of_windows_that_lead():
    centres = centroids(encode)
    assert centres.planning_D @ centres.planning_D == pytest.approx(1)
    plan, execution = PLANNING_EXAMPLES[2], EXECUTION_EXAMPLES[1]
    texts = [plan, execution, "", f"{execution} {execution} {plan} {plan} {plan}"]
    offsets = [cut(list(text))[1] for text in texts]
    first, second, third, mixed = semantic_masks(texts, offsets, encode, centres, threshold=0.02)
    assert first[[i for i, c in enumerate(plan) if c != " "]].all()
    assert not first[plan.index(" ")]
    assert not second.any()
    assert len(third) == 0
    assert not mixed[: len(execution)].any()
    assert mixed[-1]


def test_nearness_asks_for_all_windows_at_once_and_for_none_without_text():
    calls: list[int] = []

    def counting(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return encode(texts)

    centres = centroids(encode)
    texts = ["a " * 30, "b"]
    semantic_masks(texts, [np.array([[0, 1]])] * 2, counting, centres, 0.02)
    assert calls == [5]
    semantic_masks([" "], [np.array([[0, 1]])], counting, centres, 0.02)
    assert calls == [5]
