"""Tasks: every source, what becomes the reference, identity, and the split into practice and held out."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.data.task_rows import Question
from finetrial.data.tasks import TaskConfig, TaskSet, grader_for, read_tasks, split_tasks
from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import grader, prove
from finetrial.records import Task

MATH = {
    "problem": "What is $\\frac12 + \\frac14$?",
    "level": "Level 1",
    "solution": "We get $\\frac{2}{4}+\\frac14=\\boxed{\\frac{3}{4}}$.",
}
GSM8K = {"question": "How many?", "answer": "She has 9 * 2 = <<9*2=18>>1,800.\n#### 1,800"}


def write(folder: Path, *rows: Any, name: str = "tasks.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(source: str, **options: Any) -> TaskSet:
    return read_tasks(TaskConfig(source=source, **options))


def proven(tasks: TaskSet) -> TaskSet:
    with grader(GraderConfig(), tasks.grader) as judge:
        prove(judge, tasks.tasks)
    return tasks


def test_the_arithmetic_world():
    tasks = proven(read("world:arithmetic?count=300&seed=1"))
    assert tasks.grader == "numeric"
    assert tasks.facts["rows"] == 300
    assert tasks.facts["kept"] + sum(tasks.facts["dropped"].values()) == 300
    first = tasks.tasks[0]
    assert [message["role"] for message in first.messages] == ["user"]
    assert first.gold is not None
    assert first.gold.endswith(f"Answer: {first.reference}")
    assert (
        len({task.id for task in tasks.tasks}) == len({task.content_hash for task in tasks.tasks}) == len(tasks.tasks)
    )
    with pytest.raises(UserError, match=r"\[tasks\] world:shell.*no answer"):
        read("world:shell?count=8")


@pytest.mark.parametrize(
    ("world", "name"), [("replies", "quality"), ("physics", "grade"), ("physics_explanation", "grade")]
)
def test_worlds_with_many_good_answers_bring_their_grader(world: str, name: str):
    tasks = read(f"world:{world}?count=40&seed=1")
    config = grader_for(GraderConfig(), tasks)
    assert (tasks.grader, config.kind) == ("function", "function")
    assert (config.function or "").endswith(f":{name}")
    assert grader_for(GraderConfig(kind="exact"), tasks).kind == "exact"
    with grader(config, tasks.grader) as judge:
        prove(judge, tasks.tasks)
        swapped = judge.grade(tasks.tasks[1:], [task.gold or "" for task in tasks.tasks[:-1]])
    assert all(grade.value is not None for grade in swapped)
    assert min(grade.value or 0.0 for grade in swapped) < 1
    with pytest.raises(UserError, match="`answer` has no effect"):
        grader_for(GraderConfig(answer="(.*)"), tasks)


def test_a_question_that_a_world_asks_twice_is_one_task_whatever_it_answers(monkeypatch: pytest.MonkeyPatch):
    from finetrial.data import tasks as module

    first = read("world:replies?count=3&seed=1").tasks[0]
    twice = [
        Question("here", name, first.group, first.messages, text, text, "graded", dict(first.meta))
        for name, text in (("b", "One."), ("a", "Two."))
    ]
    monkeypatch.setattr(module, "_questions", lambda *_: iter(twice))
    kept = read("world:replies").tasks
    assert [task.id for task in kept] == ["a"]


def test_choices_of_a_world_are_labelled():
    tasks = proven(read("world:physics_choice?count=20&seed=1"))
    assert tasks.grader == "choice"
    assert all(list(task.meta["choices"]) == list("ABCD") for task in tasks.tasks)


def test_choices_of_a_world_of_several_kinds_are_those_of_the_world_of_one():
    kept = read_tasks(TaskConfig(source="world:physics?count=100&seed=1", where={"kind": "choice"}))
    assert kept.grader == "choice"
    assert kept.function is None
    assert all(task.meta["choices"][task.reference] in (task.gold or "") for task in kept.tasks)
    proven(kept)


def test_gsm8k(tmp_path: Path):
    tasks = proven(read(write(tmp_path, GSM8K)))
    assert tasks.grader == "numeric"
    assert tasks.tasks[0].reference == "1,800"
    assert tasks.tasks[0].gold == GSM8K["answer"]


@pytest.mark.parametrize("file", ["test.jsonl", "train.jsonl"])
def test_all_of_gsm8k_is_proven(data_dir: Path, file: str):
    path = data_dir / "gsm8k" / file
    if not path.is_file():
        pytest.skip("no GSM8K")
    tasks = proven(read(str(path)))
    assert len(tasks.tasks) == {"test.jsonl": 1319, "train.jsonl": 7473}[file]
    assert tasks.grader == "numeric"


def test_solutions_of_math(tmp_path: Path):
    pytest.importorskip("math_verify")
    tasks = proven(read(write(tmp_path, MATH)))
    assert tasks.grader == "math"
    assert tasks.tasks[0].reference == "\\frac{3}{4}"
    assert tasks.tasks[0].gold == MATH["solution"]
    assert tasks.tasks[0].meta == {"level": "Level 1"}
    final = read(write(tmp_path, {**MATH, "answer": "\\frac34"}))
    assert (final.tasks[0].reference, final.tasks[0].gold, final.grader) == ("\\frac34", MATH["solution"], "math")


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"choices": ["Rome", "Paris"], "answer": 1}, "B"),
        ({"choices": ["Rome", "Paris"], "answer": "B"}, "B"),
        ({"choices": ["Rome", "Paris"], "answer": "(b)"}, "B"),
        ({"choices": ["Rome", "Paris"], "answer": "paris"}, "B"),
        ({"choices": {"A": "Rome", "B": "Paris"}, "answer": "B"}, "B"),
        ({"choices": {"text": ["Rome", "Paris"], "label": ["1", "2"]}, "answerKey": "2"}, "2"),
    ],
)
def test_choices(tmp_path: Path, row: dict[str, Any], label: str):
    tasks = proven(read(write(tmp_path, {"question": "Capital of France?", **row}), instruction="One letter."))
    task = tasks.tasks[0]
    assert (tasks.grader, task.reference) == ("choice", label)
    first = "1" if label == "2" else "A"
    assert task.messages[-1]["content"] == f"Capital of France?\n{first}. Rome\n{label}. Paris\nOne letter."


def test_choices_that_do_not_hold_the_answer(tmp_path: Path):
    for answer in ("C", 2, "Berlin", True):
        with pytest.raises(UserError, match=r"tasks.jsonl:1: answer is .*expected a label \(A, B\)"):
            read(write(tmp_path, {"question": "?", "choices": ["Rome", "Paris"], "answer": answer}))
    with pytest.raises(UserError, match="expected 2 to 26 options"):
        read(write(tmp_path, {"question": "?", "choices": ["Rome"], "answer": 0}))


def test_the_same_rows_in_every_kind_of_file(tmp_path: Path):
    rows = [{"Question": f"What is {n}?", "Answer": str(n), "unit": "m"} for n in range(5)]
    lines = read(write(tmp_path, *rows))
    (tmp_path / "tasks.csv").write_text("Question,Answer,unit\n" + "".join(f"What is {n}?,{n},m\n" for n in range(5)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tasks.parquet")
    (tmp_path / "tasks.json").write_text(json.dumps(list(reversed(rows))))
    assert lines.grader == "exact"
    assert lines.tasks[2].meta == {"unit": "m"}
    for suffix in ("csv", "parquet", "json"):
        other = read(str(tmp_path / f"tasks.{suffix}"))
        assert other.content_key == lines.content_key
        assert sorted(task.id for task in other.tasks) == sorted(task.id for task in lines.tasks)
    assert other.facts["files"][0]["rows"] == 5
    assert read(str(tmp_path / "tasks.parquet"), limit=3).facts["kept"] == 3


def test_numbers_become_the_text_that_was_meant(tmp_path: Path):
    pq.write_table(pa.table({"question": ["a", "b"], "answer": pa.array([72.0, 0.5])}), tmp_path / "n.parquet")
    assert [task.reference for task in read(str(tmp_path / "n.parquet")).tasks] == ["72", "0.5"]


def test_a_hub_data_set_goes_through_the_same_reader(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([GSM8K]).to_parquet(str(tmp_path / "data" / "train.parquet"))
    tasks = read(f"hf:{tmp_path / 'data'}", limit=1)
    assert (tasks.grader, tasks.tasks[0].reference) == ("numeric", "1,800")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "a", "answer": ""}, r"tasks.jsonl:2: answer is empty"),
        ({"question": "a", "answer": None}, r"tasks.jsonl:2: answer is empty"),
        ({"question": "a", "answer": "  "}, r"tasks.jsonl:2: answer is empty"),
        ({"question": "a", "answer": "so\n####  "}, r"tasks.jsonl:2: answer is empty"),
        ({"question": " ", "answer": "1"}, r"tasks.jsonl:2: question is a str; expected a text|question is empty"),
        ({"question": "a", "anwser": "1"}, r"tasks.jsonl:2: no answer among .*anwser.*did you mean 'answer'"),
        ({"questoin": "a", "answer": "1"}, r"tasks.jsonl:2: no question among .*did you mean 'question'"),
        ({"question": "a", "answer": ["1"]}, r"answer is a list"),
        ({"question": "a", "answer": "so\n#### 1"}, r"the reference is marked by ####, but of 2 rows 1"),
        ([1], r"tasks.jsonl:2: a row is a list"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, told: str):
    with pytest.raises(UserError, match=told):
        read(write(tmp_path, {"question": "q", "answer": "1"}, row))


def test_bad_sources(tmp_path: Path):
    (tmp_path / "bad.csv").write_text("question,answer\na,1\nb,2,3\n")
    with pytest.raises(UserError, match=r"bad.csv:3: 3 fields under 2 column names"):
        read(str(tmp_path / "bad.csv"))
    (tmp_path / "bad.jsonl").write_text('{"question": \n')
    with pytest.raises(UserError, match=r"\[practice\] .*bad.jsonl:1: "):
        read_tasks(TaskConfig(source=str(tmp_path / "bad.jsonl")), "practice")
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no task"):
        read(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        read(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(UserError, match="no world 'arithmetik'"):
        read("world:arithmetik")


def test_wording(tmp_path: Path):
    source = write(tmp_path, {"prompt": [{"role": "user", "content": "2 + 2?"}], "target": "4"})
    task = read(source, instruction="End in Answer: N.", system="You count.").tasks[0]
    assert list(task.messages) == [
        {"role": "system", "content": "You count."},
        {"role": "user", "content": "2 + 2?\nEnd in Answer: N."},
    ]
    plain = read(source).tasks[0]
    assert (plain.id, plain.group) == (task.id, task.group)
    assert plain.content_hash != task.content_hash
    own = write(
        tmp_path, {"prompt": [{"role": "system", "content": "Be."}, {"role": "user", "content": "a"}], "answer": "4"}
    )
    with pytest.raises(UserError, match="leave `system` empty"):
        read(own, system="You count.")


def test_repeated_ids_contents_and_questions(tmp_path: Path):
    rows = [
        {"id": "a", "group": "x", "question": "2 + 2?", "answer": "4"},
        {"id": "a", "group": "y", "question": "3 + 3?", "answer": "6"},
        {"id": "b", "group": "z", "question": "2 + 2?", "answer": "4"},
        {"id": "c", "group": "w", "question": " 2 +  2? ", "answer": "4"},
        {"id": "d", "question": "2 + 2?", "answer": "four"},
    ]
    tasks = read(write(tmp_path, *rows))
    other = read(write(tmp_path, *reversed(rows), name="other.jsonl"))
    assert tasks.content_key == other.content_key
    assert tasks.facts["dropped"] == {"question and reference of another row": 1}
    assert (tasks.facts["renamed_ids"], tasks.facts["conflicting_references"]) == (1, 2)
    assert sorted(task.id for task in tasks.tasks) == ["a", "a#2", "c", "d"]
    assert len({task.group for task in tasks.tasks}) == 2
    groups = {task.messages[0]["content"].strip(): task.group for task in tasks.tasks}
    assert groups["2 + 2?"] == groups["2 +  2?"]


def numbered(count: int, groups: int) -> TaskSet:
    tasks = tuple(
        Task(f"t{n}", f"g{n % groups}", ({"role": "user", "content": f"{n}?"},), str(n)) for n in range(count)
    )
    return TaskSet(tasks, "key", "exact", {"source": "numbers"})


@given(st.integers(2, 60), st.integers(2, 20), st.integers(0, 30), st.integers(0, 9))
def test_a_split_is_whole_groups_and_complete(count: int, groups: int, held_out: int, seed: int):
    tasks = numbered(count, groups)
    if held_out > count - -(-count // groups):
        return  # perhaps too few, which is tested below
    practice, held = split_tasks(tasks, held_out, seed)
    assert sorted(task.id for task in practice + held) == sorted(task.id for task in tasks.tasks)
    assert not {task.group for task in practice} & {task.group for task in held}
    assert practice
    assert held_out <= len(held) < held_out + -(-count // groups) or held_out == 0 == len(held)
    order = np.random.default_rng(seed).permutation(count)
    shuffled = TaskSet(tuple(tasks.tasks[n] for n in order), "key", "exact", tasks.facts)
    assert {task.id for task in split_tasks(shuffled, held_out, seed)[1]} == {task.id for task in held}


def test_more_rows_only_push_groups_out():
    few, many = numbered(100, 100), numbered(300, 300)
    held_few = {task.group for task in split_tasks(few, 20, 0)[1]}
    held_many = {task.group for task in split_tasks(many, 20, 0)[1]}
    assert held_many & {task.group for task in few.tasks} <= held_few
    assert {task.group for task in split_tasks(few, 20, 1)[1]} != held_few


def test_too_few_groups_are_counted():
    with pytest.raises(UserError, match="cannot hold out 5 of 10 tasks in 1 groups"):
        split_tasks(numbered(10, 1), 5, 0)


def test_reasoning_gym():
    pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    source = "gym:chain_sum?count=20&seed=3&max_digits=2"
    tasks = read(source, limit=12)
    assert (tasks.grader, len(tasks.tasks)) == ("environment", 12)
    assert read(source, limit=12).content_key == tasks.content_key
    proven(tasks)
    with grader(GraderConfig(), tasks.grader) as judge:
        wrong, empty = judge.grade(tasks.tasks[:1] * 2, ["Answer: 123456", ""])
        changed = Task("t", "g", tasks.tasks[0].messages, "another", meta=tasks.tasks[0].meta)
        assert judge.grade([changed], ["5"])[0].value is None
    assert wrong.value is not None
    assert wrong.value < 1
    assert empty.value == 0
    for bad, told in {
        "gym:chain_sums": "did you mean 'chain_sum'",
        "gym:chain_sum?max_digit=2": "did you mean 'max_digits'",
        "gym:chain_sum?count=x": "expected a whole number",
        "gym:chain_sum?min_terms=0": "min_terms",
        "gym:rubiks_cube?count=2": "has no answer",
    }.items():
        with pytest.raises(UserError, match=told):
            read(bad)


TASKSET = """
import verifiers.v1 as vf

