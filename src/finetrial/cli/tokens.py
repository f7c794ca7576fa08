"""A base's tokenizer as `lint` needs it: counts of rows, and which of their text is learned from."""

from collections.abc import Sequence

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetrial.data.workshop.lint import TokenFacts
from finetrial.errors import UserError
from finetrial.model.config import ModelConfig
from finetrial.model.render import RenderedBatch, chat_template, render, render_batch
from finetrial.model.source import locate
from finetrial.records import Example, Message


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base: the built-in one, a folder, or a model of the hub.

    Raises:
        UserError: there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate(ModelConfig(base=base)))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--model {base}: no tokenizer: {str(error).splitlines()[0]}") from error
    chat_template(tokenizer)
    return tokenizer


def count_tokens(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Sequence[TokenFacts]:
    """Tokens, supervised tokens and cut tokens of every row, or why it cannot be trained on."""
    batch = _rendered([example.messages for example in examples], tokenizer, max_length)
    return [
        TokenFacts(0, 0, 0, batch.refused[place])
        if row is None
        else TokenFacts(len(row.ids_T) + row.truncated, int(row.mask_T.sum()), row.truncated)
        for place, row in enumerate(batch.rows)
    ]


def _rendered(rows: list[Sequence[Message]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> RenderedBatch:
    """All rows at once; where the template refuses one of them, each alone, so that only that one is refused."""
    try:
        return render_batch(rows, tokenizer, max_length)
    except UserError as error:
        if len(rows) == 1:
            return RenderedBatch((None,), {0: str(error).removeprefix("row 0: ")})
    alone = [_rendered([row], tokenizer, max_length) for row in rows]
    refused = {place: batch.refused[0] for place, batch in enumerate(alone) if batch.rows[0] is None}
    return RenderedBatch(tuple(batch.rows[0] for batch in alone), refused)


def label_mask(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[tuple[str, bool]]:
    """A row's text as the model is trained on it, in pieces: (text, whether it is learned from).

    Raises:
        UserError: the row cannot be rendered.
    """
    row = render(example.messages, tokenizer, max_length)
    turns = np.flatnonzero(np.diff(row.mask_T)) + 1
    return [
        (str(tokenizer.decode(ids_T.tolist(), clean_up_tokenization_spaces=False)), bool(mask_T[0]))
        for ids_T, mask_T in zip(np.split(row.ids_T, turns), np.split(row.mask_T, turns), strict=True)
    ]
