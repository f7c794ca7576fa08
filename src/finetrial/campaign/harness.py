"""Suites of kind `lm_eval` as they are planned with: tasks of lm-evaluation-harness, their items, metrics and identity.

The harness is an extra, so it is imported where a campaign has such a suite and nowhere else.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetrial.analyze.contrast import Contrast
from finetrial.analyze.metrics import known
from finetrial.campaign.plan import STAGE_VERSIONS, Suite
from finetrial.campaign.settings import SuiteConfig
from finetrial.campaign.spec import Spec
from finetrial.campaign.suites import shown
from finetrial.errors import UserError, nearest
from finetrial.identity import digest
from finetrial.records import Example

MEANS = ("mean", "nanmean")
"""Aggregations of the harness under which an item's value is an outcome: a mean over items is its own number."""

BITS = "bits_per_byte"
"""The one metric that it weighs: nats over bytes, of which an item's share is weighted by its bytes."""


@dataclass(frozen=True)
class Harness:
    """What a suite asks of the harness."""

    config: SuiteConfig
    tasks: Mapping[str, Any]
    """Name -> the harness's task, loaded."""
    items: tuple[Example, ...]
    """What each document asks, named `<task>/<number>`; the task is its category where there are several."""
    metrics: tuple[str, ...]
    """Names of those that items have values of, the task's first one first."""
    left_out: tuple[str, ...]
    """Those that are numbers of a whole set alone (perplexity, f1, bleu)."""
    chance: float | None
    prompt: str
    key: str
    """Digest of the tasks' configurations and documents, the harness's version and how it asks."""
    higher: Mapping[str, bool]
    """Whether the harness takes a higher value for better."""


def load(suite: SuiteConfig, tokenizer: PreTrainedTokenizerBase) -> Harness:
    """The tasks of a suite; their data is downloaded where it is not there.

    Raises:
        UserError: the harness is not installed, knows no such task, or cannot load it; or no metric of the task has
            values of items.
    """
    from finetrial.evaluate import lm_eval_model

    place = f"suite {suite.name}"
    if suite.include_path and not Path(suite.include_path).is_dir():
        raise UserError(f"{place}: include_path: {suite.include_path} is no folder")
    try:
        manager = lm_eval_model.TaskManager(include_path=suite.include_path or None)
        tasks = lm_eval_model.load_tasks([suite.task], manager, suite.num_fewshot)["tasks"]
    except UserError as error:
        raise type(error)(f"{place}: {error}") from error
    docs = {name: list(task.doc_iterator(limit=suite.limit)) for name, task in tasks.items()}
    metrics, left_out, higher = _metrics(tasks)
    if not metrics:
        raise UserError(f"{place}: {', '.join(left_out)} of {suite.task} are numbers of a set; no item has one")
    return Harness(
        config=suite,
        tasks=tasks,
        items=tuple(
            Example(
                f"{name}/{number}",
                f"{name}/{number}",
                ({"role": "user", "content": _question(task, doc)},),
                meta={"category": name} if len(tasks) > 1 else {},
            )
            for name, task in tasks.items()
            for number, doc in docs[name]
        ),
        metrics=metrics,
        left_out=left_out,
        chance=_chance(tasks, docs),
        prompt=_first_prompt(suite, next(iter(tasks.values())), partial(lm_eval_model.chat, tokenizer)),
        key=digest(
            {
                "version": version("lm_eval"),
                "tasks": {
                    name: {
                        "config": _text(task.dump_config()),
                        "docs": [[n, digest(_text(doc))] for n, doc in docs[name]],
                    }
                    for name, task in tasks.items()
                },
                "chat_template": suite.chat_template,
                "fewshot_seed": lm_eval_model.FEWSHOT_SEED,
            }
        ),
        higher=higher,
    )


def harness_suite(harness: Harness, spec: Spec, base: str) -> Suite:
    """The suite as it is planned with."""
    chance = "" if harness.chance is None else f", chance {harness.chance:.1%}"
    without = f"; without {', '.join(harness.left_out)}, which no item has" if harness.left_out else ""
    facts = {"metrics": list(harness.metrics), "tasks": list(harness.tasks)}
    content = {
        "kind": "lm_eval",
        "key": harness.key,
        "base": base,
        "seed": spec.evaluation.seed,
        "render": STAGE_VERSIONS["render"],
    }
    return Suite(
        name=harness.config.name,
        description=f"{harness.config.task} of lm-evaluation-harness, {len(harness.items)} items{chance}{without}",
        items=tuple(item.id for item in harness.items),
        groups=len(harness.items),
        hash=digest(content),
        kind="lm_eval",
        prompt=shown(harness.prompt),
        facts={**facts, **({} if harness.chance is None else {"chance": harness.chance})},
    )


