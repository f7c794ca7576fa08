"""Commands as a user types them: exit codes, messages, and what survives a kill or a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetrial.cli import app


def finetrial(folder: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` and check its exit code."""
    command = [sys.executable, "-m", "finetrial", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_every_command_is_documented_and_speaks_json() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    for command in app.registered_commands:
        callback = command.callback
        assert callback is not None
        name = command.name or callback.__name__
        assert callback.__doc__, f"{name} has no help"
        assert f"finetrial {name}" in guide, f"docs/guide.md does not show `finetrial {name}`"
        assert "as_json" in callback.__annotations__, f"{name} has no --json"


def test_a_campaign_from_the_command_line(campaign: Path, tmp_path: Path) -> None:
    finetrial(tmp_path, "check", "tiny.toml")
    planned = json.loads(finetrial(tmp_path, "plan", "tiny.toml", "--json").stdout)
    assert planned["to_train"] == 6
    done = finetrial(tmp_path, "run", "tiny.toml")
    assert "report: logs/tiny/report/index.html" in done.stdout
    assert (tmp_path / "logs/tiny/report/index.html").is_file()
    again = json.loads(finetrial(tmp_path, "why", "tiny.toml", "--json").stdout)
    assert {run["decision"] for run in again["runs"]} == {"REUSE"}
    state = json.loads(finetrial(tmp_path, "status", "--json").stdout)
    assert (state["done"], state["status"]) == (6, "complete")
    verdict = finetrial(tmp_path, "verdict", "logs/tiny", "--json", expect=20)
    assert {c["verdict"] for c in json.loads(verdict.stdout)["contrasts"]} <= {"INCONCLUSIVE", "CONFIRMED"}
    finetrial(tmp_path, "report", "logs/tiny")
    scored = json.loads(
        finetrial(
            tmp_path, "eval", "logs/tiny/runs/topq_s1/adapter", "--base", str(tmp_path / "base"), "--json",
            "--suite", "world:shell?count=5&seed=99",
        ).stdout
    )  # fmt: skip
    assert [row["model"] for row in scored] == ["base", "logs/tiny/runs/topq_s1/adapter"]


def test_a_campaign_of_practice_from_the_command_line(practice: Path, tmp_path: Path) -> None:
    checks = json.loads(finetrial(tmp_path, "check", "practice.toml", "--json").stdout)
    assert all(check["passed"] for check in checks)
    planned = json.loads(finetrial(tmp_path, "plan", "practice.toml", "--json").stdout)
    assert (planned["to_train"], [suite["name"] for suite in planned["suites"]]) == (6, ["held_out"])
    finetrial(tmp_path, "run", "practice.toml")
    again = json.loads(finetrial(tmp_path, "why", "practice.toml", "--json").stdout)
    assert {run["decision"] for run in again["runs"]} == {"REUSE"}
    assert json.loads(finetrial(tmp_path, "status", "--json").stdout)["done"] == 6
    told = json.loads(finetrial(tmp_path, "verdict", "logs/practice", "--json", expect=20).stdout)
    assert [contrast["metric"] for contrast in told["contrasts"]] == ["correct"] * 3


SWEEP = """
[campaign]
seeds = [42, 101, 202]
max_steps = 100

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "gtpo_sepa"

[model]
lora_rank = 128

[squeeze]
min_variance_retention = 0.95

[logging]
wandb_project = "test-sweep"
"""


@pytest.mark.slow
def test_a_published_sweep_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "test_sweep.toml").write_text(SWEEP)
    finetrial(tmp_path, "run", "test_sweep.toml", "--max-steps", "1")
    told = json.loads((tmp_path / "logs/test_sweep-dry/manifest.json").read_text())
    assert (told["status"], told["squeeze"]["source_rank"]) == ("dry", 128)
    assert {run["folder"] for run in told["runs"]} == {
        f"runs/{name}_s{seed}" for name in ("grpo+none", "maxrl+gtpo_sepa") for seed in (42, 101, 202)
    }
    for run in told["runs"]:
        (row,) = (tmp_path / "logs/test_sweep-dry" / run["folder"] / "metrics.jsonl").read_text().splitlines()
        assert 0 <= json.loads(row)["correct_rate"] <= 1


@pytest.fixture(autouse=True)
def base_beside(tiny_base: Path, tmp_path: Path) -> None:
    """The tiny base under a short name."""
    (tmp_path / "base").symlink_to(tiny_base)


