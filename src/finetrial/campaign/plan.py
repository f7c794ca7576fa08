"""Which runs a campaign has, which of them exist already, and why: pure functions of spec, data and store.

Decisions per run: REUSE (a whole result of the same key exists), RETRAIN (the run was made before from other
inputs), NEW (never made), STALE (made before, but its condition or seed is no longer in the campaign, or its
result belongs to another numerics class), STOPPED (a planned look decided that it is not needed). Nothing here
imports torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from finetrial.campaign.conditions import Condition
from finetrial.campaign.contrasts import watched_metric
from finetrial.campaign.practice import PracticeSet
from finetrial.campaign.settings import INSTRUMENTS
from finetrial.campaign.spec import Spec
from finetrial.data.select import Selection
from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import grader_key
from finetrial.identity import digest, stage_key
from finetrial.model.source import encoder_key
from finetrial.store import Store, read_json
from finetrial.train.term_config import function_error

STAGE_VERSIONS = {"render": 2, "train": 1, "evaluate": 2, "rl": 2, "completions": 1, "grades": 1, "texts": 1,
                  "choice": 2, "conversation": 1, "lm_eval": 1, "set_diversity": 2}  # fmt: skip
"""Bumped by hand whenever a stage's numbers change for the same inputs (CHANGELOG.md says what moved and why)."""

Decision = Literal["REUSE", "RETRAIN", "NEW", "STALE", "STOPPED"]

EXECUTION_ONLY = {"micro_batch_tokens", "gradient_checkpointing", "save_every"}
"""Fields of `[training]` that cost memory or time and never enter a key."""

NOT_SCIENCE = {*EXECUTION_ONLY, "objective", "epochs", "max_steps"}
"""Fields of `[training]` that enter a key in another form: as the stage's name, and as the number of steps."""


LATER = {
    "model": {"init": "lora", "dora": False},
    "training": {"token_weighting": "none", "lora_plus_ratio": 1.0},
}
"""Options that came after the first keys: they enter one only where they differ from these, so that runs made before
them keep theirs."""


@dataclass(frozen=True)
class Suite:
    """One evaluation set, ready to be planned with."""

    name: str
    description: str
    items: tuple[str, ...]
    groups: int
    hash: str
    """Of the items' content, the rendering and the base's template (of tasks also of sampling and grading); enters
    every outcome."""
    kind: str = "perplexity"
    """`perplexity`, `tasks`, `choice`, `conversation` or `lm_eval`."""
    step: int | None = None
    """Set where adapters are measured as they were after this step; the items are those of `of`."""
    texts: str = field(default="", compare=False)
    """Of what is measured of completions' texts: all that it depends on beside `hash`; empty where nothing is."""
    prompt: str = field(default="", compare=False)
    """The first item as the model reads it, up to where the assistant begins; special tokens included."""
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """In JSON types: `chance` of multiple choice, `subset` where not all items are taken, `metrics` (the first by
    default) where the kind alone does not tell them."""

    @property
    def of(self) -> str:
        """Name of the suite whose items these are."""
        return self.name if self.step is None else self.name.removesuffix(f"@{self.step}")

    def at(self, step: int) -> "Suite":
        """The same items, for adapters as they were after `step` steps."""
        described = f"{self.description}, after {step} steps"
        return replace(self, name=f"{self.name}@{step}", description=described, step=step)


@dataclass(frozen=True)
class Inputs:
    """What the data stages made, as far as planning needs it."""

    base_key: str
    numerics: str
    """Numerics class of this machine: device family and torch version."""
    selections: Mapping[tuple[str, int], Selection | PracticeSet]
    """(condition, seed) -> the rows that the run trains on, or the tasks that it practises on."""
    upstream: Mapping[str, Mapping[str, Any]]
    """condition -> what its rows or tasks are from (pool, split, score and selection tables); for reasons only."""
    suites: tuple[Suite, ...]
    parts: Mapping[str, Mapping[str, Selection]] = field(default_factory=dict)
    """condition -> part of its mixture -> the rows of that part."""


