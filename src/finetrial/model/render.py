"""Chat template -> token ids and the mask of supervised tokens.

A template with `{% generation %}` markers says itself which text the assistant wrote. For one without, successive
prefixes of the conversation are rendered and compared (prefix differencing); the comparison is also the proof: a
template that rewrites earlier turns is refused, because no mask over its full rendering would be right.

Shapes: T tokens of one rendered row.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from finetrial.errors import UserError
from finetrial.records import Message

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, AttributeError, KeyError)
"""What a template raises on messages that it does not expect; the last four come from expressions inside it."""

Span = tuple[int, int]
"""Characters [start, end) of a rendered text."""


@dataclass(frozen=True)
class Rendered:
    """One row as a token stream."""

    ids_T: np.ndarray
    """int32 token ids."""
    mask_T: np.ndarray
    """bool; True where the token is supervised: assistant text and its end-of-turn token."""
    supervised_bytes: int
    """UTF-8 bytes of the supervised tokens' text (for bits per byte)."""
    truncated: int
    """Tokens cut off at the end to fit the maximum length; 0 for a whole row."""


@dataclass(frozen=True)
class RenderedBatch:
    """Many rows, in the order they were given."""

    rows: tuple[Rendered | None, ...]
    """None where a row cannot be trained on."""
    refused: Mapping[int, str]
    """Index of every such row -> why."""


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rendered:
    """Render one conversation; see `render_batch`.

    Raises:
        UserError: the conversation cannot be trained on, or the template cannot be used.
    """
    batch = render_batch([messages], tokenizer, max_length)
    row = batch.rows[0]
    if row is None:
        raise UserError(batch.refused[0])
    return row


def render_batch(
    conversations: Iterable[Sequence[Message]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> RenderedBatch:
    """Render conversations with the tokenizer's chat template; supervised are all assistant turns.

    A row is refused, with the reason, when it has no messages, no assistant turn, loses every supervised token to the
    cut at `max_length` tokens, or an answer cannot begin with a token of its own.

    Raises:
        UserError: the tokenizer has no template or no offsets, or the template fails on a row or rewrites earlier
            turns; the message names the row and the message.
    """
    template = chat_template(tokenizer)
    rows: list[Sequence[Message]] = list(conversations)
    refused = {i: reason for i, row in enumerate(rows) if (reason := _unusable(row))}
    kept = [i for i in range(len(rows)) if i not in refused]
    find_spans = _by_markers if GENERATION.search(template) else _by_prefixes
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts: list[str] = []
    spans: list[list[Span]] = []
    for i in kept:
        messages = for_template(rows[i], template)
        text, found = find_spans(messages, tokenizer, template, f"row {i}")
        _check_whole(text, found, messages, f"row {i}")
        texts.append(text)
        spans.append([_with_end_of_turn(text, span, specials, f"row {i}") for span in found])
    rendered: list[Rendered | None] = [None] * len(rows)
    if texts:
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for i, text, ids, offsets, found in zip(
            kept, texts, encoded["input_ids"], encoded["offset_mapping"], spans, strict=True
        ):
            ids_T, offsets_T2 = np.array(ids, np.int32), np.array(offsets, np.int64).reshape(-1, 2)
            cuts = [start for start, _ in found if ((offsets_T2[:, 0] < start) & (start < offsets_T2[:, 1])).any()]
            pieces = _cut(text, ids_T, cuts, tokenizer) if cuts else (ids_T, offsets_T2)
            if pieces is None:
                refused[i] = (
                    f"a token reaches from the prompt into the assistant's turn {text[cuts[0] :][:40]!r}, and the "
                    "tokenizer writes the two apart with other characters"
                )
                continue
            ids_T, offsets_T2 = pieces
            row = _row(ids_T, offsets_T2, found, tokenizer, max_length)
            if row.mask_T.any():
                rendered[i] = row
            else:
                refused[i] = f"all supervised tokens lie behind the cut at max_length = {max_length} tokens"
    return RenderedBatch(tuple(rendered), refused)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that renders conversations.

    Raises:
        UserError: the tokenizer has no chat template, or cannot map tokens to characters.
    """
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} is not a fast one; finetrial needs its offsets")
    if not tokenizer.chat_template:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no chat template; expected one with the base model")
    return tokenizer.get_chat_template()


def for_template(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Messages in the form that chat templates of transformers expect.

    A template that asks `arguments is string` gets the arguments as the model wrote them; others pass them through
    `tojson`, which would quote a text once more, so they get the parsed object where the text is one.
    """
    as_text = "arguments is string" in template
    converted = []
    for message in messages:
        plain = {**message, "content": message.get("content") or ""}
        if calls := message.get("tool_calls"):
            plain["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": call["name"],
                        "arguments": call["arguments"] if as_text else _parsed(call["arguments"]),
                    },
                }
                for call in calls
            ]
        converted.append(plain)
    return converted


