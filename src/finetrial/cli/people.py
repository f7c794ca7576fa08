"""`compare --labels`: judged outcomes corrected by people's labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape

from finetrial.analyze.compare import Compared, Options
from finetrial.analyze.judged import People
from finetrial.analyze.readers.read import Reading
from finetrial.cli.app import console, table
from finetrial.store import read_json


def corrected(
    path: Path,
    sources: Sequence[Path],
    mapping: Mapping[str, str],
    reading: Reading,
    compared: Compared,
    options: Options,
) -> Sequence[People]:
    """The comparisons on what people have labelled, corrected by the labels in a file.

    A file that names no suite or metric is of the only one that there is (of a metric, that is compared).

    Raises:
        UserError: as `campaign.labelling.read_labels` and `report.people.correct`.
    """
    from finetrial.campaign.labelling import read_labels
    from finetrial.report.people import correct

    folder = sources[0] if len(sources) == 1 and (sources[0] / "manifest.json").is_file() else None
    suites, metrics = reading.table.suites, options.metrics or reading.table.metrics
    only = [names[0] if len(names) == 1 else None for names in (suites, metrics)]
    manifest = read_json(folder / "manifest.json") if folder else None
    return correct(sources, mapping, manifest, compared.findings, read_labels(path, folder, *only), 1 - options.alpha)


def show(people: Sequence[People]) -> None:
    """Print them as a table, with what differs from the judge's own conclusion; nothing where there are none."""
    from finetrial.report import people as words

    if not people:
        return
    console.print(table("Corrected by people's labels", *words.table(people), (1, 2, 4, 5, 6)))
    console.print(f"  intervals of {100 * people[0].level:g} %, over {people[0].speaks_of}")
    for warning in words.warnings(people):
        console.print(f"[yellow]warning[/yellow] {escape(warning)}")