def check_metrics(spec: Spec, loaded: Mapping[str, Harness]) -> None:
    """Refuse contrasts and trade-offs on what a task does not measure, or whose better direction nobody has said.

    Raises:
        UserError: naming the contrast, and the metrics that there are.
    """
    for one in spec.contrasts:
        for name in {one.suite.partition("@")[0], (one.minus_suite or one.suite).partition("@")[0]} & {*loaded}:
            _check(f"[[contrasts]] {one.name!r}", name, one.metric or spec.campaign.primary_metric, loaded[name], one)
    for tradeoff in spec.analysis.tradeoffs:
        for axis in (tradeoff.x_axis, tradeoff.y_axis):
            for name in {*axis.suites} & {*loaded}:
                _check(f"[[analysis.tradeoffs]] {tradeoff.name!r}", name, axis.metric, loaded[name])


def _check(place: str, suite: str, metric: str, harness: Harness, contrast: Contrast | None = None) -> None:
    if metric not in harness.metrics:
        raise UserError(
            f"{place}: {metric!r} is not measured on suite {suite!r} ({harness.config.task})"
            f"{nearest(metric, harness.metrics)}; there are {', '.join(harness.metrics)}"
        )
    if known(metric) is None and (contrast is None or contrast.better is None):
        better = "higher" if harness.higher.get(metric, True) else "lower"
        raise UserError(
            f"{place}: which direction of {metric!r} is better is not known; the harness says {better}: "
            f"set better = {better!r}"
        )


def _metrics(tasks: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, bool]]:
    """Metrics that items have values of and that they have not; whether higher is better.

    Where a task reads an answer in several ways (filters), each is a metric of its own, as in the harness's results:
    `exact_match,strict-match`.
    """
    kept: dict[str, bool] = {}
    lost: dict[str, None] = {}
    for task in tasks.values():
        for metric, aggregation in task.aggregation().items():
            itemwise = getattr(aggregation, "__name__", "") in MEANS or metric == BITS
            for name in named(task, metric):
                if itemwise:
                    kept[name] = task.higher_is_better().get(metric, True)
                else:
                    lost[name] = None
    return tuple(kept), tuple(lost), kept


def named(task: Any, metric: str) -> list[str]:
    """The names of a task's metric, one for each of its filters."""
    filters = [one.name for one in task._filters]
    return [metric] if len(filters) == 1 else [f"{metric},{name}" for name in filters]


def _chance(tasks: Mapping[str, Any], docs: Mapping[str, Sequence[tuple[int, Any]]]) -> float | None:
    """Expected accuracy of guessing, where every task is multiple choice."""
    if any(task.OUTPUT_TYPE != "multiple_choice" for task in tasks.values()):
        return None
    shares = [1 / len(task.doc_to_choice(doc)) for name, task in tasks.items() for _, doc in docs[name]]
    return math.fsum(shares) / len(shares) if shares else None


def _question(task: Any, doc: Any) -> str:
    """What a document asks; where it asks nothing (likelihood of a text) that text, else the document."""
    for found in (task.doc_to_text(doc), task.doc_to_target(doc)):
        if isinstance(found, str) and found.strip():
            return found
    return _text(doc)


def _first_prompt(suite: SuiteConfig, task: Any, chat: Any) -> str:
    task.build_all_requests(
        limit=1,
        rank=0,
        world_size=1,
        apply_chat_template=suite.chat_template,
        fewshot_as_multiturn=suite.chat_template,
        chat_template=chat if suite.chat_template else None,
    )
    return str(task.instances[0].args[0])


def _text(value: Any) -> str:
    """Canonical JSON of what the harness holds; of functions their names, without addresses."""
    written = json.dumps(
        value, sort_keys=True, ensure_ascii=False, default=lambda one: getattr(one, "__name__", str(one))
    )
    return re.sub(r" at 0x[0-9a-f]+", "", written)
