"""Suites of kind `lm_eval` as they are planned with: tasks of lm-evaluation-harness, their items, metrics and identity.

The harness is an extra, so it is imported where a campaign has such a suite and nowhere else.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetrial.analyze.contrast import Contrast
from finetrial.analyze.metrics import known
from finetrial.campaign.foreign import source_of, text_of
from finetrial.campaign.items import check_category
from finetrial.campaign.plan import Suite
from finetrial.campaign.settings import SuiteConfig
from finetrial.campaign.spec import Spec
from finetrial.campaign.suites import shown
from finetrial.errors import UserError, nearest
from finetrial.identity import digest
from finetrial.records import Example, Message, Task

MEANS = ("mean", "nanmean")
"""Aggregations of the harness under which an item's value is an outcome: a mean over items is its own number."""

BITS = "bits_per_byte"
"""The one metric that it weighs: nats over bytes, of which an item's share is weighted by its bytes."""

WHERE = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "tag", "task_alias")
"""Parts of a task's configuration that say where its documents are, or what it is called, and not what is measured."""

FACT = 80
"""Most characters of a document's text that counts as a fact of the item, such as its subject."""


@dataclass(frozen=True)
class Harness:
    """What a suite asks of the harness."""

    config: SuiteConfig
    called: str
    """The task's own name; of a group also how many tasks it has."""
    tasks: Mapping[str, Any]
    """Name -> the harness's task, loaded."""
    items: tuple[Example | Task, ...]
    """What each document asks, named `<task>/<number>`; the task is its category where there are several."""
    asked: tuple[Example, ...]
    """Every text in which a document asks: what may not be trained on."""
    metrics: tuple[str, ...]
    """Names of those that items have values of, the task's first one first."""
    left_out: tuple[str, ...]
    """Those that are numbers of a whole set alone (perplexity, f1, bleu)."""
    chance: float | None
    prompt: str
    key: str
    """Digest of the tasks' configurations and code, their documents, the harness's version and how it asks."""
    sampled: bool
    """Whether completions are drawn with noise."""
    higher: Mapping[str, bool]
    """Whether the harness takes a higher value for better."""


@dataclass(frozen=True)
class Document:
    """A document, and what its task's own code makes of it."""

    number: int
    doc: Any
    text: Any
    target: Any
    choices: Sequence[Any] | None
    """None where the task is not multiple choice."""

    @property
    def question(self) -> str:
        """What it asks; where it asks nothing (likelihood of a text) that text, else its longest."""
        for found in (self.text, self.target if self.choices is None else None):
            if isinstance(found, str) and found.strip():
                return found
        return max(_texts(self.doc), key=len, default=text_of(self.doc))

    @property
    def right(self) -> str:
        """The right answer as a text, empty where it is none: of several the first."""
        target = self.target[0] if isinstance(self.target, list) and self.target else self.target
        if isinstance(target, int) and self.choices is not None:
            target = self.choices[target] if 0 <= target < len(self.choices) else ""
        return target.strip() if isinstance(target, str) else str(target) if isinstance(target, int | float) else ""


