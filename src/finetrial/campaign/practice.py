"""Tasks of a campaign: what is held out for examination, what each condition practises on, and that nothing is shared.

The held-out tasks and the declared suites come first. From what a condition would practise on, everything goes that
shares an id, a group or a question with them, whatever instruction the question carries. Nothing here imports torch.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from finetrial.campaign.items import check_category
from finetrial.campaign.settings import HELD_OUT, EvaluationConfig, SuiteConfig
from finetrial.campaign.spec import Spec
from finetrial.data.dialogues import Dialogue, read_dialogues
from finetrial.data.split import guard, held_out
from finetrial.data.subset import stratified
from finetrial.data.tasks import TaskConfig, TaskSet, grader_for, read_tasks, split_tasks
from finetrial.errors import UserError
from finetrial.evaluate.reward_config import RewardModelConfig
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import Grader, grader_key, resolved
from finetrial.identity import digest, stage_key
from finetrial.judge.grader import JudgeGrader, open_grader
from finetrial.judge.proof import prove
from finetrial.records import Example, Message, Task
from finetrial.store import Store

_Item = TypeVar("_Item", Example, Task)


@dataclass(frozen=True)
class Grading:
    """How completions of a set of tasks are graded."""

    config: GraderConfig | RewardModelConfig
    auto: str
    """What the source of the tasks brings, for a `config` that leaves it open."""

    @property
    def kind(self) -> str:
        """Of the grader in force."""
        return self.config.kind if isinstance(self.config, RewardModelConfig) else resolved(self.config, self.auto)

    @property
    def key(self) -> str:
        """Identity of the grades that it gives."""
        return self.config.key if isinstance(self.config, RewardModelConfig) else grader_key(self.config, self.auto)


class Graders:
    """The graders of a launch: each is opened when it is first needed, once, and closed at the end.

    Args:
        root: of the store, below which judgments are kept.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, Grader | JudgeGrader] = {}
        self._proofs: dict[str, dict[str, Any]] = {}
        self._rest: dict[str, dict[tuple[str, str], Sequence[tuple[Task, str]]]] = {}
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "Graders":
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def of(self, grading: Grading) -> Grader | JudgeGrader:
        """The grader of these tasks; reward models are none of them (`measures.rewards` loads those)."""
        assert isinstance(grading.config, GraderConfig)
        if grading.key not in self._open:
            self._open[grading.key] = self._exits.enter_context(open_grader(grading.config, grading.auto, self._root))
        return self._open[grading.key]

    def prove(self, tasks: "Tasks", store: Store) -> int:
        """Check every grader on what is known of its tasks; how many tasks were checked.

        Once for all launches, but for judges: those are tested and charted in each.

        Raises:
            UserError: a gold answer is not graded 1, or an empty completion is; a judge fails its test, or drifts.
        """
        sets: dict[str, tuple[Grading, dict[str, Task]]] = {}
        graded = [
            (exam.grading, exam.proven_on)
            for exam in tasks.exams.values()
            if exam.kind != "choice" and exam.grading.kind != "reward_model"
        ]
        for grading, known in (*graded, *((one.grading, one.tasks) for one in tasks.practice.values())):
            _, mine = sets.setdefault(grading.key, (grading, {}))
            mine |= {task.content_hash: task for task in known}
        for key, (grading, mine) in sets.items():
            if not mine:
                continue  # conversations without references, by a judge that was allowed to fail
            proof = stage_key("prove", 1, {}, {"grader": key, "tasks": digest(sorted(mine))})
            grader = self.of(grading)
            if isinstance(grader, JudgeGrader):
                self._proofs[key] = prove(grader, list(mine.values()))
            elif not store.has("prove", proof):
                prove(grader, list(mine.values()))
                with store.put("prove", proof, {"tasks": len(mine)}):
                    pass
        return sum(len(mine) for _, mine in sets.values())

    def rest_on(self, grading: Grading, suite: str, model: str, judged: Sequence[tuple[Task, str]]) -> None:
        """Note which completions of a model a judge's outcomes on a suite rest on, whichever launch had them judged."""
        self._rest.setdefault(grading.key, {})[suite, model] = judged

    def judges(self) -> list[dict[str, Any]]:
        """The manifest's `judges`: who judged, what since the launch began (`launch`) and what the outcomes rest on in
        all (`outcomes`; None of a judge of practice alone), its self-test and its control chart."""
        found = []
        for key, grader in self._open.items():
            if isinstance(grader, JudgeGrader):
                judged = [pair for part in self._rest.get(key, {}).values() for pair in part]
                totals = grader.totals([task for task, _ in judged], [text for _, text in judged]) if judged else None
                found.append({**grader.facts(), "outcomes": totals, **self._proofs.get(key, {})})
        return found


@dataclass(frozen=True)
class Script:
    """What is said to a model in the conversations of a suite."""

    dialogues: Mapping[str, Dialogue]
    """By id."""
    system: str
    temperatures: Mapping[str, float]
    """Of categories, in place of the suite's."""


