"""Reinforcement learning: one run, and a cohort of four, against TRL's GRPOTrainer generating with transformers.

    python bench/grpo.py [--quick] [--write]

Same random base, rank, prompts, group size and length of completions (the base ends hardly any of them itself), group
normalised advantages, one update per step, no divergence term. A turn is one step: sampling, grading, forward,
backward, update, log. `--write` puts the table into docs/benchmarks.md.
"""

import argparse
import datetime
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import workload
from sft import Steps, steps_of
from turns import Played, Subject, Turns, play, subject
from workload import RANK, SMALL, Options

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- grpo: begin -->", "<!-- grpo: end -->"
PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS = 4, 8, 16, 64
COHORT = 4
RATE = 1e-5
GOALS = {"finetrial, 1 run": 1.5, f"finetrial, cohort of {COHORT}": 1.3}
"""Steps per second over TRL's; of the cohort, over as many single runs of finetrial in sequence."""


def prompts(options: Options, count: int) -> list[str]:
    """Prompts of `PROMPT_TOKENS` words."""
    rows = workload.full_rows(count, PROMPT_TOKENS, options.size.vocabulary)
    return [" ".join(f"w{i}" for i in row.ids) for row in rows]


def reward_of(text: str) -> float:
    """About half of all completions, cheap to tell."""
    return float(sum(map(ord, text)) % 2)


def new_tokens(options: Options) -> int:
    """Most tokens of a completion."""
    return 8 if options.size == SMALL else NEW_TOKENS


def finetrial(options: Options, turns: Turns, runs: int) -> None:
    """Worker: `runs` runs in one stack."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer
    from workload import load_model

    from finetrial.grade.config import GraderConfig
    from finetrial.grade.grade import Grader
    from finetrial.model.config import ModelConfig
    from finetrial.records import Grade, Task
    from finetrial.train.cohort import train_cohort
    from finetrial.train.config import TrainConfig
    from finetrial.train.rl_config import RLConfig
    from finetrial.train.runs import Practice, RunData

    torch.set_num_threads(options.threads)
    turns.imports_done()
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    texts = prompts(options, PROMPTS * steps_of(options))
    tasks = [Task(str(n), str(n), ({"role": "user", "content": text},), "-") for n, text in enumerate(texts)]
    ids = [np.array(tokenizer(text)["input_ids"], dtype=np.int64) for text in texts]
    rl = RLConfig.model_validate({"group_size": GROUP, "sampling": {"max_tokens": new_tokens(options)}})
    train = TrainConfig(learning_rate=RATE, schedule="constant", warmup_ratio=0, batch_size=PROMPTS, save_every=0)
    folder = Path(options.folder) / f"grpo-{runs}-{options.threads}"

    class Parity(Grader):
        """The reward of this measurement."""

        def grade(self, tasks: Any, texts: Any) -> list[Grade]:
            return [Grade(reward_of(text)) for text in texts]

    practice = Practice(tasks, ids, Parity(GraderConfig(), "exact"), rl, tokenizer, (2,))
    model = ModelConfig(lora_rank=RANK)
    cohort = [RunData("bench", n, [], train, model, folder / f"run{n}", f"{n}", practice) for n in range(runs)]
    steps = Steps(options, turns, lambda step: (runs, 0, 0))
    train_cohort(load_model(options), cohort, steps.total, folder / "checkpoint", steps)
    turns.finish(completions=_mean_length(cohort[0].folder))


def _mean_length(folder: Path) -> float:
    import json

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.mean(row["completion_length_mean"] for row in rows)


def trl(options: Options, turns: Turns) -> None:
    """Worker: GRPOTrainer."""
    import datasets
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from workload import load_model

    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    turns.imports_done()
    steps = Steps(options, turns, lambda step: (1, 0, 0))
    data = datasets.Dataset.from_dict({"prompt": prompts(options, PROMPTS * steps.total)})

    class Boundary(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.update(state.global_step)

    config = GRPOConfig(
        output_dir=str(Path(options.folder) / "trl-grpo"),
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=new_tokens(options),
        temperature=1.0,
        beta=0.0,
        max_steps=steps.total,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        use_cpu=options.device == "cpu",
        bf16=options.dtype == "bfloat16",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    lengths: list[int] = []
    tokenizer = AutoTokenizer.from_pretrained(options.base)

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(len(ids) for ids in completion_ids)
        return [reward_of(text) for text in completions]

    model = PeftModel.from_pretrained(load_model(options), Path(options.folder) / "fresh", is_trainable=True)
    trainer = GRPOTrainer(
        model=model,  # type: ignore[arg-type]  # a PeftModel is taken as it is
        reward_funcs=reward,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Boundary()],
    )
    trainer.train()
    turns.finish(completions=statistics.mean(lengths))


def measure(options: Options) -> dict[str, Played]:
    """All subjects in turns."""
    subjects = [
        Subject("finetrial, 1 run", "grpo.py", "finetrial", options),
        Subject("TRL", "grpo.py", "trl", options),
        Subject(f"finetrial, cohort of {COHORT}", "grpo.py", "cohort", options),
    ]
    return play(subjects, options.rounds)


def table(options: Options, played: dict[str, Played]) -> str:
    """Markdown: seconds per step and ratios, turn by turn."""
    lines = [
        "| subject | threads | s per step of a run | tokens per completion | faster than | median (range) | goal "
        "| peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    single, peer = played["finetrial, 1 run"], played["TRL"]
    for name, result in played.items():
        runs = COHORT if "cohort" in name else 1
        per_run = [seconds / options.block / runs for seconds in result.seconds("steps")]
        against, other = ("one run of ours", single) if runs > 1 else ("TRL", peer)
        ratio = [theirs / options.block / mine for mine, theirs in zip(per_run, other.seconds("steps"), strict=True)]
        told = f"{against} | **{statistics.median(ratio):.2f}** ({min(ratio):.2f} to {max(ratio):.2f})"
        lines.append(
            f"| {name} | {options.threads} | {statistics.median(per_run):.3f} | {result.facts['completions']:.1f} "
            f"| {told if result is not peer else ' | '} | {GOALS.get(name, '')} | {result.facts['peak']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test on a tiny model; writes nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    import torch

    load, parts = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="finetrial-bench-") as folder:
        small = Options(folder, size=SMALL, rounds=2, warm_up=1, block=1)
        options = small if arguments.quick else Options(folder, warm_up=2, block=1, rounds=7)
        workload.write_model(options)
        targets = [options]
        if torch.cuda.is_available():
            targets.append(replace(options, device="cuda", threads=len(os.sched_getaffinity(0))))
        for target in targets:
            parts.append(f"{target.device}:\n\n{table(target, measure(target))}")
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = "; ".join(f"{name}: {value}" for name, value in machine.facts())
    text = f"{date}; load average before {load:.1f}; {facts}\n\n" + "\n\n".join(parts)
    print(text)
    if arguments.write and not arguments.quick:
        before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise RuntimeError(f"{DOCUMENT} has no lines '{BEGIN}' and '{END}' to write between")
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in ("finetrial", "trl", "cohort"):
        subject(
            {
                "finetrial": lambda options, turns: finetrial(options, turns, runs=1),
                "cohort": lambda options, turns: finetrial(options, turns, runs=COHORT),
                "trl": trl,
            }
        )
    else:
        main()
