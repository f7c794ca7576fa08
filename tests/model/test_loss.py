"""Chunked losses against the full logits of the model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CohereConfig, CohereForCausalLM

from finetrial.errors import UserError
from finetrial.model.loss import Head, chunked_nll, collate, head_of, stream, token_nll
from finetrial.model.render import Rendered
from tiny import KINDS, random_rows, tiny_model

CPU = torch.device("cpu")


def reference_nll(model, row: Rendered) -> torch.Tensor:
    """From the full logits of the whole row alone: the token at t is predicted at t - 1."""
    ids = torch.from_numpy(row.ids_T.astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0].double()
    nll = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return nll[torch.from_numpy(row.mask_T[1:])]


@pytest.mark.parametrize("kind", KINDS)
def test_batched_losses_equal_the_full_logits_of_each_row(kind):
    """Padding, trimming, gathering and chunking change nothing; Gemma 2 caps its logits at 2."""
    model, rows = tiny_model(kind), random_rows(6, seed=1, high=30)
    batch = collate([stream(row, "row") for row in rows], CPU)
    with torch.no_grad():
        nll = token_nll(model, head_of(model), batch, chunk_numbers=300)
    want = torch.cat([reference_nll(model, row) for row in rows])
    torch.testing.assert_close(nll.double(), want, rtol=1e-4, atol=1e-5)
    assert batch.counts_S == tuple(int(row.mask_T[1:].sum()) for row in rows)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_numbers", [1, 34, 10_000])
def test_chunked_equals_unchunked_in_value_and_gradient(chunk_numbers, bias, softcap):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 5, generator=generator, dtype=torch.float64)
    offset = torch.randn(17, generator=generator, dtype=torch.float64) if bias else None
    target = torch.randint(0, 17, (9,), generator=generator)
    head = Head(weight, offset, scale=0.7, softcap=softcap)
    logits = 0.7 * F.linear(hidden, weight, offset)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    want = F.cross_entropy(logits, target, reduction="none")
    have = chunked_nll(hidden, target, head, chunk_numbers)
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(9, generator=generator, dtype=torch.float64)
    (mine,) = torch.autograd.grad(have, hidden, upstream)
    (theirs,) = torch.autograd.grad(want, hidden, upstream)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda h: chunked_nll(h, target, head, chunk_numbers), (hidden,))


def test_large_logits_do_not_overflow():
    head = Head(torch.eye(3) * 1e4, None)
    nll = chunked_nll(torch.eye(3), torch.tensor([0, 2, 2]), head)
    torch.testing.assert_close(nll, torch.tensor([0.0, 1e4, 0.0]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=20))
def test_a_stream_reads_up_to_its_last_supervised_token(mask):
    mask[0] = False
    row = Rendered(np.arange(len(mask), dtype=np.int32), np.array(mask), 0, 0)
    have = stream(row, "row")
    supervised = [t for t, wanted in enumerate(mask) if wanted]
    assert have.target_M.tolist() == supervised
    assert have.position_M.tolist() == [t - 1 for t in supervised]
    assert have.tokens == (supervised[-1] if supervised else 1)


def test_a_supervised_first_token_is_refused():
    row = Rendered(np.arange(3, dtype=np.int32), np.array([True, True, False]), 2, 0)
    with pytest.raises(UserError, match="item 'x': the first token is supervised"):
        stream(row, "item 'x'")


def test_the_head_is_proven_against_the_model():
    scaled = CohereForCausalLM(
        CohereConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            logit_scale=0.25,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    assert head_of(scaled).scale == 0.25
    scaled.config.logit_scale = 0.5  # the model keeps its own copy, so this is a head we misread
    with pytest.raises(UserError, match="not supported"):
        head_of(scaled)
