"""Integrity of finished runs: which equal adapters are a defect, and which are no surprise."""

from pathlib import Path
from typing import Any

import pytest

from finetrial.campaign.execute import RunOptions, make_plan
from finetrial.campaign.manifest import integrity
from finetrial.campaign.plan import Plan
from finetrial.campaign.spec import load_spec

TWINS = "no two different supervised runs gave the same adapter"

MORE = """
[[campaign.conditions]]
name = "again"
selection = { strategy = "random", n = 12 }

[[campaign.conditions]]
name = "guarded"
selection = { strategy = "random", n = 12 }
stopping = { suite = "watched", every = 1, patience = 1 }

[[campaign.conditions]]
name = "measured"
selection = { strategy = "random", n = 12 }
set_diversity = { weight = 0, sampling = { max_tokens = 4 } }
"""


def decided(path: Path, logs: Path, more: str = "") -> Plan:
    split = 'test_sets.watched = { kind = "random", n = 4 }\ntest_sets.gold'
    path.write_text(path.read_text().replace("test_sets.gold", split) + more)
    return make_plan(load_spec(path, ["campaign.seeds=[1]"]), RunOptions(logs=logs), lambda _: None)[1]


def found(plan: Plan, **changes: dict[str, Any]) -> dict[str, Any]:
    """The check over finished runs, each with an adapter of its own but for `changes` (condition -> facts)."""
    records: dict[str, dict[str, Any]] = {}
    for run in plan.runs:
        size = {"steps": run.steps, "rows": run.steps}
        whole = {"status": "done", "adapter": run.name, "moved": True, "planned": size, "realised": size}
        records[run.name] = {**whole, **changes.get(run.condition, {})}
    return next(check for check in integrity(plan, records, [], False) if check["check"] == TWINS)


def test_different_rows_with_the_same_adapter_are_a_defect(campaign: Path, tmp_path: Path) -> None:
    plan = decided(campaign, tmp_path / "logs")
    assert found(plan)["passed"]
    check = found(plan, topq={"adapter": "x"}, random={"adapter": "x"})
    assert not check["passed"]
    assert check["detail"] == "topq_s1 = random_s1"
    assert found(plan, topq={"adapter": "x"}, random={"adapter": "x", "status": "quarantined"})["passed"]


def test_practising_runs_may_give_the_same_adapter(practice: Path, tmp_path: Path) -> None:
    plan = decided(practice, tmp_path / "logs")
    same = {run.condition: {"adapter": "x"} for run in plan.runs}
    assert len(same) == 2
    assert found(plan, **same)["passed"]


def guard(last: str, stopped_at: int | None = None) -> dict[str, Any]:
    return {"suite": "watched", "ran": True, "stopped_at": stopped_at, "last_adapter": last}


@pytest.mark.parametrize(
    ("twins", "passed"),
    [
        ({"random": {"adapter": "x"}, "again": {"adapter": "x"}}, True),
        ({"random": {"adapter": "x"}, "measured": {"adapter": "x"}}, True),
        ({"random": {"adapter": "x"}, "guarded": {"adapter": "x", "stopping": guard("x")}}, True),
        ({"topq": {"adapter": "x"}, "guarded": {"adapter": "x", "stopping": guard("x", stopped_at=1)}}, True),
        ({"topq": {"adapter": "x"}, "guarded": {"adapter": "x", "stopping": guard("y")}}, True),
        ({"topq": {"adapter": "x"}, "guarded": {"adapter": "y", "stopping": guard("x")}}, False),
        ({"topq": {"adapter": "x"}, "measured": {"adapter": "x"}}, False),
    ],
)
def test_what_only_watches_a_run_makes_no_other_adapter(
    campaign: Path, tmp_path: Path, twins: dict[str, dict[str, Any]], passed: bool
) -> None:
    assert found(decided(campaign, tmp_path / "logs", MORE), **twins)["passed"] == passed
