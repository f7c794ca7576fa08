"""Progress of long work: a live bar on a terminal, plain lines elsewhere.

A plain line reads `[gold] 50/200 loss 0.4233 elapsed 3s remaining 9s`.
"""

import sys
import time
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 2.0
"""Shortest time between two plain lines; the last one is always printed."""


class Shown(Protocol):
    """What shows how far work has come."""

    def update(self, done: int) -> None:
        """`done` units are finished."""
        ...


@dataclass(frozen=True)
class Part:
    """A part of the work that a bar shows, which counts from 0."""

    bar: Shown
    before: int
    """Units of the parts before it."""

    def update(self, done: int) -> None:
        """`done` units of the part are finished."""
        self.bar.update(self.before + done)


class Progress:
    """Shows how far `total` units of work called `name` have come; use it as a context manager."""

    def __init__(self, name: str, total: int, stream: TextIO | None = None, every: float = LINE_SECONDS):
        self.name, self.total, self.every = name, total, every
        self.stream = stream or sys.stderr
        self.started = self.printed = time.monotonic()
        self.first: int | None = None
        self.bar: Bar | None = None
        if self.stream.isatty():
            self.bar = Bar(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self.stream),
            )
            self.task = self.bar.add_task(name, total=total, loss="")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, loss: float | None = None) -> None:
        """`done` units are finished; `loss` is the running mean loss, where there is one."""
        shown = "" if loss is None else f"loss {loss:.4f}"
        if self.first is None:
            self.first = max(0, done - 1)  # a resumed run does not start at 0
        if self.bar is not None:
            self.bar.update(self.task, completed=done, loss=shown)
            return
        now = time.monotonic()
        if now - self.printed < self.every and done < self.total:
            return
        self.printed = now
        elapsed = now - self.started
        remaining = elapsed * (self.total - done) / max(1, done - self.first)
        parts = [f"[{self.name}] {done}/{self.total}", shown, f"elapsed {elapsed:.0f}s remaining {remaining:.0f}s"]
        print(" ".join(part for part in parts if part), file=self.stream, flush=True)
