"""Anybody's results -> `OutcomeTable`: one function, which recognises the format by shape.

Tables (CSV, TSV, JSONL, JSON, Parquet) have columns condition, seed, item, value and optionally sample, suite, metric,
weight, group, suite_hash; other names are mapped. Folders and files of other tools are recognised by what is in them:
a campaign, lm-evaluation-harness samples, Inspect logs, MT-Bench judgments, run folders of an RL trainer.

What is missing, repeated or contradictory stays so and is told: in `Reading.notes` where the format is the cause, in
`OutcomeTable.report` where the numbers are.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.analyze.readers import inspect_logs, lm_eval_samples, mt_bench, run_logs
from finetrial.analyze.readers.shared import Foreign, outcomes_table
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError, nearest
from finetrial.records import Outcome

REQUIRED = ("condition", "item", "value")
TYPES = {
    "condition": "VARCHAR",
    "seed": "BIGINT",
    "suite": "VARCHAR",
    "item": "VARCHAR",
    "sample": "BIGINT",
    "metric": "VARCHAR",
    "value": "DOUBLE",
    "weight": "DOUBLE",
    "group": "VARCHAR",
    "suite_hash": "VARCHAR",
}
FEW_CLUSTERS = 10
_TABULAR = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_ACCEPTED = (
    "a campaign folder, a table (.csv, .tsv, .jsonl, .json, .parquet), lm-evaluation-harness samples_*.jsonl, Inspect "
    ".eval logs, MT-Bench judgments, or run folders with metrics.jsonl"
)


@dataclass(frozen=True)
class Code:
    """What stands in for a column that the file lacks: an SQL expression, and its value where that is constant."""

    sql: str
    value: str | None = None


@dataclass(frozen=True)
class Reading:
    """Outcomes of one source, and what its format says about them."""

    table: OutcomeTable
    source: str
    """The path or paths, as given."""
    format: str
    """Which format was recognised, in words."""
    notes: tuple[str, ...]
    """What a reader should know that the numbers alone do not tell."""
    groups: OutcomeTable | None = None
    """The same outcomes with every group of items as a suite of its own; None where items have no groups."""
    by: str | None = None
    """What the groups are: `category`, `group`, ..."""

    def sentences(self) -> list[str]:
        """Everything odd about the source."""
        return [*self.notes, *self.table.report.sentences()]


def read(paths: Sequence[Path], mapping: Mapping[str, str] | None = None, by: str | None = None) -> Reading:
    """Read outcomes from files or folders of one format.

    Args:
        paths: what to read; several are joined.
        mapping: `{canonical column: column of the file}` for tables; `{folder name: condition or condition_sSEED}`
            for lm-evaluation-harness and Inspect.
        by: a column (or `group`) that splits the items for `Reading.groups`; default: the one that the format has
            (MT-Bench: category). `none` splits nothing.

    Raises:
        UserError: nothing is there, the format is not recognised, a column is missing or holds something else.
    """
    if not paths:
        raise UserError(f"nothing to read; expected {_ACCEPTED}")
    for path in paths:
        if not path.exists():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"{path}: no such file or folder{nearest(path.name, siblings)}")
    source = ", ".join(map(str, paths))
    mapping = dict(mapping or {})
    kinds = {_kind(path, mapping) for path in paths}
    if len(kinds) > 1:
        raise UserError(f"{source}: different formats ({', '.join(sorted(kinds))}); compare one format at a time")
    kind = kinds.pop()
    if kind == "campaign":
        return _tabular([p / "outcomes.parquet" if p.is_dir() else p for p in paths], {}, by, source, "campaign folder")
    if kind == "table":
        return _tabular(list(paths), mapping, by, source, "table")
    return _from_foreign(_foreign(kind, paths, mapping), by, source)


def read_rows(
    paths: Sequence[Path],
    mapping: Mapping[str, str] | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """The outcomes themselves, one for every row in its order: nothing is put together, repaired or left out.

    Args:
        paths, mapping: as `read`.
        where: column -> the values that are wanted of it.
        defaults: column -> what it is where a table lacks it.

    Raises:
        UserError: as `read`, or a table lacks a column that has neither a default nor one of `read`'s.
    """
    mapping = dict(mapping or {})
    (kind,) = {_kind(path, mapping) for path in paths}
    source = ", ".join(map(str, paths))
    if kind not in ("campaign", "table"):
        rows = _foreign(kind, paths, mapping).rows.to_pylist()
        return [_outcome(row) for row in rows if all(row[name] in values for name, values in (where or {}).items())]
    with duckdb.connect() as db:
        _open(db, [path / "outcomes.parquet" if path.is_dir() else path for path in paths], as_text=True)
        present = [row[0] for row in db.execute("DESCRIBE source").fetchall()]
        columns = _columns(present, mapping, source, [])
        for name, value in (defaults or {}).items():
            if isinstance(columns[name], Code):
                columns[name] = Code(_text(value), value)
        for name, column in columns.items():
            if TYPES[name] != "VARCHAR" and isinstance(column, str):
                _check_cast(db, name, column, source)
        chosen = ", ".join(f'CAST({_sql(column)} AS {TYPES[name]}) AS "{name}"' for name, column in columns.items())
        limits = [f'"{name}" IN ({", ".join(map(_text, values))})' for name, values in (where or {}).items()]
        query = f"SELECT * FROM (SELECT {chosen} FROM source) WHERE {' AND '.join(limits) or 'true'}"
        rows = [dict(zip(columns, row, strict=True)) for row in db.execute(query).fetchall()]
    for k, row in enumerate(rows, 1):
        for name in ("condition", "item"):
            if row[name] is None:
                raise UserError(f"{source}: row {k}: there is no {name}")
    return [_outcome(row) for row in rows]


def _outcome(row: Mapping[str, Any]) -> Outcome:
    """A row as a record; a value that is no finite number is missing."""
    value = row["value"] if row["value"] is not None and math.isfinite(row["value"]) else None
    given = {name: row[name] for name in ("weight", "group", "suite_hash") if row.get(name) is not None}
    return Outcome(
        row["condition"], row["seed"], row["suite"], row["item"], row.get("sample") or 0, row["metric"], value, **given
    )


def _foreign(kind: str, paths: Sequence[Path], mapping: Mapping[str, str]) -> Foreign:
    """Outcomes of another tool's files."""
    readers = {
        "lm-evaluation-harness samples": lambda: lm_eval_samples.read(paths, mapping),
        "Inspect logs": lambda: inspect_logs.read(paths, mapping),
        "MT-Bench judgments": lambda: mt_bench.read(paths),
        "run folders": lambda: run_logs.outcomes(run_logs.load_runs(run_logs.find_runs(paths))),
    }
    return readers[kind]()


