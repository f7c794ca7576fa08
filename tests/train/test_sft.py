"""The supervised loop against PEFT with torch's AdamW, and its promises about isolation and resume."""

import csv
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F

from finetrial.errors import Interrupted, UserError
from finetrial.model.adapters import fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.render import Rendered
from finetrial.train import batches
from finetrial.train.batches import step_rows
from finetrial.train.cohort import train_cohort
from finetrial.train.optimiser import learning_rate
from tiny import random_rows, run_data, tiny_model

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "sft_losses_cpu.csv"
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def weights_of(result) -> torch.Tensor:
    return torch.cat([part.flatten() for pair in result.adapter.weights.values() for part in pair])


def different_runs(folder) -> list:
    """Runs that share a step count and nothing else."""
    return [
        run_data(folder, "a", seed=1, schedule="linear", weight_decay=0.1),
        run_data(folder, "b", seed=2, model=ModelConfig(lora_rank=2, rslora=True), learning_rate=3e-3, batch_size=3),
        run_data(
            folder, "c", seed=3, model=ModelConfig(lora_rank=6, targets=("q_proj", "down_proj")), max_grad_norm=0.1
        ),
    ]


def train_with_peft(run, steps) -> tuple[list[float], torch.Tensor]:
    """The same run by PEFT and torch.optim.AdamW, one row at a time; losses and the final weights."""
    model = tiny_model()
    start = fresh_adapter(model, run.model, run.seed)
    config = peft.LoraConfig(
        r=run.model.lora_rank,
        lora_alpha=run.model.alpha,
        use_rslora=run.model.rslora,
        target_modules=list(start.targets),
    )
    theirs = peft.get_peft_model(model, config)
    layers = {path: theirs.get_submodule(f"base_model.model.{path}") for path in start.weights}
    for path, (a_IR, b_RO) in start.weights.items():
        layers[path].lora_A["default"].weight.data.copy_(a_IR.T)
        layers[path].lora_B["default"].weight.data.copy_(b_RO.T)
    parameters = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1.0, weight_decay=run.train.weight_decay)
    losses = []
    for step in range(steps):
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
        torch.nn.utils.clip_grad_norm_(parameters, run.train.max_grad_norm)
        optimiser.param_groups[0]["lr"] = learning_rate(run.train, step, steps)
        optimiser.step()
        losses.append(loss.item())
    final = [(layer.lora_A["default"].weight.T, layer.lora_B["default"].weight.T) for layer in layers.values()]
    return losses, torch.cat([part.detach().flatten() for pair in final for part in pair])


@PEFT_WARNS
def test_a_stack_of_n_equals_n_single_runs_equals_peft(tmp_path):
    """float32; losses agree to 1e-4 relative and weights to 1e-3 after 12 steps (Adam magnifies rounding)."""
    steps = 12
    runs = different_runs(tmp_path / "stack")
    stacked = train_cohort(tiny_model(), runs, steps, tmp_path / "checkpoint")
    for run, result, alone in zip(runs, stacked, different_runs(tmp_path / "alone"), strict=True):
        (single,) = train_cohort(tiny_model(), [alone], steps, tmp_path / f"checkpoint-{run.name}")
        losses, weights = train_with_peft(run, steps)
        assert [row["loss"] for row in metrics_of(run)] == pytest.approx(losses, rel=1e-4)
        assert [row["loss"] for row in metrics_of(alone)] == pytest.approx(losses, rel=1e-4)
        torch.testing.assert_close(weights_of(result), weights, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(weights_of(single), weights, rtol=1e-3, atol=1e-4)
        assert losses[-1] < losses[0]


def test_metrics_and_result_tell_what_was_realised(tmp_path):
    run = run_data(tmp_path, rows=[*random_rows(6, seed=1), *(random_rows(1, seed=2))])
    cut = run.rows[0]
    run.rows[0] = Rendered(cut.ids_T, cut.mask_T, cut.supervised_bytes, truncated=9)
    (result,) = train_cohort(tiny_model(), [run], 4, tmp_path / "checkpoint")
    rows = metrics_of(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]) == {
        "step", "condition", "seed", "loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens", "seconds",
    }  # fmt: skip
    chosen = [run.rows[i] for step in range(4) for i in step_rows(0, 7, 4, step)]
    assert result.ledger.rows == 16
    assert result.ledger.supervised_tokens == sum(int(row.mask_T[1:].sum()) for row in chosen)
    assert result.ledger.supervised_tokens == sum(row["supervised_tokens"] for row in rows)
    assert result.ledger.tokens == sum(row["tokens"] for row in rows)
    assert result.ledger.steps == 4
    assert result.ledger.loss == rows[-1]["loss"]
    assert (result.status, result.distinct_rows, result.truncated_rows) == ("done", 7, 1)
    assert result.seconds > 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "change", [{"micro_batch_tokens": 1}, {"micro_batch_tokens": 60}, {"gradient_checkpointing": True}]
)
def test_neither_micro_batches_nor_recomputation_change_a_run(tmp_path, monkeypatch, change, dropout):
    model = ModelConfig(lora_rank=4, lora_dropout=dropout)
    monkeypatch.setitem(batches.PASS_OVERHEAD, "cpu", 10_000)  # one pass per step unless the budget forbids
    whole, split = run_data(tmp_path / "whole", model=model), run_data(tmp_path / "split", model=model, **change)
    (one,) = train_cohort(tiny_model(), [whole], 6, tmp_path / "c1")
    (two,) = train_cohort(tiny_model(), [split], 6, tmp_path / "c2")
    assert [row["loss"] for row in metrics_of(split)] == pytest.approx(
        [row["loss"] for row in metrics_of(whole)], rel=1e-4
    )
    torch.testing.assert_close(weights_of(two), weights_of(one), rtol=1e-3, atol=1e-4)


