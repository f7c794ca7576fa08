"""What is measured of completions' texts: every item as its own functions measure it."""

import numpy as np
import pytest

from finetrial.evaluate.diversity import SEMANTIC, TEXTUAL, diversity
from finetrial.evaluate.rouge import ROUGE, rouge
from finetrial.evaluate.texts import text_metrics

TEXTS = [["the cat sat", "the cat sat on it", ""], ["a dog ran", "a dog ran", "no"]]
FINISHED = [[True, False, True], [True, True, True]]
REFERENCES = ["a cat sat there", "dog"]


def numbers(texts) -> np.ndarray:
    """As an embedding: a row of NaN for an empty text."""
    return np.array([[len(text), 1.0] if text else [np.nan, np.nan] for text in texts], dtype=np.float32)


def test_an_item_is_measured_as_a_whole_and_each_sample_against_its_reference():
    found = text_metrics(TEXTS, FINISHED, REFERENCES, 50, 2, numbers)
    for k, mine in enumerate(TEXTS):
        whole = diversity(mine, 50, numbers(mine), FINISHED[k], matched=2)
        assert {name: found[k][name] for name in whole} == {name: [value] for name, value in whole.items()}
    assert set(found[0]) == {*TEXTUAL, *SEMANTIC, *ROUGE}
    assert found[0]["rouge_l"] == [rouge(text, REFERENCES[0])["rouge_l"] for text in TEXTS[0]]
    assert found[0]["rouge_1"][0] == pytest.approx(2 * 2 / 7)


def test_a_short_reference_has_no_likeness_and_no_embeddings_no_distance():
    found = text_metrics(TEXTS, FINISHED, REFERENCES, 50)
    assert set(found[1]) == {*TEXTUAL}
    assert set(found[0]) == {*TEXTUAL, *ROUGE}
