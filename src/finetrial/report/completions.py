"""A few completions of every condition as they were sampled: one right and one wrong, of the first and the last step.

`emergence/generations.jsonl` may hold millions of rows; only its two ends are read, of one run per condition.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from finetrial.errors import UserError

BLOCK = 1 << 20
"""Bytes of a file's end that are read at first."""
RIGHT = 0.5
"""A completion is right when its grade lies above, as `correct_rate` counts."""
SHOWN = 1500
"""Characters of a prompt or completion that a page shows."""


@dataclass(frozen=True)
class Sample:
    """One completion of training."""

    condition: str
    seed: int
    step: int
    task: str
    prompt: str
    completion: str
    grade: float | None
    """None where none could be given."""
    no_grade: str | None
    """Why there is none."""
    reward: float | None
    num_tokens: int | None
    finished: bool | None
    """Whether it ended by itself rather than at the limit; None where that was not recorded."""

    @property
    def outcome(self) -> str:
        """`right`, `wrong` or `no grade`."""
        return "no grade" if self.grade is None else "right" if self.grade > RIGHT else "wrong"


def read_samples(folder: Path, manifest: Mapping[str, Any]) -> tuple[Sample, ...]:
    """Completions of the first run of every condition that left any, the earliest step first.

    Raises:
        UserError: a complete line is no JSON object with a step.
    """
    found: dict[str, tuple[Sample, ...]] = {}
    for run in manifest.get("runs", []):
        path = folder / run["folder"] / "emergence" / "generations.jsonl"
        if run["condition"] not in found and path.is_file():
            samples = tuple(_sample(run, row) for row in _telling(path))
            found |= {run["condition"]: samples} if samples else {}
    return tuple(sample for samples in found.values() for sample in samples)


def shorten(text: str) -> str:
    """The text, or its beginning with a word on how much is left out."""
    rest = len(text) - SHOWN
    return text if rest <= 0 else f"{text[:SHOWN]} … ({rest} more characters)"


def _telling(path: Path) -> list[dict[str, Any]]:
    """Of the first and of the last step, the first right and the first wrong row; one without a grade where none is."""
    first, last = _first_step(path), last_step(path)
    steps = [first] if not last or (first and first[0]["step"] == last[0]["step"]) else [first, last]
    picked = []
    for rows in steps:
        graded = [row for row in rows if row.get("correct") is not None]
        right = [row for row in graded if row["correct"] > RIGHT]
        wrong = [row for row in graded if row["correct"] <= RIGHT]
        picked += right[:1] + wrong[:1] if graded else rows[:1]
    return picked


def _first_step(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as stream:
        rows = (_row(path, line) for line in stream if line.endswith(b"\n"))
        first = next(rows, None)
        return [] if first is None else [first, *takewhile(lambda row: row["step"] == first["step"], rows)]


def last_step(path: Path) -> list[dict[str, Any]]:
    """Rows of the last step, from blocks at the end that grow until they hold all of it."""
    size, block = path.stat().st_size, BLOCK
    while True:
        rows = list(_ending(path, size, block))
        last = [row for row in rows if row["step"] == rows[-1]["step"]]
        if len(last) < len(rows) or block >= size:
            return last
        block *= 4


def _ending(path: Path, size: int, block: int) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        if block < size:
            stream.seek(size - block)
            stream.readline()  # most likely the rest of a line
        yield from (_row(path, line) for line in stream if line.endswith(b"\n"))


def _row(path: Path, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: expected one JSON object per line, got {line[:60]!r}") from error
    if not isinstance(row, dict) or "step" not in row:
        raise UserError(f"{path}: expected an object with the key 'step' in every line, got {line[:60]!r}")
    return row


def _sample(run: Mapping[str, Any], row: Mapping[str, Any]) -> Sample:
    return Sample(
        condition=run["condition"],
        seed=run["seed"],
        step=row["step"],
        task=str(row.get("task", "not recorded")),
        prompt=_text(row.get("prompt")),
        completion=_text(row.get("completion")),
        grade=row.get("correct"),
        no_grade=row.get("no_grade"),
        reward=row.get("reward"),
        num_tokens=row.get("num_tokens"),
        finished=row.get("finished"),
    )


def _text(value: Any) -> str:
    """A text as it is; messages one below the other."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(message, Mapping) for message in value):
        return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in value)
    return "not recorded"


def of_condition(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """condition -> its samples, in their order."""
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.condition, []).append(sample)
    return grouped
