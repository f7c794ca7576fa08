"""Embeddings of texts: by the base itself, the mean of its last hidden states, or by a model of sentence-transformers.

Shapes: N texts, S rows of a pass, T tokens of a padded row, H hidden features.
"""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetrial.errors import UserError
from finetrial.model.adapters import AdapterStack
from finetrial.model.base import quiet
from finetrial.model.loss import hidden_states
from finetrial.model.source import encoder_folder


def embed(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_tokens: int = 8192,
    stack: AdapterStack | None = None,
) -> np.ndarray:
    """One vector of length 1 per text, float32 (N, H): the mean of the base's last hidden states over its tokens.

    A beginning-of-sequence token is read where the tokenizer has one and is left out of the mean. Equal texts get
    equal vectors, bit for bit. A text without tokens has no embedding: its row is NaN.

    Args:
        model: a transformers causal language model, plain or inside `stack`.
        tokenizer: its tokenizer.
        texts: any strings.
        batch_tokens: most padded tokens of a pass; a longer text is a pass of its own.
        stack: the adapter stack that is injected into `model`, if any: the rows then run through no adapter.

    Raises:
        UserError: a text is longer than the base's context.
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows: dict[str, list[int]] = {
        text: begin + tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        for text in dict.fromkeys(texts)
    }
    _check_lengths(model, rows)
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    vectors = dict.fromkeys(rows, np.full(config.hidden_size, np.nan, dtype=np.float32))
    filled = sorted((text for text, ids in rows.items() if len(ids) > len(begin)), key=lambda text: len(rows[text]))
    device = next(model.parameters()).device
    model.eval()
    while filled:
        width = len(rows[filled[-1]])  # longest first, so that memory peaks at once
        chosen = [filled.pop() for _ in range(min(len(filled), max(1, batch_tokens // width)))]
        ids_ST = torch.zeros(len(chosen), width, dtype=torch.int64)
        text_ST1 = torch.zeros(len(chosen), width, 1, dtype=torch.bool)
        for s, text in enumerate(chosen):
            ids_ST[s, : len(rows[text])] = torch.tensor(rows[text])
            text_ST1[s, len(begin) : len(rows[text])] = True
        plain = stack.rows([None] * len(chosen)) if stack is not None else contextlib.nullcontext()
        with torch.inference_mode(), plain:
            hidden_STH = hidden_states(model, ids_ST.to(device)).float()
        sum_SH = hidden_STH.where(text_ST1.to(device), 0.0).sum(dim=1)
        unit_SH = torch.nn.functional.normalize(sum_SH, dim=1).cpu().numpy()
        vectors |= dict(zip(chosen, unit_SH, strict=True))
    return np.stack([vectors[text] for text in texts]) if texts else np.empty((0, config.hidden_size), np.float32)


def sentence_encoder(name: str, device: torch.device) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from texts to vectors, float32 (N, H), by a model of sentence-transformers (extra `semantic`).

    Equal texts get equal vectors; a text of white space alone has none: its row is NaN. The model reads as many tokens
    as its own `max_seq_length` says (all-MiniLM-L6-v2: 256) and leaves out the rest.

    Args:
        name: a folder, or a model name of the hub.
        device: where it runs.

    Raises:
        UserError: the package is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise UserError(
            "set_diversity.embedding = 'sentence-transformers': the package is not installed; "
            "pip install 'finetrial[semantic]' brings it, or take embedding = 'base'"
        ) from error
    try:
        with quiet():
            encoder = SentenceTransformer(str(encoder_folder(name) or name), device=str(device))
    except (OSError, ValueError) as error:
        raise UserError(
            f"set_diversity.embedding_model: {name!r} is neither a folder with a model of sentence-transformers nor "
            f"a model of the hub that could be read: {str(error).splitlines()[0]}"
        ) from error

    def vectors(texts: Sequence[str]) -> np.ndarray:
        distinct = list(dict.fromkeys(texts))
        place = {text: n for n, text in enumerate(distinct)}
        found_NH = encoder.encode(distinct, show_progress_bar=False)[[place[text] for text in texts]]
        found_NH[[not text.strip() for text in texts]] = np.nan
        return found_NH

    return vectors


def _check_lengths(model: nn.Module, rows: dict[str, list[int]]) -> None:
    """Refuse texts that do not fit the base's context."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[operator, union-attr]
    for text, ids in rows.items():
        if limit is not None and len(ids) > limit:
            raise UserError(f"text {text[:40]!r}... has {len(ids)} tokens; the base's context holds {limit}")
