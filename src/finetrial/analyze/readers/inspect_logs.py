"""Inspect logs (`.eval`): a ZIP of JSON, one sample and epoch at a time.

Written against inspect_ai 0.3.285 (log version 2): `header.json` names task, model and metadata, `summaries.json` lists
`id`, `epoch` and `scores` of every sample; an unfinished log has `_journal/start.json` and `_journal/summaries/N.json`
instead. Members are compressed with Zstandard (ZIP method 93), which Python's zipfile does not read before 3.14.

The task is the suite, the sample's id the item, its epoch the sample. A score `C`, `P`, `I` or `N` is 1, 0.5, 0 or 0.
A sample that ended in an error has no value. The run is `condition` and `seed` of the log's metadata, else the nearest
folder called `<condition>_s<seed>`, else the model, a checkpoint without a seed.
"""

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetrial.analyze.readers.shared import Foreign, as_number, run_of
from finetrial.errors import UserError

_ZSTANDARD = 93
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def read(paths: Sequence[Path], mapping: Mapping[str, str]) -> Foreign:
    """Outcomes of all logs at or below `paths`.

    Raises:
        UserError: a file is no Inspect log, or one sample's text differs between logs.
    """
    files = [f for path in paths for f in (sorted(path.rglob("*.eval")) if path.is_dir() else [path])]
    foreign = Foreign("Inspect logs")
    texts: dict[tuple[str, str], tuple[str, Path]] = {}
    not_numbers: set[str] = set()
    for file in files:
        header, samples = _load(file)
        spec = header["eval"]
        run, task = _run(file, spec, mapping), str(spec["task"])
        if header.get("status", "started") != "success":
            foreign.notes.append(
                f"{file.name}: the evaluation did not finish (status {header.get('status', 'started')})"
            )
        scorers = sorted({name for sample in samples for name in sample.get("scores") or {}})
        if not scorers:
            foreign.notes.append(f"{file.name}: no sample has a score, so the log tells nothing")
        for sample in samples:
            item = str(sample["id"])
            text = json.dumps([sample.get("input"), sample.get("target")], sort_keys=True)
            first, where = texts.setdefault((task, item), (text, file))
            if first != text:
                raise UserError(
                    f"{file}: sample {item} of {task} has another input or target than in {where}: the "
                    "conditions were not measured on the same items"
                )
            scores = sample.get("scores") or {}
            for scorer in scorers:
                for name, value in _values(scorer, scores.get(scorer)):
                    if isinstance(value, str) and value not in _GRADES and _parsed(value) is None:
                        not_numbers.add(name)
                    foreign.add(run, task, item, int(sample["epoch"]) - 1, name, _parsed(value))
    if not_numbers:
        foreign.notes.append(f"scores that are no number are missing: {', '.join(sorted(not_numbers))}")
    return foreign


def _values(scorer: str, score: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """(metric, value) of one score: one for a plain value, one per key for a dictionary."""
    if score is None:
        return [(scorer, None)]
    value = score["value"]
    return [(f"{scorer}/{key}", part) for key, part in value.items()] if isinstance(value, dict) else [(scorer, value)]


def _parsed(value: Any) -> float | None:
    if isinstance(value, str):
        if value in _GRADES or value.lower() in _GRADES:
            return _GRADES.get(value, _GRADES.get(value.lower()))
        try:
            return float(value)
        except ValueError:
            return None
    return as_number(value)


def _run(file: Path, spec: Mapping[str, Any], mapping: Mapping[str, str]) -> tuple[str, int | None]:
    metadata = spec.get("metadata") or {}
    if "condition" in metadata:
        seed = metadata.get("seed")
        if seed is not None and not isinstance(seed, int):
            raise UserError(f"{file}: metadata 'seed' is {seed!r}, expected a whole number")
        return str(metadata["condition"]), seed
    return run_of(file, mapping) or (mapping.get(spec["model"], spec["model"]), None)


def _load(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(header, sample summaries) of a log."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            head = "header.json" if "header.json" in names else "_journal/start.json"
            if head not in names:
                raise UserError(f"{file}: neither header.json nor _journal/start.json inside; expected an Inspect log")
            header = json.loads(_member(file, archive, head))
            if "summaries.json" in names:
                return header, json.loads(_member(file, archive, "summaries.json"))
            parts = sorted(n for n in names if n.startswith("_journal/summaries/"))
            return header, [row for part in parts for row in json.loads(_member(file, archive, part))]
    except zipfile.BadZipFile as error:
        raise UserError(f"{file}: not an Inspect log ({error})") from error


def _member(file: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member, with Zstandard where Python's own zipfile has none."""
    info = archive.getinfo(name)
    if info.compress_type != _ZSTANDARD:
        return archive.read(name)
    with file.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", stream.read(4))
        stream.seek(name_length + extra_length, 1)
        packed = pa.py_buffer(stream.read(info.compress_size))
    with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as unpacked:
        return unpacked.read(info.file_size)
