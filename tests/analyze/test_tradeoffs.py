"""Two aims: where conditions stand, and which are dominated."""

import numpy as np
import pytest
from pydantic import ValidationError
from test_changes import dense

from finetrial.analyze.contrast import AnalysisConfig, Tradeoff
from finetrial.analyze.metrics import direction
from finetrial.analyze.table import Dense
from finetrial.analyze.tradeoffs import Position, positions

KEPT = ("old", "older")


def outcomes(levels: dict[str, dict[str, float]], noise: float = 0.01, items: int = 20) -> dict[tuple[str, str], Dense]:
    """(condition, suite) -> outcomes of four runs around a level; the base is 0.5 everywhere."""
    rng = np.random.default_rng(0)
    suites = ("new", *KEPT)
    item_I = 0.1 * rng.standard_normal(items)
    found = {("base", suite): dense((0.5 + item_I)[None], (None,), suite) for suite in suites}
    for name, level in levels.items():
        for suite in suites:
            values_SI = level[suite] + item_I + noise * (rng.standard_normal((4, 1)) + rng.standard_normal((4, items)))
            found[name, suite] = dense(values_SI, (0, 1, 2, 3), suite)
    return found


def placed(
    levels: dict[str, dict[str, float]], tradeoff: Tradeoff | None = None, noise: float = 0.01
) -> dict[str, Position]:
    arms = outcomes(levels, noise)
    declared = tradeoff or Tradeoff(x=("new:acc",), y=("old:acc", "older:acc"))
    found = positions(declared, [*levels], lambda c, s, _: arms.get((c, s)), direction)
    return {position.condition: position for position in found}


def test_a_condition_stands_where_its_worst_suite_is() -> None:
    found = placed({"a": {"new": 0.8, "old": 0.5, "older": 0.3}, "b": {"new": 0.7, "old": 0.2, "older": 0.45}})
    assert [found[name].y.suite for name in "ab"] == ["older", "old"]
    assert found["a"].x.change.estimate == pytest.approx(0.3, abs=0.02)
    assert found["a"].y.change.estimate == pytest.approx(-0.2, abs=0.02)
    assert found["a"].y.mean is not None
    assert found["a"].y.mean.estimate == pytest.approx(-0.1, abs=0.02)
    assert found["a"].x.mean is None
    assert np.mean([value for _, value in found["a"].y.seeds]) == pytest.approx(found["a"].y.change.estimate)
    assert found["base"].x.change.estimate == 0


def test_dominance_by_means_and_by_intervals() -> None:
    found = placed(
        {
            "good": {"new": 0.9, "old": 0.5, "older": 0.45},
            "bad": {"new": 0.7, "old": 0.3, "older": 0.25},
            "near": {"new": 0.885, "old": 0.49, "older": 0.435},
        }
    )
    assert found["good"].optimal
    assert "good" in found["bad"].surely_dominated_by
    assert found["near"].dominated_by == ("good",)
    assert found["near"].surely_dominated_by == ()
    assert found["base"].optimal  # nothing keeps more
    assert "base" not in found["bad"].dominated_by  # it learns nothing


def test_what_is_worse_than_the_base_on_both_is_dominated_by_it() -> None:
    found = placed({"broken": {"new": 0.4, "old": 0.2, "older": 0.5}})
    assert found["broken"].dominated_by == ("base",)
    assert found["broken"].surely_dominated_by == ("base",)
    better = placed({"better": {"new": 0.6, "old": 0.6, "older": 0.6}})
    assert better["base"].surely_dominated_by == ("better",)


def test_conditions_whose_worst_suites_differ_are_compared_too() -> None:
    found = placed({"a": {"new": 0.9, "old": 0.5, "older": 0.45}, "b": {"new": 0.7, "old": 0.2, "older": 0.5}})
    assert found["b"].surely_dominated_by == ("a",)


def test_what_is_not_measured_everywhere_is_not_placed() -> None:
    arms = outcomes({"a": {"new": 0.9, "old": 0.5, "older": 0.5}})
    del arms["a", "older"]
    declared = Tradeoff(x=("new:acc",), y=("old:acc", "older:acc"))
    assert positions(declared, ["a"], lambda c, s, _: arms.get((c, s)), direction) == []


def test_another_baseline_stands_at_the_origin() -> None:
    levels = {"plain": {"new": 0.8, "old": 0.4, "older": 0.4}, "anchored": {"new": 0.8, "old": 0.5, "older": 0.5}}
    declared = Tradeoff(x=("new:acc",), y=("old:acc",), baseline="plain")
    arms = outcomes(levels)
    found = {p.condition: p for p in positions(declared, ["anchored"], lambda c, s, _: arms.get((c, s)), direction)}
    assert set(found) == {"anchored", "plain"}
    assert found["anchored"].y.change.estimate == pytest.approx(0.1, abs=0.02)
    assert found["anchored"].y.change.n_seeds == (4, 4)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        ("new", "expected 'suite:metric'"),
        (["a:acc", "b:nll"], "one metric"),
        (["a:acc", "a:acc"], "stands here twice"),
        ([], "at least 1"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(x: object, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        AnalysisConfig.model_validate({"tradeoffs": [{"x": x, "y": "old:acc"}]})


def test_a_declaration_is_one_text_or_several() -> None:
    declared = Tradeoff.model_validate({"x": "a:b:acc", "y": ["old:nll", "older:nll"]})
    assert (declared.x_axis.suites, declared.x_axis.metric) == (("a:b",), "acc")
    assert declared.name == "a:b (acc) against old, older (nll)"
    assert Tradeoff.model_validate(declared.model_dump(mode="json")) == declared
