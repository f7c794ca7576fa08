"""The stack against plain torch, PEFT and the base."""

import json

import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from finetrial.errors import UserError
from finetrial.model import lowrank
from finetrial.model.adapters import Adapter, AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.peft_format import load_peft, save_peft
from finetrial.model.targets import target_modules
from tiny import KINDS, VOCABULARY, tiny_model

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.randint(1, VOCABULARY, (7, 12), generator=torch.Generator().manual_seed(3))


def filled(model, seed=0, **config) -> Adapter:
    """An adapter whose B is not zero either."""
    adapter = fresh_adapter(model, ModelConfig(**{"lora_rank": 4, **config}), seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        path: (a_IR, torch.randn(b_RO.shape, generator=generator) * 0.1)
        for path, (a_IR, b_RO) in adapter.weights.items()
    }
    return Adapter(adapter.rank, adapter.alpha, adapter.rslora, adapter.dropout, adapter.targets, weights)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def merged_logits(model, adapter: Adapter, ids):
    """Reference: the adapter folded into the weights by hand."""
    saved = {}
    for path, (a_IR, b_RO) in adapter.weights.items():
        weight = model.get_submodule(path).weight
        saved[path] = weight.data.clone()
        weight.data += adapter.scale * (a_IR @ b_RO).T
    result = logits(model, ids)
    for path, weight in saved.items():
        model.get_submodule(path).weight.data = weight
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_zero_adapters_give_the_bases_logits_exactly(kind):
    model = tiny_model(kind)
    want = logits(model)
    with AdapterStack(model, [fresh_adapter(model, ModelConfig(), seed) for seed in range(3)]) as stack:
        with stack.rows([0, 0, 1, 1, 2, 2, None]):
            assert torch.equal(logits(model), want)
        for n in range(3):
            with stack.merged(n):
                assert torch.equal(logits(model), want)
    assert torch.equal(logits(model), want)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_gets_its_own_adapter(kind):
    model = tiny_model(kind)
    adapters = [filled(model, 1), filled(model, 2, lora_rank=3, rslora=True), filled(model, 3, lora_alpha=5.0)]
    rows = [None, 0, 2, 2, None, 1, 0]  # any order, a base row among them
    want = torch.cat(
        [
            merged_logits(model, adapters[n], IDS[s : s + 1]) if n is not None else logits(model, IDS[s : s + 1])
            for s, n in enumerate(rows)
        ]
    )
    with AdapterStack(model, adapters) as stack:
        with stack.rows(rows):
            torch.testing.assert_close(logits(model), want, rtol=1e-4, atol=1e-5)
        with stack.merged(1):
            torch.testing.assert_close(logits(model)[5], want[5], rtol=1e-4, atol=1e-5)


