"""Conversations that a judge grades, and people's labels of them: end to end in a tiny campaign."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetrial.campaign.execute import RunOptions, run
from finetrial.campaign.folder import Folder
from finetrial.campaign.labelling import COLUMNS, label_of, write_sheet
from finetrial.campaign.preflight import preflight
from finetrial.campaign.spec import load_spec
from finetrial.errors import UserError
from finetrial.judge.grader import FOLDER
from finetrial.judge.judgments import Judgments
from finetrial.report.build import build
from judge_server import KEY, JudgeServer, part, serving

pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")

CAMPAIGN = """
[campaign]
name = "talk"
seeds = [1, 2, 3]
max_steps = 2
primary_metric = "score"

[model]
base = "{base}"
lora_rank = 2
max_length = 512

[data]
source = "world:shell?count=60&seed=5"

[training]
learning_rate = 5e-2
batch_size = 2

[split]
test_sets.random = {{ kind = "random", n = 3 }}

[evaluation]
max_tokens = 6

[[campaign.conditions]]
name = "new"
selection = {{ strategy = "random", n = 12 }}

[[contrasts]]
candidate = "new"
baseline = "base"
suite = "talk"

[[suites]]
name = "talk"
kind = "conversation"
source = "{source}"
temperatures = "mt_bench"
samples = {samples}
temperature = 0.7

