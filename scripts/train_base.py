"""Train the built-in base model on text of the built-in worlds, and record how.

    OMP_NUM_THREADS=1 python scripts/train_base.py [--steps N] [--rows shell=5,arithmetic=24] [--start DIR]

Writes config, weights (bfloat16), tokenizer and `training.json` to `src/finetrial/assets/base`. Only problems of
the split `base` are trained on; the record holds accuracy and loss on problems of the split `campaign`. With
`--start` the model of an earlier stage is trained further on new rows, and its record is kept as `previous`.

Shapes: B rows, T tokens, S supervised tokens.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from finetrial.data.worlds import VERSIONS, WORLDS
from finetrial.data.worlds.arithmetic import answer_of
from finetrial.model.render import Rendered, prompt_text, render_batch
from finetrial.records import Example
from finetrial.seeds import derive, stream
from finetrial.store import write_json

SEED = 0
HELD_OUT_SEED = 1
WATCH_SEED = 2
STAGE_SEEDS = 100
"""Added to the seed of the rows from stage to stage."""
ASSETS = Path(__file__).resolve().parent.parent / "src" / "finetrial" / "assets" / "base"

VOCABULARY = 1024
PIECES = r" ?[\p{L}_]+|\d|[^\p{L}\d_]*[^\p{L}\d_\s]|\s+"
"""What merges never cross: words and identifiers, single digits, runs of punctuation, white space."""
HIDDEN, INTERMEDIATE, LAYERS, HEADS = 128, 448, 4, 4
MAX_LENGTH = 1024

MUON_RATE, ADAM_RATE = 2e-2, 2e-3
WARMUP, COOLDOWN = 20, 0.3
"""Steps of linear warm-up, and share of the steps over which the rates fall linearly to zero."""
BUCKET = 64
"""Steps over which rows are sorted by length, so that a batch is padded little."""

HELD_OUT = {"shell": 400, "arithmetic": 1000}
WATCHED, WATCH_FROM = 200, 0.5
"""Campaign problems (of a seed of their own) on which accuracy is watched, and from which share of the steps on."""
MAX_NEW_TOKENS = 128


def train_tokenizer(texts: Iterator[str], template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits and ChatML's special tokens; `<|endoftext|>` pads, `<|im_end|>` ends a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 2,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool_call>", "</tool_call>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=template,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def plain_texts(rows: Sequence[Example]) -> Iterator[str]:
    """Text for the tokenizer: roles, contents and tool calls as the chat template lays them out."""
    for row in rows:
        for message in row.messages:
            yield f"{message['role']}\n{message['content']}\n"
            for call in message.get("tool_calls", ()):
                yield f'{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}'


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    torch.manual_seed(derive(SEED, "base", "initialisation"))
    vocabulary = tokenizer.get_vocab()
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=vocabulary["<|endoftext|>"],
        bos_token_id=None,
        eos_token_id=vocabulary["<|im_end|>"],
    )
    return Qwen3ForCausalLM(config)


def render_examples(rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Rendered]:
    """All rows, whole: the worlds promise that they fit."""
    batch = render_batch([row.messages for row in rows], tokenizer, MAX_LENGTH)
    whole = [row for row in batch.rows if row is not None and not row.truncated]
    if len(whole) != len(rows):
        raise AssertionError(f"{len(rows) - len(whole)} of {len(rows)} rows do not fit {MAX_LENGTH} tokens")
    return whole


def batches(world: str, rows: Sequence[Rendered], size: int) -> list[list[Rendered]]:
    """Batches of `size` rows of similar length; rows move only within their stretch of `BUCKET` batches."""
    ordered = []
    for start in range(0, len(rows) // size, BUCKET):
        stretch = sorted(rows[start * size : (start + BUCKET) * size], key=lambda row: len(row.ids_T))
        groups = [stretch[i : i + size] for i in range(0, len(stretch), size)]
        order = stream(SEED, "base", "order", world, start).permutation(len(groups))
        ordered += [groups[i] for i in order]
    return ordered


def supervised_loss(model: Qwen3ForCausalLM, rows: Sequence[Rendered]) -> tuple[torch.Tensor, int]:
    """Sum of the NLL in nats over the supervised tokens of the rows, and their number."""
    pad = model.config.pad_token_id or 0
    length = max(len(row.ids_T) for row in rows)
    ids_BT = torch.full((len(rows), length), pad)
    mask_BT = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row.ids_T)] = torch.from_numpy(row.ids_T)
        mask_BT[i, : len(row.ids_T)] = torch.from_numpy(row.mask_T)
    hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    supervised_BT = mask_BT[:, 1:]
    logits_SV = model.lm_head(hidden_BTH[:, :-1][supervised_BT])
    targets_S = ids_BT[:, 1:][supervised_BT]
    return F.cross_entropy(logits_SV.float(), targets_S, reduction="sum"), len(targets_S)


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rates: warm-up, plateau, linear fall."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / max(1.0, COOLDOWN * steps))


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    data: dict[str, list[Rendered]],
    rows_per_step: dict[str, int],
    steps: int,
    factor: float,
    target: float,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The loop, which ends after `steps` or once the watched accuracy reaches `target`.

    Returns the history of losses and accuracies, and the speed.
    """
    watched = list(WORLDS["arithmetic"](WATCHED, WATCH_SEED, "campaign"))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimisers = [
        (torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01), factor * MUON_RATE),
        (torch.optim.AdamW(others, lr=ADAM_RATE, weight_decay=0.0, betas=(0.9, 0.95)), factor * ADAM_RATE),
    ]
    plan = {world: batches(world, rows, rows_per_step[world]) for world, rows in data.items()}
    history: list[dict[str, float]] = []
    started, tokens = time.perf_counter(), 0
    window: dict[str, list[float]] = {world: [] for world in plan}
    for step in range(steps):
        for world, ordered in plan.items():
            total, count = supervised_loss(model, ordered[step])
            (total / count / len(plan)).backward()
            window[world].append(total.item() / count)
            tokens += sum(len(row.ids_T) for row in ordered[step])
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * rate(step, steps)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            losses = {f"{world}_loss": round(float(np.mean(values)), 4) for world, values in window.items()}
            history.append({"step": step + 1, **losses})
            if step + 1 >= WATCH_FROM * steps:
                history[-1]["accuracy"] = greedy_accuracy(model, tokenizer, watched)["accuracy"]
            window = {world: [] for world in plan}
            seconds = time.perf_counter() - started
            print(f"{history[-1]} {seconds:.0f} s, {tokens / seconds:.0f} tokens/s", flush=True)
            if history[-1].get("accuracy", 0.0) >= target:
                break
    seconds = time.perf_counter() - started
    return history, {"seconds": round(seconds), "tokens": tokens, "tokens_per_second": round(tokens / seconds)}


