"""Grades of completions, whatever gives them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetrial.errors import UserError, nearest
from finetrial.grade.answers import compiled, find_answer, is_marked
from finetrial.grade.code import grade_code
from finetrial.grade.config import GraderConfig
from finetrial.grade.judge_config import JudgeConfig
from finetrial.grade.plain import normalised
from finetrial.grade.pool import Pool
from finetrial.grade.rules import NO_ANSWER, RIGHT, RULES
from finetrial.identity import digest, file_digest
from finetrial.records import Grade, Task

VERSION = 1
"""Raised whenever a rule gives another grade than before."""

ORIGIN = ("library", "name", "arguments")
"""What an environment's worker needs to know before it is asked."""

CHUNK = 16
OFFENDERS = 3


def _mathematics(task: Task, text: str, config: GraderConfig) -> Grade | dict[str, Any]:
    """Equal spellings are equal; all else is asked of math-verify, on the answer or, unmarked, on the whole text."""
    answer = find_answer(text, config.answer)
    if not answer:
        return NO_ANSWER
    if normalised(answer) == normalised(task.reference):
        return Grade(RIGHT)
    marked = config.answer is not None or is_marked(text)
    return {"reference": task.reference, "answer": answer, "marked": marked}


def _function(task: Task, text: str, config: GraderConfig) -> Grade | dict[str, Any]:
    return {"completion": text, "reference": task.reference, "meta": dict(task.meta)}


def _environment(task: Task, text: str, config: GraderConfig) -> Grade | dict[str, Any]:
    """The environment scores the answer; an empty one is wrong, though some environments give a little for it."""
    if "environment" not in task.meta:
        raise UserError(f"task {task.id}: kind is environment, but its source is none; expected gym:NAME")
    answer = find_answer(text, config.answer)
    if not answer:
        return NO_ANSWER
    return {**task.meta["environment"], "answer": answer, "completion": text, "reference": task.reference}


@dataclass(frozen=True)
class Way:
    """How one kind of grader works: by a rule in this process, or by what a worker is asked."""

    rule: Callable[[Task, str, GraderConfig], Grade] | None = None
    request: Callable[[Task, str, GraderConfig], Grade | dict[str, Any]] | None = None
    """What to ask, or the grade where nothing needs to be asked."""
    together: Callable[[Sequence[tuple[Task, str]], GraderConfig], list[Grade]] | None = None
    """Grades many at once, in processes of its own."""
    options: tuple[str, ...] = ()
    """Fields of the configuration that change grades, beside the kind."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions change grades (that of an environment's library stands in its tasks' meta)."""


_BOUNDS = ("timeout_s", "memory_mb")

WAYS: dict[str, Way] = {
    "exact": Way(rule=RULES["exact"], options=("answer",)),
    "numeric": Way(rule=RULES["numeric"], options=("answer", "tolerance", "relaxed")),
    "choice": Way(rule=RULES["choice"], options=("answer", "relaxed")),
    "math": Way(
        request=_mathematics,
        options=("answer", *_BOUNDS),
        libraries=("math-verify", "latex2sympy2_extended", "sympy"),
    ),
    "function": Way(request=_function, options=_BOUNDS),
    "label": Way(request=_function, options=_BOUNDS),
    "environment": Way(request=_environment, options=("answer", *_BOUNDS)),
    "code": Way(together=grade_code, options=("network", *_BOUNDS)),
    "judge": Way(options=("judge",)),  # asked by `finetrial.judge`, which opens graders of every kind
}
"""Every kind of grader."""


