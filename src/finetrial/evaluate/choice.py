"""Multiple choice by log-probability: what each option weighs under the base and under N adapters, in one sweep.

An option weighs log p(option | prompt), summed over its tokens, as in Brown et al. 2020 (arXiv:2005.14165, section
2.4) and lm-evaluation-harness, whose splitting of prompt and option into tokens is followed to the letter: numbers
are the same. What prompts and options begin with in common is read once (`trees`), and batches depend on neither the
adapters nor their number, so that rounding is common to all of them.

Shapes: G scored models (row 0 is the base, 1 + n is adapter n), O options of an item, N options of all items, S rows
and T tokens of a padded row, P places of a batch (S · T), U places whose next token is scored, M scored tokens,
C places of a chunk, H hidden features, V vocabulary.
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetrial.errors import UserError
from finetrial.evaluate.perplexity import ADAPTERS_PER_PASS, CPU_BATCH_TOKENS
from finetrial.evaluate.progress import Progress
from finetrial.evaluate.trees import Forest, Tree, common, forest, last_feed_forward, longest_path, read, tree
from finetrial.model.adapters import Adapter, AdapterStack
from finetrial.model.distribution import CHUNK_NUMBERS, Head
from finetrial.model.loss import head_of
from finetrial.model.render import prompt_text
from finetrial.records import Message, Task

ROW_TOKENS = 128
"""Tokens up to which a CPU pays for a row's attention what it pays for short rows with as many tokens together; and
pairs of tokens that cost as much attention as one token costs elsewhere, roughly."""

SHARED = 0.15
"""Part of its tokens that a text must have in common with the one before it to share its row."""


@dataclass(frozen=True)
class Choice:
    """A question with options, before its tokens."""

    id: str
    prompt: str | tuple[Message, ...]
    """A text as it stands, or messages, which the chat template renders (generation prompt included)."""
    options: tuple[str, ...]
    """What may follow: the option's text, or its letter."""
    gold: int
    """Index of the right option."""


@dataclass(frozen=True)
class ChoiceItem:
    """A question with options as tokens."""

    id: str
    prompt_T: np.ndarray
    """int64 ids."""
    options: tuple[np.ndarray, ...]
    """int64 ids of each continuation."""
    bytes: tuple[int, ...]
    """UTF-8 bytes of each option's text, without what separates it from the prompt."""
    gold: int


@dataclass(frozen=True)
class ChoiceScores:
    """What the options of one item weigh."""

    logp_GO: np.ndarray
    """float64 nats, summed over an option's tokens."""
    greedy_GO: np.ndarray
    """bool: every token of the option is the likeliest one at its place."""


def questions_of(tasks: Sequence[Task], by: Literal["label", "text"] = "label") -> list[Choice]:
    """Tasks with choices (`meta["choices"]`, label -> text) as questions for the chat template.

    Args:
        tasks: the prompt of each shows its options.
        by: what continues the prompt: an option's label, or its text.

    Raises:
        UserError: a task has no choices, or its reference is none of their labels.
    """
    questions = []
    for task in tasks:
        choices: Mapping[str, str] | None = task.meta.get("choices")
        if not isinstance(choices, Mapping):
            raise UserError(
                f"task {task.id}: no choices from label to text; where a source has other questions too, keep those "
                "of multiple choice, such as by where = { kind = 'choice' }"
            )
        if task.reference not in choices:
            found = f"its reference is {task.reference!r}, its choices are {', '.join(choices) or '(none)'}"
            raise UserError(f"task {task.id}: {found}; expected the label of a choice")
        options = tuple(choices if by == "label" else choices.values())
        questions.append(Choice(task.id, task.messages, options, list(choices).index(task.reference)))
    return questions