@dataclass(frozen=True)
class Exam:
    """The items of a suite of tasks."""

    tasks: tuple[Task, ...]
    """Sorted by id; of conversations a task for each turn, whose `group` is the dialogue and whose messages have
    references in the place of what a model will have answered before (empty where there is none)."""
    grading: Grading
    facts: dict[str, Any]
    evaluation: EvaluationConfig
    """How completions are drawn here."""
    kind: str = "tasks"
    """`tasks`, `conversation`, or `choice` where nothing is written and options are weighed."""
    lead: str = ""
    """Of `choice`: what begins the assistant's turn before the option."""
    script: Script | None = None
    """Of `conversation`."""

    @property
    def chance(self) -> float | None:
        """Expected share of right guesses, where every task has choices."""
        counts = [len(task.meta.get("choices") or ()) for task in self.tasks]
        graded = self.kind == "choice" or (self.kind == "tasks" and self.grading.kind == "choice")
        return sum(1 / count for count in counts) / len(counts) if graded and counts and all(counts) else None

    @property
    def asked(self) -> tuple[Task, ...]:
        """The tasks whose prompts are known before anything is answered: all, but later turns of conversations."""
        return tuple(task for task in self.tasks if self.script is None or task.meta["turn"] == 1)

    @property
    def graded(self) -> tuple[Task, ...]:
        """The tasks that can be graded: all, but turns without a reference where grades compare with one."""
        free = self.script is None or self.grading.kind in ("judge", "reward_model", "function")
        return tuple(task for task in self.tasks if free or task.reference)

    @property
    def proven_on(self) -> tuple[Task, ...]:
        """The tasks that a grader is proven on: all, but turns whose right answer, or one before it, is not known."""
        if self.script is None:
            return self.tasks
        return tuple(task for task in self.tasks if task.reference and all(m["content"] for m in task.messages))


@dataclass(frozen=True)
class PracticeSet:
    """The tasks of one condition, sorted by id, with what a `Selection` of rows also has."""

    tasks: tuple[Task, ...]
    grading: Grading
    facts: dict[str, Any]

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the tasks."""
        return tuple(task.id for task in self.tasks)

    @property
    def content_hashes(self) -> tuple[str, ...]:
        """Of the tasks, in their order."""
        return tuple(task.content_hash for task in self.tasks)

    @cached_property
    def key(self) -> str:
        """Digest of the set of (id, content hash)."""
        return digest([list(pair) for pair in zip(self.ids, self.content_hashes, strict=True)])


@dataclass(frozen=True)
class Tasks:
    """All tasks of a campaign."""

    exams: Mapping[str, Exam]
    """Suite -> its items."""
    practice: Mapping[str, PracticeSet]
    """Condition -> what it practises on."""
    examined: Mapping[str, Sequence[Example]]
    """Suite -> what each of its items asks."""
    compared: int
    """Pairs of values that the leak guard compared."""


def read_all(spec: Spec, perplexity_suites: Mapping[str, Sequence[Example]]) -> Tasks:
    """Read, hold out, leave out what is examined, and prove that nothing examined is practised on.

    Args:
        spec: the campaign.
        perplexity_suites: its other suites, whose questions may not be practised on either.

    Raises:
        UserError: a source cannot be read, or too few tasks are left.
        LeakError: something examined is practised on, or the comparison could not be made.
    """
    sets: dict[str, TaskSet] = {}

    def read(config: TaskConfig) -> TaskSet:
        name = digest(config.model_dump(mode="json", exclude={"grader"}))
        if name not in sets:
            sets[name] = read_tasks(config)
        return sets[name]

    exams, instructions = {}, {}
    if spec.tasks is not None:
        found = read(spec.tasks.pool)
        _, held = split_tasks(found, spec.tasks.held_out, spec.tasks.held_out_seed)
        exams[HELD_OUT] = _exam(held, spec.tasks.grader, found, spec.evaluation)
        instructions[HELD_OUT] = spec.tasks.instruction
    for suite in spec.suites:
        if suite.kind == "conversation":
            exams[suite.name] = conversation_exam(suite, spec.evaluation)
            instructions[suite.name] = ""
        elif suite.kind in ("tasks", "choice"):
            try:
                found = read(suite.tasks)
            except UserError as error:
                raise type(error)(f"suite {suite.name}: {error}") from error
            chosen, facts = part_of(suite, found.tasks)
            grader = suite.grader if isinstance(suite.grader, RewardModelConfig) else suite.tasks.grader
            exam = _exam(chosen, grader, found, spec.evaluation.of(suite))
            lead = suite.lead if suite.kind == "choice" else ""
            exams[suite.name] = replace(exam, facts={**exam.facts, **facts}, kind=suite.kind, lead=lead)
            instructions[suite.name] = suite.instruction
    examined = {name: questions(exam.tasks, instructions[name]) for name, exam in exams.items()}
    tested = {name: questions(items) for name, items in perplexity_suites.items()}
    practice, compared = {}, 0
    for condition in spec.practising:
        assert condition.tasks is not None
        try:
            found = read(condition.tasks)
            practice[condition.name], pairs = _practice(condition.tasks, found, {**examined, **tested})
        except UserError as error:
            raise type(error)(f"condition {condition.name}: {error}") from error
        compared += pairs
    return Tasks(exams, practice, examined, compared)


def part_of(suite: SuiteConfig, items: Sequence[_Item]) -> tuple[Sequence[_Item], dict[str, Any]]:
    """The items of a declared suite that are measured, and with `subset` what was left out.

    Raises:
        UserError: no item has the fact that is to name categories or strata, or there are too few.
    """
    check_category(f"suite {suite.name}", suite.category, items)
    if suite.subset is None:
        return items, {}
    chosen, facts = stratified(items, suite.subset, f"suite {suite.name}")
    return chosen, {"subset": facts}


def conversation_exam(suite: SuiteConfig, common: EvaluationConfig) -> Exam:
    """The turns of a declared suite of kind `conversation`.

    Raises:
        UserError: its file cannot be read, or no turn has a reference although its grader compares with one, or must
            prove itself on one.
    """
    assert suite.grader is not None
    place = f"suite {suite.name}"
    try:
        dialogues = read_dialogues(suite.source, suite.references or None)
    except UserError as error:
        raise type(error)(f"{place}: {error}") from error
    turns = {one.id: _turns(one, suite.system) for one in sorted(dialogues[: suite.limit], key=lambda one: one.id)}
    first, facts = part_of(suite, [mine[0] for mine in turns.values()])
    chosen = {task.group for task in first}
    exam = Exam(
        tasks=tuple(task for name, mine in turns.items() if name in chosen for task in mine),
        grading=Grading(suite.grader, "exact"),
        facts={**facts, "dialogues": len(chosen)},
        evaluation=common.of(suite).model_copy(update={"diversity": False}),
        kind=suite.kind,
        script=Script({one.id: one for one in dialogues if one.id in chosen}, suite.system, suite.by_category),
    )
    judge = suite.grader.judge if isinstance(suite.grader, GraderConfig) else None
    proofs_wanted = not isinstance(suite.grader, RewardModelConfig) and not (judge and judge.self_test.allow_failure)
    if proofs_wanted and not exam.proven_on:
        raise UserError(
            f"{place}: no turn has a reference, so a grader of kind {exam.grading.kind} cannot show that it grades "
            "right answers as right; give references"
        )
    return exam


def _turns(dialogue: Dialogue, system: str) -> tuple[Task, ...]:
    """A task for each turn."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    tasks = []
    for turn, said in enumerate(dialogue.turns):
        messages.append({"role": "user", "content": said})
        known = dialogue.references[turn].strip() if turn < len(dialogue.references) else ""
        facts = {"turn": turn + 1, **({"category": dialogue.category} if dialogue.category else {})}
        tasks.append(Task(f"{dialogue.id}/{turn + 1}", dialogue.id, tuple(messages), known, meta=facts))
        messages.append({"role": "assistant", "content": known})
    return tuple(tasks)


