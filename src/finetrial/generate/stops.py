"""Texts that end a completion, found as tokens arrive."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a token decodes to that holds only a part of a character."""


class StopTexts:
    """Finds the token that completes a stop text, which may begin in an earlier token.

    The last character of a stop text must come from the token that completes it. So a completion is decoded only at
    tokens which hold such a character, or a part of one; what a token holds is looked up once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.pieces: dict[int, str] = {}

    def text(self, ids: Sequence[int]) -> str:
        """Decoded without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def cut(self, ids: Sequence[int], stops: Sequence[str]) -> int | None:
        """Where in the text of `ids` the earliest stop text begins, if their last token completes one."""
        if not self._may_complete(ids[-1], stops):
            return None
        text = self.text(ids)
        found = [place for stop in stops if (place := text.find(stop)) >= 0]
        return min(found, default=None)

    def _may_complete(self, token: int, stops: Sequence[str]) -> bool:
        piece = self.pieces.get(token)
        if piece is None:
            piece = self.pieces[token] = self.text([token])
        # some tokenizers drop the space with which a text begins
        return BROKEN in piece or any(stop[-1] in piece or stop[-1] == " " for stop in stops)
