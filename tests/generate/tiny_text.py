"""A tokenizer of single characters for the tiny models, and requests to them."""

import string
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from finetrial import seeds
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Completion, Request
from finetrial.model.adapters import Adapter, fresh_adapter
from finetrial.model.config import ModelConfig
from tiny import VOCABULARY

STOP = 2
SPECIALS = ["<pad>", "<s>", "</s>"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """61 tokens: padding, beginning, end, and one character each."""
    tokens = SPECIALS + list(string.ascii_letters + "_ \n.,;")
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    backend.decoder = decoders.Fuse()  # type: ignore[assignment]
    assert len(tokens) == VOCABULARY
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def tiny_adapter(model, seed: int, rank: int = 4) -> Adapter:
    """An adapter that changes what the model says."""
    adapter = fresh_adapter(model, ModelConfig(lora_rank=rank), seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        path: (a_IR, torch.randn(b_RO.shape, generator=generator) * 0.2)
        for path, (a_IR, b_RO) in adapter.weights.items()
    }
    return Adapter(adapter.rank, adapter.alpha, adapter.rslora, adapter.dropout, adapter.targets, weights)


def prompts(count: int, seed: int, low: int = 1, high: int = 20) -> list[np.ndarray]:
    """Random prompts of `low` to `high` tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(3, VOCABULARY, int(random.integers(low, high + 1))) for _ in range(count)]


def requests(
    texts: Sequence[np.ndarray], adapters: Sequence[int | None], samples: int = 3, **sampling: object
) -> list[Request]:
    """Every prompt under every adapter; samples of one prompt share their keys over adapters."""
    config = SamplingConfig(**{"max_tokens": 16, **sampling})
    return [
        Request(text_T, adapter, tuple(seeds.derive(0, "sample", i, j) for j in range(samples)), config)
        for i, text_T in enumerate(texts)
        for adapter in adapters
    ]


def ids_of(found: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    """Tokens by request and sample."""
    return [[completion.ids_T.tolist() for completion in completions] for completions in found]
