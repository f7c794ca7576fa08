"""Judged contrasts corrected by labels."""

from dataclasses import replace

import numpy as np
import pytest

from finetrial.analyze.contrast import AnalysisConfig, Contrast, Finding
from finetrial.analyze.judge import judge
from finetrial.analyze.judged import corrected_contrast, corrected_contrasts
from finetrial.analyze.labels import corrected_mean
from finetrial.analyze.table import OutcomeTable
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


def finding(**changed: object) -> Finding:
    outcomes = [
        Outcome(c, seed, "exam", f"i{i}", 0, "correct", 0.5 + 0.1 * (c == "new") + (0.01 + 0.001 * i) * seed)
        for c in ("new", "old")
        for seed in (1, 2, 3)
        for i in range(6)
    ]
    contrast = Contrast(name="c", candidate="new", baseline="old", suite="exam", metric="correct")
    (found,) = judge(OutcomeTable.read(outcomes), [contrast], AnalysisConfig(), primary_metric="correct")
    return replace(found, **changed)  # type: ignore[arg-type]


def test_a_finding_stands_beside_its_correction_with_a_warning_where_they_part():
    judged, labels = drawn(200, 40, 0.2, 3)
    bounds = {("exam", "correct"): (0.0, 1.0)}
    confirmed = finding(verdict="CONFIRMED", margin=0.2)
    (one,) = corrected_contrasts([confirmed], judged, labels, bounds)
    assert one.corrected == corrected_contrast(judged, labels, "new", "old", "exam")
    assert one.judge == pytest.approx(0.3, abs=0.02)
    assert one.judge_ci[0] < one.judge < one.judge_ci[1]
    assert (one.judge_conclusion, one.conclusion) == ("CONFIRMED", "FAILED")
    assert one.warnings[0].startswith("the verdict CONFIRMED rests on the judge's grades; corrected by people's labels")
    (same,) = corrected_contrasts([finding(verdict="CONFIRMED", margin=0.0)], judged, labels, bounds)
    assert same.warnings == ()
    lower = corrected_contrasts([finding(better="lower", verdict="INCONCLUSIVE", margin=0.0)], judged, labels, bounds)
    assert (lower[0].judge_conclusion, lower[0].conclusion, lower[0].warnings) == ("FAILED", "FAILED", ())
    worse = [replace(o, value=1 - o.value) for o in labels if o.value is not None]
    (turned,) = corrected_contrasts([finding(verdict="INCONCLUSIVE", margin=0.0)], judged, worse, bounds)
    assert "disagree in sign" in turned.warnings[0]
    assert turned.warnings[1].startswith("by the judge's grades these runs are CONFIRMED")


def test_agreement_is_over_labelled_completions_in_the_values_that_people_gave():
    judged = [outcome(c, i, 0.9 if (i + (c == "new")) % 2 else 0.2, 1) for c in ("new", "old") for i in range(10)]
    labels = [replace(o, value=float(round(o.value or 0))) for o in judged if o.item < "i006"]
    bounds = {("exam", "correct"): (0.0, 1.0)}
    (one,) = corrected_contrasts([finding()], judged, labels, bounds)
    assert one.kappa is not None
    assert one.kappa.kappa == pytest.approx(1)
    assert (one.kappa.n, one.n_completions, one.weighted_kappa) == (12, 12, None)
    graded = [replace(o, value=0.5) if o.item == "i000" else o for o in labels]
    (three,) = corrected_contrasts([finding()], judged, graded, bounds)
    assert three.weighted_kappa is not None
    assert three.kappa is not None
    assert three.kappa.kappa < three.weighted_kappa.kappa < 1
    (alike,) = corrected_contrasts([finding()], [replace(o, value=1.0) for o in judged],
                                   [replace(o, value=1.0) for o in labels], bounds)  # fmt: skip
    assert (alike.kappa, alike.weighted_kappa) == (None, None)


