"""One sweep over base and adapters against transformers and PEFT one item at a time."""

import math

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F

from finetrial.errors import UserError
from finetrial.evaluate import perplexity as module
from finetrial.evaluate.gauge import token_gauge
from finetrial.evaluate.perplexity import bits_per_byte, item_nll, mean_item_nll, perplexity, token_perplexity
from finetrial.model.adapters import Adapter, AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.distribution import Head, chunked_nll, token_stats
from finetrial.model.peft_format import save_peft
from finetrial.model.render import Rendered
from tiny import random_rows, tiny_model

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ITEMS = {f"item-{place}": row for place, row in enumerate(random_rows(11, seed=4))}


def filled(model, seed) -> Adapter:
    adapter = fresh_adapter(model, ModelConfig(lora_rank=1 + seed), seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        path: (a_IR, torch.randn(b_RO.shape, generator=generator) * 0.1)
        for path, (a_IR, b_RO) in adapter.weights.items()
    }
    return Adapter(adapter.rank, adapter.alpha, adapter.rslora, adapter.dropout, adapter.targets, weights)


def one_at_a_time(model) -> np.ndarray:
    sums = []
    for row in ITEMS.values():
        ids = torch.from_numpy(row.ids_T.astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
        nll = F.cross_entropy(logits[:-1].double(), ids[1:], reduction="none")
        sums.append(float(nll[torch.from_numpy(row.mask_T[1:])].sum()))
    return np.array(sums)


@PEFT_WARNS
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 50, 4096])
def test_every_model_scores_as_it_does_alone(tmp_path, monkeypatch, merge, batch_tokens):
    monkeypatch.setattr(module, "ADAPTERS_PER_PASS", 2)  # the base and three adapters take two passes
    model = tiny_model()
    adapters = [filled(model, seed) for seed in range(3)]
    have = perplexity(model, adapters, ITEMS, batch_tokens=batch_tokens, merge=merge)
    want = [one_at_a_time(model)]
    for n, adapter in enumerate(adapters):
        save_peft(adapter, tmp_path / str(n), base="tiny")
        want.append(one_at_a_time(peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / str(n)))))
    np.testing.assert_allclose(have.nll_GK, np.stack(want), rtol=1e-5)
    assert have.items == tuple(ITEMS)
    assert have.tokens_K.tolist() == [int(row.mask_T.sum()) for row in ITEMS.values()]
    assert have.bytes_K.tolist() == [row.supervised_bytes for row in ITEMS.values()]


@pytest.mark.parametrize("merge", [True, False])
def test_a_zero_adapter_scores_the_bases_bits(merge):
    model = tiny_model()
    have = perplexity(model, [filled(model, 0), fresh_adapter(model, ModelConfig(), 1)], ITEMS, merge=merge)
    assert np.array_equal(have.nll_GK[2], have.nll_GK[0])
    assert not np.isclose(have.nll_GK[1], have.nll_GK[0]).any()


def test_scores_do_not_depend_on_how_many_adapters_there_are():
    model = tiny_model()
    adapters = [filled(model, seed) for seed in range(3)]
    together = perplexity(model, adapters, ITEMS, batch_tokens=60)
    assert np.array_equal(perplexity(model, [], ITEMS, batch_tokens=60).nll_GK[0], together.nll_GK[0])
    for n, adapter in enumerate(adapters):
        assert np.array_equal(perplexity(model, [adapter], ITEMS, batch_tokens=60).nll_GK[1], together.nll_GK[1 + n])


