"""Verdicts end to end: each state, each refusal, each design."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from finetrial import seeds
from finetrial.analyze.contrast import AnalysisConfig, Contrast, Finding
from finetrial.analyze.judge import judge
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError
from finetrial.records import Outcome


def campaign(
    gains: dict[str, float],
    *,
    n_seeds: int = 5,
    items: int = 40,
    metric: str = "nll",
    suite: str = "test",
    seed_sd: float = 0.01,
    base: bool = True,
    stream: int = 0,
) -> list[Outcome]:
    """Conditions that differ from 2.0 by their gain; with `base` a frozen model at 2.0."""
    rng = seeds.stream(stream, "campaign", suite)
    item = rng.normal(size=items)
    rows = []
    for condition, gain in gains.items():
        for s in range(1, n_seeds + 1):
            own = rng.normal() * seed_sd
            for i in range(items):
                value = 2.0 + gain + own + item[i] + rng.normal() * 0.03
                rows.append(Outcome(condition, s, suite, f"i{i:03d}", 0, metric, value))
    if base:
        rows += [Outcome("base", None, suite, f"i{i:03d}", 0, metric, 2.0 + item[i]) for i in range(items)]
    return rows


def only(rows: list[Outcome], contrast: Contrast, config: AnalysisConfig | None = None, **more: object) -> Finding:
    (finding,) = judge(OutcomeTable.read(rows), [contrast], config or AnalysisConfig(), primary_metric="nll", **more)  # pyright: ignore[reportArgumentType]
    return finding


GAINS = {"good": -0.2, "same": 0.0, "bad": 0.2}
ROWS = campaign(GAINS)


def against_same(candidate: str, **changes: object) -> Contrast:
    return Contrast(candidate=candidate, baseline="same", suite="test", **changes)  # pyright: ignore[reportArgumentType]


def test_confirmed_is_oriented_and_in_raw_units() -> None:
    f = only(ROWS, against_same("good", margin=0.1))
    assert f.verdict == "CONFIRMED"
    assert f.estimate == pytest.approx(-0.2, abs=0.03)
    assert f.ci is not None
    assert f.ci[0] < -0.2 < f.ci[1] < -0.1
    assert f.better == "lower"
    assert f.n_seeds == (5, 5)
    assert "good improves nll by 0." in f.reason
    assert "all of it lies above the margin 0.1" in f.reason
    assert "5 against 5 runs, paired by seed, 40 items" in f.reason
    assert f.unit == "training run (seed), crossed with items"
    assert f.correction == "Holm"


def test_failed_harmful_and_equivalent() -> None:
    harmful = only(ROWS, against_same("bad", margin=0.1))
    assert (harmful.verdict, harmful.subtype) == ("FAILED", "HARMFUL")
    equivalent = only(ROWS, Contrast(candidate="same", baseline="base", suite="test", margin=0.1))
    assert (equivalent.verdict, equivalent.subtype) == ("FAILED", "EQUIVALENT")
    assert "within the margin on both sides" in equivalent.reason


def test_failed_between_zero_and_the_margin_has_no_subtype() -> None:
    f = only(ROWS, Contrast(candidate="good", baseline="same", suite="test", margin=0.15, better="higher"))
    assert f.verdict == "FAILED"
    g = only(campaign({"good": -0.2, "same": 0.0}), against_same("good", margin=0.5))
    assert (g.verdict, g.subtype) == ("FAILED", "EQUIVALENT")
    h = only(campaign({"good": -0.4, "same": 0.0}), against_same("good", margin=0.45))
    assert h.verdict == "FAILED"
    assert h.subtype == "EQUIVALENT"


def test_inconclusive_tells_how_many_seeds_would_decide() -> None:
    rows = campaign({"good": -0.03, "same": 0.0}, n_seeds=4, seed_sd=0.04)
    f = only(rows, against_same("good"))
    assert f.verdict == "INCONCLUSIVE"
    assert f.seeds_needed is not None
    assert f.seeds_needed > 4
    assert f"about {f.seeds_needed} runs per condition would decide" in f.reason


def test_p_value_is_the_paired_t_when_seeds_dominate() -> None:
    rows = campaign({"good": -0.03, "same": 0.0}, seed_sd=0.5, items=400)
    f = only(rows, against_same("good"))
    table = OutcomeTable.read(rows)
    a, b = (table.dense(c, "test", "nll").values_SI.mean(1) for c in ("good", "same"))
    assert f.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=0.01)
    assert f.df == pytest.approx(4, abs=0.05)
    assert f.hedges_g is not None
    assert f.variance["seed"] == pytest.approx((a.var(ddof=1) + b.var(ddof=1)) / 2, rel=0.01)


def test_frozen_base_is_one_sample_over_seeds() -> None:
    f = only(ROWS, Contrast(candidate="good", baseline="base", suite="test"))
    assert f.verdict == "CONFIRMED"
    assert f.n_seeds == (5, 0)
    assert f.test.startswith("one-sample")
    assert f.attainable_p == pytest.approx(2 / 2**5)


def test_frozen_base_is_refused_where_a_skewed_recipe_would_look_alike() -> None:
    rows = [
        Outcome("a", s, "test", f"i{i}", 0, "score", gain + 1e-3 * ((7 * i + 3 * s) % 5))
        for s, gain in enumerate((0.9, 1.3, 0.7, 1.6), start=1)
        for i in range(20)
    ]
    rows += [Outcome("base", None, "test", f"i{i}", 0, "score", 0.2) for i in range(20)]
    f = only(rows, Contrast(candidate="a", baseline="base", suite="test", metric="score"))
    assert f.ci_adjusted is not None
    assert f.ci_adjusted[0] > 0
    assert f.verdict == "INCONCLUSIVE"
    assert "holds only if runs scatter evenly" in f.reason


def test_one_run_is_a_checkpoint_and_never_confirms() -> None:
    f = only(campaign({"good": -5.0}, n_seeds=1), Contrast(candidate="good", baseline="base", suite="test"))
    assert f.verdict == "INCONCLUSIVE"
    assert f.ci is None
    assert f.p_value is None
    assert f.estimate == pytest.approx(-5.0, abs=0.1)
    assert "about this checkpoint, not about the recipe" in f.reason


def test_two_runs_are_refused() -> None:
    rows = campaign({"good": -5.0, "same": 0.0}, n_seeds=2, seed_sd=1e-4)
    f = only(rows, against_same("good"))
    assert f.verdict == "INCONCLUSIVE"
    assert "at least 3 are required" in f.reason


def test_nothing_measured_is_not_made_up() -> None:
    rows = [replace(r, value=None) if r.condition == "good" else r for r in ROWS]
    f = only(rows, against_same("good"))
    assert (f.verdict, f.estimate, f.ci, f.p_value) == ("INCONCLUSIVE", None, None, None)
    assert "no item of test has a value of nll in both good and same" in f.reason


def test_values_that_never_vary_are_not_judged() -> None:
    rows = [Outcome(c, s, "test", f"i{i}", 0, "correct", 1.0) for c in "ab" for s in (1, 2, 3) for i in range(5)]
    f = only(rows, Contrast(candidate="a", baseline="b", suite="test", metric="correct"))
    assert f.verdict == "INCONCLUSIVE"
    assert "never varies" in f.reason
    rounded = [
        Outcome(c, s, "t", f"i{i}", 0, "score", i * 0.1 + g)
        for c, g in (("a", 5.3), ("b", 0.0))
        for s in range(5)
        for i in range(5)
    ]
    g = only(rounded, Contrast(candidate="a", baseline="b", suite="t", metric="score"))
    assert (g.verdict, g.ci) == ("INCONCLUSIVE", None)
    assert g.estimate == pytest.approx(5.3)


def test_integrity_and_other_suites_make_it_invalid() -> None:
    broken = only(ROWS, against_same("good"), integrity=["adapter of good seed 3 equals the base"])
    assert broken.verdict == "INVALID"
    assert broken.reason == "adapter of good seed 3 equals the base"
    rows = [replace(r, suite_hash="one" if r.condition == "good" else "two") for r in ROWS]
    other = only(rows, against_same("good"))
    assert (other.verdict, other.estimate) == ("INVALID", None)
    assert "not the same for good and same" in other.reason
    assert "hashes one and two" in other.reason


def test_difference_in_differences_subtracts_what_both_suites_share() -> None:
    rows = campaign({"good": -0.5, "same": 0.0}) + campaign({"good": -0.4, "same": 0.0}, suite="control")
    f = only(rows, against_same("good", minus_suite="control"))
    assert f.estimate == pytest.approx(-0.1, abs=0.03)
    assert f.n_items == 80
    assert f.contrast == "good vs same on test minus control"


def test_a_lost_run_is_told_and_the_rest_still_judged() -> None:
    rows = [r for r in ROWS if not (r.condition == "same" and r.seed == 5)]
    f = only(rows, against_same("good", margin=0.1))
    assert f.n_seeds == (5, 4)
    assert f.verdict == "CONFIRMED"
    assert any("share 4 seeds but not all" in w for w in f.warnings)


def test_pairing_can_be_switched_off() -> None:
    f = only(ROWS, against_same("good"), AnalysisConfig(pairing="none"))
    assert f.test.startswith("two-sample")
    assert f.attainable_p == pytest.approx(2 / 252)


def graded(failed: int) -> list[Outcome]:
    """Proportions .7 against .5 with `failed` unreadable answers of the candidate's 300."""
    rng = seeds.stream(3, "graded")
    rows = [
        Outcome(c, s, "test", f"i{i:03d}", 0, "correct", float(rng.random() < p))
        for c, p in (("a", 0.7), ("b", 0.5)) for s in range(1, 7) for i in range(100)
    ]  # fmt: skip
    lost = set(rng.permutation(600)[:failed].tolist())
    return [replace(r, value=None) if k in lost else r for k, r in enumerate(rows)]