def reference_product(x_STI, a_NIR, b_NRO, weight_OI, bias_O, scale_N, keep_STI, rows):
    """The same product by plain autograd, row by row."""
    result = []
    for s, n in enumerate(rows):
        y_TO = F.linear(x_STI[s], weight_OI, bias_O)
        if n is not None:
            inputs = x_STI[s] if keep_STI is None else x_STI[s] * keep_STI[s]
            y_TO = y_TO + scale_N[n] * (inputs @ a_NIR[n] @ b_NRO[n])
        result.append(y_TO)
    return torch.stack(result)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    "rows", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, None], [None, 0, 0, 2, 2, 2], [1, 1, None, None, None, None]]
)
def test_product_and_gradients_match_autograd(monkeypatch, rows, dropout, grouped):
    """Equal rows (bmm), unequal rows (blocks) and the grouped GEMM, which torch also runs on a CPU."""
    monkeypatch.setattr(lowrank, "has_grouped_mm", lambda device, dtype: grouped)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x, a, b = draw(6, 5, 16).requires_grad_(), draw(3, 16, 8).requires_grad_(), draw(3, 8, 24).requires_grad_()
    weight, bias, scale, upstream = draw(24, 16), draw(24), torch.tensor([2.0, 0.5, 3.0]), draw(6, 5, 24)
    keep = (draw(6, 5, 16) > 0).float() * 2 if dropout else None
    groups = lowrank.row_groups(rows, scale, torch.float32)
    assert (groups.ends_N is not None) == (grouped and len(groups.blocks) > 1)
    have = lowrank.LoraLinear.apply(x, a, b, weight, bias, keep, groups)
    want = reference_product(x, a, b, weight, bias, scale, keep, rows)
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(have, (x, a, b), upstream), torch.autograd.grad(want, (x, a, b), upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_blocks_cover_the_rows():
    assert lowrank._blocks([0, 0, 1, 1, 2, 2]) == ((0, 3, 0, 6),)
    assert lowrank._blocks([None, 0, 1, 1]) == ((0, 1, 1, 2), (1, 2, 2, 4))
    assert lowrank._blocks([1, 1, 0, 2]) == ((1, 2, 0, 2), (0, 1, 2, 3), (2, 3, 3, 4))
    assert lowrank._blocks([None]) == ()


def test_padding_of_smaller_ranks_stays_zero():
    model = tiny_model()
    adapters = [filled(model, 1, lora_rank=2), filled(model, 2, lora_rank=6, targets=("q_proj", "up_proj"))]
    with AdapterStack(model, adapters, trainable=True) as stack:
        with stack.rows([0, 0, 0, 1, 1, 1, 1]):
            loss_M = model(input_ids=IDS, use_cache=False).logits.square().flatten()
            stack.backward((loss_M, torch.ones_like(loss_M)))
        stack.flat_NP.copy_(stack.grad_NP)  # so that each layer's views show the gradient
        for path, layer in stack.layers.items():
            assert layer.a_NIR[0, :, :2].abs().sum() > 0
            assert layer.b_NRO[0, :2].abs().sum() > 0
            assert layer.a_NIR[0, :, 2:].abs().sum() == 0
            assert layer.b_NRO[0, 2:].abs().sum() == 0
            if path not in adapters[1].weights:
                assert layer.a_NIR[1].abs().sum() == 0
                assert layer.b_NRO[1].abs().sum() == 0


def test_a_stack_gives_back_what_it_took():
    model = tiny_model()
    adapters = [filled(model, 1, lora_rank=2), filled(model, 2, lora_rank=6, targets=("q_proj", "up_proj"))]
    with AdapterStack(model, adapters) as stack:
        again = stack.adapter(1)
    assert set(again.weights) == set(adapters[1].weights)
    for path, pair in adapters[1].weights.items():
        for mine, theirs in zip(again.weights[path], pair, strict=True):
            assert torch.equal(mine, theirs)


def test_fresh_adapters_depend_on_seed_and_layer_alone():
    model, config = tiny_model(), ModelConfig(lora_rank=4)
    one, same, other = (fresh_adapter(model, config, seed) for seed in (1, 1, 2))
    some = fresh_adapter(model, ModelConfig(lora_rank=4, targets=("k_proj",)), 1)
    path = "model.layers.1.self_attn.k_proj"
    assert torch.equal(one.weights[path][0], same.weights[path][0])
    assert torch.equal(one.weights[path][0], some.weights[path][0])
    assert not torch.equal(one.weights[path][0], other.weights[path][0])
    for a_IR, b_RO in one.weights.values():
        bound = a_IR.shape[0] ** -0.5
        assert 0.9 * bound < a_IR.abs().max() <= bound
        assert not b_RO.any()


def test_targets_are_found_or_refused():
    model = tiny_model("llama")
    paths = set(target_modules(model, ("all-linear",)))
    assert len(paths) == 2 * 7
    assert "lm_head" not in paths
    assert set(target_modules(model, ("layers.1.mlp.up_proj",))) == {"model.layers.1.mlp.up_proj"}
    with pytest.raises(UserError, match=r"'q_prj' \(did you mean 'q_proj'\?\)"):
        target_modules(model, ("q_prj",))
    with pytest.raises(UserError, match="'lm_head' is the output head"):
        target_modules(model, ("lm_head",))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16))
    with pytest.raises(UserError, match=r"has no nn\.Linear layers"):
        target_modules(gpt2, ("all-linear",))
    with pytest.raises(UserError, match="'c_attn' is a Conv1D"):
        target_modules(gpt2, ("c_attn",))