def _kind(path: Path, mapping: Mapping[str, str]) -> str:
    """The name of the format at `path`."""
    if path.is_dir():
        if (path / "outcomes.parquet").is_file():
            return "campaign"
        if mt_bench.recognises(path):
            return "MT-Bench judgments"
        if next(path.rglob("samples_*.jsonl"), None) is not None:
            return "lm-evaluation-harness samples"
        if next(path.rglob("*.eval"), None) is not None:
            return "Inspect logs"
        if run_logs.find_runs([path]):
            return "run folders"
    elif path.name.startswith("samples_") and path.suffix == ".jsonl" and not mapping.keys() & TYPES.keys():
        return "lm-evaluation-harness samples"
    elif path.suffix == ".eval":
        return "Inspect logs"
    elif path.suffix in _TABULAR:
        return "MT-Bench judgments" if mt_bench.recognises(path) else "table"
    raise UserError(f"{path}: nothing here that holds outcomes; expected {_ACCEPTED}")


def _from_foreign(foreign: Foreign, by: str | None, source: str) -> Reading:
    rows, groups = foreign.rows, None
    if by not in (None, "none", "group", foreign.by):
        raise UserError(f"--by {by}: {foreign.format} can be split by: {foreign.by or 'nothing'}")
    if by != "none" and foreign.by is not None:
        suites = len(rows["suite"].unique())
        labels = zip(rows["suite"].to_pylist(), foreign.label, strict=True)
        names = [label if suites == 1 else f"{suite}: {label}" for suite, label in labels]
        split = rows.set_column(rows.schema.get_field_index("suite"), "suite", pa.array(names))
        groups = OutcomeTable.read(split)
    elif by not in (None, "none"):
        raise UserError(f"--by {by}: {foreign.format} at {source} tells no groups of items")
    table = OutcomeTable.read(outcomes_table(rows))
    return Reading(table, source, foreign.format, tuple(foreign.notes), groups, foreign.by if groups else None)


