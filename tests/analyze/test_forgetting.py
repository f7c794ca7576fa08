"""Changes by item and category, ends of the range, subsets."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from test_changes import arms, dense

from finetrial.analyze.changes import Pair, change, pair
from finetrial.analyze.families import adjusted_p
from finetrial.analyze.forgetting import category_changes, ends, item_changes, nested, small_subset
from finetrial.analyze.metrics import METRICS


def matched(values_SI: np.ndarray, base_TI: np.ndarray, better: str = "higher") -> Pair:
    frozen = len(base_TI) == 1
    seeds = tuple(range(len(values_SI)))
    found = pair(
        dense(values_SI, seeds),
        dense(base_TI, (None,) if frozen else tuple(range(100, 100 + len(base_TI)))),
        "lower" if better == "lower" else "higher",
    )
    assert found is not None
    return found


def simulated(gain: float = 0.2, items: int = 12) -> Pair:
    candidate, baseline = arms(gain, items=items)
    return matched(candidate.values_SI, baseline.values_SI)


def test_items_are_ranked_and_ties_go_by_name() -> None:
    found = item_changes(matched(np.array([[1.0, 0.0, 1.0, 0.5]] * 2), np.array([[0.0, 1.0, 0.0, 0.5]])), "higher")
    assert [(row.item, row.change) for row in found] == [("i000", 1), ("i002", 1), ("i003", 0), ("i001", -1)]
    assert [(row.baseline, row.value) for row in found[-1:]] == [(1.0, 0.0)]


def test_a_loss_is_turned_but_its_values_are_not() -> None:
    (row,) = item_changes(matched(np.array([[2.0], [3.0]]), np.array([[4.0]]), "lower"), "lower")
    assert (row.baseline, row.value, row.change, row.n_seeds) == (4.0, 2.5, 1.5, 2)
    low, high = stats.t.interval(0.95, 1, 1.5, stats.sem([2.0, 1.0]))
    assert row.ci == pytest.approx((low, high))


def test_item_intervals_of_independent_runs_are_welchs() -> None:
    a_S, b_S = np.array([1.0, 1.4, 0.9, 1.2]), np.array([0.4, 0.5, 0.8])
    (row,) = item_changes(matched(a_S[:, None], b_S[:, None]), "higher")
    expected = stats.ttest_ind(a_S, b_S, equal_var=False).confidence_interval()
    assert row.ci is not None
    assert row.change == pytest.approx(a_S.mean() - b_S.mean())
    assert row.ci[0] <= expected.low + 1e-9  # degrees of freedom are never more than Welch's
    assert row.ci[1] >= expected.high - 1e-9


def test_no_item_interval_for_one_seed_or_seeds_that_agree() -> None:
    alone = item_changes(matched(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]])), "higher")
    agree = item_changes(matched(np.ones((3, 2)), np.zeros((1, 2))), "higher")
    assert [row.ci for row in (*alone, *agree)] == [None] * 4
    with_gap = item_changes(matched(np.array([[1.0, 2.0], [np.nan, 4.0]]), np.zeros((1, 2))), "higher")
    assert [(row.item, row.n_seeds, row.ci is None) for row in with_gap] == [("i001", 2, False), ("i000", 1, True)]


def test_categories_are_parts_of_the_suite_corrected_by_holm() -> None:
    found = simulated(items=30)
    categories = {item: "abc"[k % 3] for k, item in enumerate(found.items)}
    rows = category_changes(found, categories, "higher")
    assert [row.category for row in rows] == ["a", "b", "c"]
    assert np.mean([row.change.estimate for row in rows]) == pytest.approx(change(found).estimate)
    first = change(found.only(np.arange(0, 30, 3)))
    assert rows[0].change == first
    p_J = np.array([row.change.p_value or 0.0 for row in rows])
    assert [row.p_adjusted for row in rows] == pytest.approx(adjusted_p(p_J, "holm"))
    for row in rows:
        assert row.ci_adjusted is not None
        assert row.change.ci is not None
        assert row.ci_adjusted[0] <= row.change.ci[0] + 1e-12
        assert row.value - row.baseline == pytest.approx(row.change.estimate)


def test_a_small_category_has_a_mean_but_no_interval() -> None:
    found = simulated(items=30)
    categories = {str(item): "few" if k < 4 else "many" for k, item in enumerate(found.items[:20])}
    few, many = category_changes(found, categories, "higher")
    assert (few.change.n_items, few.change.ci, few.p_adjusted, few.ci_adjusted) == (4, None, None, None)
    assert many.change.n_items == 16
    assert many.p_adjusted == many.change.p_value
    assert category_changes(found, {}, "higher") == []


def test_ends_tell_the_room_in_the_direction_of_the_metric() -> None:
    arm = dense(np.array([[1.0, 1.0, 1.0, 0.0], [1.0, np.nan, 0.9, 1.0]]), (1, 2))
    up = ends(arm, METRICS["correct"])
    down = ends(arm, METRICS["violation"])
    assert up is not None
    assert down is not None
    assert (up.at_lowest, up.at_highest, up.n_cells) == (1 / 7, 5 / 7, 7)
    assert (up.room_up, up.room_down) == pytest.approx((1 - 5.9 / 7, 5.9 / 7))
    assert (down.room_up, down.room_down) == pytest.approx((5.9 / 7, 1 - 5.9 / 7))
    assert not up.cannot_gain
    assert ends(arm, METRICS["nll"]) is None
    full = ends(dense(np.ones((1, 5)), (None,)), METRICS["correct"])
    assert full is not None
    assert (full.cannot_gain, full.cannot_lose) == (True, False)


def test_small_subsets_of_a_suite() -> None:
    assert small_subset(simulated(items=16)) is None
    shown = small_subset(simulated(gain=0.0, items=80))
    assert shown is not None
    assert (shown.n, shown.n_items) == (16, 80)
    assert shown.half_width > shown.full_half_width


def test_a_suite_within_another_is_shown_beside_it() -> None:
    a, b = arms(items=12)
    part = [
        replace(
            arm,
            values_SI=arm.values_SI[:, :5],
            count_SI=arm.count_SI[:, :5],
            failed_SI=arm.failed_SI[:, :5],
            squares_SI=arm.squares_SI[:, :5],
            items=arm.items[:5],
            weight_I=arm.weight_I[:5],
            groups=arm.groups[:5],
            suite_hashes=frozenset({"small"}),
        )
        for arm in (a, b)
    ]
    (found,) = nested({"full": (a, b), "part": (part[0], part[1])}, "higher")
    assert (found.subset, found.full) == ("part", "full")
    assert (found.on_subset.n_items, found.on_full.n_items) == (5, 12)
    others = [replace(arm, groups=np.array([f"another {name}" for name in arm.items])) for arm in part]
    assert nested({"full": (a, b), "same ids": (others[0], others[1])}, "higher") == []
