"""The two kinds of failure that finetrial tells apart.

`UserError` is bad input: the command line prints its message without a traceback and exits with 2.
Anything else that is raised is a defect of finetrial or of the machine and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The message names the file, line or key, what was expected and the nearest valid thing."""


class LeakError(UserError):
    """Training and test data share rows, groups or content, or the check could not be made (fails closed)."""


class Interrupted(Exception):
    """A termination signal arrived; a checkpoint has been written and nothing is lost (exit code 130)."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """` (did you mean 'x'?)` when something in `valid` resembles `name`, else an empty string."""
    match = get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""
