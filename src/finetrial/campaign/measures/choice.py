"""Suites of kind `choice`: multiple choice by the probability of each option, as a letter and as its text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import log_softmax

from finetrial.campaign.launch import Launch
from finetrial.campaign.measures.examinee import Examinee, fill, stored, suite_key
from finetrial.campaign.plan import Suite
from finetrial.campaign.practice import Exam
from finetrial.evaluate.choice import Choice, ChoiceItem, choice_items, choice_logp, questions_of
from finetrial.evaluate.progress import Progress
from finetrial.model.render import prompt_text
from finetrial.records import Outcome

STAGE = "choice"


def measure(launch: Launch, suite: Suite, examinees: Sequence[Examinee]) -> None:
    """Weigh the options under the models that lack the suite and store an artefact for each."""
    fill(launch, suite, STAGE, examinees, lambda sweep: _weighed(launch, suite, sweep))


def outcomes(launch: Launch, suite: Suite, one: Examinee) -> list[Outcome]:
    """Five metrics per item; missing where a weight is not finite.

    `acc`: whether the option whose text has the largest log-probability is right; `acc_norm`: the same per byte of the
    text; `gold_logp`: log-probability of the right text among the options' texts, in nats. `acc_letter` and
    `gold_logp_letter` are those of the options' letters.
    """
    found = []
    for row in stored(launch, STAGE, suite_key(launch, STAGE, suite, one)).to_pylist():
        gold = row["gold"]
        text_O, letter_O = np.array(row["text_logp"]), np.array(row["letter_logp"])
        values = {
            "acc": _right(text_O, gold),
            "acc_norm": _right(text_O / np.array(row["bytes"]), gold),
            "gold_logp": _share(text_O, gold),
            "acc_letter": _right(letter_O, gold),
            "gold_logp_letter": _share(letter_O, gold),
        }
        found += [one.outcome(suite, row["item"], row["group"], metric, value) for metric, value in values.items()]
    return found


def _right(weight_O: np.ndarray, gold: int) -> float | None:
    return float(np.argmax(weight_O) == gold) if np.isfinite(weight_O).all() else None


def _share(weight_O: np.ndarray, gold: int) -> float | None:
    return float(log_softmax(weight_O)[gold]) if np.isfinite(weight_O).all() else None


def _weighed(launch: Launch, suite: Suite, sweep: Sequence[Examinee]) -> list[pa.Table]:
    """Log-probability of every option of each item under each model, in nats."""
    exam = launch.prepared.tasks.exams[suite.of]
    texts, letters = option_items(launch, exam, "text"), option_items(launch, exam, "label")
    adapters = [one.load() for one in sweep if one.folder is not None]
    options = sum(len(item.options) for item in (*texts, *letters))
    with Progress(suite.name, options * (1 + len(adapters))) as progress:
        weights = choice_logp(
            launch.base.model, adapters, [*texts, *letters], launch.spec.evaluation.batch_tokens, progress
        )
    places = iter(range(1, 1 + len(adapters)))
    tables = []
    for one in sweep:
        g = 0 if one.folder is None else next(places)
        rows: list[dict[str, Any]] = [
            {
                "item": task.id,
                "group": task.group,
                "gold": text.gold,
                "bytes": list(text.bytes),
                "text_logp": weights[k][g].tolist(),
                "letter_logp": weights[len(texts) + k][g].tolist(),
            }
            for k, (task, text) in enumerate(zip(exam.tasks, texts, strict=True))
        ]
        tables.append(pa.Table.from_pylist(rows))
    return tables


def option_items(launch: Launch, exam: Exam, by: str) -> list[ChoiceItem]:
    """The questions with what is weighed: an option's text or letter, behind the words that lead to it."""
    tokenizer = launch.base.tokenizer
    asked = questions_of(exam.tasks, "text" if by == "text" else "label")
    if exam.lead:
        asked = [
            Choice(one.id, prompt_text(task.messages, tokenizer) + exam.lead, one.options, one.gold)
            for task, one in zip(exam.tasks, asked, strict=True)
        ]
    return choice_items(asked, tokenizer)