def load(suite: SuiteConfig, tokenizer: PreTrainedTokenizerBase, config: Any) -> Harness:
    """The tasks of a suite; their data is downloaded where it is not there.

    Args:
        suite: of kind `lm_eval`.
        tokenizer: of the base.
        config: of the base's model (a transformers `PretrainedConfig`).

    Raises:
        UserError: the harness is not installed, knows no such task, or cannot load it; a task cannot be answered here,
            or its code fails on a document; no metric of the task has values of items; or `num_fewshot` or `category`
            come to nothing.
    """
    place = f"suite {suite.name}"
    if suite.include_path and not Path(suite.include_path).is_dir():
        raise UserError(f"{place}: include_path: {suite.include_path} is no folder")
    try:
        from finetrial.evaluate import lm_eval_tasks

        loaded = lm_eval_tasks.load_tasks(
            [suite.task], num_fewshot=suite.num_fewshot, include_path=suite.include_path or None
        )
        tasks = loaded["tasks"]
        for name, task in tasks.items():
            lm_eval_tasks.refuse_unanswerable(name, task, tokenizer, config)
    except UserError as error:
        raise type(error)(f"{place}: {error}") from error
    if not tasks:
        raise UserError(f"{place}: {suite.task} has no tasks")
    for name, task in tasks.items():
        shots = task.get_config("num_fewshot")
        if suite.num_fewshot is not None and shots != suite.num_fewshot:
            raise UserError(
                f"{place}: num_fewshot is {suite.num_fewshot}, but task {name} says {shots} in its own configuration, "
                "which the harness keeps; leave num_fewshot out, or copy the task without it"
            )
    docs = {name: _documents(f"{place}: task {name}", task, suite.limit) for name, task in tasks.items()}
    metrics, left_out, higher = _metrics(tasks)
    if not metrics:
        raise UserError(f"{place}: {', '.join(left_out)} of {suite.task} are numbers of a set; no item has one")
    items = tuple(_item(name, document, several=len(tasks) > 1) for name, mine in docs.items() for document in mine)
    check_category(place, suite.category, items)
    written = {
        name: {
            "config": {key: value for key, value in _config(task).items() if key not in WHERE},
            "code": None if type(task).__module__.startswith("lm_eval.api") else source_of(type(task)),
            "docs": [[document.number, digest(text_of(document.doc))] for document in docs[name]],
            "examples": _examples(f"{place}: task {name}", task),
        }
        for name, task in tasks.items()
    }
    called = next(iter(loaded["groups"]), suite.task)
    return Harness(
        config=suite,
        called=next(iter(tasks)) if len(tasks) == 1 else f"{called} ({len(tasks)} tasks)",
        tasks=tasks,
        items=items,
        asked=_asked(docs),
        metrics=metrics,
        left_out=left_out,
        chance=_chance(docs),
        prompt=_first_prompt(suite, tasks, partial(lm_eval_tasks.chat, tokenizer)),
        key=digest(
            {
                "version": version("lm_eval"),
                "tasks": text_of(written),
                "chat_template": suite.chat_template,
                "fewshot_seed": lm_eval_tasks.FEWSHOT_SEED,
            }
        ),
        sampled=any(map(lm_eval_tasks.is_sampled, tasks.values())),
        higher=higher,
    )


