"""Campaign folder -> report folder: findings from `analyze`, everything else as it was recorded."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from finetrial.analyze.contrast import AnalysisConfig, Contrast, Finding
from finetrial.analyze.judge import judge
from finetrial.analyze.table import OutcomeTable
from finetrial.campaign.interim import failed_checks
from finetrial.errors import UserError
from finetrial.report import (
    charts,
    diagnostics,
    forgetting,
    forgetting_charts,
    forgetting_tables,
    judges,
    learning,
    learning_charts,
    markdown,
    mechanism_charts,
    page,
    people,
    scaling,
    statistics_charts,
    sweeps,
    term_charts,
    terms,
)
from finetrial.report.completions import read_samples
from finetrial.report.facts import Report, apart, finite, read_json, read_runs, summarise, twin
from finetrial.report.measured import figures
from finetrial.report.sampled_sets import read_sets
from finetrial.report.squeeze import squeeze
from finetrial.report.theme import Chart


@dataclass(frozen=True)
class ReportPaths:
    """What `build` wrote."""

    html: Path
    json: Path
    markdown: Path
    charts: tuple[Path, ...]
    """SVG and PNG of every chart."""


def build(folder: Path) -> ReportPaths:
    """Write the report of a campaign to `<folder>/report`.

    Args:
        folder: a campaign folder with `manifest.json` and, once something was evaluated, `outcomes.parquet`.

    Raises:
        UserError: there is no manifest, a file is not readable, or the outcomes do not fit the declared contrasts.
    """
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder}: no manifest.json here; expected the folder of a campaign")
    return write(gather(folder), folder / "report")


def gather(folder: Path) -> Report:
    """Read a campaign folder and judge its contrasts."""
    manifest = read_json(folder / "manifest.json")
    runs, samples = read_runs(folder, manifest), read_samples(folder, manifest)
    sets = read_sets(folder, manifest)
    outcomes = folder / "outcomes.parquet"
    looks = manifest.get("looks")
    if not outcomes.is_file() or (looks and not looks["taken"]):
        waiting = tuple(contrast.name for contrast in _contrasts(manifest))
        return Report(manifest, (), (), runs, waiting, samples=samples, sets=sets)
    table = OutcomeTable.read(outcomes)
    findings, unjudged = _at_looks(manifest) if looks else _judged(manifest, table)
    measured = summarise(table, {finding.metric for finding in findings})
    cells, snapshots = apart(measured, manifest.get("suites", {}))
    report = Report(manifest, findings, cells, runs, unjudged, snapshots, samples, sets)
    kept = forgetting.gather(table, manifest, report.conditions, report.suites, forgetting.read_asked(folder))
    corrected, unused = people.gather(folder, manifest, findings)
    drawn = figures(table, report.suites, kept.level)
    return replace(report, figures=drawn, forgetting=kept, people=corrected, unused_labels=unused)


def write(report: Report, target: Path) -> ReportPaths:
    """Render a report and write its files below `target`."""
    drawn = draw(report)
    (target / "charts").mkdir(parents=True, exist_ok=True)
    written = []
    for chart in drawn:
        svg, png = (target / "charts" / f"{chart.name}.{kind}" for kind in ("svg", "png"))
        svg.write_text(chart.svg, encoding="utf-8")
        png.write_bytes(chart.png())
        written += [svg, png]
    paths = ReportPaths(target / "index.html", target / "report.json", target / "verdict.md", tuple(written))
    paths.html.write_text(page.render(report, drawn), encoding="utf-8")
    content = twin(report) | {
        "figures": finite([asdict(figure) for figure in report.figures]),
        "forgetting": finite(forgetting.facts(report.forgetting)),
        "judges": finite(judges.judges(report)),
        "reinforcement": finite(learning.facts(report)),
        "terms": finite(terms.facts(report)),
        "sweeps": finite(sweeps.facts(report)),
    }
    strict = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    paths.json.write_text(strict + "\n", encoding="utf-8")
    paths.markdown.write_text(markdown.render(report), encoding="utf-8")
    if report.forgetting is not None:
        (target / forgetting_tables.FILE).write_text(forgetting_tables.every_item(report.forgetting), encoding="utf-8")
    return paths


def draw(report: Report) -> list[Chart]:
    """Every chart for which there are data; the page has a place for each."""
    drawn: list[Chart | None] = [*charts.forest(report), *statistics_charts.noise(report)]
    for metric in report.charted:
        drawn += [charts.heatmap(report, metric), scaling.scaling(report, metric), charts.strip(report, metric)]
    drawn += [*forgetting_charts.tradeoffs(report), *forgetting_charts.checkpoints(report)]
    drawn += [*forgetting_charts.divergences(report), *judges.control_charts(report)]
    drawn += [*learning_charts.held_out_curves(report), *learning_charts.learning(report)]
    drawn += [mechanism_charts.entropy(report), mechanism_charts.surprisal(report), mechanism_charts.sepa(report)]
    drawn.append(mechanism_charts.diagnostics(report))
    drawn += [*term_charts.charts(report), *sweeps.charts(report)]
    drawn += [diagnostics.overlap(report), diagnostics.scores(report), diagnostics.correlation(report)]
    drawn += [diagnostics.curves(report), squeeze(report), diagnostics.timing(report)]
    return [chart for chart in drawn if chart is not None]


def _judged(manifest: Mapping[str, Any], table: OutcomeTable) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """(findings, names of contrasts whose conditions or suites have no outcomes)."""
    ready, waiting = [], []
    for contrast in _contrasts(manifest):
        suites = {contrast.suite, contrast.minus_suite} - {None}
        whole = {contrast.candidate, contrast.baseline} <= {*table.conditions} and suites <= {*table.suites}
        (ready if whole else waiting).append(contrast)
    spec = manifest.get("spec", {})
    findings = judge(
        table,
        ready,
        AnalysisConfig.model_validate(spec.get("analysis", {})),
        primary_metric=spec.get("campaign", {}).get("primary_metric", "nll"),
        integrity=failed_checks(manifest),
    )
    return tuple(findings), tuple(contrast.name for contrast in waiting)


def _at_looks(manifest: Mapping[str, Any]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """(findings of the looks that decided them, names of contrasts that no look has decided).

    Nothing is judged again: at another number of seeds the planned error rate would not hold.
    """
    recorded = [finding for look in manifest["looks"]["taken"] for finding in look["findings"]]
    found = {finding.contrast: finding for finding in TypeAdapter(list[Finding]).validate_python(recorded)}
    if failed := failed_checks(manifest):
        reason = "; ".join(failed)
        found = {name: replace(f, verdict="INVALID", subtype=None, reason=reason) for name, f in found.items()}
    names = [contrast.name for contrast in _contrasts(manifest)]
    return tuple(found[name] for name in names if name in found), tuple(name for name in names if name not in found)


def _contrasts(manifest: Mapping[str, Any]) -> list[Contrast]:
    return [Contrast.model_validate(table) for table in manifest.get("spec", {}).get("contrasts", [])]
