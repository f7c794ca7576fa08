"""Tasks: prompts whose completions can be graded."""

import dataclasses
import itertools
import string
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from finetrial.data.code_tasks import code_task, is_code_row
from finetrial.data.environments import gym_tasks, verifiers_tasks
from finetrial.data.read import open_source, read
from finetrial.data.task_rows import Question, Style, question_of
from finetrial.errors import UserError, nearest
from finetrial.grade.config import GraderConfig
from finetrial.identity import digest
from finetrial.records import Config, Message, Task
from finetrial.seeds import derive


class TaskConfig(Config):
    """`[tasks]`: what runs of reinforcement learning practise on, and what everything is examined on."""

    source: str = Field(
        default="world:arithmetic?count=4000&seed=1",
        description="`world:NAME?count=N&seed=S`, `gym:NAME?count=N&seed=S&key=value` (reasoning-gym), "
        "`env:NAME?key=value` (verifiers), `hf:NAME[:config][@split]`, or a file, folder or glob of JSON lines, JSON, "
        "CSV or Parquet with question and answer",
    )
    limit: int | None = Field(default=None, ge=1, description="read at most this many tasks")
    where: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="keep only tasks whose facts have these values, such as { kind = 'chain' }"
    )
    instruction: str = Field(default="", description="appended to each question, on a line of its own")
    system: str = Field(default="", description="system message before each question; empty for none")
    grader: GraderConfig = GraderConfig()


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a source."""

    tasks: tuple[Task, ...]
    content_key: str
    """SHA-256 of ids, groups, prompts, references and meta: independent of paths and of the order of rows."""
    grader: str
    """The kind of grader that `auto` stands for."""
    facts: dict[str, Any]
    """In JSON types: source, files (name, SHA-256, rows), rows, kept, dropped (reason -> rows), groups, styles (how
    references were found -> rows), and what was changed: renamed_ids, merged_groups; conflicting_references counts
    questions that occur with different references."""
    function: str | None = None
    """`package.module:name` of the function that grades these tasks, where their source brings one."""


GRADERS = {"plain": "exact", "number": "numeric", "####": "numeric", "boxed": "math", "choice": "choice",
           "environment": "environment", "graded": "function", "code": "code"}  # fmt: skip
"""How a reference was found -> the grader that suits it."""

WORLD_GRADERS = {
    "replies": "finetrial.data.worlds.replies:quality",
    "physics": "finetrial.data.worlds.physics:grade",
    "physics_explanation": "finetrial.data.worlds.physics:grade",
}
"""Worlds whose questions have many good answers -> the function that grades them."""


def read_tasks(config: TaskConfig, place: str = "tasks") -> TaskSet:
    """Read the tasks of a source.

    Rows that repeat question and reference are dropped but for the first id; ids that repeat are numbered. Tasks of
    different groups that ask the same question (by its normalised spelling) become one group, and a row without a
    group has its question for one.

    Args:
        config: source and wording.
        place: the table of the campaign that errors name.

    Raises:
        UserError: no such source, no known columns (with the nearest names), an empty question or reference (with
            row and line), rows that mark their answers beside rows that do not, or nothing read.
    """
    facts: dict[str, Any] = {"source": config.source, "files": []}
    questions = list(itertools.islice(_questions(config.source, config.limit, facts, place), config.limit))
    if not questions:
        raise UserError(f"[{place}] {config.source}: no task (the source is empty)")
    read_rows, questions = len(questions), _chosen(questions, config, place)
    if _world_name(config.source):
        questions = _as_choices(questions)
    styles = Counter(question.style for question in questions)
    if len(styles) > 1:
        common = styles.most_common(1)[0][0]
        odd = next(question for question in questions if question.style != common)
        raise UserError(
            f"[{place}] {odd.place}: the reference is {_described(odd.style)}, but of {len(questions)} rows "
            f"{styles[common]} have one that is {_described(common)}; expected one kind"
        )
    distinct, dropped = _distinct(questions)
    named, renamed = _unique_ids(distinct)
    tasks = [_task(question, config) for question in named]
    tasks, merged = _merge_groups(tasks, [question.key for question in named])
    reasons = {"not as `where` asks": read_rows - len(questions), "question and reference of another row": dropped}
    facts |= {
        "rows": read_rows,
        "kept": len(tasks),
        "dropped": {reason: count for reason, count in reasons.items() if count},
        "groups": len({task.group for task in tasks}),
        "styles": dict(styles),
        "renamed_ids": renamed,
        "merged_groups": merged,
        "conflicting_references": len(named) - len({question.key for question in named}),
    }
    content = digest(sorted([task.id, task.group, task.content_hash, digest(dict(task.meta))] for task in tasks))
    function = WORLD_GRADERS.get(_world_name(config.source)) if "graded" in styles else None
    return TaskSet(tuple(tasks), content, GRADERS[next(iter(styles))], facts, function)


def grader_for(config: GraderConfig, tasks: TaskSet) -> GraderConfig:
    """The configuration that grades these tasks: `auto` with the function that the source brings, where it does.

    Raises:
        UserError: the configuration says what a function has no use for.
    """
    if config.kind != "auto" or tasks.function is None:
        return config
    try:
        return GraderConfig.model_validate({**config.model_dump(), "kind": "function", "function": tasks.function})
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{tasks.facts['source']}: grader: {told}") from error


def split_tasks(tasks: TaskSet, held_out: int, seed: int) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Divide tasks into practice and held out, whole groups at a time.

    Groups are ranked by a hash of seed and name; the first ones are held out until they have `held_out` tasks or
    more (the last group comes whole). The rank of a group depends on nothing else, so neither the order of rows nor
    other rows change it.

    Returns:
        practice, held out; each in the order of `tasks`.

    Raises:
        UserError: nothing would be left to practise on.
    """
    sizes = Counter(task.group for task in tasks.tasks)
    ranked = sorted(sizes, key=lambda group: (derive(seed, "tasks/held_out", group), group))
    chosen: set[str] = set()
    count = 0
    for group in ranked:
        if count >= held_out:
            break
        chosen.add(group)
        count += sizes[group]
    if count < held_out or len(chosen) == len(ranked):
        raise UserError(
            f"{tasks.facts['source']}: cannot hold out {held_out} of {len(tasks.tasks)} tasks in {len(ranked)} groups "
            "and keep one group to practise on; hold out fewer, or read more"
        )
    practice = tuple(task for task in tasks.tasks if task.group not in chosen)
    return practice, tuple(task for task in tasks.tasks if task.group in chosen)


