"""Exact resume: one folder per cohort that holds the newest whole state and nothing else.

Layout: `<folder>/step-<n>/{state.safetensors,state.json}`. A state is written under a temporary name, synced and
renamed; older ones are removed only then. A killed process therefore leaves the old state or the new one.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from finetrial.errors import UserError
from finetrial.store import write_json

TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a cohort after `step` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the state after `step` steps, then drop the older ones."""
    final = folder / f"step-{step}"
    partial = folder / f".step-{step}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
        _sync(partial / TENSORS)
        write_json(partial / FACTS, {**facts, "step": step})
        _sync(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for other in folder.glob("step-*"):
        if other != final:
            shutil.rmtree(other)


def load(folder: Path) -> Checkpoint | None:
    """The newest state, or None where there is none.

    Raises:
        UserError: a file of the state is missing or unreadable.
    """
    states = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    if not states:
        return None
    state = states[-1]
    try:
        facts = json.loads((state / FACTS).read_text(encoding="utf-8"))
        return Checkpoint(int(facts["step"]), load_file(state / TENSORS), facts)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{state}: unreadable checkpoint ({error}); delete the folder to train from the start"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
