"""The set-diversity term of supervised fine-tuning: completions of a prompt, drawn as a set, rewarded for differing.

The run's loss becomes CE - λ E[f(S)] / n, where S are n completions that the adapter itself draws for a prompt of its
rows and f(S) = mean quality × diversity (polychromic objectives, arXiv:2509.25424). A score of sampled text has no
gradient of its own, and a term that merely subtracts it teaches nothing at any λ. Its expectation has one:

    ∇ E[f] = E[ sum over i of A_i ∇ log p(y_i | x) ],  A_i = mean over j of f(S without j) - f(S without i)

(set_scores.py), for sets of one completion less than are drawn. So every completion becomes a row whose tokens weigh
λ A_i / (prompts × n): the mean over completions, as in other policy gradients, of log p of the whole completion, which
is not divided by its length, for that would favour long copies over short ones. λ compares only between recipes with
the same n and replies of like length; a share of the gradient compares everywhere. The gradient is exact where
completions are drawn from the plain distribution (temperature 1, no filters); elsewhere it is that of the plain
distribution at what was drawn.

Completions are drawn without dropout, by the network that is evaluated, and their rows are learnt from without it, too.
`model.lora_dropout` acts on the rows of the data alone: those are what it keeps from being learnt by heart. Under a
mask, ∇ log p would be that of another distribution than the one they were drawn from, and the rows would not add up to
the gradient of E[f] of any network.

Sets without a gradient are of two kinds. A *saturated* one has nothing left to gain: its diversity is 1, whichever
completion is left out. Where all are, and of quality 1, the run goes on and is told of; the term acts again when
completions resemble one another. A *flat* one has the same diversity below 1, whichever completion is left out. A
measure of which all sets are so tells nothing apart, nor does a quality that is the same below 1 everywhere beside
saturated sets: such a run is stopped.

Shapes: G completions of a set, T tokens of a completion.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

import numpy as np

from finetrial import seeds
from finetrial.errors import UserError
from finetrial.evaluate.degeneration import degeneration
from finetrial.evaluate.words import words
from finetrial.generate.decode import NotFinite
from finetrial.generate.sample import Request, sample
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import Grader
from finetrial.model.embed import embed, sentence_encoder
from finetrial.records import Grade, Task
from finetrial.train.gradient_share import TermState, weight_for_share
from finetrial.train.journal import GENERATIONS
from finetrial.train.lesson import Lesson, Report, Row
from finetrial.train.rollouts import Engine, Group
from finetrial.train.runs import Ledger, RunData, SetPrompts
from finetrial.train.set_log import DrawnSet, SetLog
from finetrial.train.set_scores import Members, score_set
from finetrial.train.term_config import EMBEDDED, SetDiversityConfig, function_error

TERM = "set_diversity"
"""Name of the term among those of a loss."""

GRADED_AS = {"quality": "function", "clusters": "label"}
"""Key of a user's function -> kind of grader that calls it."""


