"""Where a row keeps its prompt and its outputs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetrial.data.formats import MESSAGE_KEYS, PAIR_KEYS, describe_unknown
from finetrial.data.messages import ROLES
from finetrial.data.workshop.config import StandardiseConfig
from finetrial.errors import UserError, nearest

Path = tuple[str | int, ...]
"""Keys and indices that lead from a row to one of its values."""


@dataclass(frozen=True)
class Columns:
    """How the rows of a file are laid out, taken from its first row."""

    messages: str | None
    """Key of the message list, or None for rows of a prompt and an output."""
    prompt: tuple[str, ...] = ()
    output: str = ""

    def outputs(self, row: Mapping[str, Any]) -> list[tuple[Path, str]]:
        """(path of an output, the prompt before it): one of a pair, each assistant turn of a conversation.

        A turn that only calls tools has no output.
        """
        if self.messages is None:
            return [((self.output,), self._asked(row))]
        turns = row.get(self.messages)
        if not isinstance(turns, Sequence) or isinstance(turns, str):
            return [((self.messages,), "")]
        found: list[tuple[Path, str]] = []
        asked = ""
        for place, turn in enumerate(turns):
            if not isinstance(turn, Mapping):
                continue
            role = ROLES.get(turn.get("role", turn.get("from")))
            key = "value" if "value" in turn and "content" not in turn else "content"
            if role == "assistant" and not turn.get("tool_calls") and not turn.get("function_call"):
                found.append(((self.messages, place, key), asked))
            elif role == "user" and isinstance(turn.get(key), str):
                asked = turn[key]
        return found

    def question(self, row: Mapping[str, Any]) -> str:
        """All that an output answers, as text: two rows with the same question and other outputs conflict."""
        if self.messages is None:
            return self._asked(row)
        turns = row.get(self.messages) or []
        return json.dumps([turn for turn in turns if not _is_assistant(turn)], sort_keys=True, default=str)

    def _asked(self, row: Mapping[str, Any]) -> str:
        return "\n\n".join(row[key] for key in self.prompt if isinstance(row.get(key), str) and row[key])


def find_columns(row: Any, place: str, config: StandardiseConfig) -> Columns:
    """The layout of a file whose first row this is.

    Raises:
        UserError: neither named columns nor those of a known format are there.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{place}: a row is a {type(row).__name__}, not an object")
    if config.output_column is not None:
        for name in filter(None, (config.prompt_column, config.output_column)):
            if name not in row:
                raise UserError(f"{place}: no column {name!r}{nearest(name, row)}; there are {', '.join(row)}")
        prompts = (config.prompt_column,) if config.prompt_column else ()
        return Columns(None, prompts, config.output_column)
    key = next((key for key in MESSAGE_KEYS if _is_messages(row.get(key))), None)
    if key is not None:
        return Columns(key)
    pair = next((pair for pair in PAIR_KEYS if pair[0] in row and pair[1] in row), None)
    if pair is None:
        raise UserError(f"{place}: {describe_unknown(row)}; name the column with output_column")
    return Columns(None, (config.prompt_column or pair[0], "input"), pair[1])


def get(row: Any, path: Path) -> Any:
    """The value at a path; None where the row has none."""
    for key in path:
        try:
            row = row[key]
        except (KeyError, IndexError):
            return None
    return row


def replaced(row: Any, path: Path, value: Any) -> Any:
    """A copy of the row with another value at the path; what is not on the way is shared."""
    if not path:
        return value
    if isinstance(row, Mapping):
        return {**row, path[0]: replaced(row.get(path[0]), path[1:], value)}
    return [replaced(item, path[1:], value) if at == path[0] else item for at, item in enumerate(row)]


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and bool(value)
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "from" in value[0])
    )


def _is_assistant(turn: Any) -> bool:
    return isinstance(turn, Mapping) and ROLES.get(turn.get("role", turn.get("from"))) == "assistant"
