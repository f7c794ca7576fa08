"""Power before spending: numbers only where the noise is known, and a word where it is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetrial.analyze.contrast import AnalysisConfig
from finetrial.analyze.power import Design, Variances, mde, pilot
from finetrial.analyze.table import OutcomeTable
from finetrial.campaign.design import detectable
from finetrial.campaign.folder import write_outcomes
from finetrial.campaign.plan import Suite
from finetrial.campaign.spec import Spec, resolve
from finetrial.records import Outcome

SUITES = (Suite("gold", "", ("x",), 40, "h" * 64), Suite("random", "", ("x",), 30, "h" * 64))
SD = {"seed_sd": 0.02, "recipe_item_sd": 0.03, "seed_item_sd": 0.05}


def spec(seeds: int = 5, **tables: Any) -> Spec:
    conditions = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    contrasts = [
        {"candidate": "a", "baseline": "b", "suite": "gold"},
        {"candidate": "c", "baseline": "b", "suite": "gold"},
        {"candidate": "a", "baseline": "base", "suite": "random", "family": "alone"},
        {"candidate": "a", "baseline": "b", "suite": "gold", "minus_suite": "random", "family": "alone"},
    ]
    campaign = {"name": "c", "seeds": list(range(seeds)), "conditions": conditions}
    return resolve({"campaign": campaign, "contrasts": contrasts, **tables})


def test_without_components_only_the_attainable_p_is_given(tmp_path: Path) -> None:
    designs = detectable(spec(), SUITES, tmp_path)
    assert [len(design.contrasts) for design in designs] == [2, 1, 1]
    assert all(design.effect is None and design.resolution is None and not design.warnings for design in designs)
    assert designs[0].attainable_p == 2 / 2**5
    assert "no detectable effect can be given: no earlier launch" in designs[0].sentence


def test_declared_components_give_the_planners_numbers(tmp_path: Path) -> None:
    analysis = {"variance": SD, "margin": 0.01, "alpha": 0.05}
    paired, frozen, twice = detectable(spec(analysis=analysis), SUITES, tmp_path)
    v = Variances(0.02**2, 0.03**2, 0.05**2)
    expected = mde(Design(5, 40, paired=True), v, alpha=0.05, margin=0.01, contrasts=2)
    assert paired.effect == pytest.approx(expected)
    assert paired.level == 0.025
    assert frozen.effect == pytest.approx(mde(Design(5, 30, frozen=True), v, margin=0.01, contrasts=2))
    assert twice.effect is None
    assert "both suites together" in twice.sentence
    assert "[analysis.variance]" in paired.sentence


def test_what_cannot_be_decided_is_warned_of(tmp_path: Path) -> None:
    hard = {"variance": SD, "margin": 0.001, "effect": 0.005}
    design = detectable(spec(analysis=hard), SUITES, tmp_path)[0]
    assert "the improvement of 0.005 that is hoped for would not be confirmed" in design.warnings
    assert any(warning.startswith("the margin cannot be decided") for warning in design.warnings)
    easy = {"variance": {"seed_sd": 1e-5}, "margin": 0.001, "effect": 0.005}
    assert detectable(spec(analysis=easy), SUITES, tmp_path)[0].warnings == ()


def test_too_few_seeds_can_confirm_nothing(tmp_path: Path) -> None:
    two = detectable(spec(2, analysis={"variance": SD}), SUITES, tmp_path)[0]
    assert two.as_dict()["effect"] is None
    assert "fewer than 3 seeds carry no verdict" in two.sentence
    one = detectable(spec(1, analysis={"variance": SD}), SUITES, tmp_path)[0]
    assert one.effect is None
    assert "measure no spread" in one.sentence


def test_looks_plan_with_the_level_of_the_last(tmp_path: Path) -> None:
    plain = detectable(spec(analysis={"variance": SD}), SUITES, tmp_path)[0]
    looked = detectable(spec(analysis={"variance": SD}, looks={"seeds": [3, 5]}), SUITES, tmp_path)[0]
    assert plain.effect is not None
    assert looked.effect is not None
    assert looked.level < plain.level
    assert looked.effect > plain.effect


def test_an_earlier_launch_tells_more_than_the_declaration(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        Outcome(c, s, "gold", f"q{i}", 0, "nll", float(2 + shift + 0.1 * rng.standard_normal()))
        for c in "ab"
        for s in range(3)
        for shift in [0.05 * rng.standard_normal()]
        for i in range(10)
    ]
    (tmp_path / "c").mkdir()
    write_outcomes(tmp_path / "c" / "outcomes.parquet", rows)
    wanted = spec(analysis={"variance": SD})
    designs = {design.contrasts[0]: design for design in detectable(wanted, SUITES, tmp_path)}
    told = designs["a vs b on gold"]
    found = pilot(OutcomeTable.read(rows), wanted.contrasts[0], AnalysisConfig(), "nll")
    assert told.effect == pytest.approx(mde(Design(5, 40, paired=True), found.upper, contrasts=2))
    assert "3 + 3 runs of an earlier launch (upper 80% bounds)" in told.sentence
    # c was not run then: the declaration stands in
    assert "[analysis.variance]" in designs["c vs b on gold"].sentence
