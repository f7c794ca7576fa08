"""The typer application and what its commands share."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    name="finetrial",
    help="Clinical trials for LLM fine-tuning recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=not sys.stdout.isatty())

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="campaign TOML")]
Logs = Annotated[Path, typer.Option("--logs", help="folder of campaign folders")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="override a field of the spec; may be repeated")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def say(text: str) -> None:
    """Print a line as it is: square brackets are text, not markup."""
    console.print(text, markup=False)


def emit_json(value: Any) -> None:
    """Print strict JSON (no NaN) on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(title: str, columns: list[str], rows: list[list[Any]], right: tuple[int, ...] = ()) -> Table:
    """A plain table; columns whose index is in `right` are right-aligned. Cells are text, not markup."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        grid.add_column(column, justify="right" if i in right else "left", header_style="dim", overflow="fold")
    for row in rows:
        cells = ("" if cell is None else cell for cell in row)
        grid.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
    return grid
