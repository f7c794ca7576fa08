"""Metrics of diversity against NLTK, published figures and laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from finetrial.analyze.metrics import known
from finetrial.errors import UserError
from finetrial.evaluate.bleu import self_bleu, self_bleu_by_prompt, texygen_self_bleu
from finetrial.evaluate.degeneration import degeneration, degeneration_rate, lengths, loops
from finetrial.evaluate.diversity import SEMANTIC, TEXTUAL, diversity, diversity_by_prompt, refuse_constant
from finetrial.evaluate.ngrams import (
    corpus_distinct,
    distinct,
    duplicate_share,
    expectation_adjusted_distinct,
    mean_distinct,
    type_token_ratio,
)
from finetrial.evaluate.semantic import log_det_bonus, semantic_diversity, vendi, vendi_score
from finetrial.evaluate.words import common_length, truncate, words

CATS = ["the cat sat on the mat", "the cat sat on the rug", "a dog ran in the park"]
TEXYGEN = "texygen/docs/instances/mle.txt"

text = st.lists(st.sampled_from("abcde"), max_size=9)
filled = st.lists(st.sampled_from("abcde"), min_size=1, max_size=9)
prompt = st.lists(text, max_size=6)
embeddings = hnp.arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 7)), elements=st.floats(-1, 1)).filter(
    lambda x_NH: bool((np.linalg.norm(x_NH, axis=1) > 1e-3).all())
)


def nltk_self_bleu(texts: list[list[str]], order: int) -> list[float]:
    """BLEU of each text against the others, by NLTK."""
    weights = (1 / order,) * order
    smooth = SmoothingFunction().method1
    others = [texts[:i] + texts[i + 1 :] for i in range(len(texts))]
    return [sentence_bleu(o, t, weights, smoothing_function=smooth) for o, t in zip(others, texts, strict=True)]


# Words


@pytest.mark.parametrize(
    ("sentence", "want"),
    [
        ("Don't stop, it’s 3.5!", ["Don't", "stop", ",", "it’s", "3", ".", "5", "!"]),
        ("snake_case(x)\n\tΚαλημέρα", ["snake_case", "(", "x", ")", "Καλημέρα"]),
        ("'quoted' -- so", ["'", "quoted", "'", "-", "-", "so"]),
        (" \n", []),
    ],
)
def test_words(sentence, want):
    assert words(sentence) == want


def test_case_can_be_folded():
    assert words("The the STRASSE", lower=True) == ["the", "the", "strasse"]


def test_texts_and_their_tokens_give_the_same_values():
    split = [words(sample) for sample in CATS]
    for metric in (distinct, mean_distinct, self_bleu, duplicate_share, degeneration_rate, lengths):
        assert metric(CATS) == metric(split)


@pytest.mark.parametrize("metric", [distinct, self_bleu, duplicate_share, degeneration_rate])
def test_a_single_string_is_no_list_of_samples(metric):
    with pytest.raises(UserError, match="single string"):
        metric("the cat")


def test_truncation_makes_lengths_equal():
    compared = [["a b c d", "a b"], ["a b c", ""]]
    assert common_length(compared) == 2
    assert truncate(compared[0], 2) == [["a", "b"], ["a", "b"]]
    assert truncate(compared[1], 2) == [["a", "b"], []]
    with pytest.raises(UserError, match="no sample has a token"):
        common_length([["", " "]])
    with pytest.raises(UserError, match="at least one token"):
        truncate(["a"], 0)


# Distinct n-grams


def test_distinct_against_numbers_by_hand():
    """18 words, 11 different; 15 pairs, 11 different."""
    assert distinct(CATS, 1) == pytest.approx(11 / 18)
    assert distinct(CATS, 2) == pytest.approx(11 / 15)
    assert mean_distinct(CATS, 1) == pytest.approx(0.8888888889)
    assert type_token_ratio(CATS) == mean_distinct(CATS, 1)
    assert mean_distinct(CATS, 2) == 1
    assert corpus_distinct([CATS, CATS[:1]], 1) == pytest.approx(11 / 24)


@pytest.mark.parametrize(
    ("vocabulary", "n", "want"), [(50, 1, 0.721631669), (50, 2, 0.8415225676), (32_000, 1, 0.6112734536)]
)
def test_expectation_adjusted_distinct(vocabulary, n, want):
    assert expectation_adjusted_distinct(CATS, vocabulary, n) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("words_drawn", [200, 2000])
def test_adjustment_takes_length_out(words_drawn):
    """Words drawn evenly give 1 at any length, while distinct-1 falls."""
    drawn = [str(word) for word in np.random.default_rng(0).integers(0, 500, words_drawn)]
    assert expectation_adjusted_distinct([drawn], 500) == pytest.approx(1, abs=0.03)
    assert distinct([drawn], 1) == pytest.approx({200: 0.825, 2000: 0.245}[words_drawn], abs=0.02)


def test_vocabulary_must_hold_what_was_found():
    with pytest.raises(UserError, match=r"vocabulary of 10.*the 11 distinct 1-grams"):
        expectation_adjusted_distinct(CATS, 10)
    with pytest.raises(UserError, match="at least one token"):
        distinct(CATS, 0)


@given(prompt, st.integers(1, 3))
def test_distinct_laws(texts, n):
    """In (0, 1]; the order of samples does not matter; a copy never raises it; no n-grams, no value."""
    value = distinct(texts, n)
    if value is None:
        assert all(len(tokens) < n for tokens in texts)
        assert mean_distinct(texts, n) is None
        assert expectation_adjusted_distinct(texts, 500, n) is None
        return
    assert 0 < value <= 1
    assert distinct(texts[::-1], n) == value
    adjusted = expectation_adjusted_distinct(texts, 500, n)
    assert adjusted is not None
    assert adjusted >= value * (1 - 1e-12)
    for tokens in texts:
        assert distinct([*texts, tokens], n) <= value  # type: ignore[operator]
        assert expectation_adjusted_distinct([*texts, tokens], 500, n) <= adjusted * (1 + 1e-12)  # type: ignore[operator]


def test_duplicates():
    assert duplicate_share(["a b", "a b ", "c", "", " ", "a  b"]) == pytest.approx(2 / 6)
    assert duplicate_share(CATS) == 0
    assert duplicate_share(["a"]) is None
    assert duplicate_share([["a"], ("a",)]) == 0.5


# Self-BLEU


@given(st.lists(st.lists(filled, min_size=2, max_size=5), min_size=1, max_size=3), st.integers(1, 5))
def test_self_bleu_equals_nltk(prompts, order):
    """Many prompts are counted together; none sees another's n-grams."""
    have_PK = self_bleu_by_prompt(prompts, order, effective_order=False)
    for texts, have_K in zip(prompts, have_PK, strict=True):
        for k, have in enumerate(have_K, 1):
            scores = nltk_self_bleu(texts, k)
            assert have == pytest.approx(sum(scores) / len(scores), abs=1e-9)
        if min(map(len, texts)) >= order:
            assert self_bleu(texts, order) == pytest.approx(have_K[-1], abs=1e-12)


