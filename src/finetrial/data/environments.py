"""Tasks of environments that bring their own scorer: data sets of reasoning-gym, tasksets of verifiers."""

import dataclasses
import inspect
import itertools
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qsl

from finetrial.data.task_rows import ANSWER_KEYS, Question, prompt_messages
from finetrial.errors import UserError, nearest

DEFAULTS = {"count": "1000", "seed": "0"}


def gym_tasks(source: str, limit: int | None, place: str) -> Iterator[Question]:
    """Entries of `gym:NAME?count=N&seed=S&key=value`, generated from seed and index.

    Other keys are those of the data set's configuration; a value is JSON, or else a text. The grader generates the
    entry again, so that a task carries only where it comes from.

    Raises:
        UserError: reasoning-gym is not installed, no such data set, key or value, or entries without an answer.
    """
    try:
        from reasoning_gym import create_dataset  # pyright: ignore[reportMissingImports]
        from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise UserError(f"[{place}] {source}: needs reasoning-gym; pip install 'finetrial[gym]' brings it") from error
    name, _, query = source.removeprefix("gym:").partition("?")
    if name not in DATASETS:
        raise UserError(f"[{place}] {source}: reasoning-gym has no data set {name!r}{nearest(name, DATASETS)}")
    fields = {field.name for field in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
    options: dict[str, Any] = dict(DEFAULTS)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in DEFAULTS and key not in fields:
            valid = [*DEFAULTS, *sorted(fields)]
            raise UserError(
                f"[{place}] {source}: unknown option {key!r}{nearest(key, valid)}; there are {', '.join(valid)}"
            )
        options[key] = value
    for key in DEFAULTS:
        if not options[key].isdecimal() or (key == "count" and int(options[key]) < 1):
            raise UserError(f"[{place}] {source}: {key} is {options[key]!r}; expected a whole number")
    arguments: dict[str, Any] = {key: _value(value) for key, value in options.items() if key not in DEFAULTS}
    arguments |= {"seed": int(options["seed"]), "size": int(options["count"])}
    try:
        dataset = create_dataset(name, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"[{place}] {source}: {told}") from error
    for index in itertools.islice(range(arguments["size"]), limit):
        entry = dataset[index]
        where = f"{source} entry {index}"
        answer = entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise UserError(f"[{place}] {where}: has no answer to check a grader with; choose another data set")
        yield Question(
            place=f"[{place}] {where}",
            id=f"{name}-{arguments['seed']}-{index}",
            group=None,
            messages=({"role": "user", "content": entry["question"]},),
            reference=answer,
            gold=answer,
            style="environment",
            meta={"environment": _origin("reasoning-gym", name, arguments, index)},
        )


def verifiers_tasks(source: str, limit: int | None, place: str) -> Iterator[Question]:
    """Tasks of an installed taskset `env:NAME?key=value` of verifiers (its v1 interface), answered in one turn.

    Other keys are those of the taskset's configuration; a value is JSON, or else a text. Its rewards score a
    completion in a worker; their sum is the grade. The reference is the task's field `answer` (or another of
    `ANSWER_KEYS`).

    Raises:
        UserError: verifiers is not installed, no such taskset or key, a task without prompt or answer, or one that
            needs more than one turn of text: tools, a container, a runtime, a judge, an environment of its own.
    """
    try:
        from verifiers.v1 import Task as Theirs  # pyright: ignore[reportMissingImports]
        from verifiers.v1.envs.single_agent import SingleAgentEnv  # pyright: ignore[reportMissingImports]
        from verifiers.v1.utils.loaders import (  # pyright: ignore[reportMissingImports]
            environment_class,
            load_taskset,
            taskset_config_type,
        )
    except ModuleNotFoundError as error:
        raise UserError(f"[{place}] {source}: needs verifiers; pip install 'finetrial[envs]' brings it") from error
    name, _, query = source.removeprefix("env:").partition("?")
    arguments = {key: _value(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    try:
        configure = taskset_config_type(name)
        unknown = next((key for key in arguments if key not in configure.model_fields), None)
        if unknown is not None:
            valid = sorted(configure.model_fields)
            hint = nearest(unknown, valid)
            raise UserError(f"[{place}] {source}: unknown option {unknown!r}{hint}; there are {', '.join(valid)}")
        taskset = load_taskset(configure(**arguments, id=name))
    except (ModuleNotFoundError, AttributeError, TypeError) as error:
        raise UserError(f"[{place}] {source}: {str(error).splitlines()[0]}") from error
    if environment_class(name) is not SingleAgentEnv or taskset.toolsets(taskset.config):
        raise UserError(f"[{place}] {source}: has an environment or tools of its own; only single turns are read")
    for index, task in enumerate(itertools.islice(taskset, limit)):
        where = f"[{place}] {source} task {index}"
        needs = _needs(task, Theirs)
        if needs:
            raise UserError(f"{where}: needs {needs}; only single turns of text are read")
        data = task.data.model_dump(mode="json")
        answer = next((data[key] for key in ANSWER_KEYS if data.get(key) not in (None, "")), None)
        if answer is None:
            raise UserError(f"{where}: has no answer to check a grader with; expected one of {', '.join(ANSWER_KEYS)}")
        messages = prompt_messages(data["prompt"], where, "prompt")
        if data["system_prompt"]:
            messages = ({"role": "system", "content": data["system_prompt"]}, *messages)
        yield Question(
            place=where,
            id=data["id"] or data["name"] or f"{name}-{index}",
            group=None,
            messages=messages,
            reference=str(answer),
            gold=None,
            style="environment",
            meta={"environment": _origin("verifiers", name, arguments, index)},
        )


def _needs(task: Any, theirs: Any) -> str | None:
    """What a task of verifiers needs beyond one turn of text."""
    kind = type(task)
    if task.NEEDS_CONTAINER or task.data.image is not None:
        return "a container"
    if task.toolsets(task.config):
        return "tools"
    if task.config.judges:
        return "a judge"
    if kind.setup is not theirs.setup or kind.finalize is not theirs.finalize:
        return "a runtime"
    signatures = [inspect.signature(reward).parameters.get("runtime") for reward in task.hooks("reward")]
    if any(found is not None and found.default is inspect.Parameter.empty for found in signatures):
        return "a runtime"
    return None if signatures else "a reward"


def _origin(library: str, name: str, arguments: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Where a task comes from, and by which version: what its scorer needs to find it again."""
    found = {"library": library, "version": version(library), "name": name, "arguments": dict(arguments)}
    return {**found, "index": index}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