def test_dropout_changes_training_but_no_neighbour(tmp_path):
    def losses(name, *dropouts):
        runs = [
            run_data(tmp_path / name, "abc"[n], seed=n, model=ModelConfig(lora_rank=4, lora_dropout=p))
            for n, p in enumerate(dropouts)
        ]
        train_cohort(tiny_model(), runs, 5, tmp_path / name / "checkpoint")
        return [[row["loss"] for row in metrics_of(run)] for run in runs]

    plain, mixed, other = losses("plain", 0.0, 0.0), losses("mixed", 0.0, 0.5), losses("other", 0.7, 0.5, 0.2)
    assert mixed[0] == pytest.approx(plain[0], rel=1e-5)
    assert mixed[1] != pytest.approx(plain[1], rel=1e-3)
    assert other[1] == pytest.approx(mixed[1], rel=1e-4)


def test_a_run_that_diverges_is_quarantined_and_its_neighbours_are_bit_identical(tmp_path):
    """The faulty run's rate is so large that its first step makes its numbers useless and its second loss NaN."""

    def cohort(name, rate):
        runs = [run_data(tmp_path / name, "abc"[n], seed=n, schedule="constant", warmup_ratio=0.0) for n in range(3)]
        runs[1] = run_data(
            tmp_path / name, "b", seed=1, schedule="constant", warmup_ratio=0.0, learning_rate=rate, max_grad_norm=0.0
        )
        return runs, train_cohort(tiny_model(), runs, 6, tmp_path / name / "checkpoint")

    healthy_runs, healthy = cohort("healthy", 1e-2)
    faulty_runs, faulty = cohort("faulty", 1e30)
    for n in (0, 2):
        assert torch.equal(weights_of(faulty[n]), weights_of(healthy[n]))
        assert [row["loss"] for row in metrics_of(faulty_runs[n])] == [
            row["loss"] for row in metrics_of(healthy_runs[n])
        ]
        assert faulty[n].status == "done"
    assert healthy[1].status == "done"
    assert faulty[1].status == "quarantined"
    assert faulty[1].ledger.quarantined_at == 2
    assert "step 2" in faulty[1].reason
    assert faulty[1].ledger.steps == 1
    assert torch.isfinite(weights_of(faulty[1])).all()
    rows = metrics_of(faulty_runs[1])
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["loss"] is None
    assert rows[1]["quarantined"] == faulty[1].reason


def test_parameters_stay_at_the_last_good_value(tmp_path):
    """A quarantined run's adapter is the one it had after the last good step, bit for bit."""

    def after(steps):
        run = run_data(
            tmp_path / str(steps), schedule="constant", warmup_ratio=0.0, learning_rate=1e30, max_grad_norm=0
        )
        (result,) = train_cohort(tiny_model(), [run], steps, tmp_path / str(steps) / "checkpoint")
        return result

    assert torch.equal(weights_of(after(1)), weights_of(after(5)))


