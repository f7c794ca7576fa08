"""Graders of every kind proven, and a campaign whose suite is graded by a judge."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finetrial.campaign.execute import RunOptions, run
from finetrial.campaign.spec import load_spec
from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.judge_config import JudgeConfig
from finetrial.judge.grader import open_grader
from finetrial.judge.judgments import Judgments
from finetrial.judge.proof import prove
from finetrial.records import Task
from judge_server import KEY, fair, part, serving

pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")

TASKS = [
    Task(f"t{i}", f"g{i}", ({"role": "user", "content": f"What is {i} plus {i}?"},), f"={2 * i}") for i in range(8)
]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize("kind", ["single", "pairwise"])
def test_a_judge_is_tested_and_charted_in_every_session(kind, tmp_path: Path):
    with serving(fair) as server:
        judge = JudgeConfig.model_validate({"model": "judge", "base_url": server.url, "retries": 0, "kind": kind})
        config = GraderConfig(kind="judge", judge=judge)
        for launch in (1, 2):
            with open_grader(config, "exact", tmp_path) as grader:
                facts = json.loads(json.dumps(prove(grader, TASKS)))
            assert facts["self_test"]["passed"]
            assert facts["control"]["in_control"]
            assert len(facts["control"]["sessions"]) == launch
        server.rule = lambda prompt, _: '{"score": 10, "verdict": "tie"}'
        with open_grader(config, "exact", tmp_path) as grader, pytest.raises(UserError, match="has drifted"):
            prove(grader, TASKS)


def test_other_kinds_are_proven_by_their_gold_answers(tmp_path: Path):
    with open_grader(GraderConfig(), "exact", tmp_path) as grader:
        assert prove(grader, TASKS) == {}
    wrong = [Task("t", "g", TASKS[0].messages, "7", gold="Answer: 8")]
    with open_grader(GraderConfig(), "exact", tmp_path) as grader, pytest.raises(UserError, match="the gold answer"):
        prove(grader, wrong)


def by_last_word(prompt: str, _: int) -> str:
    words = part(prompt, "answer").split()
    right = bool(words) and words[-1] == part(prompt, "reference_answer")
    return json.dumps({"reason": "by the last word", "score": 10 if right else 1})


def test_a_campaign_with_a_judged_suite(campaign: Path, tmp_path: Path):
    with serving(by_last_word) as server:
        suite = f"""
[[suites]]
name = "judged"
kind = "tasks"
source = "world:arithmetic?count=6&seed=9"
max_tokens = 5
grader = {{ kind = "judge", judge = {{ model = "judge", base_url = "{server.url}", retries = 0 }} }}
"""
        path = tmp_path / "judged.toml"
        path.write_text(campaign.read_text().replace("seeds = [1, 2, 3]", "seeds = [1, 2]") + suite)
        folder = run(load_spec(path, ()), RunOptions(logs=tmp_path / "logs"), lambda _: None)
        folder = run(load_spec(path, ()), RunOptions(logs=tmp_path / "logs"), lambda _: None)
    (judge,) = json.loads((folder.path / "manifest.json").read_text())["judges"]
    assert judge["model"] == "judge"
    assert judge["self_test"]["passed"]
    assert len(judge["control"]["sessions"]) == 2
    assert judge["launch"]["graded"] == 0, "what was judged in the first launch is not judged again"
    assert (judge["outcomes"]["graded"], judge["outcomes"]["lost"]) == (6 * (1 + 2 * 2), 0)
    assert 0 < judge["outcomes"]["judgments"] <= 6 * 5
    rows = [row for row in pq.read_table(folder.path / "outcomes.parquet").to_pylist() if row["suite"] == "judged"]
    judged = [row for row in rows if row["metric"] == "correct"]
    assert len(judged) == 6 * (1 + 2 * 2)
    assert all(row["value"] is not None and 0 <= row["value"] <= 1 for row in judged)
    assert Judgments(next(tmp_path.rglob("judgments.sqlite")).parent).all()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
