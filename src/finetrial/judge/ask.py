"""Many questions to one judge: what is known is not asked, what is answered is on the disk before anything else."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import Empty, SimpleQueue

from finetrial.grade.judge_config import PARSER_VERSION, JudgeConfig
from finetrial.identity import digest
from finetrial.judge.endpoint import Endpoint, Reply, Unanswered
from finetrial.judge.extract import Reading, read_score, read_verdict
from finetrial.judge.judgments import Judgment, Judgments, key_of
from finetrial.judge.prompts import ask_again, prompt, prompt_hash
from finetrial.records import Task

PERSONALITY = ("model", "revision", "kind", "temperature", "max_tokens")
"""Fields that make a judge another one; its wording has a hash of its own, and repeats are told by their number."""


GATHER_S = 0.02
"""Seconds for which replies are gathered before they are written: a write to the disk costs as much for many."""


@dataclass(frozen=True)
class Question:
    """One prompt to a judge: an answer to a task, or two in the order in which they are shown."""

    task: Task
    answers: tuple[str, ...]
    repeat: int = 0
    session: str = ""

    @cached_property
    def answers_hash(self) -> str:
        """Digest of the answers in the order in which they are shown."""
        return digest(list(self.answers))


@dataclass(frozen=True)
class Unjudged:
    """Why there is no judgment yet; another launch asks again."""

    reason: str


def judge_id(config: JudgeConfig) -> str:
    """Identity of a judge: what is asked, at what temperature, on what scale; not where, nor with what words."""
    return digest({name: getattr(config, name) for name in PERSONALITY})


def keys_of(questions: Sequence[Question], config: JudgeConfig) -> list[str]:
    """The key of each question's judgment."""
    judge, wording = judge_id(config), prompt_hash(config)  # the same for all, and dear beside the rest of a key
    return [
        key_of(
            judge, wording, PARSER_VERSION, config.bounds, one.repeat, one.session, one.task.content_hash,
            one.answers_hash,
        )
        for one in questions
    ]  # fmt: skip


def ask_all(
    questions: Sequence[Question], config: JudgeConfig, endpoint: Endpoint, judgments: Judgments
) -> list[Judgment | Unjudged]:
    """The judgment of each question, or why there is none yet; in the order of the questions.

    Questions that were judged before, or that occur twice, are not asked. Replies are written while others are on
    their way, so a launch that is killed loses those alone that had not come back.

    Raises:
        UserError: the server refuses the key, or has no such model; what came before is kept.
    """
    keys, whose = keys_of(questions, config), (judge_id(config), prompt_hash(config))
    known: dict[str, Judgment | Unjudged] = {**judgments.get(keys)}
    waiting = {mine: question for mine, question in zip(keys, questions, strict=True) if mine not in known}
    if waiting:
        endpoint.check()
    arrived: SimpleQueue[tuple[str, Judgment | Unjudged | Exception]] = SimpleQueue()

    def one(mine: str, question: Question) -> None:
        try:
            arrived.put((mine, _judge(mine, question, config, whose, endpoint)))
        except Unanswered as failure:
            arrived.put((mine, Unjudged(str(failure))))
        except Exception as error:  # noqa: BLE001  # raised again by whoever waits for the answers
            arrived.put((mine, error))

    with ThreadPoolExecutor(min(config.concurrency, max(1, len(waiting)))) as threads:
        try:
            for mine, question in waiting.items():
                threads.submit(one, mine, question)
            left = len(waiting)
            while left:
                batch = _drained(arrived)
                left -= len(batch)
                judgments.add([found for _, found in batch if isinstance(found, Judgment)])
                for mine, found in batch:
                    if isinstance(found, Exception):
                        raise found
                    known[mine] = found
        except BaseException:
            endpoint.close()
            threads.shutdown(cancel_futures=True)
            judgments.add([found for _, found in _rest(arrived) if isinstance(found, Judgment)])
            raise
    return [known[mine] for mine in keys]


def _judge(mine: str, question: Question, config: JudgeConfig, whose: tuple[str, str], endpoint: Endpoint) -> Judgment:
    """Ask, read, and where nothing can be read ask once more with the problem named.

    `whose` are the hashes of judge and wording.
    """
    judge, wording = whose
    chat = [{"role": "user", "content": prompt(question.task, config, question.answers)}]
    seed = int(mine[:15], 16)
    replies = [endpoint.ask(chat, seed)]
    reading = _read(replies[0], config)
    if reading.value is None:
        chat += [
            {"role": "assistant", "content": replies[0].text or "(nothing)"},
            {"role": "user", "content": ask_again(config, reading.problem)},
        ]
        replies.append(endpoint.ask(chat, seed + 1))
        second = _read(replies[1], config)
        told = f"{reading.problem}; asked again: {second.problem}" if second.value is None else reading.problem
        reading = Reading(second.value, second.how, told)
    low, high = config.bounds
    return Judgment(
        key=mine,
        judge=judge,
        model=config.model,
        served=replies[-1].served,
        prompt=wording,
        parser=PARSER_VERSION,
        low=low,
        high=high,
        item=question.task.content_hash,
        answers=question.answers_hash,
        repeat=question.repeat,
        session=question.session,
        value=reading.value,
        how=reading.how,
        problem=reading.problem,
        replies=tuple(reply.text for reply in replies),
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
    )


def _read(reply: Reply, config: JudgeConfig) -> Reading:
    if config.kind == "pairwise":
        return read_verdict(reply.text, reply.is_cut)
    return read_score(reply.text, *config.scale, reply.is_cut)


def _drained(queue: "SimpleQueue[tuple[str, Judgment | Unjudged | Exception]]") -> list:
    """All that has arrived, at least one."""
    first = queue.get()
    time.sleep(GATHER_S)
    return [first, *_rest(queue)]


def _rest(queue: "SimpleQueue[tuple[str, Judgment | Unjudged | Exception]]") -> list:
    found = []
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found
