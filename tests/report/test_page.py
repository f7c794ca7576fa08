"""The page: offline, complete, accessible, honest about what is missing, safe with hostile names."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from campaign_folder import SMALL, Recipe, contrast, write_campaign

from finetrial.errors import UserError
from finetrial.report import page
from finetrial.report.build import ReportPaths, build, draw, gather, write
from finetrial.report.facts import Report

HOSTILE = '"><script>alert(1)</script>&amp;'


class Elements(HTMLParser):
    """All start tags with their attributes, and all text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open != "style":
            self.words += data + " "


@pytest.fixture(scope="module")
def html(paths: ReportPaths) -> str:
    return paths.html.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements(html: str) -> Elements:
    return Elements(html)


def with_manifest(campaign: Path, target: Path, change: Any) -> Path:
    """A copy of the small campaign whose manifest went through `change`; runs are left behind."""
    target.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((campaign / "manifest.json").read_text())
    change(manifest)
    (target / "manifest.json").write_text(json.dumps(manifest))
    (target / "outcomes.parquet").write_bytes((campaign / "outcomes.parquet").read_bytes())
    return target


def test_page_needs_no_network_and_no_script(html: str, elements: Elements) -> None:
    names = {tag for tag, _ in elements.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "img", "base"}
    targets = [attrs[key] for _, attrs in elements.tags for key in ("src", "href", "action", "data") if key in attrs]
    assert targets
    assert not [target for target in targets if target and re.match(r"(?i)([a-z][a-z0-9+.-]*:)?//|javascript:", target)]
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", html)


def test_page_is_small(paths: ReportPaths) -> None:
    assert paths.html.stat().st_size < 3_000_000


