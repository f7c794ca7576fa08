"""Content-addressed artefacts: a folder per stage result, visible only once it is whole.

Layout: `<root>/<stage>/<key>/...` with `done.json` written last, inside a temporary sibling that is moved into
place by one atomic rename. A folder without `done.json`, or one still under its temporary name, does not exist
as far as anyone who reads is concerned.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DONE = "done.json"
ABANDONED_AFTER_S = 3600.0


class Store:
    """Artefacts below `root`. Several processes may share one store; the first to finish a key wins."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, stage: str, key: str) -> Path:
        """Where the artefact is or would be."""
        return self.root / stage / key

    def has(self, stage: str, key: str) -> bool:
        """Whether the artefact is whole."""
        return (self.path(stage, key) / DONE).is_file()

    def record(self, stage: str, key: str) -> dict[str, Any]:
        """The facts that were given to `put`.

        Raises:
            FileNotFoundError: there is no whole artefact of that key.
        """
        return json.loads((self.path(stage, key) / DONE).read_text())

    def keys(self, stage: str) -> list[str]:
        """Keys of all whole artefacts of a stage, sorted."""
        return sorted(marker.parent.name for marker in (self.root / stage).glob(f"[!.]*/{DONE}"))

    def sweep(self) -> None:
        """Remove what processes that were killed more than an hour ago left half-written."""
        for partial in self.root.glob("*/.*.partial"):
            alive = Path("/proc") / partial.name.split(".")[-2]
            if time.time() - partial.stat().st_mtime > ABANDONED_AFTER_S and not alive.exists():
                shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def put(self, stage: str, key: str, record: Mapping[str, Any]) -> Iterator[Path]:
        """Yield a folder to fill; it becomes the artefact when the block ends without an exception.

        `record` may still be changed inside the block; it is written as `done.json` at the end. On an exception
        (a full disk among them) the temporary folder is removed and nothing becomes visible.
        """
        final = self.path(stage, key)
        partial = final.with_name(f".{key}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            write_json(partial / DONE, record)
            for entry in sorted(partial.rglob("*")):
                if entry.is_file():
                    _sync(entry)
            if final.exists() and not self.has(stage, key):
                shutil.rmtree(final)
            try:
                partial.rename(final)
            except OSError:
                if not self.has(stage, key):  # else another process finished the same key first
                    raise
            _sync(final.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (temporary sibling, fsync, rename)."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Read a JSON file that finetrial wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
