"""Anchors and token weights in the loop against autograd over full logits, and their promises."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from finetrial.errors import UserError
from finetrial.model.adapters import AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.distribution import Head, token_stats, top_reference
from finetrial.model.loss import head_of, stream
from finetrial.train import anchor as anchors
from finetrial.train import batches
from finetrial.train.anchor import References, anchor_coefficient
from finetrial.train.batches import step_rows
from finetrial.train.cohort import train_cohort
from finetrial.train.lesson import Row, likelihood_weight
from finetrial.train.optimiser import StackedAdamW, clip_gradients, learning_rate
from finetrial.train.term_config import AnchorConfig
from tiny import random_rows, run_data, tiny_model

REF, POLICY, LABEL = [0.5, 0.3, 0.15, 0.05], [0.4, 0.4, 0.1, 0.1], 1


def anchored(run, **config):
    return replace(run, anchor=AnchorConfig(**config))


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def column(run, name) -> list:
    return [row.get(name) for row in metrics_of(run)]


def weights_of(result) -> torch.Tensor:
    return torch.cat([part.flatten() for pair in result.adapter.weights.values() for part in pair])


def divergence(kind, beta, logr, logp):
    """Plain torch, over the whole vocabulary."""

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
    tail = logs.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logs.gather(1, ids), tail], dim=1)


def by_autograd(run, steps) -> tuple[list[float], list[float], torch.Tensor]:
    """The same run in float64, a row at a time, with full logits: losses, mean divergences, final weights."""
    model, config = tiny_model().double(), run.anchor
    losses, means = [], []
    with AdapterStack(model, [fresh_adapter(model, run.model, run.seed)], trainable=True) as stack:
        optimiser = StackedAdamW([run.train], stack.flat_NP)
        for step in range(steps):
            rows = [run.rows[i] for i in step_rows(run.seed, len(run.rows), run.train.batch_size, step)]
            streams = [one for row in rows if len((one := stream(row, "")).target_M)]
            tokens = sum(len(one.target_M) for one in streams)
            stack.grad_NP.zero_()
            nll_sum, held = 0.0, []
            for one in streams:
                ids, at = torch.from_numpy(one.ids_T)[None], torch.from_numpy(one.position_M)
                with stack.rows([None]), torch.no_grad():
                    logr = model(input_ids=ids, use_cache=False).logits[0, at].log_softmax(1)
                with stack.rows([0]):
                    logp = model(input_ids=ids, use_cache=False).logits[0, at].log_softmax(1)
                    nll = F.nll_loss(logp, torch.from_numpy(one.target_M), reduction="none")
                    loss = nll * nll.neg().exp().detach() if run.train.token_weighting == "dft" else nll
                    if config.top_k is not None:
                        ids_k = logr.topk(config.top_k, dim=1).indices
                        logr, logp = merged(logr, ids_k), merged(logp, ids_k)
                    full = divergence(config.kind, config.js_beta, logr, logp)[-(config.tail_tokens or len(logr)) :]
                    capped = full if config.cap is None else full.clamp(max=config.cap)
                    total = (loss.sum() + anchor_coefficient(config, step, steps) * capped.sum()) / tokens
                    stack.backward((total, torch.ones_like(total)))
                nll_sum += float(nll.detach().sum())
                held += full.detach().tolist()
            norm = torch.linalg.vector_norm(stack.grad_NP, dim=1)
            clip_gradients(stack.grad_NP, norm, torch.tensor([run.train.max_grad_norm]))
            rate = torch.tensor([learning_rate(run.train, step, steps)], dtype=torch.float64)
            optimiser.step(stack.grad_NP, rate, torch.tensor([True]))
            losses.append(nll_sum / tokens)
            means.append(sum(held) / len(held))
        final = stack.adapter(0)
    return losses, means, torch.cat([part.flatten() for pair in final.weights.values() for part in pair])


CASES = {
    "forward": {"kind": "ref_student", "coef": 0.7},
    "reverse": {"kind": "student_ref", "coef": 0.7},
    "js": {"kind": "js", "js_beta": 0.3, "coef": 3.0},
    "tail": {"coef": 2.0, "tail_tokens": 2},
    "cap": {"coef": 2.0, "cap": 0.01},
    "top": {"kind": "student_ref", "coef": 1.0, "top_k": 4},
    "schedule": {"coef": 1.0, "start_step": 1, "warmup_steps": 2, "decay_steps": 3, "final_coef": 0.2},
}


@pytest.mark.parametrize("weighting", ["none", "dft"])
@pytest.mark.parametrize("name", CASES)
def test_the_loop_equals_autograd_over_full_logits_in_float64(tmp_path, name, weighting):
    """Six steps, rows of unequal length; the adapters' own numbers are float32, hence the tolerance of weights."""
    steps = 6
    run = anchored(run_data(tmp_path, seed=3, token_weighting=weighting), **CASES[name])
    (result,) = train_cohort(tiny_model().double(), [run], steps, tmp_path / "checkpoint")
    losses, means, weights = by_autograd(run, steps)
    assert column(run, "loss") == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(weights_of(result), weights, rtol=1e-4, atol=1e-5)
    want = [mean if anchor_coefficient(run.anchor, k, steps) else None for k, mean in enumerate(means)]
    for have, value in zip(column(run, "anchor_kl"), want, strict=True):
        assert have == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-7))
    assert column(run, "anchor_coef") == [anchor_coefficient(run.anchor, k, steps) for k in range(steps)]


