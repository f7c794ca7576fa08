"""Tiny random models and rows for tests, float32 on the CPU."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finetrial.model.config import ModelConfig
from finetrial.model.render import Rendered
from finetrial.train.config import TrainConfig
from finetrial.train.runs import RunData

VOCABULARY = 61
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 8}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 2.0, "sliding_window": 8}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 8}),
}


def tiny_model(kind: str = "qwen3", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random causal model of one architecture: 2 layers of 16 features, wide weights so that logits differ."""
    config_class, model_class, special = KINDS[kind]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config_class(**{**sizes, **special, **changes})).eval()


def random_rows(count: int, seed: int, low: int = 5, high: int = 24) -> list[Rendered]:
    """Rows of `low` to `high` tokens whose last part is supervised, sometimes with a gap and a tail."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(random.integers(low, high + 1))
        mask_T = np.arange(length) >= int(random.integers(1, length))
        if length > 8:
            mask_T[length - 3] = False
            mask_T[length - 1] = bool(random.integers(2))
        ids_T = random.integers(1, VOCABULARY, length).astype(np.int32)
        rows.append(Rendered(ids_T, mask_T, supervised_bytes=3 * int(mask_T.sum()), truncated=0))
    return rows


def run_data(
    folder: Path,
    condition: str = "a",
    seed: int = 0,
    rows: list[Rendered] | None = None,
    model: ModelConfig | None = None,
    **training: object,
) -> RunData:
    """A run over 13 random rows unless told otherwise."""
    return RunData(
        condition=condition,
        seed=seed,
        rows=random_rows(13, seed=100 + seed) if rows is None else rows,
        train=TrainConfig(**{"batch_size": 4, "learning_rate": 1e-2, **training}),
        model=model or ModelConfig(lora_rank=4),
        folder=folder / f"{condition}_s{seed}",
        key=f"{condition}-{seed}",
    )
