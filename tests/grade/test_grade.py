"""Graders as a whole: those that need a worker, proof by gold answers, and their identity."""

import dataclasses
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import WAYS, grader, grader_key, prove
from finetrial.records import Task

FUNCTION = """
import os, signal, sys, time
import numpy as np
calls = 0

def judge(completion, reference, meta):
    global calls
    calls += 1
    print("printed", {"value": 0.5}, flush=True)
    sys.stderr.write("written\\n")
    match completion:
        case "hang":
            while True: pass
        case "sleep": time.sleep(60)
        case "exit": sys.exit(1)
        case "crash": os._exit(3)
        case "killed": os.kill(os.getpid(), signal.SIGKILL)
        case "memory": return len(bytearray(4 << 30))
        case "raise": raise ValueError("first line\\nsecond")
        case "none": return None
        case "nan": return float("nan")
        case "two": return 2
        case "text": return "1"
        case "list": return [1]
        case "half": return 0.5
        case "numpy": return np.float32(0.25)
        case "truth": return np.bool_(True)
        case "meta": return meta["weight"]
        case "calls": return calls / 10000
        case "child":
            if os.fork() == 0:
                time.sleep(60)
            return 1.0
        case "read": return float(sys.stdin.read() == "")
    return completion == reference
"""

YES = Task("t", "g", ({"role": "user", "content": "?"},), "yes", meta={"weight": 0.75})


@pytest.fixture
def function(tmp_path: Path) -> str:
    (tmp_path / "reward.py").write_text(FUNCTION)
    return f"{tmp_path / 'reward.py'}:judge"