def _exam(
    tasks: Iterable[Task], config: GraderConfig | RewardModelConfig, found: TaskSet, evaluation: EvaluationConfig
) -> Exam:
    graded = config if isinstance(config, RewardModelConfig) else grader_for(config, found)
    judged = Grading(graded, found.grader)
    return Exam(tuple(sorted(tasks, key=lambda task: task.id)), judged, dict(found.facts), evaluation)


def _practice(config: TaskConfig, found: TaskSet, examined: Mapping[str, Sequence[Example]]) -> tuple[PracticeSet, int]:
    """What is left of a condition's tasks, and how many pairs of values the guard compared."""
    asked = questions(found.tasks, config.instruction)
    lost = set(held_out(asked, [example for items in examined.values() for example in items]))
    kept = tuple(sorted((task for task in found.tasks if task.id not in lost), key=lambda task: task.id))
    if not kept:
        raise UserError(f"{config.source}: all {len(found.tasks)} tasks are examined; none is left to practise on")
    report = guard(questions(kept, config.instruction), examined, {task.id for task in kept})
    facts = {
        "examples": len(kept),
        "groups": len({task.group for task in kept}),
        "left_out": len(lost),
        "source": config.source,
        "content": found.content_key,
        "read": dict(found.facts),
    }
    return PracticeSet(kept, Grading(grader_for(config.grader, found), found.grader), facts), sum(
        report.compared.values()
    )


def questions(rows: Iterable[Example | Task], instruction: str = "") -> list[Example]:
    """What each row asks, as a row of its own with the same id and group, so that whatever asks the same is the same.

    The question is the first user message without `instruction`, its spaces evened out; a row without one stands for
    its whole conversation.
    """
    return [Example(row.id, row.group, _question(row.messages, instruction.strip())) for row in rows]


def _question(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    asked = next((str(message["content"]) for message in messages if message["role"] == "user"), "")
    text = " ".join(asked.strip().removesuffix(instruction).split())
    return ({"role": "user", "content": text},) if text else tuple(messages)