class Grader:
    """Grades completions; a context manager, for some kinds hold worker processes."""

    def __init__(self, config: GraderConfig, kind: str):
        self.config, self.kind, self._way = config, kind, WAYS[kind]
        self._setup: dict[str, Any] = {"kind": kind, "memory_mb": config.memory_mb}
        if config.function is not None:
            path, name, module = _located(config.function)
            self._setup |= {"path": str(path.resolve()), "name": name, "module": module}
        self._pool: Pool | None = None

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; they start again when something is graded."""
        if self._pool is not None:
            self._pool.close()

    def grade(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[Grade]:
        """One grade per task and completion.

        An answer that is missing from a completion or is not understood is wrong (0); a grade is missing (None, with
        a reason) where the grader failed: its time was up, it crashed, it returned no number in [0, 1].

        Raises:
            UserError: a reference that this kind of grader cannot use, or a user's function that cannot be loaded.
            ValueError: as many tasks as texts were expected.
        """
        pairs = list(zip(tasks, texts, strict=True))
        if self._way.rule is not None:
            rule = self._way.rule
            return [rule(task, text, self.config) for task, text in pairs]
        if self._way.together is not None:
            return self._way.together(pairs, self.config)
        assert self._way.request is not None
        request = self._way.request
        found = [request(task, text, self.config) for task, text in pairs]
        asked = iter(self._ask([item for item in found if not isinstance(item, Grade)]))
        return [item if isinstance(item, Grade) else next(asked) for item in found]

    def _ask(self, requests: Sequence[dict[str, Any]]) -> list[Grade]:
        if not requests:
            return []
        if self._pool is None:
            # What the first request is about is imported and made ready before time is taken.
            ready = {key: requests[0][key] for key in ORIGIN if key in requests[0]}
            self._pool = Pool({**self._setup, **ready}, self.config.timeout_s, self.config.workers)
        return self._pool.ask(requests)


def grader(config: GraderConfig, auto: str = "exact") -> Grader:
    """The grader of a configuration; `auto` is the kind that the source of the tasks brings (`TaskSet.grader`).

    Raises:
        UserError: an `answer` that is no regular expression, a function whose file is not there, or a kind whose
            library is not installed (with the extra that brings it).
        ValueError: a judge, which `finetrial.judge.grader.open_grader` opens.
    """
    kind = resolved(config, auto)
    if kind == "judge":
        raise ValueError(
            "a judge is opened by finetrial.judge.grader.open_grader, which knows where judgments are kept"
        )
    if config.answer is not None:
        compiled(config.answer)
    for library in WAYS[kind].libraries:
        _installed(library)
    return Grader(config, kind)


def resolved(config: GraderConfig, auto: str = "exact") -> str:
    """The kind of grader that a configuration stands for."""
    kind = auto if config.kind == "auto" else config.kind
    if kind not in WAYS:
        raise UserError(f"grader: no kind {kind!r}{nearest(kind, WAYS)}; there are {', '.join(WAYS)}")
    return kind


def grader_key(config: GraderConfig, auto: str = "exact") -> str:
    """Identity of everything that changes grades: kind, its options, a function's file, versions of libraries.

    Time and memory limits count, for they decide what is missing; the number of workers does not. Of a user's
    function, only the bytes of its own file are known, not those of what it imports.
    """
    kind = resolved(config, auto)
    way = WAYS[kind]
    function = None
    if config.function is not None:
        path, name, _ = _located(config.function)
        function = {"sha256": file_digest(path), "name": name}
    return digest(
        {
            "version": VERSION,
            "kind": kind,
            "options": {name: _option(config, name) for name in way.options},
            "function": function,
            "libraries": {library: _installed(library) for library in way.libraries},
        }
    )


def _option(config: GraderConfig, name: str) -> Any:
    value = getattr(config, name)
    return value.science() if isinstance(value, JudgeConfig) else value


def prove(grader: Grader, tasks: Sequence[Task]) -> None:
    """Check a grader on what is known: gold answers are graded 1, an empty completion 0 or not at all.

    A task without a gold completion is checked with its reference in the place of the answer, that is without the
    configured `answer` expression, for which the reference was not written. A function gives shares of 1, and a
    reference may be one good text among many: there it must be graded above the empty completion.

    Raises:
        UserError: naming the first tasks that are graded otherwise.
    """
    worked = [task for task in tasks if task.gold is not None]
    bare = [task for task in tasks if task.gold is None]
    _prove(grader, worked, [task.gold or "" for task in worked])
    if bare and grader.config.answer is not None:
        with Grader(grader.config.model_copy(update={"answer": None}), grader.kind) as unmarked:
            _prove(unmarked, bare, [task.reference for task in bare])
    else:
        _prove(grader, bare, [task.reference for task in bare])


def _prove(grader: Grader, tasks: Sequence[Task], golds: Sequence[str]) -> None:
    offenders: list[str] = []
    for start in range(0, len(tasks), CHUNK):
        part = tasks[start : start + CHUNK]
        right = grader.grade(part, golds[start : start + CHUNK])
        empty = grader.grade(part, [""] * len(part))
        for task, gold, nothing in zip(part, right, empty, strict=True):
            shared = grader.kind == "function" and task.gold is None
            if not (gold.value == RIGHT or (shared and (gold.value or 0.0) > 0)):
                offenders.append(f"task {task.id}: the gold answer {task.reference[:60]!r} is graded {_shown(gold)}")
            if nothing.value:
                offenders.append(f"task {task.id}: an empty completion is graded {_shown(nothing)}")
        if len(offenders) >= OFFENDERS:
            break
    if offenders:
        raise UserError(f"grader {grader.kind}: " + "; ".join(offenders[:OFFENDERS]))


def _shown(grade: Grade) -> str:
    value = "missing" if grade.value is None else f"{grade.value:g}"
    return f"{value} ({grade.reason})" if grade.reason else value


def _located(function: str) -> tuple[Path, str, str | None]:
    """File and name of a user's function, and its module where it was named by one."""
    place, _, name = function.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(
            f"function: {function!r} names no function; expected path/to/file.py:name or package.module:name"
        )
    if not place.endswith(".py") and all(part.isidentifier() for part in place.split(".")):
        return _source_of(place), name, place
    if not Path(place).is_file():
        folder = Path(place).parent
        beside = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        raise UserError(f"function: {place}: no such file{nearest(Path(place).name, beside)}")
    return Path(place), name, None


def _source_of(module: str) -> Path:
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None or not found.has_location:
        raise UserError(f"function: no module {module} is installed; expected path/to/file.py:name or such a module")
    return Path(found.origin)


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError as error:
        raise UserError(f"{library} is not installed; pip install 'finetrial[train]' brings it") from error
