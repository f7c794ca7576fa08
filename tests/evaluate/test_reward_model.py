"""Reward models, on a tiny random one."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from finetrial.errors import UserError
from finetrial.evaluate.reward_model import RewardModel, load_reward_model, reward_outcomes, rewards
from finetrial.model.config import ModelConfig
from finetrial.model.source import locate
from finetrial.records import Task

TASKS = [Task(f"t{i}", f"g{i}", ({"role": "user", "content": f"What is {i} + {i}?"},), str(2 * i)) for i in range(4)]
TEXTS = ["0", "It is 2. Answer: 2", "Answer: 5", "I do not know what that would be."]


def settings(vocabulary: int, labels: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.3, num_labels=labels,
        pad_token_id=0,
    )  # fmt: skip


def saved(folder: Path, model_class: type = Qwen3ForSequenceClassification, labels: int = 1) -> ModelConfig:
    tokenizer = AutoTokenizer.from_pretrained(locate(ModelConfig()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(settings(len(tokenizer), labels))
        if labels == 1 and hasattr(model, "score"):
            torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(base=str(folder), dtype="float32")


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return load_reward_model(saved(tmp_path_factory.mktemp("reward")), "cpu")


def test_rewards_are_the_model_s_own(reward_model: RewardModel):
    found = rewards(reward_model, TASKS, TEXTS)
    for task, text, value in zip(TASKS, TEXTS, found, strict=True):
        chat = [*map(dict, task.messages), {"role": "assistant", "content": text}]
        rendered = str(reward_model.tokenizer.apply_chat_template(chat, tokenize=False))
        ids = torch.tensor([reward_model.tokenizer(rendered, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            alone = float(reward_model.model(input_ids=ids).logits[0, 0])
        assert value == pytest.approx(alone, abs=1e-5)
    assert len({round(value or 0, 4) for value in found}) == 4


def test_rewards_do_not_depend_on_the_batch(reward_model: RewardModel):
    one_by_one = rewards(reward_model, TASKS, TEXTS, batch_tokens=1)
    assert rewards(reward_model, TASKS, TEXTS) == pytest.approx(one_by_one, abs=1e-5)
    twice = rewards(reward_model, [*TASKS, *TASKS], [*TEXTS, *TEXTS])
    assert twice[:4] == twice[4:]


def test_what_is_too_long_is_missing_and_not_cut(reward_model: RewardModel):
    found = reward_outcomes(reward_model, [TASKS[0], TASKS[0]], ["0", "word " * 200], "new", 1, "exam", "h")
    assert [(one.item, one.sample, one.metric, one.value is None) for one in found] == [
        ("t0", 0, "reward", False),
        ("t0", 1, "reward", True),
    ]
    assert found[0].suite_hash == "h"


def test_what_is_no_reward_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="has 3 outputs; expected 1"):
        load_reward_model(saved(tmp_path / "three", labels=3), "cpu")
    with pytest.raises(UserError, match=r"lack score\.weight; it was never trained"):
        load_reward_model(saved(tmp_path / "causal", Qwen3ForCausalLM), "cpu")
    with pytest.raises(UserError, match=r"nowhere"):
        load_reward_model(ModelConfig(base=str(tmp_path / "nowhere")), "cpu")
