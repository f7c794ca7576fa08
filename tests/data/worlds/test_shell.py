"""The simulated projects are consistent, and the hidden skill of the agents shows."""

import json
from collections import defaultdict

import numpy as np
import pytest

from finetrial.data.worlds import shell
from finetrial.data.worlds.dice import Dice
from finetrial.data.worlds.project import DEFECTS, TOOLS, Task, Workspace, draw_task

EXAMPLES = list(shell.generate(1600, 3, "campaign"))
TASKS = [draw_task(Dice(0, "test", i)) for i in range(300)]


def mend(task: Task, workspace: Workspace) -> None:
    if task.wrong:
        assert workspace.call("edit_file", {"path": task.target, "old": task.wrong, "new": task.right}).startswith("E")
    else:
        workspace.call("write_file", {"path": task.target, "text": task.right})


def test_every_kind_of_defect_occurs() -> None:
    assert {task.kind for task in TASKS} == set(DEFECTS)


@pytest.mark.parametrize("task", TASKS[:60], ids=lambda task: task.kind)
def test_tests_pass_exactly_when_the_defect_is_mended(task: Task) -> None:
    workspace = Workspace(task)
    assert not workspace.solved()
    before = workspace.call("run_tests", {})
    assert (task.failure in before and "failed" in before) if task.failure else "failed" not in before
    mend(task, workspace)
    assert workspace.solved()
    assert "failed" not in workspace.call("run_tests", {})


@pytest.mark.parametrize("task", TASKS[:60], ids=lambda task: task.kind)
def test_the_defect_differs_from_the_solution_in_one_file(task: Task) -> None:
    changed = {path for path in task.solution if task.files.get(path) != task.solution[path]}
    assert changed == {task.target}
    assert task.right in task.solution[task.target]
    assert task.wrong != task.right
    if task.wrong:
        assert task.files[task.target].split("\n")[task.line - 1].strip() == task.wrong


def test_tools_answer_from_the_state() -> None:
    task = next(task for task in TASKS if task.kind == "constant" and task.tools == TOOLS)
    workspace = Workspace(task)
    assert (
        workspace.call("list_files", {}).split("\n")
        == sorted(task.files)
        == workspace.call("shell", {"command": "ls"}).split("\n")
    )
    assert workspace.call("read_file", {"path": task.target}) == task.files[task.target]
    assert f"{task.target}:1: {task.wrong}" in workspace.call("search", {"text": task.symbol})
    assert workspace.call("search", {"text": "nowhere"}) == "No matches for 'nowhere'"
    assert workspace.call("read_file", {"path": "x.py"}) == "Error: No such file or directory: 'x.py'"
    assert workspace.call("edit_file", {"path": "x.py", "old": "a", "new": "b"}).startswith("Error: No such file")
    assert workspace.call("edit_file", {"path": task.target, "old": "??", "new": "b"}).startswith("Error: text not")
    assert workspace.call("shell", {"command": "pytst"}) == "sh: pytst: command not found"
    workspace.call("edit_file", {"path": task.target, "old": task.wrong, "new": "X = 1"})
    assert workspace.call("read_file", {"path": task.target}).startswith("X = 1\n")
    assert f"wrong result in {task.target}" in workspace.call("run_tests", {})


def test_a_tool_that_is_not_there_is_an_error() -> None:
    task = next(task for task in TASKS if "list_files" not in task.tools)
    assert Workspace(task).call("list_files", {}) == "Error: unknown tool 'list_files'"


def test_replaying_the_calls_gives_the_observations_and_the_outcome() -> None:
    seed, candidate = 3, 0
    checked = 0
    for start in range(0, 400, shell.ATTEMPTS):
        attempts = EXAMPLES[start : start + shell.ATTEMPTS]
        while True:
            task = draw_task(Dice(seed, "worlds/shell", shell.VERSION, candidate))
            candidate += 1
            if f"shell-{shell.problem_digest(task.canonical())[:16]}" == attempts[0].group:
                break
        for attempt in attempts:
            workspace = Workspace(task)
            calls = [m["tool_calls"][0] for m in attempt.messages if m.get("tool_calls")]
            told = [m["content"] for m in attempt.messages if m["role"] == "tool"]
            assert [workspace.call(call["name"], json.loads(call["arguments"])) for call in calls] == told
            assert attempt.resolved is workspace.solved()
            checked += 1
    assert checked == 400


def test_trajectories_have_the_shape_of_a_conversation() -> None:
    for example in EXAMPLES:
        roles = [message["role"] for message in example.messages]
        calls = example.meta["calls"]
        assert roles == ["system", "user", *["assistant", "tool"] * calls, "assistant"]
        assert 2 <= calls <= shell.MAX_CALLS
        assert set(example.tools) <= set(TOOLS)
        assert example.meta["errors"] == sum(
            shell.is_error(m["content"]) for m in example.messages if m["role"] == "tool"
        )


def test_attempts_share_their_task() -> None:
    groups = defaultdict(list)
    for example in EXAMPLES:
        groups[example.group].append(example)
    assert {len(rows) for rows in groups.values()} == {shell.ATTEMPTS}
    for rows in groups.values():
        assert len({row.messages[1]["content"] for row in rows}) == 1
        assert [row.meta["trial"] for row in rows] == list(range(shell.ATTEMPTS))


def test_few_rows_repeat_another_word_for_word() -> None:
    assert len({example.content_hash for example in EXAMPLES}) > 0.97 * len(EXAMPLES)


def test_skill_shows_in_steps_errors_and_success() -> None:
    skill = np.array([example.meta["skill"] for example in EXAMPLES])
    for fact, sign in (("calls", -1), ("errors", -1)):
        measured = np.array([example.meta[fact] for example in EXAMPLES])
        assert sign * np.corrcoef(skill, measured)[0, 1] > 0.4
    resolved = np.array([example.resolved for example in EXAMPLES])
    assert resolved[skill < 0.2].mean() < 0.4
    assert resolved[skill > 0.8].mean() > 0.95
    assert 0.6 < resolved.mean() < 0.85