def workers() -> set[str]:
    """Worker processes that are alive on this machine and were started by this one."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            group = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if b"finetrial.grade.worker" in command and (group[1] == str(os.getpid()) or group[0] == "Z"):
            found.add(folder.name)
    return found


def test_a_function_that_misbehaves_costs_one_grade(function: str):
    config = GraderConfig(kind="function", function=function, timeout_s=1.0)
    expected = {
        "yes": (1.0, ""), "no": (0.0, ""), "half": (0.5, ""), "numpy": (0.25, ""), "truth": (1.0, ""),
        "meta": (0.75, ""),
        "read": (1.0, ""), "none": (None, "returned None"), "nan": (None, "returned nan, which is outside [0, 1]"),
        "two": (None, "returned 2.0, which is outside [0, 1]"), "text": (None, "returned a str, not a number"),
        "list": (None, "returned a list, not a number"), "raise": (None, "raised ValueError: first line"),
        "exit": (None, "raised SystemExit: 1"), "memory": (None, "raised MemoryError"),
        "hang": (None, "no answer within 1 s"), "sleep": (None, "no answer within 1 s"),
        "crash": (None, "the worker ended with exit code 3"), "killed": (None, "the worker was killed by SIGKILL"),
    }  # fmt: skip
    before = workers()
    with grader(config) as judge:
        for text, told in expected.items():
            wrong, right = judge.grade([YES, YES], [text, "yes"])
            assert (wrong.value, wrong.reason) == told
            assert right.value == 1.0
    assert workers() == before


def test_a_thousand_calls_are_one_process_and_quick(function: str):
    with grader(GraderConfig(kind="function", function=function)) as judge:
        judge.grade([YES], ["yes"])
        start = time.monotonic()
        grades = judge.grade([YES] * 1000, ["yes", "no"] * 500)
        assert time.monotonic() - start < 10
        assert [grade.value for grade in grades] == [1.0, 0.0] * 500
        assert judge.grade([YES], ["calls"])[0].value == 1002 / 10000


def test_workers_share_the_work_in_order(function: str):
    config = GraderConfig(kind="function", function=function, workers=3, timeout_s=2.0)
    before = workers()
    with grader(config) as judge:
        texts = ["hang", "yes", "no", "half"] * 3
        assert [grade.value for grade in judge.grade([YES] * 12, texts)] == [None, 1.0, 0.0, 0.5] * 3
        assert judge.grade([], []) == []
    assert workers() == before


def test_children_of_a_function_end_with_its_worker(function: str):
    before = workers()
    with grader(GraderConfig(kind="function", function=function)) as judge:
        assert judge.grade([YES], ["child"])[0].value == 1.0
    time.sleep(0.2)
    assert workers() == before


def test_a_function_that_cannot_be_loaded_is_bad_input(tmp_path: Path, function: str):
    file = function.rpartition(":")[0]
    for name, told in [
        (f"{file}:jugde", "AttributeError"),
        (f"{tmp_path}/rewards.py:judge", "did you mean 'reward.py'"),
    ]:
        with pytest.raises(UserError, match=told), grader(GraderConfig(kind="function", function=name)) as judge:
            judge.grade([YES], ["yes"])
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    broken = GraderConfig(kind="function", function=f"{tmp_path / 'broken.py'}:judge")
    with pytest.raises(UserError, match=r"broken\.py: cannot be loaded: ModuleNotFoundError"), grader(broken) as judge:
        judge.grade([YES], ["yes"])
    with pytest.raises(UserError, match=r"expected path/to/file\.py:name"):
        grader(GraderConfig(kind="function", function="reward"))


def test_configurations_that_contradict_themselves_are_refused():
    for bad in ({"kind": "function"}, {"kind": "exact", "function": "a.py:f"},
                {"kind": "function", "function": "a.py:f", "answer": "x"}):  # fmt: skip
        with pytest.raises(ValueError, match="function"):
            GraderConfig.model_validate(bad)
    with pytest.raises(UserError, match="no regular expression"):
        grader(GraderConfig(answer="("))
    with pytest.raises(UserError, match="did you mean 'numeric'"):
        grader(GraderConfig(), auto="numerical")


MATHEMATICS = [
    (r"\frac{1}{2}", r"\frac12", 1), (r"\frac{1}{2}", "Answer: 1/2", 1), (r"\frac{1}{2}", "$0.5$", 1),
    (r"\frac{1}{2}", r"so we find \boxed{\dfrac{2}{4}}.", 1), (r"\frac{1}{2}", "The final answer is $0.5$.", 1),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0), (r"\frac{1}{2}", "", 0), (r"\frac{1}{2}", "no idea", 0),
    (r"\frac{1}{2}", "Answer: ((((", 0), ("x^2+2x+1", "Answer: $(x+1)^2$", 1), ("\\sqrt{8}", "\\boxed{2\\sqrt2}", 1),
    ("(1, 2)", "\\boxed{\\left(1,2\\right)}", 1), ("\\text{Friday}", "Answer: Friday", 1),
    ("\\{1,2\\}", "$\\{2,1\\}$", 1),
    ("[0,1)", "\\boxed{[0, 1)}", 1), ("[0,1)", "\\boxed{(0, 1)}", 0), ("4", "Answer: 4 or 5", 0),
]  # fmt: skip


def of(reference: str) -> Task:
    return Task("t", "g", ({"role": "user", "content": "?"},), reference)


def test_mathematics_by_equality_also_off_the_main_thread():
    pytest.importorskip("math_verify")
    found: list[float | None] = []

    def work() -> None:
        with grader(GraderConfig(kind="math")) as judge:
            grades = judge.grade(
                [of(reference) for reference, _, _ in MATHEMATICS], [text for _, text, _ in MATHEMATICS]
            )
            found.extend(grade.value for grade in grades)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    wrong = [case for case, value in zip(MATHEMATICS, found, strict=True) if value != case[2]]
    assert wrong == []


def test_mathematics_without_end_is_missing():
    pytest.importorskip("math_verify")
    with grader(GraderConfig(kind="math", timeout_s=1.0)) as judge:
        grades = judge.grade([of("5")] * 2, ["Answer: 9^{9^{9^{9}}}", "Answer: 10/2"])
    assert [(grade.value, grade.reason) for grade in grades] == [(None, "no answer within 1 s"), (1.0, "")]


def test_rules_are_fast():
    tasks = [of(str(number)) for number in range(512)]
    texts = ["Some words before it. " * 20 + f"Answer: {number}" for number in range(512)]
    for kind in ("exact", "numeric"):
        with grader(GraderConfig(), auto=kind) as judge:
            start = time.process_time()
            assert all(grade.value == 1 for grade in judge.grade(tasks, texts))
            assert time.process_time() - start < 0.3


def test_as_many_texts_as_tasks():
    with grader(GraderConfig()) as judge, pytest.raises(ValueError, match="argument 2 is longer"):
        judge.grade([YES], ["yes", "no"])


def test_proof_by_gold_and_by_reference():
    gold = Task("a", "a", ({"role": "user", "content": "?"},), "5", gold="2 + 3 = 5. Answer: 5")
    with grader(GraderConfig(), auto="numeric") as judge:
        prove(judge, [gold, of("6")])
    with grader(GraderConfig(answer=r"^A: (.*)$")) as judge:
        prove(judge, [of("6")])
        with pytest.raises(UserError, match=r"task a: the gold answer '5' is graded 0 \(no answer found\)"):
            prove(judge, [of("6"), gold])


def test_proof_finds_a_function_that_rewards_nothing(tmp_path: Path):
    (tmp_path / "kind.py").write_text("def judge(completion, reference, meta):\n    return 1.0\n")
    config = GraderConfig(kind="function", function=f"{tmp_path / 'kind.py'}:judge")
    with grader(config) as judge, pytest.raises(UserError, match="an empty completion is graded 1"):
        prove(judge, [YES])


def test_the_key_knows_what_changes_grades_and_nothing_else(tmp_path: Path, function: str):
    plain = grader_key(GraderConfig())
    assert plain == grader_key(GraderConfig(kind="exact")) == grader_key(GraderConfig(workers=4, timeout_s=9))
    assert plain == grader_key(GraderConfig(tolerance=0.1))
    changed = [
        GraderConfig(kind="numeric"), GraderConfig(kind="numeric", tolerance=0.1), GraderConfig(answer="(.*)"),
        GraderConfig(kind="numeric", relaxed=True), GraderConfig(kind="choice"),
        GraderConfig(kind="function", function=function), GraderConfig(kind="function", function=function, timeout_s=9),
    ]  # fmt: skip
    keys = {plain, *map(grader_key, changed)}
    assert len(keys) == 1 + len(changed)
    assert grader_key(GraderConfig(), auto="numeric") == grader_key(GraderConfig(kind="numeric"))
    copy = tmp_path / "elsewhere.py"
    copy.write_text(FUNCTION)
    assert grader_key(GraderConfig(kind="function", function=f"{copy}:judge")) in keys
    copy.write_text(FUNCTION + "\n# another\n")
    assert grader_key(GraderConfig(kind="function", function=f"{copy}:judge")) not in keys


def test_every_kind_names_options_that_exist():
    for kind, way in WAYS.items():
        ways = (way.rule, way.request, way.together)
        assert sum(one is not None for one in ways) == (kind != "judge")
        assert set(way.options) <= set(GraderConfig.model_fields)


LABELLED = {"6b_finetuning": 0.217, "6b_verification": 0.390, "175b_finetuning": 0.347, "175b_verification": 0.563}


@pytest.mark.parametrize("kind", ["exact", "numeric"])
def test_stored_solutions_are_graded_as_their_authors_did(data_dir: Path, kind: str):
    """GSM8K's stored solutions of four models (Cobbe et al. 2021), in which answers follow `A: `."""
    path = data_dir / "gsm8k" / "example_model_solutions.jsonl"
    if not path.is_file():
        pytest.skip("no stored solutions of GSM8K")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tasks = [of(row["ground_truth"].rpartition("\nA: ")[2]) for row in rows]
    with grader(GraderConfig(answer=r"^A: (.*)$"), auto=kind) as judge:
        for model, accuracy in LABELLED.items():
            values = [grade.value for grade in judge.grade(tasks, [row[model]["solution"] for row in rows])]
            assert values == [float(row[model]["is_correct"]) for row in rows]
            assert np.mean(np.array(values, dtype=float)) == pytest.approx(accuracy, abs=5e-4)


