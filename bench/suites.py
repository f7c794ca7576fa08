"""A multiple-choice suite for eight adapters: finetrial in one pass against lm-evaluation-harness run eight times.

    python bench/suites.py [--quick] [--write]

The suite is world:physics_choice, 300 items; base is the built-in one, adapters are random and change its answers.
The peer runs the harness's `evaluate` with its HF model and PEFT, one adapter after another. finetrial evaluates the
suite itself, from prompts and options as text; or it runs the harness's `evaluate` over the same task, with its own
model below. Neither loading models nor reading items is timed. finetrial's time includes the base, which the peer
leaves out. `--write` puts the table into docs/benchmarks.md.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
from turns import Played, Subject, Turns, play, subject
from workload import ADAPTERS, RANK, Options

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- suites: begin -->", "<!-- suites: end -->"
ITEMS = 300
TOLERANCE = 1e-4
GOAL = 3.0
"""Times as fast as the peer."""
CASES = {"text": "the options' text", "label": "the options' letters"}
BATCH = 32
"""Rows of the harness's batches: the fastest of 8, 32 and 128 here."""


def task(options: Options) -> dict[str, Any]:
    """The suite as a task of the harness; `options.data` says what continues a prompt."""
    return {
        "task": "physics",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(Path(options.folder) / "items.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": f"{{{{{options.data}}}}}",
        "doc_to_target": "gold",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def write_suite(options: Options, count: int) -> None:
    """The built-in base, adapters in PEFT's format, and the items."""
    import shutil

    import torch

    from finetrial import seeds
    from finetrial.data.tasks import TaskConfig, read_tasks
    from finetrial.model.adapters import Adapter, fresh_adapter
    from finetrial.model.base import load_base
    from finetrial.model.config import ModelConfig
    from finetrial.model.peft_format import save_peft

    base = load_base(ModelConfig(), device="cpu")
    shutil.copytree(base.tokenizer.name_or_path, options.base)
    for n in range(ADAPTERS):
        fresh = fresh_adapter(base.model, ModelConfig(lora_rank=RANK), seed=n)
        weights = {}
        for path, (a_IR, b_RO) in fresh.weights.items():
            rng = seeds.stream(n, "bench", "suites", path)
            weights[path] = (a_IR, torch.from_numpy(rng.normal(0, 0.02, b_RO.shape).astype(np.float32)))
        adapter = Adapter(fresh.rank, fresh.alpha, fresh.rslora, fresh.dropout, fresh.targets, weights)
        save_peft(adapter, options.adapter(n), str(options.base))
    with (Path(options.folder) / "items.jsonl").open("w") as stream:
        for one in read_tasks(TaskConfig(source=f"world:physics_choice?count={count}&seed=1")).tasks:
            choices = one.meta["choices"]
            row = {
                "prompt": f"{one.messages[-1]['content']}\nAnswer:",
                "text": list(choices.values()),
                "label": list(choices),
                "gold": list(choices).index(one.reference),
            }
            stream.write(json.dumps(row) + "\n")


def _loaded(options: Options) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False).load([task(options)])


def items(options: Options) -> list[dict[str, Any]]:
    """The suite's rows."""
    return [json.loads(line) for line in (Path(options.folder) / "items.jsonl").read_text().splitlines()]


def _answers(results: Any) -> list[float]:
    return [nats for one in results["samples"]["physics"] for ((nats, _),) in one["resps"]]


def finetrial(options: Options, turns: Turns) -> None:
    """Worker: the base and all adapters, without the harness."""
    import torch

    from finetrial.evaluate.choice import Choice, choice_items, choice_logp, picks
    from finetrial.model.base import load_base
    from finetrial.model.config import ModelConfig
    from finetrial.model.peft_format import load_peft

    torch.set_num_threads(options.threads)
    turns.imports_done()
    base = load_base(ModelConfig(base=str(options.base)), device=options.device)
    adapters = [load_peft(options.adapter(n)) for n in range(ADAPTERS)]
    questions = [
        Choice(str(n), one["prompt"], tuple(one[options.data]), one["gold"]) for n, one in enumerate(items(options))
    ]
    choice_logp(base.model, adapters, choice_items(questions[:8], base.tokenizer))  # warm-up
    for _ in range(options.rounds):
        turns.begin()
        with turns.span("all"):
            asked = choice_items(questions, base.tokenizer)
            found = choice_logp(base.model, adapters, asked)
            right_GK = np.stack([picks(logp_GO) == one.gold for logp_GO, one in zip(found, asked, strict=True)], 1)
        turns.end(logp=[[float(nats) for logp_GO in found for nats in logp_GO[1 + n]] for n in range(ADAPTERS)])
    turns.finish(acc=right_GK[1:].mean(1).tolist())


def harness(options: Options, turns: Turns) -> None:
    """Worker: the base and all adapters, as models of the harness."""
    import torch

    from finetrial.evaluate.lm_eval_model import evaluate_all
    from finetrial.model.base import load_base
    from finetrial.model.config import ModelConfig
    from finetrial.model.peft_format import load_peft

    torch.set_num_threads(options.threads)
    turns.imports_done()
    base = load_base(ModelConfig(base=str(options.base)), device=options.device)
    adapters = {f"a{n}": load_peft(options.adapter(n)) for n in range(ADAPTERS)}
    tasks = list(_loaded(options)["tasks"].values())
    manager = _Manager()
    evaluate_all(base, {}, tasks, task_manager=manager, limit=8, bootstrap_iters=0)  # warm-up
    for _ in range(options.rounds):
        turns.begin()
        with turns.span("all"):
            found = evaluate_all(base, adapters, tasks, task_manager=manager, bootstrap_iters=0)
        turns.end(logp=[_answers(found[name]) for name in adapters])
    turns.finish(acc=[found[name]["results"]["physics"]["acc,none"] for name in adapters])


class _Manager:
    """Tasks that are read already."""

    def load(self, tasks: list[Any]) -> dict[str, Any]:
        return {"tasks": {one.task_name: one for one in tasks}, "groups": {}, "group_map": {}}


def lm_eval(options: Options, turns: Turns) -> None:
    """Worker: one model of the harness per adapter."""
    import torch
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel  # noqa: F401  # HFLM imports it with the first adapter; it belongs to the imports

    torch.set_num_threads(options.threads)
    turns.imports_done()
    loaded = _loaded(options)

    def load(n: int) -> Any:
        make: Any = HFLM  # its registry decorator hides its signature
        path = str(options.adapter(n))
        return make(str(options.base), device=options.device, dtype=options.dtype, batch_size=BATCH, peft=path)

    evaluator.evaluate(load(0), loaded, limit=8, bootstrap_iters=0)  # warm-up
    for _ in range(options.rounds):
        turns.begin()
        found = []
        for n in range(ADAPTERS):
            lm = load(n)
            with turns.span(f"adapter{n}"):
                found.append(evaluator.evaluate(lm, loaded, bootstrap_iters=0))
        turns.end(logp=[_answers(one) for one in found])
    turns.finish(acc=[one["results"]["physics"]["acc,none"] for one in found])


def rows(options: Options, played: dict[str, Played]) -> list[str]:
    """Lines of the table, after the proof that all did the same work.

    Raises:
        RuntimeError: log-probabilities differ by more than the tolerance, or accuracies differ.
    """
    theirs = played["lm-eval"]
    lines = []
    for name, ours in played.items():
        pairs = zip(ours.turns, theirs.turns, strict=True)
        gap = max(float(np.abs(np.array(a["logp"]) - np.array(b["logp"])).max()) for a, b in pairs)
        if options.device == "cpu" and (gap > TOLERANCE or not np.allclose(ours.facts["acc"], theirs.facts["acc"])):
            raise RuntimeError(f"{name}: nats differ by {gap:.2g}; accuracies {ours.facts} {theirs.facts}")
        mine, other = _seconds(ours), _seconds(theirs)
        ratio = [b / a for a, b in zip(mine, other, strict=True)]
        told = f"**{statistics.median(ratio):.1f}** ({min(ratio):.1f} to {max(ratio):.1f}) | {gap:.0e}"
        lines.append(
            f"| {CASES[options.data]} | {options.device} | {name} | {statistics.median(mine):.2f} "
            f"| {' | ' if ours is theirs else told} | {ours.facts['peak']:.0f} |"
        )
    return lines


def _seconds(played: Played) -> list[float]:
    """Seconds of the processor: others on the machine disturb them least, and one thread needs as many of the wall."""
    return [sum(span[1] for span in turn["spans"].values()) for turn in played.turns]


def main() -> None:
    """Measure and print; write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test on a few items; writes nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    import torch

    load = os.getloadavg()[0]
    lines = [
        "| continuations | device | subject | processor s | times as fast as lm-eval (range) "
        "| largest difference, nats | peak MiB |",
        "|---|---|---|---:|---|---|---:|",
    ]
    with tempfile.TemporaryDirectory(prefix="finetrial-bench-") as folder:
        options = Options(folder, rounds=1 if arguments.quick else 3)
        write_suite(options, 16 if arguments.quick else ITEMS)
        targets = [options]
        if torch.cuda.is_available():
            targets.append(replace(options, device="cuda", threads=len(os.sched_getaffinity(0))))
        for target in targets:
            for data in CASES:
                chosen = replace(target, data=data)
                subjects = [
                    Subject("finetrial", "suites.py", "finetrial", chosen),
                    Subject("finetrial below lm-eval", "suites.py", "harness", chosen),
                    Subject("lm-eval", "suites.py", "lm_eval", chosen),
                ]
                lines += rows(chosen, play(subjects, chosen.rounds))
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = "; ".join(f"{name}: {value}" for name, value in machine.facts())
    text = f"{date}; one thread; goal {GOAL:g} times as fast; load average before {load:.1f}; {facts}\n\n" + "\n".join(
        lines
    )
    print(text)
    if arguments.write and not arguments.quick:
        before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise RuntimeError(f"{DOCUMENT} has no lines '{BEGIN}' and '{END}' to write between")
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in ("finetrial", "harness", "lm_eval"):
        subject({"finetrial": finetrial, "harness": harness, "lm_eval": lm_eval})
    else:
        main()
