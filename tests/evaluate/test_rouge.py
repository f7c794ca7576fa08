"""ROUGE against its definition, worked vectors and the package of the same name."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrial.evaluate.rouge import common_subsequence, rouge, rouge_words

LETTERS = st.lists(st.sampled_from("abcd"), max_size=7)


def by_enumeration(first: list[str], second: list[str]) -> int:
    subsequences = {
        tuple(first[i] for i in chosen)
        for size in range(len(first) + 1)
        for chosen in combinations(range(len(first)), size)
    }
    return max(
        len(one)
        for one in subsequences
        if one in {tuple(second[i] for i in chosen) for chosen in combinations(range(len(second)), len(one))}
    )


@settings(max_examples=40, deadline=None)
@given(first=LETTERS, second=LETTERS)
def test_the_longest_common_subsequence_is_the_longest_of_all(first: list[str], second: list[str]) -> None:
    assert common_subsequence(first, second) == by_enumeration(first, second)


def test_worked_examples() -> None:
    """Lin 2004, section 3.1: S2 shares three words in order with S1, S3 only two."""
    first = "police killed the gunman"
    assert rouge("police kill the gunman", first)["rouge_l"] == pytest.approx(0.75)
    assert rouge("the gunman kill police", first)["rouge_l"] == pytest.approx(0.5)
    assert rouge("police kill the gunman", first) == pytest.approx({"rouge_1": 0.75, "rouge_2": 1 / 3, "rouge_l": 0.75})
    assert rouge("", first) == {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}
    assert rouge("police", "police") == {"rouge_1": 1.0, "rouge_2": None, "rouge_l": 1.0}
    assert rouge("the the the", "the cat")["rouge_1"] == pytest.approx(0.4)  # clipped: one match of three and two
    assert rouge_words("Don't stop_me: 3.5 Größe") == ["don", "t", "stop", "me", "3", "5", "grösse"]


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="ab cd.E'1_\n", max_size=40),
    reference=st.text(alphabet="ab cd.E'1_\n", min_size=1, max_size=40),
)
def test_it_is_the_published_package_where_texts_are_plain(text: str, reference: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is the oracle")
    theirs = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, text)
    for name, value in rouge(text, reference).items():
        assert (value or 0.0) == pytest.approx(theirs[name.replace("_", "").replace("l", "L")].fmeasure)
