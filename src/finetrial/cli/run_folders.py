"""Options that take several run folders, as a shell's glob leaves them on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from finetrial.analyze.readers.run_logs import find_runs

_RUN_OPTIONS = ("--baseline", "--candidate")


class RunFolders(TyperCommand):
    """A command whose `--baseline` and `--candidate` take all run folders that a shell's glob leaves behind them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before every further run folder that follows its value, then parse as usual."""
        return super().parse_args(ctx, repeat_option(args))


def repeat_option(args: Sequence[str]) -> list[str]:
    """`--baseline a b` -> `--baseline a --baseline b` where a and b are run folders; everything else as it is."""
    out: list[str] = []
    option: str | None = None
    for position, arg in enumerate(args):
        if position and args[position - 1] in _RUN_OPTIONS:
            option = args[position - 1] if _is_run(arg) else None
        elif arg.startswith("-"):
            option = None
        elif option is not None and _is_run(arg):
            out.append(option)
        out.append(arg)
    return out


def _is_run(arg: str) -> bool:
    path = Path(arg)
    return path.is_dir() and find_runs([path]) == [path]
