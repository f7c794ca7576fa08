"""Guards of a cohort: what watches a run while it trains, in the loop's own stack.

All runs that are due are measured in one sweep, as the evaluation measures them; the base was measured in the same way
before the first step. What the measurements mean is said by stopping.py.

Shapes: N runs, P numbers of one adapter, K items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetrial.errors import UserError
from finetrial.evaluate.choice import ChoiceItem
from finetrial.evaluate.diversity import SEMANTIC
from finetrial.evaluate.gauge import token_gauge
from finetrial.evaluate.perplexity import bits_per_byte, mean_item_nll
from finetrial.evaluate.tasks import Answer, examine
from finetrial.evaluate.texts import text_metrics
from finetrial.generate.decode import NotFinite
from finetrial.model.adapters import Adapter
from finetrial.model.distribution import chunked_nll
from finetrial.model.embed import embed
from finetrial.model.loss import Stream, collate, stream, supervised_hidden
from finetrial.train.advantages import best_of
from finetrial.train.batches import layout
from finetrial.train.rollouts import Engine
from finetrial.train.runs import Ledger, Questions, RunData, Watch
from finetrial.train.stopping import Measured, kept, reason_to_stop

Sums = Mapping[str, np.ndarray]
"""`nll`, and for a divergence also `kl_to_base` and `kl_from_base`: nats of each stream, summed over its tokens."""

TEXTS: dict[str, Callable[[Sums, np.ndarray, np.ndarray], float]] = {
    "nll": lambda sums, tokens_K, _: mean_item_nll(sums["nll"], tokens_K),
    "log_perplexity": lambda sums, tokens_K, _: float(sums["nll"].sum() / tokens_K.sum()),
    "bits_per_byte": lambda sums, _, bytes_K: bits_per_byte(sums["nll"], bytes_K),
    "kl_to_base": lambda sums, tokens_K, _: mean_item_nll(sums["kl_to_base"], tokens_K),
    "kl_from_base": lambda sums, tokens_K, _: mean_item_nll(sums["kl_from_base"], tokens_K),
}
"""Metric of texts -> its value, from sums, supervised tokens and their bytes of each item."""

DIVERGENCES = ("kl_to_base", "kl_from_base")
"""Those that need the base's distribution of every token, too."""

OPTIONS: dict[str, Callable[[np.ndarray, ChoiceItem], float]] = {
    "acc": lambda logp_O, item: float(logp_O.argmax() == item.gold),
    "acc_norm": lambda logp_O, item: float((logp_O / np.array(item.bytes)).argmax() == item.gold),
    "gold_logp": lambda logp_O, item: float(logp_O[item.gold] - np.logaddexp.reduce(logp_O)),
}
"""Metric of multiple choice -> that of one item, from the log-probability of each option; those of letters are the same
of items whose options are letters. The value is the mean over items."""

ANSWERS: dict[str, Callable[[Answer], float | None]] = {
    "correct": lambda answer: None if answer.grade is None else answer.grade.value,
    "correct_relaxed": lambda answer: None if answer.grade is None else answer.grade.value,
    "completion_tokens": lambda answer: float(answer.tokens),
}
"""Metric of tasks -> that of one completion; a task's value is the mean over its completions that have one. How
strictly grades are given is the grader's. Metrics of texts and `pass@k` are those of a task's completions together."""

PASS_AT = "pass@"
"""Begins the name of the chance that at least one of k completions is right."""

Asked = tuple[int | None, Watch]
"""An adapter of the stack (None for the base) and what it is measured on."""