def test_killed_anywhere_it_goes_on_and_ends_the_same(campaign: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    finetrial(tmp_path, "run", "tiny.toml", "--logs", "whole", "--set", "training.save_every=1")
    expected = (whole / "tiny" / "outcomes.parquet").read_bytes()
    command = [sys.executable, "-m", "finetrial", "run", "tiny.toml", "--set", "training.save_every=1"]
    logs = tmp_path / "logs" / "tiny"
    for evidence in ("runs/*/metrics.jsonl", ".checkpoint/*/*", "../.store/train/*/done.json", "../.store/evaluate/*"):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(logs.glob(evidence)):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finetrial(tmp_path, "run", "tiny.toml", "--set", "training.save_every=1")
    assert (logs / "outcomes.parquet").read_bytes() == expected
    for metrics in logs.glob("runs/*/metrics.jsonl"):
        assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3]


def test_a_signal_writes_a_checkpoint_and_exits_130(campaign: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetrial", "run", "tiny.toml", "--set", "campaign.max_steps=400"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(p.stat().st_size for p in tmp_path.glob("logs/tiny/runs/*/metrics.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "holds the state" in said
    assert list(tmp_path.glob("logs/tiny/.checkpoint/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.lora_rnk=3"], "tiny.toml: [model] unknown key 'lora_rnk' (did you mean"),
        (["--set", "campaign.conditions.topq.selection.n=9999"], "condition topq, seed 1: selection"),
        (["--set", "data.source=broken.jsonl"], "broken.jsonl:2: "),
        (["--set", "data.source=columns.jsonl"], "columns.jsonl:1: unknown shape with the keys"),
        (["--executor", "locl"], "expected local"),
    ],
)  # fmt: skip
def test_bad_input_exits_2_and_names_the_place(
    campaign: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "broken.jsonl").write_text(json.dumps(row) + "\n{broken\n")
    (tmp_path / "columns.jsonl").write_text(json.dumps({"colour": "red", "size": 3}) + "\n")
    done = finetrial(tmp_path, "run", "tiny.toml", *arguments, expect=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "logs" / "tiny" / "manifest.json").exists()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small tmpfs needs root")
def test_a_full_disk_loses_nothing(campaign: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        done = finetrial(tmp_path, "run", "tiny.toml", "--logs", "small", expect=2)
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(small.rglob("*.partial"))
        kept = len(list(small.glob(".store/train/*/done.json")))
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        decided = json.loads(finetrial(tmp_path, "why", "tiny.toml", "--logs", "small", "--json").stdout)
        assert sum(run["decision"] == "REUSE" for run in decided["runs"]) == kept
        finetrial(tmp_path, "run", "tiny.toml", "--logs", "small")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_workshop(tmp_path: Path) -> None:
    source = "world:shell?count=60&seed=3"
    told = json.loads(finetrial(tmp_path, "score", source, "--output", "scores.csv", "--json").stdout)
    assert told["scores"]["rows"] == 60
    assert (tmp_path / "scores.csv").read_text().startswith('"id","group"')
    finetrial(tmp_path, "select", source, "--output", "best.jsonl", "--strategy", "top", "--n", "5")
    assert len((tmp_path / "best.jsonl").read_text().splitlines()) == 5
    again = json.loads(finetrial(tmp_path, "score", "best.jsonl", "--output", "again.parquet", "--json").stdout)
    assert again["pool"]["formats"] == {"finetrial": 5}
    finetrial(tmp_path, "select", source, "--output", "best.jsonl", "--n", "5", expect=2)
    finetrial(tmp_path, "init", "quickstart")
    assert (tmp_path / "quickstart.toml").is_file()
    finetrial(tmp_path, "init", "quickstart", expect=2)
    assert "did you mean 'quickstart'" in finetrial(tmp_path, "init", "quickstrat", expect=2).stderr
    assert json.loads(finetrial(tmp_path, "doctor", "--json").stdout)["packages"]["train"]["torch"]


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    finetrial(tmp_path, "init", "quickstart")
    (tmp_path / "transformers.py").write_text("raise ModuleNotFoundError('no transformers', name='transformers')\n")
    done = finetrial(tmp_path, "plan", "quickstart.toml", expect=2)
    assert "pip install 'finetrial[train]'" in done.stderr
    assert "Traceback" not in done.stderr