def _tabular(paths: list[Path], mapping: dict[str, str], by: str | None, source: str, kind: str) -> Reading:
    """Read tables. A Parquet file is read as it is; others are rewritten by DuckDB as Parquet, in bounded memory."""
    with duckdb.connect() as db, tempfile.TemporaryDirectory() as folder:
        _open(db, paths)
        present = [row[0] for row in db.execute("DESCRIBE source").fetchall()]
        notes: list[str] = []
        columns = _columns(present, mapping, source, notes)
        groups = None
        if len(paths) == 1 and paths[0].suffix == ".parquet":
            table = OutcomeTable.read(_renamed(paths[0], columns))
        else:
            table = _rewritten(db, columns, "true", source, Path(folder) / "outcomes.parquet")
        if by not in (None, "none"):
            label = columns.get("group") if by == "group" else mapping.get(str(by), str(by))
            if not isinstance(label, str) or label not in present:
                have = ", ".join(present)
                raise UserError(f"{source}: --by {by}: no such column{nearest(str(by), present)}; it has: {have}")
            suite = _sql(columns["suite"])
            many = (db.execute(f"SELECT count(DISTINCT {suite}) FROM source").fetchone() or (1,))[0] > 1
            named = Code(f"{suite} || ': ' || {_sql(label)}" if many else _sql(label))
            split = {**columns, "suite": named}
            groups = _rewritten(db, split, f"{_sql(label)} IS NOT NULL", source, Path(folder) / "groups.parquet")
            _note_ungrouped(db, _sql(label), str(by), notes)
        if "group" in columns:
            _note_few_clusters(db, _sql(columns["group"]), notes)
        if table.report.conflicting and "sample" not in columns:
            notes.append(
                "there is no column 'sample': if rows that repeat an item are samples of it, name their column with "
                "--map sample=COLUMN"
            )
    return Reading(table, source, kind, tuple(notes), groups, by if groups else None)


def _note_ungrouped(db: duckdb.DuckDBPyConnection, label: str, by: str, notes: list[str]) -> None:
    """Say how many rows the split leaves out."""
    rows = (db.execute(f"SELECT count(*) FROM source WHERE {label} IS NULL").fetchone() or (0,))[0]
    if rows:
        notes.append(f"{rows} rows have no {by} and are in none of the groups")


def _note_few_clusters(db: duckdb.DuckDBPyConnection, group: str, notes: list[str]) -> None:
    """Warn where `group` looks like a category rather than a passage that several questions are about."""
    groups = (db.execute(f"SELECT count(DISTINCT {group}) FROM source").fetchone() or (0,))[0]
    if 0 < groups < FEW_CLUSTERS:
        notes.append(
            f"the items are in {groups} groups, and items of one group are taken to move together: if the groups are "
            "categories of independent items, rename the column and split by it with --by"
        )


def _renamed(path: Path, columns: Mapping[str, str | Code]) -> pa.Table:
    """The columns of a Parquet file under their canonical names, text as dictionaries, constants where it has none."""
    named = {name: column for name, column in columns.items() if isinstance(column, str)}
    text = [column for name, column in named.items() if TYPES[name] == "VARCHAR"]
    table = pq.ParquetFile(path, read_dictionary=text).read(list(dict.fromkeys(named.values())))
    arrays = {name: table[column] for name, column in named.items()}
    for name, column in columns.items():
        if isinstance(column, Code):
            rows = table.num_rows
            codes = pa.array(np.zeros(rows, dtype=np.int32))
            constant = pa.DictionaryArray.from_arrays(codes, pa.array([column.value]))
            arrays[name] = pa.nulls(rows, pa.int64()) if column.value is None else constant
    return pa.table(arrays)


