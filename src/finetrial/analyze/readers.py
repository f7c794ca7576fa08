"""Anybody's results -> `OutcomeTable`: one function, which recognises the format by shape.

Tables (CSV, TSV, JSONL, JSON, Parquet) have columns condition, seed, item, value and optionally sample, suite, metric,
weight, group, suite_hash; other names are mapped. Folders and files of other tools are recognised by what is in them:
a campaign, lm-evaluation-harness samples, Inspect logs, MT-Bench judgments, run folders of an RL trainer.

What is missing, repeated or contradictory stays so and is told: in `Reading.notes` where the format is the cause, in
`OutcomeTable.report` where the numbers are.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.analyze import inspect_logs, lm_eval_samples, mt_bench, run_logs
from finetrial.analyze.foreign import Foreign, outcomes_table
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError, nearest

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
_ABSENT = {"seed": "NULL", "sample": "0", "weight": "1.0", "group": "NULL", "suite_hash": "''"}
_TABULAR = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_ACCEPTED = (
    "a campaign folder, a table (.csv, .tsv, .jsonl, .json, .parquet), lm-evaluation-harness samples_*.jsonl, Inspect "
    ".eval logs, MT-Bench judgments, or run folders with metrics.jsonl"
)


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
    readers = {
        "lm-evaluation-harness samples": lambda: lm_eval_samples.read(paths, mapping),
        "Inspect logs": lambda: inspect_logs.read(paths, mapping),
        "MT-Bench judgments": lambda: mt_bench.read(paths),
        "run folders": lambda: run_logs.outcomes(run_logs.load_runs(run_logs.find_runs(paths))),
    }
    return _from_foreign(readers[kind](), by, source)


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
    """Read tables; columns are renamed and cast by DuckDB into one temporary Parquet file, in bounded memory."""
    canonical = all(path.suffix == ".parquet" for path in paths) and not mapping
    if canonical and by in (None, "none") and len(paths) == 1:
        names = set(pq.read_schema(paths[0]).names)
        if {"condition", "seed", "suite", "item", "metric", "value"} <= names:
            return Reading(OutcomeTable.read(paths[0]), source, kind, ())
    with duckdb.connect() as db, tempfile.TemporaryDirectory() as folder:
        _open(db, paths)
        present = [row[0] for row in db.execute("DESCRIBE source").fetchall()]
        notes: list[str] = []
        columns = _columns(present, mapping, source, notes)
        _check_casts(db, columns, source)
        suite = columns.pop("suite")
        chosen = ", ".join(f'CAST({code} AS {TYPES[name]}) AS "{name}"' for name, code in columns.items())
        table = _rewritten(db, f"{chosen}, CAST({suite} AS VARCHAR) AS suite", "", Path(folder) / "outcomes.parquet")
        groups = None
        if by not in (None, "none"):
            label = columns["group"] if by == "group" else _quoted(mapping.get(str(by), str(by)))
            if (by == "group" and label == "NULL") or (by != "group" and mapping.get(str(by), by) not in present):
                have = ", ".join(present)
                raise UserError(f"{source}: --by {by}: no such column{nearest(str(by), present)}; it has: {have}")
            many = (db.execute(f"SELECT count(DISTINCT {suite}) FROM source").fetchone() or (1,))[0] > 1
            named = f"{suite} || ': ' || {label}" if many else label
            split = f"{chosen}, CAST({named} AS VARCHAR) AS suite"
            groups = _rewritten(db, split, f"WHERE {label} IS NOT NULL", Path(folder) / "groups.parquet")
        if table.report.conflicting and columns["sample"] == _ABSENT["sample"]:
            notes.append(
                "there is no column 'sample': if rows that repeat an item are samples of it, name their column with "
                "--map sample=COLUMN"
            )
    return Reading(table, source, kind, tuple(notes), groups, by if groups else None)


def _open(db: duckdb.DuckDBPyConnection, paths: list[Path]) -> None:
    """Make the files readable as the relation `source`."""
    readers = {".parquet": "read_parquet({}, union_by_name=true)", ".tsv": "read_csv({}, header=true, delim='\t')"}
    readers[".csv"] = "read_csv({}, header=true, union_by_name=true, sample_size=-1)"
    parts = []
    for path in paths:
        reader = readers.get(path.suffix, "read_json({}, union_by_name=true, sample_size=-1)")
        parts.append("SELECT * FROM " + reader.format(_text(path)))
    try:
        db.execute("CREATE VIEW source AS " + " UNION ALL BY NAME ".join(parts))
        db.execute("SELECT * FROM source LIMIT 1")
    except duckdb.Error as error:
        raise UserError(f"{', '.join(map(str, paths))}: {str(error).splitlines()[0]}") from error


def _columns(present: list[str], mapping: dict[str, str], source: str, notes: list[str]) -> dict[str, str]:
    """`{canonical name: SQL expression}` for every column of an outcome."""
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
    columns = {}
    for name in TYPES:
        column = mapping.get(name, name)
        if column in present:
            columns[name] = _quoted(column)
            continue
        resembling = nearest(name, [other for other in present if other not in TYPES])
        if name in REQUIRED or (name == "seed" and resembling):
            raise UserError(
                f"{source}: column '{name}' is missing{resembling}; it has: {', '.join(present)}. "
                f"Name it with --map {name}=COLUMN"
            )
        columns[name] = _ABSENT.get(name, "")
    if columns["seed"] == "NULL":
        notes.append(
            "there is no column 'seed': every condition is taken as one checkpoint, so nothing is said of recipes"
        )
    columns["suite"] = columns["suite"] or "'all'"
    value_name = mapping.get("value", "value")
    columns["metric"] = columns["metric"] or _text(value_name)
    return columns


def _check_casts(db: duckdb.DuckDBPyConnection, columns: Mapping[str, str], source: str) -> None:
    """Refuse values of another type, naming the first such row."""
    for name in ("value", "seed", "sample", "weight"):
        code, kind = columns[name], TYPES[name]
        wrong = (
            db.execute(
                f"""SELECT row, given FROM (SELECT row_number() OVER () AS row, {code} AS given FROM source)
                WHERE given IS NOT NULL AND TRY_CAST(given AS {kind}) IS NULL LIMIT 1"""
            ).fetchone()
            if _is_text(db, code)
            else None
        )
        if wrong is not None:
            expected = "a whole number" if kind == "BIGINT" else "a number"
            raise UserError(
                f"{source}: row {wrong[0]}: {name} is {wrong[1]!r}, expected {expected} (leave it empty if "
                "it is missing)"
            )


def _is_text(db: duckdb.DuckDBPyConnection, code: str) -> bool:
    kind = db.execute(f"SELECT typeof({code}) FROM source LIMIT 1").fetchone()
    return kind is not None and kind[0] in ("VARCHAR", "JSON")


def _rewritten(db: duckdb.DuckDBPyConnection, columns: str, where: str, target: Path) -> OutcomeTable:
    """Write the chosen columns to `target` and read them as outcomes."""
    try:
        db.execute(f"COPY (SELECT {columns} FROM source {where}) TO {_text(target)} (FORMAT parquet)")
    except duckdb.ConversionException as error:
        raise UserError(str(error).splitlines()[0]) from error
    return OutcomeTable.read(target)


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
