"""The command line: every command parses its arguments, calls one documented function and prints what it returns.

Exit codes: 0 done, 2 bad input, 130 interrupted with a checkpoint written; `verdict` adds 10, 20 and 30,
`lint --strict` adds 1.
"""

import errno
import sys

from finetrial.cli.app import app
from finetrial.cli.campaign import check, init, plan, report, run, status, verdict, why  # noqa: F401
from finetrial.cli.data import lint, standardise  # noqa: F401
from finetrial.cli.judging import compare_command, power_command  # noqa: F401
from finetrial.cli.workshop import EXTRAS, doctor, evaluate, score, select  # noqa: F401
from finetrial.errors import Interrupted, UserError

UNUSABLE_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST)
"""What a path given by the user can be wrong with."""


def main() -> None:
    """Entry point of `finetrial`."""
    try:
        app()
    except UserError as error:
        print(f"finetrial: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(f"finetrial: {error}", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        extra = next((extra for extra, modules in EXTRAS.items() if error.name in modules), None)
        if extra is None:
            raise
        print(f"finetrial: this needs {error.name}: pip install 'finetrial[{extra}]'", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno in UNUSABLE_PATH and error.filename:
            print(f"finetrial: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" while writing {error.filename}" if error.filename else ""
        print(
            f"finetrial: the disk is full{place}; free some space and run the same command again: "
            "everything finished so far is kept",
            file=sys.stderr,
        )
        sys.exit(2)
