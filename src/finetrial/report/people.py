"""People's labels of judged suites: the corrected differences beside the judge's, and how far both agree."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetrial.analyze.contrast import Finding
from finetrial.analyze.judged import People, corrected_contrasts
from finetrial.analyze.readers.read import read_rows
from finetrial.campaign.labelling import LABELS, bounds_of, read_labels
from finetrial.errors import UserError
from finetrial.judge.agreement import Agreement
from finetrial.records import Outcome
from finetrial.report.tables import Table
from finetrial.report.theme import count, decimals_for, number


def gather(
    folder: Path, manifest: Mapping[str, Any], findings: Sequence[Finding]
) -> tuple[tuple[People, ...], tuple[str, ...]]:
    """Of each finding on a suite with labels what they make of it; and which labels could not be used, and why.

    Labels are no part of a verdict, so what is wrong with them is told in the report and does not stand in its way.
    """
    found, notes = list[People](), list[str]()
    for table in manifest.get("spec", {}).get("analysis", {}).get("labels", ()) if findings else ():
        path = folder / LABELS / f"{table['suite']}{Path(table['source']).suffix}"
        metric = manifest["suites"][table["suite"]].get("metrics", ["correct"])[0]
        level = 1 - manifest["spec"]["analysis"]["alpha"]
        try:
            labels = read_labels(path, folder, table["suite"], metric)
            found += correct([folder], {}, manifest, findings, labels, level, must=False)
        except UserError as error:
            notes.append(f"People's labels of suite {table['suite']} are not used: {error}.")
    return tuple(found), tuple(notes)


def correct(
    sources: Sequence[Path],
    mapping: Mapping[str, str],
    manifest: Mapping[str, Any] | None,
    findings: Sequence[Finding],
    labels: Sequence[Outcome],
    level: float,
    must: bool = True,
) -> tuple[People, ...]:
    """The findings corrected by labels.

    Args:
        sources, mapping: the judged outcomes, as `read` takes them.
        manifest: of a campaign folder.
        findings: what they came to.
        labels: people's.
        level: of intervals.
        must: refuse labels that correct nothing.

    Raises:
        UserError: what `corrected_contrasts` and `bounds_of` raise.
    """
    places = sorted({(one.suite, one.metric) for one in labels})
    bounds = {place: bounds_of(*place, manifest) for place in places}
    where = {"suite": [suite for suite, _ in places], "metric": [metric for _, metric in places]}
    judged = read_rows(sources, mapping, where)
    return tuple(corrected_contrasts(findings, judged, labels, bounds, level, must))


def kappa_words(kappa: Agreement | None) -> str:
    """A kappa with its interval."""
    return "—" if kappa is None else f"{kappa.kappa:.2f} [{kappa.ci[0]:.2f}, {kappa.ci[1]:.2f}]"


def difference_words(estimate: float, ci: tuple[float, float]) -> str:
    """A difference with its interval, in as many digits as the interval deserves."""
    places = decimals_for(ci[1] - ci[0])
    return f"{number(estimate, places, signed=True)} [{number(ci[0], places)}, {number(ci[1], places)}]"


def table(people: Sequence[People]) -> Table:
    """A row per corrected contrast."""
    heads = ["contrast", "by the judge alone", "corrected by people", "labelled", "judge’s weight", "kappa", "weighted"]
    return heads, [
        [
            one.contrast,
            difference_words(one.judge, one.judge_ci),
            difference_words(one.corrected.estimate, one.corrected.ci) if one.corrected else "—",
            f"{count(one.corrected.n_labelled, 'item')}, {count(one.n_completions, 'completion')}"
            if one.corrected
            else count(one.n_completions, "completion"),
            number(one.corrected.weight, 2) if one.corrected else "—",
            kappa_words(one.kappa),
            kappa_words(one.weighted_kappa),
        ]
        for one in people
    ]


def sentences(people: Sequence[People]) -> list[str]:
    """The corrections in short, for `verdict.md`."""
    told = []
    for one in people:
        if one.corrected is None:
            continue  # its warning says why
        agreed = f"kappa {kappa_words(one.kappa)}" if one.kappa else "kappa undefined: all labels of one category"
        if one.weighted_kappa:
            agreed += f", weighted {kappa_words(one.weighted_kappa)}"
        told.append(
            f"{one.contrast}: corrected by people's labels of {count(one.corrected.n_labelled, 'item')} "
            f"{difference_words(one.corrected.estimate, one.corrected.ci)}, by the judge alone "
            f"{difference_words(one.judge, one.judge_ci)} ({100 * one.level:g} % intervals over {one.speaks_of}); "
            f"{agreed} of {count(one.n_completions, 'completion')}."
        )
    return told


def warnings(people: Sequence[People], notes: Sequence[str] = ()) -> list[str]:
    """Where judge and people come to something else, and which labels could not be used."""
    return [*notes, *(f"{one.contrast}: {warning}." for one in people for warning in one.warnings)]