def test_failed_measurements_are_bounded() -> None:
    contrast = Contrast(candidate="a", baseline="b", suite="test", metric="correct")
    assert only(graded(0), contrast).verdict == "CONFIRMED"
    assert only(graded(12), contrast).verdict == "CONFIRMED"
    many = only(graded(200), contrast)
    assert many.verdict == "INCONCLUSIVE"
    assert "failed measurements could move the improvement" in many.reason
    assert many.n_missing == 200


def test_pass_at_k_is_computed_from_correct() -> None:
    rng = seeds.stream(4, "passk")
    rows = [
        Outcome(c, s, "test", f"i{i}", k, "correct", float(rng.random() < p))
        for c, p in (("a", 0.6), ("b", 0.2)) for s in (1, 2, 3, 4) for i in range(30) for k in range(8)
    ]  # fmt: skip
    f = only(rows, Contrast(candidate="a", baseline="b", suite="test", metric="pass@2"))
    assert f.estimate == pytest.approx((1 - 0.4**2) - (1 - 0.8**2), abs=0.08)
    with pytest.raises(UserError, match="pass@16 needs at least 16 samples"):
        only(rows, Contrast(candidate="a", baseline="b", suite="test", metric="pass@16"))


def test_a_family_shares_its_error_rate_and_keeps_its_order() -> None:
    contrasts = [against_same("bad"), against_same("good"), against_same("good", family="alone", name="again")]
    bad, good, again = judge(OutcomeTable.read(ROWS), contrasts, AnalysisConfig(), primary_metric="nll")
    assert [bad.candidate, good.candidate] == ["bad", "good"]
    assert (good.family_size, again.family_size) == (2, 1)
    assert good.p_adjusted is not None
    assert good.p_value is not None
    assert good.p_adjusted >= good.p_value
    assert again.p_adjusted == pytest.approx(good.p_value)