__all__ = ["Sums"]


class SumData(vf.TaskData):
    answer: str


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply.endswith(self.data.answer))


class SumsConfig(vf.TasksetConfig):
    count: int = 5
    boxed: bool = False


class Sums(vf.Taskset[SumTask, SumsConfig]):
    def load(self):
        for n in range(self.config.count):
            image = "box" if self.config.boxed else None
            yield SumTask(SumData(prompt=f"{n} + 1?", answer=str(n + 1), image=image), self.config.task)
"""


@pytest.mark.slow  # importing verifiers alone takes longer than most tests
def test_a_taskset_of_verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("verifiers", reason="the extra `envs` is not installed")
    (tmp_path / "tiny_sums.py").write_text(TASKSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    tasks = read("env:tiny_sums?count=3", instruction="Be brief.")
    assert [task.reference for task in tasks.tasks] == ["1", "2", "3"]
    assert tasks.tasks[0].messages[-1]["content"] == "0 + 1?\nBe brief."
    with grader(GraderConfig(), tasks.grader) as judge:
        prove(judge, tasks.tasks)
        assert [grade.value for grade in judge.grade(tasks.tasks, ["it is 1", "3", ""])] == [1.0, 0.0, 0.0]
    for bad, told in {
        "env:tiny_sums?counts=3": "did you mean 'count'",
        "env:tiny_sums?boxed=true": "needs a container",
        "env:tiny_products": "not found",
    }.items():
        with pytest.raises(UserError, match=told):
            read(bad)


def test_libraries_of_environments_that_are_absent_are_named(monkeypatch: pytest.MonkeyPatch):
    for module in ("reasoning_gym", "verifiers", "verifiers.v1"):
        monkeypatch.setitem(sys.modules, module, None)
    for source, extra in (("gym:chain_sum", "gym"), ("env:tiny_sums", "envs")):
        with pytest.raises(UserError, match=rf"pip install 'finetrial\[{extra}\]'"):
            read(source)


def test_where_keeps_the_tasks_with_these_facts():
    source = "world:arithmetic?count=200&seed=1"
    every = read_tasks(TaskConfig(source=source))
    chains = read_tasks(TaskConfig(source=source, where={"kind": "chain"}))
    assert {task.id for task in chains.tasks} == {task.id for task in every.tasks if task.meta["kind"] == "chain"}
    assert chains.facts["rows"] == 200
    assert chains.facts["dropped"]["not as `where` asks"] > 0
    with pytest.raises(UserError, match=r"no task has a fact 'kinds' \(did you mean 'kind'"):
        read_tasks(TaskConfig(source=source, where={"kinds": "chain"}))
    with pytest.raises(UserError, match="product"):
        read_tasks(TaskConfig(source=source, where={"kind": "chains"}))
