"""Conversations of several turns, in the manner of MT-Bench (Zheng et al. 2023, arXiv:2306.05685), under N adapters.

All first turns are answered under all models in one batch; then all second turns, each with the model's own first
answer in its context; and so on. Sampling noise is a function of (seed, dialogue, turn, sample) alone, so that models
are paired in it.

Shapes: G models, K dialogues, J samples of each, T tokens of a prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetrial import seeds
from finetrial.data.files import RawRow
from finetrial.data.read import open_source
from finetrial.errors import UserError, nearest
from finetrial.evaluate.completions import Written
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Request, Shown, sample
from finetrial.model.adapters import Adapter, AdapterStack
from finetrial.model.loss import head_of
from finetrial.model.render import prompt_text
from finetrial.records import Message

QUESTION = ("question_id", "category", "turns", "reference")
"""Keys of a row of FastChat's question.jsonl; the reference may be missing."""
ANSWER = ("question_id", "answer_id", "model_id", "choices", "tstamp")
"""Keys of a row of its reference answers."""

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""What FastChat samples each category of MT-Bench at."""


@dataclass(frozen=True)
class Dialogue:
    """What a user says, turn by turn, whatever is answered."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    """Right answers to the first turns, for as many as there are; empty where a turn has none."""


@dataclass(frozen=True)
class Conversations:
    """What every model answered."""

    answers: tuple[tuple[tuple[tuple[Written | None, ...], ...], ...], ...]
    """(model, dialogue, sample, turn); None where the conversation had outgrown the base's context before that turn."""
    first_prompt: str
    """The first dialogue's first turn as the chat template renders it, generation prompt included."""


def read_dialogues(source: str, references: str | None = None) -> list[Dialogue]:
    """Dialogues in the format of FastChat's question.jsonl: `question_id`, `category`, `turns` and maybe `reference`.

    Args:
        source: file, folder, glob, or `hf:NAME`.
        references: rows in the format of FastChat's reference answers, which go before `reference`.

    Raises:
        UserError: a row of another form, with its place and the nearest known key; an id that occurs twice; a
            reference without a question; nothing read.
    """
    better: dict[str, tuple[str, ...]] = {}
    for row in _rows(references) if references else ():
        choices = _known(row, ANSWER, ("question_id", "choices"))["choices"]
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise UserError(f"{row.place}: choices is no list of objects with `turns`")
        better[_id(row)] = _texts(choices[0].get("turns"), f"{row.place}: choices[0].turns", gaps=True)
    dialogues: dict[str, Dialogue] = {}
    for row in _rows(source):
        value = _known(row, QUESTION, ("question_id", "turns"))
        name = _id(row)
        if name in dialogues:
            raise UserError(f"{row.place}: question_id {name} occurs twice")
        turns = _texts(value["turns"], f"{row.place}: turns")
        given = value.get("reference")
        found = better.pop(name, None) or (_texts(given, f"{row.place}: reference", gaps=True) if given else ())
        if len(found) > len(turns):
            raise UserError(f"{row.place}: {len(found)} references for {len(turns)} turns")
        category = value.get("category", "")
        if not isinstance(category, str):
            raise UserError(f"{row.place}: category is a {type(category).__name__}; expected a text")
        dialogues[name] = Dialogue(name, category, turns, found)
    if better:
        raise UserError(f"{references}: question {next(iter(better))} has a reference but is not among the questions")
    if not dialogues:
        raise UserError(f"{source}: no dialogues")
    return list(dialogues.values())