[suites.grader]
kind = "judge"
judge = {{ model = "judge", base_url = "{url}", temperature = 0.5, concurrency = 2, retries = 0 }}
"""

DIALOGUES = [
    *({"question_id": 81 + k, "category": "writing", "turns": [f"Write about {what}.", "Now shorter."]}
      for k, what in enumerate(("the sea", "a hill", "rain", "bread", "an owl"))),
    {"question_id": 111, "category": "math", "turns": ["What is 2 + 2?", "And plus 3?"], "reference": ["4", "7"]},
    {"question_id": 112, "category": "math", "turns": ["What is 5 + 1?", "And plus 2?"], "reference": ["6", "8"]},
]  # fmt: skip


BASELINE = 8
"""Questions of a session of the control chart: four gold answers and four wrong ones; half of a digit is the digit."""


def by_last_word(prompt: str, _: int = 0) -> str:
    """10 for the reference, 1 for what is something else; where there is none, by the length of the answer."""
    reference, answer = part(prompt, "reference_answer"), part(prompt, "answer")
    free = 1 + len(answer) % 10
    right = answer.split()[-1:] == [reference]
    return json.dumps({"reason": "a rule", "score": (10 if right else 1) if reference else free})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(by_last_word) as running:
        yield running


def written(tmp_path: Path, base: Path, url: str, samples: int = 1, more: str = "") -> Path:
    source = tmp_path / "question.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES))
    path = tmp_path / "talk.toml"
    path.write_text(CAMPAIGN.format(base=base, source=source, url=url, samples=samples) + more)
    return path


def launch(path: Path, logs: Path) -> Folder:
    return run(load_spec(path), RunOptions(logs=logs), lambda _: None)


def scores(folder: Folder) -> dict[tuple[Any, ...], float | None]:
    rows = pq.read_table(folder.path / "outcomes.parquet").to_pylist()
    return {
        (row["condition"], row["seed"], row["item"], row["sample"]): row["value"]
        for row in rows
        if row["metric"] == "score"
    }


def seed_of(key: str) -> int:
    """The seed that goes out with a question."""
    return int(key[:15], 16) % 2**31


@pytest.mark.slow
def test_a_judged_campaign_that_is_killed_and_resumed_judges_nothing_twice(
    tmp_path: Path, tiny_base: Path, server: JudgeServer
) -> None:
    server.latency_s = 0.1
    path, logs = written(tmp_path, tiny_base, server.url, samples=2), tmp_path / "logs"
    command = [sys.executable, "-m", "finetrial", "run", str(path), "--logs", str(logs)]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while sum("Write about" in str(request) for request in [*server.asked]) < 20:  # no self-test asks that
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # what was on its way is answered to nobody
    store = Judgments(logs / ".store" / FOLDER)
    kept = {one.key for one in store.all()}
    assert len(kept) > 20
    assert not (logs / "talk" / "outcomes.parquet").exists()

    server.asked.clear()
    folder = launch(path, logs)
    asked = [request["seed"] for request in server.asked]
    assert asked
    assert not {seed_of(key) for key in kept} & {*asked}
    assert len(asked) == len({*asked})
    found = scores(folder)
    assert len(found) == 14 * 2 * (1 + 3)  # turns, samples, models
    assert all(value is not None and 1 <= value <= 10 for value in found.values())
    texts = pq.read_table(folder.path / "completions.parquet").to_pylist()
    assert {row["grade"] for row in texts if row["item"].startswith("111")} <= {0.0, 1.0}
    (judge,) = (folder.manifest() or {})["judges"]
    assert judge["self_test"]["passed"]
    assert (len(judge["control"]["sessions"]), judge["control"]["in_control"]) == (2, True)
    assert judge["outcomes"] | {"graded": 112, "missing": 0, "lost": 0} == judge["outcomes"]
    assert judge["launch"]["graded"] <= 112
    every = {one.key: one for one in store.all()}
    assert len(every) == len(kept) + len(asked)

    server.asked.clear()
    again = launch(path, logs)
    assert len(server.asked) == BASELINE
    assert scores(again) == found
    report = build(folder.path)
    page = report.html.read_text()
    assert "completions graded</dt><dd>112</dd>" in page
    assert "Control chart of judge, one answer at a time: in control" in page
    assert f"requests, with those of self-test and control chart {BASELINE}" in page


def test_people_label_a_blind_sheet_that_corrects_the_judge(
    tmp_path: Path, tiny_base: Path, server: JudgeServer
) -> None:
    path, logs = written(tmp_path, tiny_base, server.url), tmp_path / "logs"
    folder = launch(path, logs)
    sheet = tmp_path / "sheet.csv"
    assert write_sheet(folder.path, "talk", sheet, items=5) == 5 * 2 * 2  # items, turns, conditions
    with sheet.open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert "new" not in {value for row in rows for value in row.values()}
    texts = {label_of(row): row for row in pq.read_table(folder.path / "completions.parquet").to_pylist()}
    drawn = [texts[row["label"]] for row in rows]
    assert [one["text"] for one in drawn] == [row["completion"].removeprefix("'") for row in rows]
    assert {one["condition"] for one in drawn} == {"new", "base"}
    math = {one["group"] for one in drawn if int(one["group"]) > 100}
    assert len({one["group"] for one in drawn} - math) == 4  # 5 of 7 items, each category in its proportion
    second = next(row for row, one in zip(rows, drawn, strict=True) if one["item"].endswith("/2"))
    assert second["prompt"].startswith("USER:\n")
    assert "\n\nASSISTANT:\n" in second["prompt"]
    with pytest.raises(UserError, match="is there already, and may hold people's labels"):
        write_sheet(folder.path, "talk", sheet)
    with pytest.raises(UserError, match=r"no condition 'nwe' wrote on 'talk' \(did you mean 'new'\?\)"):
        write_sheet(folder.path, "talk", tmp_path / "other.csv", conditions=["nwe"])

    labelled = tmp_path / "talk.toml"
    more = f'\n[[analysis.labels]]\nsuite = "talk"\nsource = "{sheet}"\n'
    labelled.write_text(labelled.read_text() + more)
    blank = launch(path, logs).path
    told = json.loads(build(blank).json.read_text())
    assert told["people"] == []
    assert "of suite talk are not used" in told["unused_labels"][0]
    assert "no label of suite 'talk' is filled in" in (blank / "report" / "verdict.md").read_text()
    fill(sheet, rows, lambda row: str(min(10, 1 + 9 * texts[row["label"]]["grade"] + 2)))
    before, keys = (folder.path / "outcomes.parquet").read_bytes(), trained(folder)
    server.asked.clear()
    machine = json.loads(build(launch(path, logs).path).json.read_text())
    assert len(server.asked) == BASELINE
    assert ((folder.path / "outcomes.parquet").read_bytes(), trained(folder)) == (before, keys)
    (one,) = machine["people"]
    assert (one["contrast"], one["corrected"]["n_labelled"], one["n_completions"]) == ("new vs base on talk", 5, 20)
    assert one["corrected"]["ci"][0] < one["corrected"]["ci"][1]
    assert one["kappa"]["kappa"] < 1
    assert one["weighted_kappa"] is not None
    assert (folder.manifest() or {})["labels"][0]["labels"] == 20
    told = (folder.path / "report" / "verdict.md").read_text()
    assert "new vs base on talk: corrected by people's labels of 5 items" in told
    assert "of other seeds the verdict's own interval speaks" in told
    assert "Corrected by people’s labels" in (folder.path / "report" / "index.html").read_text()
    (check,) = [one for one in preflight(load_spec(path), logs, lambda _: None) if one.check.startswith("labels")]
    assert check.detail == "20 labels"

    for value, told in [
        ("11", r"\[\[analysis\.labels\]\] 'talk': label 11 is outside 1\.\.10"),
        ("good", "value is 'good', expected a number"),
    ]:
        fill(sheet, rows, lambda _, value=value: value)
        with pytest.raises(UserError, match=told):
            launch(path, logs)
    fill(sheet, [{**rows[0], "label": "0" * 16}, *rows[1:]], lambda _: "5")
    (note,) = json.loads(build(launch(path, logs).path).json.read_text())["unused_labels"]
    assert "1 of 20 labels, such as 0000000000000000, are of no completion" in note
    sheet.write_bytes("label,value\ncafé,1\n".encode("cp1252"))
    with pytest.raises(UserError, match="is not UTF-8"):
        launch(path, logs)
    outcomes = tmp_path / "labels.jsonl"
    places = [
        {"condition": one["condition"], "seed": one["seed"], "item": one["item"], "sample": one["sample"], "value": 5}
        for one in drawn
    ]
    path.write_text(path.read_text().replace(str(sheet), str(outcomes)))
    write_lines(outcomes, places)
    machine = json.loads(build(launch(path, logs).path).json.read_text())
    assert machine["people"][0]["corrected"]["n_labelled"] == 5
    for changed, told in [
        ({"item": "811/1"}, r"no item '811/1' \(did you mean '81/1'"),
        ({"condition": "nwe"}, r"no condition 'nwe' \(did you mean 'new'"),
        ({"value": 0}, r"0 is outside 1\.\.10"),
        ({"metric": "help"}, "labels of .*; what the judge gives there is .score."),
        ({**places[1]}, "it is there twice"),
    ]:
        write_lines(outcomes, [{**places[0], **changed}, *places[1:]])
        with pytest.raises(UserError, match=told):
            launch(path, logs)


def fill(sheet: Path, rows: list[dict[str, str]], value: Any) -> None:
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "value": value(row)} for row in rows)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trained(folder: Folder) -> list[str]:
    return [entry["train_key"] for entry in (folder.manifest() or {})["runs"]]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (
            'suite = "tlak"\nsource = "x"',
            r"\[\[analysis.labels\]\] suite 'tlak' is not evaluated \(did you mean 'talk'",
        ),
        ('suite = "random"\nsource = "x"', r"suite 'random': people's labels correct a judge"),
        ('suite = "talk"\nsorce = "x"', "did you mean 'source'"),
        ('suite = "talk"\nsource = "x"\n[[analysis.labels]]\nsuite = "talk"\nsource = "y"', "stands there twice"),
    ],
)
def test_labels_that_could_correct_nothing_are_refused_in_the_file(tmp_path: Path, table: str, told: str) -> None:
    path = written(tmp_path, Path("builtin"), "http://localhost:1/v1", more=f"\n[[analysis.labels]]\n{table}\n")
    with pytest.raises(UserError, match=told):
        load_spec(path)


def test_labels_of_another_metric_than_the_contrasts_are_refused(tmp_path: Path) -> None:
    more = '\n[[analysis.labels]]\nsuite = "talk"\nsource = "x"\n'
    path = written(tmp_path, Path("builtin"), "http://localhost:1/v1", more=more)
    assert load_spec(path).analysis.labels[0].suite == "talk"
    with pytest.raises(UserError, match="no contrast is on it under 'score'"):
        load_spec(path, ["contrasts.0.metric=completion_tokens"])
