"""People's labels of a campaign: the sheet that they fill in, and how it is read back.

A sheet is CSV with the columns `label`, `prompt`, `reference`, `completion` and `value`; the last is for people. It
tells nobody which condition wrote what: `label` is a digest of whose completion it is and of its text, and is resolved
through the campaign's `completions.parquet`. So a sheet can never correct completions that were written anew since.
Nothing here imports torch.
"""

import csv
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from finetrial.analyze.judged import check_labels
from finetrial.analyze.metrics import known
from finetrial.analyze.readers.read import read_rows
from finetrial.campaign.contrasts import graded_as
from finetrial.campaign.folder import COMPLETIONS
from finetrial.campaign.items import ITEMS
from finetrial.campaign.practice import Tasks
from finetrial.campaign.settings import BASE
from finetrial.campaign.spec import Spec
from finetrial.data.subset import allotted
from finetrial.errors import UserError, nearest
from finetrial.grade.judge_config import JudgeConfig
from finetrial.identity import digest, file_digest
from finetrial.records import Outcome
from finetrial.seeds import stream
from finetrial.store import read_json

LABELS = "labels"
"""Folder in the campaign's: the label files as the last launch found them, named by suite."""

_Run = tuple[str, int | None, int]
"""Condition, seed and sample."""

LONGEST_CELL = 2**27
"""Characters; the limit of the csv module is made for other files."""

COLUMNS = ("label", "prompt", "reference", "completion", "value")


def write_sheet(
    folder: Path, suite: str, path: Path, conditions: Sequence[str] = (), items: int = 50, seed: int = 0
) -> int:
    """Draw completions for people to label and write the sheet to `path`; how many there are.

    Items are drawn at random, each category in its proportion (of a conversation all its turns), and of each item one
    graded completion of every condition, from a run and sample drawn at random. Rows are shuffled, and none tells its
    condition.

    Args:
        folder: a campaign's, with completions.
        suite: a suite of tasks or conversations.
        path: a CSV file that is not there yet.
        conditions: whose completions; default all, and the base.
        items: how many items; all, where there are fewer.
        seed: names the draw.

    Raises:
        UserError: no such completions, suite or condition, or the file is there.
    """
    if path.exists():
        raise UserError(f"{path}: is there already, and may hold people's labels; expected a new file")
    rows = [row for row in _completions(folder, suite) if row["grade"] is not None]
    there = sorted({row["condition"] for row in rows})
    for name in conditions:
        if name not in there:
            raise UserError(
                f"{folder}: no condition {name!r} wrote on {suite!r}{nearest(name, there)}; there are {there}"
            )
    asked = {row["item"]: row for row in pq.read_table(folder / ITEMS, filters=[("suite", "=", suite)]).to_pylist()}
    units = _units(rows, conditions or there)
    strata: dict[str, list[str]] = defaultdict(list)
    for unit, of in sorted(units.items()):
        strata[str(asked[next(iter(of.values()))[0][0]["item"]]["category"])].append(unit)
    taken = allotted({name: len(mine) for name, mine in sorted(strata.items())}, min(items, len(units)))
    rng = stream(seed, "labels/sheet", suite)
    drawn = []
    for name, mine in sorted(strata.items()):
        for unit in rng.permutation(mine)[: taken[name]]:
            for places in units[unit].values():
                drawn += places[int(rng.integers(len(places)))]
    talk = read_json(folder / "manifest.json")["suites"][suite].get("kind") == "conversation"
    history = _histories(_completions(folder, suite), asked) if talk else {}
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # with the mark by which spreadsheets know UTF-8
        sheet = csv.writer(file)
        sheet.writerow(COLUMNS)
        for k in rng.permutation(len(drawn)):
            row = drawn[int(k)]
            item = asked[row["item"]]
            prompt = history.get(_place(row), "") + item["prompt"]
            sheet.writerow([label_of(row), *map(_as_text, (prompt, item["reference"] or "", row["text"])), ""])
    return len(drawn)


