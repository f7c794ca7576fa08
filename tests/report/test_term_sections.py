"""Auxiliary terms, anchors, sets, mixtures, guards and recipes in the report."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terms_campaign_folder import RECIPES, SEEDS, resolved, write_terms_campaign

from finetrial.report import markdown, recipes, term_charts, term_tables, terms
from finetrial.report.build import ReportPaths, gather, write
from finetrial.report.facts import Report, RunFacts
from finetrial.report.sampled_sets import by_prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_terms_campaign(tmp_path_factory.mktemp("terms"))


@pytest.fixture(scope="module")
def termed(folder: Path) -> Report:
    return gather(folder)


@pytest.fixture(scope="module")
def term_paths(folder: Path, termed: Report) -> ReportPaths:
    return write(termed, folder / "report")


def with_conditions(report: Report, conditions: list[dict[str, Any]]) -> Report:
    spec = {**report.manifest["spec"], "conditions": conditions}
    return replace(report, manifest={**report.manifest, "spec": spec})


def test_campaigns_without_such_things_have_nothing_of_it(report: Report, paths: ReportPaths) -> None:
    html = paths.html.read_text()
    assert 'id="terms"' not in html
    assert 'href="#terms"' not in html
    assert json.loads(paths.json.read_text())["terms"] is None
    assert terms.warnings(report) == terms.doubts(report) == term_charts.charts(report) == []
    assert recipes.recipes(report)[1] == []


def test_every_chart_is_on_the_page_and_fits(term_paths: ReportPaths) -> None:
    html = term_paths.html.read_text()
    assert 'href="#terms"' in html
    names = ["gradient-shares", "anchor-curves", "set-curves", "sweep-set-diversity-weight", "sweep-anchor-coef"]
    for name in [*names, "curricula", "guards-watched-nll"]:
        assert html.count(f'<figure class="chart" id="{name}">') == 1, name
        svg = (term_paths.html.parent / "charts" / f"{name}.svg").read_text()
        assert float(re.search(r'width="([\d.]+)"', svg)[1]) <= 940, name  # pyright: ignore[reportOptionalSubscript]
        assert "NaN" not in svg
    assert html.count("<script") == 0


def test_share_is_the_median_over_updates_of_adapters_that_had_moved(termed: Report) -> None:
    pull = next(pull for pull in terms.pulls(termed) if pull.condition == "anchored")
    assert pull.seeds == 2
    assert sorted(pull.shares) == [0.02, 0.02, 0.05, 0.05, 0.2, 0.2]
    assert pull.share == 0.05
    assert pull.target is None
    asked = next(pull for pull in terms.pulls(termed) if pull.condition == "sets-share")
    assert asked.target == 0.5


def test_weak_and_dead_terms_are_told_once_for_all_seeds(termed: Report) -> None:
    told = terms.warnings(termed)
    weak = "anchored-weakly, seeds 1, 2: the term 'anchor' never has 1% of the gradient: it hardly teaches."
    dead = "dead, seeds 1, 2: the gradient of the term 'anchor' is exactly 0 (steps 2, 3): it teaches nothing."
    assert weak in told
    assert dead in told
    assert any(line.startswith("sets-0.5, seed 2: collapse") for line in told)
    assert "unguarded: the guard on watched never measured 2 runs; nothing watched it." in told
    assert len(told) == 4
    flags = {row[0]: row[-1] for row in term_tables.gradients(termed)[1]}
    assert flags["anchored-weakly"] == "hardly acts"
    assert flags["dead"] == "no gradient at all: ended"
    assert flags["anchored"] == ""


def test_a_strong_term_is_told_without_its_figure(termed: Report) -> None:
    told = "the term 'anchor' has 95.1% of the gradient, above 90%: little else is learnt"

    def strong(run: Any) -> Any:
        term = run.record["terms"].get("anchor")
        return (
            run if term is None else replace(run, record={**run.record, "terms": {"anchor": {**term, "warning": told}}})
        )

    changed = replace(termed, runs=tuple(map(strong, termed.runs)))
    pull = next(pull for pull in terms.pulls(changed) if pull.condition == "anchored")
    assert pull.warnings == ("seeds 1, 2: the term 'anchor' has more than 90% of the gradient: little else is learnt",)


def test_warnings_reach_page_and_markdown(termed: Report, term_paths: ReportPaths) -> None:
    html, text = term_paths.html.read_text(), markdown.render(termed)
    assert "4 warnings about what acted beside the main loss" in html
    for warning in terms.warnings(termed):
        assert warning.split(":")[0] in text
    assert text.count("**Note.**") >= 4


def test_anchor_in_training_stands_beside_held_out_divergence(termed: Report) -> None:
    facts = {one.condition: one for one in terms.anchors(termed)}
    assert set(facts) == set(RECIPES)
    assert facts["plain"].kind is None
    held = facts["anchored"]
    assert held.kind == "ref_student"
    assert (held.peak, held.tokens, held.capped) == (0.1, 100, 0.25)
    last = 0.01 * (8 + 9 + 10) / 3
    assert held.kl_last == pytest.approx((last + 2 * last) / 2)
    cell = termed.cells[0]
    near = replace(termed, cells=(*termed.cells, replace(cell, condition="anchored", metric="kl_to_base")))
    heads, rows = term_tables.anchored(near)
    assert f"{cell.suite}: KL(base ‖ adapter)" in heads
    assert next(row for row in rows if row[0] == "plain")[-1] == "not recorded"


def test_sets_are_counted_over_seeds(termed: Report) -> None:
    facts = {one.condition: one for one in terms.sets(termed)}
    assert set(facts) == {"sets-0.5", "sets-2", "sets-share"}
    one = facts["sets-2"]
    assert (one.sets, one.equal, one.missing, one.tokens, one.weight) == (20, 4, 2, 1000, 2.0)
    assert one.last["diversity"] == pytest.approx(0.41)
    assert facts["sets-share"].weight is None
    assert facts["sets-share"].weight_last == (0.4, 0.4)


def test_a_saturated_score_is_not_called_a_collapse(termed: Report) -> None:
    def saturated(run: RunFacts) -> RunFacts:
        if run.condition != "sets-2" or run.realised is None:
            return run
        drawn = {**run.realised["set_diversity"], "warnings": ["saturated: the diversity of all 9 sets is 1"]}
        return replace(run, realised={**run.realised, "set_diversity": drawn})

    _, rows = term_tables.drawn(replace(termed, runs=tuple(map(saturated, termed.runs))))
    assert {row[0]: row[-1] for row in rows} == {"sets-0.5": "collapsed", "sets-2": "saturated", "sets-share": ""}


def test_sampled_sets_stand_side_by_side_for_a_shared_prompt(termed: Report, term_paths: ReportPaths) -> None:
    grouped = by_prompt(termed.sets)
    assert list(grouped) == ["Say hello", "Say only sets-0.5"]
    assert [one.condition for one in grouped["Say hello"]] == ["sets-0.5", "sets-2", "sets-share"]
    assert {(one.seed, one.step) for one in termed.sets} == {(SEEDS[0], 9)}
    assert grouped["Say hello"][0].completions == (("<b>hello 0", 0.0), ("<b>hello 1", 0.5), ("<b>hello 2", 1.0))
    html = term_paths.html.read_text()
    assert "&lt;b&gt;hello 0" in html
    assert "<b>hello" not in html


def test_mixture_shares_are_requested_and_realised(termed: Report) -> None:
    found = {part.part: part for part in terms.mixtures(termed)}
    assert list(found) == ["selected", "extra", "replay"]
    assert found["replay"].asked == (0.4, 0.4)
    assert found["replay"].given == pytest.approx((0.4, 0.39))
    row = next(row for row in term_tables.mixed(termed)[1] if row[1] == "replay")
    assert row[3:5] == ["40 %", "39 to 40 %"]


def test_a_mixture_that_stays_has_no_curve(termed: Report) -> None:
    flat = resolved("mixed")
    flat["mixture"] = {"unit": "tokens", "parts": [dict(flat["mixture"]["parts"][1])]}
    assert term_charts.curricula(termed) is not None
    assert term_charts.curricula(with_conditions(termed, [flat])) is None


def test_guards_tell_base_floor_best_and_stop(termed: Report) -> None:
    guard = next(guard for guard in terms.guards(termed) if guard.ran)
    assert guard.floor == pytest.approx(0.41)
    assert (guard.best, guard.last, guard.stopped_at, guard.selected_step) == ((2, 0.3), (6, 0.45), 6, 2)
    chart = term_charts.guard_curves(termed)
    assert len(chart) == 1
    assert "unguarded: never measured" in chart[0].svg
    assert ">floor<" in chart[0].svg
    row = next(row for row in term_tables.guarded(termed)[1] if row[0] == "unguarded")
    assert row[4:6] == ["never measured", "never measured"]


def test_recipes_tell_variants_and_what_sets_conditions_apart(termed: Report) -> None:
    rows = {row[0]: row[1:] for row in recipes.recipes(termed)[1]}
    assert rows["plain"] == ["LoRA", "8", "16", "2", "—"]
    assert rows["guarded"][:4] == ["rsLoRA", "16", "32", "8"]
    assert rows["unguarded"][0] == "LoRA+ (B at 8 × the rate of A)"
    assert rows["sets-2"][4] == "set diversity (self_bleu), λ 2"
    assert rows["sets-share"][4] == "set diversity (self_bleu) at 50% of the gradient"
    assert rows["anchored"][4] == "anchor KL(base ‖ adapter), coefficient 0.1"
    assert rows["mixed"][4] == "mixture of tokens: replay 60% → 20%, extra 10%"
    assert "training.learning_rate 0.001" in rows["dead"][4]


def test_machines_get_the_same(term_paths: ReportPaths, termed: Report) -> None:
    found = json.loads(term_paths.json.read_text())["terms"]
    assert set(found) == {"gradients", "anchors", "sets", "mixtures", "guards", "warnings"}
    assert found["warnings"] == terms.warnings(termed)
    assert found["guards"][0]["best"] == [2, 0.3]
