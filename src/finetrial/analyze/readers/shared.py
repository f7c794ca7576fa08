"""What the readers of other tools' files share: rows in one shape, run names, JSON lines."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetrial.errors import UserError

_RUN = re.compile(r"(?P<condition>.+)_s(?:eed)?(?P<seed>\d+)")
_SCHEMA = pa.schema(
    [
        ("condition", pa.string()),
        ("seed", pa.int64()),
        ("suite", pa.string()),
        ("item", pa.string()),
        ("sample", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)


@dataclass
class Foreign:
    """Outcomes of another tool: rows (condition, seed, suite, item, sample, metric, value) and what to know of them."""

    format: str
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _SCHEMA.names})
    label: list[str] = field(default_factory=list)
    """Group of each row's item (a category), where `by` says what it is."""
    by: str | None = None
    notes: list[str] = field(default_factory=list)

    def add(
        self, run: tuple[str, int | None], suite: str, item: str, sample: int, metric: str, value: float | None
    ) -> None:
        """Append one outcome; None is a missing value."""
        cells = (*run, suite, item, sample, metric, value)
        for column, cell in zip(self.columns.values(), cells, strict=True):
            column.append(cell)

    @property
    def rows(self) -> pa.Table:
        """The rows as an arrow table."""
        return pa.table(self.columns, schema=_SCHEMA)


def outcomes_table(rows: pa.Table) -> pa.Table:
    """The rows, refused when there are none.

    Raises:
        UserError: the source holds no outcome at all.
    """
    if rows.num_rows == 0:
        raise UserError("no outcome was found in the files given")
    return rows


def run_name(name: str) -> tuple[str, int] | None:
    """(condition, seed) of a name `<condition>_s<seed>`, or None."""
    match = _RUN.fullmatch(name)
    return (match["condition"], int(match["seed"])) if match else None


def run_of(path: Path, mapping: Mapping[str, str]) -> tuple[str, int | None] | None:
    """(condition, seed) of the run that wrote `path`: from `mapping`, else from the nearest folder named like a run."""
    for part in (path.stem, *reversed(path.absolute().parent.parts)):
        if part in mapping:
            return run_name(mapping[part]) or (mapping[part], None)
        if named := run_name(part):
            return named
    return None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        UserError: a line is not a JSON object; names the line.
    """
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
            yield row


def as_number(value: Any) -> float | None:
    """A number or boolean as float; None for anything else (missing, text, lists)."""
    return float(value) if isinstance(value, (int, float)) else None
