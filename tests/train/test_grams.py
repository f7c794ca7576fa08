"""Mined phrases tell success from failure; frequent ones that do not are left where they are."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact
from statsmodels.stats.contingency_tables import StratifiedTable

from finetrial.errors import UserError
from finetrial.train.grams import mine
from finetrial.train.planning import planning_mask


def corpus(count: int = 200, seed: int = 0) -> tuple[list[str], list[bool]]:
    """Everybody opens alike; those who check succeed more often."""
    random = np.random.default_rng(seed)
    texts, successes = [], []
    for i in range(count):
        checks = bool(random.random() < 0.4)
        successes.append(bool(random.random() < (0.8 if checks else 0.3)))
        check = "Wait, let me verify. " if checks else ""
        texts.append(f"First I need {i} + 3 = {i + 3}. {check}Answer: {i + 3}")
    return texts, successes


def test_the_phrase_that_matters_comes_first_and_the_frequent_one_does_not_count():
    texts, successes = corpus()
    first, second = mine(texts, successes)
    assert (first.text, second.text) == ("wait let me verify", "first i need")
    holds = ["verify" in text for text in texts]
    assert first.successes == sum(h and s for h, s in zip(holds, successes, strict=True))
    assert first.failures == sum(h and not s for h, s in zip(holds, successes, strict=True))
    assert first.log_odds > 1
    assert first.adjusted_p < 1e-6
    assert (second.log_odds, second.p_value) == (0, 1)


def test_what_is_mined_is_found_again():
    texts, successes = corpus()
    for gram in mine(texts, successes):
        found = [planning_mask(text, np.array([[0, len(text)]]), [gram.text]).any() for text in texts]
        assert sum(found) == gram.successes + gram.failures


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=8, max_size=60))
def test_p_is_twice_the_smaller_tail_of_fishers_test(rows: list[tuple[bool, bool]]):
    texts = ["now we try it" if holds else "no" for holds, _ in rows]
    successes = [right for _, right in rows]
    if all(successes) or not any(successes):
        return
    grams = mine(texts, successes, n=(4, 4), min_support=1)
    table = [[sum(h == a and r == b for h, r in rows) for b in (True, False)] for a in (True, False)]
    if sum(table[0]) == 0:
        assert grams == []
        return
    tested: list[Any] = [fisher_exact(table, alternative=side) for side in ("less", "greater")]
    tails = [found.pvalue for found in tested]
    assert grams[0].p_value == pytest.approx(min(1, 2 * min(tails)))
    assert np.sign(grams[0].log_odds) in (0, np.sign(tails[0] - tails[1]))


def test_with_prompts_known_the_contrast_is_within_prompts():
    """Easy prompts have their own phrase; it says nothing of how to answer a prompt."""
    texts, successes, groups = [], [], []
    for prompt in range(20):
        easy = prompt % 2 == 0
        for i in range(64):
            says = i % 8 < (7 if easy else 1)
            texts.append("it is plain to see" if says else "nothing to say")
            successes.append(i // 8 < (7 if easy else 1))
            groups.append(prompt)
    naive = {gram.text: gram for gram in mine(texts, successes)}["it is plain to see"]
    within = {gram.text: gram for gram in mine(texts, successes, groups=groups)}["it is plain to see"]
    assert naive.p_value < 1e-9
    assert within.log_odds == pytest.approx(0)


def test_p_within_prompts_is_that_of_cochran_mantel_and_haenszel():
    random = np.random.default_rng(3)
    says_SN, right_SN = random.random((2, 12, 10)) < 0.5
    right_SN |= says_SN & (random.random((12, 10)) < 0.8)
    texts = ["it is plain" if says else "no" for says in says_SN.ravel()]
    groups = np.repeat(np.arange(12), 10).tolist()
    (gram,) = mine(texts, right_SN.ravel().tolist(), groups=groups)
    tables = [
        np.array([[(s & r).sum(), (s & ~r).sum()], [(~s & r).sum(), (~s & ~r).sum()]], float)
        for s, r in zip(says_SN, right_SN, strict=True)
    ]
    expected: Any = StratifiedTable(tables).test_null_odds(correction=True)
    assert gram.p_value == pytest.approx(expected.pvalue)
    assert gram.p_value < 0.05


def test_corrections():
    texts, successes = corpus()
    texts = [f"{text}. {'so it must be' if i % 3 else 'that is to say'}" for i, text in enumerate(texts)]
    plain = {gram.text: gram for gram in mine(texts, successes, correction="benjamini_hochberg")}
    holm = {gram.text: gram for gram in mine(texts, successes, correction="holm")}
    ordered = sorted(plain.values(), key=lambda gram: gram.p_value)
    n = len(ordered)
    stepped = [gram.p_value * n / (i + 1) for i, gram in enumerate(ordered)]
    assert [gram.adjusted_p for gram in ordered] == pytest.approx([min(1, *stepped[i:]) for i in range(n)])
    stepped = [gram.p_value * (n - i) for i, gram in enumerate(ordered)]
    assert [holm[gram.text].adjusted_p for gram in ordered] == pytest.approx(
        [min(1, max(stepped[: i + 1])) for i in range(n)]
    )


def test_the_correction_holds_under_the_null():
    wrong = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        texts = [" ".join(random.choice([*"abcd"], 12)) for _ in range(60)]
        grams = mine(texts, (random.random(60) < 0.5).tolist(), n=(2, 3), correction="holm")
        wrong += any(gram.adjusted_p < 0.05 for gram in grams)
    assert wrong <= 7  # 0.99 quantile of a binomial with 60 trials of 0.05


def test_parts_of_a_phrase_and_its_twins_are_left_out():
    texts = ["now let us look at this again"] * 6 + ["let us look away"] * 6 + ["no"] * 6
    grams = mine(texts, [True] * 9 + [False] * 9, n=(2, 5))
    assert sorted(gram.text for gram in grams) == ["let us look", "let us look at this", "let us look away"]


def test_phrases_do_not_cross_sentences_or_numbers():
    texts = ["We try. It works, it Really works 3 times x2 more, yes", "no more_times so it’s often"] * 8
    grams = mine(texts, [True, False] * 8, n=(3, 5), min_support=1)
    assert [gram.text for gram in grams] == ["it works it really works", "so it's often"]


def test_shrinkage_keeps_rare_phrases_down():
    texts = ["a rare one here"] * 5 + ["a good one there"] * 40 + ["nothing"] * 55
    successes = [True] * 5 + [True] * 36 + [False] * 4 + [True] * 10 + [False] * 45
    by_text = {gram.text: gram for gram in mine(texts, successes, n=(4, 4))}
    assert by_text["a good one there"].log_odds > by_text["a rare one here"].log_odds > 0
    loose = {gram.text: gram for gram in mine(texts, successes, n=(4, 4), prior_sd=100)}
    assert loose["a rare one here"].log_odds > by_text["a rare one here"].log_odds


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", "a.", "b,"]), max_size=14), min_size=2, max_size=10))
def test_phrases_are_counted_once_per_text(rows: list[list[str]]):
    texts = [" ".join(row) for row in rows]
    for gram in mine(texts, [True, *[False] * (len(texts) - 1)], n=(1, 4), min_support=2):
        holds = [f" {gram.text} " in " " + text.replace(",", "").replace(".", " . ") + " " for text in texts]
        assert (gram.successes, gram.failures) == (holds[0], sum(holds[1:]))


@settings(max_examples=25)
@given(st.integers(0, 1000))
def test_order_and_bounds(seed: int):
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(["let", "me", "see", "it's", ","], 9)) for _ in range(30)]
    successes = [True, False, *(random.random(28) < 0.5).tolist()]
    grams = mine(texts, successes, n=(2, 3), groups=[i // 5 for i in range(30)])
    assert all(a.log_odds >= b.log_odds for a, b in pairwise(grams))
    assert all(0 <= gram.p_value <= gram.adjusted_p <= 1 for gram in grams)
    assert all(5 <= gram.successes + gram.failures <= 30 for gram in grams)


def test_refusals():
    with pytest.raises(UserError, match="2 texts, 1 successes"):
        mine(["a", "b"], [True])
    with pytest.raises(UserError, match="needs both kinds"):
        mine(["a", "b"], [True, True])
    with pytest.raises(UserError, match="range of words"):
        mine(["a", "b"], [True, False], n=(4, 3))
    assert mine(["a", "b"], [True, False]) == []