def test_every_link_leads_somewhere(paths: ReportPaths, elements: Elements) -> None:
    ids = [attrs["id"] for _, attrs in elements.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in elements.tags:
        target = attrs.get("href")
        if target and target.startswith("#"):
            assert target[1:] in ids
        elif target:
            assert (paths.html.parent / target).is_file()


def test_drawings_refer_to_their_own_definitions_only(html: str) -> None:
    for svg in re.findall(r"<svg .*?</svg>", html, flags=re.S):
        defined = set(re.findall(r' id="([^"]+)"', svg))
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= defined


def test_page_holds_every_contrast_condition_and_seed(report: Report, elements: Elements) -> None:
    for finding in report.findings:
        assert finding.contrast in elements.words
        assert finding.question in elements.words
        assert finding.reason in elements.words
        assert finding.test in elements.words
        assert finding.unit in elements.words
    for condition in report.conditions:
        assert condition in elements.words
    for cell in report.cells:
        for seed in cell.seeds:
            assert seed.seed is None or f"seed {seed.seed}:" in elements.words
            assert f"{seed.mean:.4f}" in elements.words


def test_question_comes_first_and_is_the_heading(html: str, report: Report) -> None:
    question = report.section("spec", "campaign", "question")
    assert re.search(rf"<h1>{re.escape(question)}</h1>", html)
    assert html.index("<h1>") < html.index('id="summary"') < html.index('id="verdicts"') < html.index('id="forest"')


def test_page_can_be_read_by_those_who_do_not_see_it(elements: Elements) -> None:
    drawings = [attrs for tag, attrs in elements.tags if tag == "svg"]
    assert len(drawings) == 15
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 40 for attrs in drawings)
    assert all(attrs.get("scope") for tag, attrs in elements.tags if tag == "th")
    levels = [int(tag[1]) for tag, _ in elements.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1


def test_exploratory_contrasts_are_marked(html: str) -> None:
    rows = re.findall(r'<tbody id="contrast-.*?</tbody>', html, flags=re.S)
    marked = [row for row in rows if '<span class="tag">exploratory</span>' in row]
    assert len(rows) == 6
    assert len(marked) == 1
    assert "top-1000 vs base on gold" in marked[0]


def test_difference_between_plan_and_reality_stands_out(elements: Elements) -> None:
    assert "random-500, seed 2: rows 493 instead of 500" in elements.words
    assert any(tag == "td" and "differs" in (attrs.get("class") or "") for tag, attrs in elements.tags)


def test_failed_check_is_a_banner_before_everything_and_invalidates(campaign: Path, tmp_path: Path) -> None:
    def fail(manifest: dict[str, Any]) -> None:
        manifest["integrity"].append({"check": "leak guard", "passed": False, "detail": "27 items of gold in training"})

    report = gather(with_manifest(campaign, tmp_path, fail))
    html = page.render(report, [])
    assert html.index('role="alert"') < html.index('id="summary"')
    assert "27 items of gold in training" in html
    assert {finding.verdict for finding in report.findings} == {"INVALID"}
    assert report.counts == {"CONFIRMED": 0, "FAILED": 0, "INCONCLUSIVE": 0, "INVALID": 5}


def test_passing_checks_raise_no_banner(html: str) -> None:
    assert 'role="alert"' not in html


def test_sections_that_were_not_recorded_say_so(tmp_path: Path) -> None:
    manifest = {"finetrial": "0.1.0", "campaign": "bare", "status": "running", "spec": {"contrasts": []}}
    manifest["spec"]["contrasts"].append(contrast("a", "base", "gold", "Does a help?"))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    paths = build(tmp_path)
    html = paths.html.read_text()
    assert html.count("Not recorded.") >= 10
    assert "Question not recorded" in html
    assert "still running" in html
    assert "a vs base on gold" in html
    assert not paths.charts
    twin = json.loads(paths.json.read_text())
    assert twin["timing"] is twin["integrity"] is twin["reuse"] is twin["provenance"] is None
    assert twin["unjudged"] == ["a vs base on gold"]
    assert twin["contrasts"] == []
    assert "Nothing" in paths.markdown.read_text() or "nothing" in paths.markdown.read_text()


@pytest.mark.parametrize(
    ("status", "words"), [("dry", "dry run"), ("running", "still running"), ("failed", "stopped with an error")]
)
def test_unfinished_campaigns_warn(report: Report, status: str, words: str) -> None:
    assert words in page.render(replace(report, manifest={**report.manifest, "status": status}), [])


def test_quarantined_runs_are_named(report: Report) -> None:
    runs = [dict(run) for run in report.manifest["runs"]]
    runs[4]["status"] = "quarantined"
    html = page.render(replace(report, manifest={**report.manifest, "runs": runs}), [])
    assert "1 run quarantined: random-1000 seed 2" in html


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    recipes = (Recipe("random" + HOSTILE.replace("/", "\\"), 500, 0.2), Recipe("top-500", 500, 0.25))
    declared = [contrast("top-500", recipes[0].name, "gold", HOSTILE)]
    folder = write_campaign(tmp_path, recipes, suites=("gold",), items=6, contrasts=declared)

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["spec"]["campaign"] |= {"question": HOSTILE, "hypothesis": HOSTILE}
    manifest["provenance"]["platform"] = HOSTILE
    manifest["integrity"][0]["detail"] = HOSTILE
    manifest["runs"][0]["reason"] = HOSTILE
    (folder / "manifest.json").write_text(json.dumps(manifest))
    paths = build(folder)
    assert "<script" not in paths.html.read_text()
    assert not [tag for tag, _ in Elements(paths.html.read_text()).tags if tag == "script"]
    assert "&lt;script&gt;" in paths.html.read_text()
    assert not re.search(r"(?<!\\)<script", paths.markdown.read_text())
    for chart in paths.charts:
        if chart.suffix == ".svg":
            assert "script" not in {element.tag.rpartition("}")[2] for element in ET.parse(chart).iter()}


def test_same_campaign_gives_the_same_bytes(campaign: Path, paths: ReportPaths, tmp_path: Path) -> None:
    again = write(gather(campaign), tmp_path)
    assert again.json.read_bytes() == paths.json.read_bytes()
    assert again.html.read_bytes() == paths.html.read_bytes()
    assert again.markdown.read_bytes() == paths.markdown.read_bytes()


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json"):
        build(tmp_path)


def test_one_contrast_on_one_condition(tmp_path: Path) -> None:
    declared = [contrast("random-500", "base", "gold", "Does it learn?")]
    report = gather(write_campaign(tmp_path, SMALL[:1], suites=("gold",), items=10, contrasts=declared))
    html = page.render(report, draw(report))
    assert html.count('<tbody id="contrast-') == 1
    assert 'type="radio"' not in html
