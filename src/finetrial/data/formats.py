"""Formats of rows, recognised by shape; each turns one row into an Example or says why it cannot.

A row whose source says nothing about resolution has `resolved=None`. Where a source names no task, the group is
the prompt (everything before the first assistant turn): the same prompt never straddles training and test.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from finetrial.data.agents import openhands_messages, openhands_tools, swe_agent_messages, tool_names
from finetrial.data.messages import Malformed, items, normalise_messages, table
from finetrial.identity import digest
from finetrial.records import Example, Message

Row = Mapping[str, Any]

MESSAGE_KEYS = ("messages", "conversations", "conversation", "trajectory", "traj", "history")
"""Where a message list may stand in a row, in the order of looking."""

PAIR_KEYS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("tweet", "reply"),
)
GROUP_KEYS = ("group", "instance_id", "task_id", "problem_id", "question_id")
ID_KEYS = ("id", "trajectory_id", "traj_id", "uid", "uuid")
META_KEYS = ("repo", "exit_status", "trial", "model", "category", "hardness", "environment", "dataset", "answer")


@dataclass(frozen=True)
class Format:
    """One known shape of a row."""

    recognise: Callable[[Row], bool]
    convert: Callable[[Row, str], Example]
    """(row, stem of its file) -> Example; raises Malformed with the reason."""
    keys: tuple[str, ...]
    """Keys typical of the format, to name the nearest one when nothing is recognised."""


def recognise(row: Any) -> str | None:
    """Name of the format of a row, or None."""
    if not isinstance(row, Mapping):
        return None
    return next((name for name, known in FORMATS.items() if known.recognise(row)), None)


def describe_unknown(row: Any) -> str:
    """What a row of unknown shape holds, and the known format whose keys it shares most."""
    if not isinstance(row, Mapping):
        return f"a row is a {type(row).__name__}, not an object"
    found = sorted(map(str, row))
    shared = {name: len(set(known.keys) & set(found)) / len(known.keys) for name, known in FORMATS.items()}
    best = max(shared, key=lambda name: shared[name])
    shown = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "")
    nearest = best if shared[best] > 0 else "messages"
    return f"unknown shape with the keys {shown or '(none)'}; nearest is {nearest} ({', '.join(FORMATS[nearest].keys)})"


def example_row(example: Example) -> dict[str, Any]:
    """An Example as the JSON row that `finetrial` reads back (format `finetrial`)."""
    return {
        "id": example.id,
        "group": example.group,
        "messages": [dict(message) for message in example.messages],
        "tools": list(example.tools),
        "resolved": example.resolved,
        "reward": example.reward,
        "meta": dict(example.meta),
    }


def _own(row: Row, stem: str) -> Example:
    return Example(
        id=_name(row["id"], "id"),
        group=_name(row["group"], "group"),
        messages=normalise_messages(row["messages"]),
        tools=tool_names(row.get("tools")),
        resolved=_truth(row.get("resolved")),
        reward=_number(row.get("reward")),
        meta=table(row, "meta"),
    )


TAU_DOMAINS = ("airline", "retail", "telecom")
"""Domains of tau-bench, as its file names have them."""


def _tau_bench(row: Row, stem: str) -> Example:
    """Domain, task and trial name the row; solved where the reward is 1. The gold actions' tools go to `meta`.

    Tasks are numbered within a domain, which only the file's name tells; without one the number stands alone.
    """
    domain = next((f"{name}-" for name in TAU_DOMAINS if name in stem), "")
    task = table(table(row, "info"), "task")
    reward = _number(row.get("reward"))
    gold = tool_names([action for action in items(task, "actions") if isinstance(action, Mapping)])
    return Example(
        id=f"{domain}{row['task_id']}-{row.get('trial', 0)}",
        group=f"{domain}{row['task_id']}",
        messages=normalise_messages(row["traj"]),
        resolved=None if reward is None else reward == 1.0,
        reward=reward,
        meta={"trial": row.get("trial", 0), "tools_of_solution": list(gold)},
    )


def _intercode(row: Row, stem: str) -> Example:
    """The query as user, each action as a call of the environment's tool, each observation as its answer."""
    history, environment = row["turn_history"], str(row.get("environment", "ic_bash"))
    tool = environment.removeprefix("ic_")
    actions, observations = items(history, "actions"), items(history, "observations")
    if len(actions) != len(observations):
        raise Malformed(f"{len(actions)} actions but {len(observations)} observations")
    messages: list[Message] = [{"role": "user", "content": str(row["query"])}]
    key = "query" if tool == "sql" else "command"
    for action, observation in zip(actions, observations, strict=True):
        call = {"name": tool, "arguments": json.dumps({key: str(action)}, ensure_ascii=False)}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "name": tool, "content": str(observation)})
    reward = _number(table(row, "summary").get("max_reward"))
    dataset = PurePath(str(row.get("dataset", stem))).stem
    task = f"{environment}/{dataset}/{row['task_id']}"
    return Example(
        id=task,
        group=task,
        messages=normalise_messages(messages),
        tools=(tool,),
        resolved=None if reward is None else reward == 1.0,
        reward=reward,
        meta=_meta(row),
    )


