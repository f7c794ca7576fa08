"""Rules of early stopping and of the choice of an adapter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetrial.train.stopping import Measured, best, kept, reason_to_stop
from finetrial.train.stopping_config import StoppingConfig


def history(*values: float | None) -> list[Measured]:
    return [Measured(10 * (k + 1), value) for k, value in enumerate(values)]


def stops(baseline: float, *values: float | None, better: str = "higher", **config: object) -> str | None:
    rule = StoppingConfig.model_validate({"suite": "x", **config})
    return reason_to_stop(rule, "correct", better, baseline, history(*values))  # type: ignore[arg-type]


def test_patience_counts_measurements_in_a_row_that_do_not_improve() -> None:
    assert stops(0.2, 0.3, 0.3, patience=2) is None
    assert stops(0.2, 0.3, 0.3, 0.1, patience=2) == "correct did not improve on 0.3 in 2 measurements"
    assert stops(0.2, 0.3, 0.3, 0.4, 0.4, patience=2) is None
    assert stops(0.2, 0.1, 0.1, patience=2) == "correct did not improve on 0.2 in 2 measurements"


def test_an_improvement_is_more_than_the_threshold() -> None:
    assert stops(0.2, 0.25, patience=1, threshold=0.05) == (
        "correct did not improve on 0.2 by more than 0.05 in 1 measurement"
    )
    assert stops(0.2, 0.26, patience=1, threshold=0.05) is None
    assert stops(0.0, 0.04, 0.08, patience=3, threshold=0.05) is None  # the reference stays; 0.08 improves on it


def test_the_floor_lies_below_the_base_and_stops_at_once() -> None:
    assert stops(0.5, 0.4, floor=0.1) is None
    assert stops(0.5, 0.39, floor=0.1) == "correct 0.39 is worse than the base's 0.5 by more than 0.1"
    assert stops(2.0, 2.2, better="lower", floor=0.1) is not None
    assert stops(2.0, 1.2, better="lower", floor=0.1) is None
    assert stops(0.5, 0.1, 0.6, floor=0.1) is None  # it would have been stopped before; only the last value counts


def test_a_missing_value_stops_nothing() -> None:
    assert stops(0.2, 0.3, None, None, patience=1, floor=0.1) is None
    assert stops(0.2, None, patience=1) is None
    assert stops(0.2, 0.3, None, 0.1, patience=1) is not None


def test_the_best_is_the_earlier_of_equals() -> None:
    assert best(history(0.1, 0.3, 0.3, 0.2), "higher") == Measured(20, 0.3)
    assert best(history(0.3, None, 0.1, 0.1), "lower") == Measured(30, 0.1)
    assert best(history(None, None), "lower") is None
    assert best([], "lower") is None


def test_within_the_floor_the_latest_is_kept() -> None:
    rule = StoppingConfig(suite="x", floor=0.1, select="within_floor")
    assert kept(rule, "higher", 0.5, history(0.6, 0.45, 0.3)) == Measured(20, 0.45)
    assert kept(rule, "higher", 0.5, history(0.6, 0.45, None)) == Measured(20, 0.45)
    assert kept(rule, "lower", 0.5, history(0.55, 0.65)) == Measured(10, 0.55)
    assert kept(rule, "higher", 0.5, history(0.3)) is None
    last = StoppingConfig(suite="x", floor=0.1, select="last")
    assert kept(last, "higher", 0.5, history(0.6)) is None
    assert kept(StoppingConfig(suite="x"), "higher", 0.5, history(0.6, 0.45)) == Measured(10, 0.6)


values = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=20)


@given(values, st.floats(-5, 5), st.integers(1, 5), st.floats(0, 2), st.floats(0, 2))
def test_better_lower_is_better_higher_of_the_negative(
    seen: list, baseline: float, patience: int, threshold: float, floor: float
) -> None:
    mirrored = [None if value is None else -value for value in seen]
    rule = {"patience": patience, "threshold": threshold, "floor": floor}
    up, down = stops(baseline, *seen, **rule), stops(-baseline, *mirrored, better="lower", **rule)
    assert (up is None) == (down is None)
    one, other = best(history(*seen), "higher"), best(history(*mirrored), "lower")
    assert (one and one.step) == (other and other.step)


@given(values, st.floats(-5, 5), st.integers(1, 5))
def test_more_patience_stops_no_earlier(seen: list, baseline: float, patience: int) -> None:
    if stops(baseline, *seen, patience=patience) is None:
        assert stops(baseline, *seen, patience=patience + 1) is None


def test_measurements_are_due_every_so_many_steps_and_at_the_end_of_a_run_that_reaches_the_first() -> None:
    rule = StoppingConfig(suite="x", every=4)
    assert [step for step in range(1, 11) if rule.due(step, 10)] == [4, 8, 10]
    assert [step for step in range(1, 4) if rule.due(step, 3)] == []
    assert [step for step in range(1, 5) if rule.due(step, 4)] == [4]


@pytest.mark.parametrize(("config", "said"), [({"select": "last"}, "do nothing"), ({"threshold": 0.1}, "patience")])
def test_a_guard_without_effect_is_refused(config: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StoppingConfig.model_validate({"suite": "x", **config})
