"""Tables of a campaign file: overriding their fields, validating them, and errors that name the nearest key."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from finetrial.errors import UserError, nearest

_Model = TypeVar("_Model", bound=BaseModel)


def override(raw: dict[str, Any], written: str) -> None:
    """Apply `a.b=c` to the tables of a file. Elements of `campaign.conditions` go by their name or index.

    Raises:
        UserError: it is no assignment, or leads to nothing.
    """
    path, sign, value = written.partition("=")
    if not sign or not path:
        raise UserError(f"--set {written}: expected table.key=value")
    keys = path.strip().split(".")
    target: Any = raw
    for depth, key in enumerate(keys[:-1]):
        if isinstance(target, list):
            target = _element(target, key, written)
        elif isinstance(target, dict):
            target = target.setdefault(key, {})
        else:
            raise UserError(f"--set {written}: {'.'.join(keys[:depth])} is a value, not a table")
    if not isinstance(target, dict):
        kind = "a list; name one of its elements" if isinstance(target, list) else "not a table"
        raise UserError(f"--set {written}: {'.'.join(keys[:-1])} is {kind}")
    target[keys[-1]] = _toml_value(value.strip())


def merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over each other, key by key and within tables again; what is written last holds."""
    both = {key: merged(common[key], own[key]) for key in own if _tables(common.get(key), own[key])}
    return {**common, **own, **both}


def _tables(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _element(items: list[Any], key: str, written: str) -> Any:
    names = [str(item.get("name", "")) for item in items if isinstance(item, dict)]
    if key in names:
        return items[names.index(key)]
    if key.isdigit() and int(key) < len(items):
        return items[int(key)]
    raise UserError(f"--set {written}: nothing is called {key!r}{nearest(key, names)}; there are {names}")


def _toml_value(text: str) -> Any:
    """A TOML value as written, or the bare text (so that paths and names need no quotes)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def validated(model: type[_Model], values: Mapping[str, Any], place: str, where: str) -> _Model:
    """Validate a table; `place` is the file and `where` the table that errors name.

    Raises:
        UserError: one line per problem.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_message(item, model, place, where) for item in error.errors())) from error


def _message(item: Any, model: type[BaseModel], place: str, where: str) -> str:
    keys = [str(part) for part in item["loc"] if not _is_tag(part)]
    location = [*([where] if where else []), *keys[:-1]]
    table, key = ".".join(location), keys[-1] if keys else ""
    head = f"{place}: [{table}]" if table else f"{place}:"
    if item["type"] == "extra_forbidden":
        valid = _fields_at(model, item["loc"][:-1])
        near = nearest(key, valid) or f"; expected one of: {', '.join(valid)}"
        return f"{head} unknown {'key' if table else 'table'} {key!r}{near}"
    if item["type"] == "missing":
        return f"{head} {key!r} is missing"
    message = item["msg"].removeprefix("Value error, ")
    got = "" if isinstance(item["input"], Mapping) else f"; got {item['input']!r}"
    return f"{head} {key}: {message}{got}".replace(" :", ":")


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Field names of the (nested) model that `location` points into."""
    found: list[type[BaseModel]] = []
    for part in location:
        if _is_tag(part):
            model = next(one for one in found if f"<{one.__name__}>" == part)
            continue
        if part not in model.model_fields:
            continue  # an index of a list or a name of a table of tables
        found = [t for t in _types(model.model_fields[part].annotation) if issubclass(t, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _is_tag(part: str | int) -> bool:
    """Whether a part of a location says which of several tables is meant, as `<Name>` of its model."""
    return str(part).startswith("<")


def _types(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _types(inner)]
