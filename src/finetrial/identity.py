"""Identity by content: canonical JSON and SHA-256.

A key is a function of the science alone. Paths, machines, workers, batch packing and the clock never enter,
and whatever has no canonical form is refused rather than stringified.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel


def canonical(value: Any) -> Any:
    """Reduce `value` to plain JSON types with one spelling per meaning.

    Accepts None, bool, int, float, str, mappings with string keys, lists, tuples, numpy scalars and frozen
    pydantic models. Sets, callables, arrays, bytes, paths, NaN and infinities have no canonical form.

    Raises:
        TypeError: the value (or one inside it) has no canonical form; the message gives its place.
    """
    return _canonical(value, "value")


def _canonical(value: Any, place: str) -> Any:
    kind = type(value)  # plain types first: they are nearly all there is, and abstract base classes are slow
    if kind is str:
        return value
    if kind is dict and all(type(key) is str for key in value):
        return {key: _canonical(item, f"{place}.{key}") for key, item in value.items()}
    if kind is list:
        return [_canonical(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if not math.isfinite(number):
            raise TypeError(f"{place} is {number}: only finite numbers have an identity")
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if isinstance(value, BaseModel):
        return _canonical(value.model_dump(mode="python"), place)
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise TypeError(f"{place} has the key {bad[0]!r}: only string keys have an identity")
        return {key: _canonical(value[key], f"{place}.{key}") for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_canonical(item, f"{place}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{place} is a {type(value).__name__}, which has no canonical form")


def canonical_json(value: Any) -> str:
    """The one JSON spelling of `value`: sorted keys, no spaces, integers for integral floats."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stage_key(stage: str, version: int, config: Any, inputs: Mapping[str, str], seed: int | None = None) -> str:
    """The reuse key of one stage result.

    Args:
        stage: name of the stage, for example `train`.
        version: the stage's hand-bumped version; raise it whenever the numbers it writes change.
        config: its scientific configuration (canonical).
        inputs: name -> key or content hash of everything it reads.
        seed: the run's seed, where the stage has one.
    """
    return digest({"stage": stage, "version": version, "config": config, "inputs": dict(inputs), "seed": seed})
