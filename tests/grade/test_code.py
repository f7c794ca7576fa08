"""Code is graded by its tests in a sandbox that its author cannot leave or talk round by ordinary means."""

import os
import select
import time

import pytest

from finetrial.errors import UserError
from finetrial.grade import code as module
from finetrial.grade.code import code_of, defines, module_of
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import grader, grader_key, prove
from finetrial.grade.sandbox import Ended, Limits, SandboxFailure, prove_sandbox, run_tests
from finetrial.records import Task

PROMPT = 'from typing import List\n\ndef add(xs: List[int]) -> int:\n    """Sum."""\n'
TESTS = (
    "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert abs(candidate([]) - 0) < 1e-6\n\ncheck(add)\n"
)
TASK = Task(
    "add", "add", ({"role": "user", "content": PROMPT},), "    return sum(xs)\n", gold="    return sum(xs)\n",
    meta={"code": {"prompt": PROMPT, "tests": TESTS, "entry_point": "add"}},
)  # fmt: skip
QUICK = Limits(cpu_s=1)


@pytest.fixture(scope="module", autouse=True)
def _sandbox():
    try:
        prove_sandbox(QUICK)
    except UserError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def test_the_last_block_that_defines_the_entry_point_is_the_code():
    blocks = ["python\ndef add(x): return 1\n", "py\ndef add(x): return 2\n", "\nadd(1)\n"]
    text = "\n".join(f"See:\n```{block}```" for block in blocks)
    assert code_of(text, "add") == "def add(x): return 2\n"
    assert code_of(text, "sub") == "add(1)\n"
    assert code_of("```bash\nls\n```", "add") == "```bash\nls\n```"
    assert code_of("```python\ndef add(x):\n    return 1", "add") == "def add(x):\n    return 1"
    assert code_of("    return 1", "add") == "    return 1"
    assert code_of("<think>```python\ndef add(): 0\n```</think>    return 2", "add") == "    return 2"
    assert code_of("<think>    return 1", "add") is None
    assert code_of(" \n", "add") is None


def test_code_goes_on_from_the_prompt_or_follows_it():
    assert defines("async def add(x): pass", "add")
    assert defines("add = sum", "add")
    assert not defines("    def add(x): pass", "add")
    assert not defines("add == 1\nadder = 2", "add")
    assert module_of(PROMPT, "    return 1", "add") == PROMPT + "    return 1"
    assert module_of(PROMPT, "def add(xs: List[int]): return 1", "add").endswith(
        '"""\n\ndef add(xs: List[int]): return 1'
    )


@pytest.mark.parametrize(
    ("code", "verdict", "reason"),
    [
        ("def add(xs): return sum(xs)", "passed", ""),
        ("def add(xs): return len(xs)", "failed", "AssertionError while running the tests"),
        ("def add(xs): return xs['a']", "error", "TypeError while running the tests"),
        ("def add(xs) return 1", "error", "SyntaxError while running the completion"),
        ("assert False", "error", "AssertionError while running the completion"),
        ("def other(xs): return 1", "error", "defines no add"),
        ("x = [0] * 10**10\ndef add(xs): return 1", "memory", "out of memory while running the completion"),
        ("import os\nos._exit(0)", "error", "exit code 0 before the tests ended"),
        ("import os\ndef add(xs): os._exit(0)", "error", "exit code 0 before the tests ended"),
        ("import sys\ndef add(xs): sys.exit(0)", "error", "SystemExit while running the tests"),
        ("import os\ndef add(xs): os.kill(os.getpid(), 9)", "error", "killed by SIGKILL before"),
        ("import os\ndef add(xs):\n    while True: os.fork()", "error", "BlockingIOError while running the tests"),
        ("import subprocess\ndef add(xs): return subprocess.run(['true'])", "error", "while running the tests"),
        ("print('passed')\nprint('-\\npassed\\n')\ndef add(xs): return 0", "failed", "AssertionError"),
        # what hides a built-in name from the tests
        ("import builtins\nbuiltins.abs = lambda x: 0\ndef add(xs): return 3", "failed", "AssertionError"),
        ("def abs(x): return 0\ndef add(xs): return 3", "failed", "AssertionError"),
        ("import builtins\nbuiltins.AssertionError = KeyError\ndef add(xs): return 0", "failed", "AssertionError"),
        ("import builtins\nbuiltins.exec = lambda *a: 0\ndef add(xs): return 0", "failed", "AssertionError"),
        # what it is bounded by
        ("import socket\ndef add(xs): socket.create_connection(('127.0.0.1', 80))", "error", "Network is unreachable"),
        ("def add(xs): open('/tmp/finetrial-x', 'w')", "error", "Read-only file system"),
        ("def add(xs):\n    with open('mine', 'w') as f:\n        f.write('x' * 2**26)", "error", "OSError"),
        ("import os\ndef add(xs): return 3 * bool(set(os.environ) - {'LC_CTYPE'})", "failed", "AssertionError"),
        ("import os\ndef add(xs):\n    with open('mine', 'w') as f: f.write('x')\n    return sum(xs)", "passed", ""),
    ],
)  # fmt: skip
def test_verdicts(code, verdict, reason):
    found = run_tests(code, TESTS, "add", QUICK)
    assert found.verdict == verdict, found
    assert reason in found.reason


