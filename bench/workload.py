"""What is measured: one model, its adapters, rows to train on and items to score, written to a folder for all.

Nothing is read from a network: the model has random weights, the tokenizer is a list of words, and rows are random
ids. Neither speed nor memory depends on what the tokens mean; that all subjects do the same work is proved by their
losses.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetrial import seeds

RANK = 8
ADAPTERS = 8


@dataclass(frozen=True)
class Size:
    """A Qwen3 configuration with tied embeddings."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 768
    vocabulary: int = 3000

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer; all of them are adapted."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, wide), (self.hidden, narrow), (self.hidden, narrow), (wide, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def parameters(self) -> int:
        """Numbers of the matrices (the norms' few hundred are left out)."""
        return self.layers * sum(i * o for i, o in self.linears()) + self.vocabulary * self.hidden

    def forward_flops(self, tokens: int, pairs: int, supervised: int, rank: int) -> float:
        """Floating-point operations of the matrix products of one forward pass, as far as the loss needs them.

        Args:
            tokens: read by the model, without padding.
            pairs: query and key pairs under the causal mask, T (T + 1) / 2 of a row of T tokens.
            supervised: tokens that are scored; only they go through the output head.
            rank: of the adapters; 0 for the base or a merged adapter.
        """
        linear = sum(i * o + rank * (i + o) for i, o in self.linears())
        attention = 2 * self.heads * self.head_dim * pairs
        return 2.0 * (self.layers * (tokens * linear + attention) + supervised * self.hidden * self.vocabulary)

    def training_flops(self, tokens: int, pairs: int, supervised: int, rank: int) -> float:
        """As `forward_flops`, of a step: the frozen weights need gradients of their inputs only (as many operations
        as the forward pass), adapters and attention those of both factors (twice as many)."""
        forward = self.forward_flops(tokens, pairs, supervised, rank)
        adapters = 2.0 * self.layers * tokens * rank * sum(i + o for i, o in self.linears())
        attention = 4.0 * self.layers * self.heads * self.head_dim * pairs
        return 2 * forward + adapters + attention


SMALL = Size(hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate=128, vocabulary=300)


@dataclass(frozen=True)
class Row:
    """Token ids and which of them are supervised."""

    ids: list[int]
    mask: list[bool]

    @property
    def cost(self) -> tuple[int, int, int]:
        """(tokens, causal pairs, supervised tokens), as `forward_flops` takes them."""
        return len(self.ids), len(self.ids) * (len(self.ids) + 1) // 2, sum(self.mask)


@dataclass(frozen=True)
class Options:
    """What a subject is told; travels as JSON."""

    folder: str
    device: str = "cpu"
    threads: int = 1
    size: Size = field(default_factory=Size)
    rounds: int = 5
    data: str = "full"
    """Name of a file of rows in the folder."""
    block: int = 2
    """Optimiser steps of one turn, or items."""
    warm_up: int = 3
    """Optimiser steps before the first turn."""
    adapters: int = ADAPTERS
    """Adapters scored by the subject."""

    @property
    def dtype(self) -> str:
        """Numbers of the base model."""
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def base(self) -> Path:
        """Folder of the base model and its tokenizer."""
        return Path(self.folder) / "base"

    def adapter(self, n: int) -> Path:
        """Folder of adapter `n` in PEFT's format."""
        return Path(self.folder) / f"adapter{n}"

    def rows(self) -> list[Row]:
        """The rows or items."""
        with (Path(self.folder) / f"{self.data}.json").open() as stream:
            return [Row(**row) for row in json.load(stream)]

    def slices(self) -> list[list[Row]]:
        """The items of each turn."""
        items = self.rows()
        return [items[start : start + self.block] for start in range(0, len(items), self.block)]

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> "Options":
        """From JSON."""
        fields = json.loads(text)
        return Options(**{**fields, "size": Size(**fields["size"])})


def load_model(options: Options) -> Any:
    """The base, as any subject loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(options.base), dtype=getattr(torch, options.dtype))
    return model.to(options.device)


def write_model(options: Options) -> None:
    """Random base, word tokenizer, `ADAPTERS` random adapters that change the losses visibly, and a fresh one."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from finetrial.model.adapters import Adapter, fresh_adapter
    from finetrial.model.config import ModelConfig
    from finetrial.model.peft_format import save_peft

    disable_progress_bar()
    size = options.size
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,  # logits of about unit variance, so that losses tell rows and adapters apart
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(0, "bench", "base"))
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(options.base)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(options.base)

    fresh = fresh_adapter(model, ModelConfig(lora_rank=RANK), seed=0)
    save_peft(fresh, Path(options.folder) / "fresh", str(options.base))
    for n in range(ADAPTERS):
        weights = {}
        for path, (a_IR, b_RO) in fresh.weights.items():
            rng = seeds.stream(n, "bench", "adapter", path)
            weights[path] = (a_IR, torch.from_numpy(rng.normal(0, 0.1, b_RO.shape).astype(np.float32)))
        adapter = Adapter(fresh.rank, fresh.alpha, fresh.rslora, fresh.dropout, fresh.targets, weights)
        save_peft(adapter, options.adapter(n), str(options.base))


def write_rows(options: Options, rows: list[Row]) -> None:
    """Write rows as `options.data`."""
    with (Path(options.folder) / f"{options.data}.json").open("w") as stream:
        json.dump([asdict(row) for row in rows], stream)


def full_rows(count: int, length: int, vocabulary: int) -> list[Row]:
    """Rows of one length, every token but the first supervised."""
    rng = seeds.stream(0, "bench", "full rows")
    return [Row(_words(rng, length, vocabulary), [False] + [True] * (length - 1)) for _ in range(count)]


def ragged_rows(count: int, shortest: int, longest: int, vocabulary: int) -> list[Row]:
    """Conversations: lengths log-uniform, turns of 8 to 40 tokens, every second turn (the assistant's) supervised."""
    rng = seeds.stream(0, "bench", "ragged rows")
    rows = []
    for _ in range(count):
        length = round(float(np.exp(rng.uniform(np.log(shortest), np.log(longest)))))
        mask: list[bool] = []
        while len(mask) < length:
            mask += [False] * int(rng.integers(8, 41)) + [True] * int(rng.integers(8, 41))
        mask = mask[:length]
        mask[-1] = True  # a conversation ends with the assistant's turn
        rows.append(Row(_words(rng, length, vocabulary), mask))
    return rows


def items(count: int, length: int, vocabulary: int) -> list[Row]:
    """Prompts with one answer: lengths within a fifth of `length`, the second half supervised."""
    rng = seeds.stream(0, "bench", "items", length)
    rows = []
    for _ in range(count):
        tokens = round(length * float(rng.uniform(0.8, 1.2)))
        rows.append(Row(_words(rng, tokens, vocabulary), [n >= tokens // 2 for n in range(tokens)]))
    return rows


def _words(rng: np.random.Generator, count: int, vocabulary: int) -> list[int]:
    return rng.integers(3, vocabulary, count).tolist()
