"""The models that suites are measured on, and the sweeps in which they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.campaign.launch import Launch
from finetrial.campaign.plan import STAGE_VERSIONS, Suite
from finetrial.identity import stage_key
from finetrial.model.adapters import Adapter
from finetrial.model.peft_format import load_peft
from finetrial.records import Outcome

ADAPTERS_PER_SWEEP = 16
"""Models measured before their results are stored: what a crash can lose."""

ITEMS = "items.parquet"
"""The table of an artefact."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Examinee:
    """A model that a suite is measured on."""

    condition: str
    seed: int | None
    name: str
    adapter: str
    """Digest of the adapter; `base` for the base."""
    folder: Path | None
    """Where it is; None for the base."""

    def load(self) -> Adapter:
        """The adapter."""
        assert self.folder is not None
        return load_peft(self.folder)

    def outcome(
        self,
        suite: Suite,
        item: str,
        group: str | None,
        metric: str,
        value: float | None,
        sample: int = 0,
        weight: float = 1.0,
    ) -> Outcome:
        """One number measured on it."""
        return Outcome(
            condition=self.condition,
            seed=self.seed,
            suite=suite.name,
            item=item,
            sample=sample,
            metric=metric,
            value=value,
            weight=weight,
            group=group,
            suite_hash=suite.hash,
        )


def sweeps(models: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Models by the sweep."""
    for start in range(0, len(models), ADAPTERS_PER_SWEEP):
        yield models[start : start + ADAPTERS_PER_SWEEP]


def suite_key(launch: Launch, stage: str, suite: Suite, one: Examinee, science: Mapping[str, Any] | None = None) -> str:
    """Identity of what a stage measures of a model on a whole suite; `science` is what it depends on besides."""
    inputs = {
        "adapter": one.adapter,
        "base": launch.prepared.inputs.base_key,
        "suite": suite.hash,
        "numerics": launch.prepared.inputs.numerics,
    }
    return stage_key(stage, STAGE_VERSIONS[stage], science or {}, inputs)


def fill(
    launch: Launch,
    suite: Suite,
    stage: str,
    examinees: Sequence[Examinee],
    measure: Callable[[Sequence[Examinee]], Sequence[pa.Table]],
    science: Mapping[str, Any] | None = None,
) -> None:
    """Measure the models that lack this artefact, a sweep at a time, and store a table for each."""
    store = launch.folder.store
    keys = {one.name: suite_key(launch, stage, suite, one, science) for one in examinees}
    lacking: dict[str, Examinee] = {}
    for one in examinees:
        if store.has(stage, keys[one.name]):
            launch.say(f"[{suite.name}] {one.name} is already evaluated ({keys[one.name][:12]})")
        else:
            lacking.setdefault(keys[one.name], one)
    for sweep in sweeps(list(lacking.items())):
        tables = measure([one for _, one in sweep])
        for (name, one), table in zip(sweep, tables, strict=True):
            put(launch, stage, name, suite, one, table)


def put(launch: Launch, stage: str, key: str, suite: Suite, one: Examinee, table: pa.Table) -> None:
    """Store a table."""
    record = {"suite": suite.name, "kind": suite.kind, "model": one.name}
    with launch.folder.store.put(stage, key, record) as target:
        pq.write_table(table, target / ITEMS)


def stored(launch: Launch, stage: str, key: str) -> pa.Table:
    """A table that was stored."""
    return pq.read_table(launch.folder.store.path(stage, key) / ITEMS)
