"""The process that runs what may hang, crash, eat memory or print: `python -P -m finetrial.grade.worker`.

It speaks JSON lines over the pipes it is started with: first a setup (kind, memory_mb, limit_s and what the kind
needs), answered by `{"ready": true}` or `{"error": ...}`; then one request per line, each answered by
`{"value": number or null, "reason": text}`. Whatever graded code prints goes to standard error. This bounds
accidents; it is no sandbox against malice.
"""

import faulthandler
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import numbers
import os
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

Request = dict[str, Any]
Score = Callable[[Request], Any]

MODULE = "finetrial_user_function"
"""Name of a user's file as a module, whatever the file is called."""

REASON = 300
"""Characters of a reason."""


def main() -> None:
    """Serve until the pipe closes."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    setup = json.loads(requests.readline())
    _limit_memory(setup["memory_mb"])
    try:
        score = KINDS[setup["kind"]](setup)
    except BaseException as error:  # noqa: BLE001  # a user's file may raise anything; the parent raises it again
        reply({"error": _told(error)})
        return
    reply({"ready": True})
    for line in requests:
        # Ends this process also when the parent, which keeps the time limit, is no more.
        faulthandler.dump_traceback_later(setup["limit_s"], exit=True, file=nothing)
        try:
            answer = as_grade(score(json.loads(line)))
        except BaseException as error:  # noqa: BLE001  # whatever it raises is the reason why there is no grade
            answer = {"value": None, "reason": f"raised {_told(error)}"}
        faulthandler.cancel_dump_traceback_later()
        reply(answer)


def as_grade(result: Any) -> dict[str, Any]:
    """What a function returned, as a grade: numbers and truth values in [0, 1]; all else is missing with a reason."""
    if hasattr(result, "item") and callable(result.item):
        result = result.item()  # a scalar of numpy or torch
    if result is None:
        return {"value": None, "reason": "returned None"}
    if not isinstance(result, numbers.Real):
        return {"value": None, "reason": f"returned a {type(result).__name__}, not a number"}
    value = float(result)
    if math.isnan(value) or not 0 <= value <= 1:
        return {"value": None, "reason": f"returned {value}, which is outside [0, 1]"}
    return {"value": value, "reason": ""}


def _limit_memory(megabytes: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}"[:REASON]


def _function(setup: Request) -> Score:
    """A user's `(completion, reference, meta) -> float | bool | None`, or one of `(completion, meta)`.

    From a module that is installed, or from a file, beside which it may import.
    """
    module = importlib.import_module(setup["module"]) if setup["module"] else _of_file(Path(setup["path"]))
    function = getattr(module, setup["name"])
    if _reads_reference(function):
        return lambda request: function(request["completion"], request["reference"], request["meta"])
    return lambda request: function(request["completion"], request["meta"])


def _label(setup: Request) -> Score:
    """A user's function, as `_function` takes it, that names what a completion is: any text or whole number.

    The name becomes a number in [0, 1) of 52 bits of its hash, equal for equal names alone.
    """
    name = _function(setup)

    def number(request: Request) -> float | None:
        label = name(request)
        if label is None:
            return None
        if isinstance(label, bool) or not isinstance(label, str | numbers.Integral):
            raise TypeError(f"expected a text or a whole number as name, got a {type(label).__name__}")
        return int(hashlib.sha256(str(label).encode()).hexdigest()[:13], 16) / 16**13

    return number


def _of_file(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return module


def _reads_reference(function: Callable[..., Any]) -> bool:
    """Whether it can be called with three arguments."""
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    return True


def _mathematics(setup: Request) -> Score:
    """Equality by math-verify. Its own time limits use signals; the parent's limit stands in for them."""
    import logging

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    understood = partial(parse, parsing_timeout=0)

    @lru_cache(maxsize=1024)
    def gold(reference: str) -> Any:
        return understood(f"${reference}$", [LatexExtractionConfig(), ExprExtractionConfig()])

    def score(request: Request) -> bool:
        answer = request["answer"]
        given = understood(f"${answer}$" if request["marked"] else answer)
        return bool(verify(gold(request["reference"]), given, timeout_seconds=0))

    score({"reference": "1", "answer": "1", "marked": True})  # what is imported late is imported now
    return score


def _environment(setup: Request) -> Score:
    """What the library of an environment says of an answer to a task that is found again by its index.

    The environment of the first task is made ready before time is taken; others when they are first asked of.
    """
    made = lru_cache(maxsize=32)(lambda library, name, arguments: LIBRARIES[library](name, json.loads(arguments)))

    def environment(origin: Request) -> Any:
        return made(origin["library"], origin["name"], json.dumps(origin["arguments"], sort_keys=True))

    environment(setup)
    return lambda request: environment(request)(
        request["index"], request["answer"], request["completion"], request["reference"]
    )


def _reasoning_gym(name: str, arguments: Request) -> Callable[[int, str, str, str], Any]:
    """The scorer of a data set, on an entry that is generated again from its seed and index."""
    import reasoning_gym  # pyright: ignore[reportMissingImports]  # of the extra `gym`

    dataset = reasoning_gym.create_dataset(name, **arguments)
    entry = lru_cache(maxsize=4096)(lambda index: dataset[index])

    def score(index: int, answer: str, completion: str, reference: str) -> Any:
        if entry(index)["answer"] != reference:
            raise ValueError(f"{name} generates another entry {index} than it did when the tasks were read")
        return dataset.score_answer(answer, entry(index))

    return score


def _verifiers(name: str, arguments: Request) -> Callable[[int, str, str, str], Any]:
    """The sum of a task's weighted rewards for a trace of one turn."""
    import asyncio

    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]  # of the extra `envs`
    from verifiers.v1.types import AssistantMessage  # pyright: ignore[reportMissingImports]
    from verifiers.v1.utils.loaders import load_taskset, taskset_config_type  # pyright: ignore[reportMissingImports]

    rest, tasks = iter(load_taskset(taskset_config_type(name)(**arguments, id=name))), []

    def score(index: int, answer: str, completion: str, reference: str) -> Any:
        while len(tasks) <= index:
            tasks.append(next(rest))
        task = tasks[index]
        if reference not in map(str, task.data.model_dump(mode="json").values()):
            raise ValueError(f"{name} has another task {index} than it had when the tasks were read")
        turn = vf.MessageNode(message=AssistantMessage(content=completion), sampled=True)
        subject = vf.TraceTask(type=type(task).__name__, data=task.data)
        trace = vf.Trace(task=subject, agent=vf.AgentInfo(config=vf.AgentConfig()), nodes=[turn])
        asyncio.run(task.score(trace))
        return trace.reward

    return score


LIBRARIES: dict[str, Callable[[str, Request], Callable[[int, str, str, str], Any]]] = {
    "reasoning-gym": _reasoning_gym,
    "verifiers": _verifiers,
}
"""Distribution -> a maker of `index, answer, completion, reference -> score`."""

KINDS: dict[str, Callable[[Request], Score]] = {
    "function": _function,
    "label": _label,
    "math": _mathematics,
    "environment": _environment,
}

if __name__ == "__main__":
    main()