def prompt_text(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text after which the assistant's next turn begins (generation prompt included)."""
    template = chat_template(tokenizer)
    return _render(for_template(messages, template), tokenizer, template, "the prompt", prompt=True)[0]


def _unusable(messages: Sequence[Message]) -> str:
    if not messages:
        return "the conversation is empty"
    if not any(message["role"] == "assistant" for message in messages):
        return "the conversation has no assistant turn"
    return ""


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _render(
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    place: str,
    prompt: bool = False,
    spans: bool = False,
) -> tuple[str, list[Span]]:
    """The text, with the generation prompt or the marked spans where asked for."""
    variables: dict[str, Any] = dict(tokenizer.special_tokens_map)
    try:
        texts, found = render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=spans,
            **variables,
        )
    except TEMPLATE_ERRORS as error:
        raise UserError(f"{place}: the chat template refuses messages 0 to {len(messages) - 1}: {error}") from error
    return texts[0], cast(list[Span], found[0]) if spans else []


def _by_markers(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, template: str, place: str
) -> tuple[str, list[Span]]:
    """Text and assistant spans by the template's own markers."""
    text, marked = _render(messages, tokenizer, template, place, spans=True)
    spans: list[Span] = []
    for start, end in marked:
        if spans and spans[-1][1] == start:  # one turn in several blocks
            start = spans.pop()[0]
        spans.append((start, end))
    return text, spans


def _by_prefixes(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, template: str, place: str
) -> tuple[str, list[Span]]:
    """Text and assistant spans by comparing renderings of successive prefixes.

    A turn is what its rendering adds to the generation prompt before it. The proof of the round trip: each of these
    renderings begins the next, and the last begins the whole.
    """
    whole, _ = _render(messages, tokenizer, template, place)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = _render(messages[:i], tokenizer, template, place, prompt=True)
        after, _ = _render(messages[: i + 1], tokenizer, template, place)
        if not after.startswith(before) or not whole.startswith(after):
            raise UserError(
                f"{place}: message {i} (assistant) does not render the same inside the conversation as at its end: the "
                "chat template rewrites earlier turns or its generation prompt; expected a template whose rendering of "
                "a prefix begins the rendering of the whole, or one with {% generation %} markers"
            )
        spans.append((len(before), len(after)))
    return whole, spans


def _check_whole(text: str, spans: Sequence[Span], messages: list[dict[str, Any]], place: str) -> None:
    """Refuse a rendering whose supervised text lacks something that the assistant wrote.

    Some templates drop tool calls or thoughts without a word; others mark only a part of the turns.
    """
    supervised = "".join(text[start:end] for start, end in spans)
    position = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
        for piece in (message["content"].strip(), *calls):
            position = supervised.find(piece, position) + len(piece)
            if position < len(piece):
                raise UserError(
                    f"{place}: the chat template leaves {piece[:60]!r} of message {i} (assistant) out of the "
                    "supervised text; expected a template that renders and marks all of it"
                )


def _with_end_of_turn(text: str, span: Span, specials: Sequence[str], place: str) -> Span:
    """The span up to and including the special token that ends the turn.

    Raises:
        UserError: none does, so a model trained on the row would not learn to stop.
    """
    start, end = span
    turn = text[start:end]
    stripped = turn.rstrip()
    if any(stripped.endswith(special) for special in specials):
        return start, start + len(stripped)
    rest = text[end:].lstrip()
    for special in specials:
        if rest.startswith(special):
            return start, len(text) - len(rest) + len(special)
    raise UserError(f"{place}: no special token ends the assistant turn {turn[-40:]!r}; expected an end-of-turn token")


def _cut(
    text: str, ids_T: np.ndarray, cuts: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids and offsets of a text whose tokens do not reach over the characters `cuts`.

    A tokenizer may join the end of the prompt and the beginning of an answer to one token ("\\n-"), which a model that
    answers the prompt can never write and which no mask can halve; such a row is encoded in pieces. None where the
    pieces say something else than the whole (of a tokenizer that begins each with a space, say).
    """
    edges = [0, *cuts, len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    encoded = tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut_T = np.concatenate([np.array(ids, np.int32) for ids in encoded["input_ids"]])
    offsets_T2 = np.concatenate(
        [
            np.array(pairs, np.int64).reshape(-1, 2) + at
            for pairs, at in zip(encoded["offset_mapping"], edges[:-1], strict=True)
        ]
    )
    said, meant = (tokenizer.decode(one.tolist(), clean_up_tokenization_spaces=False) for one in (cut_T, ids_T))
    return (cut_T, offsets_T2) if said == meant else None


def _row(
    ids_T: np.ndarray, offsets_T2: np.ndarray, spans: list[Span], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Rendered:
    """Cut and mask; a token is supervised when its characters lie within a span (else it belongs to the prompt)."""
    mask_T = np.zeros(len(ids_T), bool)
    for start, end in spans:
        mask_T |= (offsets_T2[:, 0] >= start) & (offsets_T2[:, 1] <= end) & (offsets_T2[:, 1] > start)
    truncated = max(0, len(ids_T) - max_length)
    ids_T, mask_T = ids_T[:max_length], mask_T[:max_length]
    text = tokenizer.decode(ids_T[mask_T].tolist(), clean_up_tokenization_spaces=False)
    return Rendered(ids_T, mask_T, len(str(text).encode()), truncated)
