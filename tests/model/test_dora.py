"""DoRA against the published example, PEFT's layer and PEFT's files; rows without it keep their bits."""

import json
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn

from finetrial.errors import UserError
from finetrial.model.adapters import Adapter, AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.dora import adapted_norms, row_norms
from finetrial.model.peft_format import load_peft, save_peft
from finetrial.model.squeeze import analyse, squeeze
from tiny import KINDS, VOCABULARY, tiny_model

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.randint(1, VOCABULARY, (6, 12), generator=torch.Generator().manual_seed(3))

WEIGHT_OI = torch.tensor([[3.0, 1, 0], [1, 2, 1], [0, 1, 1], [2, 0, 1]])
A_IR = torch.tensor([[1.0, 0, 1], [0, 1, 0]]).T
B_RO = torch.tensor([[0.1, 0], [0, 0.2], [0.1, 0.1], [0, 0]]).T
M_O = torch.tensor([3.1622776602, 2.4494897428, 1.4142135624, 2.2360679775])
WANT_OI = torch.tensor(
    [
        [3.0129743086, 0.9415544714, 0.1883108943],
        [0.8793155726, 2.1103573743, 0.8793155726],
        [0.1655211777, 0.9931270663, 0.9931270663],
        [2.0, 0.0, 1.0],
    ]
)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def filled(model, seed=0, **config) -> Adapter:
    """An adapter whose B is not zero and whose magnitudes, if any, have moved."""
    adapter = fresh_adapter(model, ModelConfig(**{"lora_rank": 4, **config}), seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        path: (a_IR, torch.randn(b_RO.shape, generator=generator) * 0.1)
        for path, (a_IR, b_RO) in adapter.weights.items()
    }
    magnitudes = adapter.magnitudes and {
        path: m_O * (1 + 0.2 * torch.randn(m_O.shape, generator=generator)) for path, m_O in adapter.magnitudes.items()
    }
    return replace(adapter, weights=weights, magnitudes=magnitudes)


def one_layer(bias: bool = False) -> nn.Module:
    linear = nn.Linear(3, 4, bias=bias)
    linear.weight.data = WEIGHT_OI.clone()
    if bias:
        linear.bias.data = torch.tensor([1.0, -2, 3, -4])
    return nn.Sequential(linear)


def test_the_worked_example():
    model = one_layer()
    torch.testing.assert_close(row_norms(WEIGHT_OI), M_O)
    adapter = Adapter(2, 4.0, False, 0.0, ("0",), {"0": (A_IR, B_RO)}, magnitudes={"0": row_norms(WEIGHT_OI)})
    with AdapterStack(model, [adapter]) as stack:
        with stack.rows([0, None]):
            y_STO = model(torch.eye(3).repeat(2, 1, 1))
        with stack.merged(0):
            folded_TO = model(torch.eye(3))
    torch.testing.assert_close(y_STO[0].T, WANT_OI)
    torch.testing.assert_close(y_STO[1].T, WEIGHT_OI)
    torch.testing.assert_close(folded_TO.T, WANT_OI)
    torch.testing.assert_close(folded_TO.T.norm(dim=1), M_O)


