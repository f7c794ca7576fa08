"""Evaluation sets as they are planned with: their identity, what they are in words, and their first prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetrial.campaign.contrasts import graded_as
from finetrial.campaign.plan import STAGE_VERSIONS, Suite
from finetrial.campaign.practice import Exam, Grading
from finetrial.campaign.settings import HELD_OUT
from finetrial.campaign.spec import Spec
from finetrial.errors import UserError
from finetrial.evaluate.choice import questions_of
from finetrial.evaluate.reward_config import RewardModelConfig
from finetrial.identity import digest
from finetrial.model.render import prompt_text, render, render_batch
from finetrial.records import Example, Task

SHOWN = 2000
"""Most characters of a first prompt that are kept; the end is what matters."""


def text_suite(
    name: str,
    items: Sequence[Example],
    spec: Spec,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    facts: Mapping[str, Any],
) -> Suite:
    """A suite of kind `perplexity`.

    Raises:
        UserError: it is empty, or ids repeat.
    """
    _check_ids(name, [item.id for item in items])
    content = sorted([item.id, item.content_hash] for item in items)
    drawn = spec.split.test_sets if spec.split else {}
    described = drawn[name].kind if name in drawn else "declared in [[suites]]"
    first = render_batch([min(items, key=lambda item: item.id).messages], tokenizer, spec.model.max_length).rows[0]
    return Suite(
        name=name,
        description=f"perplexity of assistant text, {described}",
        items=tuple(sorted(item.id for item in items)),
        groups=len({item.group for item in items}),
        hash=digest(
            {
                "kind": "perplexity",
                "items": content,
                "base": base,
                "max_length": spec.model.max_length,
                "render": STAGE_VERSIONS["render"],
            }
        ),
        prompt=""
        if first is None
        else shown(str(tokenizer.decode(first.ids_T[: int(np.argmax(first.mask_T))].tolist()))),
        facts=dict(facts),
    )


def exam_suite(name: str, exam: Exam, spec: Spec, base: str, tokenizer: PreTrainedTokenizerBase) -> Suite:
    """A suite of kind `tasks`, `choice` or `conversation`.

    Raises:
        UserError: it is empty, or ids repeat; an item of a suite of multiple choice is none; or supervised conditions
            would train on another prompt than models are examined with.
    """
    _check_ids(name, [task.id for task in exam.tasks])
    if exam.kind == "choice":
        try:
            questions_of(exam.tasks)
        except UserError as error:
            raise UserError(f"suite {name!r}: {error}") from error
    place = "held out of [tasks]" if name == HELD_OUT else "declared in [[suites]]"
    chance = "" if exam.chance is None else f", chance {exam.chance:.1%} of {len(exam.tasks)} items"
    content: dict[str, Any] = {
        "kind": exam.kind,
        "items": [[task.id, task.content_hash] for task in exam.tasks],
        "base": base,
        "render": STAGE_VERSIONS["render"],
    }
    if exam.kind == "choice":
        described = f"multiple choice by log-probability, {place}{chance}"
        content |= {"lead": exam.lead}
    else:
        evaluation = exam.evaluation
        samples = "one completion each" if evaluation.samples == 1 else f"{evaluation.samples} completions each"
        described = f"completions of tasks {place}, {samples}, graded by {_grader(exam.grading)}{chance}"
        if exam.script is not None:
            described = (
                f"answers in {len(exam.script.dialogues)} conversations {place}, {len(exam.tasks)} turns, "
                f"{len(exam.graded)} of them graded by {_grader(exam.grading)}, {samples}"
            )
            content |= {"temperatures": dict(exam.script.temperatures)}
        if isinstance(exam.grading.config, RewardModelConfig):
            content |= {"map": exam.grading.config.map}
        content |= {
            "grader": exam.grading.key,
            "sampling": evaluation.sampling,
            "samples": evaluation.samples,
            "seed": evaluation.seed,
        }
    first = exam.tasks[0]
    if spec.supervised:
        check_rendering(f"suite {name!r}", first, tokenizer)
    facts = {key: exam.facts[key] for key in ("subset", "dialogues") if key in exam.facts}
    if exam.kind == "conversation" or exam.grading.kind == "reward_model":
        facts["metrics"] = [*graded_as(exam.kind, exam.grading.config), "completion_tokens"]
    return Suite(
        name=name,
        description=described,
        items=tuple(task.id for task in exam.tasks),
        groups=len({task.group for task in exam.tasks}),
        hash=digest(content),
        kind=exam.kind,
        texts=_texts(exam),
        prompt=shown(prompt_text(first.messages, tokenizer) + exam.lead),
        facts={**facts, **({} if exam.chance is None else {"chance": exam.chance})},
    )


def _texts(exam: Exam) -> str:
    """Identity of how the completions of an exam are measured as texts: no part of the suite's own, whose completions
    and grades it does not change."""
    if exam.kind != "tasks" or not exam.evaluation.instruments:
        return ""
    references = [task.gold or task.reference for task in exam.tasks]
    matched = exam.evaluation.matched_words
    return digest({"version": STAGE_VERSIONS["texts"], "references": references, "matched_words": matched})


def _grader(grading: Grading) -> str:
    """A grader in words: its kind, and which function or judge it is."""
    config = grading.config
    if isinstance(config, RewardModelConfig):
        return "a reward model"
    if config.function is not None:
        return f"the function {config.function.rpartition(':')[2]}"
    return f"the judge {config.judge.model}" if config.judge is not None else grading.kind


def check_rendering(place: str, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that begins the assistant's turn otherwise when rows are learnt from than when it is asked.

    The task's messages with an answer, rendered as a row of training, must begin with the tokens of the prompt; else a
    model would be examined on a prompt that no training row of the kind could have had.

    Raises:
        UserError: it does not, with the place where they part.
    """
    prompt = prompt_text(task.messages, tokenizer)
    answered = (*task.messages, {"role": "assistant", "content": task.gold or task.reference})
    ids = render(answered, tokenizer, max_length=2**31 - 1).ids_T.tolist()
    asked = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    if ids[: len(asked)] == asked:
        return
    parted = next((i for i, (a, b) in enumerate(zip(asked, ids, strict=False)) if a != b), len(ids))
    raise UserError(
        f"{place}: a row of training and the prompt of evaluation part at token {parted} of the same messages: the row "
        f"goes on with {tokenizer.decode(ids[parted : parted + 12])!r}, the prompt with "
        f"{tokenizer.decode(asked[parted : parted + 12])!r}; expected a chat template whose generation prompt begins "
        "the assistant's turn as it stands in a conversation"
    )


def _check_ids(name: str, ids: Sequence[str]) -> None:
    if not ids:
        raise UserError(f"suite {name!r} is empty")
    if len(set(ids)) < len(ids):
        raise UserError(f"suite {name!r} has repeated ids")


def shown(text: str) -> str:
    """What is kept of a first prompt."""
    return text if len(text) <= SHOWN else f"… {text[-SHOWN:]}"