def _swe_agent(row: Row, stem: str) -> Example:
    """A `.traj` names its instance by its file. Submission is not resolution: `resolved` only where a key says so."""
    info = table(row, "info")
    instance = str(row.get("instance_id") or info.get("instance_id") or stem)
    return Example(
        id=_id(row) or instance,
        group=instance,
        messages=swe_agent_messages(row),
        resolved=_truth(row.get("resolved", info.get("resolved"))),
        meta={"exit_status": info.get("exit_status"), "submitted": bool(info.get("submission"))},
    )


def _openhands(row: Row, stem: str) -> Example:
    instance = str(row.get("instance_id") or stem)
    report = table(row, "report") or table(table(row, "test_result"), "report")
    return Example(
        id=_id(row) or instance,
        group=instance,
        messages=openhands_messages(row),
        tools=openhands_tools(row),
        resolved=_truth(row.get("resolved", report.get("resolved"))),
        meta=_meta(row),
    )


def _messages(row: Row, stem: str) -> Example:
    key = next(key for key in MESSAGE_KEYS if _is_messages(row.get(key)))
    return _conversation(row, normalise_messages(row[key]))


def _pair(row: Row, stem: str) -> Example:
    ask, reply = next(pair for pair in PAIR_KEYS if all(isinstance(row.get(key), str) for key in pair))
    prompt = "\n\n".join(part for part in (row[ask], row.get("input")) if part)
    if not prompt.strip() or not row[reply].strip():
        raise Malformed(f"{ask if not prompt.strip() else reply} is empty")
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row[reply]}]
    return _conversation(row, normalise_messages(turns))


def _conversation(row: Row, messages: tuple[Message, ...]) -> Example:
    first = next(place for place, message in enumerate(messages) if message["role"] == "assistant")
    group = next((str(row[key]) for key in GROUP_KEYS if row.get(key) is not None), None)
    reward = _number(row.get("reward"))
    return Example(
        id=_id(row) or f"row-{digest(list(messages))[:16]}",
        group=group or f"prompt-{digest(list(messages[:first]))[:16]}",
        messages=messages,
        tools=tool_names(row.get("tools")),
        resolved=_truth(row.get("resolved")),
        reward=reward,
        meta=_meta(row),
    )


def _is_messages(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    return not value or (isinstance(value[0], Mapping) and ("role" in value[0] or "from" in value[0]))


def _is_events(value: Any) -> bool:
    flat = value[0] if isinstance(value, (list, tuple)) and value else None
    first = flat[0] if isinstance(flat, (list, tuple)) and flat else flat
    return isinstance(first, Mapping) and ("action" in first or "observation" in first) and "role" not in first


def _is_steps(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "action" in value[0]


def _id(row: Row) -> str | None:
    return next((str(row[key]) for key in ID_KEYS if row.get(key) is not None), None)


def _name(value: Any, key: str) -> str:
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise Malformed(f"{key} is {value!r}, not a name")
    return str(value)


def _truth(value: Any) -> bool | None:
    """True and False, 1 and 0; anything else says nothing."""
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _meta(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in META_KEYS if isinstance(row.get(key), (str, int, float, bool))}


FORMATS: dict[str, Format] = {
    "finetrial": Format(
        lambda row: {"id", "group", "messages"} <= row.keys() and not {"conversations", "traj"} & row.keys(),
        _own,
        ("id", "group", "messages", "tools", "resolved", "reward", "meta"),
    ),
    "tau-bench": Format(
        lambda row: {"task_id", "traj", "reward"} <= row.keys(),
        _tau_bench,
        ("task_id", "reward", "info", "traj", "trial"),
    ),
    "intercode": Format(
        lambda row: {"task_id", "query"} <= row.keys() and isinstance(row.get("turn_history"), Mapping),
        _intercode,
        ("environment", "dataset", "task_id", "query", "turn_history", "summary"),
    ),
    "swe-agent": Format(
        lambda row: (
            isinstance(row.get("info"), Mapping)
            and (_is_steps(row.get("trajectory")) or ("trajectory" in row and _is_messages(row.get("history"))))
        ),
        _swe_agent,
        ("environment", "trajectory", "history", "info"),
    ),
    "openhands": Format(
        lambda row: _is_events(row.get("history")),
        _openhands,
        ("instance_id", "history", "test_result", "metadata", "instruction"),
    ),
    "messages": Format(
        lambda row: any(_is_messages(row.get(key)) for key in MESSAGE_KEYS),
        _messages,
        ("messages", "tools", "resolved"),
    ),
    "pair": Format(
        lambda row: any(all(isinstance(row.get(key), str) for key in pair) for pair in PAIR_KEYS),
        _pair,
        ("prompt", "completion"),
    ),
}
"""Name -> shape, in the order of recognition (the more specific first)."""