def test_norms_come_from_thin_products():
    generator = torch.Generator().manual_seed(0)
    weight_OI, a_NIR, b_NRO = (torch.randn(shape, generator=generator) for shape in ((7, 5), (3, 5, 2), (3, 2, 7)))
    scale_N = torch.tensor([2.0, 0.5, 7.0])
    have_N1O = adapted_norms(weight_OI, a_NIR, b_NRO, scale_N[:, None, None])
    for n in range(3):
        whole_OI = weight_OI + scale_N[n] * (a_NIR[n] @ b_NRO[n]).T
        torch.testing.assert_close(have_N1O[n, 0], whole_OI.norm(dim=1), rtol=1e-5, atol=1e-5)
    at_start_N1O = adapted_norms(weight_OI, a_NIR, torch.zeros_like(b_NRO), scale_N[:, None, None])
    assert torch.equal(at_start_N1O, row_norms(weight_OI).expand(3, 1, 7))
    assert (adapted_norms(torch.zeros(4, 5), a_NIR, torch.zeros(3, 2, 4), scale_N[:, None, None]) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_gives_the_bases_logits_exactly(kind):
    model = tiny_model(kind)
    want = logits(model)
    with AdapterStack(model, [fresh_adapter(model, ModelConfig(dora=True), seed) for seed in range(2)]) as stack:
        with stack.rows([0, 0, 1, 1, 1, None]):
            assert torch.equal(logits(model), want)
        with stack.merged(1):
            assert torch.equal(logits(model), want)


@PEFT_WARNS
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_gets_its_own_adapter_and_others_keep_their_bits(tmp_path, kind):
    """DoRA of two ranks and layers, LoRA and the base in one pass, in any order; PEFT says what DoRA's rows are."""
    model = tiny_model(kind)
    adapters = [
        filled(model, 1, dora=True),
        filled(model, 2),
        filled(model, 3, dora=True, lora_rank=3, rslora=True, targets=("q_proj", "up_proj")),
    ]
    rows = [1, 0, 2, None, 0, 2]
    with AdapterStack(model, adapters) as stack, stack.rows(rows):
        have = logits(model)
    with AdapterStack(model, [replace(adapter, magnitudes=None) for adapter in adapters]) as stack, stack.rows(rows):
        without = logits(model)
    for s in (0, 3):
        assert torch.equal(have[s], without[s])
    for n in (0, 2):
        save_peft(adapters[n], tmp_path / str(n), base="tiny")
        theirs = logits(peft.PeftModel.from_pretrained(tiny_model(kind), str(tmp_path / str(n))))
        with AdapterStack(model, [load_peft(tmp_path / str(n))]) as stack, stack.merged(0):
            torch.testing.assert_close(logits(model), theirs, rtol=1e-4, atol=1e-4)
        for s in (s for s, adapter in enumerate(rows) if adapter == n):
            torch.testing.assert_close(have[s], theirs[s], rtol=1e-4, atol=1e-4)
            assert (have[s] - without[s]).abs().max() > 1e-2


@PEFT_WARNS
def test_gradients_are_pefts():
    """Of A, B and the magnitudes, with LoRA in the same pass, whose magnitudes' gradient stays zero."""
    model = tiny_model()
    adapter, other = filled(model, 1, dora=True), filled(model, 2)
    config = peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=list(adapter.targets))
    theirs = peft.get_peft_model(tiny_model(), config)
    for path, (a_IR, b_RO) in adapter.weights.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        layer.lora_A["default"].weight.data.copy_(a_IR.T)
        layer.lora_B["default"].weight.data.copy_(b_RO.T)
        layer.lora_magnitude_vector["default"].weight.data.copy_(adapter.magnitudes[path])
    theirs(input_ids=IDS[2:], use_cache=False).logits.square().sum().backward()
    with AdapterStack(model, [other, adapter], trainable=True) as stack:
        with stack.rows([0, 0, 1, 1, 1, 1]):
            loss_M = model(input_ids=IDS, use_cache=False).logits.square().flatten()
            stack.backward((loss_M, torch.ones_like(loss_M)))
        numbers = sum(layer.out_features for layer in stack.layers.values())
        assert not stack.grad_NP[0, -numbers:].any()
        stack.flat_NP.copy_(stack.grad_NP)
        gradient = stack.adapter(1)
    for path, (grad_a_IR, grad_b_RO) in gradient.weights.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        want_a, want_b = layer.lora_A["default"].weight.grad.T, layer.lora_B["default"].weight.grad.T
        want_m = layer.lora_magnitude_vector["default"].weight.grad
        torch.testing.assert_close(grad_a_IR, want_a, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(grad_b_RO, want_b, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(gradient.magnitudes[path], want_m, rtol=1e-3, atol=1e-3)
        assert want_m.abs().max() > 0.1


class Masked(nn.Module):
    """Dropout whose mask is known."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, x):
        return x * self.keep


@pytest.mark.parametrize("bias", [False, True])
def test_dropout_is_pefts(bias):
    """Dropped inputs are lost to the rescaled base product too; forward and all gradients as PEFT's layer."""
    from peft.tuners.lora.layer import Linear

    adapter = Adapter(2, 4.0, False, 0.5, ("0",), {"0": (A_IR, B_RO)}, magnitudes={"0": M_O * 1.3})
    model, mine_x = one_layer(bias), torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    upstream = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2))
    with AdapterStack(model, [replace(adapter, magnitudes=None), adapter], trainable=True) as stack:
        with stack.rows([0, 1], [6, 6], [11, 12]):
            keep = stack.keep_mask("0", torch.zeros(2, 6, 3))
            mine = model(mine_x)
            ((mine * upstream).sum()).backward(retain_graph=True)
            stack.backward((mine, upstream))
        stack.flat_NP.copy_(stack.grad_NP)
        gradient = stack.adapter(1)
    assert 0 < (keep == 0).float().mean() < 1
    config = peft.LoraConfig(r=2, lora_alpha=4, use_dora=True, lora_dropout=0.5)
    layer = Linear(one_layer(bias)[0], "default", config=config, r=2, lora_alpha=4)
    layer.lora_A["default"].weight.data.copy_(A_IR.T)
    layer.lora_B["default"].weight.data.copy_(B_RO.T)
    layer.lora_magnitude_vector["default"].weight.data.copy_(M_O * 1.3)
    layer.lora_dropout["default"] = Masked(keep[1])
    their_x = mine_x[1].detach().requires_grad_()
    theirs = layer.train()(their_x)
    (theirs * upstream[1]).sum().backward()
    torch.testing.assert_close(mine[1], theirs)
    torch.testing.assert_close(mine_x.grad[1], their_x.grad)
    torch.testing.assert_close(gradient.weights["0"][0], layer.lora_A["default"].weight.grad.T)
    torch.testing.assert_close(gradient.weights["0"][1], layer.lora_B["default"].weight.grad.T)
    torch.testing.assert_close(gradient.magnitudes["0"], layer.lora_magnitude_vector["default"].weight.grad)


