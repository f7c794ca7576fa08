"""What is read in a judge's reply, and what is not."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.judge.extract import read_score, read_verdict, visible


@pytest.mark.parametrize(
    ("reply", "value", "how"),
    [
        ('{"reason": "good", "score": 7}', 7, "json"),
        ('{"score": 7.5, "reason": "good"}', 7.5, "json"),
        ('{"Score": "7"}', 7, "json"),
        ('{"score": "7/10"}', 7, "json"),
        ('{"rating": 7}', 7, "json"),
        ('```json\n{"score": 7}\n```', 7, "json"),
        ('Here it is:\n{"score": 7}\nI hope that {this} helps.', 7, "json"),
        ('{"score": 7} and again {"score": 7.0}', 7, "json"),
        (r'{"reason": "the force \(F = m\,a\) is right", "score": 7}', 7, "repaired json"),
        (r'{"reason": "\alpha \frac{1}{2} \underline{x}", "score": 7}', 7, "repaired json"),
        ('{"reason": "two\nlines", "score": 7,}', 7, "repaired json"),
        ("It is good. Rating: [[7]]", 7, "brackets"),
        ("[[7.5]] of all, Score: 3", 7.5, "brackets"),
        ("[[7/10]]", 7, "brackets"),
        ("Score: 7", 7, "named"),
        ("**Score:** 7/10.", 7, "named"),
        ("The final score is 7.", 7, "named"),
        ("Rating: 7 out of 10", 7, "named"),
        ('{"score": 7, "reason": "never clo', 7, "named"),
        ("{'score': 7, 'reason': 'Python'}", 7, "named"),
        ("7", 7, "bare"),
        (" 10.\n", 10, "bare"),
        ('<think>maybe {"score": 2}</think>{"score": 7}', 7, "json"),
        ("<think>Score: 2</think>\nScore: 7", 7, "named"),
    ],
)
def test_scores_that_are_there_are_read(reply: str, value: float, how: str):
    found = read_score(reply, 1, 10)
    assert (found.value, found.how, found.problem) == (value, how, "")


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("", "the reply is empty"),
        (" \n", "the reply is empty"),
        ("<think>it is a 7, Score: 7", "the reply ends inside its thinking"),
        ("A good answer.", "the reply shows no score or rating"),
        ('{"score": 11}', "11 is outside 1 to 10"),
        ('{"score": 0}', "0 is outside 1 to 10"),
        ('{"score": -1}', "-1 is outside 1 to 10"),
        ("[[0]]", "0 is outside 1 to 10"),
        ("[[4/5]]", "'4/5' is on another scale than 1 to 10"),
        ('{"score": null}', "None is no number"),
        ('{"score": true}', "True is no number"),
        ('{"score": NaN}', "'NaN' is no number"),
        ('{"score": Infinity}', "'Infinity' is no number"),
        ('{"score": "good"}', "'good' is no number"),
        ('{"score": [7]}', "[7] is no number"),
        ('{"score": 3} or rather {"score": 7}', "the reply contradicts itself: '3' and '7'"),
        ("[[3]] [[7]]", "the reply contradicts itself: '3' and '7'"),
        ("Accuracy score: 3. Style score: 7.", "the reply contradicts itself: '3' and '7'"),
        ("Score: 70%", "the reply shows no score or rating"),
        ("Score: 6-7", "the reply shows no score or rating"),
        ('{"score": 11} though [[7]]', "11 is outside 1 to 10"),
        ("yes", "'yes' is no number"),
        ("[1, 2]", "the reply shows no score or rating"),
        ('{"verdict": "A"}', "the reply shows no score or rating"),
    ],
)
def test_what_is_no_score_is_missing_with_its_reason(reply: str, problem: str):
    found = read_score(reply, 1, 10)
    assert (found.value, found.problem) == (None, problem)


def test_a_reply_that_was_cut_is_not_read_by_its_words():
    assert read_score("The score: 1", 1, 10, is_cut=True).value is None
    assert "cut at the limit" in read_score("The score: 1", 1, 10, is_cut=True).problem
    assert read_score('{"score": 1', 1, 10, is_cut=True).value is None
    assert read_score('{"score": 7} and then some mo', 1, 10, is_cut=True).value == 7
    assert read_score("[[7]] and then some mo", 1, 10, is_cut=True).value == 7


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ('{"reason": "", "verdict": "A"}', 1),
        ('{"winner": "Assistant B"}', 0),
        ('{"verdict": "tie"}', 0.5),
        ("so [[A]]", 1),
        ("so [[C]]", 0.5),
        ("Verdict: **B**", 0),
        ("The winner is answer A.", 1),
        ("b", 0),
        (r'{"reason": "\(x\)", "verdict": "B"}', 0),
        ("[[A]] [[B]]", None),
        ('{"verdict": "neither of them convinces"}', None),
        ('{"verdict": 1}', None),
        ("Both answers are fine.", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, share: float | None):
    found = read_verdict(reply)
    assert found.value == share
    assert bool(found.problem) == (share is None)


@given(st.text())
def test_no_text_breaks_the_reading_and_no_value_leaves_the_scale(text: str):
    for reply in (text, f'{{"score": {text}}}', f"[[{text}]]", f"Score: {text}"):
        found = read_score(reply, 1, 5)
        assert (found.value is None) == bool(found.problem)
        assert found.value is None or 1 <= found.value <= 5
        assert read_verdict(reply).value in (None, 0, 0.5, 1)


@given(
    st.floats(0, 10).map(lambda value: round(value, 2)),
    st.text(st.characters(exclude_characters='"\\{}')),
    st.sampled_from(["{body}", "```json\n{body}\n```", "Well.\n{body}\nThat is all."]),
)
def test_a_score_in_json_is_read_whatever_stands_around_it(score: float, reason: str, frame: str):
    reply = frame.replace("{body}", json.dumps({"reason": reason, "score": score}))
    assert math.isclose(read_score(reply, 0, 10).value or 0, score)


def test_thinking_is_left_out():
    assert visible("<think>a</think> b <think>c</think> d") == "d"
    assert visible("<think>a") == ""
    assert visible(" b ") == "b"


def _lines(path: Path) -> list[dict]:
    if not path.is_file():
        pytest.skip(f"no judgments at {path}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_stored_scores_of_mt_bench_are_read_again(data_dir: Path):
    rows = _lines(data_dir / "mt_bench/Stefanstud/model_judgment/gpt-4_single.jsonl")
    found = [read_score(row["judgment"], 1, 10) for row in rows]
    assert [one.value for one in found] == [row["score"] for row in rows]
    assert len(rows) == 160
    assert sum(row["score"] for row in rows) / len(rows) == pytest.approx(8.2, abs=0.005)


def test_all_stored_verdicts_of_mt_bench_are_read_again_in_both_orders(data_dir: Path):
    """In the second game the answers are swapped: its A is model 2. Where the orders disagree nobody wins."""
    rows = _lines(data_dir / "mt_bench/Stefanstud/model_judgment/gpt-4_pair.jsonl")
    names = {1.0: "model_1", 0.0: "model_2", 0.5: "tie", None: "error"}
    wins = {"model_1": 0, "model_2": 0, "tie": 0, "missing": 0}
    for row in rows:
        first = read_verdict(row["g1_judgment"]).value
        turned = read_verdict(row["g2_judgment"]).value
        second = None if turned is None else 1 - turned
        assert [names[first], names[second]] == [row["g1_winner"], row["g2_winner"]]
        if first is None or second is None:
            wins["missing"] += 1
        else:
            wins[names[first] if first == second else "tie"] += 1
    assert len(rows) == 75
    assert wins == {"model_1": 18, "model_2": 20, "tie": 35, "missing": 2}
