"""How fast completions are sampled, with and without shared prompts and the removal of ended rows.

    python bench/rollouts.py [--quick] [--write]

Prints a table; `--write` puts it into docs/benchmarks.md. All subjects of a work sample the same number of tokens for
the same prompts and take turns; figures are medians over rounds. Lengths of completions are drawn beforehand
(geometric, cut at the most), so that rows end at different times whatever a model says.
"""

import argparse
import datetime
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from workload import RANK, Size

from finetrial import seeds
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Request, sample_batches
from finetrial.model.adapters import AdapterStack, fresh_adapter
from finetrial.model.base import load_base
from finetrial.model.config import ModelConfig
from finetrial.model.loss import head_of

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
TITLE = "## Rollouts"
ROWS = 256


@dataclass(frozen=True)
class Work:
    """What is sampled."""

    name: str
    model: PreTrainedModel
    adapters: int
    prompts: int
    samples: int
    most: int
    mean: int
    """Of the lengths before they are cut at `most`."""
    prompt: tuple[int, int] = (30, 60)

    def requests(self) -> list[Request]:
        """One request per completion, each with its own length; prompts are shared all the same."""
        rng = seeds.stream(0, "bench", "rollouts", self.name)
        texts = [rng.integers(3, 1000, int(rng.integers(*self.prompt))) for _ in range(self.prompts)]
        return [
            Request(
                text_T,
                adapter,
                (seeds.derive(0, "bench", i, j),),
                SamplingConfig(max_tokens=int(min(self.most, rng.geometric(1 / self.mean)))),
            )
            for i, text_T in enumerate(texts)
            for adapter in range(self.adapters)
            for j in range(self.samples)
        ]


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one subject, median over rounds."""

    work: str
    subject: str
    wall: float
    processor: float


def works(quick: bool) -> list[Work]:
    """The built-in base, and the model on which trainers are compared."""
    torch.manual_seed(0)
    size = Size()
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        tie_word_embeddings=True,
    )
    peer = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    built_in = load_base(ModelConfig(), device="cpu").model
    if quick:
        return [Work("smoke test", built_in, 1, 3, 2, 6, 4)]
    return [
        Work("built-in base, 64 prompts × 8, 50 tokens", built_in, 1, 64, 8, 50, 10**6),
        Work("built-in base, 64 prompts × 8, 1 to 50 tokens", built_in, 1, 64, 8, 50, 25),
        Work("3.9 M parameters, 4 prompts × 8, 64 tokens", peer, 1, 4, 8, 64, 10**6),
        Work("3.9 M parameters, 4 prompts × 8, 1 to 64 tokens", peer, 1, 4, 8, 64, 30),
        Work("3.9 M parameters, 4 adapters × 4 prompts × 8, 1 to 64 tokens", peer, 4, 4, 8, 64, 30),
    ]


def subjects(work: Work) -> dict[str, Callable[[], None]]:
    """Name -> sample everything once."""
    model: Any = work.model
    requests = work.requests()
    head, tokenizer = head_of(model), load_base(ModelConfig(), device="cpu").tokenizer
    adapters = [fresh_adapter(model, ModelConfig(lora_rank=RANK), n) for n in range(work.adapters)]

    def finetrial(share: bool, remove: bool) -> Callable[[], None]:
        def run() -> None:
            with AdapterStack(model, adapters) as stack:
                sample_batches(model, head, stack, tokenizer, requests, (), ROWS, share=share, remove=remove)

        return run

    def generate() -> None:
        longest = max(len(request.prompt_T) for request in requests)
        for start in range(0, len(requests), ROWS):
            chosen = requests[start : start + ROWS]
            ids_ST = np.zeros((len(chosen), longest), np.int64)
            mask_ST = np.zeros_like(ids_ST)
            for s, request in enumerate(chosen):
                ids_ST[s, -len(request.prompt_T) :] = request.prompt_T
                mask_ST[s, -len(request.prompt_T) :] = 1
            tokens = max(request.sampling.max_tokens for request in chosen)
            model.generate(
                torch.from_numpy(ids_ST),
                attention_mask=torch.from_numpy(mask_ST),
                do_sample=True,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=0,
            )

    return {
        "finetrial": finetrial(True, True),
        "each sample reads its prompt": finetrial(False, True),
        "ended rows stay": finetrial(True, False),
        "both": finetrial(False, False),
        "transformers `generate`, no adapters": generate,
    }


def measure(work: Work, rounds: int) -> list[Speed]:
    """Let the subjects take turns."""
    tokens = sum(request.sampling.max_tokens for request in work.requests())
    runs = subjects(work)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            began, busy = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - began, time.process_time() - busy))
    return [
        Speed(work.name, name, *(tokens / statistics.median(column) for column in zip(*times[1:], strict=True)))
        for name, times in taken.items()
    ]


def table(speeds: Sequence[Speed]) -> str:
    """Markdown."""
    lines = ["| work | subject | tokens/s | tokens/s of processor time |", "|---|---|---:|---:|"]
    lines += [f"| {s.work} | {s.subject} | {s.wall:,.0f} | {s.processor:,.0f} |" for s in speeds]
    return "\n".join(lines)


def write(text: str) -> None:
    """Replace the section of the document, or append it."""
    document = DOCUMENT.read_text()
    before, found, rest = document.partition(f"{TITLE}\n")
    _, following, after = rest.partition("\n## ")
    section = f"{TITLE}\n\n{text}\n"
    DOCUMENT.write_text(f"{before}{section}{following}{after}" if found else f"{document.rstrip()}\n\n{section}")
    print(f"\nwrote {DOCUMENT}")


def main() -> None:
    """Measure every work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test; writes nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    speeds: list[Speed] = []
    for work in works(arguments.quick):
        speeds += measure(work, 1 if arguments.quick else arguments.rounds)
        print(table(speeds[-5:]), flush=True)
    cores, after = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    said = (
        f"`python bench/rollouts.py`, one thread of {cores} cores, {datetime.date.today()}, load average {load:.1f} "
        f"before and {after:.1f} after, torch {torch.__version__}, transformers {transformers.__version__}; batches of "
        f"at most {ROWS} rows, rank {RANK}, medians of {arguments.rounds} rounds. Lengths of completions are fixed "
        "beforehand; `generate` runs every batch to its longest one and is credited with the tokens that were wanted."
    )
    if arguments.write and not arguments.quick:
        write(f"{said}\n\n{table(speeds)}")


if __name__ == "__main__":
    main()