def harness_suite(harness: Harness, spec: Spec, base: str) -> Suite:
    """The suite as it is planned with."""
    chance = "" if harness.chance is None else f", chance {harness.chance:.1%}"
    shots = sorted({task.get_config("num_fewshot") for task in harness.tasks.values()})
    told = "" if shots == [0] else f", {' or '.join(map(str, shots))} examples in the prompt"
    told += ", in the chat template" if harness.config.chat_template else ""
    without = f"; without {', '.join(harness.left_out)}, which no item has" if harness.left_out else ""
    facts = {"metrics": list(harness.metrics), "tasks": list(harness.tasks)}
    content = {
        "kind": "lm_eval",
        "key": harness.key,
        "base": base,
        "seed": spec.evaluation.seed if harness.sampled else None,
    }
    return Suite(
        name=harness.config.name,
        description=f"{harness.called} of lm-evaluation-harness, {len(harness.items)} items{told}{chance}{without}",
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


@contextlib.contextmanager
def _code_of_others(place: str, expected: str = "") -> Iterator[None]:
    """Around what a task itself computes: YAML, Jinja and Python of others, in which anything may go wrong.

    Raises:
        UserError: the place, the error, and what was expected.
    """
    try:
        yield
    except Exception as error:
        wanted = f"; expected {expected}" if expected else ""
        raise UserError(f"{place}: {type(error).__name__}: {error}{wanted}") from error


def _documents(place: str, task: Any, limit: int | None) -> list[Document]:
    """The documents of a task, with all that its code says of each."""
    with _code_of_others(f"{place} gives no documents"):
        docs = list(task.doc_iterator(limit=limit))
    found = []
    for number, doc in docs:
        here = f"{place}, document {number} (the first is 0)"
        with _code_of_others(here, "what it asks; correct doc_to_text or the document"):
            text = task.doc_to_text(doc)
        with _code_of_others(here, "a right answer; correct doc_to_target or the document"):
            target = task.doc_to_target(doc)
        choices = None
        if task.OUTPUT_TYPE == "multiple_choice":
            with _code_of_others(here, "a list of choices; correct doc_to_choice or the document"):
                choices = list(task.doc_to_choice(doc))
            if not choices:
                raise UserError(f"{here}: no choices; expected at least one; correct doc_to_choice or the document")
        found.append(Document(number, doc, text, target, choices))
    return found


def _chance(docs: Mapping[str, Sequence[Document]]) -> float | None:
    """Expected accuracy of guessing, where every task is multiple choice."""
    counts = [None if one.choices is None else len(one.choices) for mine in docs.values() for one in mine]
    shares = [1 / count for count in counts if count is not None]
    return math.fsum(shares) / len(shares) if shares and len(shares) == len(counts) else None


def _item(name: str, document: Document, several: bool) -> Example | Task:
    """What a document asks and, where it tells, what is right; with its short values, if it has names, as facts."""
    values = document.doc if isinstance(document.doc, Mapping) else {}
    facts: dict[str, Any] = {
        str(key): value
        for key, value in values.items()
        if isinstance(value, str | int | float) and len(str(value)) <= FACT
    }
    facts |= {"task": name, **({"category": name} if several else {})}
    row, question, right = f"{name}/{document.number}", document.question, document.right
    messages: tuple[Message, ...] = ({"role": "user", "content": question},)
    if not right or right == question:
        return Example(row, row, messages, meta=facts)
    return Task(row, row, messages, right, meta=facts)


def _asked(docs: Mapping[str, Sequence[Document]]) -> tuple[Example, ...]:
    """The prompt of each document, and texts of the document that stand in it, without what a task puts around them.

    A text that all documents of a task share (an instruction, say) asks nothing.
    """
    found = []
    for name, documents in docs.items():
        prompts = [document.question for document in documents]
        texts = [
            dict.fromkeys((prompt, *(text for text in _texts(document.doc) if text in prompt)))
            for prompt, document in zip(prompts, documents, strict=True)
        ]
        count = Counter(text for mine in texts for text in mine)
        common = {text for text, n in count.items() if n == len(texts) > 1}.difference(prompts)
        for document, mine in zip(documents, texts, strict=True):
            row = f"{name}/{document.number}"
            found += [Example(row, row, ({"role": "user", "content": t},)) for t in mine if t not in common]
    return tuple(found)


def _texts(doc: Any) -> list[str]:
    """A document's texts, those of lists in it too."""
    values = list(doc.values()) if isinstance(doc, Mapping) else [doc]
    return [text for value in values for text in (value if isinstance(value, list) else [value]) if _says(text)]


def _says(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _first_prompt(suite: SuiteConfig, tasks: Mapping[str, Any], chat: Any) -> str:
    """The first document as models read it. Raises UserError where a prompt cannot be made, of any of the tasks."""
    from finetrial.evaluate.lm_eval_tasks import quiet

    prompts = []
    for name, task in tasks.items():
        with _code_of_others(f"suite {suite.name}: task {name} gives no prompt"), quiet():
            task.build_all_requests(
                limit=1,
                rank=0,
                world_size=1,
                apply_chat_template=suite.chat_template,
                fewshot_as_multiturn=suite.chat_template,
                chat_template=chat if suite.chat_template else None,
            )
        prompts.append(str(task.instances[0].args[0]))
    return prompts[0]


def _config(task: Any) -> dict[str, Any]:
    """A task's configuration without the file that it was read from; functions are kept as such."""
    config = task.config.to_dict(keep_callable=True)
    about = {key: value for key, value in (config.get("metadata") or {}).items() if key != "config_source"}
    return {**config, "metadata": about}


def _examples(place: str, task: Any) -> str | None:
    """Digest of the documents that examples in the prompt are taken from; None without any."""
    if not task.get_config("num_fewshot"):
        return None
    with _code_of_others(f"{place} gives no examples for the prompt"):
        docs = list(task.fewshot_docs())
    return digest(text_of(docs))
