"""An order of conditions is one claim: every step must hold."""

import pytest

from finetrial import seeds
from finetrial.analyze.contrast import AnalysisConfig
from finetrial.analyze.ordered import judge_order
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError
from finetrial.records import Outcome


def ladder(levels: dict[str, float], seed_sd: float = 0.01) -> OutcomeTable:
    rng = seeds.stream(0, "ladder")
    rows = []
    for condition, level in levels.items():
        for s in range(1, 7):
            own = rng.normal() * seed_sd
            rows += [
                Outcome(condition, s, "test", f"i{i}", 0, "nll", level + own + i * 0.1 + rng.normal() * 0.02)
                for i in range(20)
            ]
    return OutcomeTable.read(rows)


def order(table: OutcomeTable, *names: str) -> tuple[str, str, float | None]:
    finding = judge_order(table, names, suite="test", metric="nll", config=AnalysisConfig())
    return finding.verdict, finding.reason, finding.p_value


def test_every_step_must_hold() -> None:
    table = ladder({"gold": 1.0, "random": 1.2, "low": 1.5})
    verdict, reason, p = order(table, "gold", "random", "low")
    assert verdict == "CONFIRMED"
    assert reason.startswith("gold < random < low holds at every step")
    steps = judge_order(table, ["gold", "random", "low"], suite="test", metric="nll", config=AnalysisConfig()).steps
    assert p == max(s.p_value for s in steps if s.p_value is not None)
    assert [s.better for s in steps] == ["higher", "higher"]


def test_a_wrong_step_fails_the_order_though_the_trend_is_strong() -> None:
    verdict, reason, p = order(ladder({"gold": 1.0, "random": 2.0, "low": 1.8}), "gold", "random", "low")
    assert verdict == "FAILED"
    assert "low worsens nll" in reason
    assert p == 1.0


def test_an_open_step_leaves_the_order_open() -> None:
    verdict, reason, _ = order(ladder({"gold": 1.0, "random": 1.5, "low": 1.51}, seed_sd=0.05), "gold", "random", "low")
    assert verdict == "INCONCLUSIVE"
    assert "open at 1 of 2 steps" in reason


def test_two_conditions_are_a_contrast() -> None:
    with pytest.raises(UserError, match="use a contrast for two"):
        order(ladder({"gold": 1.0, "random": 1.2}), "gold", "random")
