"""PiSSA and OLoRA: published numbers, PEFT's own, the start at the base, and files for the plain base."""

import json

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetrial.errors import UserError
from finetrial.model import lowrank
from finetrial.model.adapters import AdapterStack, fresh_adapter, fresh_adapters
from finetrial.model.config import ModelConfig
from finetrial.model.initial import FACTORS, principal, triangular
from finetrial.model.peft_format import load_peft, save_peft
from tiny import KINDS, VOCABULARY, tiny_model

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.randint(1, VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(3))
INITS = ("pissa", "olora")
RANK = 4

WEIGHT_OI = torch.tensor([[3.0, 1, 0], [1, 2, 1], [0, 1, 1], [2, 0, 1]])


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def moved(adapter):
    """The adapter after a step of its trained half."""
    generator = torch.Generator().manual_seed(0)
    for a_IR, b_RO in adapter.weights.values():
        a_IR[:, : adapter.trained_rank] += 0.1 * torch.randn(len(a_IR), adapter.trained_rank, generator=generator)
        b_RO[: adapter.trained_rank] += 0.1 * torch.randn(adapter.trained_rank, b_RO.shape[1], generator=generator)
    return adapter


def test_the_worked_example_of_pissa():
    a_IR, b_RO = principal(WEIGHT_OI, 2)
    want_OI = torch.tensor(
        [
            [3.0049577998, 0.7316927238, 0.4259348571],
            [1.0020681844, 1.8880735511, 1.1776820095],
            [-0.0030835893, 1.1668783488, 0.7350824524],
            [1.9914736761, 0.4614294285, 0.2674858453],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close((a_IR @ b_RO).T, want_OI, rtol=0, atol=1e-9)
    singular_R = torch.tensor([4.1854509559, 2.0825123562], dtype=torch.float64)
    torch.testing.assert_close(a_IR.T @ a_IR, singular_R.diag(), rtol=0, atol=1e-9)
    torch.testing.assert_close(b_RO @ b_RO.T, singular_R.diag(), rtol=0, atol=1e-9)
    residual = torch.linalg.matrix_norm(WEIGHT_OI - want_OI)
    assert float(residual) == pytest.approx(1.0701133501, abs=1e-9)
    adapter = fresh_adapter(nn.Sequential(linear_of(WEIGHT_OI)), ModelConfig(lora_rank=2, init="pissa"), 0)
    (a_IF, b_FO) = adapter.weights["0"]  # at scale 2: each factor is divided by its root
    assert adapter.scale == 2.0
    torch.testing.assert_close(a_IF[:, :2].norm(dim=0), torch.tensor([1.4466255486, 1.0204196088]))
    torch.testing.assert_close(2 * (a_IF[:, :2] @ b_FO[:2]).T, want_OI.float(), rtol=1e-6, atol=1e-6)


def test_the_worked_example_of_olora():
    a_IR, b_RO = triangular(WEIGHT_OI, 2)
    want_OI = torch.tensor(
        [[3.0, 1, 0.6101694915], [1, 2, 0.9661016949], [0, 1, 0.4576271186], [2, 0, 0.1016949153]], dtype=torch.float64
    )
    torch.testing.assert_close((a_IR @ b_RO).T, want_OI, rtol=0, atol=1e-9)
    torch.testing.assert_close(b_RO @ b_RO.T, torch.eye(2, dtype=torch.float64))


def linear_of(weight_OI) -> nn.Linear:
    linear = nn.Linear(*weight_OI.shape[::-1], bias=False)
    linear.weight.data = weight_OI.clone()
    return linear


@given(st.sampled_from(INITS), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_factors_of_any_weight(init, outputs, inputs, seed):
    """At full rank the product is the weight; smaller ranks are the first directions; a flipped sign flips nothing."""
    weight_OI = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rank = min(outputs, inputs)
    a_IR, b_RO = FACTORS[init](weight_OI, rank)
    torch.testing.assert_close((a_IR @ b_RO).T, weight_OI, rtol=1e-6, atol=1e-6)
    some = FACTORS[init](weight_OI, (rank + 1) // 2)
    assert torch.equal(some[0], a_IR[:, : (rank + 1) // 2])
    torch.testing.assert_close(some[1], b_RO[: (rank + 1) // 2], rtol=1e-12, atol=1e-12)
    minus_IR, minus_RO = FACTORS[init](-weight_OI, rank)
    torch.testing.assert_close(minus_IR, a_IR, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(minus_RO, -b_RO, rtol=1e-9, atol=1e-9)


def test_a_weight_of_smaller_rank_is_no_trouble():
    weight_OI = torch.outer(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 0, -1, 2]))
    for init in INITS:
        a_IR, b_RO = FACTORS[init](weight_OI, 3)
        assert a_IR.isfinite().all()
        assert b_RO.isfinite().all()
        torch.testing.assert_close((a_IR @ b_RO).T, weight_OI.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_at_the_base(kind, init, rslora):
    """Both halves cancel up to float32 rounding, and exactly nothing is left of scale or rank."""
    model = tiny_model(kind)
    config = ModelConfig(lora_rank=RANK, init=init, rslora=rslora)
    adapter = fresh_adapter(model, config, 1)
    assert (adapter.rank, adapter.trained_rank, adapter.frozen) == (2 * RANK, RANK, RANK)
    assert adapter.scale == pytest.approx(config.scale, rel=1e-15)
    want = logits(model)
    with AdapterStack(model, [adapter]) as stack:
        with stack.rows([0] * len(IDS)):
            error = (logits(model) - want).abs().max() / want.abs().max()
        with stack.merged(0):
            folded = (logits(model) - want).abs().max() / want.abs().max()
        with stack.rows([None] * len(IDS)):
            assert torch.equal(logits(model), want)
    assert error < 3e-6
    assert folded < 3e-6


@pytest.mark.parametrize("init", INITS)
def test_a_start_depends_on_the_base_alone(init):
    """Not on the seed, nor on which ranks, scales and kinds are made beside it."""
    model, config = tiny_model(), ModelConfig(lora_rank=3, init=init)
    alone = fresh_adapter(model, config, 1)
    others = [
        (ModelConfig(lora_rank=7, init=init, lora_alpha=1.0, targets=("q_proj",)), 0),
        (ModelConfig(lora_rank=5), 0),
        (config, 2),
        (ModelConfig(lora_rank=2, init="pissa" if init == "olora" else "olora"), 0),
    ]
    beside = fresh_adapters(model, others)[2]
    for path, (a_IR, b_RO) in alone.weights.items():
        torch.testing.assert_close(beside.weights[path][0], a_IR, rtol=0, atol=0)
        torch.testing.assert_close(beside.weights[path][1], b_RO, rtol=0, atol=0)
        assert torch.equal(a_IR[:, :3], a_IR[:, 3:])
        assert torch.equal(b_RO[:3], -b_RO[3:])


@PEFT_WARNS
@pytest.mark.parametrize("init", INITS)
def test_forward_and_gradients_are_pefts(init):
    """After a step that both take alike. PEFT's directions may have the other sign, and the same product."""
    config = ModelConfig(lora_rank=RANK, init=init, targets=("q_proj", "o_proj", "up_proj"))
    theirs = peft.get_peft_model(
        tiny_model(),
        peft.LoraConfig(
            r=RANK, lora_alpha=int(config.alpha), target_modules=list(config.targets), init_lora_weights=init
        ),
    )
    model = tiny_model()
    adapter = fresh_adapter(model, config, 0)
    signs = {}
    generator = torch.Generator().manual_seed(5)
    for path, (a_IR, b_RO) in adapter.weights.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        their_a, their_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        signs[path] = torch.sign((their_a.T * a_IR[:, :RANK]).sum(dim=0)).detach()
        torch.testing.assert_close(signs[path] * their_a.T, a_IR[:, :RANK], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(signs[path][:, None] * their_b.T, b_RO[:RANK], rtol=1e-3, atol=1e-4)
        step_a, step_b = (0.1 * torch.randn(part.shape, generator=generator) for part in (a_IR[:, :RANK], b_RO[:RANK]))
        a_IR[:, :RANK] += step_a
        b_RO[:RANK] += step_b
        their_a.data += (signs[path] * step_a).T
        their_b.data += (signs[path][:, None] * step_b).T
    want = theirs(input_ids=IDS, use_cache=False).logits
    want.square().sum().backward()
    with AdapterStack(model, [adapter], trainable=True) as stack, stack.rows([0] * len(IDS)):
        have = model(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
        loss_M = have.square().flatten()
        stack.backward((loss_M, torch.ones_like(loss_M)))
        assert stack.frozen_NP is not None
        assert not stack.grad_NP[stack.frozen_NP].any()
        stack.flat_NP.copy_(stack.grad_NP)
        gradient = stack.adapter(0)
    for path, (grad_a_IR, grad_b_RO) in gradient.weights.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        want_a, want_b = layer.lora_A["default"].weight.grad.T, layer.lora_B["default"].weight.grad.T
        torch.testing.assert_close(grad_a_IR[:, :RANK], signs[path] * want_a, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(grad_b_RO[:RANK], signs[path][:, None] * want_b, rtol=2e-3, atol=2e-3)


@PEFT_WARNS
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_files_are_loras_for_the_plain_base(tmp_path, init, rslora, dora):
    model = tiny_model()
    adapter = moved(fresh_adapter(model, ModelConfig(lora_rank=3, init=init, rslora=rslora, dora=dora), 1))
    save_peft(adapter, tmp_path / "adapter", base="tiny")
    again = load_peft(tmp_path / "adapter")
    assert (again.rank, again.alpha, again.scale, again.frozen) == (6, adapter.alpha, adapter.scale, 0)
    with AdapterStack(model, [adapter]) as stack, stack.rows([0] * len(IDS)):
        mine = logits(model)
    theirs = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter"))
    torch.testing.assert_close(mine, logits(theirs), rtol=1e-3, atol=1e-4)
    assert (mine - logits(model)).abs().max() > 1e-2


@PEFT_WARNS
@pytest.mark.parametrize("init", INITS)
def test_an_unconverted_adapter_of_peft_is_refused(tmp_path, init):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init)
    peft.get_peft_model(tiny_model(), config).save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] == init
    with pytest.raises(UserError, match="path_initial_model_for_weight_conversion"):
        load_peft(tmp_path)


@pytest.mark.parametrize("init", INITS)
def test_what_cannot_start_from_the_base_is_refused(init):
    with pytest.raises(UserError, match=r"k_proj' has 8 directions to start from"):
        fresh_adapter(tiny_model(), ModelConfig(lora_rank=9, init=init), 0)
    with pytest.raises(ValueError, match=f"init = '{init}' needs lora_dropout = 0"):
        ModelConfig(init=init, lora_dropout=0.1)


@pytest.mark.parametrize("grouped", [False, True])
def test_frozen_directions_get_no_gradient_beside_plain_adapters(monkeypatch, grouped):
    """By blocks and by grouped GEMM; the plain neighbour's gradients are those it has beside another plain one."""
    monkeypatch.setattr(lowrank, "has_grouped_mm", lambda device, dtype: grouped)
    model = tiny_model()
    plain, other = (fresh_adapter(model, ModelConfig(lora_rank=8), seed) for seed in (1, 2))
    pissa = fresh_adapter(model, ModelConfig(lora_rank=RANK, init="pissa"), 0)

    def gradients(beside):
        with AdapterStack(model, [plain, beside], trainable=True) as stack, stack.rows([0, 0, 1, 1, 1]):
            loss_M = model(input_ids=IDS, use_cache=False).logits.square().flatten()
            stack.backward((loss_M, torch.ones_like(loss_M)))
            return stack.grad_NP, stack.frozen_NP

    grad_NP, frozen_NP = gradients(pissa)
    want_NP, nothing = gradients(other)
    assert nothing is None
    assert frozen_NP is not None
    assert not frozen_NP[0].any()
    assert frozen_NP[1].sum() * 2 == frozen_NP.shape[1]
    assert not grad_NP[frozen_NP].any()
    assert grad_NP[1, ~frozen_NP[1]].any()
    torch.testing.assert_close(grad_NP[0], want_NP[0], rtol=1e-5, atol=1e-5)
