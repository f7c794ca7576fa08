"""`finetrial squeeze` as a user types it."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from finetrial.cli import app
from finetrial.errors import UserError
from finetrial.model.adapters import Adapter
from finetrial.model.peft_format import load_peft, save_peft


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder whose adapter has rank 4 but needs 2 in one layer and 1 in the other."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.{name}": (
            torch.linalg.qr(torch.randn(12, 4, generator=generator))[0] * torch.tensor(sizes),
            torch.linalg.qr(torch.randn(10, 4, generator=generator))[0].T.contiguous(),
        )
        for name, sizes in {"up": [3.0, 0.01, 0, 0], "down": [1.0, 1.0, 0.01, 0]}.items()
    }
    folder = tmp_path / "a_s1"
    save_peft(Adapter(4, 8.0, False, 0.0, ("up", "down"), weights), folder / "adapter", base="some/base")
    return folder


def squeeze(*arguments: object):
    return CliRunner().invoke(app, ["squeeze", *map(str, arguments)])


def test_it_prints_ranks_and_a_recommendation(run_folder: Path) -> None:
    done = squeeze(run_folder)
    assert done.exit_code == 0
    assert "recommended rank: 2, the smallest at which every layer keeps 0.95" in done.output
    assert "model.down" in done.output
    assert "90.0% in model.up" not in done.output
    assert "81.8% in model.up" in done.output
    assert "not task quality" in done.output
    assert [path.name for path in run_folder.iterdir()] == ["adapter"]


def test_json_carries_everything(run_folder: Path, tmp_path: Path) -> None:
    done = squeeze(run_folder / "adapter", "--min-variance-retention", 0.7, "--json", "--output", tmp_path / "small")
    facts = json.loads(done.output)
    assert (facts["recommended_rank"], facts["rank_by_mean_alone"], facts["source_rank"]) == (2, 1, 4)
    assert facts["min_at_rank_by_mean_alone"] == pytest.approx(0.5, abs=1e-3)
    assert facts["layers"]["model.down"]["singular_values"][:2] == pytest.approx([2.0, 2.0], abs=1e-3)
    assert (facts["chosen"]["rank"], facts["output"]) == (2, str(tmp_path / "small"))
    assert load_peft(tmp_path / "small").rank == 2


def test_a_rank_may_be_named_and_nothing_is_overwritten(run_folder: Path, tmp_path: Path) -> None:
    assert "rank 3 written" in squeeze(run_folder, "--rank", 3, "--output", tmp_path / "small").output
    assert load_peft(tmp_path / "small").alpha == 6.0
    again = squeeze(run_folder, "--rank", 2, "--output", tmp_path / "small")
    assert isinstance(again.exception, UserError)
    assert load_peft(tmp_path / "small").rank == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a_s1", "--rank", "5"], "expected 1 to 4"),
        (["a_s2"], "did you mean 'a_s1'"),
        (["."], r"no adapter_config\.json"),
        (["a_s1", "--min-variance-retention", "95"], "above 0 and at most 1"),
    ],
)
def test_bad_input_is_named(run_folder: Path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(run_folder.parent)
    done = squeeze(*arguments)
    assert isinstance(done.exception, UserError)
    assert re.search(message, str(done.exception))