def test_a_stack_gives_back_what_it_took():
    model = tiny_model()
    adapters = [filled(model, 1, dora=True, lora_rank=2), filled(model, 2, targets=("q_proj",))]
    with AdapterStack(model, adapters) as stack:
        again = [stack.adapter(n) for n in range(2)]
    assert again[1].magnitudes is None
    assert set(again[0].magnitudes) == set(adapters[0].weights)
    assert all(torch.equal(again[0].magnitudes[path], m_O) for path, m_O in adapters[0].magnitudes.items())


@PEFT_WARNS
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_peft_round_trip(tmp_path, dropout):
    """Files have PEFT's names: what PEFT saves is what is saved here."""
    adapter = filled(tiny_model(), 1, dora=True, lora_dropout=dropout)
    save_peft(adapter, tmp_path / "mine", base="")
    again = load_peft(tmp_path / "mine")
    assert set(again.magnitudes) == set(adapter.magnitudes)
    assert all(torch.equal(again.magnitudes[path], m_O) for path, m_O in adapter.magnitudes.items())
    peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "mine")).save_pretrained(str(tmp_path / "theirs"))
    theirs = load_peft(tmp_path / "theirs")
    assert (theirs.rank, theirs.scale, theirs.dropout) == (again.rank, again.scale, dropout)
    for path, pair in again.weights.items():
        assert all(torch.equal(mine, other) for mine, other in zip(pair, theirs.weights[path], strict=True))
        assert torch.equal(theirs.magnitudes[path], again.magnitudes[path])


def test_files_that_contradict_themselves_are_refused(tmp_path):
    save_peft(filled(tiny_model(), 1, dora=True), tmp_path, base="tiny")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": False}))
    with pytest.raises(UserError, match="use_dora is False and 14 of 14 layers have a 'lora_magnitude_vector'"):
        load_peft(tmp_path)


def test_magnitudes_of_another_model_are_refused():
    model = tiny_model()
    adapter = filled(model, 1, dora=True)
    path = next(iter(adapter.weights))
    wrong = replace(adapter, magnitudes={**adapter.magnitudes, path: torch.ones(3)})
    with pytest.raises(UserError, match="has 3 magnitudes, this base needs 16"):
        AdapterStack(model, [wrong])


def test_over_a_bfloat16_base():
    """Magnitudes stay float32, and a fresh adapter is the base to the last bit."""
    model = tiny_model().to(torch.bfloat16)
    want = logits(model)
    with AdapterStack(model, [fresh_adapter(model, ModelConfig(dora=True), 0)], trainable=True) as stack:
        with stack.rows([0] * len(IDS)):
            out = model(input_ids=IDS, use_cache=False).logits
            stack.backward((out.float().square().flatten(), torch.ones(out.numel())))
        assert torch.equal(out, want)
        assert stack.grad_NP.dtype == torch.float32
        assert all(layer.m_N1O.dtype == torch.float32 for layer in stack.layers.values())
        assert stack.grad_NP[0, -16:].any()


def test_no_squeezing_of_magnitudes():
    adapter = filled(tiny_model(), 1, dora=True)
    for attempt in (lambda: analyse(adapter), lambda: squeeze(adapter, 2)):
        with pytest.raises(UserError, match="a DoRA adapter cannot be squeezed"):
            attempt()