@dataclass(frozen=True)
class Run:
    """One condition with one seed."""

    condition: str
    seed: int
    steps: int
    selection: Selection | PracticeSet
    science: Mapping[str, Any]
    """What the run's numbers depend on besides base, rows and seed."""
    upstream: Mapping[str, Any]
    """What the rows were selected from and how; explains changes, enters no key."""
    base_key: str
    science_key: str
    """Identity of the recipe, its data and its seed, whatever machine computes it."""
    key: str
    """Identity of the result: `science_key` in a numerics class."""
    decision: Decision = "NEW"
    reason: str = ""
    saves_s: float | None = None
    snapshots: tuple[int, ...] = ()
    """Steps after which the adapter is kept as it is then."""
    parts: Mapping[str, Selection] = field(default_factory=dict)
    """Part of its mixture -> the rows of that part."""

    @property
    def objective(self) -> str:
        """`sft` or `rl`."""
        return "rl" if "rl" in self.science else "sft"

    @property
    def name(self) -> str:
        """`<condition>_s<seed>`, the run's folder below `runs/`."""
        return f"{self.condition}_s{self.seed}"

    @property
    def rows(self) -> frozenset[tuple[str, ...]]:
        """(id, content hash) of every row or task it trains on; of a row that is mixed in also its part."""
        mixed = ((*row, name) for name, part in self.parts.items() for row in _identities(part))
        return frozenset([*_identities(self.selection), *mixed])


@dataclass(frozen=True)
class Plan:
    """All runs in the order they are made (seed by seed, so that pairs complete early), and what is left over."""

    runs: tuple[Run, ...]
    suites: tuple[Suite, ...]
    leftover: tuple[tuple[str, str], ...]
    """(run name, reason) of runs in the campaign's folder that the spec no longer asks for."""

    @property
    def pending(self) -> tuple[Run, ...]:
        """Runs that have to be trained."""
        return tuple(run for run in self.runs if run.decision not in ("REUSE", "STOPPED"))


def plan(
    spec: Spec,
    inputs: Inputs,
    store: Store,
    published: Mapping[str, str],
    previous: Mapping[str, Any] | None = None,
    dry: bool = False,
) -> Plan:
    """Derive all runs with their decisions.

    Args:
        spec: the campaign.
        inputs: what the data stages made.
        store: where finished runs are kept.
        published: run name -> key of what the campaign's folder shows of earlier launches.
        previous: the campaign's manifest from an earlier launch, which knows what a look has stopped.
        dry: mark every run as a dry run, which no real campaign ever reuses.
    """
    entries = (previous or {}).get("runs", [])
    spared = {entry["train_key"]: entry["reason"] for entry in entries if entry.get("status") == "stopped"}
    kin = _by_science_key(store)
    runs = []
    for seed in spec.campaign.seeds:
        for condition in spec.conditions:
            run = _run(condition, seed, inputs, spec.evaluation.every, dry)
            run = _decide(run, inputs.numerics, spec.campaign.mix_numerics, store, published.get(run.name), kin)
            if run.key in spared and run.decision == "NEW":
                run = replace(run, decision="STOPPED", reason=spared[run.key])
            runs.append(run)
    wanted = {run.name for run in runs}
    names = {condition.name for condition in spec.conditions}
    leftover = tuple(
        (name, "condition is no longer in the campaign" if name.rpartition("_s")[0] not in names else "seed dropped")
        for name in sorted(published)
        if name not in wanted
    )
    steps = sorted({step for run in runs for step in run.snapshots})
    snapshots = [suite.at(step) for suite in inputs.suites for step in steps]
    return Plan(tuple(runs), (*inputs.suites, *snapshots), leftover)


def cohorts(runs: Sequence[Run], size: int) -> Iterator[tuple[Run, ...]]:
    """Group runs that can be trained in one stack: same objective, steps and target layers, at most `size` each.

    Conditions with the same recipe and rows are one run, trained once. Chunks are cut in order, so that after an
    interruption the remaining runs form the same cohorts again.
    """
    groups: dict[str, list[Run]] = {}
    for run in reversed({run.key: run for run in reversed(runs)}.values()):
        groups.setdefault(digest([run.objective, run.steps, run.science["model"]["targets"]]), []).append(run)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield tuple(group[start : start + size])


