"""`verdict.md`: the findings in sentences and one table, for pull requests and mail."""

import re

from finetrial.analyze.contrast import Finding
from finetrial.report import people, terms
from finetrial.report.facts import Report, is_exploratory
from finetrial.report.forgetting_tables import sentences as kept_sentences
from finetrial.report.judges import sentences as judge_sentences
from finetrial.report.learning import warnings
from finetrial.report.sentences import claim, level_words, status_notes, summary
from finetrial.report.theme import decimals_for, mark_of, number, p_text


def render(report: Report) -> str:
    """The whole document; ends with a newline."""
    level = level_words(report)
    name = report.section("campaign") or "not recorded"
    lines = [f"# {_text(report.section('spec', 'campaign', 'question') or name)}", ""]
    lines += [f"Campaign: {_text(name)}. Status: {report.section('status') or 'not recorded'}.", ""]
    hypothesis = report.section("spec", "campaign", "hypothesis")
    lines += [f"Hypothesis: {_text(hypothesis)}", ""] if hypothesis else []
    for check in report.failed_checks:
        lines += [f"**Integrity check failed: {_text(check['check'])}.** {_text(check['detail'])}", ""]
    notes = [
        *status_notes(report),
        *people.warnings(report.people, report.unused_labels),
        *warnings(report),
        *terms.warnings(report),
    ]
    for note in notes:
        lines += [f"**Note.** {_text(note)}", ""]
    lines += [" ".join(summary(report)), ""]
    for finding in report.findings:
        tag = " (exploratory)" if is_exploratory(finding) else ""
        verdict = mark_of(finding.verdict, finding.subtype).label
        lines.append(f"- **{verdict.capitalize()}**{tag}: {_text(claim(finding, level))}")
    if report.findings:
        lines += ["", f"| contrast | verdict | difference | {level} | p adjusted | seeds | items | margin | family |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|--:|---|"]
        lines += [_row(finding) for finding in report.findings]
        lines += ["", "Differences are candidate minus baseline in the metric’s own units."]
    if report.forgetting is not None and report.forgetting.kept:
        told = kept_sentences(report.forgetting)
        lines += ["", "## What was kept, what was lost", "", *(f"- {_text(sentence)}" for sentence in told)]
        lines += [] if told else ["No condition lost anything on average, on any test set."]
    if told := [*judge_sentences(report), *people.sentences(report.people)]:
        lines += ["", "## Judges", "", *(f"- {_text(sentence)}" for sentence in told)]
    return "\n".join(lines).rstrip() + "\n"


def _row(finding: Finding) -> str:
    interval = finding.ci_adjusted
    places = decimals_for(interval[1] - interval[0]) if interval else None
    ends = f"[{number(interval[0], places)}, {number(interval[1], places)}]" if interval else "not estimable"
    difference = "not estimable" if finding.estimate is None else number(finding.estimate, places, signed=True)
    label = mark_of(finding.verdict, finding.subtype).label
    family = f"{finding.family} ({finding.family_size}, {finding.correction})"
    seeds = f"{finding.n_seeds[0]} vs {finding.n_seeds[1] or 'base'}"
    cells = [finding.contrast, label, difference, ends, p_text(finding.p_adjusted), seeds, str(finding.n_items)]
    return "| " + " | ".join(_text(cell) for cell in [*cells, f"{finding.margin:g}", family]) + " |"


def _text(value: str) -> str:
    """Text that can neither open HTML nor break out of a table cell."""
    flat = re.sub(r"\s+", " ", value)
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", flat)
