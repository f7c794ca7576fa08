"""Supervised fine-tuning: one run, and a cohort of eight, against TRL's SFTTrainer on the same rows in the same order.

All start from the same adapter file and use AdamW at a constant rate with clipping at norm 1. A turn is a few
optimiser steps, from the end of one step to the end of another: fetching rows, forward, backward, update, log.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import Turns, subject
from workload import RANK, Options, Row

from finetrial.evaluate.progress import Progress
from finetrial.train.batches import step_rows

BATCH = 8
COHORT = 8
RATE = 2e-4


def steps_of(options: Options) -> int:
    """Optimiser steps that a subject takes in all."""
    return options.warm_up + options.rounds * options.block


class Steps(Progress):
    """Cuts a training loop into turns: told after each optimiser step, it waits at the end of a turn."""

    def __init__(self, options: Options, turns: Turns, work: Callable[[int], tuple[int, int, int]]):
        """`work`: step (0, 1, ...) -> (tokens, causal pairs, supervised tokens)."""
        super().__init__("bench", steps_of(options), every=float("inf"))
        self.options, self.turns, self.work = options, turns, work

    def update(self, done: int, loss: float | None = None) -> None:
        """`done` steps are finished."""
        past = done - self.options.warm_up
        if past < 0 or past % self.options.block:
            return
        if past:
            self.turns.add("steps", self.began)
            counts = [self.work(step) for step in range(done - self.options.block, done)]
            self.turns.end(work=[sum(column) for column in zip(*counts, strict=True)])
        if done < self.total:
            self.turns.begin()
            self.began = self.turns.clocks()


def batches(rows: list[Row], seed: int) -> Callable[[int], list[Row]]:
    """Step -> its rows, in the order of the run with this seed."""
    return lambda step: [rows[place] for place in step_rows(seed, len(rows), BATCH, step)]


def cost(chosen: list[Row]) -> tuple[int, int, int]:
    """Summed (tokens, causal pairs, supervised tokens)."""
    tokens, pairs, supervised = (sum(column) for column in zip(*(row.cost for row in chosen), strict=True))
    return tokens, pairs, supervised


def finetrial(options: Options, turns: Turns, runs: int) -> None:
    """Worker: `runs` runs in one stack."""
    import numpy as np
    import torch
    from workload import load_model

    from finetrial.model.config import ModelConfig
    from finetrial.model.render import Rendered
    from finetrial.train.cohort import train_cohort
    from finetrial.train.config import TrainConfig
    from finetrial.train.runs import RunData

    torch.set_num_threads(options.threads)
    turns.imports_done()
    rows = options.rows()
    rendered = [Rendered(np.array(row.ids, dtype=np.int32), np.array(row.mask), 0, 0) for row in rows]
    train = TrainConfig(learning_rate=RATE, schedule="constant", warmup_ratio=0, batch_size=BATCH, save_every=0)
    folder = Path(options.folder) / f"finetrial-{runs}"

    model = ModelConfig(lora_rank=RANK)
    cohort = [RunData("bench", n, rendered, train, model, folder / f"run{n}", f"bench-{n}") for n in range(runs)]

    def work(step: int) -> tuple[int, int, int]:
        return cost([row for n in range(runs) for row in batches(rows, n)(step)])

    steps = Steps(options, turns, work)
    train_cohort(load_model(options), cohort, steps.total, folder / "checkpoint", steps)
    losses = [json.loads(line)["loss"] for line in cohort[0].metrics.read_text().splitlines()]
    turns.finish(losses=losses)


def trl(options: Options, turns: Turns, defaults: bool) -> None:
    """Worker: SFTTrainer, like for like (the same number format, no recomputation), or with TRL's own defaults for
    these two (bfloat16 autocast and gradient checkpointing)."""
    import datasets
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
    from workload import load_model

    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    turns.imports_done()
    rows, total = options.rows(), steps_of(options)
    chosen = batches(rows, 0)
    ordered = [row for step in range(total) for row in chosen(step)]
    data = datasets.Dataset.from_dict(
        {"input_ids": [row.ids for row in ordered], "assistant_masks": [[int(m) for m in row.mask] for row in ordered]}
    )
    steps = Steps(options, turns, lambda step: cost(chosen(step)))

    class Boundary(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.update(state.global_step)

    class Trainer(SFTTrainer):
        losses: list[torch.Tensor]

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self.losses.append(loss)
            return loss

    like_for_like: dict[str, Any] = (
        {} if defaults else {"bf16": options.dtype == "bfloat16", "gradient_checkpointing": False}
    )
    config = SFTConfig(
        output_dir=str(Path(options.folder) / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=total,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_length=None,
        train_sampling_strategy="sequential",  # the rows are laid out in finetrial's order
        use_cpu=options.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **like_for_like,
    )
    model = PeftModel.from_pretrained(load_model(options), Path(options.folder) / "fresh", is_trainable=True)
    trainer = Trainer(
        model=model,  # type: ignore[arg-type]  # a PeftModel is taken as it is
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(options.base),
        callbacks=[Boundary()],
    )
    trainer.losses = []
    trainer.train()
    turns.finish(losses=[float(loss) for loss in trainer.losses])


if __name__ == "__main__":
    subject(
        {
            "finetrial": lambda options, turns: finetrial(options, turns, runs=1),
            "cohort": lambda options, turns: finetrial(options, turns, runs=COHORT),
            "trl": lambda options, turns: trl(options, turns, defaults=False),
            "trl-defaults": lambda options, turns: trl(options, turns, defaults=True),
        }
    )