def test_one_token_as_published():
    """ASFT (arXiv 2509.23753): sg(p) · nll + 0.05 · KL(ref || p); the same without the weight is SFT with KL."""
    hidden, head = torch.tensor([POLICY], dtype=torch.float64).log(), Head(torch.eye(4, dtype=torch.float64), None)
    reference, target = torch.tensor([REF], dtype=torch.float64).log(), torch.tensor([LABEL])
    for dft, plain, whole in ((False, 0.9162907319, 0.9188622099), (True, 0.3665162927, 0.3690877708)):

        def weigh(_, nll, found, dft=dft):
            return likelihood_weight(torch.ones_like(nll), nll, dft), torch.full_like(found, 0.05)

        stats = token_stats(hidden, target, head, reference_MH=reference, divergence="ref_student", weigh=weigh)
        assert float(likelihood_weight(torch.ones(1), stats.nll_M, dft) * stats.nll_M) == pytest.approx(plain, abs=1e-9)
        assert float(stats.divergence_M) == pytest.approx(0.0514295611, abs=1e-9)
        assert float(stats.blend) == pytest.approx(whole, abs=1e-9)
    leaf = hidden.clone().requires_grad_()
    nll = token_stats(leaf, target, head).nll_M
    (slope,) = torch.autograd.grad(nll, leaf, likelihood_weight(torch.ones_like(nll), nll.detach(), True))
    assert slope[0].tolist() == pytest.approx([0.16, -0.24, 0.04, 0.04], abs=1e-9)


