"""Sweeps: which conditions make one, what is told of it, and how it is drawn."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaign_folder import Recipe, contrast, write_campaign
from hypothesis import given
from hypothesis import strategies as st
from terms_campaign_folder import MODEL, write_terms_campaign

from finetrial.report import sweeps
from finetrial.report.build import gather, write
from finetrial.report.facts import Report

GRID = {
    "a4": {"lora_alpha": 4.0},
    "a16": {"lora_alpha": 16.0},
    "a64": {"lora_alpha": 64.0},
    "r2": {"lora_rank": 2, "lora_alpha": 16.0},
    "r32": {"lora_rank": 32, "lora_alpha": 16.0},
    "r2-same-scale": {"lora_rank": 2},
    "r32-same-scale": {"lora_rank": 32},
}
"""Alpha at rank 8, rank at alpha 16, rank at scale 2 (alpha unset: twice the rank)."""


def resolved(name: str, model: dict[str, Any]) -> dict[str, Any]:
    training = {"learning_rate": 2e-4, "lora_plus_ratio": 1.0}
    return {"name": name, "question": name, "selection": {"n": 4}, "model": MODEL | model, "training": training}


def swept(folder: Path, grid: dict[str, dict[str, Any]]) -> Path:
    """A campaign folder whose conditions differ in their adapters alone; each gains more than the one before."""
    first, second, *_ = grid
    recipes = [Recipe(name, 40, 0.2 + 0.05 * k) for k, name in enumerate(grid)]
    write_campaign(folder, recipes, (1, 2), ("gold",), 8, [contrast(second, first, "gold", "?")])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["spec"]["conditions"] = [resolved(name, model) for name, model in grid.items()]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def termed(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return gather(write_terms_campaign(tmp_path_factory.mktemp("terms")))


def test_sweeps_take_conditions_that_differ_in_strength_alone(termed: Report) -> None:
    found = {(s.knob.table, s.knob.key): s for s in sweeps.sweeps(termed)}
    assert set(found) == {("set_diversity", "weight"), ("anchor", "coef")}
    assert found["set_diversity", "weight"].strengths == (0.0, 0.5, 2.0)
    assert found["set_diversity", "weight"].conditions == ("plain", "sets-0.5", "sets-2")
    assert found["anchor", "coef"].conditions == ("plain", "anchored-weakly", "anchored")
    falling = next(t for t in found["set_diversity", "weight"].trends if t.suite == "gold")
    assert falling.words == "falls at every step"


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_trend_is_monotone_only_if_every_step_goes_one_way(means: list[float]) -> None:
    trend = sweeps.Trend("s", "m", tuple(means), (), None)
    mirrored = replace(trend, means=tuple(-mean for mean in means))
    opposite = {"rises at every step": "falls at every step", "falls at every step": "rises at every step"}
    assert mirrored.words == opposite.get(trend.words, "not monotone")
    assert (trend.words == "rises at every step") == (means == sorted(set(means)))


def test_alpha_and_rank_are_swept_with_the_effective_scale_beside_them(tmp_path: Path) -> None:
    folder = swept(tmp_path, GRID)
    report = gather(folder)
    alpha, rank, diagonal = sweeps.sweeps(report)
    assert (alpha.title, alpha.strengths) == ("Alpha at rank 8", (4.0, 16.0, 64.0))
    assert alpha.conditions == ("a4", "a16", "a64")
    assert alpha.labels == ("4\n(0.5)", "16\n(2)", "64\n(8)")
    assert (rank.title, rank.conditions) == ("Rank at alpha 16", ("r2", "a16", "r32"))
    assert rank.labels == ("2\n(8)", "8\n(2)", "32\n(0.5)")
    assert (diagonal.title, diagonal.conditions) == (
        "Rank at effective scale 2",
        ("r2-same-scale", "a16", "r32-same-scale"),
    )
    assert diagonal.labels == ("2\n(4)", "8\n(16)", "32\n(64)")
    assert [sweep.knob.axis for sweep in (alpha, rank, diagonal)] == [
        "alpha (effective scale)",
        "rank (effective scale)",
        "rank (alpha)",
    ]
    html = write(report, folder / "report").html.read_text()
    recipes = html[html.index('<section id="recipes"') : html.index('<section id="forest"')]
    assert html.count('href="#recipes"') == 1
    for name in ("sweep-model-lora-alpha", "sweep-model-lora-rank", "sweep-model-lora-rank-2"):
        assert html.count(f'<figure class="chart" id="{name}">') == recipes.count(f'id="{name}"') == 1, name
        svg = (folder / "report" / "charts" / f"{name}.svg").read_text()
        assert float(re.search(r'width="([\d.]+)"', svg)[1]) <= 940, name  # pyright: ignore[reportOptionalSubscript]
    svg = (folder / "report" / "charts" / "sweep-model-lora-alpha.svg").read_text()
    assert {"64", "(8)"} <= {*re.findall(r">([^<>]+)</t", svg)}  # two lines of one label
    told = json.loads((folder / "report" / "report.json").read_text())["sweeps"]
    assert [sweep["setting"] for sweep in told] == ["model.lora_alpha", "model.lora_rank", "model.lora_rank"]
    assert told[0]["outcomes"][0]["trend"] == "falls at every step"


def test_conditions_that_differ_in_more_or_in_few_strengths_are_no_sweep(tmp_path: Path) -> None:
    """Another start, another target or another rate is another recipe; two strengths are no sweep."""
    report = gather(swept(tmp_path, {name: GRID[name] for name in ("a4", "a16", "a64")}))
    conditions = report.manifest["spec"]["conditions"]
    assert len(sweeps.sweeps(report)) == 1
    for change in ({"model": conditions[1]["model"] | {"init": "pissa"}}, {"training": {"learning_rate": 1e-3}}):
        changed = [conditions[0], conditions[1] | change, conditions[2]]
        spec = {**report.manifest["spec"], "conditions": changed}
        assert sweeps.sweeps(replace(report, manifest={**report.manifest, "spec": spec})) == []


def test_scales_of_rslora_are_compared_as_they_are_meant(tmp_path: Path) -> None:
    """alpha / sqrt(rank) of equal scales differs in its last bits: they are one sweep nonetheless."""
    grid = {f"r{r}": {"lora_rank": r, "lora_alpha": 2 * r**0.5, "rslora": True} for r in (3, 5, 7)}
    (sweep,) = sweeps.sweeps(gather(swept(tmp_path, grid)))
    assert (sweep.title, sweep.strengths) == ("Rank at effective scale 2, rsLoRA", (3.0, 5.0, 7.0))