def converse(
    model: nn.Module,
    adapters: Sequence[Adapter],
    dialogues: Sequence[Dialogue],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    sampling: SamplingConfig,
    temperatures: Mapping[str, float] | None = None,
    system: str = "",
    samples: int = 1,
    seed: int = 0,
    progress: Shown | None = None,
    base: bool = True,
) -> Conversations:
    """Hold every dialogue with every model.

    Args:
        model: a transformers causal language model, plain; it is a plain base again afterwards.
        adapters: may be empty.
        dialogues: K of them; their numbers of turns may differ.
        tokenizer: renders and decodes.
        stop_ids: tokens that end an answer.
        sampling: how answers are drawn.
        temperatures: by category, in place of `sampling`'s where one is given (`TEMPERATURES`).
        system: message before each dialogue; empty for none.
        samples: J conversations of each dialogue.
        seed: of the sampling noise.
        progress: shown in units of answers; starts anew with each turn.
        base: whether the base answers too; it then comes first.

    Raises:
        UserError: there are no dialogues, or a first turn does not fit the base's context.
        NotFinite: an adapter's logits are not finite.
    """
    if not dialogues:
        raise UserError("there are no dialogues to hold")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr]
    models: list[int | None] = [*([None] if base else []), *range(len(adapters))]
    settings = [_at(sampling, (temperatures or {}).get(one.category)) for one in dialogues]
    held = [(one, k, j) for one in models for k in range(len(dialogues)) for j in range(samples)]
    answers: dict[tuple[int | None, int, int], list[Written | None]] = {one: [] for one in held}
    first_prompt = prompt_text(_messages(dialogues[0], [], system), tokenizer)
    model.eval()
    head = head_of(model)
    with AdapterStack(model, adapters) as stack:
        for turn in range(max(len(one.turns) for one in dialogues)):
            asked, requests = [], []
            for one in held:
                adapter, k, j = one
                dialogue, before = dialogues[k], answers[one]
                if turn >= len(dialogue.turns):
                    continue
                prompt_T = None if None in before else _prompt(_messages(dialogue, before, system), tokenizer)
                if prompt_T is None or (turn and context is not None and len(prompt_T) >= context):
                    before.append(None)
                    continue
                noise = seeds.derive(seed, "conversation", dialogue.id, turn, j)
                asked.append(one)
                requests.append(Request(prompt_T, adapter, (noise,), settings[k]))
            found = sample(model, head, stack, tokenizer, requests, stop_ids, progress=progress)
            for one, (answer,) in zip(asked, found, strict=True):
                answers[one].append(Written(answer.text, len(answer.ids_T), answer.finished))
    return Conversations(
        tuple(
            tuple(tuple(tuple(answers[one, k, j]) for j in range(samples)) for k in range(len(dialogues)))
            for one in models
        ),
        first_prompt,
    )


def _messages(dialogue: Dialogue, before: Sequence[Written | None], system: str) -> list[Message]:
    """The conversation up to the turn that is answered next."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for said, answer in zip(dialogue.turns, before, strict=False):
        assert answer is not None
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer.text}]
    return [*messages, {"role": "user", "content": dialogue.turns[len(before)]}]


def _prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    return np.array(tokenizer.encode(prompt_text(messages, tokenizer), add_special_tokens=False), np.int64)


def _at(sampling: SamplingConfig, temperature: float | None) -> SamplingConfig:
    return sampling if temperature is None else sampling.model_copy(update={"temperature": temperature})


def _rows(source: str) -> Iterable[RawRow]:
    for file in open_source(source):
        yield from file.rows


def _known(row: RawRow, keys: Sequence[str], needed: Sequence[str]) -> Mapping[str, Any]:
    """The row as an object of known keys."""
    if row.error is not None:
        raise UserError(f"{row.place}: {row.error}")
    if not isinstance(row.value, Mapping):
        raise UserError(f"{row.place}: a row is a {type(row.value).__name__}; expected an object of {', '.join(keys)}")
    strange = [key for key in row.value if key not in keys]
    missing = [key for key in needed if key not in row.value]
    if strange or missing:
        what = f"no {missing[0]}" if missing else f"unknown key {strange[0]!r}"
        hint = nearest(missing[0], strange) if missing else nearest(strange[0], keys)
        raise UserError(f"{row.place}: {what}{hint}; a row has {', '.join(keys)}")
    return row.value


def _id(row: RawRow) -> str:
    name = row.value["question_id"]
    if isinstance(name, bool) or not isinstance(name, (int, str)):
        raise UserError(f"{row.place}: question_id is a {type(name).__name__}; expected a number or a text")
    return str(name)


def _texts(value: Any, place: str, gaps: bool = False) -> tuple[str, ...]:
    """A list of texts, of which none is empty unless there may be gaps."""
    texts = isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
    if not texts or not (gaps or all(text.strip() for text in value)):
        raise UserError(f"{place}: expected a list of texts{'' if gaps else ' that are not empty'}")
    return tuple(value)
