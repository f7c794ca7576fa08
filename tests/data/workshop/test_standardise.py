"""Standardising: every planted defect is found, nothing is left, and the way back is exact."""

import csv
import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetrial.data.read import read
from finetrial.data.workshop import standardise as workshop
from finetrial.data.workshop.config import StandardiseConfig
from finetrial.data.workshop.shapes import shapes
from finetrial.data.workshop.standardise import inspect, standardise
from finetrial.data.workshop.undo import undo
from finetrial.errors import UserError

PHYSICS = StandardiseConfig(templates=("{explanation} Answer: {answer}", "{explanation}"), join=" ")
SHAPE_OF = {
    "json": "json",
    "python": "python",
    "list": "json_list",
    "empty": "empty",
    "tiny": "tiny",
    "mojibake": "mojibake",
}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pairs(*outputs: Any) -> list[dict[str, Any]]:
    return [{"instruction": f"Question {place}?", "output": output} for place, output in enumerate(outputs)]


def test_every_planted_defect_is_found_and_nothing_else_is() -> None:
    wrong: Counter[tuple[str, str]] = Counter()
    planted: Counter[str] = Counter()
    for example in read("world:physics_mixed?count=2000&seed=3").examples:
        question, answer = example.messages
        found = shapes(answer["content"], question["content"], PHYSICS)
        defect = example.meta["defect"]
        planted[str(defect)] += 1
        expected = (SHAPE_OF[defect],) if defect in SHAPE_OF else ()
        if found != expected:
            wrong[str(defect), str(found)] += 1
    assert not wrong  # recall 1 and precision 1 for each kind but duplicates
    assert min(planted[kind] for kind in SHAPE_OF) >= 50


def test_planted_duplicates_are_all_found() -> None:
    examples = read("world:physics_mixed?count=2000&seed=3").examples
    planted = sum(example.meta["defect"] == "duplicate" for example in examples)
    found = inspect("world:physics_mixed?count=2000&seed=3", PHYSICS)["shapes"]["duplicate"]["rows"]
    contents = Counter((example.messages[0]["content"], example.messages[1]["content"]) for example in examples)
    true = sum(rows - 1 for rows in contents.values())
    assert found == true >= planted  # the world also repeats itself by chance: those are duplicates no less


def test_nothing_is_left_of_the_planted_defects(tmp_path: Path) -> None:
    result = standardise("world:physics_mixed?count=1000&seed=3", tmp_path / "out.jsonl", PHYSICS)
    assert not result.residual
    after = inspect(str(tmp_path / "out.jsonl"), PHYSICS)
    assert set(after["shapes"]) <= {"conflict"}
    facts = result.facts
    assert facts["unchanged"] + facts["rewritten"] + facts["dropped"] == 1000
    assert after["rows"] == facts["rows_out"] == 1000 - facts["dropped"]
    clean = {e.id: e.messages[1]["content"] for e in read("world:physics_mixed?count=1000&seed=3").examples}
    for row in read_lines(tmp_path / "out.jsonl"):
        if row["meta"]["defect"] in (None, "duplicate"):
            assert row["messages"][1]["content"] == clean[row["id"]]
        if row["meta"]["kind"] != "explanation":
            assert "Answer: " in row["messages"][1]["content"]


def test_standardising_brings_back_what_the_outputs_were_before_the_damage(tmp_path: Path) -> None:
    standardise("world:physics_mixed?count=1000&seed=3", tmp_path / "out.jsonl", PHYSICS)
    whole = {row.id: row for row in read("world:physics_clean?count=1000&seed=3").examples}
    mended: Counter[str] = Counter()
    for row in read_lines(tmp_path / "out.jsonl"):
        if row["meta"]["defect"] != "duplicate":  # of which one copy is left where the world repeats the original
            (asked, said), (question, answer) = row["messages"], whole[row["id"]].messages
            full_stop = "." if row["meta"]["defect"] == "list" and not answer["content"].endswith(".") else ""
            assert (asked, said["content"]) == (question, answer["content"] + full_stop)  # a list is one of sentences
            mended[str(row["meta"]["defect"])] += 1
    assert set(mended) == {"None", "json", "python", "list", "mojibake"}
    planted = Counter(str(row.meta["defect"]) for row in whole.values())
    assert all(mended[kind] >= 0.9 * planted[kind] for kind in mended)  # the rest repeats an earlier row by chance


