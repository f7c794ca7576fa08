"""The outcome table: what is odd is told, what is missing stays missing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrial import seeds
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError
from finetrial.records import Outcome

ROW = Outcome("a", 1, "test", "x", 0, "nll", 2.0)


def grid(**changes: object) -> list[Outcome]:
    rows = [
        replace(ROW, condition=c, seed=s, item=i, sample=k, value=10.0 * s + k)
        for c in "ab" for s in (1, 2, 3) for i in "xyz" for k in (0, 1)
    ]  # fmt: skip
    return [replace(row, **changes) for row in rows]  # pyright: ignore[reportArgumentType]


def test_cells_are_means_over_samples() -> None:
    dense = OutcomeTable.read(grid()).dense("a", "test", "nll")
    assert dense.seeds == (1, 2, 3)
    assert dense.items.tolist() == ["x", "y", "z"]
    assert dense.values_SI.tolist() == [[10.5] * 3, [20.5] * 3, [30.5] * 3]
    assert (dense.count_SI == 2).all()
    assert dense.groups.tolist() == ["x", "y", "z"]
    assert OutcomeTable.read(grid()).report.sentences() == []


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 2)), min_size=1, unique=True))
def test_cells_are_those_of_a_plain_loop_in_any_order(keys: list[tuple[int, int, int]]) -> None:
    rng = seeds.stream(len(keys), "test")
    rows = [replace(ROW, seed=s, item=f"i{i}", sample=k, value=float(rng.normal())) for s, i, k in keys]
    rng.shuffle(rows)  # pyright: ignore[reportArgumentType]
    dense = OutcomeTable.read(rows).dense("a", "test", "nll")
    for s, seed in enumerate(dense.seeds):
        for i, item in enumerate(dense.items):
            values = [r.value for r in rows if r.seed == seed and r.item == item and r.value is not None]
            expected = np.mean(values) if values else np.nan
            assert dense.values_SI[s, i] == pytest.approx(expected, nan_ok=True)


def test_missing_is_missing_and_told() -> None:
    rows = grid()
    rows[0] = replace(rows[0], value=None)
    rows[2], rows[3] = replace(rows[2], value=float("nan")), replace(rows[3], value=float("inf"))
    table = OutcomeTable.read(rows)
    dense = table.dense("a", "test", "nll")
    assert dense.values_SI[0, 0] == 11.0
    assert np.isnan(dense.values_SI[0, 1])
    assert dense.failed_SI[0].tolist() == [1, 2, 0]
    assert "3 of 36 outcomes have no finite value" in table.report.sentences()[0]


def test_repeated_rows_count_once_and_conflicting_ones_not_at_all() -> None:
    rows = [*grid(), *grid()[:2], replace(grid()[4], value=99.0)]
    table = OutcomeTable.read(rows)
    dense = table.dense("a", "test", "nll")
    assert (table.report.duplicated, table.report.conflicting) == (2, 2)
    assert dense.values_SI[0].tolist() == [10.5, 10.5, 11.0]
    assert dense.failed_SI[0, 2] == 1
    assert len(table.report.sentences()) == 2


def test_gaps_are_told() -> None:
    rows = [r for r in grid() if not (r.condition == "b" and r.seed == 2 and r.item == "y")]
    table = OutcomeTable.read(rows)
    assert np.isnan(table.dense("b", "test", "nll").values_SI[1, 1])
    assert table.report.unbalanced == ("b on test/nll: 1 of 9 cells (3 seeds × 3 items) have no row",)


def test_frozen_base_groups_weights_and_hashes() -> None:
    rows = [
        replace(ROW, condition="base", seed=None, item=i, group="g", weight=w, suite_hash="h")
        for i, w in (("x", 1.0), ("y", 3.0))
    ]
    dense = OutcomeTable.read(rows).dense("base", "test", "nll")
    assert dense.frozen
    assert dense.seeds == (None,)
    assert dense.weight_I.tolist() == [1, 3]
    assert dense.groups.tolist() == ["g", "g"]
    assert dense.suite_hashes == {"h"}


def test_parquet_arrow_and_records_read_alike(tmp_path: Path) -> None:
    rows = grid(group="g")
    names = ("condition", "seed", "suite", "item", "sample", "metric", "value", "group")
    arrow = pa.table({name: [getattr(row, name) for row in rows] for name in names})
    pq.write_table(arrow.slice(0, 20), tmp_path / "part-0.parquet")
    pq.write_table(arrow.slice(20), tmp_path / "part-1.parquet")
    tables = [OutcomeTable.read(source) for source in (rows, arrow, tmp_path / "part-*.parquet")]
    for table in tables:
        assert (table.dense("b", "test", "nll").values_SI == tables[0].dense("b", "test", "nll").values_SI).all()
        assert table.report == tables[0].report


def test_seeds_that_a_data_frame_turned_into_floats() -> None:
    arrow = pa.table({"condition": ["a", "base"], "seed": [3.0, float("nan")], "suite": ["t", "t"], "item": ["x", "x"],
                      "metric": ["nll", "nll"], "value": [1, 2]})  # fmt: skip
    table = OutcomeTable.read(arrow)
    assert table.dense("a", "t", "nll").seeds == (3,)
    assert table.dense("base", "t", "nll").frozen


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("seed", [1.5, 2.0], "column 'seed' must hold whole numbers"),
        ("seed", ["one", "two"], "column 'seed' must hold whole numbers"),
        ("value", ["good", "bad"], "column 'value' must hold numbers"),
        ("item", ["x", None], "1 rows have no item"),
        ("weight", [1.0, 0.0], "every weight must be a number above 0"),
        ("sample", ["a", "b"], "column 'sample' must hold whole numbers"),
    ],
)
def test_bad_columns_are_named(column: str, values: list[object], message: str) -> None:
    good = {
        "condition": ["a", "a"],
        "seed": [1, 2],
        "suite": ["t", "t"],
        "item": ["x", "x"],
        "metric": ["m", "m"],
        "value": [1.0, 2.0],
    }
    with pytest.raises(UserError, match=message):
        OutcomeTable.read(pa.table(good | {column: values}))


def test_missing_column_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"column 'seed' is missing \(did you mean 'seeds'\?\)"):
        OutcomeTable.read(
            pa.table({"condition": ["a"], "seeds": [1], "suite": ["t"], "item": ["x"], "metric": ["m"], "value": [1.0]})
        )
    with pytest.raises(UserError, match="no such file of outcomes"):
        OutcomeTable.read("nowhere.parquet")
    with pytest.raises(UserError, match="there are no outcomes"):
        OutcomeTable.read([])


def test_an_item_of_two_groups_is_refused() -> None:
    with pytest.raises(UserError, match="item 'x' belongs to two groups"):
        OutcomeTable.read([replace(ROW, group="g"), replace(ROW, seed=2, group="h")])


def test_unknown_names_are_answered_with_the_nearest() -> None:
    table = OutcomeTable.read([*grid(), replace(ROW, condition="c", metric="correct")])
    with pytest.raises(UserError, match=r"no suite 'tset' \(did you mean 'test'\?\)"):
        table.dense("a", "tset", "nll")
    with pytest.raises(UserError, match="condition 'c' has no outcomes of test/nll; it has: test/correct"):
        table.dense("c", "test", "nll")


def test_a_condition_with_and_without_seeds_is_refused() -> None:
    table = OutcomeTable.read([ROW, replace(ROW, seed=None, item="y")])
    with pytest.raises(UserError, match="rows with a seed and rows without"):
        table.dense("a", "test", "nll")
