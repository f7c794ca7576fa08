"""Identity of what other people's code holds: canonical text of documents, configurations and functions."""

import inspect
import json
import re
from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any


def text_of(value: Any) -> str:
    """Canonical JSON of what the harness holds; of functions their file's text, of other things no addresses."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """What JSON can write, in which things that differ stay so: arrays in full, 1 as a name is not "1"."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {_name(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Set):  # in an order that is the same in every process
        return sorted(map(text_of, value))
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if callable(value):
        return source_of(value)
    if hasattr(value, "tolist"):  # numpy and torch, whose str() leaves out the middle of what is long
        return _plain(value.tolist())
    return _without_address(value)


def _name(key: Any) -> str:
    return key if isinstance(key, str) else f"{type(key).__name__} {_without_address(key)}"


def _without_address(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def source_of(value: Any) -> list[str]:
    """The name of a function or class, and the text of the file that defines it and its helpers."""
    name = getattr(value, "__qualname__", type(value).__qualname__)
    try:
        file = inspect.getsourcefile(inspect.unwrap(value))
    except TypeError:
        file = None
    return [name, Path(file).read_text(encoding="utf-8") if file else ""]
