"""Grades of code by its tests: where a completion holds the code, and what the sandbox makes of it.

A task's `meta["code"]` has `prompt` (what the completion goes on from: imports, signature, docstring), `tests` (a
module that raises AssertionError) and `entry_point` (the name that is tested).
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from finetrial.errors import UserError
from finetrial.grade.answers import THINKING
from finetrial.grade.config import GraderConfig
from finetrial.grade.rules import NO_ANSWER, RIGHT, WRONG
from finetrial.grade.sandbox import Limits, SandboxFailure, prove_sandbox, run_tests
from finetrial.records import Grade, Task

FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
PYTHON = ("", "python", "py", "python3")
"""Languages of blocks that count."""


def code_of(text: str, entry_point: str) -> str | None:
    """The code of a completion.

    What stands before a closing `</think>` is not searched; a completion whose `<think>` is never closed has none. Of
    the fenced Python blocks it is the last that defines `entry_point`, else the last; a block that is never closed
    goes to the end. A text without such blocks is code as a whole, its indentation kept.
    """
    opening, closing = THINKING
    if closing in text:
        text = text.rpartition(closing)[2]
    elif opening in text:
        return None
    blocks = [body for _, language, body in FENCE.findall(text) if language.casefold() in PYTHON]
    if not blocks:
        return text if text.strip() else None
    return next((block for block in reversed(blocks) if defines(block, entry_point)), blocks[-1])


def defines(code: str, entry_point: str) -> bool:
    """Whether code defines a global name: as a function, a class or by an assignment at the beginning of a line."""
    name = re.escape(entry_point)
    defined = rf"^(?:(?:async\s+)?def\s+{name}\b|class\s+{name}\b|{name}\s*(?::[^=\n]*)?=(?!=))"
    return re.search(defined, code, re.MULTILINE) is not None


def module_of(prompt: str, code: str, entry_point: str) -> str:
    """The module to be tested: code that defines the entry point follows the prompt, whose imports it may need; other
    code goes on where the prompt ends (as in Chen et al. 2021, arXiv:2107.03374)."""
    return f"{prompt}\n{code}" if defines(code, entry_point) else prompt + code


def grade_code(pairs: Sequence[tuple[Task, str]], config: GraderConfig) -> list[Grade]:
    """1 where all tests pass; 0, with the verdict as reason, where they do not; missing where the sandbox failed.

    Raises:
        UserError: a task without tests, or code cannot be run in a sandbox here.
    """
    limits = Limits(config.timeout_s, config.memory_mb, isolated=config.network == "none")
    for task, _ in pairs:
        if not isinstance(task.meta.get("code"), dict):
            raise UserError(f"task {task.id}: kind is code, but it has no tests; expected prompt, test and entry_point")
    prove_sandbox(limits)

    def one(pair: tuple[Task, str]) -> Grade:
        task, text = pair
        wanted = task.meta["code"]
        code = code_of(text, wanted["entry_point"])
        if code is None:
            return NO_ANSWER
        try:
            found = run_tests(
                module_of(wanted["prompt"], code, wanted["entry_point"]), wanted["tests"], wanted["entry_point"], limits
            )
        except SandboxFailure as error:
            return Grade(None, f"the sandbox failed: {error}")
        if found.verdict == "passed":
            return Grade(RIGHT, "passed")
        return Grade(WRONG, f"{found.verdict}: {found.reason}")

    if config.workers == 1:
        return [one(pair) for pair in pairs]
    with ThreadPoolExecutor(config.workers) as threads:
        return list(threads.map(one, pairs))
