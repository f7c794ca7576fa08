"""Logs of coding agents (SWE-agent, OpenHands) -> message lists with tool calls."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetrial.data.messages import Malformed, argument_text, items, normalise_messages, table, text
from finetrial.records import Message

SWE_AGENT_COMMANDS = frozenset(
    [
        *("open", "goto", "scroll_up", "scroll_down", "create", "edit", "insert", "search_dir", "search_file"),
        *("find_file", "filemap", "str_replace_editor", "view_image", "submit"),
        *("exit_cost", "exit_context", "exit_format"),
    ]
)
"""Commands of SWE-agent's interface; any other action text is a shell command."""

SILENT_OBSERVATIONS = frozenset({"agent_state_changed", "null", "recall"})
"""OpenHands observations that the model never sees."""


def swe_agent_messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Messages of a SWE-agent `.traj`: its `history` without demonstrations, else its `trajectory` of steps.

    An action written as text becomes a call of the interface command it begins with, or of `bash`; the
    observation after it becomes a tool message.

    Raises:
        Malformed: neither list holds a step.
    """
    history = row.get("history")
    if isinstance(history, list) and any(isinstance(item, Mapping) and "role" in item for item in history):
        return normalise_messages(list(_swe_agent_history(history)))
    steps = row.get("trajectory")
    if not isinstance(steps, list) or not steps:
        raise Malformed("no step in trajectory")
    messages: list[dict[str, Any]] = []
    for place, step in enumerate(steps):
        if not isinstance(step, Mapping) or not isinstance(step.get("action"), str):
            raise Malformed(f"step {place} of the trajectory has no action")
        thought = step.get("thought") or step.get("response") or ""
        messages.append(_swe_agent_action(thought, step["action"]))
        if step["action"].strip():
            messages.append({"role": "tool", "content": text(step.get("observation"), place)})
    return normalise_messages(messages)


def _swe_agent_history(history: list[Any]) -> Iterator[dict[str, Any]]:
    open_call = False
    for item in history:
        if not isinstance(item, Mapping):
            raise Malformed(f"history holds a {type(item).__name__}, not an object")
        if item.get("is_demo"):
            continue
        if item.get("role") == "assistant" and not item.get("tool_calls") and item.get("action"):
            open_call = True
            yield _swe_agent_action(item.get("thought") or "", str(item["action"]))
        elif item.get("role") == "user" and open_call:
            open_call = False
            yield {"role": "tool", "content": item.get("content")}
        else:
            open_call = False
            yield dict(item)


def _swe_agent_action(thought: str, action: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": thought}
    words = action.split(maxsplit=1)
    if words:
        name = words[0] if words[0] in SWE_AGENT_COMMANDS else "bash"
        message["tool_calls"] = [{"name": name, "arguments": json.dumps({"command": action}, ensure_ascii=False)}]
    return message


def openhands_messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Messages of an OpenHands row whose `history` is a list of events, or of (action, observation) pairs.

    Raises:
        Malformed: an event that is no object, or no assistant turn.
    """
    events: list[Any] = []
    for item in row["history"]:
        events.extend(item if isinstance(item, (list, tuple)) else [item])
    messages: list[dict[str, Any]] = []
    for place, event in enumerate(events):
        if not isinstance(event, Mapping):
            raise Malformed(f"event {place} is a {type(event).__name__}, not an object")
        if isinstance(event.get("observation"), str):
            if event["observation"] not in SILENT_OBSERVATIONS:
                messages.append(_openhands_observation(event, place))
        elif isinstance(event.get("action"), str):
            message = _openhands_action(event, place)
            if message is not None:
                messages.append(message)
    return normalise_messages(messages)


def _openhands_observation(event: Mapping[str, Any], place: int) -> dict[str, Any]:
    metadata = table(event, "tool_call_metadata")
    name = metadata.get("function_name") or event["observation"]
    return {"role": "tool", "name": name, "content": text(event.get("content"), place)}


def _openhands_action(event: Mapping[str, Any], place: int) -> dict[str, Any] | None:
    kind, arguments = event["action"], table(event, "args")
    if kind == "system":
        return {"role": "system", "content": text(arguments.get("content"), place)}
    if kind == "message":
        role = "user" if event.get("source") == "user" else "assistant"
        return {"role": role, "content": text(arguments.get("content"), place)}
    if event.get("source") != "agent" or kind in ("recall", "change_agent_state"):
        return None
    name, written = _written_call(table(event, "tool_call_metadata"))
    if written is None:
        written = argument_text({key: value for key, value in arguments.items() if key != "thought"})
    call = {"name": name or kind, "arguments": written}
    return {"role": "assistant", "content": text(arguments.get("thought"), place), "tool_calls": [call]}


def _written_call(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Name and arguments as the model wrote them, where the event kept the model's response."""
    name, wanted = metadata.get("function_name"), metadata.get("tool_call_id")
    for choice in items(table(metadata, "model_response"), "choices"):
        for call in items(table(choice, "message"), "tool_calls"):
            if call.get("id") == wanted:
                return name, argument_text(table(call, "function").get("arguments"))
    return name, None


def openhands_tools(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tools that the system event lists; empty where it lists none."""
    for event in row["history"]:
        if isinstance(event, Mapping) and event.get("action") == "system":
            return tool_names(table(event, "args").get("tools"))
    return ()


def tool_names(tools: Any) -> tuple[str, ...]:
    """Distinct names in a list of tools: names, flat objects or OpenAI's `{"function": {"name": ...}}`.

    JSON text is read first (some data sets keep the list as text). Anything else is no list of tools: empty.

    Raises:
        Malformed: JSON text that does not parse.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise Malformed(f"tools are text that is not JSON ({error.msg})") from error
    names: dict[str, None] = {}
    for tool in tools if isinstance(tools, (list, tuple)) else ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else tool
        name = function.get("name") if isinstance(function, Mapping) else function
        if isinstance(name, str):
            names[name] = None
    return tuple(names)
