"""The simulation of bench/validity.py in small: verdicts must hold where the truth is known."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from finetrial import seeds
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.judge import judge
from finetrial.analyze.table import OutcomeTable
from finetrial.records import Outcome

REPLICATES = 1000


@pytest.fixture(scope="module")
def validity() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "validity.py"
    spec = importlib.util.spec_from_file_location("validity", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["validity"] = module
    spec.loader.exec_module(module)
    return module


DESIGNS = {
    "three seeds": {"seeds": 3, "items": 50},
    "heavy tails": {"seeds": 5, "items": 50, "seed_effects": "t3"},
    "skewed, other seeds": {"seeds": 8, "items": 50, "seed_effects": "skewed", "shared": False},
    "frozen base, skewed": {"seeds": 5, "baseline_seeds": 0, "items": 50, "seed_effects": "skewed", "seed_sd": 0.05},
    "binary, correlated": {"seeds": 8, "items": 50, "metric": "binary", "correlation": 0.6},
    "unequal": {"seeds": 3, "baseline_seeds": 8, "items": 50, "shared": False, "seed_effects": "skewed"},
    "lost run": {"seeds": 8, "lost": 1, "items": 50, "correlation": 0.6},
    "missing cells": {"seeds": 5, "missing": 0.2, "items": 50},
    "twelve contrasts": {"seeds": 5, "items": 20, "contrasts": 12},
}


@pytest.mark.parametrize("name", DESIGNS)
def test_false_confirmations_stay_at_the_nominal_rate(validity: ModuleType, name: str) -> None:
    result = validity.run(validity.Cell(**DESIGNS[name]), REPLICATES)
    assert result.confirmed <= validity.ALPHA / 2 + 2 * result.error
    assert result.coverage >= 0.93 - 2 * np.sqrt(0.95 * 0.05 / REPLICATES) or result.refused > 0.01


def test_pooling_completions_finds_effects_that_are_not_there(validity: ModuleType) -> None:
    result = validity.run(validity.Cell(seeds=8, items=200, samples=16, seed_effects="normal"), 400)
    assert result.other["pooled completions"] > 0.1
    assert result.other["prompts only"] > 0.08
    assert result.confirmed < 0.05


def test_real_effects_are_found(validity: ModuleType) -> None:
    result = validity.run(validity.Cell(seeds=8, items=200, effect=0.06), 200)
    assert result.confirmed > 0.9


def test_without_the_guard_a_collapsing_recipe_would_be_confirmed(validity: ModuleType) -> None:
    cell = validity.Cell(seeds=5, baseline_seeds=0, items=200, samples=16, seed_effects="skewed", seed_sd=0.1)
    result = validity.run(cell, REPLICATES)
    assert result.confirmed + result.refused > 0.06
    assert result.confirmed <= 0.025 + 2 * result.error


def test_the_simulation_judges_as_judge_does(validity: ModuleType) -> None:
    cell = validity.Cell(seeds=4, items=12, contrasts=3, effect=0.05, missing=0.05)
    for k in range(6):
        y, _ = validity.campaigns(cell, 1, seeds.stream(k, "test as judge"))
        low, high, _, e = validity.ours(y, None, cell)
        rows = [
            Outcome(f"c{c}", s, "test", f"i{i:02d}", 0, "score", None if np.isnan(v) else float(v))
            for (c, s, i), v in np.ndenumerate(y[0])
        ]
        contrasts = [Contrast(candidate=f"c{c}", baseline="c3", suite="test") for c in range(3)]
        findings = judge(OutcomeTable.read(rows), contrasts, AnalysisConfig(), primary_metric="score")
        for c, f in enumerate(findings):
            assert f.estimate == pytest.approx(float(e.estimate[0, c]))
            assert f.ci_adjusted == pytest.approx((float(low[0, c]), float(high[0, c])))


def test_the_table_names_every_design_once(validity: ModuleType) -> None:
    table = validity.cells()
    assert {cell.seeds for cell in table.values()} == {3, 5, 8, 16}
    assert {cell.metric for cell in table.values()} == {"continuous", "bounded", "binary"}
    assert {cell.contrasts for cell in table.values()} == {1, 12}
    assert all(replace(cell, effect=1.0) != cell for cell in table.values())
