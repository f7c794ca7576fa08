"""Files, folders, globs, hub data sets and built-in worlds -> Examples; every dropped row has a reason."""

import dataclasses
import glob
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl

from finetrial.data.files import SUFFIXES, FileFacts, RawRow, open_rows
from finetrial.data.formats import FORMATS, describe_unknown, recognise
from finetrial.data.messages import Malformed
from finetrial.errors import UserError, nearest
from finetrial.identity import canonical_json, digest, file_digest
from finetrial.records import Example

OnMalformed = Literal["error", "drop"]


@dataclass(frozen=True)
class Dropped:
    """A row that did not become an Example."""

    place: str
    """`file:line` of line-based files, else `file[index]`."""
    reason: str


@dataclass(frozen=True)
class ReadResult:
    """A pool as it was read."""

    examples: list[Example]
    dropped: list[Dropped]
    source_facts: dict[str, Any]
    """source, files (name, SHA-256, rows), formats (name -> rows), and what was changed: duplicate_ids (made
    unique), duplicate_contents, tools_inferred (rows whose tools are those called anywhere in the source)."""

    @cached_property
    def content_key(self) -> str:
        """SHA-256 of the pool: independent of paths, of file boundaries and of the order of rows."""
        return digest(sorted(map(_row, self.examples)))

    def summary(self) -> dict[str, Any]:
        """Rows read, kept and dropped by reason (with up to 3 places each), in JSON types."""
        places: dict[str, list[str]] = defaultdict(list)
        for drop in self.dropped:
            places[drop.reason].append(drop.place)
        reasons = {reason: {"rows": len(at), "places": at[:3]} for reason, at in sorted(places.items())}
        return {
            "rows": len(self.examples) + len(self.dropped),
            "kept": len(self.examples),
            "dropped": len(self.dropped),
            "reasons": reasons,
            "groups": len({example.group for example in self.examples}),
            "resolved": _tally(example.resolved for example in self.examples),
            "content_key": self.content_key,
            **self.source_facts,
        }


def read(
    source: str,
    *,
    limit: int | None = None,
    on_malformed: OnMalformed = "error",
    drop_duplicates: bool = False,
) -> ReadResult:
    """Read a pool.

    Args:
        source: a file, a folder (read recursively), a glob, `hf:NAME[:config][@split]` or
            `world:NAME?count=N&seed=S[&split=campaign]`.
        limit: keep the first so many rows only, in the order of the source.
        on_malformed: what a row that is no JSON does: stop with file and line, or be counted as dropped.
        drop_duplicates: keep one row of those with the same messages (the one whose id sorts first).

    Raises:
        UserError: no such source, a malformed file, a file in which no row has a known shape, or nothing kept.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; expected a positive number of rows")
    if on_malformed not in get_args(OnMalformed):
        raise UserError(f"on_malformed is {on_malformed!r}; expected error or drop")
    facts: dict[str, Any] = {"source": source}
    dropped: list[Dropped] = []
    if source.startswith("world:"):
        examples = list(itertools.islice(_world(source), limit))
        facts |= {"files": [], "formats": {"world": len(examples)}}
    else:
        examples = _convert(source, limit, on_malformed, dropped, facts)
    if not examples:
        reasons = Counter(drop.reason for drop in dropped).most_common(3)
        told = "; ".join(f"{rows} rows: {reason}" for reason, rows in reasons)
        raise UserError(f"{source}: no usable row" + (f" ({told})" if told else " (the source is empty)"))
    examples, facts["tools_inferred"] = _infer_tools(examples)
    examples, facts["duplicate_ids"] = _unique_ids(examples)
    facts["duplicate_contents"] = len(examples) - len({example.content_hash for example in examples})
    if drop_duplicates:
        examples = _distinct(examples, dropped)
    return ReadResult(examples, dropped, facts)


def _convert(
    source: str, limit: int | None, on_malformed: OnMalformed, dropped: list[Dropped], facts: dict[str, Any]
) -> list[Example]:
    examples: list[Example] = []
    files: list[dict[str, Any]] = []
    formats: Counter[str] = Counter()
    for file in open_source(source, limit):
        known = rows = 0
        unknown: tuple[str, str] | None = None
        for row in file.rows:
            if limit is not None and len(examples) == limit:
                break
            rows += 1
            if row.error is not None:
                if on_malformed == "error":
                    raise UserError(f"{row.place}: {row.error}")
                dropped.append(Dropped(row.place, f"not JSON: {row.error}"))
                continue
            name = recognise(row.value)
            if name is None:
                reason = describe_unknown(row.value)
                unknown = unknown or (row.place, reason)
                dropped.append(Dropped(row.place, reason))
                continue
            known += 1
            try:
                example = FORMATS[name].convert(row.value, file.stem)
            except Malformed as error:
                dropped.append(Dropped(row.place, f"{name}: {error}"))
                continue
            formats[name] += 1
            examples.append(example)
        if unknown is not None and known == 0:
            raise UserError(f"{unknown[0]}: {unknown[1]}; known formats: {', '.join(FORMATS)}")
        files.append({"file": file.name, "sha256": file.sha256, "rows": rows})
    facts |= {"files": files, "formats": dict(sorted(formats.items()))}
    return examples


def open_source(source: str, limit: int | None = None) -> Iterator[FileFacts]:
    """The files of a source, or the hub data set that it names, with their rows as they stand there.

    Raises:
        UserError: no such source.
    """
    return iter([_hub(source, limit)]) if source.startswith("hf:") else _files(source)


def _files(source: str) -> Iterator[FileFacts]:
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
        base = path
    elif path.is_file():
        found, base = [path], path.parent
    else:
        found = sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())
        base = Path(glob.escape(source)).parent if not found else Path(found[0]).parent
    if not found:
        if path.is_dir():
            raise UserError(f"{source}: no file ending in {', '.join(SUFFIXES)} in this folder")
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{source}: no such file, folder or match of a glob{nearest(path.name, beside)}")
    for file in found:
        name = str(file.relative_to(base)) if file.is_relative_to(base) else file.name
        yield FileFacts(name=name, stem=file.stem, sha256=file_digest(file), rows=open_rows(file))


def _hub(source: str, limit: int | None) -> FileFacts:
    """A data set of the hub (or a folder that `datasets` can load), streamed when only a part is wanted."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, split = source.removeprefix("hf:").partition("@")
    name, _, config = name.partition(":")
    if not name:
        raise UserError(f"{source}: expected hf:NAME[:config][@split]")
    try:
        rows: Iterable[Any] = load_dataset(name, config or None, split=split or "train", streaming=limit is not None)
    except (DatasetsError, ValueError, OSError) as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from error
    raw = (RawRow(f"{source}[{index}]", row, None) for index, row in enumerate(rows))
    return FileFacts(name=source, stem=name.rsplit("/", 1)[-1], sha256=None, rows=raw)


