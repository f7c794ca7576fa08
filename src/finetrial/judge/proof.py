"""What is checked of a grader before its grades count, whatever its kind."""

from collections.abc import Sequence
from typing import Any

from finetrial.grade import grade
from finetrial.judge.control import baseline, control, refuse_drift
from finetrial.judge.grader import JudgeGrader
from finetrial.judge.prompts import check_template
from finetrial.judge.selftest import self_test
from finetrial.records import Task


def prove(grader: grade.Grader | JudgeGrader, tasks: Sequence[Task], session: str = "") -> dict[str, Any]:
    """Check a grader on what is known of its tasks; the facts of a judge's proof in JSON types, else nothing.

    Rules and functions grade gold answers 1 and empty ones 0 (`grade.prove`); once is enough. A judge is shown all that
    its items have, passes its self-test (which is asked once and then remembered) and judges its frozen baseline anew,
    in every session: it must be proven in every launch that uses it.

    Args:
        session: name of the session in the control chart; default the time.

    Raises:
        UserError: the grader failed, or the judge has drifted; naming what was found.
    """
    if not isinstance(grader, JudgeGrader):
        grade.prove(grader, tasks)
        return {}
    check_template(grader.judge, tasks)
    tested = self_test(grader, tasks)
    chart = control(grader, *baseline(tasks, grader.judge.self_test.items), session)
    refuse_drift(chart, grader.judge.model)
    return {"self_test": tested.facts(), "control": chart.facts()}
