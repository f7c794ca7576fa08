"""Variants of LoRA in one cohort: each as it is alone and as PEFT trains it, saved and resumed to the last bit."""

import json
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F

from finetrial.campaign.stages import moved
from finetrial.evaluate.perplexity import perplexity
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Request, sample
from finetrial.model.adapters import Adapter, AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.loss import head_of
from finetrial.model.peft_format import load_peft, save_peft
from finetrial.train.batches import step_rows
from finetrial.train.cohort import train_cohort
from finetrial.train.optimiser import learning_rate
from generate.tiny_text import prompts, tiny_tokenizer
from tiny import random_rows, run_data, tiny_model

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ITEMS = {f"item-{place}": row for place, row in enumerate(random_rows(7, seed=4))}

VARIANTS = {
    "plain": ({}, {}),
    "rslora": ({"rslora": True, "lora_rank": 2}, {}),
    "dora": ({"dora": True}, {"weight_decay": 0.1}),
    "pissa": ({"init": "pissa"}, {"weight_decay": 0.1, "max_grad_norm": 0.2}),
    "olora": ({"init": "olora", "lora_alpha": 3.0}, {"learning_rate": 3e-3}),
    "plus": ({}, {"lora_plus_ratio": 8, "weight_decay": 0.1, "learning_rate": 3e-3}),
    "all": ({"init": "pissa", "dora": True, "rslora": True, "lora_rank": 3}, {"lora_plus_ratio": 2}),
}


def variants(folder, *names, **training):
    """A run of each variant, all over the same rows and seed."""
    rows = random_rows(13, seed=100)
    runs = []
    for name in names or VARIANTS:
        model, own = VARIANTS[name]
        runs.append(run_data(folder, name, 1, rows, ModelConfig(**{"lora_rank": 4, **model}), **own, **training))
    return runs


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def losses_of(run) -> list[float]:
    return [row["loss"] for row in metrics_of(run)]


def numbers_of(adapter: Adapter) -> torch.Tensor:
    parts = [part for pair in adapter.weights.values() for part in pair] + list((adapter.magnitudes or {}).values())
    return torch.cat([part.flatten() for part in parts])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """12 steps of all variants in one cohort."""
    folder = tmp_path_factory.mktemp("variants")
    runs = variants(folder)
    results = train_cohort(tiny_model(), runs, 12, folder / "checkpoint")
    return {run.condition: (run, result) for run, result in zip(runs, results, strict=True)}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_cohort_of_variants_equals_single_runs(trained, tmp_path, name):
    """float32; losses agree to 1e-4 relative and numbers to 1e-3 after 12 steps, as those of plain LoRA do."""
    run, result = trained[name]
    (alone,) = variants(tmp_path, name)
    (single,) = train_cohort(tiny_model(), [alone], 12, tmp_path / "checkpoint")
    assert losses_of(run) == pytest.approx(losses_of(alone), rel=1e-4)
    torch.testing.assert_close(numbers_of(result.adapter), numbers_of(single.adapter), rtol=1e-3, atol=1e-4)
    assert losses_of(run)[-1] < losses_of(run)[0]


def test_all_variants_start_at_the_base(trained):
    """The first loss is the base's, and every variant then goes its own way."""
    first = {name: losses_of(run)[0] for name, (run, _) in trained.items()}
    assert list(first.values()) == pytest.approx([first["plain"]] * len(first), rel=1e-5)
    last = [round(losses_of(run)[-1], 4) for run, _ in trained.values()]
    assert len(set(last)) == len(last)


def peft_of(run, model):
    """PEFT's model of the run's variant, started where the run starts but for the signs of singular directions."""
    start = fresh_adapter(model, run.model, run.seed)
    plain = run.model.init == "lora"
    config = peft.LoraConfig(
        r=run.model.lora_rank,
        lora_alpha=run.model.alpha,  # type: ignore[arg-type]
        use_rslora=run.model.rslora,
        use_dora=run.model.dora,
        init_lora_weights=True if plain else run.model.init,  # type: ignore[arg-type]
        target_modules=list(start.targets),
    )
    theirs = peft.get_peft_model(model, config)
    if plain:
        for path, (a_IR, b_RO) in start.weights.items():
            layer = theirs.get_submodule(f"base_model.model.{path}")
            layer.lora_A["default"].weight.data.copy_(a_IR.T)
            layer.lora_B["default"].weight.data.copy_(b_RO.T)
    return theirs