def reached(record: Mapping[str, Any], step: int | None) -> bool:
    """Whether a run has an adapter of step `step`, or, for None, of its end: one that its guard stopped has none of
    later steps, one in quarantine has none at all."""
    end = (record.get("stopping") or {}).get("stopped_at")
    return record["status"] == "done" and (step is None or end is None or step <= end)


def _run(condition: Condition, seed: int, inputs: Inputs, every: int, dry: bool) -> Run:
    selection = inputs.selections[condition.name, seed]
    steps, parts = condition.steps(len(selection.ids)), inputs.parts.get(condition.name, {})
    snapshots = tuple(range(every, steps, every)) if every else ()
    model = condition.model.model_dump(mode="json", exclude={"base", "revision", "dtype", "lora_alpha"})
    training = condition.training.model_dump(mode="json", exclude=NOT_SCIENCE)
    science: dict[str, Any] = {
        "model": _without_defaults("model", {**model, "alpha": condition.model.alpha}),
        "training": _without_defaults("training", training),
        "steps": steps,
    }
    if condition.anchor is not None and condition.anchor.coef:
        science["anchor"] = condition.anchor.model_dump(mode="json")
    if condition.set_diversity is not None:
        keys = [_function_key(name, function) for name, function in condition.set_diversity.functions.items()]
        science["set_diversity"] = {
            **condition.set_diversity.model_dump(mode="json"),
            "functions": keys,
            "version": STAGE_VERSIONS["set_diversity"],
        }
        if condition.set_diversity.encoder is not None:
            science["set_diversity"]["embedding_model"] = encoder_key(condition.set_diversity.encoder)
    if condition.mixture is not None:
        shares = {part.name: [list(point) for point in part.points] for part in condition.mixture.parts}
        mixed = {name: {"share": shares[name], "rows": part.key} for name, part in parts.items()}
        science["mixture"] = {"unit": condition.mixture.unit, "parts": mixed}
    if condition.stopping is not None:
        watched = next(suite for suite in inputs.suites if suite.name == condition.stopping.suite)
        rule = condition.stopping.model_dump(mode="json", exclude={"suite", "metric"})
        metric = watched_metric(condition.stopping, watched.kind)
        science["stopping"] = {**rule, "metric": metric, "suite": watched.hash}
        if metric in INSTRUMENTS:
            science["stopping"]["texts"] = watched.texts
    if snapshots:
        science["snapshots"] = list(snapshots)
    if dry:
        science["dry_run"] = True
    stage, read = "train", "selection"
    if condition.rl is not None and isinstance(selection, PracticeSet):
        stage, read = "rl", "tasks"
        science["rl"] = condition.rl.model_dump(mode="json", exclude={"batch_sizing"})
        science["grader"] = selection.grading.key
    science_key = stage_key(
        stage,
        STAGE_VERSIONS[stage],
        {**science, "render": STAGE_VERSIONS["render"]},
        {"base": inputs.base_key, read: selection.key},
        seed,
    )
    return Run(
        condition=condition.name,
        seed=seed,
        steps=steps,
        selection=selection,
        science=science,
        upstream=inputs.upstream[condition.name],
        base_key=inputs.base_key,
        science_key=science_key,
        key=digest({"science": science_key, "numerics": inputs.numerics}),
        snapshots=snapshots,
        parts=parts,
    )


def _function_key(name: str, function: str) -> str:
    """Identity of a user's function that `[set_diversity]` names."""
    try:
        return grader_key(GraderConfig(kind="function", function=function))
    except UserError as error:
        raise UserError(function_error(name, error)) from error


def _without_defaults(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in LATER[table] or value != LATER[table][key]}


