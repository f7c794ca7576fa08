"""Agreement of raters."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import cohens_kappa as oracle_cohen
from statsmodels.stats.inter_rater import fleiss_kappa as oracle_fleiss

from finetrial.errors import UserError
from finetrial.judge.agreement import cohen_kappa, fleiss_kappa


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_cohen_equals_statsmodels(weights):
    rng = np.random.default_rng(2)
    first = rng.integers(0, 4, 300)
    second = np.where(rng.random(300) < 0.7, first, rng.integers(0, 4, 300))
    table = np.zeros((4, 4))
    np.add.at(table, (first, second), 1)
    wanted = oracle_cohen(table, wt=None if weights == "none" else weights)
    found = cohen_kappa(first.tolist(), second.tolist(), weights)
    assert found.kappa == pytest.approx(wanted.kappa, abs=1e-12)
    assert found.ci == pytest.approx((wanted.kappa_low, wanted.kappa_upp), abs=1e-9)


def test_fleiss_equals_statsmodels():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 200)
    ratings = np.where(rng.random((200, 4)) < 0.6, truth[:, None], rng.integers(0, 3, (200, 4)))
    found = fleiss_kappa(ratings.tolist())
    assert found.kappa == pytest.approx(oracle_fleiss(aggregate_raters(ratings)[0]), abs=1e-12)
    assert found.ci[0] < found.kappa < found.ci[1]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40))
def test_kappa_is_symmetric_and_at_most_one(pairs):
    first, second = zip(*pairs, strict=True)
    if len({*first, *second}) == 1:
        with pytest.raises(UserError, match="undefined"):
            cohen_kappa(first, second)
        return
    found = cohen_kappa(first, second)
    assert found.kappa == pytest.approx(cohen_kappa(second, first).kappa)
    assert found.kappa <= 1 + 1e-12
    assert (found.kappa == pytest.approx(1)) == (first == second)


@pytest.mark.parametrize("wrong", [([1], [1]), ([1, 2], [1]), ([], [])])
def test_too_little_is_refused(wrong):
    with pytest.raises(UserError, match="kappa needs"):
        cohen_kappa(*wrong)


def test_fleiss_refuses_ragged_ratings():
    with pytest.raises(UserError, match="the same number"):
        fleiss_kappa([[1, 2], [1]])
    with pytest.raises(UserError, match="undefined"):
        fleiss_kappa([[1, 1], [1, 1]])


def test_annotators_of_pandalm_agree_as_published(data_dir: Path):
    """Wang et al. 2023 (arXiv 2306.05087): Cohen's kappas .85, .88 and .86 between the three annotators."""
    path = data_dir / "pandalm" / "testset-v1.json"
    if not path.is_file():
        pytest.skip(f"no labels at {path}")
    rows = json.loads(path.read_text())
    by = {k: [row[f"annotator{k}"] for row in rows] for k in (1, 2, 3)}
    assert len(rows) == 999
    found = {pair: round(cohen_kappa(by[pair[0]], by[pair[1]]).kappa, 2) for pair in ((1, 2), (1, 3), (2, 3))}
    assert sorted(found.values()) == [0.85, 0.86, 0.88]
    together = fleiss_kappa([[row[f"annotator{k}"] for k in (1, 2, 3)] for row in rows])
    assert 0.85 < together.kappa < 0.88


def test_numbers_of_several_types_are_in_their_order():
    whole, mixed = [0.0, 0.5, 1.0, 1.0, 0.0], [0, 0.5, 1, np.float64(0.5), 0]
    expected = cohen_kappa(whole, [float(one) for one in mixed], "quadratic")
    assert cohen_kappa(mixed, whole, "quadratic").kappa == pytest.approx(expected.kappa)