class SetDiversity:
    """Draws the sets of a cohort's runs and makes rows of them; holds the workers of users' functions."""

    def __init__(self, engine: Engine, runs: Sequence[RunData]):
        """Prepare what scores the sets.

        Raises:
            UserError: a function that is not there, or an extra package that is not installed.
        """
        self.engine = engine
        self.runs = {n: run for n, run in enumerate(runs) if run.sets is not None}
        configs = [sets_of(run).config for run in self.runs.values()]
        self.graders = {
            (key, function): _grader(key, function) for c in configs for key, function in c.functions.items()
        }
        device = next(engine.model.parameters()).device
        self.encoders = {c.encoder: sentence_encoder(c.encoder, device) for c in configs if c.encoder is not None}

    def __enter__(self) -> "SetDiversity":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for grader in self.graders.values():
            grader.close()

    def added(self, lessons: Sequence[Lesson], ledgers: Sequence[Ledger], step: int) -> list[Lesson]:
        """The lessons of step `step` (0, 1, ...), to which runs whose turn it is add the rows of their sets.

        A run that has ended draws nothing more; one whose logits are not finite is quarantined, and the others go on.
        """
        due = {n: run for n, run in self.runs.items() if step % sets_of(run).config.every_n_steps == 0}
        due = {n: run for n, run in due.items() if ledgers[n].quarantined_at is None and ledgers[n].stopped_at is None}
        if not due:
            return list(lessons)
        began = time.perf_counter()
        try:
            groups = self._draw(due, step)
        except NotFinite as error:
            if error.adapter is None:
                raise
            ledgers[error.adapter].quarantined_at = step + 1
            ledgers[error.adapter].reason = f"logits are not finite at step {step + 1}"
            return self.added(lessons, ledgers, step)
        drawn = {n: self._scored(sets_of(due[n]).config, mine) for n, mine in groups.items()}
        seconds = time.perf_counter() - began
        return [
            _with_sets(lesson, due[n], drawn[n], ledgers[n], step, seconds) if n in due else lesson
            for n, lesson in enumerate(lessons)
        ]

    def _draw(self, due: Mapping[int, RunData], step: int) -> dict[int, list[Group]]:
        """The sets of every run, sampled in one batch. Qualities are still to come."""
        asked: list[tuple[int, int]] = []
        requests = []
        for n, run in due.items():
            sets = sets_of(run)
            for place in chosen_prompts(run, step):
                name = sets.tasks[place].id
                keys = (seeds.derive(run.seed, "set", name, step, g) for g in range(sets.config.n_generations))
                asked.append((n, place))
                requests.append(Request(sets.prompts[place], n, tuple(keys), sets.config.sampling))
        some = sets_of(next(iter(due.values())))
        engine = self.engine
        found = sample(engine.model, engine.head, engine.stack, some.tokenizer, requests, some.stop_ids)
        groups: dict[int, list[Group]] = {n: [] for n in due}
        for (n, place), completions in zip(asked, found, strict=True):
            sets = sets_of(due[n])
            groups[n].append(Group(sets.tasks[place], place, sets.prompts[place], tuple(completions), ()))
        return groups

    def _scored(self, config: SetDiversityConfig, groups: Sequence[Group]) -> list[DrawnSet]:
        every = [(group, done) for group in groups for done in group.completions]
        tasks, texts = [group.task for group, _ in every], [done.text for _, done in every]
        if config.quality is None:
            wrong = (degeneration([done.text], [done.finished]).any for _, done in every)
            qualities = [Grade(float(not any_)) for any_ in wrong]
        else:
            qualities = self._graded("quality", config.quality, tasks, texts)
        strategies = None if config.clusters is None else self._graded("clusters", config.clusters, tasks, texts)
        embedding_NH = self._embedding(config, texts) if config.score in EMBEDDED else None
        drawn, start = [], 0
        for group in groups:
            mine = slice(start, start + len(group.completions))
            start = mine.stop
            labels = None if strategies is None else strategies[mine]
            vectors_GH = None if embedding_NH is None else embedding_NH[mine]
            drawn.append(_score(config, replace(group, grades=tuple(qualities[mine])), labels, vectors_GH))
        return drawn

    def _graded(self, key: str, function: str, tasks: Sequence[Task], texts: Sequence[str]) -> list[Grade]:
        """What a user's function says of each text.

        Raises:
            UserError: it cannot be loaded or called.
        """
        try:
            return self.graders[key, function].grade(tasks, texts)
        except UserError as error:
            raise UserError(function_error(key, error)) from error

    def _embedding(self, config: SetDiversityConfig, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the texts; NaN for one without tokens."""
        if config.encoder is not None:
            return self.encoders[config.encoder](texts)
        tokenizer = sets_of(next(iter(self.runs.values()))).tokenizer
        return embed(self.engine.model, tokenizer, texts, stack=self.engine.stack)


def sets_of(run: RunData) -> SetPrompts:
    """What a run draws sets for.

    Raises:
        ValueError: it draws none.
    """
    if run.sets is None:
        raise ValueError(f"{run.name} draws no sets")
    return run.sets


def chosen_prompts(run: RunData, step: int) -> list[int]:
    """Places of the prompts that a run draws sets for in a step; conditions with the same rows draw for the same."""
    sets = sets_of(run)
    most = min(sets.config.max_examples, len(sets.tasks))
    chosen = seeds.stream(run.seed, "prompts of sets", step).choice(len(sets.tasks), most, replace=False)
    return sorted(chosen.tolist())


def loss_facts(run: RunData, ledger: Ledger, lesson: Lesson, report: Report) -> dict[str, Any]:
    """`quality_loss`, the main cross-entropy; where sets were scored also `set_weight`, the λ in force, and
    `combined_loss`, from which λ f is taken."""
    facts: dict[str, Any] = {"quality_loss": report.loss}
    score = lesson.facts.get("set_score")
    if score is not None and report.loss is not None:
        weight = _weight(sets_of(run).config, ledger)
        facts |= {"set_weight": weight, "combined_loss": report.loss - weight * score}
    return facts


def _weight(config: SetDiversityConfig, ledger: Ledger) -> float:
    """λ as it is written, or what gave the term its share of the last update's gradient."""
    if config.gradient_share is None:
        return config.factor
    state = TermState(**ledger.terms.get(TERM, {}))
    if state.rest_norm is None or state.term_norm is None:
        return 0.0
    return weight_for_share(config.gradient_share, state.rest_norm, state.term_norm)


def _score(
    config: SetDiversityConfig, group: Group, labels: Sequence[Grade] | None, embedding_GH: np.ndarray | None
) -> DrawnSet:
    """A set's score; a set is missing where anything of it is."""
    quality_G = group.accuracy_G
    for what, grades in (("quality", group.grades), ("strategy", labels or ())):
        reason = next((grade.reason for grade in grades if grade.value is None), None)
        if reason is not None:
            return DrawnSet(group, None, f"a completion has no {what}: {reason}")
    texts = tuple(words(done.text) for done in group.completions)
    strategy_G = None if labels is None else np.array([grade.value for grade in labels])
    scored = score_set(config.score, Members(texts, embedding_GH, strategy_G), quality_G, config.order)
    return DrawnSet(group, scored, "" if scored else f"{config.score} has no value for these texts")


def _with_sets(
    lesson: Lesson, run: RunData, drawn: Sequence[DrawnSet], ledger: Ledger, step: int, seconds: float
) -> Lesson:
    """A lesson with the rows of a run's sets; enters them into the ledger."""
    config = sets_of(run).config
    weight = config.factor
    log = SetLog(**ledger.sets) if ledger.sets else SetLog()
    before = replace(log)
    means = log.enter(drawn, step + 1)
    ledger.sets = asdict(log)
    if weight and log.deaf:
        ledger.quarantined_at = step + 1
        ledger.reason = (
            f"set_diversity.score = '{config.score}': the diversity of none of {log.sets - log.missing_sets} sets "
            "changes, whichever completion is left out; it tells nothing apart, though it is not at its maximum, so it "
            "teaches nothing"
        )
    tokens = sum(len(done.ids_T) for one in drawn for done in one.group.completions)
    ledger.sampled_tokens += tokens
    facts = {
        "diversity_score": means.get("diversity"),
        "set_quality": means.get("quality"),
        "set_score": means.get("score"),
        "sets": len(drawn),
        "missing_sets": log.missing_sets - before.missing_sets,
        "equal_sets": log.equal_sets - before.equal_sets,
        "saturated_sets": log.saturated_sets - before.saturated_sets,
        "set_tokens": tokens,
        "sample_time_s": round(seconds, 4),
    }
    scored = facts["sets"] - facts["missing_sets"]
    rows = _rows(drawn, weight / (scored * config.n_generations)) if scored and weight else ()
    updates = (*lesson.updates[:-1], (*lesson.updates[-1], *rows)) if lesson.updates else (rows,) if rows else ()
    shares = {TERM: config.gradient_share} if config.gradient_share is not None else {}
    who = {"step": step + 1, "condition": run.condition, "seed": run.seed}
    return replace(
        lesson,
        updates=updates,
        facts={**lesson.facts, **facts},
        logs={**lesson.logs, GENERATIONS: _lines(who, drawn)},
        sampling_s=lesson.sampling_s + seconds,
        shares={**lesson.shares, **shares},
    )


def _rows(drawn: Sequence[DrawnSet], weight: float) -> tuple[Row, ...]:
    """A row per completion that is worth more or less than the others of its set.

    Where none of the step is, one completion stands for the term with a weight of 0, so that whoever measures the
    term's gradient finds that it is 0 instead of finding no term. Where no set could score more, there is no term: what
    cannot be gained is not taught, and nothing is wrong.
    """
    rows = [
        Row(one.group.stream(done), weight * advantage, term=TERM)
        for one in drawn
        if one.scored is not None
        for done, advantage in zip(one.group.completions, one.scored.advantage_N.tolist(), strict=True)
    ]
    if all(one.scored.full for one in drawn if one.scored is not None):
        return ()
    return tuple(row for row in rows if row.weight) or tuple(rows[:1])


def _lines(who: Mapping[str, Any], drawn: Sequence[DrawnSet]) -> list[dict[str, Any]]:
    """Every completion that was drawn; `correct` is its quality and `reward` the score of its set."""
    lines = []
    for one in drawn:
        group, scored = one.group, one.scored
        for g, (done, quality) in enumerate(zip(group.completions, group.grades, strict=True)):
            line: dict[str, Any] = {
                **who,
                "task": group.task.id,
                "sample": g,
                "prompt": group.task.messages[-1]["content"],
                "completion": done.text,
                "reward": None if scored is None else scored.score,
                "correct": quality.value,
                "set_diversity": None if scored is None else scored.diversity,
                "advantage": None if scored is None else float(scored.advantage_N[g]),
                "num_tokens": len(done.ids_T),
                "finished": done.finished,
            }
            lines.append(line if scored is not None else {**line, "no_score": one.missing})
    return lines


def _grader(key: str, function: str) -> Grader:
    try:
        return Grader(GraderConfig(kind="function", function=function), GRADED_AS[key])
    except UserError as error:
        raise UserError(function_error(key, error)) from error
