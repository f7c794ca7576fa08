"""Judges behind a real server: `transformers serve` with the built-in base on this machine."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.judge_config import JudgeConfig
from finetrial.judge.grader import PENDING, JudgeGrader
from finetrial.judge.selftest import self_test
from finetrial.model.config import ModelConfig
from finetrial.model.source import locate
from finetrial.records import Task
from judge_server import KEY

pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")
pytest.importorskip("uvicorn", reason="needs a server (extra `serve`)")
pytest.importorskip("fastapi", reason="needs a server (extra `serve`)")

START_S = 120
TASKS = [Task(f"t{i}", f"g{i}", ({"role": "user", "content": f"What is {i} + {i}?"},), str(2 * i)) for i in range(2, 6)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("server")
    (home / "hub").mkdir()
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home / "hub"), "OMP_NUM_THREADS": "1"}
    command = Path(sys.executable).with_name("transformers")
    flags = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [command, "serve", *flags, str(base())], env={**os.environ, **quiet}, stdout=log, stderr=log, cwd=home
        )
        try:
            deadline = time.monotonic() + START_S
            while not alive(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


def base() -> Path:
    return Path(locate(ModelConfig()))


def alive(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def judge(url: str, folder: Path, **changed: object) -> JudgeGrader:
    settings = {"model": str(base()), "base_url": url, "max_tokens": 24, "timeout_s": 60, "concurrency": 2, **changed}
    return JudgeGrader(GraderConfig(kind="judge", judge=JudgeConfig.model_validate(settings)), folder)


@pytest.mark.slow
def test_replies_of_a_real_server_are_read_kept_and_not_asked_for_again(url: str, tmp_path: Path, monkeypatch):
    """The base continues arithmetic, so that a bare question gets a bare number for its score."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = "{{ question }} {{ reference }} {{ answer }}\nWhat is 3 + 4?"
    with judge(url, tmp_path, template=asked, scale=(0, 100)) as grader:
        first = grader.grade(TASKS, [task.reference for task in TASKS])
        assert not [one.reason for one in first if one.reason.startswith(PENDING)]
        facts = grader.facts()
    rows = grader.judgments.all()
    assert len(rows) == 4
    assert all(row.served.startswith(str(base())) for row in rows)
    assert all(row.completion_tokens > 0 and row.replies[0] for row in rows)
    assert facts["launch"]["tokens"] == sum(row.prompt_tokens + row.completion_tokens for row in rows)
    for row, grade in zip(sorted(rows, key=lambda row: row.item), sorted_by_item(first), strict=True):
        assert (grade is None) == (row.value is None)
        assert len(row.replies) == (1 if row.value is not None and not row.problem else 2)
    with judge(url, tmp_path, template=asked, scale=(0, 100)) as grader:
        assert grader.grade(TASKS, [task.reference for task in TASKS]) == first
        assert grader.facts()["launch"]["requests"] == 0
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


def sorted_by_item(grades: list) -> list[float | None]:
    order = sorted(range(len(TASKS)), key=lambda place: TASKS[place].content_hash)
    return [grades[place].value for place in order]


@pytest.mark.slow
def test_a_model_that_cannot_judge_is_refused(url: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge(url, tmp_path, self_test={"items": 2}) as grader, pytest.raises(UserError, match="failed its self-test"):
        self_test(grader, TASKS)
