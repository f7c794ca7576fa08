"""Chunked statistics of the output head against plain torch on full logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrial.model.adapters import AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.distribution import Head, TopReference, chunked_nll, token_stats, top_reference
from finetrial.model.loss import collate, head_of, stream, supervised_hidden, token_nll
from tiny import random_rows, tiny_model

M, H, V = 9, 5, 17
KINDS = ("ref_student", "student_ref", "js")
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.7},
    "softcap": {"softcap": 3.0},
    "all": {"bias": True, "scale": 0.7, "softcap": 3.0},
}
REF, POLICY = [0.5, 0.3, 0.15, 0.05], [0.4, 0.4, 0.1, 0.1]


def case(dtype=torch.float64, bias=False, scale=1.0, softcap=None, seed=0):
    """Hidden states, reference, targets, temperatures and a head."""
    generator = torch.Generator().manual_seed(seed)
    hidden, reference = (torch.randn(M, H, generator=generator, dtype=dtype) for _ in range(2))
    weight = torch.randn(V, H, generator=generator, dtype=dtype)
    offset = torch.randn(V, generator=generator, dtype=dtype) if bias else None
    target = torch.randint(0, V, (M,), generator=generator)
    temperature = 0.5 + torch.rand(M, generator=generator, dtype=dtype)
    return hidden, reference, target, temperature, Head(weight, offset, scale, softcap)


def log_softmax(head: Head, hidden, temperature=None):
    """From plain, differentiable operations."""
    logits = head.scale * F.linear(hidden, head.weight_VH, head.bias_V)
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return F.log_softmax(logits if temperature is None else logits / temperature[:, None], dim=1)


def plain_divergence(kind, logr, logp, beta):
    def kl(loga, logb):
        return F.kl_div(logb, loga, log_target=True, reduction="none").sum(1)

    if kind == "ref_student":
        return kl(logr, logp)
    if kind == "student_ref":
        return kl(logp, logr)
    logm = (beta * logr.exp() + (1 - beta) * logp.exp()).log()
    return beta * kl(logr, logm) + (1 - beta) * kl(logp, logm)


def merged(logs, ids):
    """Log-probabilities of `ids` and of everything else together."""
    others = torch.ones_like(logs, dtype=torch.bool).scatter(1, ids, False)
    tail = logs.masked_fill(~others, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([logs.gather(1, ids), tail], dim=1)


def gradients(losses, hidden, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(len(loss), generator=generator, dtype=loss.dtype) for loss in losses]
    return torch.autograd.grad(losses, hidden, weights, retain_graph=True)[0]


def fixed(probabilities, dtype=torch.float64):
    """A hidden state and a head whose softmax is that distribution."""
    logs = torch.tensor([probabilities], dtype=dtype).log()
    return logs, Head(torch.eye(len(probabilities), dtype=dtype), None)


@pytest.mark.parametrize("chunk_numbers", [1, 34, 10_000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_chunked_equals_plain_torch_in_value_and_gradient(name, kind, chunk_numbers):
    hidden, reference, target, temperature, head = case(**HEADS[name])
    hidden.requires_grad_()
    have = token_stats(
        hidden,
        target,
        head,
        temperature_M=temperature,
        entropy=True,
        reference_MH=reference,
        divergence=kind,
        js_beta=0.3,
        chunk_numbers=chunk_numbers,
    )
    logp, logr = log_softmax(head, hidden, temperature), log_softmax(head, reference, temperature)
    want = [
        F.nll_loss(logp, target, reduction="none"),
        -(logp.exp() * logp).sum(1),
        plain_divergence(kind, logr, logp, 0.3),
    ]
    mine = [have.nll_M, have.entropy_M, have.divergence_M]
    for value, expected in zip(mine, want, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gradients([value], hidden), gradients([expected], hidden), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradients(mine, hidden), gradients(want, hidden), rtol=1e-9, atol=1e-11)
    assert not have.lower_bound


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_gradcheck(kind):
    hidden, reference, target, temperature, head = case(**HEADS["all"])
    cache = top_reference(reference, head, 4, temperature)

    def values(hidden_MH):
        full, top = (
            token_stats(
                hidden_MH,
                target,
                head,
                temperature_M=temperature,
                entropy=True,
                reference_MH=against,
                divergence=kind,
                chunk_numbers=40,
            )
            for against in (reference, cache)
        )
        return full.nll_M, full.entropy_M, full.divergence_M, top.divergence_M

    assert torch.autograd.gradcheck(values, (hidden.requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_float32_chunks_equal_one_chunk(name, kind):
    hidden, reference, target, temperature, head = case(dtype=torch.float32, **HEADS[name])
    options = {"temperature_M": temperature, "entropy": True, "reference_MH": reference, "divergence": kind}
    have = token_stats(hidden, target, head, **options, chunk_numbers=2 * V)
    want = token_stats(hidden, target, head, **options)
    for field in ("nll_M", "entropy_M", "divergence_M"):
        torch.testing.assert_close(getattr(have, field), getattr(want, field), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_temperature_one_and_company_leave_the_likelihood_bit_identical(name):
    hidden, reference, target, _, head = case(dtype=torch.float32, **HEADS[name])
    hidden.requires_grad_()
    want = chunked_nll(hidden, target, head, 40)
    (slope,) = torch.autograd.grad(want.sum(), hidden)
    for options in (
        {"temperature_M": torch.ones(M)},
        {"entropy": True, "reference_MH": reference, "divergence": "js"},
        {"entropy": True, "measure_only": True},
    ):
        have = token_stats(hidden, target, head, **options, chunk_numbers=40).nll_M
        assert torch.equal(have, want)
        assert torch.equal(torch.autograd.grad(have.sum(), hidden)[0], slope)


def test_what_is_only_measured_has_no_gradient():
    hidden, reference, target, _, head = case()
    hidden.requires_grad_()
    options = {"entropy": True, "reference_MH": reference.requires_grad_(), "divergence": "ref_student"}
    have = token_stats(hidden, target, head, **options, measure_only=True)
    want = token_stats(hidden, target, head, **options)
    assert not have.entropy_M.requires_grad
    assert not have.divergence_M.requires_grad
    assert torch.equal(have.entropy_M, want.entropy_M.detach())
    torch.testing.assert_close(gradients([have.nll_M], hidden), gradients([want.nll_M], hidden), rtol=0, atol=0)
    assert torch.autograd.grad(want.divergence_M.sum(), reference, allow_unused=True) == (None,)
    with torch.no_grad():
        assert not token_stats(hidden, target, head, **options).nll_M.requires_grad


def test_published_divergences_of_four_tokens():
    """ASFT (arXiv:2509.23753) takes the forward direction; the mixture weights the reference, as GKD does."""
    policy, head = fixed(POLICY)
    reference, _ = fixed(REF)
    policy.requires_grad_()
    label = torch.tensor([1])

    def found(kind, beta=0.5, against=reference):
        stats = token_stats(policy, label, head, reference_MH=against, divergence=kind, js_beta=beta)
        assert stats.divergence_M is not None
        return stats, stats.divergence_M.item(), torch.autograd.grad(stats.divergence_M.sum(), policy)[0][0].tolist()

    stats, forward, slope = found("ref_student")
    assert forward == pytest.approx(0.0514295611, abs=1e-9)
    assert slope == pytest.approx([-0.1, 0.1, -0.05, 0.05], abs=1e-12)
    _, reverse, slope = found("student_ref")
    assert reverse == pytest.approx(0.0545836157, abs=1e-9)
    assert slope == pytest.approx([-0.1110908668, 0.0932393827, -0.0460048724, 0.0638563565], abs=1e-9)
    assert found("js")[1] == pytest.approx(0.0131316134, abs=1e-9)
    assert found("js", 0.1)[1] == pytest.approx(0.0046428258, abs=1e-9)
    assert found("js", 0.9)[1] == pytest.approx(0.0048665082, abs=1e-9)
    nll = stats.nll_M.item()
    assert nll == pytest.approx(0.9162907319, abs=1e-9)
    assert math.exp(-nll) * nll + 0.05 * forward == pytest.approx(0.3690877708, abs=1e-9)

    top = top_reference(reference, head, 2)
    assert top.ids_MK.tolist() == [[0, 1]]
    stats, forward, _ = found("ref_student", against=top)
    assert stats.lower_bound
    assert forward == pytest.approx(0.0252671539, abs=1e-9)
    assert found("student_ref", against=top)[1] == pytest.approx(0.0258154085, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4, V - 1])
def test_a_cached_reference_equals_the_merged_distributions(k, kind):
    hidden, reference, target, temperature, head = case(**HEADS["all"])
    hidden.requires_grad_()
    cache = top_reference(reference, head, k, temperature, chunk_numbers=40)
    options = {"temperature_M": temperature, "divergence": kind, "js_beta": 0.7}
    have = token_stats(hidden, target, head, reference_MH=cache, **options, chunk_numbers=40).divergence_M
    logp, logr = log_softmax(head, hidden, temperature), log_softmax(head, reference, temperature)
    assert torch.equal(cache.ids_MK, logr.topk(k).indices)
    want = plain_divergence(kind, merged(logr, cache.ids_MK), merged(logp, cache.ids_MK), 0.7)
    torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradients([have], hidden), gradients([want], hidden), rtol=1e-9, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, V - 1), st.floats(0.05, 0.95))
def test_laws_of_divergences(seed, k, beta):
    """Never negative, zero for equals, JS at most log 2 and symmetric, merged tokens a lower bound."""
    hidden, reference, target, temperature, head = case(seed=seed)
    hidden = hidden * 3

    def found(kind, student, against, beta=beta):
        options = {"temperature_M": temperature, "divergence": kind, "js_beta": beta}
        return token_stats(student, target, head, reference_MH=against, **options).divergence_M

    for kind in KINDS:
        full = found(kind, hidden, reference)
        bound = found(kind, hidden, top_reference(reference, head, k, temperature))
        assert (full > 0).all()
        assert (bound >= -1e-12).all()
        assert (bound <= full + 1e-12).all()
        torch.testing.assert_close(found(kind, hidden, hidden), torch.zeros(M).double(), rtol=0, atol=1e-12)
    assert (found("js", hidden, reference, 0.5) <= math.log(2)).all()
    torch.testing.assert_close(found("js", hidden, reference, beta), found("js", reference, hidden, 1 - beta))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind):
    """Probabilities that underflow float32 on either side."""
    head = Head(torch.eye(4) * 200, None)
    hidden, reference = torch.eye(4).requires_grad_(), torch.eye(4).flip(0)
    for against in (reference, top_reference(reference, head, 1)):
        have = token_stats(
            hidden, torch.arange(4), head, entropy=True, reference_MH=against, divergence=kind, js_beta=0.5
        )
        want = {"ref_student": 200.0, "student_ref": 200.0, "js": math.log(2)}[kind]
        if kind == "student_ref" and isinstance(against, TopReference):
            want -= math.log(3)  # the student's token shares its bucket with two others of the reference
        torch.testing.assert_close(have.divergence_M, torch.full((4,), want), rtol=1e-5, atol=0)
        torch.testing.assert_close(have.entropy_M, torch.zeros(4))
        assert gradients([have.nll_M, have.entropy_M, have.divergence_M], hidden).isfinite().all()


def test_no_tokens_give_no_numbers():
    hidden, _, target, _, head = case()
    have = token_stats(hidden[:0].requires_grad_(), target[:0], head, entropy=True)
    assert have.nll_M.shape == have.entropy_M.shape == (0,)
    assert have.divergence_M is None


def test_impossible_requests_are_refused():
    hidden, reference, target, _, head = case()
    with pytest.raises(ValueError, match="go together"):
        token_stats(hidden, target, head, divergence="js")
    with pytest.raises(ValueError, match="go together"):
        token_stats(hidden, target, head, reference_MH=reference)
    with pytest.raises(ValueError, match="js_beta is 1"):
        token_stats(hidden, target, head, reference_MH=reference, divergence="js", js_beta=1)
    for k in (0, V):
        with pytest.raises(ValueError, match="expected 1 to 16"):
            top_reference(reference, head, k)


def test_the_base_is_a_reference_of_the_same_pass():
    """Rows of an adapter and the same rows of the base: fresh adapters are the base, changed ones leave it; one
    backward call carries all terms, each with its weight."""
    model, rows = tiny_model("gemma2"), random_rows(3, seed=5)
    head = head_of(model)
    streams = [stream(row, "row") for row in rows]
    batch = collate([*streams, *streams], torch.device("cpu"))
    half = sum(batch.counts_S) // 2

    with AdapterStack(model, [fresh_adapter(model, ModelConfig(lora_rank=4), 0)], trainable=True) as stack:

        def terms():
            hidden = supervised_hidden(model, batch)
            mine, base = hidden[:half], hidden[half:].detach()
            return token_stats(
                mine, batch.target_M[:half], head, entropy=True, reference_MH=base, divergence="ref_student"
            )

        with stack.rows([0, 0, 0, None, None, None]):
            torch.testing.assert_close(terms().divergence_M, torch.zeros(half), rtol=0, atol=1e-6)
            nll = token_nll(model, head, batch)
            assert torch.equal(terms().nll_M, nll[:half])

            stack.flat_NP.add_(torch.randn(stack.flat_NP.shape, generator=torch.Generator().manual_seed(0)) * 0.2)
            found = terms()
            assert (found.divergence_M > 1e-4).all()
            weights = [torch.rand(half) for _ in range(3)]
            stack.grad_NP.zero_()
            stack.backward(*zip((found.nll_M, found.entropy_M, found.divergence_M), weights, strict=True))
            together = stack.grad_NP.clone()
            stack.grad_NP.zero_()
            for field, weight in zip(("nll_M", "entropy_M", "divergence_M"), weights, strict=True):
                stack.backward((getattr(terms(), field), weight))
            torch.testing.assert_close(together, stack.grad_NP, rtol=1e-4, atol=1e-6)


def test_a_cache_made_by_hand_is_read_as_it_is():
    policy, head = fixed(POLICY, torch.float32)
    cache = TopReference(torch.tensor([[1, 0]]), torch.tensor([[0.3, 0.5]]).log(), torch.tensor([0.2]).log())
    have = token_stats(policy, torch.tensor([1]), head, reference_MH=cache, divergence="ref_student")
    assert float(have.divergence_M) == pytest.approx(0.0252671539, abs=1e-6)