def test_self_bleu_against_published_formula():
    """Texygen's conventions on three sentences, whose third shares only `the` with the others."""
    assert self_bleu(CATS, 2) == pytest.approx(0.5635760629, abs=1e-9)
    assert self_bleu(CATS, 3) == pytest.approx(0.5436933584, abs=1e-9)
    assert texygen_self_bleu(CATS) == pytest.approx((0.793700526 * 2 + 0.0436790232) / 3, abs=1e-9)
    assert texygen_self_bleu([*CATS, "the cat sat"], first=3) == texygen_self_bleu(CATS)


def test_published_self_bleu_of_texygen(data_dir):
    """Texygen's table for MLE in three digits, self-BLEU-2 to -5; 9,984 texts, each against all the others."""
    path = data_dir / TEXYGEN
    if not path.exists():
        pytest.skip(f"{TEXYGEN} of github.com/geek-ai/Texygen is not there")
    texts = [line.split() for line in path.read_text().splitlines()]
    have_K = self_bleu_by_prompt([texts], 5, effective_order=False)[0]
    assert have_K[1:].tolist() == pytest.approx([0.916, 0.769, 0.583, 0.408], abs=1.2e-3)
    assert texygen_self_bleu(path.read_text().splitlines(), first=500) == pytest.approx(0.4768, abs=1e-4)