@pytest.mark.parametrize("kind", ["ref_student", "student_ref", "js"])
@pytest.mark.parametrize("chunk_numbers", [17, 60, 10_000])
@pytest.mark.parametrize("top", [None, 3])
def test_a_blend_is_the_weighted_sum_and_its_gradient(kind, chunk_numbers, top):
    """float64, any chunk, with temperatures, a softcap and a cap."""
    generator = torch.Generator().manual_seed(5)
    hidden, reference = (torch.randn(9, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    head = Head(torch.randn(17, 5, generator=generator, dtype=torch.float64), None, 0.7, 3.0)
    target, warm = torch.randint(0, 17, (9,), generator=generator), torch.rand(9, generator=generator).double() + 0.5
    share, coef = torch.rand(2, 9, generator=generator, dtype=torch.float64)
    asked = {
        "temperature_M": warm,
        "reference_MH": reference if top is None else top_reference(reference, head, top, warm),
        "divergence": kind,
        "chunk_numbers": chunk_numbers,
    }
    cap = 0.3

    def weigh(which, nll, found):
        return likelihood_weight(share[which], nll, True), torch.where(found <= cap, coef[which], 0.0)

    leaf, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    blended, apart = token_stats(leaf, target, head, weigh=weigh, **asked), token_stats(other, target, head, **asked)
    weights = weigh(slice(None), apart.nll_M.detach(), apart.divergence_M.detach())
    (want,) = torch.autograd.grad((apart.nll_M, apart.divergence_M), other, weights)
    (have,) = torch.autograd.grad(blended.blend, leaf)
    torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(blended.nll_M, apart.nll_M.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(blended.divergence_M, apart.divergence_M.detach(), rtol=1e-10, atol=1e-12)
    assert not blended.nll_M.requires_grad


def test_a_blend_needs_a_divergence():
    hidden, head = torch.zeros(1, 4), Head(torch.eye(4), None)
    with pytest.raises(ValueError, match="weigh is for a divergence"):
        token_stats(hidden, torch.tensor([1]), head, weigh=lambda which, nll, found: (nll, nll))


def test_the_coefficient_over_a_run():
    rising = AnchorConfig(coef=0.05, warmup_steps=4)
    assert [anchor_coefficient(rising, t, 20) for t in (0, 1, 2, 4, 10)] == pytest.approx(
        [0, 0.0125, 0.025, 0.05, 0.05]
    )
    late = AnchorConfig(coef=1.0, start_step=5, warmup_steps=2)
    assert [anchor_coefficient(late, t, 20) for t in (0, 4, 5, 6, 7)] == [0, 0, 0, 0.5, 1]
    falling = AnchorConfig(coef=1.0, decay_steps=4, final_coef=0.2)
    assert [anchor_coefficient(falling, t, 10) for t in (0, 5, 6, 7, 9)] == pytest.approx([1, 1, 0.8, 0.6, 0.2])
    assert anchor_coefficient(AnchorConfig(coef=0.0, decay_steps=2), 9, 10) == 0


@given(st.floats(0, 10), st.floats(0, 10), st.integers(0, 9), st.integers(0, 9), st.integers(0, 30), st.integers(1, 30))
def test_the_coefficient_stays_between_zero_and_the_larger_end(coef, final, start, warmup, decay, steps):
    final = final if decay and coef else 0.0
    config = AnchorConfig(coef=coef, final_coef=final, start_step=start, warmup_steps=warmup, decay_steps=decay)
    for step in range(steps):
        value = anchor_coefficient(config, step, steps)
        assert 0 <= value <= max(coef, final) * (1 + 1e-12)
        assert value == 0 or step >= start


def test_a_final_coefficient_without_effect_is_refused():
    with pytest.raises(ValueError, match="final_coef has no effect without decay_steps"):
        AnchorConfig(final_coef=0.1)
    with pytest.raises(ValueError, match="final_coef has no effect where coef is 0"):
        AnchorConfig(coef=0.0, final_coef=0.1, decay_steps=3)


def test_a_tail_is_the_last_targets_of_each_row_however_long_its_neighbours(tmp_path):
    run = anchored(run_data(tmp_path, seed=2), coef=1.0, tail_tokens=3)
    train_cohort(tiny_model(), [run], 4, tmp_path / "checkpoint")
    for step, row in enumerate(metrics_of(run)):
        lengths = [int(run.rows[i].mask_T[1:].sum()) for i in step_rows(run.seed, len(run.rows), 4, step)]
        assert row["anchor_tokens"] == sum(min(3, length) for length in lengths) < row["supervised_tokens"]


def test_what_is_capped_is_told(tmp_path):
    run = anchored(run_data(tmp_path, seed=2), coef=0.1, cap=1e-3)
    train_cohort(tiny_model(), [run], 6, tmp_path / "checkpoint")
    shares = column(run, "anchor_capped_share")
    assert shares[0] == 0 < shares[-1] <= 1
    assert column(run, "anchor_kl")[-1] > 1e-3  # told as it is, not as it counts


def test_without_a_coefficient_training_is_bit_identical_and_nothing_is_read(tmp_path, monkeypatch):
    plain, off = run_data(tmp_path / "a"), anchored(run_data(tmp_path / "b"), coef=0.0, top_k=3)
    late = anchored(run_data(tmp_path / "c"), coef=1.0, start_step=6)
    results = []
    monkeypatch.setattr(References, "_cut", lambda *_: pytest.fail("the base was read"))
    for run in (plain, off, late):
        results += train_cohort(tiny_model(), [run], 6, run.folder / "checkpoint")
    assert torch.equal(weights_of(results[0]), weights_of(results[1]))
    assert torch.equal(weights_of(results[0]), weights_of(results[2]))
    keys = [{name for row in metrics_of(run) for name in row} for run in (plain, off, late)]
    assert keys[0] == keys[1] == keys[2] - {"anchor_coef"}


def test_a_kept_reference_is_the_one_that_is_read_anew(tmp_path, monkeypatch):
    """Bit for bit, also where only some of it fits."""
    ways = {"kept": 2**30, "anew": 0, "some": 4000}
    weights, bytes_kept = {}, {}
    for name, limit in ways.items():
        made = []
        monkeypatch.setattr(
            anchors.References, "__init__", lambda self, *a, limit=limit, made=made, of=References.__init__: (
                of(self, *a, limit=limit), made.append(self))[0]
        )  # fmt: skip
        runs = [
            anchored(run_data(tmp_path / name, "a", seed=1), coef=1.0),
            anchored(run_data(tmp_path / name, "b", seed=1), coef=0.3, kind="js", top_k=5, tail_tokens=4),
        ]
        weights[name] = [weights_of(r) for r in train_cohort(tiny_model(), runs, 8, tmp_path / name / "checkpoint")]
        bytes_kept[name] = made[0].bytes
        monkeypatch.undo()
    assert bytes_kept["anew"] == 0 < bytes_kept["some"] <= 4000 < bytes_kept["kept"]
    for name in ("anew", "some"):
        assert all(torch.equal(a, b) for a, b in zip(weights[name], weights["kept"], strict=True))


def test_the_base_reads_a_row_once_for_all_runs_and_epochs():
    model = tiny_model()
    rows = [row for row in (stream(row, "") for row in random_rows(6, seed=4)) if len(row.target_M)]
    wanted = [(Row(row, 0.1), AnchorConfig(top_k=k), 1.0) for k in (None, 5, None) for row in rows]
    with AdapterStack(model, []) as stack:
        references = References(model, head_of(model), stack, 1000)
        seen = []
        plain = references._hidden
        references._hidden = lambda rows, budget: (seen.extend(rows), plain(rows, budget))[1]  # type: ignore[method-assign]
        for _ in range(3):
            references.read(wanted)
    assert len(seen) == len(set(seen)) == len({row.ids_T.tobytes() for row in rows})


def mixed(folder) -> list:
    return [
        run_data(folder, "plain", seed=1),
        anchored(run_data(folder, "forward", seed=1), coef=1.0),
        anchored(run_data(folder, "js", seed=2, model=ModelConfig(lora_rank=2)), kind="js", coef=2.0, tail_tokens=3),
        anchored(run_data(folder, "asft", seed=3, token_weighting="dft"), coef=0.5, cap=0.05),
        anchored(run_data(folder, "top", seed=1), kind="student_ref", coef=1.0, top_k=5),
    ]


def test_runs_with_and_without_anchors_share_a_cohort(tmp_path):
    """Each is what it is alone; float32, Adam magnifies rounding, as for stacks without anchors."""
    runs, steps = mixed(tmp_path / "all"), 10
    together = train_cohort(tiny_model(), runs, steps, tmp_path / "checkpoint")
    for run, result, alone in zip(runs, together, mixed(tmp_path / "alone"), strict=True):
        (single,) = train_cohort(tiny_model(), [alone], steps, tmp_path / alone.name)
        assert column(run, "loss") == pytest.approx(column(alone, "loss"), rel=1e-4)
        torch.testing.assert_close(weights_of(result), weights_of(single), rtol=1e-3, atol=1e-4)
    assert column(runs[1], "loss")[0] == pytest.approx(column(runs[0], "loss")[0], rel=1e-6)
    assert column(runs[1], "anchor_kl")[-1] > 0
    assert "anchor_lower_bound" in metrics_of(runs[4])[-1]
    assert "anchor_coef" not in metrics_of(runs[0])[-1]
    asft = metrics_of(runs[3])[-1]
    assert 0 < asft["weighted_loss"] < asft["loss"]


@pytest.mark.parametrize("change", [{"micro_batch_tokens": 1}, {"gradient_checkpointing": True}])
def test_no_split_into_passes_changes_an_anchored_run(tmp_path, monkeypatch, change):
    monkeypatch.setitem(batches.PASS_OVERHEAD, "cpu", 10_000)  # one pass per step unless the budget forbids
    config = {"coef": 1.0, "tail_tokens": 4}
    whole = anchored(run_data(tmp_path / "whole", token_weighting="dft"), **config)
    split = anchored(run_data(tmp_path / "split", token_weighting="dft", **change), **config)
    (one,) = train_cohort(tiny_model(), [whole], 6, tmp_path / "c1")
    (two,) = train_cohort(tiny_model(), [split], 6, tmp_path / "c2")
    assert column(split, "loss") == pytest.approx(column(whole, "loss"), rel=1e-4)
    assert column(split, "anchor_kl") == pytest.approx(column(whole, "anchor_kl"), rel=1e-3, abs=1e-6)
    torch.testing.assert_close(weights_of(two), weights_of(one), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stop_after", [2, 5])
def test_an_anchored_cohort_resumes_bit_for_bit(tmp_path, stop_after):
    def cohort(name):
        return [replace(run, train=run.train.model_copy(update={"save_every": 2})) for run in mixed(tmp_path / name)]

    def left(runs, results):
        rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in metrics_of(run)] for run in runs]
        return rows, [result.ledger for result in results], [weights_of(result).numpy().tobytes() for result in results]

    class Stop:
        def update(self, done, loss):
            if done == stop_after:
                raise OSError("the machine is gone")

    whole = train_cohort(tiny_model(), cohort("whole"), 8, tmp_path / "whole" / "checkpoint")
    folder = tmp_path / "cut" / "checkpoint"
    with pytest.raises(OSError, match="the machine is gone"):
        train_cohort(tiny_model(), cohort("cut"), 8, folder, Stop())  # type: ignore[arg-type]
    resumed = train_cohort(tiny_model(), cohort("cut"), 8, folder)
    assert left(cohort("cut"), resumed) == left(cohort("whole"), whole)


def test_an_anchor_holds_the_adapter_back(tmp_path):
    runs = [anchored(run_data(tmp_path, name, seed=1), coef=coef) for name, coef in (("free", 1e-9), ("held", 5.0))]
    train_cohort(tiny_model(), runs, 12, tmp_path / "checkpoint")
    far, near = (column(run, "anchor_kl")[-1] for run in runs)
    assert 0 < near < far / 2


def test_a_vocabulary_smaller_than_top_k_is_named(tmp_path):
    run = anchored(run_data(tmp_path), top_k=61)
    with pytest.raises(
        UserError, match=r"a seed 0: \[anchor\] top_k is 61; expected a whole number from 1 to 60, .* vocabulary of 61"
    ):
        train_cohort(tiny_model(), [run], 2, tmp_path / "checkpoint")
