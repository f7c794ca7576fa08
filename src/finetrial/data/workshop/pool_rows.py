"""Rows of a source as a linter wants them: those that cannot become Examples too, with the reason."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetrial.data.formats import FORMATS, describe_unknown, recognise
from finetrial.data.messages import Malformed
from finetrial.data.read import open_source, read
from finetrial.errors import UserError
from finetrial.records import Example


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One row: an Example, or why it is none."""

    place: str
    example: Example | None
    reason: str = ""


def pool_rows(source: str, limit: int | None = None) -> Iterator[PoolRow]:
    """Rows of a file, folder, glob, hub data set or world, one after another.

    Raises:
        UserError: no such source, a file that cannot be read, or not one row of a known format.
    """
    if source.startswith("world:"):
        for place, example in enumerate(read(source, limit=limit).examples):
            yield PoolRow(f"{source}[{place}]", example)
        return
    known = rows = 0
    unknown = ""
    for file in open_source(source, limit):
        for row in file.rows:
            if limit is not None and rows == limit:
                break
            rows += 1
            if row.error is not None:
                yield PoolRow(row.place, None, f"not JSON: {row.error}")
                continue
            name = recognise(row.value)
            if name is None:
                reason = describe_unknown(row.value)
                unknown = unknown or f"{row.place}: {reason}"
                yield PoolRow(row.place, None, reason)
                continue
            known += 1
            try:
                yield PoolRow(row.place, FORMATS[name].convert(row.value, file.stem))
            except Malformed as error:
                yield PoolRow(row.place, None, str(error))
    if not known:
        raise UserError(unknown or f"{source}: no row")