@PEFT_WARNS
@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_that_of_peft_with_torchs_adamw(trained, name):
    """One row at a time; LoRA+ by two parameter groups. Decay, clip and schedule are in it."""
    run, result = trained[name]
    theirs = peft_of(run, tiny_model())
    named = [(key, parameter) for key, parameter in theirs.named_parameters() if parameter.requires_grad]
    ratio = {True: run.train.lora_plus_ratio, False: 1.0}
    groups = [
        {"params": [parameter for key, parameter in named if ("lora_B" in key) == is_b], "ratio": ratio[is_b]}
        for is_b in (False, True)
    ]
    optimiser = torch.optim.AdamW(groups, lr=1.0, weight_decay=run.train.weight_decay)
    losses = []
    for step in range(12):
        rows = [run.rows[i] for i in step_rows(run.seed, len(run.rows), run.train.batch_size, step)]
        tokens = sum(int(row.mask_T[1:].sum()) for row in rows)
        optimiser.zero_grad()
        loss = torch.tensor(0.0)
        for row in rows:
            ids = torch.from_numpy(row.ids_T.astype(np.int64))
            logits = theirs(input_ids=ids[None], use_cache=False).logits[0]
            nll = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
            loss = loss + nll[torch.from_numpy(row.mask_T[1:])].sum() / tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in named], run.train.max_grad_norm)
        for group in optimiser.param_groups:
            group["lr"] = group["ratio"] * learning_rate(run.train, step, 12)
        optimiser.step()
        losses.append(loss.item())
    assert losses_of(run) == pytest.approx(losses, rel=3e-4)
    model, ids = tiny_model(), torch.arange(1, 41).view(2, 20)
    with AdapterStack(model, [result.adapter]) as stack, stack.rows([0, 0]), torch.no_grad():
        mine = model(input_ids=ids, use_cache=False).logits
        want = theirs(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(mine, want, rtol=2e-2, atol=2e-2)


def test_what_was_taken_out_of_the_base_stays_as_it_was(trained):
    """Despite weight decay and clipping; gradient norms are those of what is trained."""
    for name, (run, result) in trained.items():
        adapter, fresh = result.adapter, fresh_adapter(tiny_model(), run.model, run.seed)
        assert moved(adapter)
        assert not moved(fresh)
        assert (adapter.rank, adapter.trained_rank, adapter.scale) == (fresh.rank, run.model.lora_rank, fresh.scale)
        assert adapter.scale == pytest.approx(run.model.scale, rel=1e-15)
        assert (adapter.frozen > 0) == (run.model.init != "lora")
        assert (adapter.magnitudes is not None) == run.model.dora
        for path, (a_IR, b_RO) in adapter.weights.items():
            k = adapter.trained_rank
            assert torch.equal(a_IR[:, k:], fresh.weights[path][0][:, k:]), name
            assert torch.equal(b_RO[k:], fresh.weights[path][1][k:]), name
            assert not torch.equal(b_RO[:k], fresh.weights[path][1][:k]), name
        for path, m_O in (adapter.magnitudes or {}).items():
            assert not torch.equal(m_O, fresh.magnitudes[path]), name


@pytest.mark.parametrize("faulty", ["dora", "pissa", "plus"])
def test_a_variant_that_diverges_harms_no_neighbour(tmp_path, faulty):
    names = ("plain", "dora", "pissa", "plus")

    def cohort(name, rate):
        runs = variants(tmp_path / name, *names, schedule="constant", warmup_ratio=0.0)
        n = names.index(faulty)
        train = runs[n].train.model_copy(update={"learning_rate": rate, "max_grad_norm": 0.0})
        runs[n] = replace(runs[n], train=train)
        return runs, train_cohort(tiny_model(), runs, 5, tmp_path / name / "checkpoint")

    healthy_runs, healthy = cohort("healthy", 1e-2)
    faulty_runs, broken = cohort("faulty", 1e30)
    for n, name in enumerate(names):
        if name == faulty:
            assert broken[n].status == "quarantined"
            continue
        assert broken[n].status == "done"
        assert losses_of(faulty_runs[n]) == losses_of(healthy_runs[n])
        assert torch.equal(numbers_of(broken[n].adapter), numbers_of(healthy[n].adapter))


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    whole_runs = variants(tmp_path / "whole", save_every=2)
    whole = train_cohort(tiny_model(), whole_runs, 6, tmp_path / "whole" / "checkpoint")

    class Stop:
        def update(self, done, loss):
            if done == 3:
                raise OSError("the machine is gone")

    folder, cut_runs = tmp_path / "cut" / "checkpoint", variants(tmp_path / "cut", save_every=2)
    with pytest.raises(OSError, match="the machine is gone"):
        train_cohort(tiny_model(), cut_runs, 6, folder, Stop())
    resumed = train_cohort(tiny_model(), cut_runs, 6, folder)
    for mine, theirs, one, two in zip(resumed, whole, cut_runs, whole_runs, strict=True):
        assert torch.equal(numbers_of(mine.adapter), numbers_of(theirs.adapter))
        assert losses_of(one) == losses_of(two)
        assert [row["grad_norm"] for row in metrics_of(one)] == [row["grad_norm"] for row in metrics_of(two)]


def test_recomputation_and_dropout_of_magnitudes(trained, tmp_path):
    """Layers that run again in the backward pass find the same norms; dropout is a stream, whatever the passes."""
    (again,) = variants(tmp_path / "recomputed", "all", gradient_checkpointing=True)
    train_cohort(tiny_model(), [again], 12, tmp_path / "recomputed" / "checkpoint")
    assert losses_of(again) == pytest.approx(losses_of(trained["all"][0]), rel=1e-4)
    model = ModelConfig(lora_rank=4, dora=True, lora_dropout=0.3)
    one = run_data(tmp_path, "one", model=model)
    two = run_data(tmp_path, "two", model=model, micro_batch_tokens=1)
    train_cohort(tiny_model(), [one], 5, tmp_path / "c1")
    train_cohort(tiny_model(), [two], 5, tmp_path / "c2")
    assert losses_of(one) == pytest.approx(losses_of(two), rel=1e-4)


@PEFT_WARNS
def test_evaluation_and_sampling_take_every_variant(trained, tmp_path):
    """Folded or in rows, from memory or from the saved files, and as PEFT has them."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    head = head_of(model)
    adapters = [result.adapter for _, result in trained.values()]
    for name, adapter in zip(trained, adapters, strict=True):
        save_peft(adapter, tmp_path / name, base="tiny")
    saved = [load_peft(tmp_path / name) for name in trained]
    folded = perplexity(model, adapters, ITEMS, merge=True).nll_GK
    np.testing.assert_allclose(perplexity(model, saved, ITEMS, merge=False).nll_GK, folded, rtol=1e-4)
    for n, name in enumerate(trained):
        theirs = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / name))
        for item, row in enumerate(ITEMS.values()):
            ids = torch.from_numpy(row.ids_T.astype(np.int64))
            with torch.no_grad():
                logits = theirs(input_ids=ids[None], use_cache=False).logits[0]
            nll = F.cross_entropy(logits[:-1], ids[1:], reduction="none")[torch.from_numpy(row.mask_T[1:])]
            assert folded[1 + n, item] == pytest.approx(float(nll.sum()), rel=1e-3)

    def drawn(stack, chosen):
        config = SamplingConfig(max_tokens=8, temperature=1.0)
        asked = [Request(prompt_T, n, (3, 4), config) for prompt_T in prompts(3, seed=1) for n in chosen]
        found = sample(model, head, stack, tokenizer, asked, (2,))
        return [[completion.ids_T.tolist() for completion in each] for each in found]

    with AdapterStack(model, adapters) as stack:
        together = drawn(stack, range(len(adapters)))
        for n in range(len(adapters)):  # one adapter alone is folded
            assert drawn(stack, [n]) == together[n :: len(adapters)]
