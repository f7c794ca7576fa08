"""Ranks against dense SVD, the published example, and what must hold for any adapter."""

import json
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetrial.errors import UserError
from finetrial.model.adapters import Adapter, AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.peft_format import load_peft, save_peft
from finetrial.model.squeeze import analyse, recommend, squeeze, squeeze_folder
from tiny import VOCABULARY, tiny_model

A_IR = torch.tensor([[1.0, 0, 2], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
B_RO = torch.tensor([[1.0, 2, 0, 1, 0], [0, 1, 1, 0, 1], [2, 0, 0, 1, 1]])
DELTA_RANK_2 = torch.tensor(
    [
        [4.9533161824, 1.7961545452, 0.289912436, 2.8532186185, 2.3900099998],
        [2.0969404909, 1.4232918269, 0.3979872411, 1.3047963919, 1.1901313401],
        [0.9806287, 2.9154149842, 1.1202982327, 0.9390935379, 1.1618333949],
        [2.0232093244, 0.1013437959, -0.1441328519, 1.0729738242, 0.8061026484],
    ],
    dtype=torch.float64,
)


def adapter_of(weights, rank: int, alpha: float | None = None, rslora: bool = False) -> Adapter:
    return Adapter(rank, rank if alpha is None else alpha, rslora, 0.0, ("all",), weights)


def random_adapter(seed: int, rank: int, sizes, rslora: bool = False) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"layer{i}": (
            torch.randn(features_in, rank, generator=generator),
            torch.randn(rank, features_out, generator=generator) * torch.logspace(0, -2, rank)[:, None],
        )
        for i, (features_in, features_out) in enumerate(sizes)
    }
    return adapter_of(weights, rank, 7.0, rslora)


def delta_IO(adapter: Adapter, path: str) -> torch.Tensor:
    a_IR, b_RO = adapter.weights[path]
    return adapter.scale * (a_IR.double() @ b_RO.double())


def test_the_worked_example():
    adapter = adapter_of({"layer": (A_IR, B_RO)}, 3)
    report = analyse(adapter)
    assert report.singular_values["layer"] == pytest.approx([7.9603138124, 2.6278856381, 1.3143900035], abs=1e-9)
    assert report.retention_LR[0] == pytest.approx([0.880091611, 0.9760052628, 1.0], abs=1e-9)
    assert recommend(report, 0.95).rank == 2
    squeezed = squeeze(adapter, 2)
    torch.testing.assert_close(delta_IO(squeezed, "layer"), DELTA_RANK_2, rtol=1e-6, atol=1e-6)
    lost = (delta_IO(squeezed, "layer") - delta_IO(adapter, "layer")).norm() / delta_IO(adapter, "layer").norm()
    assert float(lost) == pytest.approx(0.1549023474, abs=1e-6)


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 21.3333333333), (True, 26.1278905897)])
def test_alpha_keeps_the_scale_as_a_fraction(rslora, alpha):
    adapter = adapter_of({"layer": (A_IR, B_RO)}, 3, 32.0, rslora)
    squeezed = squeeze(adapter, 2)
    assert squeezed.alpha == pytest.approx(alpha, abs=1e-9)
    assert squeezed.scale == pytest.approx(adapter.scale, rel=1e-15)
    torch.testing.assert_close(delta_IO(squeezed, "layer"), DELTA_RANK_2 * adapter.scale, rtol=1e-6, atol=1e-5)


def test_a_small_alpha_does_not_vanish():
    adapter = adapter_of({"layer": (torch.randn(40, 32), torch.randn(32, 40))}, 32, 16.0)
    assert squeeze(adapter, 1).alpha == 0.5


@given(
    seed=st.integers(0, 50),
    rank=st.integers(1, 9),
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
    rslora=st.booleans(),
    data=st.data(),
)
def test_squeezing_is_the_truncated_svd_of_the_change(seed, rank, sizes, rslora, data):
    adapter = random_adapter(seed, rank, sizes, rslora)
    target = data.draw(st.integers(1, rank))
    squeezed, report = squeeze(adapter, target), analyse(adapter)
    assert squeezed.rank == target
    for i, path in enumerate(adapter.weights):
        want_IO = delta_IO(adapter, path)
        u, s_M, v = torch.linalg.svd(want_IO, full_matrices=False)
        nearest_IO = u[:, :target] * s_M[:target] @ v[:target]
        assert [tuple(half.shape) for half in squeezed.weights[path]] == [
            (want_IO.shape[0], target),
            (target, want_IO.shape[1]),
        ]
        size = float(s_M[0])
        torch.testing.assert_close(delta_IO(squeezed, path), nearest_IO, rtol=0, atol=2e-6 * size)
        retained = report.retention_LR[i, target - 1]
        assert retained == pytest.approx(float((s_M[:target] ** 2).sum() / (s_M**2).sum()), abs=1e-9)
        assert np.all(np.diff(report.retention_LR[i]) >= 0)
        assert report.retention_LR[i, -1] == 1.0
    assert squeeze(adapter, rank) is adapter


def test_squeezing_twice_is_squeezing_once():
    adapter = random_adapter(3, 8, [(20, 30), (6, 40)])
    once, twice = squeeze(adapter, 2), squeeze(squeeze(adapter, 5), 2)
    for path in adapter.weights:
        torch.testing.assert_close(delta_IO(once, path), delta_IO(twice, path), rtol=1e-5, atol=1e-5)