def test_an_adapter_of_another_model_is_refused():
    adapter = filled(tiny_model("llama"))
    with pytest.raises(UserError, match="has shapes"):
        AdapterStack(tiny_model("llama", hidden_size=24, head_dim=12), [adapter])
    with pytest.raises(UserError, match="is missing from this base"):
        AdapterStack(tiny_model("llama", num_hidden_layers=1), [adapter])


def test_a_pass_without_rows_is_refused():
    model = tiny_model()
    with AdapterStack(model, [filled(model)]), pytest.raises(RuntimeError, match=r"inside stack\.rows"):
        logits(model)


def test_parameters_are_frozen_inside_and_thawed_after():
    model = tiny_model()
    model.model.norm.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    with AdapterStack(model, [filled(model)]):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_float32_adapters_over_a_bfloat16_base():
    model = tiny_model().to(torch.bfloat16)
    adapter = filled(model)
    with AdapterStack(model, [adapter], trainable=True) as stack:
        with stack.rows([0] * 7):
            out = model(input_ids=IDS, use_cache=False).logits
            stack.backward((out.float().square().flatten(), torch.ones(out.numel())))
        assert out.dtype == torch.bfloat16
        assert stack.flat_NP.dtype == stack.grad_NP.dtype == torch.float32
        assert stack.grad_NP.abs().sum() > 0
        with pytest.raises(ValueError, match="loses small updates"), stack.merged(0):
            pass


def test_dropout_is_a_function_of_key_layer_and_position():
    model = tiny_model()
    adapters = [filled(model, 1, lora_dropout=0.3), filled(model, 2, lora_dropout=0.6), filled(model, 3)]
    with AdapterStack(model, adapters) as stack:
        with stack.rows([0, 1, 2, None], [5, 3, 5, 5], [11, 12, 13, 14]):
            keep = stack.keep_mask("layer", torch.zeros(4, 6, 1000))
        with stack.rows([1, 0], [4, 5], [12, 11]):
            other = stack.keep_mask("layer", torch.zeros(2, 9, 1000))
        with stack.rows([2, None], [5, 5], [11, 12]):
            assert stack.keep_mask("layer", torch.zeros(2, 6, 1000)) is None
    assert torch.equal(keep[0, :5], other[1, :5])
    assert torch.equal(keep[1, :3], other[0, :3])
    assert torch.equal(keep[2:], torch.ones(2, 6, 1000))
    assert keep[0, :5].unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (keep[0, :5] == 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert keep[1, :3].mean() == pytest.approx(1.0, abs=0.1)


@PEFT_WARNS
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "config", [{}, {"rslora": True, "lora_alpha": 7.0}, {"targets": ("q_proj", "v_proj"), "lora_dropout": 0.1}]
)
def test_peft_round_trip(tmp_path, kind, config):
    model = tiny_model(kind)
    adapter = filled(model, 5, **config)
    save_peft(adapter, tmp_path / "adapter", base="tiny")
    again = load_peft(tmp_path / "adapter")
    assert (again.rank, again.alpha, again.rslora, again.dropout) == (
        adapter.rank,
        adapter.alpha,
        adapter.rslora,
        adapter.dropout,
    )
    assert again.targets == tuple(sorted(adapter.targets))
    with AdapterStack(model, [again]) as stack, stack.rows([0] * 7):
        mine = logits(model)
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), str(tmp_path / "adapter"))
    torch.testing.assert_close(mine, logits(theirs), rtol=1e-4, atol=1e-5)
    assert (mine - logits(model)).abs().max() > 1e-2


@PEFT_WARNS
def test_an_adapter_that_peft_wrote_is_read(tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    theirs = peft.get_peft_model(tiny_model("llama"), config).eval()
    theirs.save_pretrained(str(tmp_path))
    model = tiny_model("llama")
    with AdapterStack(model, [load_peft(tmp_path)]) as stack, stack.rows([0] * 7):
        torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"use_dora": True}, {"peft_type": "IA3"}, {"bias": "all"}])
def test_an_adapter_that_is_no_plain_lora_is_refused(tmp_path, change):
    save_peft(filled(tiny_model()), tmp_path, base="tiny")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=next(iter(change))):
        load_peft(tmp_path)


def test_a_folder_without_adapter_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        load_peft(tmp_path)
