"""The page: one self-contained HTML file that needs neither network nor scripts."""

import json
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from finetrial.report import (
    forgetting_tables,
    judges,
    learning,
    learning_tables,
    people,
    sentences,
    tables,
    term_tables,
    terms,
)
from finetrial.report.completions import of_condition, shorten
from finetrial.report.diagnostics import dimensions
from finetrial.report.facts import VERDICTS, Report, finite
from finetrial.report.measured import suite_tables
from finetrial.report.recipes import recipes
from finetrial.report.sampled_sets import by_prompt
from finetrial.report.theme import MARKS, Chart, duration, metric_words, number, slug


def render(report: Report, charts: Sequence[Chart]) -> str:
    """The whole page.

    Args:
        report: the campaign.
        charts: drawings to put in, found by their names.
    """
    warnings = learning.warnings(report)
    by_name = {chart.name: chart for chart in charts}
    environment = Environment(
        loader=PackageLoader("finetrial.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = files("finetrial.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        report=report,
        campaign={key: report.section("spec", "campaign", key) for key in ("question", "hypothesis", "decision_rule")},
        style=Markup(style),
        charts={name: (chart, Markup(chart.svg)) for name, chart in by_name.items()},
        marks=MARKS,
        tiles=[(verdict, MARKS[verdict], report.counts[verdict]) for verdict in VERDICTS],
        summary=sentences.summary(report),
        meaning=sentences.MEANING,
        how_to_read=sentences.HOW_TO_READ,
        notes=[
            *sentences.status_notes(report),
            *people.warnings(report.people, report.unused_labels),
            *sentences.doubts(warnings),
            *terms.doubts(report),
        ],
        level=sentences.level_words(report),
        ledger=tables.ledger(report, by_name),
        forests=[name for name in by_name if name.startswith("forest-")],
        noises=[name for name in by_name if name.startswith("variance-")],
        metrics=[(metric, slug(metric), metric_words(metric)) for metric in report.metrics],
        tables=tables,
        by_kind=suite_tables(report.figures, report.conditions, report.section("suites") or {}),
        kept=report.forgetting if report.forgetting and report.forgetting.kept else None,
        kept_tables=forgetting_tables,
        judges=judges,
        people=people,
        dimensions=dimensions(report),
        realised=tables.realised(report.runs),
        mismatches=tables.mismatches(report.runs),
        policies=learning.policies(report),
        warnings=warnings,
        held_outs=learning.held_out_metrics(report),
        held_out_metric=learning.held_out_metric(report),
        learning_tables=learning_tables,
        has_terms=terms.has_any(report),
        term_warnings=terms.warnings(report),
        term_tables=term_tables,
        sampled_sets=by_prompt(report.sets),
        recipes=recipes(report),
        number=number,
        samples=of_condition(report.samples),
        shorten=shorten,
        slug=slug,
        duration=duration,
        spec=json.dumps(finite(report.section("spec")), indent=2, ensure_ascii=False),
    )
