"""Tasks of environments that bring their own scorer: the data sets of reasoning-gym."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from finetrial.data.task_rows import Question
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
            meta={"environment": {"name": name, "arguments": arguments, "index": index}},
        )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
