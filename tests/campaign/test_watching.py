"""Guards of a campaign: what can be watched, as it is measured in the end, and where a stopped run ends."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from finetrial.analyze.passk import pass_at_k
from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.folder import Folder
from finetrial.campaign.spec import load_spec
from finetrial.errors import UserError
from finetrial.report.build import build, gather
from finetrial.report.learning import held_out
from finetrial.store import DONE, read_json, write_json

SUMS = """
[[suites]]
name = "watched"
kind = "tasks"
source = "world:arithmetic?count=4&seed=99"
samples = 3
temperature = 1.0
max_tokens = 12
"""
RULE = '[stopping]\nsuite = "watched"\nmetric = "{}"\nevery = 2\nselect = "last"\nfloor = 1e9\n'


def written(path: Path, *tables: str, **changes: str) -> Path:
    text = path.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text("\n".join([text, *tables]))
    return path


def launch(path: Path, logs: Path, *overrides: str) -> Folder:
    return run(load_spec(path, overrides), RunOptions(logs=logs), lambda _: None)


def record(folder: Folder, run: str) -> dict[str, Any]:
    return read_json(folder.run(run) / "record.json")


def grader(tmp_path: Path) -> str:
    """A function that finds some random texts right, all answers that are, and nothing in an empty one."""
    place = tmp_path / "mine.py"
    place.write_text(
        "def right(text, reference, meta):\n"
        "    return 1.0 if f'Answer: {reference}' in text or sum(map(ord, text)) % 3 == 1 else 0.0\n"
    )
    return f'grader = {{ kind = "function", function = "{place}:right" }}\n'


@pytest.mark.parametrize("metric", ["distinct_2", "self_bleu_2", "duplicate_share", "ead_2", "vendi"])
def test_texts_are_watched_as_they_are_measured_in_the_end(practice: Path, tmp_path: Path, metric: str) -> None:
    suite = SUMS + "semantic = true\nmatched_words = 3\n"
    path = written(practice, RULE.format(metric), suite, **{"seeds = [1, 2, 3]": "seeds = [1]"})
    folder = launch(path, tmp_path / "logs", "training.learning_rate=0.1")
    table = pq.read_table(folder.path / "outcomes.parquet").to_pylist()
    said = record(folder, "grpo+none_s1")["stopping"]
    for condition, value in (("base", said["baseline"]), ("grpo+none", said["last"]["value"])):
        values = [
            row["value"]
            for row in table
            if (row["condition"], row["suite"], row["metric"]) == (condition, "watched", metric)
        ]
        assert metric == "duplicate_share" or values
        assert value == pytest.approx(np.mean(values) if values else 0.0, abs=1e-6)


def test_pass_at_k_is_watched_as_it_is_judged(practice: Path, tmp_path: Path) -> None:
    path = written(practice, RULE.format("pass@2"), SUMS + grader(tmp_path), **{"seeds = [1, 2, 3]": "seeds = [1]"})
    folder = launch(path, tmp_path / "logs", "training.learning_rate=0.1")
    table = pq.read_table(folder.path / "outcomes.parquet").to_pylist()
    said = record(folder, "grpo+none_s1")["stopping"]
    assert said["better"] == "higher"
    for condition, value in (("base", said["baseline"]), ("grpo+none", said["last"]["value"])):
        right: dict[str, int] = {}
        for row in table:
            if (row["condition"], row["suite"], row["metric"]) == (condition, "watched", "correct"):
                right[row["item"]] = right.get(row["item"], 0) + int(row["value"])
        assert value == pytest.approx(pass_at_k(np.array(3), np.array(list(right.values())), 2).mean())
        assert 0 < value < 1
    assert build(folder.path).html.is_file()


def test_choices_are_watched_as_loosely_as_they_are_graded(practice: Path, tmp_path: Path) -> None:
    asked = [{"id": f"c{k}", "question": f"Is it {k}?", "choices": ["e", "o"], "answer": "AB"[k % 2]} for k in range(4)]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, asked)))
    suite = SUMS.replace("world:arithmetic?count=4&seed=99", str(tmp_path / "choices.jsonl"))
    changes = {"seeds = [1, 2, 3]": "seeds = [1]", "max_length = 128": "max_length = 512"}
    path = written(practice, RULE.format("correct_relaxed"), suite, **changes)
    folder = launch(path, tmp_path / "logs")
    table = pq.read_table(folder.path / "outcomes.parquet").to_pylist()
    mine = [row for row in table if (row["condition"], row["metric"]) == ("base", "correct_relaxed")]
    values = [row["value"] for row in mine if row["suite"] == "watched"]
    assert record(folder, "grpo+none_s1")["stopping"]["baseline"] == pytest.approx(np.mean(values))
    path.write_text(path.read_text().replace(str(tmp_path / "choices.jsonl"), "world:arithmetic?count=4&seed=99"))
    with pytest.raises(UserError, match=r"\[stopping\] metric 'correct_relaxed' is measured where choices are graded"):
        launch(path, tmp_path / "logs")


def test_what_a_guard_reads_of_texts_is_in_its_key(practice: Path, tmp_path: Path) -> None:
    def key(metric: str, *more: str) -> str:
        text = PRACTICE + "\n".join([RULE.format(metric), SUMS, *more])
        practice.write_text(text)
        _, decided, _ = make_plan(load_spec(practice), RunOptions(logs=tmp_path / "logs"), lambda _: None)
        return decided.runs[0].key

    PRACTICE = practice.read_text()
    assert key("distinct_1_matched") != key("distinct_1_matched", "matched_words = 3")
    assert key("correct") == key("correct", "matched_words = 3")
    assert key("pass@2") != key("pass@3") != key("correct")


@pytest.mark.parametrize(
    ("metric", "more", "told"),
    [
        ("distinct_9", "", r"metric 'distinct_9' cannot be watched on suites of kind tasks .*did you mean 'distinct_"),
        ("vendi", "", "by embeddings with semantic = true"),
        ("distinct_2", "diversity = false", "texts are measured where samples is above 1 or diversity = true"),
        ("pass@4", "", r"metric 'pass@4' needs 4 samples of every item; suite 'watched': samples is 3"),
        ("correct", 'grader = { kind = "reward_model", model = "m" }', "there are completion_tokens, distinct_1"),
        ("pass@2", 'grader = { kind = "reward_model", model = "m" }', "metric 'pass@2' cannot be watched"),
        ("reward", 'grader = { kind = "reward_model", model = "m" }', "metric 'reward' cannot be watched"),
    ],
)
def test_metrics_that_a_suite_does_not_have_are_refused(practice: Path, metric: str, more: str, told: str) -> None:
    path = written(practice, RULE.format(metric), SUMS, more)
    with pytest.raises(UserError, match=told):
        load_spec(path)


def test_a_suite_without_shares_of_grades_is_watched_on_its_texts(practice: Path) -> None:
    graded = 'grader = { kind = "reward_model", model = "m" }'
    path = written(practice, RULE.format("distinct_2"), SUMS, graded)
    assert load_spec(path).conditions[0].stopping is not None
    with pytest.raises(UserError, match=r"metric 'correct' \(the default\) cannot be watched"):
        load_spec(written(path, **{'metric = "distinct_2"\n': ""}))


@pytest.mark.parametrize("kind", ["conversation", "lm_eval"])
def test_suites_that_the_loop_cannot_measure_are_refused_with_those_that_it_can(practice: Path, kind: str) -> None:
    own = {"conversation": 'source = "q.jsonl"\ngrader = { kind = "exact" }', "lm_eval": 'task = "arc_easy"'}[kind]
    suite = f'[[suites]]\nname = "other"\nkind = "{kind}"\n{own}\n'
    path = written(practice, RULE.format("correct").replace("watched", "other"), suite, SUMS)
    told = (
        f"suite 'other' of kind {kind} cannot be watched: inside the training loop suites of kind perplexity, tasks, "
        "choice are measured; expected one of held_out, watched"
    )
    with pytest.raises(UserError, match=told):
        load_spec(path)


def test_a_trade_off_on_what_is_watched_is_refused(practice: Path) -> None:
    aims = '[[analysis.tradeoffs]]\nx = "held_out:correct"\ny = ["{}:completion_tokens"]\n'
    path = written(practice, RULE.format("correct"), SUMS, aims.format("watched"))
    with pytest.raises(
        UserError, match=r"tradeoffs\]\] 'held_out .*' is on suite 'watched', which \[stopping\] of grpo"
    ):
        load_spec(path)
    assert load_spec(written(path, **{"watched:completion_tokens": "held_out:completion_tokens"}))


STOPPED = """
[stopping]
suite = "watched"
every = 2
patience = 2
threshold = 100.0
select = "{}"