def test_turns_of_a_conversation_count_as_one():
    rng = np.random.default_rng(0)
    judged, labels = [], []
    for k in range(20):
        shift = float(rng.normal(0, 0.2))
        for turn in (1, 2):
            for condition, value in (("new", float(np.clip(0.5 + shift, 0, 1))), ("old", 0.4)):
                one = Outcome(condition, 1, "exam", f"d{k:02d}/{turn}", 0, "correct", value, group=f"d{k:02d}")
                judged.append(one)
                if k < 8:
                    labels.append(replace(one, group=None))
    found = corrected_contrast(judged, labels, "new", "old", "exam")
    assert (found.n_labelled, found.n_judged) == (8, 12)
    single = [o for o in judged if o.item.endswith("1")], [o for o in labels if o.item.endswith("1")]
    assert found.ci == pytest.approx(corrected_contrast(*single, "new", "old", "exam").ci)


def test_where_people_labelled_everything_the_judge_is_not_needed():
    judged, labels = drawn(20, 20, 0.3, 4)
    found = corrected_contrast(judged, labels, "new", "old", "exam")
    assert (found.weight, found.n_judged) == (0.0, 0)
    assert found.estimate == pytest.approx(
        np.mean([o.value for o in labels if o.condition == "new"])  # type: ignore[arg-type]
        - np.mean([o.value for o in labels if o.condition == "old"])  # type: ignore[arg-type]
    )


def test_labels_that_cannot_be_right_are_named():
    judged, labels = drawn(20, 5, 0.0, 1)
    bounds = {("exam", "correct"): (0.0, 1.0)}
    for wrong, told in [
        (Outcome("nwe", 1, "exam", "i001", 0, "correct", 0.5), r"no condition 'nwe' \(did you mean 'new'\?\)"),
        (Outcome("new", 1, "exam", "i0001", 0, "correct", 0.5), r"no item 'i0001' \(did you mean"),
        (
            outcome("new", 1, 0.5, 1),
            r"of new's completion of item 'i001' \(seed 1, sample 0\): it is there twice",
        ),
        (outcome("new", 7, 7.0, 1), r"7 is outside 0\.\.1; expected the units of 'correct'"),
    ]:
        with pytest.raises(UserError, match=told):
            corrected_contrasts([finding()], judged, [*labels, wrong], bounds)
    with pytest.raises(UserError, match="correct nothing: no comparison is on it"):
        corrected_contrasts([finding(minus_suite="other")], judged, labels, bounds)
    with pytest.raises(UserError, match=r"'help' was not judged there; expected one of \['correct'\]"):
        corrected_contrasts(
            [finding()], judged, [replace(o, metric="help") for o in labels], {("exam", "help"): (0, 1)}
        )
    scores = [[replace(o, metric="score", value=1 + 9 * (o.value or 0)) for o in rows] for rows in (judged, labels)]
    (one,) = corrected_contrasts([finding(metric="score")], *scores, {("exam", "score"): (1.0, 10.0)})
    assert one.corrected is not None
    assert one.corrected.estimate == pytest.approx(
        9 * corrected_contrast(judged, labels, "new", "old", "exam").estimate
    )


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (lambda o: o.condition == "new", "0 items have labels in both conditions; at least 3"),
        (lambda o: o.item in ("i000", "i001"), "2 items have labels in both conditions; at least 3"),
    ],
)
def test_labels_that_cannot_correct_one_contrast_harm_no_other(kept, told):
    judged, labels = drawn(20, 5, 0.0, 1)
    few = [o for o in labels if kept(o)]
    bounds = {("exam", "correct"): (0.0, 1.0)}
    with pytest.raises(UserError, match=f"correct nothing: not corrected by people's labels: .*{told}"):
        corrected_contrasts([finding()], judged, few, bounds)
    (one,) = corrected_contrasts([finding()], judged, few, bounds, must=False)
    assert (one.corrected, one.conclusion) == (None, None)
    assert told in one.warnings[0]
    assert one.judge == pytest.approx(corrected_contrasts([finding()], judged, labels, bounds)[0].judge)


def test_a_label_of_what_the_judge_did_not_grade_is_told():
    judged, labels = drawn(20, 5, 0.0, 1)
    (one,) = corrected_contrasts(
        [finding()], judged, [*labels, outcome("new", 1, 0.5, 9)], {("exam", "correct"): (0.0, 1.0)}, must=False
    )
    assert "item 'i001': the judge gave no grade to new's completion (9, 0)" in one.warnings[0]
