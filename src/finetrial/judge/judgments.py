"""Where judgments are kept: rows that are only ever added, each under the key of what was judged by whom.

SQLite keeps a row whole or not at all, also when the process is killed or two launches write at once; the first row
of a key stays.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from finetrial.errors import UserError
from finetrial.identity import digest

FILE = "judgments.sqlite"
BATCH = 500
"""Keys of one query."""


@dataclass(frozen=True)
class Judgment:
    """One reply of a judge on one answer (or pair), and what was read in it."""

    key: str
    """Digest of judge, prompt, parser, scale, repeat, session, order, item and answers."""
    judge: str
    """Digest of model, revision and how it is asked."""
    model: str
    served: str
    """What the server said it answered with."""
    prompt: str
    """`prompts.prompt_hash`."""
    parser: int
    low: float
    high: float
    item: str
    """Content hash of the task."""
    answers: str
    """Digest of the answers in the order in which they were shown."""
    repeat: int
    session: str
    """Empty, but for the control chart, which asks again in every session."""
    value: float | None
    """Raw score, or of a pair the share of the answer shown first; None where the reply could not be read."""
    how: str
    problem: str
    replies: tuple[str, ...]
    """What the judge wrote: one text, or two where it was asked again."""
    prompt_tokens: int
    completion_tokens: int

    @property
    def unit(self) -> float | None:
        """The value as a share of the scale, in [0, 1]."""
        return None if self.value is None else (self.value - self.low) / (self.high - self.low)


class Judgments:
    """The judgments below a folder. Opened anew for each use, so threads and processes may share it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        columns = ", ".join("key TEXT PRIMARY KEY" if one.name == "key" else one.name for one in fields(Judgment))
        with closing(self._connection()) as connection, connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS judgments ({columns})")

    def get(self, keys: Iterable[str]) -> dict[str, Judgment]:
        """Of these keys, those that have been judged."""
        wanted, found = list(dict.fromkeys(keys)), {}
        with closing(self._connection()) as connection:
            for start in range(0, len(wanted), BATCH):
                part = wanted[start : start + BATCH]
                marks = ", ".join("?" * len(part))
                for row in connection.execute(f"SELECT * FROM judgments WHERE key IN ({marks})", part):
                    found[row["key"]] = _judgment(row)
        return found

    def add(self, judgments: Sequence[Judgment]) -> None:
        """Write judgments to the disk, all or none; a key that is there stays as it is."""
        rows = [{**vars(one), "replies": json.dumps(one.replies, ensure_ascii=False)} for one in judgments]
        marks = ", ".join(f":{one.name}" for one in fields(Judgment))
        with closing(self._connection()) as connection, connection:
            connection.executemany(f"INSERT OR IGNORE INTO judgments VALUES ({marks})", rows)

    def all(self) -> list[Judgment]:
        """Every judgment, in the order of their keys."""
        with closing(self._connection()) as connection:
            return [_judgment(row) for row in connection.execute("SELECT * FROM judgments ORDER BY key")]

    def _connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = FULL")
        return connection


def one_judge(judgments: Iterable[Judgment]) -> None:
    """Refuse to put together what different judges, prompts, parsers or scales gave.

    Raises:
        UserError: naming what differs.
    """
    rows = list(judgments)
    for name, words in (
        ("judge", "judges"),
        ("served", "models behind one name"),
        ("prompt", "prompts"),
        ("parser", "versions of the parser"),
        ("low", "scales"),
        ("high", "scales"),
    ):
        found = sorted({str(getattr(row, name)) for row in rows})
        if len(found) > 1:
            told = ", ".join(one[:24] for one in found)
            raise UserError(
                f"judgments of different {words} are not comparable: {name} is {told}; judge everything anew with one "
                "(another judge.revision is another judge)"
            )


def mean(judgments: Sequence[Judgment]) -> tuple[float | None, int]:
    """Mean of the judgments that have a value, as a share of the scale, and how many have none.

    Raises:
        UserError: they are of different judges, prompts or scales.
    """
    one_judge(judgments)
    values = [one.unit for one in judgments if one.unit is not None]
    return (sum(values) / len(values) if values else None), len(judgments) - len(values)


def key_of(judge: str, prompt: str, parser: int, scale: Sequence[float], repeat: int, session: str, item: str,
           answers: str) -> str:  # fmt: skip
    """The key of a judgment."""
    return digest([judge, prompt, parser, list(scale), repeat, session, item, answers])


def _judgment(row: sqlite3.Row) -> Judgment:
    plain: dict[str, Any] = dict(row)
    return Judgment(**{**plain, "replies": tuple(json.loads(plain["replies"]))})