def test_running_on_the_output_changes_nothing(tmp_path: Path) -> None:
    standardise("world:physics_mixed?count=600&seed=1", tmp_path / "once.jsonl", PHYSICS)
    again = standardise(str(tmp_path / "once.jsonl"), tmp_path / "twice.jsonl", PHYSICS)
    assert again.facts["rewritten"] == again.facts["dropped"] == 0
    assert (tmp_path / "once.jsonl").read_bytes() == (tmp_path / "twice.jsonl").read_bytes()


def test_rows_that_do_not_change_keep_their_bytes(tmp_path: Path) -> None:
    odd = '{ "instruction":"caf\\u00e9?",  "output": "It is so, 1.50.", "score": 1e3 }\r'
    source = tmp_path / "in.jsonl"
    source.write_bytes(f'{odd}\n{{"instruction": "b", "output": {{"answer": "yes sir"}}}}\n'.encode())
    standardise(str(source), tmp_path / "out.jsonl", StandardiseConfig(templates=("{answer}",)))
    lines = (tmp_path / "out.jsonl").read_bytes().split(b"\n")
    assert lines[0].decode() == odd
    assert json.loads(lines[1]) == {"instruction": "b", "output": "yes sir"}
    back = undo(str(tmp_path / "out.jsonl"), tmp_path / "out.map.jsonl", tmp_path / "back.jsonl")
    assert back["identical"] is True
    assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()


