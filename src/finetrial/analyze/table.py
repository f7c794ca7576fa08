"""The outcome table: where the two halves of finetrial meet, checked and reduced to one number per cell.

A cell is (condition, seed, suite, item, metric); its value is the mean over the samples that have one. What is
missing stays missing (NaN), and everything odd about the table is counted and told, never averaged away.

Shapes: S seeds, I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from finetrial.errors import UserError, nearest
from finetrial.records import Outcome

_REQUIRED = ("condition", "seed", "suite", "item", "metric", "value")
_OPTIONAL = {
    "sample": ("BIGINT", "0"),
    "weight": ("DOUBLE", "1.0"),
    "group": ("VARCHAR", "NULL"),
    "suite_hash": ("VARCHAR", "''"),
}
"""Type and default of each column that may be absent."""
_KEYS = ("condition", "suite", "metric", "seed", "item")


@dataclass(frozen=True)
class Dense:
    """All outcomes of one (condition, suite, metric) as arrays; NaN where a cell has no value."""

    values_SI: np.ndarray
    """Mean over the samples of the cell."""
    count_SI: np.ndarray
    """Samples with a value."""
    failed_SI: np.ndarray
    """Samples that are there but have no finite value (a parse failure, a crashed grader)."""
    squares_SI: np.ndarray
    """Sum of squares of the cell's values (for the variance within cells)."""
    seeds: tuple[int | None, ...]
    """Ascending; (None,) for the frozen base."""
    items: np.ndarray
    """Names of the items, ascending."""
    weight_I: np.ndarray
    groups: np.ndarray
    """Cluster of each item; the item's own name where it has none."""
    suite_hashes: frozenset[str]
    ends_SI: tuple[np.ndarray, np.ndarray] | None = None
    """For a value computed from samples: with every failed sample counted at its lowest, and at its highest."""

    @property
    def frozen(self) -> bool:
        """Whether this is a frozen model, which has no training seeds."""
        return self.seeds == (None,)

    def bounds(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """`values_SI` with every failed sample set to `low`, and to `high`."""
        if self.ends_SI is not None:
            return self.ends_SI
        total_SI = np.where(self.count_SI > 0, self.values_SI * self.count_SI, 0.0)
        rows_SI = self.count_SI + self.failed_SI
        lowest_SI, highest_SI = (
            np.divide(total_SI + fill * self.failed_SI, rows_SI, out=np.full(rows_SI.shape, np.nan), where=rows_SI > 0)
            for fill in (low, high)
        )
        return lowest_SI, highest_SI


@dataclass(frozen=True)
class TableReport:
    """What is odd about a table, in numbers and in sentences."""

    rows: int
    missing: int
    """Rows whose value is null, NaN or infinite."""
    duplicated: int
    """Rows that repeat a (condition, seed, suite, item, sample, metric) with the same value: counted once."""
    conflicting: int
    """Rows that repeat one with another value: all of them taken as missing."""
    unbalanced: tuple[str, ...]
    """One sentence per (condition, suite, metric) whose seeds or items are not complete."""

    def sentences(self) -> list[str]:
        """Everything that a reader should know before believing a number; empty for a clean table."""
        lines = []
        if self.missing:
            lines.append(f"{self.missing} of {self.rows} outcomes have no finite value; they are missing, not 0")
        if self.duplicated:
            lines.append(f"{self.duplicated} rows repeat an outcome with the same value; each is counted once")
        if self.conflicting:
            lines.append(f"{self.conflicting} rows give one outcome different values; they are taken as missing")
        return lines + list(self.unbalanced)


class OutcomeTable:
    """Outcomes reduced to cells, indexed by (condition, suite, metric).

    Build it with `read`. `report` says what is odd, `dense` gives arrays.
    """

    def __init__(self, cells: pa.Table, report: TableReport) -> None:
        self._names: dict[str, np.ndarray] = {}
        codes = {}
        for key in ("condition", "suite", "metric", "item"):
            names, codes[key] = _encode(cells[key])
            self._names[key] = names
        seed = cells["seed"]
        self._seedless = np.asarray(seed.is_null())
        self._seed = np.asarray(seed.fill_null(0)).astype(np.int64)
        self._item = codes["item"]
        self._columns = {name: np.asarray(cells[name]) for name in ("n", "failed", "mean", "squares", "weight")}
        self._groups, self._group = _encode(cells["group"].fill_null(""))
        self._hashes, self._hash = _encode(cells["suite_hash"])
        self._mixed_hash = np.asarray(cells["mixed_hash"])
        self._blocks = self._index(codes)
        self.report = TableReport(report.rows, report.missing, report.duplicated, report.conflicting, self._gaps())

    @classmethod
    def read(cls, source: "Path | str | pa.Table | Sequence[Outcome]") -> "OutcomeTable":
        """Read outcomes from a Parquet file (or glob), an arrow table, or records.

        Raises:
            UserError: a column is missing, has a type that does not fit, or the table is empty.
        """
        with duckdb.connect() as db:
            place = _register(db, source)
            return _reduce(db, place)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, ascending."""
        return tuple(self._names["condition"])

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites, ascending."""
        return tuple(self._names["suite"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, ascending."""
        return tuple(self._names["metric"])

    def has(self, condition: str, suite: str, metric: str) -> bool:
        """Whether there is any row of this (condition, suite, metric)."""
        return (condition, suite, metric) in self._blocks

    def dense(self, condition: str, suite: str, metric: str) -> Dense:
        """The outcomes of one (condition, suite, metric) as arrays.

        Raises:
            UserError: the table has no such condition, suite or metric, none of their combination, or a condition
                has rows both with and without a seed.
        """
        self._require(condition, suite, metric)
        rows = self._blocks[condition, suite, metric]
        seedless = self._seedless[rows]
        if seedless.any() and not seedless.all():
            raise UserError(
                f"condition '{condition}' on suite '{suite}' has rows with a seed and rows without; "
                "only a frozen model has none, and then in all its rows"
            )
        seeds, seed_index = np.unique(self._seed[rows], return_inverse=True)
        items, first, item_index = np.unique(self._item[rows], return_index=True, return_inverse=True)
        shape = (len(seeds), len(items))

        def grid(name: str, empty: float) -> np.ndarray:
            array_SI = np.full(shape, empty)
            array_SI[seed_index, item_index] = self._columns[name][rows]
            return array_SI

        names = self._names["item"][items]
        groups = self._groups[self._group[rows][first]]
        weight_I = np.bincount(item_index, self._columns["weight"][rows]) / np.bincount(item_index)
        return Dense(
            values_SI=grid("mean", np.nan),
            count_SI=grid("n", 0.0),
            failed_SI=grid("failed", 0.0),
            squares_SI=grid("squares", np.nan),
            seeds=(None,) if seedless.any() else tuple(int(seed) for seed in seeds),
            items=names,
            weight_I=weight_I,
            groups=np.where(groups == "", names, groups),
            suite_hashes=frozenset(self._hashes[np.unique(self._hash[rows])])
            | ({"mixed within one item"} if self._mixed_hash[rows].any() else set()),
        )

    def _require(self, condition: str, suite: str, metric: str) -> None:
        for kind, name in (("condition", condition), ("suite", suite), ("metric", metric)):
            if name not in self._names[kind]:
                have = ", ".join(self._names[kind])
                hint = nearest(name, self._names[kind])
                raise UserError(f"the outcomes have no {kind} '{name}'{hint}; they have: {have}")
        if not self.has(condition, suite, metric):
            have = ", ".join(sorted(f"{s}/{m}" for c, s, m in self._blocks if c == condition))
            raise UserError(f"condition '{condition}' has no outcomes of {suite}/{metric}; it has: {have}")

    def _index(self, codes: dict[str, np.ndarray]) -> dict[tuple[str, str, str], np.ndarray]:
        """Row numbers of each (condition, suite, metric)."""
        n_suites, n_metrics = len(self._names["suite"]), len(self._names["metric"])
        block = (codes["condition"] * n_suites + codes["suite"]) * n_metrics + codes["metric"]
        order = np.argsort(block, kind="stable")
        present, starts = np.unique(block[order], return_index=True)
        blocks = {}
        for code, rows in zip(present, np.split(order, starts[1:]), strict=True):
            rest, metric = divmod(int(code), n_metrics)
            condition, suite = divmod(rest, n_suites)
            key = (self._names["condition"][condition], self._names["suite"][suite], self._names["metric"][metric])
            blocks[key] = rows
        return blocks

    def _gaps(self) -> tuple[str, ...]:
        """One sentence per block whose cells are fewer than seeds × items of its suite and metric."""
        universe: dict[tuple[str, str], np.ndarray] = {}
        for (_, suite, metric), rows in self._blocks.items():
            seen = universe.get((suite, metric), np.empty(0, dtype=np.int64))
            universe[suite, metric] = np.union1d(seen, self._item[rows])
        lines = []
        for (condition, suite, metric), rows in self._blocks.items():
            n_seeds, n_items = len(np.unique(self._seed[rows])), len(universe[suite, metric])
            full = n_seeds * n_items
            if len(rows) < full:
                lines.append(
                    f"{condition} on {suite}/{metric}: {full - len(rows)} of {full} cells "
                    f"({n_seeds} seeds × {n_items} items) have no row"
                )
        return tuple(lines)


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(ascending names, code of each row) of a string column."""
    encoded = column.combine_chunks().dictionary_encode()
    names = np.asarray(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(names)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return names[order], rank[np.asarray(encoded.indices)]


def _register(db: duckdb.DuckDBPyConnection, source: "Path | str | pa.Table | Sequence[Outcome]") -> str:
    """Make `source` readable as the relation `outcomes`; returns how messages name it."""
    if isinstance(source, (str, Path)):
        path = str(source)
        if not any(mark in path for mark in "*?[") and not Path(path).is_file():
            raise UserError(f"{path}: no such file of outcomes")
        quoted = path.replace("'", "''")
        db.execute(f"CREATE VIEW outcomes AS SELECT * FROM read_parquet('{quoted}', union_by_name=true)")
        return path
    if isinstance(source, pa.Table):
        db.register("outcomes", source)
        return "outcomes"
    names = [field.name for field in fields(Outcome)]
    types = {"seed": pa.int64(), "sample": pa.int64(), "value": pa.float64(), "weight": pa.float64()}
    columns = {name: [getattr(outcome, name) for outcome in source] for name in names}
    arrays = {name: pa.array(column, types.get(name, pa.string())) for name, column in columns.items()}
    db.register("outcomes", pa.table(arrays))
    return "outcomes"


def _reduce(db: duckdb.DuckDBPyConnection, place: str) -> OutcomeTable:
    """Check the columns of the relation `outcomes` and reduce it to cells."""
    present = {row[0]: row[1] for row in db.execute("DESCRIBE outcomes").fetchall()}
    for name in _REQUIRED:
        if name not in present:
            raise UserError(
                f"{place}: column '{name}' is missing{nearest(name, present)}; it has: {', '.join(present)}"
            )
    optional = []
    for name, (kind, default) in _OPTIONAL.items():
        source = f'coalesce("{name}", {default})' if name in present else default
        optional.append(f'CAST({source} AS {kind}) AS "{name}"')
    # Data frames turn integers with gaps into floats: NaN is then the missing seed of the frozen base.
    seed = "CASE WHEN isnan(seed) THEN NULL ELSE seed END" if present["seed"] in ("DOUBLE", "FLOAT") else "seed"
    rows = f"""
        SELECT CAST(condition AS VARCHAR) AS condition, CAST({seed} AS BIGINT) AS seed, CAST(suite AS VARCHAR) AS suite,
               CAST(item AS VARCHAR) AS item, CAST(metric AS VARCHAR) AS metric, {", ".join(optional)},
               CASE WHEN isfinite(CAST(value AS DOUBLE)) THEN CAST(value AS DOUBLE) END AS value
        FROM outcomes"""
    try:
        facts = db.execute(
            f"""SELECT count(*), count(*) - count(value), count(*) FILTER (condition IS NULL OR suite IS NULL
                OR item IS NULL OR metric IS NULL), min(sample), max(sample) FROM ({rows})"""
        ).fetchall()
        fractional = db.execute(f"SELECT count(*) FILTER (({seed})::DOUBLE % 1 <> 0) FROM outcomes").fetchall()
    except duckdb.ConversionException as error:
        raise UserError(
            f"{place}: {str(error).splitlines()[0]} (seed and sample are integers, value a number)"
        ) from error
    total, missing, nameless, first_sample, last_sample = facts[0]
    if fractional[0][0]:
        raise UserError(f"{place}: {fractional[0][0]} seeds are not whole numbers")
    if total == 0:
        raise UserError(f"{place}: there are no outcomes")
    if nameless:
        raise UserError(f"{place}: {nameless} rows lack a condition, suite, item or metric")
    fits_mask = first_sample is not None and first_sample >= 0 and last_sample < 63
    cells = db.sql(_cells(rows, fits_mask)).to_arrow_table()
    repeats = int(np.asarray(cells["rows"]).sum() - np.asarray(cells["distinct_samples"]).sum())
    duplicated = conflicting = 0
    if repeats:
        rows = f"""
            SELECT {", ".join(_KEYS)}, sample, avg(weight) AS weight, min("group") AS "group",
                   CASE WHEN min(suite_hash) = max(suite_hash) THEN min(suite_hash) ELSE 'mixed' END AS suite_hash,
                   count(*) AS copies,
                   CASE WHEN min(value) = max(value) AND count(value) = count(*) THEN min(value) END AS value,
                   count(value) > 0 AND (min(value) <> max(value) OR count(value) < count(*)) AS conflict
            FROM ({rows}) GROUP BY {", ".join(_KEYS)}, sample"""
        duplicated, conflicting = db.execute(
            f"""SELECT coalesce(sum(copies - 1) FILTER (NOT conflict), 0), coalesce(sum(copies) FILTER (conflict), 0)
                FROM ({rows})"""
        ).fetchall()[0]
        cells = db.sql(_cells(rows, fits_mask)).to_arrow_table()
    return OutcomeTable(cells, TableReport(total, missing, int(duplicated), int(conflicting), ()))


def _cells(rows: str, fits_mask: bool) -> str:
    """SQL that reduces `rows` to cells. Distinct samples are counted in one 64-bit mask where they fit into it."""
    distinct = "bit_count(bit_or(1::BIGINT << sample))" if fits_mask else "count(DISTINCT sample)"
    return f"""
        SELECT {", ".join(_KEYS)}, count(*) AS rows, {distinct} AS distinct_samples,
               CAST(count(value) AS DOUBLE) AS n, CAST(count(*) - count(value) AS DOUBLE) AS failed,
               coalesce(avg(value), 'nan'::DOUBLE) AS mean, coalesce(sum(value * value), 'nan'::DOUBLE) AS squares,
               avg(weight) AS weight, min("group") AS "group", coalesce(min(suite_hash), '') AS suite_hash,
               coalesce(min(suite_hash) <> max(suite_hash), false) AS mixed_hash
        FROM ({rows}) GROUP BY {", ".join(_KEYS)}"""
