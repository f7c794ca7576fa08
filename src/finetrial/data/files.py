"""Files of rows: JSON Lines, JSON, SWE-agent `.traj` (JSON), CSV and Parquet, with the place of every row."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row before it is recognised."""

    place: str
    """`file:line` of line-based files, else `file[index]`."""
    value: Any
    error: str | None
    """Why the row could not be parsed, or None."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file (or hub data set) and its rows."""

    name: str
    stem: str
    sha256: str | None
    """None where there is no file (a hub data set; the pool's content key identifies it)."""
    rows: Iterator[RawRow]


def open_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a file, by its suffix.

    A JSON file is a list of rows, an object of rows (InterCode logs), or one row. NaN in JSON is missing (None).

    Raises:
        UserError: unknown suffix, no JSON (with line, column and an excerpt), no Parquet.
    """
    if path.suffix not in READERS:
        raise UserError(f"{path}: unknown suffix{nearest(path.suffix, READERS)}; expected one of {', '.join(READERS)}")
    return READERS[path.suffix](path)


def _json_lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                yield RawRow(place, parse(line.decode("utf-8-sig")), None)
            except UnicodeDecodeError as error:
                yield RawRow(place, None, f"byte {error.start} is not UTF-8 ({error.reason})")
            except json.JSONDecodeError as error:
                yield RawRow(place, None, _told(error))


def _json(path: Path) -> Iterator[RawRow]:
    try:
        value = parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: {_told(error)}") from error
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        pairs = [(0, value)]
    for index, row in pairs:
        yield RawRow(f"{path}[{index}]", row, None)


def _csv(path: Path) -> Iterator[RawRow]:
    """Rows under a line of column names; an empty field is missing (None)."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            names = next(reader, [])
            for fields in reader:
                place = f"{path}:{reader.line_num}"
                if not fields:
                    continue
                if len(fields) != len(names):
                    yield RawRow(place, None, f"{len(fields)} fields under {len(names)} column names")
                    continue
                yield RawRow(place, {name: field or None for name, field in zip(names, fields, strict=True)}, None)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: byte {error.start} is not UTF-8 ({error.reason})") from error
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: no CSV: {error}") from error


def _parquet(path: Path) -> Iterator[RawRow]:
    try:
        with pq.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=512):
                for row in batch.to_pylist():
                    yield RawRow(f"{path}[{index}]", row, None)
                    index += 1
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error


def parse(text: str) -> Any:
    """JSON in which NaN and infinities (as pandas writes missing numbers) are null."""
    return json.loads(text, parse_constant=lambda _: None)


def _told(error: json.JSONDecodeError) -> str:
    excerpt = error.doc[max(0, error.pos - 20) : error.pos + 20]
    return f"{error.msg} at column {error.colno}, near {excerpt!r}"


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".traj": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
SUFFIXES = tuple(suffix for suffix in READERS if suffix != ".csv")
"""What a folder is searched for; a CSV is read where it is named, for beside a pool it is more often a summary."""