def fingerprint(runs, results) -> list:
    """Everything a run leaves except the clock."""
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in metrics_of(run)] for run in runs]
    return [*rows, [result.ledger for result in results], [weights_of(result).numpy().tobytes() for result in results]]


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, stop_after):
    """Stopped at a step by an error, so that steps after the last checkpoint are done again."""

    def cohort(name):
        model = ModelConfig(lora_rank=4, lora_dropout=0.2)
        return [run_data(tmp_path / name, "ab"[n], seed=n, model=model, save_every=2) for n in range(2)]

    whole = train_cohort(tiny_model(), cohort("whole"), 8, tmp_path / "whole" / "checkpoint")

    class Stop:
        def update(self, done, loss):
            if done == stop_after:
                raise OSError("the machine is gone")

    folder = tmp_path / "cut" / "checkpoint"
    with pytest.raises(OSError, match="the machine is gone"):
        train_cohort(tiny_model(), cohort("cut"), 8, folder, Stop())
    resumed = train_cohort(tiny_model(), cohort("cut"), 8, folder)
    assert fingerprint(cohort("cut"), resumed) == fingerprint(cohort("whole"), whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    whole = train_cohort(tiny_model(), [run_data(tmp_path / "whole")], 6, tmp_path / "whole" / "checkpoint")
    before = signal.getsignal(number)

    class Kill:
        def update(self, done, loss):
            if done == 3:
                os.kill(os.getpid(), number)

    run, folder = run_data(tmp_path / "cut", save_every=0), tmp_path / "cut" / "checkpoint"
    model = tiny_model()
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        train_cohort(model, [run], 6, folder, Kill())
    assert signal.getsignal(number) is before
    assert [path.name for path in folder.iterdir()] == ["step-3"]
    assert len(metrics_of(run)) == 3
    resumed = train_cohort(model, [run], 6, folder)
    assert fingerprint([run], resumed) == fingerprint([run_data(tmp_path / "whole")], whole)


def test_a_checkpoint_of_other_runs_is_refused(tmp_path):
    run = run_data(tmp_path, save_every=1)
    train_cohort(tiny_model(), [run], 3, tmp_path / "checkpoint")
    with pytest.raises(UserError, match="the checkpoint has steps 3, this cohort 4"):
        train_cohort(tiny_model(), [run], 4, tmp_path / "checkpoint")
    with pytest.raises(UserError, match="the checkpoint has keys"):
        train_cohort(tiny_model(), [run_data(tmp_path, "other")], 3, tmp_path / "checkpoint")
    run.metrics.write_text("")
    with pytest.raises(UserError, match="the checkpoint knows of"):
        train_cohort(tiny_model(), [run], 3, tmp_path / "checkpoint")


def test_a_run_without_supervised_tokens_is_refused(tmp_path):
    rows = [Rendered(np.arange(5, dtype=np.int32), np.zeros(5, dtype=bool), 0, 0)] * 3
    with pytest.raises(UserError, match="a seed 0: none of its 3 rows has a supervised token"):
        train_cohort(tiny_model(), [run_data(tmp_path, rows=rows)], 2, tmp_path / "checkpoint")


def test_a_step_without_supervised_tokens_teaches_nothing(tmp_path):
    """One row of five is supervised and batches hold one row: the other steps leave the run as it is."""
    rows = [Rendered(np.arange(1, 6, dtype=np.int32), np.arange(5) == 9, 0, 0)] * 4 + random_rows(1, seed=1)
    run = run_data(tmp_path, rows=rows, batch_size=1)
    (result,) = train_cohort(tiny_model(), [run], 5, tmp_path / "checkpoint")
    losses = [row["loss"] for row in metrics_of(run)]
    assert sum(loss is not None for loss in losses) == result.ledger.steps == result.ledger.rows == 1
    assert result.unsupervised_rows == 4


def test_the_base_is_untouched(tmp_path):
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_cohort(model, [run_data(tmp_path, gradient_checkpointing=True)], 2, tmp_path / "checkpoint")
    after = model.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def golden_losses(folder) -> list[tuple[int, str, float]]:
    runs = [
        run_data(folder, "plain", seed=7, rows=random_rows(40, seed=7)),
        run_data(
            folder, "dropout", seed=8, rows=random_rows(40, seed=8), model=ModelConfig(lora_rank=2, lora_dropout=0.1)
        ),
    ]
    train_cohort(tiny_model(), runs, 100, folder / "checkpoint")
    return [(row["step"], run.condition, row["loss"]) for run in runs for row in metrics_of(run)]


def test_golden_losses(tmp_path):
    """100 steps of two runs. Numerics class of the file: CPU, float32. Another CPU's rounding grows over the steps,
    so losses are compared to 1e-4 relative; `python tests/train/test_sft.py` writes the file anew."""
    with GOLDEN.open(newline="") as file:
        want = [(int(row["step"]), row["condition"], float(row["loss"])) for row in csv.DictReader(file)]
    have = golden_losses(tmp_path)
    assert [row[:2] for row in have] == [row[:2] for row in want]
    assert [row[2] for row in have] == pytest.approx([row[2] for row in want], rel=1e-4)
    assert all(math.isfinite(row[2]) for row in have)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary, GOLDEN.open("w", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(["step", "condition", "loss"])
        writer.writerows(golden_losses(Path(temporary)))