def choice_items(
    questions: Sequence[Choice], tokenizer: PreTrainedTokenizerBase, delimiter: str = " "
) -> list[ChoiceItem]:
    """The tokens of questions.

    Args:
        questions: what to ask.
        tokenizer: of the base.
        delimiter: stands between a prompt that is a text and each option; a chat template needs none.

    Raises:
        UserError: fewer than two options, a gold index outside them, equal options, an empty one, or one that the
            tokenizer swallows.
    """
    pairs: list[tuple[str, str]] = []
    for question in questions:
        _checked(question)
        if isinstance(question.prompt, str):
            pairs += [(question.prompt, delimiter + option) for option in question.options]
        else:
            prompt = prompt_text(question.prompt, tokenizer)
            pairs += [(prompt, option) for option in question.options]
    encoded = iter(encode_pairs(pairs, tokenizer))
    items = []
    for question in questions:
        prompts, options = zip(*itertools.islice(encoded, len(question.options)), strict=True)
        if any(not np.array_equal(prompt_T, prompts[0]) for prompt_T in prompts):  # only an empty prompt can do that
            raise UserError(f"item '{question.id}': the prompt is empty and an option begins with the BOS token")
        empty = next((o for o, option_T in enumerate(options) if not len(option_T)), None)
        if empty is not None:
            raise UserError(f"item '{question.id}': option {question.options[empty]!r} gives no token of its own")
        sizes = tuple(len(option.encode()) for option in question.options)
        items.append(ChoiceItem(question.id, prompts[0], tuple(options), sizes, question.gold))
    return items


def encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[np.ndarray, np.ndarray]]:
    """int64 tokens of (context, continuation) pairs, split as lm-evaluation-harness 0.4 splits them.

    White space at the end of a context moves to the continuation; both are encoded together, and the continuation is
    what lies behind as many tokens as the context has alone. An empty context is the BOS token (without one, the EOS
    token). Special tokens are added as the tokenizer does by itself, but never a second BOS token.
    """
    prefix = prefix_id(tokenizer)
    fronts = [context.rstrip() for context, _ in pairs]
    wholes = [context + continuation if context else "" for context, continuation in pairs]
    ids_of = encode_texts([*fronts, *wholes], tokenizer)
    found = []
    for (context, continuation), front, whole in zip(pairs, fronts, wholes, strict=True):
        if context:
            before, both = ids_of[front], ids_of[whole]
            after = both[len(before) :]
        else:
            ids = tokenizer.encode(continuation, add_special_tokens=False)
            before, after = (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)
        found.append((np.array(before, np.int64), np.array(after, np.int64)))
    return found


def prefix_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What precedes a text without a context: the BOS token, or the EOS token of a tokenizer without one.

    Raises:
        UserError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise UserError(f"tokenizer {tokenizer.name_or_path!r} has neither a BOS nor an EOS token to begin a text with")


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Ids of each text with the tokenizer's own special tokens; without them where it begins with `prefix_id`'s."""
    first = str(tokenizer.decode([prefix_id(tokenizer)]))
    found: dict[str, list[int]] = {}
    for begun in (False, True):
        part = [text for text in dict.fromkeys(texts) if text.startswith(first) == begun]
        if part:
            ids = tokenizer(part, add_special_tokens=not begun, verbose=False)["input_ids"]
            found.update(zip(part, ids, strict=True))
    return found


def choice_logp(
    model: nn.Module,
    adapters: Sequence[Adapter],
    items: Sequence[ChoiceItem],
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """float64 (G, O) of each item: log-probability in nats, summed over an option's tokens; see `choice_scores`."""
    return [scores.logp_GO for scores in choice_scores(model, adapters, items, batch_tokens, progress)]


