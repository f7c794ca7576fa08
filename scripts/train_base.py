"""Train the built-in base model on text of the built-in worlds, and record how.

    OMP_NUM_THREADS=1 python scripts/train_base.py [--steps N] [--rows shell=5,...] [--start DIR]

Writes config, weights (bfloat16), tokenizer and `training.json` to `src/finetrial/assets/base`. Only problems of
the split `base` are trained on; the record holds skill and loss on problems of the split `campaign`. With
`--start` the model of an earlier stage is trained further on new rows, and its record is kept as `previous`.

Shapes: B rows, T tokens, S supervised tokens.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from finetrial.data.worlds import VERSIONS, WORLDS, arithmetic, physics, replies
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

VOCABULARY = 1280
PIECES = r" ?\([A-D]\)| ?[\p{L}_]+|\d|[^\p{L}\d_]*[^\p{L}\d_\s]|\s+"
"""What merges never cross: letters of options, words and identifiers, single digits, runs of punctuation, white space.
An option's letter with its parentheses is one piece, so that it directly follows the option's last word."""
HIDDEN, INTERMEDIATE, LAYERS, HEADS = 128, 512, 4, 4
MAX_LENGTH = 1024

MUON_RATE, ADAM_RATE = 2e-2, 2e-3
WARMUP, COOLDOWN = 20, 0.3
"""Steps of linear warm-up, and share of the steps over which the rates fall linearly to zero."""
BUCKET = 64
"""Steps over which rows are sorted by length, so that a batch is padded little."""

HELD_OUT = {
    "shell": 400,
    "arithmetic": 1000,
    "replies": 500,
    "physics": 1000,
    "physics_choice": 1000,
    "physics_numeric": 1000,
    "physics_explanation": 300,
}
"""Rows of the split `campaign` on which the record's figures are taken."""
WATCHED, WATCH_FROM, WATCH_EVERY = 300, 0.6, 50
"""Campaign problems (of a seed of their own) on which accuracy is watched, from which share of the steps on, and after
how many steps each time."""
MAX_NEW_TOKENS = 128
REPLIED, REPLIES_EACH = 150, 8
"""Requests of the replies world, and samples of each at temperature 1."""


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
    weights: Mapping[str, float],
    factor: float,
    target: float,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The loop, which ends after `steps` or once the watched accuracy of arithmetic reaches `target`.

    The loss of a step is the weighted mean of the worlds' mean losses per supervised token.

    Returns the history of losses and accuracies, and the speed.
    """
    watched = {world: list(WORLDS[world](WATCHED, WATCH_SEED, "campaign")) for world in VERIFIED}
    share = {world: weights[world] / sum(weights.values()) for world in data}
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
            (share[world] * total / count).backward()
            window[world].append(total.item() / count)
            tokens += sum(len(row.ids_T) for row in ordered[step])
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * rate(step, steps)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if (step + 1) % WATCH_EVERY == 0 or step + 1 == steps:
            losses = {f"{world}_loss": round(float(np.mean(values)), 4) for world, values in window.items()}
            history.append({"step": step + 1, **losses})
            if step + 1 >= WATCH_FROM * steps:
                for world, problems in watched.items():
                    accuracy = greedy_accuracy(model, tokenizer, problems, VERIFIED[world])["accuracy"]
                    history[-1][f"{world}_accuracy"] = round(accuracy, 4)
            window = {world: [] for world in plan}
            seconds = time.perf_counter() - started
            print(f"{history[-1]} {seconds:.0f} s, {tokens / seconds:.0f} tokens/s", flush=True)
            if history[-1].get("arithmetic_accuracy", 0.0) >= target:
                break
    seconds = time.perf_counter() - started
    return history, {"seconds": round(seconds), "tokens": tokens, "tokens_per_second": round(tokens / seconds)}


@torch.no_grad()
def complete(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], sample: bool
) -> list[str]:
    """One completion of each row's first message, greedy or sampled at temperature 1."""
    texts: list[str] = []
    for start in range(0, len(rows), 250):
        prompts = [prompt_text(row.messages[:1], tokenizer) for row in rows[start : start + 250]]
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        ids_BT = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            **encoded,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=sample,
            pad_token_id=tokenizer.pad_token_id,
            **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}),
        )
        texts += tokenizer.batch_decode(ids_BT[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def is_right_sum(text: str, meta: Mapping[str, Any]) -> bool:
    return arithmetic.answer_of(text) == meta["answer"]


VERIFIED: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "arithmetic": is_right_sum,
    "physics_choice": physics.is_correct,
    "physics_numeric": physics.is_correct,
}
"""Worlds whose answers can be verified, and how."""


def greedy_accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Example],
    is_right: Callable[[str, Mapping[str, Any]], bool],
) -> dict[str, Any]:
    """Share of problems whose greedy completion ends in the right answer, with Wilson's 95 % interval."""
    texts = complete(model, tokenizer, problems, sample=False)
    correct = sum(is_right(text, row.meta) for text, row in zip(texts, problems, strict=True))
    interval = binomtest(correct, len(problems)).proportion_ci(method="wilson")
    return {
        "n": len(problems),
        "answered": sum("Answer: " in text for text in texts),
        "correct": correct,
        "accuracy": correct / len(problems),
        "ci95": [round(float(interval.low), 4), round(float(interval.high), 4)],
    }


