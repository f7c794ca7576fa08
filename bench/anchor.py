"""What an anchor costs: anchored against plain supervised fine-tuning, one run and a cohort of eight.

    python bench/anchor.py [--quick] [--write]

The built-in base learns the rows of a built-in world for several epochs; the runs of a cohort have the same rows in
orders of their own. Subjects alternate, a turn is an epoch, and a ratio compares the same epoch of both. The base reads
a row once for all runs and epochs, so what an anchor costs falls with their number. `--write` puts the table into
docs/benchmarks.md.
"""

import argparse
import datetime
import os
import statistics
import sys
import tempfile
from pathlib import Path

import machine
from sft import Steps
from turns import Played, Subject, Turns, play, subject
from workload import RANK, Options

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- anchor: begin -->", "<!-- anchor: end -->"
BATCH, COHORT = 8, 8
RATE = 2e-4
SOURCES = {"shell": "world:shell?count={count}&seed=5", "arithmetic": "world:arithmetic?count={count}&seed=5"}


def train(options: Options, turns: Turns, runs: int, anchored: bool) -> None:
    """Worker: a cohort, with an anchor or without."""
    import torch

    from finetrial.data.read import read
    from finetrial.model.base import load_base
    from finetrial.model.config import ModelConfig
    from finetrial.model.render import render_batch
    from finetrial.train.cohort import train_cohort
    from finetrial.train.config import TrainConfig
    from finetrial.train.runs import RunData
    from finetrial.train.term_config import AnchorConfig

    torch.set_num_threads(options.threads)
    turns.imports_done()
    base = load_base(ModelConfig(), options.device)
    examples = read(SOURCES[options.data].format(count=options.block * BATCH)).examples
    batch = render_batch((example.messages for example in examples), base.tokenizer, 1024)
    rows = [row for row in batch.rows if row is not None]
    supervised, tokens = sum(int(row.mask_T.sum()) for row in rows), sum(len(row.ids_T) for row in rows)
    config = TrainConfig(learning_rate=RATE, schedule="constant", warmup_ratio=0, batch_size=BATCH, save_every=0)
    model, anchor = ModelConfig(lora_rank=RANK), AnchorConfig(coef=0.05) if anchored else None
    folder = Path(options.folder) / f"{options.data}-{runs}-{anchored}"
    cohort = [RunData("bench", n, rows, config, model, folder / f"run{n}", f"{n}", anchor=anchor) for n in range(runs)]
    steps = Steps(options, turns, lambda step: (runs, 0, 0))
    train_cohort(base.model, cohort, steps.total, folder / "checkpoint", steps)
    turns.finish(tokens=tokens / len(rows), supervised=supervised / tokens, rows=len(rows))


WORKERS: dict[str, tuple[int, bool]] = {
    "plain-1": (1, False),
    "anchored-1": (1, True),
    f"plain-{COHORT}": (COHORT, False),
    f"anchored-{COHORT}": (COHORT, True),
}


def measure(options: Options) -> dict[str, Played]:
    """All subjects in turns."""
    return play([Subject(name, "anchor.py", name, options) for name in WORKERS], options.rounds)


def table(options: Options, played: dict[str, Played]) -> str:
    """Markdown: what an epoch costs more, the first, in which the base reads, and later ones; over all; and memory.

    Processor seconds: on a shared machine the wall's tell of neighbours.
    """
    told = played["plain-1"].facts
    lines = [
        f"{options.data}: {told['rows']} rows of {told['tokens']:.0f} tokens, {told['supervised']:.0%} of them "
        f"supervised; {options.rounds} epochs",
        "",
        "| runs | plain, s per step of a run | first epoch | later epochs, median (range) | all epochs | memory |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for runs in (1, COHORT):
        plain, anchored = played[f"plain-{runs}"], played[f"anchored-{runs}"]
        ours, theirs = (result.seconds("steps", clock=1) for result in (anchored, plain))
        ratio = [mine / other - 1 for mine, other in zip(ours, theirs, strict=True)]
        later = ratio[1:]
        lines.append(
            f"| {runs} | {statistics.median(theirs) / options.block / runs:.4f} | {ratio[0]:+.0%} "
            f"| {statistics.median(later):+.1%} ({min(later):+.1%} to {max(later):+.1%}) "
            f"| **{sum(ours) / sum(theirs) - 1:+.1%}** | {anchored.facts['peak'] / plain.facts['peak']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test; writes nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    load, parts = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="finetrial-bench-") as folder:
        for data in SOURCES:
            block, rounds = (2, 2) if arguments.quick else (8, 6)
            options = Options(folder, data=data, warm_up=1, block=block, rounds=rounds)
            parts.append(table(options, measure(options)))
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
    if len(sys.argv) > 2 and sys.argv[1] in WORKERS:
        subject({name: lambda options, turns, of=of: train(options, turns, *of) for name, of in WORKERS.items()})
    else:
        main()