def choice_scores(
    model: nn.Module,
    adapters: Sequence[Adapter],
    items: Sequence[ChoiceItem],
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    merge: bool | None = None,
    share: bool = True,
) -> list[ChoiceScores]:
    """Weigh every option of every item under the base and under each adapter.

    Args:
        model: a transformers causal language model, plain; it is a plain base again afterwards.
        adapters: may be empty.
        items: may differ in their number of options; one option is allowed.
        batch_tokens: most padded tokens of one batch (a CPU takes at most `perplexity.CPU_BATCH_TOKENS`); a longer
            item is a batch of its own.
        progress: shown in units of one option under one model.
        merge: fold each adapter into a copy of the weights; the default does so for a float32 base on a CPU.
        share: read once what prompts and options begin with in common, where the base can (`trees.longest_path`).

    Raises:
        UserError: there are no items, an item has an empty prompt or option, or does not fit the base's context.
    """
    if not items:
        raise UserError("there are no items to score")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr]
    for item in items:
        _fits(item, context)
    device, dtype = next((parameter.device, parameter.dtype) for parameter in model.parameters())
    if device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    if merge is None:
        merge = device.type == "cpu" and dtype == torch.float32
    model.eval()
    head = head_of(model)
    longest = longest_path(model) if share else 0
    last = last_feed_forward(model)
    starts = [0, *itertools.accumulate(len(item.options) for item in items)]
    trees = _rows(items, starts, longest, batch_tokens)
    batches = [
        ([option for t in chosen for option in trees[t][1]], forest([trees[t][0] for t in chosen], device))
        for chosen in _batches([row for row, _ in trees], batch_tokens)
    ]
    models = 1 + len(adapters)
    size = 1 if merge else ADAPTERS_PER_PASS
    logp_GN, greedy_GN = np.zeros((models, starts[-1])), np.zeros((models, starts[-1]), bool)
    done = 0
    with AdapterStack(model, adapters) as stack, torch.inference_mode():
        for first in range(0, models, size):
            group = list(range(models))[first : first + size]
            with stack.merged(first - 1) if merge and first else contextlib.nullcontext():
                for chosen, batch in batches:
                    with stack.rows([g - 1 if g else None for g in group for _ in range(batch.trees)]):
                        hidden_STH = read(model, batch, len(group), last)
                    for g, hidden_PH in zip(group, hidden_STH.flatten(0, 1).chunk(len(group)), strict=True):
                        logp_GN[g, chosen], greedy_GN[g, chosen] = _weights(head, hidden_PH, batch)
                    done += len(group) * len(chosen)
                    if progress is not None:
                        progress.update(done)
    ends = starts[1:-1]
    return [
        ChoiceScores(logp_GO, greedy_GO)
        for logp_GO, greedy_GO in zip(np.split(logp_GN, ends, 1), np.split(greedy_GN, ends, 1), strict=True)
    ]


def picks(logp_GO: np.ndarray) -> np.ndarray:
    """int64 (G,) the option of largest weight (the first of equals); -1, missing, where a weight is not finite.

    Equal to `acc` of lm-evaluation-harness. Weights favour options of few tokens; see `picks_by_bytes`.
    """
    return np.where(np.isfinite(logp_GO).all(axis=1), np.argmax(logp_GO, axis=1), -1)


def picks_by_bytes(logp_GO: np.ndarray, item: ChoiceItem) -> np.ndarray:
    """int64 (G,) the option of largest weight per byte of its text, as `picks` gives it.

    Equal to `acc_norm` of lm-evaluation-harness for ASCII options; that counts characters.
    """
    return picks(logp_GO / np.array(item.bytes))


def chance(items: Sequence[ChoiceItem]) -> float:
    """Expected accuracy of guessing: the mean over items of 1 / O."""
    return float(np.mean([1 / len(item.options) for item in items]))


def _checked(question: Choice) -> None:
    place, options = f"item '{question.id}'", question.options
    if len(options) < 2:
        raise UserError(f"{place}: {len(options)} options; expected at least two")
    if not 0 <= question.gold < len(options):
        raise UserError(f"{place}: gold is {question.gold}; expected an index from 0 to {len(options) - 1}")
    if not all(option.strip() for option in options):
        raise UserError(f"{place}: an option is empty; expected a text")
    if len(set(options)) < len(options):
        raise UserError(f"{place}: an option is there twice; whichever is picked would be right by chance")