@given(st.lists(filled, min_size=2, max_size=6), st.integers(1, 5))
def test_self_bleu_laws(texts, order):
    """In [0, 1]; order of samples does not matter; copies are 1, also where they are short; a copy never lowers it."""
    value = self_bleu(texts, order)
    assert value is not None
    assert 0 <= value <= 1
    assert self_bleu(texts[::-1], order) == pytest.approx(value, abs=1e-12)
    assert self_bleu([texts[0]] * 3, order) == 1
    for tokens in texts:
        assert self_bleu([*texts, tokens], order) >= value - 1e-12  # type: ignore[operator]


def test_self_bleu_of_texts_without_a_common_word_is_zero():
    assert self_bleu(["a b c d e", "f g h i j"]) == 0


def test_self_bleu_leaves_empty_samples_out():
    assert self_bleu([*CATS, "", " "]) == self_bleu(CATS)
    assert self_bleu(["a b", ""]) is None
    assert self_bleu([]) is None
    values_PK = self_bleu_by_prompt([["", ""], CATS, []], 2)
    assert np.isnan(values_PK[[0, 2]]).all()
    assert values_PK[1, 1] == self_bleu(CATS, 2)
    with pytest.raises(UserError, match="at least two texts"):
        texygen_self_bleu(["a"])
    with pytest.raises(UserError, match="order 0"):
        self_bleu(CATS, 0)


def test_short_answers_that_agree_do_not_pass_for_diverse():
    """By NLTK's convention two equal answers of one word score .18 at order 4."""
    assert self_bleu(["yes", "yes"], 4) == 1
    assert self_bleu(["yes", "yes"], 4, effective_order=False) == pytest.approx(0.1**0.75)


# Embeddings


def test_vendi_against_published_values():
    k_NN = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])
    assert vendi_score(k_NN) == pytest.approx(2.1573004834, abs=1e-9)
    assert vendi_score(k_NN, 2) == pytest.approx(1.9480519481, abs=1e-9)
    assert vendi_score(k_NN, math.inf) == pytest.approx(1.5789473684, abs=1e-9)
    for q in (0.5, 1, 2, math.inf):
        assert vendi_score(np.eye(4), q) == pytest.approx(4)
        assert vendi_score(np.ones((4, 4)), q) == pytest.approx(1, abs=1e-6)


@given(embeddings, st.sampled_from([0.5, 1.0, 2.0, math.inf]))
def test_vendi_laws(x_NH, q):
    """Between 1 and N (and H); order does not matter; falls with q; doubling the whole set changes nothing."""
    value = vendi(x_NH, q)
    assert value is not None
    assert 1 - 1e-6 <= value <= min(x_NH.shape) + 1e-6
    assert vendi(x_NH[::-1], q) == pytest.approx(value, abs=1e-5)
    assert vendi(np.concatenate([x_NH, x_NH]), q) == pytest.approx(value, abs=1e-5)
    assert vendi(x_NH, 2 * q) <= value + 1e-6  # type: ignore[operator]
    unit_NH = x_NH / np.linalg.norm(x_NH, axis=1, keepdims=True)
    assert vendi_score(unit_NH @ unit_NH.T, q) == pytest.approx(value, abs=1e-5)


def test_copies_lower_vendi_among_samples_that_are_all_different():
    different = np.eye(4)
    assert vendi(different[[0, 1, 2, 3, 3]]) < vendi(different)  # type: ignore[operator]
    assert vendi(different[[0, 1, 2, 2]]) < vendi(different)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("k_NN", "what"),
    [
        (np.ones((2, 3)), "N × N"),
        (np.full((2, 2), 0.5), "diagonal"),
        (np.array([[1, 0.2], [0.5, 1]]), "symmetric"),
        (np.array([[1, 2], [2, 1]]), "smallest eigenvalue"),
    ],
)
def test_vendi_refuses_what_is_no_similarity(k_NN, what):
    with pytest.raises(UserError, match=what):
        vendi_score(k_NN)