def _as_text(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@\t") else text


def label_of(row: Mapping[str, Any]) -> str:
    """Identity of a completion and of what it says; a row of `completions.parquet`."""
    return f"c{digest([*_place(row), row['suite'], row['text']])[:16]}"  # a spreadsheet takes bare hex for a number


def read_labels(path: Path, folder: Path | None, suite: str | None = None, metric: str | None = None) -> list[Outcome]:
    """People's labels in a file, without those that are not filled in.

    The file is a sheet of `write_sheet`, or a table of outcomes (condition, seed, suite, item, sample, metric, value)
    as CSV, JSONL or Parquet.

    Args:
        path: the file.
        folder: the campaign's, through whose completions a sheet is resolved; None where there is none.
        suite: of the labels, where the file does not say; labels of other suites are left out.
        metric: of the labels, where the file does not say; of a sheet default what its suite's grades are called.

    Raises:
        UserError: there is no such file, a value is no number, a sheet is of other completions than the folder has, or
            no label is filled in.
    """
    if not path.is_file():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file of labels{nearest(path.name, siblings)}")
    if is_sheet(path):
        if folder is None or not (folder / COMPLETIONS).is_file():
            raise UserError(f"{path}: a sheet is read beside the campaign folder that it was drawn from")
        found = _resolved(path, folder, metric)
    else:
        given = {"suite": suite, "metric": metric}
        found = read_rows([path], defaults={name: value for name, value in given.items() if value is not None})
    found = [one for one in found if one.value is not None and suite in (None, one.suite)]
    if not found:
        raise UserError(
            f"{path}: no label of suite {suite!r} is filled in" if suite else f"{path}: no label is filled in"
        )
    return found


def is_sheet(path: Path) -> bool:
    """Whether a file is a sheet of `write_sheet`."""
    if path.suffix != ".csv":
        return False
    return {"label", "value"} <= set(next(_rows(path), []))


def collect(spec: Spec, tasks: Tasks, folder: Path) -> list[dict[str, Any]]:
    """Check the label files that `[[analysis.labels]]` names and copy them into the campaign's folder, so that a report
    is made from the folder alone; what was found, in JSON types.

    Nothing of it enters a key: with other labels everything is judged again, and nothing is trained or measured again.

    Raises:
        UserError: what `read_labels` and `analyze.judged.check_labels` raise, before anything is trained.
    """
    shutil.rmtree(folder / LABELS, ignore_errors=True)
    facts = []
    for table in spec.analysis.labels:
        path, exam = Path(table.source), tasks.exams[table.suite]
        (metric,) = graded_as(exam.kind, exam.grading.config)
        judge = getattr(exam.grading.config, "judge", None)
        bounds = _bounds(metric, judge)
        try:
            if path.is_file() and is_sheet(path):
                values = [value for value in _filled(path).values() if value is not None]
                wrong = [value for value in values if not bounds[0] <= value <= bounds[1]]
                if wrong:
                    raise UserError(f"label {wrong[0]:g} is outside {bounds[0]:g}..{bounds[1]:g}")
                n = len(values)
            else:
                labels = read_labels(path, None, table.suite, metric)
                if strange := sorted(map(str, {one.metric for one in labels} - {metric}), reverse=True):
                    raise UserError(f"{path}: labels of {strange[0]!r}; what the judge gives there is {metric!r}")
                items = {task.id for task in exam.graded}
                check_labels(labels, {BASE, *(one.name for one in spec.conditions)}, items, bounds)
                n = len(labels)
        except UserError as error:
            raise UserError(f"[[analysis.labels]] {table.suite!r}: {error}") from error
        (folder / LABELS).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / LABELS / f"{table.suite}{path.suffix}")
        facts.append({"suite": table.suite, "source": table.source, "labels": n, "digest": file_digest(path)})
    return facts


def bounds_of(suite: str, metric: str, manifest: Mapping[str, Any] | None) -> tuple[float, float]:
    """Least and greatest value of a judged metric: what is known of it, else the scale of the suite's judge.

    Raises:
        UserError: neither is known.
    """
    suites = (manifest or {}).get("spec", {}).get("suites", ())
    grader = next((one.get("grader") or {} for one in suites if one["name"] == suite), {})
    judge = grader.get("judge")
    return _bounds(metric, JudgeConfig.model_validate(judge) if judge else None)