def share_named(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Example]
) -> dict[str, Any]:
    """Share of choices whose greedy completion names the right option's text and no other, whatever the letter."""
    texts = complete(model, tokenizer, problems, sample=False)
    named = [physics.names_right_option(text, row.meta) for text, row in zip(texts, problems, strict=True)]
    return {"n": len(problems), "named": sum(named), "share": round(float(np.mean(named)), 4)}


def rubric_mean(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Example]
) -> dict[str, Any]:
    """Mean rubric score of greedy explanations."""
    texts = complete(model, tokenizer, problems, sample=False)
    scores = [physics.rubric_score(text, row.meta) for text, row in zip(texts, problems, strict=True)]
    return {"n": len(problems), "rubric_score": round(float(np.mean(scores)), 4)}


def sampled_replies(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Example]
) -> dict[str, Any]:
    """Quality of replies sampled at temperature 1, and their diversity within a request.

    Diversity: share of different replies, and distinct-2 (different pairs of words over all pairs) of the samples of
    one request, averaged over requests.
    """
    torch.manual_seed(derive(SEED, "base", "replies"))
    rows = [row for row in requests for _ in range(REPLIES_EACH)]
    texts = complete(model, tokenizer, rows, sample=True)
    scores = [replies.quality(text, row.meta) for text, row in zip(texts, rows, strict=True)]
    different, distinct_2 = [], []
    for start in range(0, len(texts), REPLIES_EACH):
        group = [text.split() for text in texts[start : start + REPLIES_EACH]]
        pairs = [pair for spoken in group for pair in itertools.pairwise(spoken)]
        different.append(len({tuple(spoken) for spoken in group}) / len(group))
        distinct_2.append(len(set(pairs)) / len(pairs))
    return {
        "requests": len(requests),
        "samples_each": REPLIES_EACH,
        "temperature": 1.0,
        "quality": round(float(np.mean(scores)), 4),
        "perfect": round(float(np.mean(np.array(scores) == 1)), 4),
        "different": round(float(np.mean(different)), 4),
        "distinct_2": round(float(np.mean(distinct_2)), 4),
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
    parser.add_argument("--steps", type=int, default=1300, help="optimiser steps")
    parser.add_argument(
        "--rows",
        default="shell=5,arithmetic=22,replies=14,physics=14,physics_choice=8",
        help="rows of each world in one step",
    )
    parser.add_argument(
        "--weights",
        default="shell=3,arithmetic=3,replies=1.5,physics=1.7,physics_choice=1",
        help="weight of each world's mean loss in the loss of a step",
    )
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the peak learning rates")
    parser.add_argument(
        "--target", type=float, default=0.53, help="watched accuracy of arithmetic at which training ends"
    )
    parser.add_argument("--start", type=Path, help="folder of an earlier stage")
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    per_step = {world: int(count) for world, count in (part.split("=") for part in options.rows.split(","))}
    weights = {world: float(weight) for world, weight in (part.split("=") for part in options.weights.split(","))}
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
    replaced = options.output / "training.json"
    replaces = json.loads(replaced.read_text()) if replaced.exists() and not options.start else None
    history, speed = train(model, tokenizer, data, per_step, options.steps, weights, options.rate, options.target)

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
                    "weight": weights[world],
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
        "greedy": {
            world: greedy_accuracy(model, tokenizer, held_out[world], is_right) for world, is_right in VERIFIED.items()
        },
        "options_named": share_named(model, tokenizer, held_out["physics_choice"]),
        "explanations": rubric_mean(model, tokenizer, held_out["physics_explanation"]),
        "replies": sampled_replies(model, tokenizer, held_out["replies"][:REPLIED]),
        "previous": previous,
        "replaces": replaces and {key: replaces[key] for key in ("parameters", "steps", "greedy", "held_out")},
    }
    write_json(options.output / "training.json", record)
    for part in ("greedy", "options_named", "explanations", "replies", "held_out"):
        print(part, record[part])


if __name__ == "__main__":
    main()
