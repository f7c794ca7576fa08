"""Guards of a campaign's runs: what the loop measures them on, and what a record says of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetrial.analyze.metrics import direction, pass_at
from finetrial.campaign.contrasts import watched_metric
from finetrial.campaign.launch import Launch
from finetrial.campaign.measures.choice import option_items
from finetrial.campaign.measures.tasks import gradings
from finetrial.campaign.plan import Run, Suite
from finetrial.campaign.practice import Exam
from finetrial.data.select import draw_order
from finetrial.errors import UserError
from finetrial.evaluate.choice import ChoiceItem
from finetrial.identity import digest
from finetrial.model.render import Rendered, render_batch
from finetrial.train.runs import Questions, TrainResult, Watch
from finetrial.train.stopping import best
from finetrial.train.stopping_config import StoppingConfig


def watch(launch: Launch, run: Run) -> Watch | None:
    """What a run is measured on while it trains, as its suite is measured in the end; None without `[stopping]`.

    Raises:
        UserError: no item of the suite can be measured.
    """
    config = launch.spec.condition(run.condition).stopping
    if config is None:
        return None
    suite = next(suite for suite in launch.prepared.inputs.suites if suite.name == config.suite)
    metric = watched_metric(config, suite.kind)
    items = watched_items(suite.items, config)
    return Watch(
        config=config,
        metric=metric,
        better=direction(metric),
        key=digest([suite.hash, metric, list(items)]),
        on=_on(launch, suite, metric, items),
    )


def _on(
    launch: Launch, suite: Suite, metric: str, items: Sequence[str]
) -> dict[str, Rendered] | list[ChoiceItem] | Questions:
    if suite.kind == "perplexity":
        return _texts(launch, suite.name, items)
    exam = launch.prepared.tasks.exams[suite.name]
    part = replace(exam, tasks=tuple(task for task in exam.tasks if task.id in set(items)))
    if suite.kind == "choice":
        return option_items(launch, part, "label" if metric.endswith("_letter") else "text")
    return _questions(launch, suite.name, part, metric)


def watched_items(items: Sequence[str], config: StoppingConfig) -> tuple[str, ...]:
    """The items that are measured, sorted: all, or those that come first in an order drawn by their ids."""
    drawn = draw_order(0, "watched", items)
    return tuple(sorted(sorted(items, key=lambda item: drawn[item])[: config.items]))


def _texts(launch: Launch, suite: str, items: Sequence[str]) -> dict[str, Rendered]:
    """The items that can be rendered."""
    wanted = set(items)
    examples = sorted((e for e in launch.prepared.suites[suite] if e.id in wanted), key=lambda example: example.id)
    batch = render_batch(
        (example.messages for example in examples), launch.base.tokenizer, launch.spec.model.max_length
    )
    rows = {example.id: row for example, row in zip(examples, batch.rows, strict=True) if row is not None}
    if not rows:
        raise UserError(f"[stopping] suite {suite!r}: no item can be scored, for example: {batch.refused[0]}")
    return rows


def _questions(launch: Launch, suite: str, exam: Exam, metric: str) -> Questions:
    """Tasks with the grader that the metric needs, or with none: what is not graded costs no judge a call.

    Raises:
        UserError: `correct_relaxed` where there is one way of grading only.
    """
    grading = exam.grading
    if metric == "correct_relaxed":
        loosely = gradings(exam)[1:]
        if not loosely:
            raise UserError(
                f"[stopping] metric 'correct_relaxed' is measured where choices are graded strictly; suite {suite!r} "
                f"is graded as {grading.kind}: watch 'correct'"
            )
        (grading,) = loosely
    grades = metric in ("correct", "correct_relaxed") or pass_at(metric) is not None
    return Questions(
        tasks=exam.tasks,
        prompts=launch.prepared.prompts_of(exam.tasks),
        grader=launch.graders.of(grading) if grades else None,
        tokenizer=launch.base.tokenizer,
        stop_ids=launch.base.stop_ids,
        sampling=exam.evaluation.sampling,
        samples=exam.evaluation.samples,
        seed=exam.evaluation.seed,
        vocabulary=launch.base.vocabulary,
        matched_words=exam.evaluation.matched_words,
    )


def guard_facts(watch: Watch, result: TrainResult, adapter: str, last: str | None) -> dict[str, Any]:
    """What a guard measured and decided; `ran` is False where it never had a value of the run.

    Args:
        watch: the guard.
        result: what became of it.
        adapter: identity of the adapter that is kept.
        last: that of the last one, where it is another.
    """
    ledger = result.ledger
    top = best(ledger.history, watch.better)
    final = ledger.history[-1] if ledger.history else None
    ran = any(one.value is not None for one in ledger.history)
    end = ledger.steps if ledger.stopped_at is None else ledger.stopped_at
    return {
        "suite": watch.config.suite,
        "metric": watch.metric,
        "better": watch.better,
        "ran": ran,
        "baseline": ledger.baseline,
        "watched": ledger.watched,
        "best": None if top is None else {"step": top.step, "value": top.value},
        "last": None if final is None else {"step": final.step, "value": final.value},
        "stopped_at": ledger.stopped_at,
        "reason": ledger.stop_reason,
        "selected_step": end if last is None else ledger.kept_step,
        "selected": adapter,
        "last_adapter": last or adapter,
    }