def test_a_function_may_lie_in_a_module_and_leave_the_reference_unread(tmp_path: Path):
    """Graded texts have no single right one: the reference need not be perfect, but it must count for something."""
    config = GraderConfig(kind="function", function="finetrial.data.worlds.physics:grade")
    rubric = {"kind": "explanation", "rubric": [["product"], ["constant", "fixed"]]}
    task = Task("a", "a", (), "The force is a product of the two, as everybody ought to know by now.", None, rubric)
    with grader(config) as judge:
        assert judge.grade([task], [task.reference])[0].value == 0.5
        prove(judge, [task])
        with pytest.raises(UserError, match=r"the gold answer .* is graded 0\.5"):
            prove(judge, [dataclasses.replace(task, gold=task.reference)])
        with pytest.raises(UserError, match="is graded 0"):
            prove(judge, [dataclasses.replace(task, reference="Nothing of the kind was ever said by anybody.")])
    file = tmp_path / "two.py"
    file.write_text("def judge(completion, meta):\n    return float(meta['unit'] in completion)\n")
    with grader(GraderConfig(kind="function", function=f"{file}:judge")) as judge:
        asked = Task("b", "b", (), "x", None, {"unit": "m"})
        assert [grade.value for grade in judge.grade([asked] * 2, ["5 m", "5"])] == [1.0, 0.0]
    with pytest.raises(UserError, match=r"no module finetrial\.nowhere is installed"):
        grader_key(GraderConfig(kind="function", function="finetrial.nowhere:judge"))