def _fits(item: ChoiceItem, context: int | None) -> None:
    if not len(item.prompt_T) or not all(map(len, item.options)):
        raise UserError(f"item '{item.id}': the prompt or an option has no tokens")
    read_tokens = len(item.prompt_T) + max(map(len, item.options)) - 1
    if context is not None and read_tokens > context:
        raise UserError(f"item '{item.id}': its {read_tokens} tokens do not fit the base's context of {context}")


def _rows(
    items: Sequence[ChoiceItem], starts: Sequence[int], longest: float, room: int
) -> list[tuple[Tree, list[int]]]:
    """The rows that read the items, and which options, counted over all items, each of them weighs.

    Items that begin alike are neighbours in the order of their tokens, and so are an item's options. Each shares the
    row of the one before it if they have enough in common, and if that saves more than it costs: attention is paid
    for all pairs of a row. `room` bounds a row that holds more than a pair of long texts.
    """
    rows: list[list[tuple[np.ndarray, np.ndarray]]] = []
    places: list[list[int]] = []
    before_T, tokens, widest, chain = np.empty(0, np.int64), 0, 0, True
    for k in sorted(range(len(items)), key=lambda k: _order(items[k].prompt_T)):
        prompt_T, options = items[k].prompt_T, items[k].options
        for o in sorted(range(len(options)), key=lambda o: _order(options[o])):
            read_T = np.concatenate([prompt_T, options[o][:-1]])
            shared = common(before_T, read_T)
            grown, widest = tokens + len(read_T) - shared, max(widest, len(read_T))
            longer = chain and grown == len(read_T)
            gained = len(read_T) ** 2 + ROW_TOKENS * shared
            pays = grown <= ROW_TOKENS or grown**2 - tokens**2 <= gained
            forks = widest <= longest and shared >= SHARED * len(read_T) and grown <= max(room, 2 * len(read_T))
            if rows and (longer or (forks and pays)):
                rows[-1].append((prompt_T, options[o]))
                places[-1].append(starts[k] + o)
                tokens, chain = grown, longer
            else:
                rows.append([(prompt_T, options[o])])
                places.append([starts[k] + o])
                tokens, widest, chain = len(read_T), len(read_T), True
            before_T = read_T
    return list(zip(map(tree, rows), places, strict=True))


def _order(ids_T: np.ndarray) -> bytes:
    """Sorts like the ids, one after another."""
    return ids_T.astype(">i8").tobytes()


def _batches(trees: Sequence[Tree], batch_tokens: int) -> list[list[int]]:
    """Rows in batches of like length, longest first, so that memory peaks at once.

    Rows that branch need a mask of their own, which would hide a layer's window from longer chains: they stay apart.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(trees)), key=lambda row: (trees[row].branches, -trees[row].tokens)):  # stable
        first = trees[batches[-1][0]] if batches else None
        if (
            first is not None
            and first.branches == trees[row].branches
            and first.tokens * (len(batches[-1]) + 1) <= batch_tokens
        ):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _weights(head: Head, hidden_PH: Tensor, batch: Forest) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each option of a batch under one model, and whether greedy decoding writes it."""
    hidden_UH = hidden_PH.index_select(0, batch.index_U)
    numbers = CHUNK_NUMBERS.get(hidden_UH.device.type, CHUNK_NUMBERS["cpu"])
    chunk = max(1, numbers // len(head.weight_VH))
    logp, missed = [], []
    for start in range(0, len(hidden_UH), chunk):
        part = slice(*np.searchsorted(batch.row_M, [start, start + chunk]).tolist())
        row_M = torch.from_numpy(batch.row_M[part] - start).to(hidden_UH.device)
        target_M = batch.target_M[part]
        logits_CV = head.logits(hidden_UH[start : start + chunk])
        logp.append(logits_CV[row_M, target_M] - logits_CV.logsumexp(dim=1)[row_M])
        missed.append(logits_CV.argmax(dim=1)[row_M] != target_M)
    logp_M, missed_M = (torch.cat(part).double().cpu().numpy() for part in (logp, missed))
    return (
        np.bincount(batch.option_M, logp_M, minlength=batch.options),
        np.bincount(batch.option_M, missed_M, minlength=batch.options) == 0,
    )
