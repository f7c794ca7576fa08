"""Guards of a cohort: what watches a run while it trains, in the loop's own stack.

All runs that are due are measured in one sweep, as the evaluation measures them; the base was measured in the same way
before the first step. What the measurements mean is said by stopping.py.

Shapes: N runs, P numbers of one adapter, K items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetrial.errors import UserError
from finetrial.evaluate.perplexity import bits_per_byte, mean_item_nll
from finetrial.evaluate.tasks import Answer, examine
from finetrial.generate.decode import NotFinite
from finetrial.model.adapters import Adapter
from finetrial.model.loss import Stream, collate, stream, token_nll
from finetrial.train.batches import layout
from finetrial.train.rollouts import Engine
from finetrial.train.runs import Ledger, Questions, RunData, Watch
from finetrial.train.stopping import Measured, best, reason_to_stop

TEXTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "nll": lambda nll_K, tokens_K, _: mean_item_nll(nll_K, tokens_K),
    "log_perplexity": lambda nll_K, tokens_K, _: float(nll_K.sum() / tokens_K.sum()),
    "bits_per_byte": lambda nll_K, _, bytes_K: bits_per_byte(nll_K, bytes_K),
}
"""Metric of texts -> its value, from nats, supervised tokens and their bytes of each item."""

ANSWERS: dict[str, Callable[[Answer], float | None]] = {
    "correct": lambda answer: answer.grade.value,
    "completion_tokens": lambda answer: float(answer.tokens),
}
"""Metric of tasks -> that of one completion; a task's value is the mean over its completions that have one."""

Asked = tuple[int | None, Watch]
"""An adapter of the stack (None for the base) and what it is measured on."""


