"""The files that a run writes while it trains, kept in step with the checkpoint.

A checkpoint remembers how long each file was; after an interruption the files are cut there, so no step is told
twice and none is missing.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from finetrial.errors import UserError

METRICS = "metrics.jsonl"
STEPS, GENERATIONS = "emergence/steps.jsonl", "emergence/generations.jsonl"


class Journal:
    """JSON lines of one run, by file name."""

    def __init__(self, files: Mapping[str, BinaryIO]):
        self.files = files

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows; readers see them at once."""
        file = self.files[name]
        for row in rows:
            file.write(json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        file.flush()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: file.tell() for name, file in self.files.items()}


@contextlib.contextmanager
def journal(folder: Path, names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[Journal]:
    """Open a run's files for appending, each cut to what it held at the checkpoint (`sizes`; 0 where unknown).

    Raises:
        UserError: a file is shorter than the checkpoint knows.
    """
    with contextlib.ExitStack() as exits:
        yield Journal({name: exits.enter_context(_opened(folder / name, sizes.get(name, 0))) for name in names})


@contextlib.contextmanager
def _opened(path: Path, size: int) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    have = path.stat().st_size
    if have < size:
        raise UserError(f"{path} has {have} bytes, the checkpoint knows of {size}; delete the checkpoint")
    with path.open("r+b") as stream:
        stream.truncate(size)
        stream.seek(size)
        yield stream
