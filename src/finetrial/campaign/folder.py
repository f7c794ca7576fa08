"""A campaign's folder: where its files are, the lock, the manifest, the outcomes.

Layout (a contract): `manifest.json`, `outcomes.parquet`, `splits.json`, `runs/<condition>_s<seed>/...`,
`report/...`. Results live in the store beside all campaigns (`<logs>/.store`) and are copied here for readers.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.errors import UserError, nearest
from finetrial.records import Outcome
from finetrial.store import DONE, Store, read_json, write_json

Say = Callable[[str], None]
"""Told one line at a time what a launch does."""

OUTCOME_SCHEMA = pa.schema(
    [
        ("condition", pa.string()),
        ("seed", pa.int64()),
        ("suite", pa.string()),
        ("item", pa.string()),
        ("sample", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
        ("group", pa.string()),
        ("suite_hash", pa.string()),
    ]
)
"""Columns of `outcomes.parquet`, as in `records.Outcome`."""


COMPLETIONS = "completions.parquet"
"""In the campaign's folder: what the models wrote, with grades."""

LIVE = {"sft": ("metrics.jsonl",), "rl": ("metrics.jsonl", "emergence")}
"""Objective -> what readers may follow while a run is trained."""


@dataclass(frozen=True)
class Folder:
    """Paths of one campaign below `logs`."""

    logs: Path
    name: str

    @property
    def path(self) -> Path:
        """The campaign's own folder."""
        return self.logs / self.name

    @property
    def store(self) -> Store:
        """Finished results of all campaigns below `logs`."""
        return Store(self.logs / ".store")

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished cohort keeps its state."""
        return self.path / ".checkpoint"

    def run(self, name: str) -> Path:
        """Folder of one run."""
        return self.path / "runs" / name

    def published(self) -> dict[str, str]:
        """Run name -> key of the result that is shown below `runs/`, of all runs that were ever finished here."""
        records = sorted((self.path / "runs").glob("[!.]*/record.json"))
        return {record.parent.name: read_json(record)["key"] for record in records}

    def show_progress(self, name: str, written: Path, objective: str = "sft") -> None:
        """Let readers follow a run that is being trained: its files point into `written`, where they grow."""
        for file in LIVE[objective]:
            shown = self.run(name) / file
            shown.parent.mkdir(parents=True, exist_ok=True)
            if shown.is_dir() and not shown.is_symlink():
                shutil.rmtree(shown)
            shown.unlink(missing_ok=True)
            shown.symlink_to(os.path.relpath(written / file, shown.parent))

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of an earlier launch, or None."""
        path = self.path / "manifest.json"
        return read_json(path) if path.is_file() else None

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest atomically."""
        write_json(self.path / "manifest.json", manifest)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the campaign; the operating system lets go of it however the process ends.

        Raises:
            UserError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                holder = stream.read().strip() or "?"
                raise UserError(f"{self.path}: process {holder} is running this campaign; wait for it") from error
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield

    def locked(self) -> bool:
        """Whether some process is running this campaign now."""
        path = self.path / ".lock"
        if not path.is_file():
            return False
        with path.open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def open_folder(path: Path | None, logs: Path = Path("logs")) -> Folder:
    """The campaign folder at `path`, or the most recently written one below `logs`.

    Raises:
        UserError: there is no campaign there; names the nearest one.
    """
    if path is None:
        found = sorted(logs.glob("*/manifest.json"), key=lambda manifest: manifest.stat().st_mtime)
        if not found:
            raise UserError(f"{logs}: no campaign here yet; start one with `finetrial run SPEC`")
        path = found[-1].parent
    if not (path / "manifest.json").is_file():
        siblings = [manifest.parent.name for manifest in path.parent.glob("*/manifest.json")]
        raise UserError(f"{path}: no campaign folder (manifest.json is absent){nearest(path.name, siblings)}")
    return Folder(path.parent, path.name)


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write outcomes atomically as Parquet; the same outcomes give the same bytes."""
    columns = {name: [getattr(outcome, name) for outcome in outcomes] for name in OUTCOME_SCHEMA.names}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        pq.write_table(pa.table(columns, schema=OUTCOME_SCHEMA), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def publish(source: Path, target: Path, condition: str) -> None:
    """Copy a finished run to where readers look for it, under the name its condition has in this campaign.

    The artefact's marker becomes `record.json`. The same run may have another name in another campaign; `condition`
    is written into the record and into every line of metrics and logs.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    record = read_json(partial / DONE)
    (partial / DONE).unlink()
    if record["condition"] != condition:
        for file in sorted(partial.rglob("*.jsonl")):
            _rename(file, condition)
    write_json(partial / "record.json", {**record, "condition": condition})
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


def _rename(file: Path, condition: str) -> None:
    """Write `condition` into every line of a file of JSON lines, one line at a time."""
    partial = file.with_name(f".{file.name}.partial")
    with file.open(encoding="utf-8") as old, partial.open("w", encoding="utf-8") as new:
        for line in old:
            new.write(json.dumps({**json.loads(line), "condition": condition}, ensure_ascii=False) + "\n")
    partial.replace(file)