class Guards:
    """The guards of a cohort's runs; what they know is in the runs' ledgers, and here the adapters that they keep."""

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
        self.kept_NP = torch.zeros_like(flat_NP) if self.watches else flat_NP.new_empty(0)
        if kept_NP is not None:
            self.kept_NP.copy_(kept_NP)
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
        """Measure the runs that are due after step `step` (1, 2, ...) of `steps`, keep what is to be kept, stop runs.

        Returns:
            What there is to tell of each measured run, by its place.
        """
        due = {n: w for n, w in self.watches.items() if self.ledgers[n].training and w.config.due(step, steps)}
        told: dict[int, dict[str, Any]] = {}
        for (n, watch), found in zip(due.items(), self._measured(step, list(due.items())), strict=True):
            ledger = self.ledgers[n]
            ledger.watched.append(asdict(found))
            told[n] = {f"watched_{watch.metric}": found.value}
            assert ledger.baseline is not None
            if kept(watch.config, watch.better, ledger.baseline, ledger.history) == found:
                ledger.kept_step = step
                self.kept_NP[n] = self.engine.stack.flat_NP[n]
            reason = reason_to_stop(watch.config, watch.metric, watch.better, ledger.baseline, ledger.history)
            if reason is not None and step < steps:
                ledger.stopped_at, ledger.stop_reason = step, reason
                told[n]["stopped"] = reason
        return told

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides the ledgers."""
        return {"kept": self.kept_NP} if self.watches else {}

    def chosen(self, n: int) -> tuple[Adapter, Adapter | None]:
        """The adapter that is kept of run `n`, and the last one where that is another."""
        stack, ledger = self.engine.stack, self.ledgers[n]
        last = stack.adapter(n)
        whole = ledger.quarantined_at is None and ledger.kept_step is not None
        if not whole or torch.equal(self.kept_NP[n], stack.flat_NP[n]):
            return last, None
        now_P = stack.flat_NP[n].clone()
        stack.flat_NP[n] = self.kept_NP[n]
        chosen = stack.adapter(n)
        stack.flat_NP[n] = now_P
        return chosen, last

    def _measured(self, step: int, asked: Sequence[Asked]) -> list[Measured]:
        """A measurement per adapter that is asked: texts and options in one sweep, tasks in one per set of them."""
        found: dict[int, tuple[float | None, int]] = {}
        read = {place: one for place, one in enumerate(asked) if not isinstance(one[1].on, Questions)}
        sums = self._sums(list(read.values()))
        found |= {place: _value(watch, mine) for (place, (_, watch)), mine in zip(read.items(), sums, strict=True)}
        tasks: dict[str, dict[int, int | None]] = {}
        for place, (adapter, watch) in enumerate(asked):
            if isinstance(watch.on, Questions):
                tasks.setdefault(watch.key, {})[place] = adapter
        for models in tasks.values():
            watch = asked[next(iter(models))][1]
            assert isinstance(watch.on, Questions)
            found |= dict(zip(models, self._of_tasks(watch.metric, watch.on, list(models.values())), strict=True))
        return [Measured(step, *found[place]) for place in range(len(asked))]

    def _sums(self, asked: Sequence[Asked]) -> Sequence[Sums]:
        """Sums over the tokens of each stream under each adapter."""
        streams = [self.streams[watch.key] for _, watch in asked]
        names = ("nll", *(DIVERGENCES if any(watch.metric in DIVERGENCES for _, watch in asked) else ()))
        sums = [{name: np.zeros(len(mine)) for name in names} for mine in streams]
        engine, device = self.engine, self.engine.stack.flat_NP.device
        for places in layout([[row.tokens for row in mine] for mine in streams], self.budget, device.type):
            batch = collate([streams[at.run][at.place] for at in places], device)
            with engine.stack.rows([asked[at.run][0] for at in places]), torch.no_grad():
                hidden_MH = supervised_hidden(engine.model, batch)
            if len(names) == 1:
                found = {"nll": chunked_nll(hidden_MH, batch.target_M, engine.head)}
            else:
                with engine.stack.rows([None] * len(places)), torch.no_grad():
                    gauge = token_gauge(hidden_MH, batch.target_M, supervised_hidden(engine.model, batch), engine.head)
                found = {"nll": gauge.nll_M, "kl_to_base": gauge.to_base_M, "kl_from_base": gauge.from_base_M}
            starts = np.concatenate([[0], np.cumsum(batch.counts_S)[:-1]])
            for name, values_M in found.items():
                for at, total in zip(places, np.add.reduceat(values_M.double().cpu().numpy(), starts), strict=True):
                    sums[at.run][name][at.place] = total
        return sums

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
        return [self._task_value(metric, on, found[model]) if model in found else nothing for model in models]

    def _task_value(self, metric: str, on: Questions, answers: Sequence[Sequence[Answer]]) -> tuple[float | None, int]:
        """Mean over the tasks that have a value, and how many numbers are missing, of tasks or of their completions."""
        if metric in ANSWERS:
            values = [[ANSWERS[metric](answer) for answer in mine] for mine in answers]
        elif metric.startswith(PASS_AT):
            values = [_passed(mine, int(metric.removeprefix(PASS_AT))) for mine in answers]
        else:
            values = self._of_texts(metric, on, answers)
        missing = sum(value is None for mine in values for value in mine)
        known = [[value for value in mine if value is not None] for mine in values]
        items = [float(np.mean(mine)) for mine in known if mine]
        return (float(np.mean(items)) if items else None), missing

    def _of_texts(self, metric: str, on: Questions, answers: Sequence[Sequence[Answer]]) -> list[list[float | None]]:
        """Of each task the metric's values; none where its reference is too short for one."""
        engine = self.engine
        measured = text_metrics(
            [[answer.text for answer in mine] for mine in answers],
            [[answer.finished for answer in mine] for mine in answers],
            [task.gold or task.reference for task in on.tasks],
            on.vocabulary,
            on.matched_words,
            partial(embed, engine.model, on.tokenizer, batch_tokens=self.budget, stack=engine.stack)
            if metric in SEMANTIC
            else None,
        )
        return [found.get(metric, []) for found in measured]


