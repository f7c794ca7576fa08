"""Judged contrasts corrected by labels."""

import numpy as np
import pytest

from finetrial.analyze.judged import corrected_contrast
from finetrial.analyze.labels import corrected_mean
from finetrial.errors import UserError
from finetrial.records import Outcome


def outcome(condition: str, item: int, value: float | None, seed: int | None = 1, sample: int = 0) -> Outcome:
    return Outcome(condition, seed, "exam", f"i{item:03d}", sample, "correct", value)


def drawn(items: int, labelled: int, bias: float, seed: int) -> tuple[list[Outcome], list[Outcome]]:
    """Candidate is better by 0.1; the judge adds `bias` to the candidate alone, and noise."""
    rng = np.random.default_rng(seed)
    judged, labels = [], []
    for item in range(items):
        worth = rng.uniform(0.3, 0.6)
        for condition, gain, wrong in (("new", 0.1, bias), ("old", 0.0, 0.0)):
            for run in (1, 2):
                truth = float(np.clip(worth + gain + rng.normal(0, 0.1), 0, 1))
                seen = float(np.clip(truth + wrong + rng.normal(0, 0.05), 0, 1))
                judged.append(outcome(condition, item, seen, run))
                if item < labelled:
                    labels.append(outcome(condition, item, truth, run))
    return judged, labels


def test_a_judge_that_favours_one_condition_is_corrected():
    estimates, covered = [], 0
    for seed in range(60):
        judged, labels = drawn(200, 30, 0.2, seed)
        found = corrected_contrast(judged, labels, "new", "old", "exam")
        estimates.append(found.estimate)
        covered += found.ci[0] <= 0.1 <= found.ci[1]
    assert np.mean(estimates) == pytest.approx(0.1, abs=0.01)
    assert covered / 60 > 0.85
    judged, labels = drawn(200, 30, 0.2, 1)
    raw = np.mean([o.value for o in judged if o.condition == "new"]) - np.mean(
        [o.value for o in judged if o.condition == "old"]
    )
    assert raw > 0.25
    assert corrected_contrast(judged, labels, "new", "old", "exam").weight > 0.3


def test_it_is_the_mean_of_differences_of_the_same_completions():
    judged = [
        outcome("new", i, v, seed, s)
        for i, seed, s, v in [
            (0, 1, 0, 0.9),
            (0, 1, 1, 0.1),
            (1, 1, 0, 0.8),
            (1, 1, 1, 0.7),
            (2, 1, 0, 0.6),
            (3, 1, 0, 0.5),
            (4, 1, 0, 0.2),
        ]
    ]
    judged += [outcome("old", i, 0.1 * i, None) for i in range(5)]
    labels = [outcome("new", 0, 1.0), outcome("new", 1, 0.5, 1, 1), outcome("new", 2, 0.0)]
    labels += [outcome("old", i, 0.5, None) for i in range(3)]
    found = corrected_contrast(judged, labels, "new", "old", "exam")
    wanted = corrected_mean(
        np.array([0.5, 0.0, -0.5]), np.array([0.9, 0.7 - 0.1, 0.6 - 0.2]), np.array([0.5 - 0.3, 0.2 - 0.4])
    )
    assert (found.estimate, found.weight, found.n_labelled) == pytest.approx((wanted.estimate, wanted.weight, 3))


def test_what_does_not_fit_is_refused():
    judged, labels = drawn(20, 5, 0.0, 1)
    with pytest.raises(UserError, match=r"no judged outcomes of 'nwe'.*did you mean 'new'"):
        corrected_contrast(judged, labels, "nwe", "old", "exam")
    with pytest.raises(UserError, match="the judge gave no grade"):
        corrected_contrast([o for o in judged if o.item != "i002" or o.seed == 2], labels, "new", "old", "exam")
    with pytest.raises(UserError, match=r"outside 0\.\.1"):
        corrected_contrast(judged, [*labels, outcome("new", 1, 7.0)], "new", "old", "exam")
    with pytest.raises(UserError, match="at least 3"):
        corrected_contrast(judged, [o for o in labels if o.item < "i002"], "new", "old", "exam")
    mixed = [*judged, Outcome("new", 1, "exam", "i000", 5, "correct", 1.0, suite_hash="other")]
    with pytest.raises(UserError, match="2 hashes"):
        corrected_contrast(mixed, labels, "new", "old", "exam")


def test_missing_judgments_are_no_part_of_a_mean():
    judged, labels = drawn(30, 6, 0.0, 2)
    more = [outcome("new", 10, None, 3), outcome("old", 31, 0.5)]
    assert corrected_contrast(judged + more, labels, "new", "old", "exam") == corrected_contrast(
        judged, labels, "new", "old", "exam"
    )