OUTPUTS = (
    st.none()
    | st.text(max_size=30)
    | st.text(st.characters(), max_size=12)  # surrogates too
    | st.integers()
    | st.lists(st.text(max_size=5), max_size=3)
    | st.dictionaries(st.sampled_from(["explanation", "answer", "other"]), st.text(max_size=8), max_size=3)
    | st.dictionaries(st.sampled_from(["answer", "b"]), st.text(max_size=8), min_size=1).map(json.dumps)
    | st.dictionaries(st.sampled_from(["answer", "b"]), st.text(max_size=8), min_size=1).map(repr)
    | st.sampled_from(
        ["a plain sentence", "cafÃ© here", "```json\n{}\n```", "Assistant: yes sir", '{"a": "b', "[INST]"]
    )
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OUTPUTS, min_size=1, max_size=8))
def test_the_round_trip_restores_every_row(tmp_path: Path, outputs: list[Any]) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    rules: dict[str, Any] = {"broken": "drop", "markers": "drop", "embedded": "keep"}
    config = StandardiseConfig(templates=("{answer}",), otherwise="labels", rules=rules, max_dropped=1)
    source = write_lines(tmp_path / "in.jsonl", pairs(*outputs))
    result = standardise(str(source), tmp_path / "out.jsonl", config)
    if result.residual:  # an escape that is no string, say: nothing may be written then
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
        return
    assert set(inspect_or_empty(tmp_path / "out.jsonl", config)) <= {"conflict", "embedded"}
    undo(str(tmp_path / "out.jsonl"), tmp_path / "out.map.jsonl", tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()
    if result.facts["rows_out"]:
        again = standardise(str(tmp_path / "out.jsonl"), tmp_path / "again.jsonl", config)
        assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes(), again.facts


def inspect_or_empty(path: Path, config: StandardiseConfig) -> dict[str, Any]:
    return inspect(str(path), config)["shapes"] if path.stat().st_size else {}


def test_the_gate_names_what_is_left_and_writes_nothing(tmp_path: Path) -> None:
    rows = pairs('{"explanaton": "because", "answer": "B"}', '{"answer": "B', "a [INST] b", "a plain text")
    source = write_lines(tmp_path / "in.jsonl", rows)
    result = standardise(str(source), tmp_path / "out.jsonl", PHYSICS)
    assert {shape: fact["rows"] for shape, fact in result.residual.items()} == {"json": 1, "broken": 1, "markers": 1}
    reason = next(iter(result.residual["json"]["reasons"]))
    assert "'explanation' is missing (did you mean 'explanaton'?)" in reason
    assert result.residual["broken"]["examples"][0]["place"] == f"{source}:2"
    assert not result.files
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_key_without_a_place_is_never_lost_in_silence(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", pairs({"Final Answer": "B or not B", "confidence": 0.9}))
    fields = {"answer": ("final_answer",)}
    config = StandardiseConfig(templates=("So: {answer}",), fields=fields)
    result = standardise(str(source), tmp_path / "out.jsonl", config)
    assert "'confidence' has no place" in next(iter(result.residual["object"]["reasons"]))
    config = StandardiseConfig(templates=("So: {answer}",), fields=fields, ignore=("confidence",))
    standardise(str(source), tmp_path / "out.jsonl", config)
    assert read_lines(tmp_path / "out.jsonl")[0]["output"] == "So: B or not B"


def test_damage_in_layers_is_mended_layer_by_layer(tmp_path: Path) -> None:
    inner = json.dumps({"explanation": "the café is \\frac{1}{2} full", "answer": "half"}, ensure_ascii=False)
    damaged = f"Assistant: ```json\n{inner}\n```</s>".encode().decode("cp1252")
    result = standardise(str(write_lines(tmp_path / "in.jsonl", pairs(damaged))), tmp_path / "out.jsonl", PHYSICS)
    assert not result.residual
    assert read_lines(tmp_path / "out.jsonl")[0]["output"] == "the café is \\frac{1}{2} full Answer: half"
    entry = read_lines(tmp_path / "out.map.jsonl")[0]
    assert entry["shapes"] == ["mojibake", "markers", "fence", "json"]


def test_rows_that_become_alike_are_duplicates(tmp_path: Path) -> None:
    rows = [{"instruction": "Which?", "output": output} for output in ("Answer B", '["Answer B"]', "Answer C")]
    result = standardise(str(write_lines(tmp_path / "in.jsonl", rows)), tmp_path / "out.jsonl", PHYSICS)
    assert [row["output"] for row in read_lines(tmp_path / "out.jsonl")] == ["Answer B", "Answer C"]
    assert result.facts["after"]["shapes"]["conflict"]["rows"] == 1


def test_conversations_are_rewritten_in_every_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": '{"answer": "first"}'},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]},
        {"role": "tool", "content": '{"kept": 1}'},
        {"role": "assistant", "content": "['second']"},
    ]
    source = write_lines(tmp_path / "in.jsonl", [{"messages": turns, "note": 1}])
    standardise(str(source), tmp_path / "out.jsonl", StandardiseConfig(templates=("{answer}",)))
    (row,) = read_lines(tmp_path / "out.jsonl")
    assert [turn["content"] for turn in row["messages"]] == ["one", "first", "two", "", '{"kept": 1}', "second"]
    assert row["note"] == 1


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", pairs("a plain text"))
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    os.link(source, tmp_path / "hard.jsonl")
    for name in ("in.jsonl", "link.jsonl", "hard.jsonl"):
        with pytest.raises(UserError, match="is the input"):
            standardise(str(source), tmp_path / name, PHYSICS)
    with pytest.raises(UserError, match=r"expected a file ending in .jsonl or .ndjson"):
        standardise(str(source), tmp_path / "out.csv", PHYSICS)
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        standardise(str(source), tmp_path / "dangling.jsonl", PHYSICS)
    assert source.read_bytes() == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_lines(tmp_path / "in.jsonl", pairs('["a plain text"]'))

    def full(path: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(workshop, "file_digest", full)
    with pytest.raises(OSError, match="No space left"):
        standardise(str(source), tmp_path / "out.jsonl", PHYSICS)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_dropping_most_rows_is_taken_for_a_mistake(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", pairs("A", "B", "C", "a longer text"))
    with pytest.raises(UserError, match="--rule tiny=keep"):
        standardise(str(source), tmp_path / "out.jsonl", PHYSICS)
    rules: dict[str, Any] = {"tiny": "keep"}
    assert not standardise(str(source), tmp_path / "out.jsonl", StandardiseConfig(rules=rules)).residual


def test_csv_and_parquet_and_json(tmp_path: Path) -> None:
    config = StandardiseConfig(templates=("{answer}",))
    rows = [
        {"prompt": "a, b?", "completion": '{"answer": "one, two"}', "n": "1"},
        {"prompt": "c", "completion": "", "n": ""},
    ]
    rows += [{"prompt": "d", "completion": "plain text", "n": "3"}]
    with (tmp_path / "in.csv").open("w", newline="") as stream:
        out = csv.DictWriter(stream, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    standardise(str(tmp_path / "in.csv"), tmp_path / "out.csv", config)
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert [row["completion"] for row in csv.DictReader(stream)] == ["one, two", "plain text"]
    undo(str(tmp_path / "out.csv"), tmp_path / "out.map.jsonl", tmp_path / "back.csv")
    with (tmp_path / "back.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == rows

    table = pa.table({"prompt": ["a", "b", "c"], "response": [["x y", "z"], ["u v w"], None], "n": [1.5, None, 2.0]})
    pq.write_table(table, tmp_path / "in.parquet")
    standardise(str(tmp_path / "in.parquet"), tmp_path / "p.parquet", config)
    assert pq.read_table(tmp_path / "p.parquet")["response"].to_pylist() == ["x y\nz", "u v w"]
    undo(str(tmp_path / "p.parquet"), tmp_path / "p.map.jsonl", tmp_path / "back.parquet")
    assert pq.read_table(tmp_path / "back.parquet").equals(table)

    (tmp_path / "in.json").write_text(json.dumps(pairs({"answer": "one two"}, "plain text")))
    standardise(str(tmp_path / "in.json"), tmp_path / "j.json", config)
    assert [row["output"] for row in json.loads((tmp_path / "j.json").read_text())] == ["one two", "plain text"]
    undo(str(tmp_path / "j.json"), tmp_path / "j.map.jsonl", tmp_path / "back.json")
    assert json.loads((tmp_path / "back.json").read_text()) == pairs({"answer": "one two"}, "plain text")


def test_a_map_only_leads_back_from_its_own_output(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", pairs('["a plain text"]', "another text"))
    standardise(str(source), tmp_path / "out.jsonl", PHYSICS)
    (tmp_path / "edited.jsonl").write_text((tmp_path / "out.jsonl").read_text().replace("plain", "changed"))
    with pytest.raises(UserError, match="its SHA-256 differs"):
        undo(str(tmp_path / "edited.jsonl"), tmp_path / "out.map.jsonl", tmp_path / "back.jsonl")
    with pytest.raises(UserError, match="no map"):
        undo(str(tmp_path / "out.jsonl"), source, tmp_path / "back.jsonl")
    cut = (tmp_path / "out.map.jsonl").read_text().splitlines()[0]
    (tmp_path / "cut.jsonl").write_text(cut)
    with pytest.raises(UserError, match="cut off"):
        undo(str(tmp_path / "out.jsonl"), tmp_path / "cut.jsonl", tmp_path / "back.jsonl")
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(UserError, match="leads back from another output"):
        standardise(str(source), tmp_path / "out.jsonl", PHYSICS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"instruction": "a"', r"in.jsonl:1: .* at column"),
        ("[1, 2]", "a row is a list, not an object"),
        ('{"quest": "a", "answr": "b"}', "unknown shape with the keys answr, quest"),
        ("\n", "no row"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(UserError, match=told):
        standardise(str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", PHYSICS)


def test_named_columns(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"q": "a", "reply_text": "['one two']"}])
    config = StandardiseConfig(prompt_column="q", output_column="reply_text")
    standardise(str(source), tmp_path / "out.jsonl", config)
    assert read_lines(tmp_path / "out.jsonl")[0]["reply_text"] == "one two"
    with pytest.raises(UserError, match="did you mean 'reply_text'"):
        inspect(str(source), StandardiseConfig(output_column="reply_txt"))
