"""A tiny random base and a campaign that trains on it within seconds."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from finetrial.model.config import ModelConfig
from finetrial.model.source import locate

CAMPAIGN = """
[campaign]
name = "tiny"
question = "Does selection matter?"
seeds = [1, 2, 3]
max_steps = 3

[model]
base = "{base}"
lora_rank = 2
max_length = 512

[data]
source = "world:shell?count=240&seed=5"

[training]
learning_rate = 5e-3
batch_size = 2

[split]
test_sets.gold = {{ kind = "gold", n = 4 }}
test_sets.random = {{ kind = "random", n = 5 }}

[[campaign.conditions]]
name = "topq"
selection = {{ strategy = "top", n = 12 }}

[[campaign.conditions]]
name = "random"
selection = {{ strategy = "random", n = 12 }}

[[contrasts]]
candidate = "topq"
baseline = "random"
suite = "gold"

[[contrasts]]
candidate = "random"
baseline = "base"
suite = "random"
minus_suite = "gold"
"""


PRACTICE = """
[campaign]
name = "practice"
question = "Which credit rule learns?"
seeds = [1, 2, 3]
max_steps = 2

[model]
base = "{base}"
lora_rank = 2
max_length = 128

[tasks]
source = "world:arithmetic?count=60&seed=5"
held_out = 5

[rl]
group_size = 4
reward = "random"
sampling = {{ max_tokens = 5 }}

[training]
learning_rate = 5e-3
batch_size = 2

[evaluation]
max_tokens = 5

[[campaign.conditions]]
advantage_mode = "grpo"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "gtpo_sepa"
"""
"""Chance rewards, since a random base answers nothing right: the loop learns from noise, and measures the truth."""


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of 20 thousand numbers with the built-in tokenizer, saved as a folder."""
    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = AutoTokenizer.from_pretrained(locate(ModelConfig()))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def campaign(tiny_base: Path, tmp_path: Path) -> Path:
    """A campaign file of two conditions and three seeds on the tiny base."""
    path = tmp_path / "tiny.toml"
    path.write_text(CAMPAIGN.format(base=tiny_base))
    return path


@pytest.fixture
def practice(tiny_base: Path, tmp_path: Path) -> Path:
    """A campaign file of reinforcement learning: two conditions and three seeds on the tiny base."""
    path = tmp_path / "practice.toml"
    path.write_text(PRACTICE.format(base=tiny_base))
    return path
