"""Messages of any usual spelling -> the one spelling of `finetrial.records.Message`."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from finetrial.records import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}
"""Role as sources write it -> role."""


class Malformed(ValueError):
    """A row that cannot become an Example; its message is the reason that is counted."""


def normalise_messages(raw: Any) -> tuple[Message, ...]:
    """Messages with `role`, `content`, and where present `tool_calls` and `name`; everything else is left out.

    Accepts OpenAI spelling (`function: {name, arguments}`, content in parts, nulls as a columnar file writes
    them) and ShareGPT spelling (`from`, `value`). Arguments that are objects become JSON text.

    Raises:
        Malformed: no list, no message, an unknown role, a content that is not text, or no assistant turn.
    """
    if not isinstance(raw, (list, tuple)):
        raise Malformed(f"messages are a {type(raw).__name__}, not a list")
    messages = tuple(_message(item, place) for place, item in enumerate(raw))
    if not any(message["role"] == "assistant" for message in messages):
        raise Malformed("no assistant message" if messages else "no messages")
    return messages


def _message(item: Any, place: int) -> Message:
    if not isinstance(item, Mapping):
        raise Malformed(f"message {place} is a {type(item).__name__}, not an object")
    spelled = item.get("role", item.get("from"))
    role = ROLES.get(spelled) if isinstance(spelled, str) else None
    if role is None:
        raise Malformed(f"message {place} has the role {spelled!r}")
    message: Message = {"role": role, "content": text(item.get("content", item.get("value")), place)}
    calls = items(item, "tool_calls")
    if calls:
        message["tool_calls"] = [_call(call, place) for call in calls]
    elif isinstance(item.get("function_call"), Mapping):
        message["tool_calls"] = [_call(item["function_call"], place)]
    if role == "tool" and isinstance(item.get("name"), str):
        message["name"] = item["name"]
    return message


def _call(call: Any, place: int) -> dict[str, str]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Malformed(f"message {place} has a tool call without a name")
    arguments = function.get("arguments")
    return {"name": function["name"], "arguments": argument_text(arguments)}


def table(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key; empty where the key is absent or null.

    Raises:
        Malformed: something else stands there.
    """
    value = row.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Malformed(f"{key} is a {type(value).__name__}, not an object")
    return value


def items(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key; empty where the key is absent or null.

    Raises:
        Malformed: something else stands there.
    """
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise Malformed(f"{key} is a {type(value).__name__}, not a list")
    return list(value)


def argument_text(arguments: Any) -> str:
    """Arguments of a tool call as text: strings as they stand, objects as JSON, nothing as an empty string."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def text(content: Any, place: int) -> str:
    """Text of a message content: a string, null (empty), or a list of text parts joined without a separator.

    Raises:
        Malformed: a part that is not text (an image, say), or another type.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Iterable) and not isinstance(content, Mapping):
        parts: list[str] = []
        for part in content:
            piece = part.get("text") if isinstance(part, Mapping) else part
            if not isinstance(piece, str):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise Malformed(f"message {place} has a content part of type {kind!r}, not text")
            parts.append(piece)
        return "".join(parts)
    raise Malformed(f"message {place} has a content of type {type(content).__name__}")