def test_the_mean_hides_a_bad_layer_and_the_recommendation_does_not():
    flat = torch.linalg.qr(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)))[0]
    steep = flat * torch.tensor([100.0, 1, 0, 0, 0, 0, 0, 0])
    weights = {f"steep{i}": (steep, flat.T.contiguous()) for i in range(20)}
    weights["flat"] = (flat, flat.T.contiguous())
    report = analyse(adapter_of(weights, 8))
    found = recommend(report, 0.95)
    assert (found.mean_rank, found.rank, found.worst_layer) == (1, 8, "flat")
    assert found.min_at_mean_rank == pytest.approx(1 / 8)
    assert report.at(1)["mean"] == pytest.approx((20 * (1 - 1e-4) + 1 / 8) / 21, abs=1e-6)
    assert report.at(1)["total"] > 0.999  # nor does the energy of all layers together see it
    assert found.facts()["recommended_rank"] == 8


def test_layers_that_change_nothing_lose_nothing():
    adapter = fresh_adapter(tiny_model(), ModelConfig(lora_rank=4), 1)
    report = analyse(adapter)
    assert (report.retention_LR == 1).all()
    assert (recommend(report, 1.0).rank, report.at(1)["total"]) == (1, 1.0)
    assert report.facts()["zero_layers"] == list(adapter.weights)
    assert all(not half.any() for half in squeeze(adapter, 2).weights["model.layers.0.mlp.up_proj"][1:])


def test_facts_are_strict_json():
    report = analyse(random_adapter(1, 4, [(5, 6), (7, 3)]))
    facts = json.loads(json.dumps({**report.facts(), **recommend(report).facts()}, allow_nan=False))
    assert [at["rank"] for at in facts["ranks"]] == [1, 2, 3, 4]
    assert sum(layer["energy_share"] for layer in facts["layers"].values()) == pytest.approx(1)
    assert "not task quality" in facts["note"]


def test_what_started_from_the_base_is_squeezed_as_what_it_adds_to_it():
    """The halves cancel but for what training moved: the rank that it uses shows, and nothing is frozen any more."""
    fresh = fresh_adapter(tiny_model(), ModelConfig(lora_rank=4, init="pissa"), 1)
    generator = torch.Generator().manual_seed(0)
    for _, b_RO in fresh.weights.values():
        b_RO[:1] += torch.randn(1, b_RO.shape[1], generator=generator)
    assert recommend(analyse(fresh), 0.99).rank == 1
    squeezed = squeeze(fresh, 2)
    assert (squeezed.rank, squeezed.frozen, squeezed.trained_rank) == (2, 0, 2)
    for path in fresh.weights:
        torch.testing.assert_close(delta_IO(squeezed, path), delta_IO(fresh, path), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_impossible_ranks_are_refused(rank):
    with pytest.raises(UserError, match="expected 1 to 3"):
        squeeze(adapter_of({"layer": (A_IR, B_RO)}, 3), rank)


@pytest.mark.parametrize("threshold", [0.0, 1.01, float("nan")])
def test_impossible_thresholds_are_refused(threshold):
    with pytest.raises(UserError, match="min_variance_retention"):
        recommend(analyse(adapter_of({"layer": (A_IR, B_RO)}, 3)), threshold)


def test_diverged_and_empty_adapters_are_refused():
    with pytest.raises(UserError, match="'layer' holds numbers that are not finite"):
        analyse(adapter_of({"layer": (A_IR * float("nan"), B_RO)}, 3))
    with pytest.raises(UserError, match="no layers"):
        analyse(adapter_of({}, 3))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_reads_the_squeezed_adapter(tmp_path, rslora):
    model = tiny_model()
    fresh = fresh_adapter(model, ModelConfig(lora_rank=6, lora_alpha=5.0, rslora=rslora, lora_dropout=0.1), 1)
    weights = {path: (a_IR, torch.full_like(b_RO, 0.01) + b_RO.new_tensor(range(6))[:, None] * 0.02)
               for path, (a_IR, b_RO) in fresh.weights.items()}  # fmt: skip
    for seed, (_, b_RO) in enumerate(weights.values()):
        b_RO += 0.1 * torch.randn(b_RO.shape, generator=torch.Generator().manual_seed(seed))
    save_peft(replace(fresh, weights=weights), tmp_path / "whole", base="some/base", revision="abc")
    squeezed = squeeze_folder(tmp_path / "whole", 4, tmp_path / "small")
    again = load_peft(tmp_path / "small")
    assert (again.rank, again.alpha, again.rslora, again.dropout) == (4, squeezed.alpha, rslora, 0.1)
    written = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("some/base", "abc")
    ids = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(3))
    with AdapterStack(model, [again]) as stack, stack.rows([0] * 2), torch.no_grad():
        mine = model(input_ids=ids, use_cache=False).logits
    theirs = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "small"))
    with torch.no_grad():
        torch.testing.assert_close(mine, theirs(input_ids=ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="exists"):
        squeeze_folder(tmp_path / "whole", 4, tmp_path / "small")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "whole"]