@pytest.mark.parametrize("correction", ["holm", "dunnett", "max_t", "benjamini_hochberg", "none"])
def test_every_correction_agrees_with_its_interval(correction: str) -> None:
    rows = campaign({"good": -0.2, "fair": -0.02, "same": 0.0}, n_seeds=8)
    contrasts = [against_same("good"), against_same("fair")]
    config = AnalysisConfig(correction=correction)  # pyright: ignore[reportArgumentType]
    for f in judge(OutcomeTable.read(rows), contrasts, config, primary_metric="nll"):
        assert f.ci_adjusted is not None
        assert f.p_adjusted is not None
        assert (f.p_adjusted <= 0.05) == (f.ci_adjusted[1] < 0 or f.ci_adjusted[0] > 0)
        assert (f.verdict == "CONFIRMED") == (f.ci_adjusted[1] < 0)
    assert judge(OutcomeTable.read(rows), contrasts, config, primary_metric="nll")[0].verdict == "CONFIRMED"


def test_corrections_refuse_families_that_do_not_fit() -> None:
    contrasts = [against_same("good"), Contrast(candidate="good", baseline="bad", suite="test")]
    for correction in ("dunnett", "max_t"):
        config = AnalysisConfig(correction=correction)
        with pytest.raises(UserError, match="needs one shared baseline"):
            judge(OutcomeTable.read(ROWS), contrasts, config, primary_metric="nll")