def divergences_one_at_a_time(model, adapter) -> np.ndarray:
    """KL(base || model) and KL(model || base) of each item, from full distributions in float64."""
    sums = []
    with AdapterStack(model, [adapter]) as stack, torch.no_grad():
        for row in ITEMS.values():
            ids, mask = torch.from_numpy(row.ids_T.astype(np.int64))[None], torch.from_numpy(row.mask_T[1:])
            logp = []
            for who in (None, 0):
                with stack.rows([who]):
                    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
                logp.append(F.log_softmax(logits[mask], dim=-1))
            r, p = logp
            sums.append([float((r.exp() * (r - p)).sum()), float((p.exp() * (p - r)).sum())])
    return np.array(sums).T


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("hidden_bytes", [1, 2**28])
def test_divergences_from_the_base_cost_nothing_of_the_likelihoods(monkeypatch, merge, hidden_bytes):
    monkeypatch.setattr(module, "ADAPTERS_PER_PASS", 2)
    monkeypatch.setattr(module, "HIDDEN_BYTES", hidden_bytes)  # every batch is a block of its own, or all are one
    model = tiny_model()
    adapters = [filled(model, 0), fresh_adapter(model, ModelConfig(), 1), filled(model, 2)]
    plain = perplexity(model, adapters, ITEMS, batch_tokens=60, merge=merge)
    assert plain.gauge is None
    have = perplexity(model, adapters, ITEMS, batch_tokens=60, merge=merge, gauge=True)
    assert np.array_equal(have.nll_GK, plain.nll_GK)
    assert have.gauge is not None
    for values_GK in (have.gauge.to_base_GK, have.gauge.from_base_GK):
        assert not values_GK[[0, 2]].any()  # the base, and an adapter that changes nothing
        assert (values_GK[[1, 3]] > 0).all()
    for n in (0, 2):
        want = divergences_one_at_a_time(model, adapters[n])
        np.testing.assert_allclose(have.gauge.to_base_GK[1 + n], want[0], rtol=1e-4)
        np.testing.assert_allclose(have.gauge.from_base_GK[1 + n], want[1], rtol=1e-4)


def test_the_gauge_is_that_of_the_distributions_chunk_by_chunk():
    generator = torch.Generator().manual_seed(0)
    hidden_MH, base_mH = torch.randn(12, 8, generator=generator), torch.randn(4, 8, generator=generator)
    head = Head(torch.randn(30, 8, generator=generator), None, softcap=3.0)
    target_M = torch.arange(12) * 2
    have = token_gauge(hidden_MH, target_M, base_mH, head, chunk_numbers=30 * 5)
    assert torch.equal(have.nll_M, chunked_nll(hidden_MH, target_M, head, chunk_numbers=30 * 5))
    for kind, value_M in (("ref_student", have.to_base_M), ("student_ref", have.from_base_M)):
        told = token_stats(hidden_MH, target_M, head, reference_MH=base_mH.repeat(3, 1), divergence=kind)
        torch.testing.assert_close(value_M, told.divergence_M)


def test_progress_counts_items_under_models_and_shows_the_running_loss():
    calls = []

    class Record:
        def update(self, done, loss):
            calls.append((done, loss))

    model = tiny_model()
    have = perplexity(model, [filled(model, 0)], ITEMS, batch_tokens=60, progress=Record())
    assert calls[-1] == (2 * len(ITEMS), pytest.approx(have.nll_GK.sum() / (2 * have.tokens_K.sum())))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_items_that_cannot_be_scored_are_refused():
    silent = Rendered(np.arange(4, dtype=np.int32), np.zeros(4, dtype=bool), 0, 0)
    with pytest.raises(UserError, match="item 'silent' and 0 more have no supervised token"):
        perplexity(tiny_model(), [], {**ITEMS, "silent": silent})
    with pytest.raises(UserError, match="no items"):
        perplexity(tiny_model(), [], {})


def test_the_conventions_of_perplexity():
    """Two items: 4 nats over 2 tokens and 6 nats over 6, 16 bytes in all."""
    nll, tokens, size = np.array([4.0, 6.0]), np.array([2, 6]), np.array([4, 12])
    assert item_nll(nll, tokens).tolist() == [2.0, 1.0]
    assert token_perplexity(nll, tokens) == pytest.approx(math.exp(10 / 8))
    assert mean_item_nll(nll, tokens) == 1.5
    assert bits_per_byte(nll, size) == pytest.approx(10 / (16 * math.log(2)))


def test_missing_is_missing():
    nll, none = np.array([4.0, 0.0]), np.array([2, 0])
    assert item_nll(nll, none)[0] == 2.0
    assert math.isnan(item_nll(nll, none)[1])
    with pytest.raises(ValueError, match="every item"):
        mean_item_nll(nll, none)
    with pytest.raises(ValueError, match="no tokens"):
        token_perplexity(np.zeros(1), np.zeros(1, dtype=int))
    with pytest.raises(ValueError, match="no bytes"):
        bits_per_byte(np.zeros(1), np.zeros(1, dtype=int))