@torch.no_grad()
def greedy_accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Example]
) -> dict[str, Any]:
    """Share of problems whose greedy completion ends in the right answer, with Wilson's 95 % interval."""
    correct = answered = 0
    for start in range(0, len(problems), 250):
        rows = problems[start : start + 250]
        prompts = [prompt_text(row.messages[:1], tokenizer) for row in rows]
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        ids_BT = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            **encoded, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        texts = tokenizer.batch_decode(ids_BT[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        answers = [answer_of(text) for text in texts]
        answered += sum(answer is not None for answer in answers)
        correct += sum(answer == row.meta["answer"] for answer, row in zip(answers, rows, strict=True))
    interval = binomtest(correct, len(problems)).proportion_ci(method="wilson")
    return {
        "n": len(problems),
        "answered": answered,
        "correct": correct,
        "accuracy": correct / len(problems),
        "ci95": [round(float(interval.low), 4), round(float(interval.high), 4)],
    }


@torch.no_grad()
def held_out_loss(model: Qwen3ForCausalLM, rows: Sequence[Rendered]) -> dict[str, float]:
    """NLL per supervised token (nats) and bits per supervised byte."""
    ordered = sorted(rows, key=lambda row: len(row.ids_T))
    total = count = 0.0
    for start in range(0, len(ordered), 16):
        loss, tokens = supervised_loss(model, ordered[start : start + 16])
        total, count = total + loss.item(), count + tokens
    size = sum(row.supervised_bytes for row in rows)
    return {
        "rows": len(rows),
        "nll_per_token": round(total / count, 4),
        "bits_per_byte": round(total / math.log(2) / size, 4),
    }


def lengths(rows: Sequence[Rendered]) -> dict[str, float]:
    """Tokens of rendered rows: mean, 95th percentile, maximum and share that is supervised."""
    sizes = np.array([len(row.ids_T) for row in rows])
    return {
        "mean": round(float(sizes.mean()), 1),
        "p95": round(float(np.percentile(sizes, 95)), 1),
        "max": int(sizes.max()),
        "supervised": round(float(sum(row.mask_T.sum() for row in rows) / sizes.sum()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1400, help="optimiser steps")
    parser.add_argument("--rows", default="shell=5,arithmetic=24", help="rows of each world in one step")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the peak learning rates")
    parser.add_argument("--target", type=float, default=0.5, help="watched accuracy at which training ends")
    parser.add_argument("--start", type=Path, help="folder of an earlier stage")
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    per_step = {world: int(count) for world, count in (part.split("=") for part in options.rows.split(","))}
    previous = json.loads((options.start / "training.json").read_text()) if options.start else None
    seed = previous["seed"] + STAGE_SEEDS if previous else SEED
    rows = {world: list(WORLDS[world](count * options.steps, seed, "base")) for world, count in per_step.items()}
    if options.start:
        tokenizer = AutoTokenizer.from_pretrained(options.start)
        model = Qwen3ForCausalLM.from_pretrained(options.start, dtype=torch.float32)
    else:
        template = (ASSETS / "chat_template.jinja").read_text().rstrip("\n")
        tokenizer = train_tokenizer((text for world in rows for text in plain_texts(rows[world][:4000])), template)
        model = new_model(tokenizer)
    data = {world: render_examples(rows[world], tokenizer) for world in rows}
    for world in data:
        print(world, len(data[world]), "rows", lengths(data[world]), flush=True)
    history, speed = train(model, tokenizer, data, per_step, options.steps, options.rate, options.target)

    steps = int(history[-1]["step"])
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    torch.nn.Module.to(model.eval(), torch.float32)
    held_out = {world: list(WORLDS[world](count, HELD_OUT_SEED, "campaign")) for world, count in HELD_OUT.items()}
    record = {
        "worlds": {
            world: {
                "version": VERSIONS[world],
                "train": {
                    "split": "base",
                    "seed": seed,
                    "rows": steps * per_step[world],
                    "rows_per_step": per_step[world],
                },
                "test": {"split": "campaign", "seed": HELD_OUT_SEED, "rows": HELD_OUT[world]},
                "tokens": lengths(data[world]),
            }
            for world in data
        },
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "planned_steps": options.steps,
        "target_accuracy": options.target,
        "optimiser": {
            "muon": MUON_RATE * options.rate,
            "adamw": ADAM_RATE * options.rate,
            "warmup": WARMUP,
            "cooldown": COOLDOWN,
        },
        "torch": torch.__version__,
        "history": history,
        "speed": speed,
        "held_out": {world: held_out_loss(model, render_examples(held_out[world], tokenizer)) for world in held_out},
        "greedy": greedy_accuracy(model, tokenizer, held_out["arithmetic"]),
        "previous": previous,
    }
    write_json(options.output / "training.json", record)
    print(record["greedy"], record["held_out"])


if __name__ == "__main__":
    main()
