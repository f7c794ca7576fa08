"""Programming problems as tasks, their grades by tests, and pass@k of stored counts."""

import json

import numpy as np
import pytest

from finetrial.analyze.passk import pass_at_k
from finetrial.data.code_tasks import code_task
from finetrial.data.tasks import TaskConfig, read_tasks
from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import grader, prove
from finetrial.grade.sandbox import Limits, prove_sandbox

ROW = {
    "task_id": "Ours/0",
    "prompt": 'from typing import List\n\n\ndef largest(xs: List[int]) -> int:\n    """The largest number.\n    """\n',
    "entry_point": "largest",
    "canonical_solution": "    return max(xs)\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 3, 2]) == 3\n",
}


def test_problems_are_read_and_their_solutions_pass(tmp_path):
    (tmp_path / "problems.jsonl").write_text(json.dumps(ROW) + "\n")
    tasks = read_tasks(TaskConfig(source=str(tmp_path / "problems.jsonl")))
    assert tasks.grader == "code"
    (task,) = tasks.tasks
    assert task.id == "Ours/0"
    assert task.gold == ROW["canonical_solution"]
    assert task.meta["code"]["tests"].endswith("check(largest)\n")
    config = GraderConfig(timeout_s=2)
    try:
        prove_sandbox(Limits(config.timeout_s, config.memory_mb))
    except UserError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    with grader(config, tasks.grader) as one:
        prove(one, tasks.tasks)
        text = "```python\ndef largest(xs: List[int]) -> int:\n    return sorted(xs)[-1]\n```"
        assert [grade.value for grade in one.grade([task] * 2, [text, "    return xs[0]\n"])] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"canonical_solution": " "}, "row 1: canonical_solution is empty or no text"),
        ({"prompt": None}, "row 1: prompt is empty or no text"),
        ({"entry_point": "a b"}, "row 1: entry_point is 'a b'; expected the name of a function"),
    ],
)
def test_rows_that_lack_something_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        code_task({**ROW, **change}, "row 1")
    with pytest.raises(UserError, match="test is missing"):
        code_task({key: value for key, value in ROW.items() if key != "test"}, "row 1")


def test_pass_at_k_of_stored_counts(data_dir):
    """Right samples of 100 for each of HumanEval's 164 problems by a model of 16 billion parameters."""
    counts = json.loads((data_dir / "codet_humaneval" / "derived_counts.json").read_text())
    n, c = np.array(counts["n"]), np.array(counts["c"])
    assert len(n) == 164
    for k, value in ((1, 0.2165), (10, 0.4960), (100, 0.7256)):
        assert pass_at_k(n, c, k).mean() == pytest.approx(value, abs=5e-5)
