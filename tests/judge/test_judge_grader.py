"""Judges as graders, against a server on this machine that fails in every way."""

import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import grader, grader_key
from finetrial.grade.judge_config import JudgeConfig
from finetrial.judge.grader import PENDING, JudgeGrader, open_grader
from finetrial.judge.judgments import Judgments, mean, one_judge
from finetrial.records import Task
from judge_server import KEY, JudgeServer, completion, fair, part, serving

pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")


def tasks(count: int) -> list[Task]:
    return [
        Task(f"t{i}", f"g{i}", ({"role": "user", "content": f"What is {i} plus {i}?"},), f"={2 * i}")
        for i in range(count)
    ]


def config(server: JudgeServer, **changed: object) -> GraderConfig:
    settings = {"model": "judge", "base_url": server.url, "wait_s": 0.01, "retries": 3, "timeout_s": 5.0}
    return GraderConfig(kind="judge", judge=JudgeConfig.model_validate({**settings, **changed}))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with serving(fair) as running:
        yield running


def test_completions_are_graded_by_their_place_on_the_scale(server: JudgeServer, tmp_path: Path):
    server.rule = lambda prompt, _: json.dumps({"reason": "so", "score": 4 if "(the answer" in prompt else 7})
    with open_grader(config(server), "exact", tmp_path) as judge:
        found = judge.grade(tasks(3), ["=0", "", "=4"])
        assert [one.value for one in found] == pytest.approx([6 / 9, 3 / 9, 6 / 9])
        assert found[0].reason == "judged 7 on 1 to 10"
        assert isinstance(judge, JudgeGrader)
        facts = judge.facts()
    assert (facts["model"], facts["served"], facts["scale"]) == ("judge", ["judge-1"], [1, 10])
    assert (facts["launch"]["graded"], facts["launch"]["read_by"]) == (3, {"json": 3})
    assert "What is 0 plus 0?" in facts["first_prompt"]
    assert server.keys == {f"Bearer {KEY}"}
    sent = server.asked[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"], "seed" in sent) == ("judge", 0, 1024, False)


def test_nothing_is_asked_twice(server: JudgeServer, tmp_path: Path):
    with open_grader(config(server), "exact", tmp_path) as judge:
        first = judge.grade([*tasks(2), tasks(1)[0]], ["=0", "=3", "=0"])
        assert len(server.asked) == 2
        assert judge.grade(tasks(2), ["=0", "=3"]) == first[:2]
    with open_grader(config(server, concurrency=2, retries=0), "exact", tmp_path) as judge:
        assert judge.grade(tasks(2), ["=0", "=3"]) == first[:2]
        assert len(server.asked) == 2
        judge.grade(tasks(2), ["=0", "=4"])
        assert len(server.asked) == 3
    with open_grader(config(server, revision="newer"), "exact", tmp_path) as judge:
        judge.grade(tasks(2), ["=0", "=3"])
    assert len(server.asked) == 5
    with open_grader(config(server, temperature=1.0, repeats=3), "exact", tmp_path) as judge:
        judge.grade(tasks(2), ["=0", "=3"])
    assert len(server.asked) == 11
    assert len({sent["seed"] for sent in server.asked[5:]}) == 6


def test_a_reply_that_cannot_be_read_is_asked_once_more_with_the_problem(server: JudgeServer, tmp_path: Path):
    server.rule = lambda prompt, _: '{"score": 7}' if "could not be read" in prompt else "Score: 11"
    with open_grader(config(server), "exact", tmp_path) as judge:
        assert judge.grade(tasks(1), ["=0"])[0].value == pytest.approx(6 / 9)
    again = server.asked[1]["messages"]
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert again[1]["content"] == "Score: 11"
    assert "11 is outside 1 to 10" in again[2]["content"]


BROKEN = {
    "nothing": ("", "the reply is empty"),
    "prose": ("A fine answer.", "the reply shows no score"),
    "endless thinking": ("<think>7? 8? Score: 8", "ends inside its thinking"),
    "over the scale": ('{"score": 11}', "11 is outside 1 to 10"),
    "under the scale": ('{"score": 0}', "0 is outside 1 to 10"),
    "another scale": ("[[4/5]]", "on another scale"),
    "null": ('{"score": null}', "None is no number"),
    "words": ('{"score": "excellent"}', "'excellent' is no number"),
    "truth": ('{"score": true}', "True is no number"),
    "not a number": ('{"score": NaN}', "is no number"),
    "contradiction": ('{"score": 2} {"score": 9}', "contradicts itself"),
    "percent": ("Score: 85%", "the reply shows no score"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reply_is_missing_with_its_text_kept(name: str, server: JudgeServer, tmp_path: Path):
    reply, problem = BROKEN[name]
    server.rule = lambda _, __: reply
    with open_grader(config(server), "exact", tmp_path) as judge:
        found = judge.grade(tasks(1), ["=0"])[0]
        assert found.value is None
        assert problem in found.reason
        assert "asked again: " in found.reason
        assert not found.reason.startswith(PENDING)
        assert judge.grade(tasks(1), ["=0"])[0] == found
        assert isinstance(judge, JudgeGrader)
        assert judge.facts()["launch"]["missing"] == 2
        assert [one.replies for one in judge.judgments.all()] == [(reply, reply)]
    assert len(server.asked) == 2


def test_a_reply_that_was_cut_is_not_half_read(server: JudgeServer, tmp_path: Path):
    server.rule, server.finish = lambda _, __: "The score: 1", "length"
    with open_grader(config(server), "exact", tmp_path) as judge:
        assert "cut at the limit" in judge.grade(tasks(1), ["=0"])[0].reason


FAULTS = {
    "429": ("status", 429),
    "500": ("status", 500),
    "503": ("status", 503),
    "408": ("status", 408),
    "slow": ("slow", 0.6),
    "cut": ("cut", None),
    "malformed": ("body", '{"choices": [{"mess'),
    "no JSON": ("body", "<html>busy</html>"),
    "wrong schema": ("body", '{"result": "7"}'),
    "no choices": ("body", '{"choices": []}'),
    "list": ("body", "[]"),
    "no text": ("body", '{"choices": [{"message": {"content": [1]}}]}'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failure_that_passes_is_tried_again(name: str, server: JudgeServer, tmp_path: Path):
    server.fault = lambda number: FAULTS[name] if number < 2 else None
    with open_grader(config(server, timeout_s=0.3), "exact", tmp_path) as judge:
        assert judge.grade(tasks(1), ["=0"])[0].value == 1
        assert isinstance(judge, JudgeGrader)
        assert judge.facts()["launch"]["retried"] == 2
    assert len(server.asked) == 3


@pytest.mark.parametrize("name", FAULTS)
def test_a_failure_that_stays_is_pending_and_asked_by_the_next_launch(name: str, server: JudgeServer, tmp_path: Path):
    server.fault = lambda _: FAULTS[name]
    with open_grader(config(server, timeout_s=0.2, retries=1), "exact", tmp_path) as judge:
        found = judge.grade(tasks(1), ["=0"])[0]
        assert found.value is None
        assert found.reason.startswith(PENDING)
        assert "after 2 tries" in found.reason
        assert isinstance(judge, JudgeGrader)
        assert [judge.facts()["launch"][name] for name in ("pending", "missing")] == [1, 0]
        assert judge.judgments.all() == []
    server.fault = lambda _: None
    with open_grader(config(server), "exact", tmp_path) as judge:
        assert judge.grade(tasks(1), ["=0"])[0].value == 1


def test_a_server_is_given_the_time_that_it_asks_for(server: JudgeServer, tmp_path: Path):
    server.retry_after = "0.4"
    server.fault = lambda number: ("status", 429) if number == 0 else None
    with open_grader(config(server, concurrency=1), "exact", tmp_path) as judge:
        assert all(one.value == 1 for one in judge.grade(tasks(2), ["=0", "=2"]))
    assert server.at[1] - server.at[0] >= 0.4
    server.retry_after, server.fault = "3600", lambda _: ("status", 429)
    with open_grader(config(server), "exact", tmp_path) as judge:
        assert "asks to wait 3600 s" in judge.grade(tasks(3)[2:], ["=4"])[0].reason


def test_a_request_that_the_server_refuses_is_not_repeated(server: JudgeServer, tmp_path: Path):
    server.fault = lambda _: ("status", 400)
    with open_grader(config(server), "exact", tmp_path) as judge:
        found = judge.grade(tasks(1), ["=0"])[0]
    assert "the server refuses the request: 400" in found.reason
    assert len(server.asked) == 1


def test_a_dead_server_is_not_asked_forever(server: JudgeServer, tmp_path: Path):
    server.fault = lambda _: ("status", 500)
    with open_grader(config(server, retries=0, concurrency=2), "exact", tmp_path) as judge:
        found = judge.grade(tasks(40), ["=0"] * 40)
    # Six failures end the asking; the other thread's request may be on its way by then, and fail as the seventh.
    assert re.search(r"failed [67] times in a row; no more was asked", found[-1].reason)
    assert len(server.asked) <= 8


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_asking_and_is_told_to_nobody(status: int, server: JudgeServer, tmp_path: Path, caplog):
    caplog.set_level(logging.DEBUG)
    server.fault = lambda number: ("status", status) if number == 3 else None
    with (
        open_grader(config(server, concurrency=1), "exact", tmp_path) as judge,
        pytest.raises(UserError, match="refuses the key of the environment variable OPENAI_API_KEY") as caught,
    ):
        judge.grade(tasks(5), ["=0"] * 5)
    assert len(Judgments(tmp_path / "judgments").all()) in (3, 4), "what had come is kept, and the asking ends"
    assert KEY not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_the_key_is_written_nowhere(server: JudgeServer, tmp_path: Path, caplog, capfd):
    """Also by a server that sends it back: in errors, in replies, and in the name of its model."""
    caplog.set_level(logging.DEBUG)
    server.served = f"model of {KEY}"
    server.rule = lambda prompt, number: f'{{"reason": "your key is {KEY}", "score": 7}}' if number > 2 else KEY
    server.fault = lambda number: ("status", 500) if number in (0, 5) else None
    with open_grader(config(server), "exact", tmp_path) as judge:
        found = judge.grade(tasks(6), ["=0"] * 6)
        server.fault = lambda _: ("status", 400)
        refused = judge.grade(tasks(1), ["=1"])
        assert isinstance(judge, JudgeGrader)
        told = json.dumps(judge.facts()) + repr(found) + repr(refused) + repr(judge.judge)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"your key is [key]" in written
    assert "your key is Bearer [key]" in refused[0].reason
    out = capfd.readouterr()
    for text in (told, caplog.text, out.out, out.err, written.decode(errors="replace")):
        assert KEY not in text


def test_keys_and_addresses_come_from_the_environment(server: JudgeServer, tmp_path: Path, monkeypatch):
    named = config(server, base_url=None, base_url_variable="MY_URL", key_variable="MY_KEY")
    with pytest.raises(UserError, match="MY_KEY is not set"):
        open_grader(named, "exact", tmp_path)
    monkeypatch.setenv("MY_KEY", "another")
    with pytest.raises(UserError, match="MY_URL"):
        open_grader(named, "exact", tmp_path)
    monkeypatch.setenv("MY_URL", server.url)
    with open_grader(named, "exact", tmp_path) as judge:
        judge.grade(tasks(1), ["=0"])
    assert server.keys == {"Bearer another"}


def test_what_is_not_there_is_told_before_anything_is_asked(server: JudgeServer, tmp_path: Path):
    with (
        open_grader(config(server, model="juge"), "exact", tmp_path) as judge,
        pytest.raises(UserError, match=r"serves no such model \(did you mean 'judge'\?\)"),
    ):
        judge.grade(tasks(1), ["=0"])
    with (
        open_grader(config(server, base_url="http://127.0.0.1:9/v1"), "exact", tmp_path) as judge,
        pytest.raises(UserError, match="no server answers at"),
    ):
        judge.grade(tasks(1), ["=0"])
    assert not server.asked
    server.fault = lambda _: ("status", 404)
    with (
        open_grader(config(server, model="something else"), "exact", tmp_path) as judge,
        pytest.raises(UserError, match="cannot complete chats with it: 404"),
    ):
        judge.grade(tasks(1), ["=0"])


def test_a_budget_leaves_the_rest_for_the_next_launch(server: JudgeServer, tmp_path: Path):
    for budget in ({"budget_requests": 4}, {"budget_tokens": 4 * 42}):
        folder = tmp_path / next(iter(budget))
        server.asked.clear()
        for launch in range(3):
            with open_grader(config(server, concurrency=1, **budget), "exact", folder) as judge:
                found = judge.grade(tasks(10), [f"={2 * i}" for i in range(10)])
            done = min(10, 4 * (launch + 1))
            assert sum(one.value == 1 for one in found) == done
            assert all("budget of" in one.reason for one in found if one.value is None)
        assert len(server.asked) == 10


def test_pairs_are_judged_in_both_orders_and_a_turn_is_a_tie(server: JudgeServer, tmp_path: Path):
    three = tasks(3)
    with open_grader(config(server, kind="pairwise"), "exact", tmp_path) as judge:
        found = judge.grade(three, ["=0", "no", "=4"])
        assert [one.value for one in found] == [0.5, 0, 0.5]
        assert isinstance(judge, JudgeGrader)
        totals = judge.totals(three, ["=0", "no", "=4"])
        assert (totals["floor_share"], totals["ceiling_share"]) == (pytest.approx(1 / 3), 0)
        assert totals["order_disagreement"] == 0
    server.rule = lambda _, __: '{"verdict": "A"}'
    with open_grader(config(server, kind="pairwise", revision="biased"), "exact", tmp_path) as judge:
        found = judge.grade(three, ["=0", "no", "=4"])
        assert [one.value for one in found] == [0.5, 0.5, 0.5]
        assert "the orders disagree" in found[0].reason
        assert isinstance(judge, JudgeGrader)
        assert judge.totals(three, ["=0", "no", "=4"])["order_disagreement"] == 1


def test_totals_are_those_of_all_launches_and_nothing_is_asked_for_them(server: JudgeServer, tmp_path: Path):
    server.rule = lambda prompt, _: "none" if part(prompt, "answer") in ("", "=2") else fair(prompt)
    with open_grader(config(server, repeats=2, temperature=0.7), "exact", tmp_path) as judge:
        judge.grade(tasks(2), ["=0", "=2"])
    asked = len(server.asked)
    with open_grader(config(server, repeats=2, temperature=0.7), "exact", tmp_path) as judge:
        assert isinstance(judge, JudgeGrader)
        four = [*tasks(3), tasks(1)[0]]
        totals = judge.totals(four, ["=0", "=2", "no", "=0"])
        assert len(server.asked) == asked
        assert totals == {
            "graded": 3, "missing": 1, "lost": 1, "judgments": 4, "served": ["judge-1"], "asked_again": 2,
            "read_by": {"json": 2, "unread": 2}, "floor_share": 0, "ceiling_share": 1, "order_disagreement": None,
        }  # fmt: skip
        assert judge.facts()["launch"]["graded"] == 0
        judge.grade(four, ["=0", "=2", "no", "=0"])
        whole = judge.totals(four, ["=0", "=2", "no", "=0"])
        assert (whole["graded"], whole["lost"], whole["floor_share"]) == (4, 0, pytest.approx(1 / 3))


def test_a_pair_is_against_a_named_fact(server: JudgeServer, tmp_path: Path):
    against = config(server, kind="pairwise", against="baseline")
    task = Task("t", "g", ({"role": "user", "content": "?"},), "=4", meta={"baseline": "it is =5"})
    with open_grader(against, "exact", tmp_path) as judge:
        assert judge.grade([task, task], ["=4", "=6"])[0].value == 1
        with pytest.raises(UserError, match=r"no text in meta\.baseline"):
            judge.grade(tasks(1), ["=0"])


def test_repeats_are_averaged_and_what_could_not_be_read_is_told(server: JudgeServer, tmp_path: Path):
    scores = iter(["[[4]]", "[[7]]", "none", "none"])
    server.rule = lambda _, __: next(scores)
    with open_grader(config(server, repeats=3, concurrency=1), "exact", tmp_path) as judge:
        found = judge.grade(tasks(1), ["=0"])[0]
    assert found.value == pytest.approx((3 / 9 + 6 / 9) / 2)
    assert "1 of 3 repeats could not be read" in found.reason


def test_a_repeat_that_is_still_to_come_holds_the_grade_back(server: JudgeServer, tmp_path: Path):
    server.fault = lambda number: ("status", 400) if number == 1 else None
    with open_grader(config(server, repeats=2, concurrency=1), "exact", tmp_path) as judge:
        assert judge.grade(tasks(1), ["=0"])[0].reason.startswith(PENDING)
        assert judge.grade(tasks(1), ["=0"])[0].value == 1


def test_another_model_behind_the_same_name_is_refused(server: JudgeServer, tmp_path: Path):
    with open_grader(config(server), "exact", tmp_path) as judge:
        judge.grade(tasks(1), ["=0"])
    server.served = "judge-2"
    with (
        open_grader(config(server), "exact", tmp_path) as judge,
        pytest.raises(UserError, match=r"judge-1, judge-2.*revision"),
    ):
        judge.grade(tasks(2), ["=0", "=2"])


def test_judgments_of_different_judges_prompts_or_scales_are_not_averaged(server: JudgeServer, tmp_path: Path):
    for changed in ({}, {"scale": (0, 5)}, {"rubric": "Be kind."}, {"revision": "2"}):
        server.rule = lambda prompt, _: '{"score": 5}'
        with open_grader(config(server, **changed), "exact", tmp_path) as judge:
            judge.grade(tasks(2), ["=0", "=2"])
    rows = Judgments(tmp_path / "judgments").all()
    assert len(rows) == 8
    assert all(row.judge and row.prompt and row.parser == 1 for row in rows)
    groups = {(row.judge, row.prompt): row for row in rows}
    assert len(groups) == 4
    with pytest.raises(UserError, match="are not comparable"):
        mean(rows)
    first, *others = groups.values()
    for other in others:
        with pytest.raises(UserError, match="are not comparable"):
            one_judge([first, other])
    assert mean([row for row in rows if (row.judge, row.prompt) == (first.judge, first.prompt)])[1] == 0


def test_what_changes_grades_is_in_the_key_and_what_does_not_is_not(server: JudgeServer):
    base = grader_key(config(server))
    assert base == grader_key(config(server, base_url="http://elsewhere/v1", concurrency=3, budget_requests=5,
                                     key_variable="MINE", timeout_s=1, self_test={"items": 3}))  # fmt: skip
    others = [{"model": "x"}, {"revision": "2"}, {"scale": (0, 1)}, {"rubric": "r"}, {"temperature": 0.5},
              {"repeats": 2}, {"max_tokens": 9}, {"template": "{{ question }}"}, {"kind": "pairwise"}]  # fmt: skip
    keys = {grader_key(config(server, **other)) for other in others}
    assert len(keys | {base}) == len(others) + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "judge"},
        {"kind": "exact", "judge": {"model": "m"}},
        {"kind": "judge", "judge": {"model": "m"}, "answer": "x"},
        {"kind": "judge", "judge": {"model": "m", "scale": [5, 1]}},
        {"kind": "judge", "judge": {"model": "m", "kind": "pairwise", "scale": [0, 5]}},
        {"kind": "judge", "judge": {"model": "m", "against": "x"}},
        {"kind": "judge", "judge": {"model": "m", "base_url": "localhost:8000"}},
        {"kind": "judge", "judge": {"model": "m", "base_url": "http://me:secret@host/v1"}},
        {"kind": "judge", "judge": {"model": "m", "self_test": {"top": 0.2, "bottom": 0.3}}},
        {"kind": "judge", "judge": {"model": "m", "api_key": "sk"}},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict):
    with pytest.raises(ValueError, match="validation error"):
        GraderConfig.model_validate(wrong)


def test_settings_survive_being_written_and_read():
    first = GraderConfig(kind="judge", judge=JudgeConfig.model_validate({"model": "m", "temperature": "none"}))
    assert first.judge is not None
    assert first.judge.temperature is None
    assert GraderConfig.model_validate(first.model_dump()) == first
    pair = GraderConfig(kind="judge", judge=JudgeConfig(model="m", kind="pairwise"))
    assert GraderConfig.model_validate(json.loads(pair.model_dump_json())) == pair


def test_other_kinds_are_opened_as_ever(tmp_path: Path):
    with open_grader(GraderConfig(), "exact", tmp_path) as plain:
        assert plain.grade(tasks(1), ["=0"])[0].value == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="open_grader"):
        grader(GraderConfig(kind="judge", judge=JudgeConfig(model="m")))


THOUSAND = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
from test_judge_grader import tasks
from finetrial.grade.config import GraderConfig
from finetrial.judge.grader import open_grader
config = GraderConfig.model_validate_json(Path({config!r}).read_text())
with open_grader(config, "exact", Path({root!r})) as judge:
    judge.grade(tasks(1000), [f"={{2 * i}}" if i % 3 else "no" for i in range(1000)])
"""


def test_a_thousand_items_with_a_fifth_of_the_calls_failing_killed_and_resumed(server: JudgeServer, tmp_path: Path):
    kinds = [("status", 500), ("status", 429), ("cut", None), ("body", "{"), ("body", "{}")]
    server.fault = lambda number: kinds[number // 5 % 5] if number % 5 == 2 else None
    server.retry_after, server.latency_s = "0", 0.02
    settings = config(server, concurrency=16, retries=6, wait_s=0.005)
    (tmp_path / "config.json").write_text(settings.model_dump_json())
    here = Path(__file__).parent
    script = THOUSAND.format(
        tests=str(here.parent), here=str(here), config=str(tmp_path / "config.json"), root=str(tmp_path)
    )
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OPENAI_API_KEY": KEY})
    try:
        while sum(server.answered.values()) < 300:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {row.item for row in Judgments(tmp_path / "judgments").all()}
    assert 200 < len(kept) < 700
    before = len(server.asked)
    items, texts = tasks(1000), [f"={2 * i}" if i % 3 else "no" for i in range(1000)]
    with open_grader(settings, "exact", tmp_path) as judge:
        found = judge.grade(items, texts)
    assert [one.value for one in found] == [1.0 if i % 3 else 0.0 for i in range(1000)]
    assert max(server.answered.values()) <= 2
    rows = Judgments(tmp_path / "judgments").all()
    assert len(rows) == 1000
    assert {row.item for row in rows} == {task.content_hash for task in items}
    asked_later = {sent["messages"][0]["content"] for sent in server.asked[before:]}
    assert len(asked_later) == 1000 - len(kept)
    with sqlite3.connect(tmp_path / "judgments" / "judgments.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_refusal_by_content_is_no_score(server: JudgeServer, tmp_path: Path):
    server.fault = lambda _: ("body", completion(None, finish="content_filter"))
    with open_grader(config(server), "exact", tmp_path) as judge:
        found = judge.grade(tasks(1), ["=0"])[0]
    assert (found.value, "the reply is empty" in found.reason) == (None, True)