def _world(source: str) -> Iterator[Example]:
    from finetrial.data.worlds import WORLDS

    name, _, query = source.removeprefix("world:").partition("?")
    if name not in WORLDS:
        raise UserError(f"{source}: no world {name!r}{nearest(name, WORLDS)}; there are {', '.join(sorted(WORLDS))}")
    options = {"count": "1000", "seed": "0", "split": "campaign"}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options:
            raise UserError(f"{source}: unknown option {key!r}{nearest(key, options)}; there are {', '.join(options)}")
        options[key] = value
    for key in ("count", "seed"):
        if not options[key].isdecimal() or (key == "count" and int(options[key]) < 1):
            raise UserError(f"{source}: {key} is {options[key]!r}; expected a whole number")
    split = options["split"]
    if split != "base" and split != "campaign":
        raise UserError(f"{source}: split is {split!r}; expected base or campaign")
    return WORLDS[name](int(options["count"]), int(options["seed"]), split)


def _infer_tools(examples: list[Example]) -> tuple[list[Example], int]:
    """Where a source does not list a row's tools: all tools called under the same system message in the source."""
    called: dict[str, set[str]] = defaultdict(set)
    silent = [example for example in examples if not example.tools]
    for example in silent:
        names = called[_system(example)]
        names.update(example.meta.get("tools_of_solution", ()))
        names.update(call["name"] for message in example.messages for call in message.get("tool_calls", ()))
    inferred = 0
    result: list[Example] = []
    for example in examples:
        names = called[_system(example)] if not example.tools else None
        if names:
            inferred += 1
            example = dataclasses.replace(example, tools=tuple(sorted(names)))
        result.append(example)
    return result, inferred


def _system(example: Example) -> str:
    return "\x1f".join(message["content"] for message in example.messages if message["role"] == "system")


def _unique_ids(examples: list[Example]) -> tuple[list[Example], int]:
    """Append `#2`, `#3`, ... to repeated ids, numbered by content so that the order of rows does not matter."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        places[example.id].append(place)
    taken, result, renamed = set(places), list(examples), 0
    for name in sorted(name for name, at in places.items() if len(at) > 1):
        at = sorted(places[name], key=lambda place: _row(examples[place])[1:])
        for number, place in enumerate(at[1:], start=2):
            unique = next(f"{name}#{k}" for k in itertools.count(number) if f"{name}#{k}" not in taken)
            taken.add(unique)
            result[place] = dataclasses.replace(examples[place], id=unique)
            renamed += 1
    return result, renamed


def _row(example: Example) -> list[str]:
    """What a pool's identity knows of a row, as text, so that rows can be sorted."""
    facts = [sorted(example.tools), example.resolved, example.reward]
    return [example.id, example.content_hash, example.group, canonical_json(facts)]


def _distinct(examples: list[Example], dropped: list[Dropped]) -> list[Example]:
    first: dict[str, str] = {}
    for example in examples:
        known = first.get(example.content_hash)
        first[example.content_hash] = example.id if known is None else min(known, example.id)
    kept: list[Example] = []
    for example in examples:
        if first[example.content_hash] == example.id:
            kept.append(example)
        else:
            dropped.append(Dropped(f"id {example.id}", "duplicate content"))
    return kept


def _tally(values: Iterable[bool | None]) -> dict[str, int]:
    counts = Counter(values)
    return {"yes": counts[True], "no": counts[False], "unknown": counts[None]}