@pytest.mark.parametrize("loop", ["pass", "print('x' * 1000)"])
def test_endless_work_and_output_end(loop):
    assert run_tests(f"def add(xs):\n    while True: {loop}", TESTS, "add", QUICK).verdict == "timeout"


def test_sleepers_end_by_the_wall(monkeypatch):
    monkeypatch.setattr("finetrial.grade.sandbox.WALL_EXTRA_S", 1.0)
    monkeypatch.setattr("finetrial.grade.sandbox.WALL_FACTOR", 1.0)
    began = time.monotonic()
    found = run_tests("import time\ndef add(xs): time.sleep(60)", TESTS, "add", QUICK)
    assert found == Ended("timeout", "wall time was up")
    assert time.monotonic() - began < 30


def test_nothing_outlives_its_sandbox(tmp_path, monkeypatch):
    """What has left its process group ends as well: the pipe that it holds is closed."""
    monkeypatch.setattr("finetrial.grade.sandbox.WALL_EXTRA_S", 1.0)
    monkeypatch.setattr("finetrial.grade.sandbox.WALL_FACTOR", 2.0)
    os.mkfifo(tmp_path / "held")
    ours = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    code = (
        f"import os, time\nos.setsid()\nheld = os.open({str(tmp_path / 'held')!r}, os.O_WRONLY)\nos.write(held, b'x')\n"
    )
    assert run_tests(code + "time.sleep(60)", TESTS, "add", QUICK).verdict == "timeout"
    assert os.read(ours, 1) == b"x"
    poll = select.poll()
    poll.register(ours, 0)
    assert poll.poll(5000) == [(ours, select.POLLHUP)]
    os.close(ours)


def test_grades_tell_the_verdict_and_gold_is_right():
    with grader(GraderConfig(kind="code", timeout_s=2, workers=2)) as one:
        prove(one, [TASK])
        texts = ["    return sum(xs)\n", "```python\ndef add(xs):\n    return 0\n```", "", "    return xs.total\n"]
        grades = one.grade([TASK] * 4, texts)
    assert [grade.value for grade in grades] == [1.0, 0.0, 0.0, 0.0]
    assert grades[0].reason == "passed"
    assert grades[1].reason.startswith("failed: AssertionError")
    assert grades[2].reason == "no answer found"
    assert grades[3].reason.startswith("error: AttributeError")


def test_a_sandbox_that_fails_is_missing_and_never_wrong(monkeypatch):
    def broken(*_):
        raise SandboxFailure("no pipes")

    monkeypatch.setattr(module, "run_tests", broken)
    with grader(GraderConfig(kind="code")) as one:
        (grade,) = one.grade([TASK], ["    return 1"])
    assert grade.value is None
    assert grade.reason == "the sandbox failed: no pipes"


def test_code_is_not_run_where_it_cannot_be_locked_in(monkeypatch):
    def refused(*_):
        raise SandboxFailure("unshare: Operation not permitted")

    monkeypatch.setattr("finetrial.grade.sandbox.run_tests", refused)
    with pytest.raises(UserError, match=r"cannot be run in a sandbox here: unshare.*say network = 'allowed'"):
        prove_sandbox(Limits(cpu_s=7))


def test_without_namespaces_the_rest_still_holds():
    """As asked for by network = 'allowed'; root becomes nobody, who must be able to read the interpreter."""
    limits = Limits(cpu_s=1, isolated=False)
    try:
        prove_sandbox(limits)
    except UserError as error:
        assert os.getuid() == 0
        assert "user nobody, which stands in for root, cannot read" in str(error)  # noqa: PT017
        pytest.skip(str(error))
    assert run_tests("def add(xs): return sum(xs)", TESTS, "add", limits).verdict == "passed"
    assert run_tests("import os\ndef add(xs): os._exit(0)", TESTS, "add", limits).verdict == "error"
    assert "BlockingIOError" in run_tests("import os\ndef add(xs): os.fork()", TESTS, "add", limits).reason


def test_what_makes_no_sense_is_refused():
    with (
        grader(GraderConfig(kind="code")) as one,
        pytest.raises(UserError, match="task t: kind is code, but it has no tests"),
    ):
        one.grade([Task("t", "t", ({"role": "user", "content": "?"},), "1")], ["1"])
    with pytest.raises(ValueError, match="`answer` has no effect"):
        GraderConfig(kind="code", answer="x")
    assert grader_key(GraderConfig(kind="code")) != grader_key(GraderConfig(kind="code", network="allowed"))
