"""Files of rows, read with the bytes of each line and written back; a row that does not change keeps its line."""

import base64
import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.data.files import READERS, open_rows, parse
from finetrial.data.formats import example_row
from finetrial.data.read import read
from finetrial.errors import UserError, nearest

LINES = (".jsonl", ".ndjson")
BATCH = 512
"""Rows of a Parquet file that are held before they are written."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row of a file."""

    place: str
    value: Any
    line: str | None
    """The line as it stands in the file, without its line break; None where the file has no lines of rows."""


def read_rows(source: str, kind: str | None = None) -> Iterator[SourceRow]:
    """Rows of a file (JSON Lines, JSON, CSV, Parquet) or of `world:NAME?...`, one after another.

    Args:
        kind: suffix that says what the file holds; default: its own.

    Raises:
        UserError: no such file, an unknown suffix, or a row that is no JSON; rows that cannot be read are never
            passed over.
    """
    if source.startswith("world:"):
        for place, example in enumerate(read(source).examples):
            yield SourceRow(f"{source}[{place}]", example_row(example), None)
        return
    path = Path(source)
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{source}: no such file{nearest(path.name, beside)}; expected one of {', '.join(READERS)}")
    if (kind or path.suffix) in LINES:
        yield from _lines(path)
        return
    for row in open_rows(path) if kind is None else READERS[kind](path):
        if row.error is not None:
            raise UserError(f"{row.place}: {row.error}")
        yield SourceRow(row.place, row.value, None)


def _lines(path: Path) -> Iterator[SourceRow]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            place = f"{path}:{number}"
            try:
                line = raw.decode("utf-8").rstrip("\n")
                yield SourceRow(place, parse(line.removeprefix("\ufeff")), line)
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: byte {error.start} is not UTF-8 ({error.reason})") from error
            except json.JSONDecodeError as error:
                excerpt = error.doc[max(0, error.pos - 20) : error.pos + 20]
                raise UserError(f"{place}: {error.msg} at column {error.colno}, near {excerpt!r}") from error


def dumped(value: Any) -> str:
    """A row as one line of JSON that can be written as UTF-8: lone surrogates, if any, make it ASCII."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def check_ending(source: str, output: Path) -> None:
    """Refuse an output that is the input, exists, or whose kind cannot be written from it.

    Raises:
        UserError: with the endings that are possible.
    """
    path = Path(source)
    if output.exists() and path.exists() and output.samefile(path):
        raise UserError(f"--output {output} is the input; name another file")
    if output.exists() or output.is_symlink():
        raise UserError(f"--output {output} exists; name another file")
    endings = _endings(source)
    if output.suffix not in endings:
        raise UserError(f"--output {output}: expected a file ending in {' or '.join(endings)} for {source}")


def _endings(source: str) -> tuple[str, ...]:
    path = Path(source)
    if source.startswith("world:") or path.suffix in LINES:
        return LINES
    if path.suffix == ".json":
        with path.open(encoding="utf-8-sig") as stream:
            start = stream.read(4096).lstrip()[:1]
        return (".json", *LINES) if start == "[" else LINES
    return (path.suffix, *LINES) if path.suffix in (".csv", ".parquet") else LINES


def parquet_schema(source: str) -> str | None:
    """The schema of a Parquet file as text (Arrow IPC in base 64), or None for another file.

    Raises:
        UserError: a column's type has no JSON spelling, so a row could not be kept in a map.
    """
    if source.startswith("world:") or Path(source).suffix != ".parquet":
        return None
    schema = pq.read_schema(source)
    for field in schema:
        if not _in_json(field.type):
            raise UserError(
                f"{source}: column {field.name!r} is {field.type}, which a map of changes cannot hold; expected text, "
                "numbers, truth values, lists and structs"
            )
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _in_json(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return all(_in_json(kind.field(at).type) for at in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _in_json(kind.value_type)
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
    return any(test(kind) for test in (*plain, pa.types.is_floating, pa.types.is_null))


Write = Callable[[Any, str | None], None]
"""(row, its line where it is unchanged) -> written."""


@contextmanager
def writer(path: Path, kind: str, schema: str | None, as_text: str | None) -> Iterator[Write]:
    """Write rows to a file of a kind (a suffix), and flush it to the disk.

    Args:
        schema: of `parquet_schema`, for Parquet.
        as_text: column that is text whatever the schema says (the output, once it is rewritten).

    Raises:
        UserError: a row does not fit the columns of a CSV or Parquet file.
    """
    if kind == ".parquet":
        with _parquet_writer(path, schema or "", as_text) as write:
            yield write
    else:
        with path.open("w", encoding="utf-8", newline="" if kind == ".csv" else "\n") as stream:
            with {".csv": _csv_writer, ".json": _json_writer}.get(kind, _line_writer)(stream) as write:
                yield write
            stream.flush()
            os.fsync(stream.fileno())


@contextmanager
def _line_writer(stream: io.TextIOBase) -> Iterator[Write]:

    def write(row: Any, line: str | None) -> None:
        stream.write((dumped(row) if line is None else line) + "\n")

    yield write


@contextmanager
def _json_writer(stream: io.TextIOBase) -> Iterator[Write]:
    lead = "["

    def write(row: Any, line: str | None) -> None:
        nonlocal lead
        stream.write(f"{lead}\n{dumped(row)}")
        lead = ","

    yield write
    stream.write("[]\n" if lead == "[" else "\n]\n")


@contextmanager
def _csv_writer(stream: io.TextIOBase) -> Iterator[Write]:
    names: list[str] | None = None
    out = csv.writer(stream, lineterminator="\n")

    def write(row: Any, line: str | None) -> None:
        nonlocal names
        if names is None:
            names = list(row)
            out.writerow(names)
        out.writerow([row[name] for name in names])

    yield write


@contextmanager
def _parquet_writer(path: Path, schema: str, as_text: str | None) -> Iterator[Write]:
    kinds = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(schema)))
    if as_text is not None and not pa.types.is_large_string(kinds.field(as_text).type):
        at = kinds.get_field_index(as_text)
        kinds = kinds.set(at, kinds.field(at).with_type(pa.string()))
    held: list[Any] = []
    with pq.ParquetWriter(path, kinds) as out:

        def flush() -> None:
            try:
                out.write_table(pa.Table.from_pylist(held, schema=kinds))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise UserError(f"a row does not fit the Parquet columns: {error}; write .jsonl instead") from error
            held.clear()

        def write(row: Any, line: str | None) -> None:
            held.append(row)
            if len(held) == BATCH:
                flush()

        yield write
        flush()
