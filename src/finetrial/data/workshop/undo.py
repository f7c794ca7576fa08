"""From a standardised file and its map back to the rows as they were."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetrial.data.workshop.columns import replaced
from finetrial.data.workshop.row_files import LINES, read_rows, writer
from finetrial.data.workshop.standardise import MAP_FORMAT, MAP_VERSION
from finetrial.errors import UserError
from finetrial.identity import file_digest


def undo(source: str, map_path: Path, output: Path) -> dict[str, Any]:
    """Write the original rows of a standardised file.

    Every value comes back as it was, dropped rows at their places. Lines of JSON come back byte for byte; blank lines
    between them and a missing line break at the end do not.

    Returns:
        `output`, `rows`, `restored` (rows changed back), `returned` (rows that had been dropped), and `identical`
        (whether the file has the bytes of the original; None where that was no file).

    Raises:
        UserError: the map is none, is damaged, or belongs to another output; the output exists or has another kind.
    """
    end = _end(map_path)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{source}: no such file; expected what `standardise` wrote together with {map_path}")
    if file_digest(path) != end["output_sha256"]:
        raise UserError(
            f"{source} is not the file that {map_path} belongs to, or was changed since: its SHA-256 differs"
        )
    if output.exists() or output.is_symlink():
        raise UserError(f"--output {output} exists; name another file")
    allowed = LINES if end["kind"] in LINES else (end["kind"],)
    if output.suffix not in allowed:
        raise UserError(f"--output {output}: expected a file ending in {' or '.join(allowed)}, as the original")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    written = restored = returned = 0
    try:
        with writer(partial, output.suffix, end["schema"], None) as put:
            current = read_rows(source)
            entries = _entries(map_path)
            entry = next(entries, None)
            for number in range(end["rows_in"]):
                changed = entry if entry is not None and entry["row"] == number else None
                if changed is None:
                    row = next(current)
                    put(row.value, row.line)
                else:
                    dropped = changed["action"] == "drop"
                    put(*_original(changed, None if dropped else next(current).value))
                    returned += dropped
                    restored += not dropped
                    entry = next(entries, None)
                written += 1
        known = end["source_sha256"]
        identical = None if known is None else file_digest(partial) == known
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return {
        "output": str(output),
        "rows": written,
        "restored": restored,
        "returned": returned,
        "identical": identical,
    }


def _original(entry: dict[str, Any], row: Any) -> tuple[Any, str | None]:
    if "line" in entry:
        return None, entry["line"]
    if "value" in entry:
        return entry["value"], None
    for path, old in entry["changes"]:
        row = replaced(row, tuple(path), old)
    return row, None


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            entry = json.loads(line)
            if "row" in entry:
                yield entry


def _end(path: Path) -> dict[str, Any]:
    """The last line of a map, which says what it belongs to."""
    try:
        with path.open("rb") as stream:
            last = b""
            for line in stream:
                last = line
        end = json.loads(last)
    except (UnicodeDecodeError, json.JSONDecodeError):
        end = None
    if not isinstance(end, dict) or end.get("format") != MAP_FORMAT:
        raise UserError(f"{path}: no map of `finetrial standardise`, or one that was cut off")
    if end["version"] != MAP_VERSION:
        raise UserError(f"{path}: a map of version {end['version']}; this finetrial reads version {MAP_VERSION}")
    return end