def _questions(source: str, limit: int | None, facts: dict[str, Any], place: str) -> Iterator[Question]:
    scheme = source.partition(":")[0]
    if scheme == "world":
        yield from _world(source, limit, place)
    elif scheme == "gym":
        yield from gym_tasks(source, limit, place)
    elif scheme == "env":
        yield from verifiers_tasks(source, limit, place)
    else:
        for file in open_source(source, limit):
            told: dict[str, Any] = {"file": file.name, "sha256": file.sha256, "rows": 0}
            facts["files"].append(told)
            for row in file.rows:
                told["rows"] += 1
                if row.error is not None:
                    raise UserError(f"[{place}] {row.place}: {row.error}")
                read_row = code_task if is_code_row(row.value) else question_of
                yield read_row(row.value, f"[{place}] {row.place}")


def _world(source: str, limit: int | None, place: str) -> Iterator[Question]:
    """Questions of a world whose rows carry an answer, or whose completions a function of the world grades.

    What the world says itself is the gold completion; where nothing shorter is the answer, it is the reference too.
    """
    graded = _world_name(source) in WORLD_GRADERS
    for example in read(source, limit=limit).examples:
        answer = example.meta.get("answer")
        if answer is None and not graded:
            raise UserError(
                f"[{place}] {source}: rows of this world have no answer; expected world:arithmetic or one of "
                f"{', '.join(f'world:{name}' for name in WORLD_GRADERS)}"
            )
        turns = [message["role"] for message in example.messages]
        gold = example.messages[-1]["content"]
        style: Style = "graded" if graded else "plain" if isinstance(answer, str) else "number"
        yield Question(
            place=f"{source} {example.id}",
            id=example.id,
            group=example.group,
            messages=tuple(example.messages[: turns.index("assistant")]),
            reference=gold if answer is None else str(answer),
            gold=gold,
            meta=dict(example.meta),
            style=style,
        )