def test_exploratory_tables_say_so() -> None:
    f = only(ROWS, against_same("good"), AnalysisConfig(correction="benjamini_hochberg"))
    assert "exploratory" in f.correction
    assert any("exploratory" in w for w in f.warnings)


def test_three_seeds_say_what_a_permutation_can_reach() -> None:
    f = only(campaign(GAINS, n_seeds=3), against_same("good"), AnalysisConfig(pairing="none"))
    assert f.attainable_p == pytest.approx(0.10)
    assert any("can never fall below p = 0.1" in w for w in f.warnings)


def test_max_t_asks_for_seeds_that_can_be_rearranged_often_enough() -> None:
    f = only(campaign(GAINS, n_seeds=4), against_same("good"), AnalysisConfig(correction="max_t"))
    assert (f.verdict, f.ci_adjusted, f.seeds_needed) == ("INCONCLUSIVE", None, 6)
    assert "no arrangement of 4 against 4 runs, paired by seed can reach the level 0.05" in f.reason


def test_bad_contrasts_are_refused() -> None:
    with pytest.raises(UserError, match=r"no condition 'goood' \(did you mean 'good'\?\)"):
        only(ROWS, against_same("goood"))
    with pytest.raises(UserError, match="both 'same'"):
        only(ROWS, against_same("same"))
    with pytest.raises(UserError, match="suite and minus_suite"):
        only(ROWS, against_same("good", minus_suite="test"))
    rows = [replace(r, metric="sparkle") for r in ROWS]
    with pytest.raises(UserError, match="whether higher or lower is better is not known"):
        only(rows, against_same("good", metric="sparkle"))
    assert only(rows, against_same("good", metric="sparkle", better="lower")).verdict == "CONFIRMED"


def test_one_item_speaks_of_itself_only() -> None:
    rows = [
        Outcome(c, s, "train", "all", 0, "reward", v + s * 0.01)
        for c, v in (("a", 1.0), ("b", 0.2))
        for s in range(1, 6)
    ]
    rows = [replace(r, value=(r.value or 0) + (0.005 if (r.seed or 0) % 2 and r.condition == "a" else 0)) for r in rows]
    f = only(rows, Contrast(candidate="a", baseline="b", suite="train", metric="reward"))
    assert f.verdict == "CONFIRMED"
    assert any("has one item" in w for w in f.warnings)
    assert np.isfinite(f.standard_error or np.nan)


def test_a_recipe_less_stable_than_its_baseline_is_told() -> None:
    rows = campaign({"wild": -0.2}, n_seeds=8, seed_sd=0.2, base=False) + campaign({"calm": 0.0}, n_seeds=8, stream=1)
    f = only(rows, Contrast(candidate="wild", baseline="calm", suite="test"))
    assert any("the runs of wild scatter more widely than those of calm" in w for w in f.warnings)
    alike = campaign({"good": -0.2, "same": 0.0}, n_seeds=8, stream=2)
    assert not any("scatter" in w for w in only(alike, against_same("good")).warnings)
