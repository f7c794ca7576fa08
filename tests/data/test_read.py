"""Reading: every format by its shape, every dropped row with its reason, identity of the pool."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import LAW, plain_pool, pools

from finetrial.data.formats import FORMATS, example_row
from finetrial.data.read import read
from finetrial.errors import UserError

CHAT = {
    "id": "a",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
}

SWE_AGENT = {
    "environment": "swe_main",
    "trajectory": [{"action": "ls\n", "observation": "a.py", "thought": "Look.", "response": "Look.\nls"}],
    "history": [
        {"role": "system", "content": "You are an engineer."},
        {"role": "user", "content": "a demonstration", "is_demo": True},
        {"role": "user", "content": "Fix it."},
        {"role": "assistant", "content": "Look.\n```\nls\n```", "thought": "Look.", "action": "ls\n"},
        {"role": "user", "content": "a.py"},
        {"role": "assistant", "content": "Open.\n```\nopen a.py\n```", "thought": "Open.", "action": "open a.py"},
        {"role": "user", "content": "1: x"},
        {
            "role": "assistant",
            "content": "Submit.",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "submit", "arguments": "{}"}}],
        },
        {"role": "tool", "content": [{"type": "text", "text": "done"}], "tool_call_ids": ["1"]},
    ],
    "info": {"exit_status": "submitted", "submission": "diff --git"},
}

OPENHANDS = {
    "instance_id": "django__django-1",
    "instruction": "Fix it.",
    "metadata": {"agent_class": "CodeActAgent"},
    "test_result": {"git_patch": "diff", "report": {"resolved": True}},
    "history": [
        {"id": 0, "source": "agent", "action": "system",
         "args": {"content": "You are helpful.",
                  "tools": [{"function": {"name": "execute_bash"}}, {"name": "finish"}]}},
        {"id": 1, "source": "user", "action": "message", "args": {"content": "Fix it."}},
        {"id": 2, "source": "agent", "action": "recall", "args": {"query": "Fix it."}},
        {"id": 3, "source": "agent", "observation": "recall", "content": "nothing"},
        {"id": 4, "source": "agent", "action": "run", "args": {"command": "ls", "thought": "Look."},
         "tool_call_metadata": {
             "function_name": "execute_bash", "tool_call_id": "c1",
             "model_response": {"choices": [{"message": {"tool_calls": [
                 {"id": "c1", "function": {"name": "execute_bash", "arguments": '{"command": "ls"}'}}]}}]}}},
        {"id": 5, "source": "agent", "observation": "run", "content": "a.py", "extras": {"exit_code": 0},
         "tool_call_metadata": {"function_name": "execute_bash"}},
        {"id": 6, "source": "agent", "action": "finish", "args": {"outputs": {}, "thought": "Done."}},
    ],
}  # fmt: skip


def write(path: Path, rows: list, lines: bool = True) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n" if lines else json.dumps(rows))
    return str(path)


def shape(example) -> list[tuple]:
    return [
        (message["role"], message["content"], *(call["name"] for call in message.get("tool_calls", ())))
        for message in example.messages
    ]


def test_tau_bench(data_dir):
    pool = read(str(data_dir / "tau_bench/historical_trajectories/gpt-4o-airline.json"))
    facts = pool.summary()
    assert (facts["rows"], facts["kept"], facts["groups"]) == (200, 200, 50)
    assert facts["resolved"] == {"yes": 84, "no": 116, "unknown": 0}
    assert facts["formats"] == {"tau-bench": 200}
    assert facts["files"][0]["sha256"].startswith("e9e6c029")
    assert facts["tools_inferred"] == 200
    first = next(example for example in pool.examples if example.id == "airline-0-0")
    assert first.group == "airline-0"
    assert first.messages[0]["role"] == "system"
    assert len(first.tools) == 14
    assert sum("tool_calls" in message for example in pool.examples for message in example.messages) == 1164
    by_trial = [
        sum(bool(example.resolved) for example in pool.examples if example.group == f"airline-{task}")
        for task in range(50)
    ]
    assert sum(solved == 4 for solved in by_trial) / 50 == 0.2  # pass^4 that the authors report


def test_intercode(data_dir):
    bash = read(str(data_dir / "intercode/bash")).summary()
    assert (bash["rows"], bash["kept"], bash["resolved"]["yes"]) == (113, 113, 50)
    assert [file["rows"] for file in bash["files"]] == [60, 53]
    sql = read(str(data_dir / "intercode/sql/*/*.json"))
    assert sql.summary()["resolved"] == {"yes": 762, "no": 272, "unknown": 0}
    first = sql.examples[0]
    assert (first.id, first.group, first.tools) == ("ic_sql/dev_spider/0", "ic_sql/dev_spider/0", ("sql",))
    assert [message["role"] for message in first.messages] == ["user", *["assistant", "tool"] * 5]
    assert json.loads(first.messages[1]["tool_calls"][0]["arguments"])["query"].startswith("SELECT player_name")
    both = read(str(data_dir / "intercode"))
    assert len(both.examples) == 1147
    assert both.source_facts["duplicate_ids"] == 0


def test_gsm8k_pairs(data_dir):
    pool = read(str(data_dir / "gsm8k/test.jsonl"), limit=50)
    assert len(pool.examples) == 50
    assert all(example.resolved is None for example in pool.examples)
    assert pool.examples[0].group.startswith("prompt-")


def test_swe_agent(tmp_path):
    path = tmp_path / "run" / "django__django-1.traj"
    write(path, SWE_AGENT, lines=False)
    pool = read(str(tmp_path))
    example = pool.examples[0]
    assert pool.source_facts["formats"] == {"swe-agent": 1}
    assert (example.id, example.group, example.resolved) == ("django__django-1", "django__django-1", None)
    assert example.meta == {"exit_status": "submitted", "submitted": True}
    assert shape(example) == [
        ("system", "You are an engineer."),
        ("user", "Fix it."),
        ("assistant", "Look.", "bash"),
        ("tool", "a.py"),
        ("assistant", "Open.", "open"),
        ("tool", "1: x"),
        ("assistant", "Submit.", "submit"),
        ("tool", "done"),
    ]
    assert example.tools == ("bash", "open", "submit")
    steps_only = {**SWE_AGENT, "history": []}
    write(path, steps_only, lines=False)
    assert shape(read(str(path)).examples[0]) == [("assistant", "Look.", "bash"), ("tool", "a.py")]


def test_openhands(tmp_path):
    pool = read(write(tmp_path / "output.jsonl", [OPENHANDS]))
    example = pool.examples[0]
    assert (example.id, example.resolved, example.tools) == ("django__django-1", True, ("execute_bash", "finish"))
    assert shape(example) == [
        ("system", "You are helpful."),
        ("user", "Fix it."),
        ("assistant", "Look.", "execute_bash"),
        ("tool", "a.py"),
        ("assistant", "Done.", "finish"),
    ]
    assert example.messages[2]["tool_calls"][0]["arguments"] == '{"command": "ls"}'
    pairs = {**OPENHANDS, "history": [OPENHANDS["history"][1:2], OPENHANDS["history"][4:6]], "test_result": None}
    paired = read(write(tmp_path / "pairs.jsonl", [pairs])).examples[0]
    assert paired.resolved is None
    assert [role for role, *_ in shape(paired)] == ["user", "assistant", "tool"]


def test_message_lists_of_many_spellings(tmp_path):
    rows = [
        CHAT,
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {
            "trajectory_id": "t1",
            "instance_id": "repo-1",
            "resolved": 1,
            "tools": json.dumps([{"type": "function", "function": {"name": "bash"}}]),
            "trajectory": [
                {"role": "user", "content": [{"type": "text", "text": "fix"}], "tool_calls": None},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "bash", "arguments": {"c": 1}}}],
                },
            ],
        },
    ]
    pool = read(write(tmp_path / "rows.jsonl", rows))
    chat, gpt, nebius = pool.examples
    assert chat.content_hash == gpt.content_hash
    assert chat.group == gpt.group
    assert pool.source_facts["duplicate_contents"] == 1
    assert (nebius.id, nebius.group, nebius.resolved, nebius.tools) == ("t1", "repo-1", True, ("bash",))
    assert nebius.messages[1] == {
        "role": "assistant", "content": "", "tool_calls": [{"name": "bash", "arguments": '{"c": 1}'}]
    }  # fmt: skip
    assert len(read(str(tmp_path / "rows.jsonl"), drop_duplicates=True).examples) == 2


def test_own_format_is_read_back(tmp_path):
    examples = plain_pool(30, 5)
    pool = read(write(tmp_path / "pool.jsonl", [example_row(example) for example in examples]))
    assert pool.examples == examples
    assert pool.source_facts["formats"] == {"finetrial": 30}


def test_parquet_keeps_the_pool(tmp_path):
    rows = [{**example_row(example), "meta": {"place": i}} for i, example in enumerate(plain_pool(30, 5))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    from_parquet = read(str(tmp_path / "pool.parquet"))
    from_lines = read(write(tmp_path / "pool.jsonl", rows))
    assert from_parquet.content_key == from_lines.content_key
    assert from_parquet.examples[3].meta == {"place": 3}
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no table")
    with pytest.raises(UserError, match=r"broken\.parquet"):
        read(str(tmp_path / "broken.parquet"))


def test_hub_reader_reads_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    write(tmp_path / "set" / "train.jsonl", [CHAT, {**CHAT, "id": "b"}])
    source = f"hf:{tmp_path / 'set'}@train"
    pool = read(source, limit=1)
    assert [example.id for example in pool.examples] == ["a"]
    with pytest.raises(UserError, match="nowhere"):
        read(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="expected hf:NAME"):
        read("hf:@train")


def test_worlds():
    pool = read("world:shell?count=24&seed=5")
    assert len(pool.examples) == 24
    assert pool.content_key == read("world:shell?count=24&seed=5").content_key
    assert pool.content_key != read("world:shell?count=24&seed=6").content_key
    assert len(read("world:shell?count=24", limit=7).examples) == 7


def test_every_dropped_row_has_place_and_reason(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        CHAT,
        {"id": "b", "messages": []},
        {"id": "c", "messages": [{"role": "user", "content": "hi"}]},
        {"id": "d", "messages": [{"role": "robot", "content": "hi"}]},
        {"id": "e", "messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]},
        {"id": "f", "messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        {"text": "no messages at all"},
        [1, 2],
    ]
    pool = read(write(path, rows))
    assert [(drop.place.rsplit(":", 1)[1], drop.reason) for drop in pool.dropped] == [
        ("2", "messages: no messages"),
        ("3", "messages: no assistant message"),
        ("4", "messages: message 0 has the role 'robot'"),
        ("5", "messages: message 0 has a content part of type 'image_url', not text"),
        ("6", "messages: message 0 has a tool call without a name"),
        ("7", "unknown shape with the keys text; nearest is messages (messages, tools, resolved)"),
        ("8", "a row is a list, not an object"),
    ]
    facts = json.loads(json.dumps(pool.summary(), allow_nan=False))
    assert (facts["rows"], facts["kept"], facts["dropped"]) == (8, 1, 7)
    assert facts["reasons"]["messages: no messages"] == {"rows": 1, "places": [f"{path}:2"]}


def test_a_broken_line_names_file_line_and_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(CHAT) + '\n\n{"id": "b", "messages": [}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:3: Expecting value at column 26, near .*messages"):
        read(str(path))
    pool = read(str(path), on_malformed="drop")
    assert len(pool.examples) == 1
    assert pool.dropped[0].place == f"{path}:3"
    path.write_bytes(json.dumps(CHAT).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: byte 8 is not UTF-8"):
        read(str(path))
    whole = tmp_path / "rows.json"
    whole.write_text('[\n{"id": 1},\n{"id" 2}]')
    with pytest.raises(UserError, match=r"rows\.json:3: Expecting ':' delimiter at column 7"):
        read(str(whole))


def test_unknown_shapes_name_keys_and_the_nearest_format(tmp_path):
    log = {"task_id": 1, "query": "q", "environment": "ic_bash", "turns": []}
    with pytest.raises(UserError, match=r"x\.json\[0\]: unknown shape with the keys env.*nearest is intercode"):
        read(write(tmp_path / "x.json", [log], lines=False))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("pool.jsonnl", "no such file.*did you mean 'pool.jsonl'"),
        ("notes.txt", "unknown suffix"),
        ("empty", "no file ending in"),
        ("empty.jsonl", "no usable row .the source is empty"),
        ("silent.jsonl", "no usable row .1 rows: messages: no assistant message"),
        ("*.parquet", "no such file"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, source, told):
    write(tmp_path / "pool.jsonl", [CHAT])
    write(tmp_path / "silent.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=told):
        read(str(tmp_path / source))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("world:shel", "did you mean 'shell'"),
        ("world:shell?cont=3", "did you mean 'count'"),
        ("world:shell?count=0", "expected a whole number"),
        ("world:shell?split=test", "expected base or campaign"),
    ],
)
def test_worlds_that_do_not_exist(source, told):
    with pytest.raises(UserError, match=told):
        read(source)


def test_malformed_tables_are_reasons_not_crashes(tmp_path):
    rows = [
        {"task_id": 0, "traj": CHAT["messages"], "reward": 1.0, "info": "none"},
        {"task_id": 1, "traj": CHAT["messages"], "reward": float("nan"), "info": None},
        {"task_id": 2, "query": "q", "turn_history": {"actions": ["a"], "observations": []}},
        {"task_id": 3, "query": "q", "turn_history": {"actions": "a"}},
        {"id": 1, "group": "", "messages": CHAT["messages"]},
        {**OPENHANDS, "history": [*OPENHANDS["history"], "text"]},
        {**SWE_AGENT, "history": [*SWE_AGENT["history"], 3]},
    ]
    pool = read(write(tmp_path / "rows.jsonl", rows))
    assert [(example.id, example.resolved) for example in pool.examples] == [("1-0", None)]
    assert [drop.reason for drop in pool.dropped] == [
        "tau-bench: info is a str, not an object",
        "intercode: 1 actions but 0 observations",
        "intercode: actions is a str, not a list",
        "finetrial: group is '', not a name",
        "openhands: event 7 is a str, not an object",
        "swe-agent: history holds a int, not an object",
    ]


@LAW
@given(pool=pools(min_size=2, max_size=15), seed=st.integers(0, 99), names=st.integers(1, 3))
def test_identity_does_not_depend_on_path_or_order(tmp_path_factory, pool, seed, names):
    rows = [{**example_row(example), "id": f"n{i % names}"} for i, example in enumerate(pool)]
    rows = [row for row in rows if any(message["role"] == "assistant" for message in row["messages"])]
    if not rows:
        return
    folder = tmp_path_factory.mktemp("pool")
    first = read(write(folder / "one.jsonl", rows))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))
    second = read(write(folder / "two.json", [rows[place] for place in order], lines=False))
    assert first.content_key == second.content_key
    ids = [example.id for example in first.examples]
    assert len(set(ids)) == len(ids)
    assert first.source_facts["duplicate_ids"] == len(ids) - min(names, len({row["id"] for row in rows}))
    first.examples.pop()
    assert read(str(folder / "one.jsonl")).content_key == second.content_key


def test_content_key_moves_with_every_part(tmp_path):
    rows = [example_row(example) for example in plain_pool(3, 2)]
    key = read(write(tmp_path / "pool.jsonl", rows)).content_key
    for change in ({"id": "z"}, {"group": "z"}, {"resolved": None}, {"reward": 0.5}, {"tools": ["z"]}, CHAT):
        changed = [{**rows[0], **change}, *rows[1:]]
        assert read(write(tmp_path / "changed.jsonl", changed)).content_key != key
    same = [{**rows[0], "meta": {"note": "x"}}, *rows[1:]]
    assert read(write(tmp_path / "same.jsonl", same)).content_key == key


def test_formats_are_told_apart():
    rows = {
        "finetrial": example_row(plain_pool(1, 1)[0]),
        "tau-bench": {"task_id": 0, "traj": CHAT["messages"], "reward": 1.0, "info": {}, "trial": 0},
        "intercode": {"task_id": 0, "query": "q", "turn_history": {}},
        "swe-agent": SWE_AGENT,
        "openhands": OPENHANDS,
        "messages": CHAT,
        "pair": {"prompt": "a", "completion": "b"},
    }
    assert set(rows) == set(FORMATS)
    for name, row in rows.items():
        assert next(known for known, form in FORMATS.items() if form.recognise(row)) == name
