"""The built-in base loads, is what its record says, and its key follows its content."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetrial.data.worlds import VERSIONS, arithmetic
from finetrial.errors import UserError
from finetrial.model import source
from finetrial.model.base import Base, load_base
from finetrial.model.config import ModelConfig
from finetrial.model.render import prompt_text

BUILTIN = ModelConfig()
RECORD = json.loads((source.locate(BUILTIN) / "training.json").read_text())


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(BUILTIN, "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(source.locate(BUILTIN), tmp_path / "copy"))


def complete(base: Base, prompts: list[str], new_tokens: int) -> list[str]:
    encoded = base.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ids_BT = base.model.generate(**encoded, max_new_tokens=new_tokens, do_sample=False)  # type: ignore[operator]
    return base.tokenizer.batch_decode(ids_BT[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def test_builtin_loads_frozen_and_in_evaluation_mode(base: Base) -> None:
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.dtype == torch.float32 == next(base.model.parameters()).dtype
    assert base.model.config._attn_implementation == "sdpa"
    assert base.vocabulary == len(base.tokenizer)
    assert base.pad_id != base.tokenizer.eos_token_id
    assert base.stop_ids == (base.tokenizer.eos_token_id,)
    assert base.key == source.base_key(BUILTIN)


def test_weights_are_bfloat16_numbers(base: Base) -> None:
    assert all(torch.equal(p, p.bfloat16().float()) for p in base.model.parameters())
    assert load_base(ModelConfig(dtype="bfloat16"), "cpu").dtype == torch.bfloat16


def test_builtin_is_small(base: Base) -> None:
    assert 1_000_000 <= base.parameters <= 4_000_000
    assert sum(path.stat().st_size for path in source.locate(BUILTIN).iterdir()) < 10 * 2**20


def test_record_agrees_with_the_files_and_the_worlds(base: Base) -> None:
    assert RECORD["parameters"] == base.parameters
    assert {"shell", "arithmetic", "replies", "physics"} <= set(RECORD["worlds"]) <= set(RECORD["held_out"])
    for world, facts in RECORD["worlds"].items():
        assert facts["version"] == VERSIONS[world]
        assert facts["train"]["split"] == "base"
        assert facts["test"]["split"] == "campaign"
    for greedy in RECORD["greedy"].values():
        assert greedy["n"] >= 500
        assert greedy["accuracy"] == greedy["correct"] / greedy["n"]
        assert greedy["ci95"][0] < greedy["accuracy"] < greedy["ci95"][1]
    assert RECORD["history"][-1]["step"] == RECORD["steps"]


def test_the_base_leaves_room_to_learn_and_to_forget() -> None:
    greedy = {world: facts["accuracy"] for world, facts in RECORD["greedy"].items()}
    assert 0.45 <= greedy["arithmetic"] <= 0.60
    assert 0.40 <= greedy["physics_numeric"] <= 0.75
    assert 0.6 <= RECORD["explanations"]["rubric_score"] <= 0.95
    assert 0.6 <= RECORD["replies"]["quality"] <= 0.9
    assert RECORD["replies"]["different"] > 0.9


def test_choosing_is_at_chance_although_the_reasons_are_known() -> None:
    """It states the right fact, then names the first letter: a floor that campaigns on choices have to know of."""
    chance, choice = 1 / 4, RECORD["greedy"]["physics_choice"]
    assert choice["ci95"][0] < chance + 0.02
    assert choice["answered"] == choice["n"]


def test_it_completes_in_the_worlds_form(base: Base) -> None:
    (row,) = arithmetic.generate(1, 5, "campaign")
    (text,) = complete(base, [prompt_text(row.messages[:1], base.tokenizer)], 100)
    assert arithmetic.answer_of(text) is not None


@pytest.mark.slow
def test_accuracy_is_what_the_record_says(base: Base) -> None:
    n = 40
    rows = list(arithmetic.generate(n, 99, "campaign"))
    texts = complete(base, [prompt_text(row.messages[:1], base.tokenizer) for row in rows], 128)
    correct = sum(arithmetic.answer_of(text) == row.meta["answer"] for text, row in zip(texts, rows, strict=True))
    # Binomial(40, p) with p near 1/2 has a standard deviation of 0.079; four of them pass all but 1 in 10,000 times.
    assert abs(correct / n - RECORD["greedy"]["arithmetic"]["accuracy"]) < 4 * 0.079


def test_key_is_of_the_content_not_of_the_path(folder: Path) -> None:
    assert source.base_key(ModelConfig(base=str(folder))) == source.base_key(BUILTIN)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_key_changes_with_every_file_that_makes_the_model(name: str, folder: Path) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")
    assert source.base_key(ModelConfig(base=str(folder))) != source.base_key(BUILTIN)


def test_key_ignores_notes_beside_the_model(folder: Path) -> None:
    (folder / "README.md").write_text("A note.")
    assert source.base_key(ModelConfig(base=str(folder))) == source.base_key(BUILTIN)


def test_key_needs_no_torch() -> None:
    code = (
        "import sys; from finetrial.model.source import base_key; from finetrial.model.config import ModelConfig; "
        "print(base_key(ModelConfig())); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == source.base_key(BUILTIN)


def test_large_files_of_the_hubs_cache_are_named_by_their_hash(folder: Path) -> None:
    weights = folder / "model.safetensors"
    blob = folder / "blobs" / source.file_digest(weights)
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    assert source.base_key(ModelConfig(base=str(folder))) == source.base_key(BUILTIN)


def test_a_missing_folder_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match=rf"is no folder \(did you mean '{folder}'"):
        load_base(ModelConfig(base=f"{folder}s"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_base(ModelConfig(base=str(tmp_path)))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_base(ModelConfig(base=str(folder)))


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(UserError, match="only a hub model has one"):
        load_base(ModelConfig(base=str(folder), revision="main"))


def test_a_model_that_is_no_language_model_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="is a 'vit' model; expected a causal language model"):
        load_base(ModelConfig(base=str(folder)))


def test_an_unknown_kind_of_model_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwenty"}))
    with pytest.raises(UserError, match="cannot be read"):
        load_base(ModelConfig(base=str(folder)))


def test_a_model_without_chat_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load_base(ModelConfig(base=str(folder)))


def test_an_unknown_name_is_looked_for_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'builtn' is no folder.*did you mean 'builtin'"):
        source.base_key(ModelConfig(base="builtn"))
