"""Scripts of conversations in the format of FastChat."""

import json
from pathlib import Path

import pytest

from finetrial.data.dialogues import TEMPERATURES, Dialogue, read_dialogues
from finetrial.errors import UserError


def written(tmp_path, rows, name="question.jsonl") -> str:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / name)


def test_questions_of_fastchat_are_read(tmp_path):
    row = {"question_id": 101, "category": "math", "turns": ["What is 2 + 2?", "And plus 3?"], "reference": ["4", "7"]}
    other = {"question_id": 81, "category": "writing", "turns": ["Write."]}
    answer = {
        "question_id": 81,
        "answer_id": "x",
        "model_id": "m",
        "choices": [{"index": 0, "turns": ["So."]}],
        "tstamp": 1,
    }
    source = written(tmp_path, [row, other])
    assert read_dialogues(source) == [
        Dialogue("101", "math", ("What is 2 + 2?", "And plus 3?"), ("4", "7")),
        Dialogue("81", "writing", ("Write.",)),
    ]
    assert read_dialogues(source, written(tmp_path, [answer], "gpt-4.jsonl"))[1].references == ("So.",)
    with pytest.raises(UserError, match="question 7 has a reference but is not among"):
        read_dialogues(source, written(tmp_path, [{**answer, "question_id": 7}], "gpt-4.jsonl"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1, "turn": ["a"]}, "no turns.*did you mean 'turn'"),
        ({"question_id": 1, "turns": ["a"], "categories": "x"}, "unknown key 'categories'.*did you mean 'category'"),
        ({"question_id": 1, "turns": "a"}, "turns: expected a list of texts"),
        ({"question_id": 1, "turns": ["a", {"x": 1}]}, "turns: expected a list of texts"),
        ({"question_id": 1, "turns": []}, "turns: expected a list of texts"),
        ({"question_id": None, "turns": ["a"]}, "question_id is a NoneType"),
        ({"question_id": 1, "turns": ["a"], "category": 3}, "category is a int"),
        ({"question_id": 1, "turns": ["a"], "reference": ["a", "b"]}, "2 references for 1 turns"),
        (["a"], "a row is a list"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_dialogues(written(tmp_path, [row]))


def test_ids_that_repeat_and_empty_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="question_id 1 occurs twice"):
        read_dialogues(written(tmp_path, [{"question_id": 1, "turns": ["a"]}] * 2))
    with pytest.raises(UserError, match="no dialogues"):
        read_dialogues(written(tmp_path, []))


def test_mt_bench_is_read_whole(data_dir: Path):
    folder = data_dir / "mt_bench/mt_bench"
    dialogues = read_dialogues(str(folder / "question.jsonl"), str(folder / "reference_answer/gpt-4.jsonl"))
    assert len(dialogues) == 80
    assert {one.category for one in dialogues} == set(TEMPERATURES)
    assert all(len(one.turns) == 2 for one in dialogues)
    assert sum(bool(one.references) for one in dialogues) >= 30
