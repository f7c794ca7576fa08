"""Rows of programming problems with tests -> questions, in the format of HumanEval (Chen et al. 2021, 2107.03374).

A row has `task_id`, `prompt` (imports, signature, docstring), `entry_point`, `test` (which defines
`check(candidate)`) and `canonical_solution` (what follows the prompt).
"""

from collections.abc import Mapping
from typing import Any

from finetrial.data.task_rows import Question
from finetrial.errors import UserError

KEYS = ("prompt", "entry_point", "test", "canonical_solution")


def is_code_row(row: Any) -> bool:
    """Whether a row is a programming problem: it names what is tested, and the tests."""
    return isinstance(row, Mapping) and "entry_point" in row and "test" in row


def code_task(row: Mapping[str, Any], place: str) -> Question:
    """A programming problem; `meta["code"]` is what `grade.code` grades by, and the solution is the gold completion.

    Raises:
        UserError: with place and column: a column is missing, no text or empty, or the name that is tested is none.
    """
    for key in KEYS:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(f"{place}: {key} is {'missing' if key not in row else 'empty or no text'}; expected a text")
    name = row["entry_point"]
    if not name.isidentifier():
        raise UserError(f"{place}: entry_point is {name!r}; expected the name of a function")
    known = row.get("task_id")
    return Question(
        place=place,
        id=None if known is None else str(known),
        group=None,
        messages=({"role": "user", "content": row["prompt"]},),
        reference=row["canonical_solution"],
        gold=row["canonical_solution"],
        style="code",
        meta={"code": {"prompt": row["prompt"], "tests": f"{row['test']}\n\ncheck({name})\n", "entry_point": name}},
    )
