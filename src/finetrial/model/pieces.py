"""Which characters of a decoded text each token stands for.

A character can be spread over several tokens (byte-level BPE, byte fallback) and a token can hold several
characters; special tokens are not part of the text.

Shapes: T tokens of one completion, B bytes of its text.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte in vocabularies with byte fallback (sentencepiece)."""

METASPACE = "▁"


def token_offsets(ids_T: Sequence[int] | np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[str, np.ndarray]:
    """The decoded text without special tokens, and the characters [start, end) of each token in it, (T, 2) int64.

    Every token that holds a part of a character spans that whole character; special tokens and ids that stand for
    nothing have empty spans.

    Tokens' own bytes are put together where that gives the decoded text exactly; else (a decoder that changes text
    at the joints) they are looked for one after another, with white space between them; and where that fails every
    prefix is decoded, which takes time that grows with the square of T.
    """
    ids = [int(i) for i in ids_T]
    text = _decode(ids, tokenizer)
    table = _byte_table(tokenizer, len(tokenizer))
    parts = [table[i] if i < len(table) else b"" for i in ids]
    joined = b"".join(parts)
    character_B = _character_of_byte(joined)
    spelled = joined.decode("utf-8", errors="replace")
    dropped = 0 if spelled == text else 1  # sentencepiece decoders drop the space that opens a text
    if spelled[dropped:] != text or (dropped and not spelled.startswith(" ")):
        found_T2 = _by_search([part.decode("utf-8", errors="replace") for part in parts], text)
        return text, _by_prefixes(ids, text, tokenizer) if found_T2 is None else found_T2
    ends_T = np.cumsum([len(part) for part in parts], dtype=np.int64)
    starts_T = np.concatenate([np.zeros(1, np.int64), ends_T])[:-1]
    filled_T = ends_T > starts_T
    # An empty token stands after the last character that was begun before it.
    begun_T = np.concatenate([[0], character_B + 1])[ends_T]
    offsets_T2 = np.stack([begun_T, begun_T], axis=1)
    offsets_T2[filled_T, 0] = character_B[starts_T[filled_T]]
    return text, np.maximum(offsets_T2 - dropped, 0)


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=4)
def _byte_table(tokenizer: PreTrainedTokenizerBase, size: int) -> list[bytes]:
    """What each token adds to the text, as bytes; `size` is part of the key because tokens can be added later."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = "ByteLevel" in repr(backend.decoder) if backend is not None else False
    spell = _spell_byte_level if byte_level else _spell_metaspace
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = range(max([size, *(i + 1 for i in tokenizer.added_tokens_decoder)]))
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    return [b"" if token is None or i in special else spell(token) for i, token in zip(ids, tokens, strict=True)]


def _spell_byte_level(token: str) -> bytes:
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def _spell_metaspace(token: str) -> bytes:
    if match := BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(METASPACE, " ").encode()


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (Radford et al. 2019, GPT-2).

    Printable bytes of Latin-1 stand for themselves, the others for U+0100 onwards in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _character_of_byte(data: bytes) -> np.ndarray:
    """Index (B,) of the character that each byte belongs to when `data` is decoded as UTF-8.

    A malformed stretch becomes one replacement character, as `bytes.decode(errors="replace")` makes it.
    """
    out_B = np.zeros(len(data), np.int64)
    position = characters = 0
    while position < len(data):
        try:
            data[position:].decode()
            good, bad = len(data) - position, 0
        except UnicodeDecodeError as error:
            good, bad = error.start, error.end - error.start
        begins = (np.frombuffer(data, np.uint8, good, position) & 0xC0) != 0x80
        out_B[position : position + good] = characters + begins.cumsum() - 1
        characters += int(begins.sum())
        out_B[position + good : position + good + bad] = characters
        characters += bad > 0
        position += good + bad
    return out_B


def _by_search(pieces: list[str], text: str) -> np.ndarray | None:
    """Offsets (T, 2) of pieces that the text holds in this order with nothing but white space between them, or None."""
    offsets_T2 = np.zeros((len(pieces), 2), np.int64)
    end = 0
    for t, piece in enumerate(pieces):
        start = end
        while piece and start < len(text) and text[start].isspace() and not text.startswith(piece, start):
            start += 1
        if not text.startswith(piece, start):
            return None
        offsets_T2[t] = end, start + len(piece)  # white space goes to the piece behind it
        end = start + len(piece)
    return None if text[end:].strip() else offsets_T2


def _by_prefixes(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Offsets (T, 2) by decoding every prefix; a prefix that ends inside a character still spans it."""
    offsets_T2 = np.zeros((len(ids), 2), np.int64)
    whole = 0
    for t in range(len(ids)):
        prefix = _decode(ids[: t + 1], tokenizer)
        agreed = next(
            (i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), min(len(prefix), len(text))
        )
        agreed = max(agreed, whole)
        end = agreed if len(prefix) <= agreed else min(agreed + 1, len(text))
        offsets_T2[t] = whole, max(end, whole)
        whole = agreed
    offsets_T2[:, 1] = np.maximum.accumulate(offsets_T2[:, 1])
    return offsets_T2
