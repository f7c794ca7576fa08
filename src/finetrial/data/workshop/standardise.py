"""Rows of mixed shapes -> one declared format, with a gate, a report and a map that leads back.

The rows stream: what is held is a hash per row and, per shape, a few examples. Output, map and report appear together
at the end, each by one rename, the output last; when the gate finds anything left, nothing appears at all.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetrial.data.workshop.columns import Columns, find_columns, get, replaced
from finetrial.data.workshop.config import DEFAULT_RULES, MEANING, StandardiseConfig
from finetrial.data.workshop.markdown import report_markdown
from finetrial.data.workshop.rewrite import rewrite
from finetrial.data.workshop.row_files import (
    SourceRow,
    check_ending,
    dumped,
    parquet_schema,
    read_rows,
    writer,
)
from finetrial.data.workshop.shapes import shapes
from finetrial.data.workshop.tally import EXAMPLES, Tally, shown
from finetrial.errors import UserError
from finetrial.identity import digest, file_digest
from finetrial.store import write_json, write_text

MAP_FORMAT = "finetrial standardise map"
MAP_VERSION = 1
VERSION = 1
"""Of the rules; raise it when the same rows and configuration give another output."""


class Seen:
    """Which rows came before: 16 bytes a row and 16 a prompt."""

    def __init__(self) -> None:
        self._rows: set[bytes] = set()
        self._answers: dict[bytes, bytes] = {}

    def relation(self, question: str, outputs: list[Any], plain: bool) -> str | None:
        """`duplicate` or `conflict` with an earlier row, or None; the row counts as seen from now on.

        Only plain rows conflict: the same answer in two shapes is one answer, and none is no other.
        """
        answer = _short_hash(json.dumps([question, outputs], sort_keys=True, default=str))
        if answer in self._rows:
            return "duplicate"
        self._rows.add(answer)
        return "conflict" if plain and self._answers.setdefault(_short_hash(question), answer) != answer else None


def _short_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def inspect(source: str, config: StandardiseConfig) -> dict[str, Any]:
    """Count the rows of a source by the shape of their outputs; nothing is written.

    Returns:
        `rows`, `plain`, and `shapes`: shape -> rows, share, action, meaning and a few examples. A row with several
        shapes counts in each.

    Raises:
        UserError: see `read_rows` and `find_columns`.
    """
    tally, seen = Tally(), Seen()
    for row, columns in _laid_out(source, config):
        _count(tally, seen, row, columns, config)
    if not tally.rows:
        raise UserError(f"{source}: no row")
    return _told(tally, config)


@dataclass
class Result:
    """What `standardise` did."""

    facts: dict[str, Any]
    """JSON types; the content of the report."""
    residual: dict[str, Any]
    """Shape -> rows, reasons and examples that the gate found; empty when everything was written."""
    files: dict[str, str] = field(default_factory=dict)
    """output, map, report and page -> path; empty where nothing was written."""


def paths_beside(output: Path) -> dict[str, Path]:
    """Where the files that belong to an output lie."""
    return {
        "map": output.with_name(f"{output.stem}.map.jsonl"),
        "report": output.with_name(f"{output.stem}.report.json"),
        "page": output.with_name(f"{output.stem}.report.md"),
    }


def standardise(source: str, output: Path, config: StandardiseConfig) -> Result:
    """Rewrite a file's outputs to the declared format.

    Prompts and all other columns stay as they are; rows that do not change keep their line byte for byte. Duplicates
    and conflicts are looked for after rewriting. The gate reads what was written again and counts its shapes anew.

    Raises:
        UserError: the input cannot be read, the output is the input, exists or has another kind, the rules drop more
            than `config.max_dropped` of the rows, or a row fits no column of the output.
    """
    check_ending(source, output)
    beside = paths_beside(output)
    if beside["map"].exists():
        raise UserError(f"{beside['map']} exists: it leads back from another output; name another --output")
    schema = parquet_schema(source)
    partial = {name: _partial(path) for name, path in (("output", output), ("map", beside["map"]))}
    try:
        run = _Pass(config)
        run.write(source, partial, output.suffix, schema)
        before = _told(run.before, config)
        if run.dropped > config.max_dropped * run.before.rows:
            worst = next(shape for (shape, action), _ in run.actions.most_common() if action == "drop")
            raise UserError(
                f"{source}: the rules drop {run.dropped} of {run.before.rows} rows, more than max_dropped = "
                f"{config.max_dropped:g} allows; most are {worst!r}: --rule {worst}=keep if that is their format"
            )
        after = _reread(partial["output"], output.suffix, config, run.columns)
        residual = _residual(after, run, config)
        facts: dict[str, Any] = {
            "source": source,
            "version": VERSION,
            "rows_in": run.before.rows,
            "rows_out": run.before.rows - run.dropped,
            "unchanged": run.unchanged,
            "rewritten": run.rewritten,
            "dropped": run.dropped,
            "before": before,
            "after": _told(after, config),
            "actions": [{"shape": s, "action": a, "rows": n} for (s, a), n in sorted(run.actions.items())],
            "changes": run.changes,
            "format": config.declared(),
            "format_key": digest(config),
        }
        if residual:
            return Result(facts, residual)
        end = {
            "format": MAP_FORMAT,
            "version": MAP_VERSION,
            "source": Path(source).name if not source.startswith("world:") else source,
            "kind": ".jsonl" if source.startswith("world:") else Path(source).suffix,
            "source_sha256": None if source.startswith("world:") else file_digest(Path(source)),
            "output_sha256": file_digest(partial["output"]),
            "rows_in": run.before.rows,
            "rows_out": run.before.rows - run.dropped,
            "schema": schema,
        }
        with partial["map"].open("a", encoding="utf-8") as stream:
            stream.write(dumped(end) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        facts |= {"source_sha256": end["source_sha256"], "output_sha256": end["output_sha256"]}
        write_json(beside["report"], facts)
        write_text(beside["page"], report_markdown(facts))
        partial["map"].replace(beside["map"])
        partial["output"].replace(output)
        return Result(facts, {}, {"output": str(output)} | {name: str(path) for name, path in beside.items()})
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


class _Pass:
    """One reading of the source: rows written, map written, counts kept."""

    def __init__(self, config: StandardiseConfig) -> None:
        self.config = config
        self.before = Tally()
        self.columns: Columns | None = None
        self.actions: Counter[tuple[str, str]] = Counter()
        self.refused: dict[str, Counter[str]] = defaultdict(Counter)
        self.refused_at: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.changes: dict[str, list[dict[str, str]]] = {}
        self.unchanged = self.rewritten = self.dropped = 0
        self._before_seen, self._after_seen = Seen(), Seen()

    def write(self, source: str, partial: Mapping[str, Path], kind: str, schema: str | None) -> None:
        """Write output and map (without its last line) to their partial files."""
        rows = _laid_out(source, self.config)
        first = next(rows, None)
        if first is None:
            raise UserError(f"{source}: no row")
        self.columns = columns = first[1]
        as_text = columns.output if columns.messages is None else None
        with ExitStack() as stack:
            put = stack.enter_context(writer(partial["output"], kind, schema, as_text))
            note = stack.enter_context(partial["map"].open("w", encoding="utf-8"))
            for number, (row, _) in enumerate(_chain(first, rows)):
                value, entry = self._row(row, columns)
                if entry is not None:
                    note.write(dumped({"row": number, "place": row.place, **entry}) + "\n")
                if entry is None:
                    put(row.value, row.line)
                elif entry["action"] == "rewrite":
                    put(value, None)

    def _row(self, row: SourceRow, columns: Columns) -> tuple[Any, dict[str, Any] | None]:
        """(row as it is written, its entry in the map or None where it stays as it is)."""
        _count(self.before, self._before_seen, row, columns, self.config)
        value, changes, steps = row.value, [], []
        dropped: str | None = None
        refused = False
        for path, prompt in columns.outputs(row.value):
            old = get(row.value, path)
            new = rewrite(old, prompt, self.config)
            if new.refused is not None:
                refused = True
                self._note_refusal(*new.refused, row.place, old)
            elif new.dropped:
                dropped = dropped or new.steps[-1]
            elif new.steps:
                changes.append([list(path), old])
                steps += new.steps
                value = replaced(value, path, new.value)
                self._remember(new.steps, row.place, old, new.value)
        if dropped is None:
            outputs = [get(value, path) for path, _ in columns.outputs(value)]
            relation = self._after_seen.relation(columns.question(value), outputs, plain=not refused)
            if relation is not None and self.config.actions[relation] == "drop":
                dropped = relation
        if dropped is not None:
            self.dropped += 1
            self.actions[dropped, "drop"] += 1
            return None, {"action": "drop", "shapes": [*steps, dropped]} | _whole(row)
        if not changes:
            self.unchanged += 1
            return row.value, None
        self.rewritten += 1
        self.actions.update((shape, "rewrite") for shape in set(steps))
        kept = {"changes": changes} if row.line is None else {"line": row.line}
        return value, {"action": "rewrite", "shapes": steps} | kept

    def _note_refusal(self, shape: str, why: str, place: str, old: Any) -> None:
        self.refused[shape][why] += 1
        if len(self.refused_at[shape]) < EXAMPLES:
            self.refused_at[shape].append({"place": place, "output": shown(old)})

    def _remember(self, steps: tuple[str, ...], place: str, old: Any, new: Any) -> None:
        examples = self.changes.setdefault(steps[0], [])
        if len(examples) < EXAMPLES:
            examples.append({"place": place, "before": shown(old), "after": shown(new)})


def _whole(row: SourceRow) -> dict[str, Any]:
    return {"value": row.value} if row.line is None else {"line": row.line}


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _laid_out(source: str, config: StandardiseConfig) -> Iterator[tuple[SourceRow, Columns]]:
    columns: Columns | None = None
    for row in read_rows(source):
        if columns is None:
            columns = find_columns(row.value, row.place, config)
        if not isinstance(row.value, Mapping):
            raise UserError(f"{row.place}: a row is a {type(row.value).__name__}, not an object")
        yield row, columns


def _count(tally: Tally, seen: Seen, row: SourceRow, columns: Columns, config: StandardiseConfig) -> None:
    found: dict[str, Any] = {}
    outputs = columns.outputs(row.value)
    values = [get(row.value, path) for path, _ in outputs]
    for value, (_, prompt) in zip(values, outputs, strict=True):
        for shape in shapes(value, prompt, config):
            found.setdefault(shape, value)
    relation = seen.relation(columns.question(row.value), values, plain=not found)
    if relation is not None:
        found[relation] = values[-1] if values else ""
    tally.add(row.place, found)


def _told(tally: Tally, config: StandardiseConfig) -> dict[str, Any]:
    return {
        "rows": tally.rows,
        "plain": tally.plain,
        "shapes": {
            shape: {
                "rows": tally.counts[shape],
                "share": tally.counts[shape] / tally.rows,
                "action": config.actions[shape],
                "meaning": meaning,
                "examples": tally.examples[shape],
            }
            for shape, meaning in MEANING.items()
            if tally.counts[shape]
        },
    }


def _reread(path: Path, kind: str, config: StandardiseConfig, columns: Columns | None) -> Tally:
    """The gate's own look at what was written."""
    tally, seen = Tally(), Seen()
    assert columns is not None  # set by the pass that wrote the file
    for row in read_rows(str(path), kind):
        _count(tally, seen, row, columns, config)
    return tally


def _residual(after: Tally, run: _Pass, config: StandardiseConfig) -> dict[str, Any]:
    return {
        shape: {
            "rows": after.counts[shape],
            "action": config.actions[shape],
            "reasons": dict(run.refused[shape].most_common(5)),
            "examples": run.refused_at[shape] or after.examples[shape],
        }
        for shape in DEFAULT_RULES
        if after.counts[shape] and config.actions[shape] != "keep"
    }


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
