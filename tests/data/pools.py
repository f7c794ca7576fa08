"""Builders of small pools for the tests of the data layer."""

import json
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from finetrial.data.score import ScoreConfig, ScoreTable, score
from finetrial.records import Example, Message

LAW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""How often a law is tried; a busy machine is no failure."""


def run(
    name: str,
    calls: Sequence[tuple[str, str, str | None]],
    *,
    group: str = "task",
    resolved: bool | None = True,
    tools: Sequence[str] = (),
    closing: bool = True,
) -> Example:
    """A trajectory of (tool, command, observation) calls, with a closing turn unless told otherwise."""
    messages: list[Message] = [{"role": "user", "content": f"solve {group}"}]
    for tool, command, observation in calls:
        call = {"name": tool, "arguments": json.dumps({"command": command})}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        if observation is not None:
            messages.append({"role": "tool", "name": tool, "content": observation})
    if closing:
        messages.append({"role": "assistant", "content": f"done {name}"})
    return Example(name, group, tuple(messages), tuple(tools), resolved)


def scored(examples: Sequence[Example], max_length: int = 10_000, **options: object) -> ScoreTable:
    """Score with as many tokens as characters."""
    return score(examples, ScoreConfig.model_validate(options), lengths(examples), max_length)


def lengths(examples: Sequence[Example]) -> list[int]:
    """Characters of each row."""
    return [sum(len(message["content"]) for message in example.messages) for example in examples]


def plain_pool(rows: int, groups: int) -> list[Example]:
    """Rows of different quality: row i belongs to group i % groups; every fifth is unresolved."""
    return [
        run(
            f"row{i:04d}",
            [("ab"[k % (1 + i % 2)], f"cat file{i}_{k % (1 + i % 3)}.txt", "error" if k < i % 4 else "x" * i)
             for k in range(2 + i % 7)],
            group=f"g{i % groups}",
            resolved=i % 5 != 0,
            tools=("a", "b"),
        )
        for i in range(rows)
    ]  # fmt: skip


OBSERVATIONS = st.sampled_from(
    ["ok", "", "Error: no such tool", "see models.py and utils.py", "ValueError: 3", "sh: x: command not found"]
)
CALLS = st.tuples(st.sampled_from(["bash", "edit", "test"]), st.sampled_from(["ls", "cat models.py", "pytest"]),
                  OBSERVATIONS | st.none())  # fmt: skip


@st.composite
def pools(draw: st.DrawFn, min_size: int = 1, max_size: int = 24) -> list[Example]:
    """Pools with repeated groups, repeated contents and unknown resolution."""
    rows = draw(st.integers(min_size, max_size))
    return [
        run(
            f"row{place}",
            draw(st.lists(CALLS, max_size=5)),
            group=f"g{draw(st.integers(0, 12))}",
            resolved=draw(st.sampled_from([True, False, None])),
            tools=draw(st.sampled_from([(), ("bash",), ("bash", "edit", "test")])),
            closing=draw(st.booleans()),
        )
        for place in range(rows)
    ]