def _world_name(source: str) -> str:
    scheme, _, rest = source.partition(":")
    return rest.partition("?")[0] if scheme == "world" else ""


def _chosen(questions: list[Question], config: TaskConfig, place: str) -> list[Question]:
    """The questions whose facts are as `where` asks."""
    known = sorted({name for question in questions for name in question.meta})
    for name in config.where:
        if name not in known:
            raise UserError(f"[{place}] where: no task has a fact {name!r}{nearest(name, known)}; there are {known}")
    kept = [q for q in questions if all(q.meta.get(name) == value for name, value in config.where.items())]
    if not kept:
        values = {name: sorted({str(q.meta.get(name)) for q in questions})[:8] for name in config.where}
        raise UserError(f"[{place}] where: no task is as {dict(config.where)} asks; there are {values}")
    return kept


def _as_choices(questions: list[Question]) -> list[Question]:
    """Questions of a world as multiple choice, where that is what all of them are (`where` may have seen to it)."""
    if not all(isinstance(q.meta.get("choices"), list) and isinstance(q.meta.get("answer"), str) for q in questions):
        return questions
    return [
        dataclasses.replace(
            question,
            reference=question.meta["answer"],
            style="choice",
            meta={
                **question.meta,
                "choices": dict(zip(string.ascii_uppercase, question.meta["choices"], strict=False)),
            },
        )
        for question in questions
    ]


def _distinct(questions: list[Question]) -> tuple[list[Question], int]:
    """Of rows with the same prompt and reference, the one whose id sorts first, in the order of the source.

    A graded question has one good text of many for its reference: there the facts that grade it stand in for it.
    """
    best: dict[str, Question] = {}
    for question in questions:
        wanted = question.reference if question.style != "graded" else dict(question.meta)
        key = digest([list(question.messages), wanted])
        if key not in best or (question.id or "") < (best[key].id or ""):
            best[key] = question
    kept = set(map(id, best.values()))
    return [question for question in questions if id(question) in kept], len(questions) - len(best)


def _unique_ids(questions: list[Question]) -> tuple[list[Question], int]:
    """A row without an id is named by its content; repeated ids are numbered in the order of their content."""
    contents = [digest([list(question.messages), question.reference]) for question in questions]
    names = [q.id or f"task-{content[:16]}" for q, content in zip(questions, contents, strict=True)]
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    taken, renamed = set(places), 0
    for name in sorted(name for name, at in places.items() if len(at) > 1):
        for place in sorted(places[name], key=lambda place: contents[place])[1:]:
            names[place] = next(f"{name}#{k}" for k in itertools.count(2) if f"{name}#{k}" not in taken)
            taken.add(names[place])
            renamed += 1
    return [dataclasses.replace(q, id=name) for q, name in zip(questions, names, strict=True)], renamed


def _merge_groups(tasks: list[Task], questions: list[str]) -> tuple[list[Task], int]:
    """Groups that share a question become one, under the name that sorts first."""
    parent: dict[str, str] = {task.group: task.group for task in tasks}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[str, str] = {}
    for task, question in zip(tasks, questions, strict=True):
        low, high = sorted((root(task.group), root(first.setdefault(question, task.group))))
        parent[high] = low
    merged = [dataclasses.replace(task, group=root(task.group)) for task in tasks]
    return merged, len(parent) - len({task.group for task in merged})


def _task(question: Question, config: TaskConfig) -> Task:
    *before, last = question.messages
    if config.instruction:
        last = {**last, "content": f"{last['content']}\n{config.instruction}"}
    messages: list[Message] = [*before, last]
    if config.system:
        if messages[0]["role"] == "system":
            raise UserError(f"{question.place}: the prompt has a system message of its own; leave `system` empty")
        messages.insert(0, {"role": "system", "content": config.system})
    return Task(
        id=question.id or "",
        group=question.group or f"question-{digest(question.key)[:16]}",
        messages=tuple(messages),
        reference=question.reference,
        gold=question.gold,
        meta=question.meta,
    )


def _described(style: str) -> str:
    return {
        "plain": "taken as it is",
        "number": "a number",
        "####": "marked by ####",
        "boxed": "marked by \\boxed",
        "choice": "one of several choices",
        "environment": "an environment's",
        "graded": "graded by a function",
        "code": "graded by tests",
    }[style]