[evaluation]
every = 2
"""


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_stopped_run_has_no_outcomes_of_later_steps(campaign: Path, tmp_path: Path, select: str) -> None:
    """The guard of one condition stops its runs after step 4 of 8; the other's runs go on."""
    watched = 'test_sets.watched = { kind = "random", n = 4 }\ntest_sets.random'
    changes = {"max_steps = 3": "max_steps = 8", "test_sets.random": watched}
    changes['name = "random"'] = 'name = "random"\nstopping = false'
    path = written(campaign, STOPPED.format(select), **changes)
    path.write_text(path.read_text().replace('suite = "gold"', 'suite = "gold@6"', 1))
    folder = launch(path, tmp_path / "logs", "training.learning_rate=0.1", 'training.schedule="constant"')

    table = pq.read_table(folder.path / "outcomes.parquet").to_pylist()
    values = {(row["condition"], row["suite"]): row["value"] for row in table if row["seed"] == 1}
    assert values["topq", "gold@2"] is not None
    assert values["topq", "gold@4"] is not None
    assert values["topq", "gold@6"] is None
    assert values["random", "gold@6"] is not None
    assert [path.name for path in sorted((folder.run("topq_s1") / "snapshots").iterdir())] == ["step-2", "step-4"]
    assert sorted(record(folder, "topq_s1")["snapshots"]) == ["2", "4"]

    manifest = folder.manifest()
    assert manifest is not None
    assert [check for check in manifest["integrity"] if not check["passed"]] == []
    (note,) = [check for check in manifest["integrity"] if check["check"] == "runs reached their snapshots"]
    assert note["warning"]
    assert "topq_s1 ended after step 4 (nll did not improve on" in note["detail"]
    assert "no outcomes at step 6" in note["detail"]

    report = gather(folder.path)
    (finding,) = [one for one in report.findings if one.contrast == "topq vs random on gold@6"]
    assert finding.verdict in ("INCONCLUSIVE", "INVALID")
    assert "topq" in finding.reason
    steps = {point.step for point in held_out(report) if (point.condition, point.suite) == ("topq", "gold")}
    assert steps == {2, 4}
    others = {point.step for point in held_out(report) if (point.condition, point.suite) == ("random", "gold")}
    assert others == {2, 4, 6, 8}
    kept = record(folder, "topq_s1")["stopping"]
    ends = [p for p in held_out(report) if (p.condition, p.suite, p.step) == ("topq", "gold", 4)]
    assert all(len(point.values) == 3 for point in ends)
    assert kept["selected_step"] == 4 or select == "best"


def test_outcomes_behind_the_end_are_missing_also_where_an_adapter_was_stored(campaign: Path, tmp_path: Path) -> None:
    """A run of an earlier version has its last adapter under the names of steps that it never reached."""
    watched = 'test_sets.watched = { kind = "random", n = 4 }\ntest_sets.random'
    path = written(campaign, STOPPED.format("last"), **{"max_steps = 3": "max_steps = 8", "test_sets.random": watched})
    folder = launch(path, tmp_path / "logs")
    for run_ in (folder.manifest() or {})["runs"]:
        marker = folder.store.path("train", run_["train_key"]) / DONE
        told = read_json(marker)
        assert sorted(told["snapshots"]) == ["2", "4"]
        write_json(marker, {**told, "snapshots": {**told["snapshots"], "6": told["snapshots"]["4"]}})
    launch(path, tmp_path / "logs")
    table = pq.read_table(folder.path / "outcomes.parquet").to_pylist()
    assert {row["value"] for row in table if row["suite"].endswith("@6")} == {None}