def _bounds(metric: str, judge: JudgeConfig | None) -> tuple[float, float]:
    fact = known(metric)
    if fact is not None and fact.low is not None and fact.high is not None:
        return fact.low, fact.high
    if judge is None:
        raise UserError(
            f"labels of {metric!r}: its least and greatest value are not known; expected shares from 0 to 1"
        )
    return judge.bounds


def _completions(folder: Path, suite: str | None = None) -> list[dict[str, Any]]:
    """Rows of `completions.parquet`, of one suite or of all."""
    path = folder / COMPLETIONS
    if not path.is_file():
        raise UserError(f"{path}: no completions here; expected the folder of a campaign with suites of tasks")
    table = pq.read_table(path, filters=None if suite is None else [("suite", "=", suite)])
    if suite is not None and not len(table):
        names = pq.read_table(path, columns=["suite"])["suite"].unique().to_pylist()
        raise UserError(f"{path}: nothing was written on suite {suite!r}{nearest(suite, names)}; there are {names}")
    return table.to_pylist()


def _place(row: Mapping[str, Any]) -> tuple[str, int | None, str, int]:
    return row["condition"], row["seed"], row["item"], row["sample"]


def _units(
    rows: Sequence[Mapping[str, Any]], conditions: Sequence[str]
) -> dict[str, dict[str, list[list[Mapping[str, Any]]]]]:
    """Group of items -> condition -> the runs and samples that have a grade of every item of the group, each as its
    rows; groups that some condition has no such run of are left out."""
    found: dict[str, dict[tuple[str, int | None, int], list[Mapping[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        if row["condition"] in conditions:
            found[row["group"]][row["condition"], row["seed"], row["sample"]].append(row)
    units = {}
    for unit, of in found.items():
        whole = max(len(mine) for mine in of.values())
        arms: dict[str, list[list[Mapping[str, Any]]]] = {name: [] for name in conditions}
        for (condition, _, _), mine in of.items():
            arms[condition] += [mine] if len(mine) == whole else []
        if all(arms.values()):
            units[unit] = arms
    return units


def _histories(
    rows: Sequence[Mapping[str, Any]], asked: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, int | None, str, int], str]:
    """Of every turn of a conversation what was said before it; rows come turn by turn."""
    said: dict[tuple[Any, ...], str] = defaultdict(str)
    found = {}
    for row in rows:
        talk = row["condition"], row["seed"], row["group"], row["sample"]
        found[_place(row)] = said[talk]
        said[talk] += f"USER:\n{asked[row['item']]['prompt']}\n\nASSISTANT:\n{row['text']}\n\nUSER:\n"
    return found


def _filled(path: Path) -> dict[str, float | None]:
    """Label -> value of a sheet; None where it is not filled in."""
    found: dict[str, float | None] = {}
    rows = _rows(path)
    head = next(rows, [])
    for k, cells in enumerate(rows, 2):
        row = dict(zip(head, cells, strict=False))
        name, written = row.get("label", ""), row.get("value", "").strip()
        if name in found:
            raise UserError(f"{path}, row {k}: label {name} is there twice; expected one row of a completion")
        try:
            found[name] = float(written) if written else None
        except ValueError:
            raise UserError(f"{path}, row {k}: value is {written!r}, expected a number (or nothing)") from None
    return found


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV file that are not empty, whatever the length of their cells.

    Raises:
        UserError: it is no CSV in UTF-8.
    """
    csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from filter(None, csv.reader(file))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error}); save the sheet as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV: {error}") from error


def _resolved(path: Path, folder: Path, metric: str | None) -> list[Outcome]:
    """The labels of a sheet as outcomes."""
    filled = {name: value for name, value in _filled(path).items() if value is not None}
    rows = {label_of(row): row for row in _completions(folder)}
    gone = [name for name in filled if name not in rows]
    if gone:
        raise UserError(
            f"{path}: {len(gone)} of {len(filled)} labels, such as {gone[0]}, are of no completion in "
            f"{folder / COMPLETIONS}: they were written anew since the sheet was drawn; draw another"
        )
    suites = read_json(folder / "manifest.json")["suites"]
    return [
        Outcome(
            row["condition"], row["seed"], row["suite"], row["item"], row["sample"],
            metric or suites[row["suite"]].get("metrics", ["correct"])[0], value,
        )
        for row, value in ((rows[name], value) for name, value in filled.items())
    ]  # fmt: skip