def _streams(watch: Watch) -> list[Stream]:
    """Of the texts, or of every option of every item; none of tasks, which are sampled.

    Raises:
        UserError: an item has no supervised token.
    """
    if isinstance(watch.on, Questions):
        return []
    if isinstance(watch.on, Mapping):
        streams = {name: stream(row, f"item {name!r}") for name, row in watch.on.items()}
        for name, row in streams.items():
            if not len(row.target_M):
                raise UserError(f"suite {watch.config.suite!r}: item {name!r} has no supervised token to score")
        return list(streams.values())
    return [_option(item, option_T) for item in watch.on for option_T in item.options]


def _option(item: ChoiceItem, option_T: np.ndarray) -> Stream:
    first = len(item.prompt_T) - 1
    ids_T = np.concatenate([item.prompt_T, option_T[:-1]])
    return Stream(ids_T, np.arange(first, first + len(option_T)), option_T)


def _value(watch: Watch, sums: Sums) -> tuple[float | None, int]:
    """Value and items without one."""
    if isinstance(watch.on, Mapping):
        rows = list(watch.on.values())
        tokens_K = np.array([int(row.mask_T[1:].sum()) for row in rows])
        bytes_K = np.array([row.supervised_bytes for row in rows])
        missing = int((~np.isfinite(np.stack(list(sums.values())))).any(axis=0).sum())
        return (None if missing else TEXTS[watch.metric](sums, tokens_K, bytes_K)), missing
    assert not isinstance(watch.on, Questions)
    weights = np.split(-sums["nll"], np.cumsum([len(item.options) for item in watch.on])[:-1])
    of = OPTIONS[watch.metric.removesuffix("_letter")]
    values = [of(w_O, item) for w_O, item in zip(weights, watch.on, strict=True) if np.isfinite(w_O).all()]
    missing = len(watch.on) - len(values)
    return (None if missing else float(np.mean(values))), missing


def _passed(answers: Sequence[Answer], k: int) -> list[float | None]:
    """pass@k of a task, the mean best of all sets of k graded completions; missing where fewer than k are graded."""
    grades = [answer.grade.value for answer in answers if answer.grade is not None and answer.grade.value is not None]
    if len(grades) < k:
        return [None]
    right_G = (np.arange(len(grades)) < round(sum(grades))).astype(float)
    return [float(best_of(right_G, k).sum()) / k]