def _open(db: duckdb.DuckDBPyConnection, paths: list[Path], as_text: bool = False) -> None:
    """Make the files readable as the relation `source`; with `as_text` CSV as it is written, so that 007 is not 7."""
    text = ", all_varchar=true" if as_text else ""
    readers = {".parquet": "read_parquet({}, union_by_name=true)"}
    readers[".tsv"] = f"read_csv({{}}, header=true, delim='\t'{text})"
    readers[".csv"] = f"read_csv({{}}, header=true, union_by_name=true, sample_size=-1{text})"
    parts = []
    for path in paths:
        reader = readers.get(path.suffix, "read_json({}, union_by_name=true, sample_size=-1)")
        parts.append("SELECT * FROM " + reader.format(_text(path)))
    try:
        db.execute("CREATE VIEW source AS " + " UNION ALL BY NAME ".join(parts))
        db.execute("SELECT * FROM source LIMIT 1")
    except duckdb.Error as error:
        raise UserError(f"{', '.join(map(str, paths))}: {str(error).splitlines()[0]}") from error


def _columns(present: list[str], mapping: dict[str, str], source: str, notes: list[str]) -> dict[str, str | Code]:
    """`{canonical name: column of the file, or a constant}` for every column of an outcome that is there."""
    for name, column in mapping.items():
        if name not in TYPES:
            raise UserError(
                f"--map {name}={column}: no column of outcomes is called '{name}'{nearest(name, TYPES)}; "
                f"there are: {', '.join(TYPES)}"
            )
        if column not in present:
            raise UserError(
                f"{source}: --map {name}={column}: no column '{column}'{nearest(column, present)}; "
                f"it has: {', '.join(present)}"
            )
    columns: dict[str, str | Code] = {}
    for name in TYPES:
        column = mapping.get(name, name)
        if column in present:
            columns[name] = column
            continue
        resembling = nearest(name, [other for other in present if other not in TYPES])
        if name in REQUIRED or (name == "seed" and resembling):
            raise UserError(
                f"{source}: column '{name}' is missing{resembling}; it has: {', '.join(present)}. "
                f"Name it with --map {name}=COLUMN"
            )
    if "seed" not in columns:
        columns["seed"] = Code("NULL", None)
        notes.append(
            "there is no column 'seed': every condition is taken as one checkpoint, so nothing is said of recipes"
        )
    for name, constant in (("suite", "all"), ("metric", mapping.get("value", "value"))):
        columns.setdefault(name, Code(_text(constant), constant))
    return columns


def _rewritten(
    db: duckdb.DuckDBPyConnection, columns: Mapping[str, str | Code], where: str, source: str, target: Path
) -> OutcomeTable:
    """Write the rows that satisfy `where` to `target` under canonical names and types, and read them as outcomes."""
    for name, column in columns.items():
        if TYPES[name] != "VARCHAR" and isinstance(column, str):
            _check_cast(db, name, column, source)
    chosen = ", ".join(f'CAST({_sql(column)} AS {TYPES[name]}) AS "{name}"' for name, column in columns.items())
    db.execute(f"COPY (SELECT {chosen} FROM source WHERE {where}) TO {_text(target)} (FORMAT parquet)")
    return OutcomeTable.read(target)


def _check_cast(db: duckdb.DuckDBPyConnection, name: str, column: str, source: str) -> None:
    """Refuse values of another type, naming the first such row."""
    code, kind = _sql(column), TYPES[name]
    wrong = db.execute(
        f"""SELECT row, given FROM (SELECT row_number() OVER () AS row, {code} AS given FROM source)
            WHERE given IS NOT NULL AND TRY_CAST(given AS {kind}) IS NULL LIMIT 1"""
    ).fetchone()
    if wrong is not None:
        expected = "a whole number" if kind == "BIGINT" else "a number"
        raise UserError(
            f"{source}: row {wrong[0]}: {name} is {wrong[1]!r}, expected {expected} (leave it empty if it is missing)"
        )


def _sql(column: str | Code) -> str:
    return _quoted(column) if isinstance(column, str) else column.sql


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