def test_vendi_refuses_an_order_of_zero():
    with pytest.raises(UserError, match="q = 0"):
        vendi_score(np.eye(2), 0)


def test_semantic_diversity_by_hand():
    assert semantic_diversity(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])) == pytest.approx(0.5285954792, abs=1e-9)
    assert semantic_diversity(np.array([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(2)


@given(embeddings)
def test_semantic_diversity_is_one_minus_the_mean_cosine_of_pairs(x_NH):
    unit_NH = x_NH / np.linalg.norm(x_NH, axis=1, keepdims=True)
    pairs = np.triu_indices(len(x_NH), 1)
    assert semantic_diversity(x_NH) == pytest.approx(1 - (unit_NH @ unit_NH.T)[pairs].mean(), abs=1e-9)
    assert semantic_diversity(x_NH[::-1]) == pytest.approx(semantic_diversity(x_NH), abs=1e-9)
    assert semantic_diversity(np.tile(x_NH[:1], (5, 1))) == pytest.approx(0, abs=1e-9)


def test_log_determinant_bonus_by_hand():
    have = log_det_bonus(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(have, [0.4054651081, 0.4054651081, 0.6931471806], atol=1e-9)
    missing = log_det_bonus(np.array([[2.0, 0.0], [np.nan, np.nan], [3.0, 0.0]]))
    np.testing.assert_allclose(missing, [math.log(1.5), np.nan, math.log(1.5)], atol=1e-9)


@given(embeddings)
def test_log_determinant_bonus_is_a_difference_of_log_determinants(x_NH):
    unit_NH = x_NH / np.linalg.norm(x_NH, axis=1, keepdims=True)
    full_NN = unit_NH @ unit_NH.T + np.eye(len(x_NH))
    bonus_N = log_det_bonus(x_NH)
    for i, bonus in enumerate(bonus_N):
        rest = np.delete(np.delete(full_NN, i, 0), i, 1)
        assert bonus == pytest.approx(np.linalg.slogdet(full_NN)[1] - np.linalg.slogdet(rest)[1], abs=1e-9)
    assert (bonus_N > -1e-12).all()
    assert (bonus_N < math.log(2) + 1e-12).all()


def test_missing_embeddings_are_left_out_and_zero_ones_refused():
    x_NH = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 1.0]])
    assert semantic_diversity(x_NH) == pytest.approx(1)
    assert vendi(x_NH) == pytest.approx(2)
    assert semantic_diversity(x_NH[:2]) is None
    assert vendi(x_NH[:2]) is None
    assert vendi_score(np.eye(1)) is None
    with pytest.raises(UserError, match="no direction"):
        vendi(np.zeros((2, 2)))
    with pytest.raises(UserError, match="one row per sample"):
        semantic_diversity(np.ones(3))


# Degeneration


@pytest.mark.parametrize(
    ("sample", "want"),
    [
        ("so we go " + "round and round " * 6, True),
        ("the answer is " + "1 " * 12, True),
        ("the answer is " + "1 " * 11, False),  # fewer than 12 tokens
        ("we add and " + "carry the one over " * 4, True),
        ("we add and " + "carry the one over " * 4 + "carry the", True),  # cut within the phrase
        ("we add and " + "carry the one over " * 3, False),  # said three times
        ("round and round " * 6 + "it stops .", False),  # not at the end
        ("ha ha ha ha", False),
        ("", False),
    ],
)
def test_loops(sample, want):
    assert loops(sample) is want


@given(filled, st.lists(st.sampled_from("fgh"), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 4))
def test_a_phrase_said_more_than_the_allowed_times_is_a_loop(head, phrase, extra, times):
    assert loops(head + phrase * (times + extra), longest=5, times=times, least=1)


def test_degeneration_counts_each_sample_once():
    samples = ["", "fine .", "round and round " * 6, "cut here", "fine ."]
    found = degeneration(samples, [True, True, False, False, True])
    assert (found.samples, found.empty, found.looping, found.cut, found.any) == (5, 1, 1, 2, 3)
    assert found.rate == 0.6
    assert degeneration(samples).cut is None
    assert degeneration_rate(samples) == 0.4
    assert degeneration_rate([]) is None
    with pytest.raises(UserError, match="1 values of `finished` for 5"):
        degeneration(samples, [True])
    with pytest.raises(UserError, match="at least 1"):
        loops("a", times=0)


def test_lengths():
    found = lengths(["a b c", "", "a"])
    assert found is not None
    assert (found.mean, found.shortest, found.median, found.longest) == (pytest.approx(4 / 3), 0, 1, 3)
    assert found.sd == pytest.approx(np.std([3, 0, 1], ddof=1))
    assert lengths([]) is None
    assert math.isnan(lengths(["a"]).sd)  # type: ignore[union-attr]


# All together


def test_every_metric_of_a_prompt_has_a_known_direction_and_range():
    values = diversity(CATS, vocabulary=50, embedding_NH=np.eye(3), finished=[True] * 3)
    assert values["distinct_1"] == distinct(CATS, 1)
    assert values["self_bleu_3"] == pytest.approx(self_bleu(CATS, 3))
    assert values["vendi"] == pytest.approx(3)
    assert set(values) == {*TEXTUAL, *SEMANTIC}
    for name, value in values.items():
        metric = known(name)
        assert metric is not None, name
        assert value is not None
        assert metric.low is not None
        assert metric.low <= value <= (math.inf if metric.high is None else metric.high)
        lower = name.startswith("self_bleu") or name in ("duplicate_share", "degenerate")
        assert metric.better == ("lower" if lower else "higher")


def test_metrics_without_meaning_are_missing():
    values = diversity(["", ""])
    assert values.pop("degenerate") == 1
    assert values.pop("duplicate_share") == 0.5
    assert set(values.values()) == {None}
    assert {name for name, value in diversity(["a b c"]).items() if value is None} == {
        "self_bleu_2", "self_bleu_3", "self_bleu_4", "self_bleu_5", "duplicate_share"
    }  # fmt: skip
    with pytest.raises(UserError, match="2 embeddings for 3"):
        diversity(CATS, embedding_NH=np.eye(2))


def test_matched_samples_have_the_same_length():
    """A recipe that stops early looks diverse: fewer words repeat. Cut to the same length it does not."""
    long, short = ["a b a b", "b a"], ["a b", "b a"]
    assert diversity(short)["distinct_1"] > diversity(long)["distinct_1"]
    assert diversity(short)["distinct_1_matched"] == diversity(long)["distinct_1_matched"] == 0.5
    assert diversity(long, matched=3)["distinct_1_matched"] == pytest.approx(2 / 5)
    assert diversity(["a b", ""])["distinct_1_matched"] == 1  # an empty one has no length to match


def test_many_prompts_at_once_are_each_alone_and_a_small_vocabulary_expects_nothing():
    prompts = [CATS, ["a b c d", "d c b a"], ["x"]]
    together = diversity_by_prompt(prompts, vocabulary=4)
    assert together == [diversity(samples, vocabulary=4) for samples in prompts]
    assert [values["ead_2"] is None for values in together] == [True, True, True]
    assert diversity(["a b", "a c"], vocabulary=4)["ead_2"] is not None


def test_case_is_folded_on_request():
    assert diversity(["The", "the"])["distinct_1"] == 1
    assert diversity(["The", "the"], lower=True)["distinct_1"] == 0.5


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([0.0, 0.0], "all 2 values are 0"),
        ([0.0], "all 1 values are 0"),
        ([0.3, None, 0.3, 0.1 + 0.2], "all 3 values are 0.3"),
        ([None, math.nan], "missing"),
        ([], "missing"),
    ],
)
def test_a_dead_instrument_is_refused(values, what):
    with pytest.raises(UserError, match=f"metric 'self_bleu_4'.*{what}"):
        refuse_constant(values, "self_bleu_4")


def test_a_live_instrument_passes():
    refuse_constant([0.3, None, 0.31], "self_bleu_4")
    refuse_constant([0.3], "self_bleu_4")
