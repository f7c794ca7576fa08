"""`items.parquet` in the campaign's folder: what every item of every suite asks, for those who read per-item results.

Nothing here imports torch.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.errors import UserError, nearest
from finetrial.records import Example, Message, Task

ITEMS = "items.parquet"
"""In the campaign's folder."""

CATEGORIES = ("category", "kind", "topic")
"""Facts that name an item's category where a suite says nothing: the first that any of its items has."""

SCHEMA = pa.schema([(name, pa.string()) for name in ("suite", "item", "group", "category", "prompt", "reference")])
"""Columns; `category` and `reference` are null where an item has none."""


def check_category(place: str, fact: str, items: Sequence[Example | Task]) -> None:
    """Refuse a fact that no item has. Raises UserError naming the nearest one."""
    known = sorted({name for item in items for name in item.meta})
    if fact and fact not in known:
        raise UserError(f"{place}: category: no item has a fact {fact!r}{nearest(fact, known)}; there are {known}")


def item_rows(suite: str, items: Iterable[Example | Task], fact: str = "") -> list[dict[str, str | None]]:
    """A row per item, sorted by id.

    Args:
        suite: its name.
        items: examples or tasks.
        fact: fact that names the category; empty for the first of `CATEGORIES` that any item has.
    """
    ordered = sorted(items, key=lambda item: item.id)
    fact = fact or next((name for name in CATEGORIES if any(name in item.meta for item in ordered)), "")
    return [
        {
            "suite": suite,
            "item": item.id,
            "group": item.group,
            "category": None if item.meta.get(fact) is None else str(item.meta[fact]),
            "prompt": _asked(item.messages),
            "reference": item.reference if isinstance(item, Task) else None,
        }
        for item in ordered
    ]


def write_items(
    folder: Path, suites: Mapping[str, Iterable[Example | Task]], categories: Mapping[str, str] | None = None
) -> None:
    """Write `items.parquet` atomically.

    Args:
        folder: the campaign's.
        suites: suite -> its items.
        categories: suite -> fact that names the category, where one is declared.
    """
    rows = [row for name, items in suites.items() for row in item_rows(name, items, (categories or {}).get(name, ""))]
    partial = folder / f".{ITEMS}.{os.getpid()}.partial"
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial)
        partial.replace(folder / ITEMS)
    finally:
        partial.unlink(missing_ok=True)


def _asked(messages: Sequence[Message]) -> str:
    """The last thing a user says; of a conversation without users its beginning."""
    said = [str(message["content"]) for message in messages if message["role"] == "user"]
    return said[-1] if said else str(messages[0]["content"] or "")
