"""`standardise` and `lint` as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetrial.cli import app
from finetrial.errors import UserError

WORLD = "world:physics_mixed?count=300"
FORMAT = ["--template", "{explanation} Answer: {answer}", "--template", "{explanation}", "--join", " "]


def run(*arguments: str, expect: int = 0) -> str:
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == expect, done.output
    return done.output


def test_counting_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = run("standardise", WORLD)
    assert "a JSON object as text" in told
    assert "nothing written" in told
    assert max(map(len, told.splitlines())) <= 100
    assert list(tmp_path.iterdir()) == []


def test_standardise_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    facts = json.loads(run("standardise", WORLD, "-o", "out.jsonl", *FORMAT, "--json"))
    assert facts["residual"] == {}
    assert set(facts["files"]) == {"output", "map", "report", "page"}
    assert all(Path(path).is_file() for path in facts["files"].values())
    assert "## Rewritten: json" in Path("out.report.md").read_text()
    report = json.loads(Path("out.report.json").read_text())
    assert report["before"]["shapes"]["json"]["rows"] > 0
    assert "json" not in report["after"]["shapes"]
    told = run("standardise", "out.jsonl", "--undo", "out.map.jsonl", "-o", "back.jsonl")
    assert "300 rows written" in told
    again = json.loads(run("standardise", "back.jsonl", "--json"))
    first = json.loads(run("standardise", WORLD, "--json"))
    assert {s: f["rows"] for s, f in again["shapes"].items()} == {s: f["rows"] for s, f in first["shapes"].items()}


def test_the_gate_fails_with_the_templates_that_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "finetrial", "standardise", WORLD, "-o", "out.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert r"--template 'Explanation: {explanation}\nAnswer: {answer}'" in " ".join(done.stdout.split())
    assert "gate:" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_file_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("format.toml").write_text(
        'templates = ["{text}\\nAnswer: {answer}", "{text}"]\njoin = " "\n[fields]\ntext = ["explanation"]\n'
        '[rules]\nmojibake = "keep"\n'
    )
    facts = json.loads(
        run("standardise", WORLD, "-o", "o.jsonl", "--config", "format.toml", "--rule", "tiny=keep", "--json")
    )
    assert facts["format"]["rules"]["tiny"] == facts["format"]["rules"]["mojibake"] == "keep"
    assert facts["after"]["shapes"]["tiny"]["rows"] == facts["before"]["shapes"]["tiny"]["rows"]
    for wrong, told in {
        "tny=drop": "did you mean 'tiny'",
        "tiny=rewrite": "only kept or dropped",
        "tiny": "expected SHAPE=ACTION",
        "tiny=remove": "keep",
    }.items():
        with pytest.raises(UserError, match=told):
            run("standardise", WORLD, "--rule", wrong)
    Path("format.toml").write_text("template = []\n")
    with pytest.raises(UserError, match="did you mean 'templates'"):
        run("standardise", WORLD, "--config", "format.toml")


def test_killed_in_the_middle_nothing_is_visible(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetrial", "standardise", "world:physics_mixed?count=20000", "-o", "out.jsonl"]
    process = subprocess.Popen([*command, *FORMAT], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        assert process.poll() is None, "finished before it was killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())


def test_lint_reads_well_and_speaks_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = run("lint", WORLD, "--against", "world:physics_choice?count=50&seed=9")
    assert max(map(len, told.splitlines())) <= 100
    for part in ("empty turn", "Largest clusters", "Items that share 13 words", "Lengths", "languages of outputs"):
        assert part in told
    facts = json.loads(run("lint", WORLD, "--json", "--similarity", "1", "--limit", "50"))
    assert facts["rows"] == 50
    assert facts["clusters"] == []


def test_strict_makes_errors_an_exit_code(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps({"prompt": "What is it?", "completion": "It is a plain text."}) + "\n")
    assert "nothing found" in run("lint", str(good), "--strict")
    run("lint", WORLD, "--strict", expect=1)
    run("lint", WORLD)
    with pytest.raises(UserError, match="no such file"):
        run("lint", str(tmp_path / "none.jsonl"))


def test_the_tokenizer_counts_and_shows_the_mask(tmp_path: Path) -> None:
    rows = [
        {"prompt": "What is it?", "completion": "It is a plain text."},
        {"prompt": "And this?", "completion": "word " * 80},
        {"messages": [{"role": "user", "content": "long " * 90}, {"role": "assistant", "content": "Yes, it is."}]},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = json.loads(run("lint", str(source), "--model", "builtin", "--max-length", "64", "--json"))
    assert {f["check"]: f["rows"] for f in facts["findings"] if f["check"] in ("cut", "nothing left")} == {
        "cut": 1,
        "nothing left": 1,
    }
    pieces = facts["label_masks"][0]["pieces"]
    assert [piece["supervised"] for piece in pieces][:2] == [False, True]
    assert pieces[1]["text"].startswith("It is a plain text.")
    assert "What is it?" in pieces[0]["text"]
    told = run("lint", str(source), "--model", "builtin", "--max-length", "64")
    assert "⟦It is a plain text.<|im_end|>⟧" in told


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UserError, match="no folder"):
        run("lint", WORLD, "--model", "./nowhere")
