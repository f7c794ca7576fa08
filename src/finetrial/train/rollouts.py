"""Rollouts: the completions that practising runs draw in a step, all of them in one batch, and their grades.

Shapes: G completions of a prompt, T tokens of a completion.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from finetrial import seeds
from finetrial.generate.decode import NotFinite
from finetrial.generate.sample import Completion, Request, sample
from finetrial.model.adapters import AdapterStack
from finetrial.model.loss import Head, Stream
from finetrial.records import Grade, Task
from finetrial.train.batch_sizing import Observations
from finetrial.train.batches import rows_at
from finetrial.train.runs import Ledger, Practice, RunData
from finetrial.train.shaping import keep_group


@dataclass
class Engine:
    """What samples and scores: the model with its stack, and how fast it was at which width."""

    model: nn.Module
    head: Head
    stack: AdapterStack
    pace: Observations = field(default_factory=Observations)
    """How long a decoding step of so many rows took."""


@dataclass(frozen=True)
class Group:
    """The completions of one prompt."""

    task: Task
    place: int
    """In the run's endless order of prompts; names the streams of randomness."""
    prompt_T: np.ndarray
    completions: tuple[Completion, ...]
    grades: tuple[Grade, ...]

    @property
    def accuracy_G(self) -> np.ndarray:
        """float64 grades; NaN where there is none."""
        return np.array([np.nan if grade.value is None else grade.value for grade in self.grades])

    def stream(self, completion: Completion) -> Stream:
        """What the model must read to score a completion's tokens."""
        first, tokens = len(self.prompt_T) - 1, len(completion.ids_T)
        ids_T = np.concatenate([self.prompt_T, completion.ids_T[:-1]])
        return Stream(ids_T, np.arange(first, first + tokens), completion.ids_T)


@dataclass(frozen=True)
class Rollout:
    """What a run drew in a step."""

    learnt: tuple[Group, ...]
    """Groups that the step learns from."""
    passed_over: tuple[Group, ...]
    """Groups that dynamic sampling replaced by others."""
    sampling_s: float
    """Seconds of sampling, which all runs of the cohort share."""
    seconds: float
    """Seconds of sampling and grading."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """All that were drawn."""
        return self.learnt + self.passed_over


def roll_out(engine: Engine, runs: Mapping[int, RunData], ledgers: Sequence[Ledger], rows: int) -> dict[int, Rollout]:
    """Draw a step's completions for every run (place in the stack -> run) and grade them.

    With dynamic sampling (DAPO, arXiv:2503.14476) groups whose grades are all right or all wrong are replaced by
    those of the next prompts, for at most `max_rounds` rounds; what is missing then is filled up with groups that
    were passed over. Advances `prompts_drawn` and `sampled_tokens` of the ledgers.

    Args:
        engine: samples.
        runs: those that practise.
        ledgers: of all runs of the cohort.
        rows: most rows of one sampling pass.

    Raises:
        NotFinite: an adapter's logits are not finite. The ledgers are as they were before, so that a step that is
            drawn again without that run is the step of the others alone.
    """
    before = {n: (ledgers[n].prompts_drawn, ledgers[n].sampled_tokens) for n in runs}
    try:
        return _rolled_out(engine, runs, ledgers, rows)
    except NotFinite:
        for n, (prompts_drawn, sampled_tokens) in before.items():
            ledgers[n].prompts_drawn, ledgers[n].sampled_tokens = prompts_drawn, sampled_tokens
        raise


def _rolled_out(
    engine: Engine, runs: Mapping[int, RunData], ledgers: Sequence[Ledger], rows: int
) -> dict[int, Rollout]:
    """The rounds of a step."""
    began, sampling_s = time.perf_counter(), 0.0
    kept: dict[int, list[Group]] = {n: [] for n in runs}
    passed_over: dict[int, list[Group]] = {n: [] for n in runs}
    asking, rounds = dict(runs), 0
    while asking:
        wanted = {n: run.train.batch_size - len(kept[n]) for n, run in asking.items()}
        drawn, spent_s = _draw(engine, asking, wanted, ledgers, rows)
        sampling_s, rounds = sampling_s + spent_s, rounds + 1
        for n, groups in drawn.items():
            dynamic = practice_of(runs[n]).rl.dynamic_sampling
            for group in groups:
                teaches = not dynamic.enabled or keep_group(group.accuracy_G)
                (kept if teaches else passed_over)[n].append(group)
            if len(kept[n]) == runs[n].train.batch_size or rounds == dynamic.max_rounds:
                del asking[n]
    seconds = time.perf_counter() - began
    rollouts = {}
    for n, run in runs.items():
        lacking = run.train.batch_size - len(kept[n])
        learnt, others = kept[n] + passed_over[n][:lacking], passed_over[n][lacking:]
        rollouts[n] = Rollout(tuple(learnt), tuple(others), sampling_s, seconds)
    return rollouts


def practice_of(run: RunData) -> Practice:
    """What a run practises on.

    Raises:
        ValueError: it learns from rows.
    """
    if run.practice is None:
        raise ValueError(f"{run.name} does not practise")
    return run.practice


def _draw(
    engine: Engine, runs: Mapping[int, RunData], wanted: Mapping[int, int], ledgers: Sequence[Ledger], rows: int
) -> tuple[dict[int, list[Group]], float]:
    """The next `wanted` prompts of every run, sampled in one batch, graded run by run; and seconds of sampling."""
    asked: list[tuple[int, int, int]] = []
    requests = []
    for n, run in runs.items():
        practice, first = practice_of(run), ledgers[n].prompts_drawn
        places = range(first, first + wanted[n])
        for place, task in zip(places, rows_at(run.seed, len(practice.tasks), places), strict=True):
            name = practice.tasks[task].id
            noise = tuple(seeds.derive(run.seed, "completion", name, place, g) for g in range(practice.rl.group_size))
            asked.append((n, place, task))
            requests.append(Request(practice.prompts[task], n, noise, practice.rl.sampling))
    some = practice_of(next(iter(runs.values())))
    began = time.perf_counter()
    completions = sample(
        engine.model,
        engine.head,
        engine.stack,
        some.tokenizer,
        requests,
        some.stop_ids,
        rows=rows,
        observe=engine.pace.add,
    )
    seconds = time.perf_counter() - began
    drawn: dict[int, list[Group]] = {}
    for n, run in runs.items():
        practice = practice_of(run)
        mine = [(place, task, done) for (m, place, task), done in zip(asked, completions, strict=True) if m == n]
        tasks = [practice.tasks[task] for _, task, done in mine for _ in done]
        texts = [completion.text for _, _, done in mine for completion in done]
        grades = iter(practice.grader.grade(tasks, texts))
        drawn[n] = [
            Group(practice.tasks[task], place, practice.prompts[task], tuple(done), tuple(next(grades) for _ in done))
            for place, task, done in mine
        ]
        ledgers[n].sampled_tokens += sum(len(completion.ids_T) for _, _, done in mine for completion in done)
        ledgers[n].prompts_drawn += wanted[n]
    return drawn, seconds