class Guards:
    """The guards of a cohort's runs; what they know is in the runs' ledgers, and here the adapters that were best."""

    def __init__(
        self, engine: Engine, runs: Sequence[RunData], ledgers: Sequence[Ledger], budget: int, kept_NP: Tensor | None
    ):
        """Measure the base where it was not yet.

        Args:
            engine: model, head and stack.
            runs: the cohort.
            ledgers: of the runs.
            budget: most padded tokens of a pass.
            kept_NP: what `tensors` gave to the checkpoint that the runs go on from; None at their beginning.

        Raises:
            UserError: an item has nothing to score, or the base has no value on what is watched.
        """
        self.engine, self.runs, self.ledgers, self.budget = engine, runs, ledgers, budget
        self.watches = {n: run.watch for n, run in enumerate(runs) if run.watch is not None}
        self.streams = {watch.key: _streams(watch) for watch in self.watches.values()}
        flat_NP = engine.stack.flat_NP
        self.best_NP = torch.zeros_like(flat_NP) if self.watches else flat_NP.new_empty(0)
        if kept_NP is not None:
            self.best_NP.copy_(kept_NP)
        fresh = [n for n in self.watches if ledgers[n].baseline is None]
        distinct = {self.watches[n].key: self.watches[n] for n in fresh}
        asked: list[Asked] = [(None, watch) for watch in distinct.values()]
        base = dict(zip(distinct, self._measured(0, asked), strict=True))
        for n in fresh:
            watch = self.watches[n]
            ledgers[n].baseline = base[watch.key].value
            if ledgers[n].baseline is None:
                raise UserError(
                    f"{runs[n].name}: the base has no value of {watch.metric} on {watch.config.suite!r}, which "
                    "[stopping] watches: there is nothing to compare the run with"
                )

    def look(self, step: int, steps: int) -> dict[int, dict[str, Any]]:
        """Measure the runs that are due after step `step` (1, 2, ...) of `steps`, keep the best, stop who must stop.

        Returns:
            What there is to tell of each measured run, by its place.
        """
        due = {n: w for n, w in self.watches.items() if self.ledgers[n].training and w.config.due(step, steps)}
        told: dict[int, dict[str, Any]] = {}
        for (n, watch), found in zip(due.items(), self._measured(step, list(due.items())), strict=True):
            ledger = self.ledgers[n]
            ledger.watched.append(asdict(found))
            top = best(ledger.history, watch.better)
            if top == found:
                ledger.best_step = step
                self.best_NP[n] = self.engine.stack.flat_NP[n]
            told[n] = {f"watched_{watch.metric}": found.value}
            assert ledger.baseline is not None
            reason = reason_to_stop(watch.config, watch.metric, watch.better, ledger.baseline, ledger.history)
            if reason is not None and step < steps:
                ledger.stopped_at, ledger.stop_reason = step, reason
                told[n]["stopped"] = reason
        return told

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides the ledgers."""
        return {"best": self.best_NP} if self.watches else {}

    def chosen(self, n: int) -> tuple[Adapter, Adapter | None]:
        """The adapter that is kept of run `n`, and the last one where that is another."""
        stack, ledger = self.engine.stack, self.ledgers[n]
        last, watch = stack.adapter(n), self.watches.get(n)
        whole = ledger.quarantined_at is None and watch is not None and watch.config.select == "best"
        if not whole or ledger.best_step is None or torch.equal(self.best_NP[n], stack.flat_NP[n]):
            return last, None
        now_P = stack.flat_NP[n].clone()
        stack.flat_NP[n] = self.best_NP[n]
        kept = stack.adapter(n)
        stack.flat_NP[n] = now_P
        return kept, last

    def _measured(self, step: int, asked: Sequence[Asked]) -> list[Measured]:
        """A measurement per adapter that is asked, texts in one sweep and tasks in one per set of them."""
        found: dict[int, tuple[float | None, int]] = {}
        texts = {place: one for place, one in enumerate(asked) if not isinstance(one[1].on, Questions)}
        found |= dict(zip(texts, self._of_texts(list(texts.values())), strict=True))
        tasks: dict[str, dict[int, int | None]] = {}
        for place, (adapter, watch) in enumerate(asked):
            if isinstance(watch.on, Questions):
                tasks.setdefault(watch.key, {})[place] = adapter
        for models in tasks.values():
            watch = asked[next(iter(models))][1]
            assert isinstance(watch.on, Questions)
            found |= dict(zip(models, self._of_tasks(watch.metric, watch.on, list(models.values())), strict=True))
        return [Measured(step, *found[place]) for place in range(len(asked))]

    def _of_texts(self, asked: Sequence[Asked]) -> list[tuple[float | None, int]]:
        """Value and items without one, of each adapter on its texts."""
        streams = [self.streams[watch.key] for _, watch in asked]
        nll = [np.zeros(len(mine)) for mine in streams]
        device = self.engine.stack.flat_NP.device
        for places in layout([[row.tokens for row in mine] for mine in streams], self.budget, device.type):
            batch = collate([streams[at.run][at.place] for at in places], device)
            with self.engine.stack.rows([asked[at.run][0] for at in places]), torch.no_grad():
                nll_M = token_nll(self.engine.model, self.engine.head, batch).double().cpu().numpy()
            sums = np.add.reduceat(nll_M, np.concatenate([[0], np.cumsum(batch.counts_S)[:-1]]))
            for at, item in zip(places, sums.tolist(), strict=True):
                nll[at.run][at.place] = item
        return [_text_value(watch, nll_K) for (_, watch), nll_K in zip(asked, nll, strict=True)]

    def _of_tasks(self, metric: str, on: Questions, models: Sequence[int | None]) -> list[tuple[float | None, int]]:
        """Value and completions without one, of each model; nothing for an adapter whose logits are not finite."""
        able = list(models)
        while able:
            try:
                answers = examine(
                    self.engine.model,
                    self.engine.head,
                    self.engine.stack,
                    able,
                    on.tasks,
                    on.prompts,
                    on.tokenizer,
                    on.stop_ids,
                    on.grader,
                    on.sampling,
                    on.samples,
                    on.seed,
                )
                break
            except NotFinite as error:
                if error.adapter is None:
                    raise
                able.remove(error.adapter)
        else:
            answers = []
        found = dict(zip(able, answers, strict=True))
        nothing = (None, len(on.tasks) * on.samples)
        return [_task_value(metric, found[model]) if model in found else nothing for model in models]


def _streams(watch: Watch) -> list[Stream]:
    """Of the items that can be scored.

    Raises:
        UserError: an item has no supervised token.
    """
    if isinstance(watch.on, Questions):
        return []
    streams = {name: stream(row, f"item {name!r}") for name, row in watch.on.items()}
    for name, row in streams.items():
        if not len(row.target_M):
            raise UserError(f"suite {watch.config.suite!r}: item {name!r} has no supervised token to score")
    return list(streams.values())


def _text_value(watch: Watch, nll_K: np.ndarray) -> tuple[float | None, int]:
    assert isinstance(watch.on, Mapping)
    rows = list(watch.on.values())
    tokens_K = np.array([int(row.mask_T[1:].sum()) for row in rows])
    bytes_K = np.array([row.supervised_bytes for row in rows])
    missing = int((~np.isfinite(nll_K)).sum())
    return (None if missing else TEXTS[watch.metric](nll_K, tokens_K, bytes_K)), missing


def _task_value(metric: str, answers: Sequence[Sequence[Answer]]) -> tuple[float | None, int]:
    values = [[ANSWERS[metric](answer) for answer in mine] for mine in answers]
    missing = sum(value is None for mine in values for value in mine)
    known = [[value for value in mine if value is not None] for mine in values]
    items = [float(np.mean(mine)) for mine in known if mine]
    return (float(np.mean(items)) if items else None), missing