def _decide(
    run: Run, numerics: str, mix_numerics: bool, store: Store, earlier: str | None, kin: Mapping[str, list[str]]
) -> Run:
    if store.has("train", run.key):
        return _reuse(run, store.record("train", run.key), store, earlier)
    relatives = kin.get(run.science_key, [])
    if relatives and mix_numerics:
        return _reuse(replace(run, key=relatives[0]), store.record("train", relatives[0]), store, earlier)
    if relatives:
        other = store.record("train", relatives[0])["numerics"]
        return replace(run, decision="STALE", reason=f"was trained on {other}; this machine is {numerics}")
    if earlier is None or not store.has("train", earlier):
        reason = "not trained before" if earlier is None else "was trained before, but its result is gone"
        return replace(run, decision="NEW", reason=reason)
    return replace(run, decision="RETRAIN", reason=_what_changed(run, earlier, store))


def _reuse(run: Run, record: Mapping[str, Any], store: Store, earlier: str | None) -> Run:
    changed = _differences(record["upstream"], run.upstream)
    if changed:
        reason = f"same {len(run.rows)} {_rows(run)} although {_listed(changed)}"
    elif earlier is None:
        reason = f"the same recipe, {_rows(run)} and seed were trained in campaign {record['campaign']!r}"
    else:
        reason = "nothing changed"
    return replace(run, decision="REUSE", reason=reason, saves_s=record["seconds"])


def _what_changed(run: Run, earlier: str, store: Store) -> str:
    """Why a run that exists has to be made again, in words, most telling first."""
    record = store.record("train", earlier)
    before = frozenset(map(tuple, read_json(store.path("train", earlier) / "rows.json")))
    reasons = []
    if before != run.rows:
        causes = _differences(record["upstream"], run.upstream)
        moved = _moved(before, run.rows, _rows(run))
        reasons.append(f"{moved}: {_listed(causes)}" if causes else moved)
    if record["base_key"] != run.base_key:
        reasons.append("the base model, its tokenizer or its template changed")
    reasons += _differences(_without_rows(record["science"]), _without_rows(run.science))
    return "; ".join(reasons) or "the train stage's version changed"


def _moved(before: frozenset[tuple[str, ...]], after: frozenset[tuple[str, ...]], rows: str) -> str:
    """Which rows changed, of the selection and of every part of a mixture, in words."""
    told = []
    for name in sorted({row[2:] for row in before | after}):
        old, new = ({row for row in side if row[2:] == name} for side in (before, after))
        lost, of = len(old - new), f" of part {name[0]}" if name else ""
        if lost:
            told.append(f"{lost} of {len(old)} {rows}{of} changed")
        elif old != new:
            told.append(f"{len(old)} {rows}{of} became {len(new)}")
    return " and ".join(told)


def _without_rows(science: Mapping[str, Any]) -> dict[str, Any]:
    """Without the digests of mixed rows, which say less of a change than the rows themselves do."""
    if "mixture" not in science:
        return dict(science)
    parts = {name: {"share": part["share"]} for name, part in science["mixture"]["parts"].items()}
    return {**science, "mixture": {**science["mixture"], "parts": parts}}


def _identities(rows: Selection | PracticeSet) -> list[tuple[str, str]]:
    return list(zip(rows.ids, rows.content_hashes, strict=True))


def _rows(run: Run) -> str:
    return "tasks" if run.objective == "rl" else "rows"


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`table.key old → new` for every leaf that differs."""
    old, new = _leaves(before), _leaves(after)
    return [
        f"{leaf} {_shown(old.get(leaf))} → {_shown(new.get(leaf))}"
        for leaf in sorted({*old, *new})
        if old.get(leaf) != new.get(leaf)
    ]


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "unset"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _listed(changes: Sequence[str], most: int = 4) -> str:
    more = f" and {len(changes) - most} more" if len(changes) > most else ""
    return ", ".join(changes[:most]) + more


def _by_science_key(store: Store) -> dict[str, list[str]]:
    kin: dict[str, list[str]] = {}
    for key in store.keys("train"):
        kin.setdefault(store.record("train", key)["science_key"], []).append(key)
    return kin
