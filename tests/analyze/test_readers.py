"""Readers: every format gives the same outcomes, and nothing odd passes in silence."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetrial.analyze.readers.read import read
from finetrial.analyze.readers.run_logs import expand, load_run
from finetrial.errors import UserError
from run_folders import write_arms, write_lines, write_run

ROWS = [
    {"condition": c, "seed": s, "item": f"q{i}", "value": float((i * 7 + s * 3 + len(c)) % 5)}
    for c in ("a", "bb")
    for s in (1, 2, 3)
    for i in range(4)
]


def write_csv(path: Path, rows: list[dict]) -> Path:
    columns = list(rows[0])
    lines = [",".join(columns)] + [",".join("" if row[c] is None else str(row[c]) for c in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_table_format_gives_the_same_cells(tmp_path):
    files = [write_csv(tmp_path / "o.csv", ROWS), write_lines(tmp_path / "o.jsonl", ROWS)]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "o.parquet")
    for file in [*files, tmp_path / "o.parquet"]:
        dense = read([file]).table.dense("bb", "all", "value")
        assert dense.seeds == (1, 2, 3)
        np.testing.assert_array_equal(
            dense.values_SI[1], [r["value"] for r in ROWS if (r["condition"], r["seed"]) == ("bb", 2)]
        )


def test_columns_are_mapped(tmp_path):
    rows = [{"model": r["condition"], "run": r["seed"], "q": r["item"], "score": r["value"]} for r in ROWS]
    mapping = {"condition": "model", "seed": "run", "item": "q", "value": "score"}
    table = read([write_csv(tmp_path / "o.csv", rows)], mapping).table
    assert table.metrics == ("score",)
    assert table.dense("a", "all", "score").values_SI.shape == (3, 4)


def test_missing_and_misspelt_columns_name_the_nearest(tmp_path):
    rows = [{"conditon": r["condition"], "seed": 1, "item": r["item"], "value": 1} for r in ROWS]
    with pytest.raises(UserError, match=r"column 'condition' is missing \(did you mean 'conditon'\?\)"):
        read([write_csv(tmp_path / "o.csv", rows)])
    with pytest.raises(UserError, match="did you mean 'item'"):
        read([write_csv(tmp_path / "p.csv", ROWS)], {"item": "itme"})
    with pytest.raises(UserError, match="did you mean 'value'"):
        read([tmp_path / "p.csv"], {"vlaue": "value"})


def test_text_where_a_number_belongs_names_row_and_value(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[5]["value"] = "error"
    with pytest.raises(UserError, match=r"row 6: value is 'error', expected a number"):
        read([write_csv(tmp_path / "o.csv", rows)])


def test_missing_values_stay_missing_and_are_told(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[0]["value"], rows[1]["value"] = None, "nan"
    reading = read([write_csv(tmp_path / "o.csv", rows)])
    assert np.isnan(reading.table.dense("a", "all", "value").values_SI[0, :2]).all()
    assert any("2 of 24 outcomes have no finite value" in line for line in reading.sentences())


def test_rows_that_contradict_each_other_are_missing_not_averaged(tmp_path):
    reading = read([write_csv(tmp_path / "o.csv", [*ROWS, {**ROWS[0], "value": 99.0}])])
    assert np.isnan(reading.table.dense("a", "all", "value").values_SI[0, 0])
    assert any("--map sample=COLUMN" in line for line in reading.sentences())


def test_without_seed_column_conditions_are_checkpoints(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "seed"} for row in ROWS if row["seed"] == 1]
    reading = read([write_csv(tmp_path / "o.csv", rows)])
    assert reading.table.dense("a", "all", "value").frozen
    assert any("no column 'seed'" in note for note in reading.notes)


def test_groups_become_suites(tmp_path):
    rows = [{**row, "group": "even" if int(row["item"][1]) % 2 == 0 else "odd"} for row in ROWS]
    reading = read([write_csv(tmp_path / "o.csv", rows)], by="group")
    assert reading.groups is not None
    assert reading.groups.suites == ("even", "odd")
    assert any("the items are in 2 groups" in note for note in reading.notes)
    with pytest.raises(UserError, match=r"--by gruop: no such column .*did you mean 'group'"):
        read([tmp_path / "o.csv"], by="gruop")


def test_absent_and_unknown_sources(tmp_path):
    write_csv(tmp_path / "outcomes.csv", ROWS)
    with pytest.raises(UserError, match=r"did you mean 'outcomes\.csv'"):
        read([tmp_path / "outcome.csv"])
    (tmp_path / "x.xyz").write_text("?")
    with pytest.raises(UserError, match="expected a campaign folder"):
        read([tmp_path / "x.xyz"])


def lm_eval_row(doc: int, value: float, content: str = "h", **more) -> dict:
    row = {"doc_id": doc, "doc": {}, "target": "t", "filter": "none", "metrics": ["acc"], "doc_hash": f"{content}{doc}"}
    return row | {"prompt_hash": "p", "target_hash": "t", "acc": value} | more


def test_lm_eval_samples(tmp_path):
    for condition in ("a", "b"):
        for seed in (0, 1, 2):
            name = f"{condition}_s{seed}/model/samples_arc_easy_2026-01-02T03-04-05.678901.jsonl"
            write_lines(tmp_path / name, [lm_eval_row(i, float((i + seed) % 2)) for i in range(5)])
    reading = read([tmp_path])
    dense = reading.table.dense("b", "arc_easy", "acc")
    assert dense.seeds == (0, 1, 2)
    np.testing.assert_array_equal(dense.values_SI[1], [1, 0, 1, 0, 1])


def test_lm_eval_refuses_other_documents(tmp_path):
    write_lines(tmp_path / "a/samples_t.jsonl", [lm_eval_row(0, 1.0)])
    write_lines(tmp_path / "b/samples_t.jsonl", [lm_eval_row(0, 1.0, content="other")])
    with pytest.raises(UserError, match="document 0 of t is not the one in"):
        read([tmp_path])


def test_lm_eval_filters_and_folders_that_are_mapped(tmp_path):
    rows = [
        lm_eval_row(i, 1.0, filter=f, metrics=["exact_match"], exact_match=float(f == "flex"))
        for i in range(3)
        for f in ("strict", "flex")
    ]
    write_lines(tmp_path / "Qwen__Q/samples_gsm8k.jsonl", rows)
    table = read([tmp_path], {"Qwen__Q": "base"}).table
    assert table.conditions == ("base",)
    assert table.metrics == ("exact_match,flex", "exact_match,strict")
    assert table.dense("base", "gsm8k", "exact_match,flex").values_SI.tolist() == [[1, 1, 1]]


def write_inspect(path: Path, condition: str, seed: int, samples: list[dict], compressed: bool) -> None:
    """A log in the published structure; `compressed` packs members with Zstandard, as inspect_ai does since 0.3.2xx."""
    header = {
        "version": 2,
        "status": "success",
        "eval": {"task": "adds", "model": "m", "metadata": {"condition": condition, "seed": seed}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {"summaries.json": json.dumps(samples).encode(), "header.json": json.dumps(header).encode()}
    if not compressed:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pa.compress(content, "zstd", asbytes=True))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            struct.pack_into("<H", data, info.header_offset + 8, 93)
            struct.pack_into("<I", data, info.header_offset + 22, len(members[info.filename]))
    at = data.find(b"PK\x01\x02")
    for content in members.values():
        struct.pack_into("<H", data, at + 10, 93)
        struct.pack_into("<I", data, at + 24, len(content))
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)


@pytest.mark.parametrize("compressed", [False, True])
def test_inspect_logs(tmp_path, compressed):
    for seed in (0, 1):
        samples = [
            {"id": f"q{i}", "epoch": e, "input": "?", "target": "!", "scores": {"match": {"value": "C" if i else "I"}}}
            for i in range(3)
            for e in (1, 2)
        ]
        samples[-1] |= {"scores": {}, "error": "boom"}
        write_inspect(tmp_path / f"{seed}.eval", "a", seed, samples, compressed)
    dense = read([tmp_path]).table.dense("a", "adds", "match")
    assert dense.seeds == (0, 1)
    np.testing.assert_array_equal(dense.values_SI, [[0, 1, 1]] * 2)
    assert dense.failed_SI.tolist() == [[0, 0, 1]] * 2


def test_inspect_refuses_other_samples_and_broken_files(tmp_path):
    sample = {"id": "q", "epoch": 1, "input": "?", "target": "!", "scores": {"match": {"value": 1}}}
    write_inspect(tmp_path / "a.eval", "a", 0, [sample], False)
    write_inspect(tmp_path / "b.eval", "b", 0, [sample | {"target": "other"}], False)
    with pytest.raises(UserError, match="sample q of adds has another input or target"):
        read([tmp_path])
    (tmp_path / "c.eval").write_text("no zip")
    with pytest.raises(UserError, match="not an Inspect log"):
        read([tmp_path / "c.eval"])


def duel(question: int, first: str, second: str) -> dict:
    row = {"question_id": question, "model_1": "m", "model_2": "n", "g1_winner": first, "g2_winner": second}
    return row | {"judge": ["gpt-4", "pair-v2"], "turn": 1}


def test_mt_bench_duels_and_grades(tmp_path):
    duels = [
        duel(1, "model_2", "model_2"),
        duel(2, "model_1", "model_2"),
        duel(3, "tie", "model_1"),
        duel(4, "error", "model_1"),
    ]
    write_lines(tmp_path / "model_judgment/gpt-4_pair.jsonl", duels)
    grades = [
        {"question_id": 1, "model": "n", "judge": ["gpt-4", "s"], "turn": t, "score": s} for t, s in ((1, 8), (2, -1))
    ]
    write_lines(tmp_path / "model_judgment/gpt-4_single.jsonl", grades)
    write_lines(
        tmp_path / "question.jsonl", [{"question_id": q, "category": "odd" if q % 2 else "even"} for q in range(1, 6)]
    )
    reading = read([tmp_path])
    n = reading.table.dense("n", "mt_bench", "win_rate")
    np.testing.assert_array_equal(n.values_SI, [[1, 0.5, 0.5, np.nan]])
    score = reading.table.dense("n", "mt_bench", "score")
    assert score.values_SI.tolist() == [[8]]
    assert score.failed_SI.tolist() == [[1]]
    assert reading.groups is not None
    assert reading.groups.suites == ("even", "odd")
    assert any("1 of 3 duels have the same outcome in both orders; 1 name" in note for note in reading.notes)
    assert any("1 of 5 questions have no duel" in note for note in reading.notes)


def test_mt_bench_real_judgments(data_dir):
    reading = read([data_dir / "mt_bench" / "Stefanstud"])
    assert reading.groups is not None
    assert len(reading.groups.suites) == 8
    a, b = (reading.table.dense(name, "mt_bench", "win_rate") for name in ("phi-3-dpo", "phi-3"))
    both = ~np.isnan(a.values_SI[0])
    assert both.sum() == 73
    np.testing.assert_allclose(a.values_SI[0, both] + b.values_SI[0, both], 1.0)
    assert reading.table.dense("phi-3-dpo", "mt_bench", "score").values_SI.shape == (1, 80)


def test_run_folders_are_read_and_gaps_and_restarts_told(tmp_path):
    folder = write_run(tmp_path / "grpo+none_s7", 0.4, np.random.default_rng(0), generations="all")
    run = load_run(folder)
    assert (run.condition, run.seed) == ("grpo+none", 7)
    assert run.complete
    assert run.completions == 12 * 32
    assert run.correct_C.mean() == pytest.approx(run.correct_T.sum() / run.total_T.sum())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    changed = json.dumps(json.loads(lines[3]) | {"mean_reward": 0.999})
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:8], *lines[9:], lines[2], changed]) + "\n")
    (folder / "emergence" / "steps.jsonl").unlink()
    run = load_run(folder)
    assert 3 not in run.steps_T
    assert any("repeats 2 steps" in note and "1 of them" in note for note in run.notes)
    assert any("2 steps between 0 and 11 have no row" in note for note in run.notes)


def test_best_of_group_trap_is_recognised(tmp_path):
    folder = write_run(tmp_path / "a_s0", 0.3, np.random.default_rng(1), generations="best")
    run = load_run(folder)
    assert run.correct_C.all()
    assert not run.complete
    assert any("best completion of each group" in note for note in run.notes)
    assert run.values_T["correct_rate"].mean() == pytest.approx(0.3, abs=0.1)
    (folder / "emergence" / "steps.jsonl").unlink()
    (folder / "metrics.jsonl").unlink()
    assert any("only the best one of each group" in note for note in load_run(folder).notes)


def test_patterns_expand_like_a_shell(tmp_path):
    write_arms(tmp_path, {"a": 0.3, "b": 0.3}, 2)
    assert [p.name for p in expand([str(tmp_path / "runs" / "a_s*")])] == ["a_s0", "a_s1"]
    assert len(expand([str(tmp_path)])) == 4
    with pytest.raises(UserError, match="matches no run folder"):
        expand([str(tmp_path / "runs" / "c_s*")])


def test_rows_without_group_and_logs_without_rewards_are_told(tmp_path):
    rows = [{**row, "kind": None if row["item"] == "q0" else "some"} for row in ROWS]
    reading = read([write_csv(tmp_path / "o.csv", rows)], by="kind")
    assert any("6 rows have no kind" in note for note in reading.notes)
    write_lines(tmp_path / "sft_s1" / "metrics.jsonl", [{"step": 0, "loss": 1.0}])
    with pytest.raises(UserError, match="no step has mean_reward or correct_rate"):
        read([tmp_path / "sft_s1"])
