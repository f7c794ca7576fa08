"""Self-BLEU: how much of each sample the other samples of its prompt already say.

BLEU (Papineni et al. 2002) of each sample with the others of its prompt as references, averaged over samples
(Zhu et al. 2018, arXiv:1802.01886). 1 means that samples repeat each other; lower is more diverse.

All n-grams of all prompts are counted together. The most that any *other* sample has of an n-gram is the largest
count over samples, or the second largest for the one sample that has most of it; so the references of a sample are
never counted again, and the cost does not grow with their number.

Shapes: P prompts, N samples of all prompts together, T tokens of all samples, C pairs of a sample and an n-gram that
it has, G distinct n-grams of a prompt, K orders (column k is n-grams of k + 1 tokens).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, count

import numpy as np

from finetrial.errors import UserError
from finetrial.evaluate.words import Sample, tokens_of

EPSILON = 0.1
"""Matches that an order without any is given: smoothing method 1 of Chen and Cherry (2014) with NLTK's default."""


def self_bleu(samples: Iterable[Sample], order: int = 4, effective_order: bool = True) -> float | None:
    """Mean BLEU of each sample of a prompt against its other samples, in [0, 1]; None for fewer than two with tokens.

    See `self_bleu_by_prompt`, which is faster for many prompts and several orders.
    """
    value = float(self_bleu_by_prompt([samples], order, effective_order)[0, -1])
    return None if np.isnan(value) else value


def self_bleu_by_prompt(
    prompts: Iterable[Iterable[Sample]], order: int = 4, effective_order: bool = True
) -> np.ndarray:
    """Self-BLEU-1 to self-BLEU-`order` of each prompt: float64 (P, K); NaN for fewer than two samples with tokens.

    BLEU-K = BP · exp(1/K · sum over k of ln p_k), p_k = clipped matches / n-grams of order k, with `EPSILON` matches
    where there are none; 0 where not even a word matches. BP = exp(1 - r / c) for c tokens below r, the length of the
    reference of closest length (the shorter one of two). Equal to NLTK's `sentence_bleu` with `method1` where
    every sample has at least `order` tokens, and everywhere with `effective_order=False`.

    Samples without tokens are left out, as samples and as references: they are counted by the degeneration rate.

    Args:
        prompts: samples of each prompt, as texts or tokens.
        order: longest n-grams, K.
        effective_order: average over the orders that a sample is long enough for. Otherwise an order longer than the
            sample counts as one n-gram without a match, and two equal answers of one word pass for diverse.

    Raises:
        UserError: `order` is below 1.
    """
    if order < 1:
        raise UserError(f"order {order}: expected at least 1")
    groups = [[tokens for tokens in tokens_of(samples) if tokens] for samples in prompts]
    sizes_P = np.array([len(texts) for texts in groups], dtype=np.int64)
    texts = list(chain.from_iterable(groups))
    if not texts:
        return np.full((len(groups), order), np.nan)
    prompt_N = np.repeat(np.arange(len(groups)), sizes_P)
    length_N = np.array([len(tokens) for tokens in texts])
    bleu_NK = _bleu(texts, prompt_N, length_N, order, effective_order)
    sum_PK = np.stack([np.bincount(prompt_N, bleu_N, len(groups)) for bleu_N in bleu_NK.T], axis=1)
    mean_PK = sum_PK / np.maximum(sizes_P, 1)[:, None]
    mean_PK[sizes_P < 2] = np.nan
    return mean_PK


def texygen_self_bleu(texts: Sequence[str], order: int = 3, first: int | None = None) -> float:
    """Self-BLEU of a corpus as Texygen reports it (Zhu et al. 2018): a pooled figure, not one of a prompt.

    Words are split at white space, each text is scored against all others, and orders longer than a text count as a
    miss. The published table takes every text; the published program takes only the first 500, by default at
    order 3. Compare such figures only at the same number of texts, with which self-BLEU rises.

    Raises:
        UserError: fewer than two texts have tokens.
    """
    value = self_bleu([text.split() for text in texts[:first]], order, effective_order=False)
    if value is None:
        raise UserError("self-BLEU of a corpus needs at least two texts with tokens")
    return value


def _bleu(
    texts: Sequence[Sequence[str]], prompt_N: np.ndarray, length_N: np.ndarray, order: int, effective_order: bool
) -> np.ndarray:
    """BLEU-1 to BLEU-`order` of each text against the others of its prompt: (N, K)."""
    matches_NK = _matches(texts, prompt_N, length_N, order)
    order_K = np.arange(1, order + 1)
    grams_NK = np.maximum(length_N[:, None] - order_K + 1, 0)
    log_p_NK = np.log(np.where(matches_NK > 0, matches_NK, EPSILON) / np.maximum(grams_NK, 1))
    orders_NK = np.broadcast_to(order_K, log_p_NK.shape)
    if effective_order:
        log_p_NK = np.where(grams_NK > 0, log_p_NK, 0.0)
        orders_NK = np.minimum(orders_NK, length_N[:, None])
    bleu_NK = _brevity(prompt_N, length_N)[:, None] * np.exp(log_p_NK.cumsum(axis=1) / orders_NK)
    return np.where(matches_NK[:, :1] > 0, bleu_NK, 0.0)


def _matches(texts: Sequence[Sequence[str]], prompt_N: np.ndarray, length_N: np.ndarray, order: int) -> np.ndarray:
    """n-grams of each text that another text of its prompt has, each at most as often as the one that has most of
    them: (N, K)."""
    vocabulary: defaultdict[str, int] = defaultdict(count().__next__)
    tokens = int(length_N.sum())
    word_T = np.fromiter(map(vocabulary.__getitem__, chain.from_iterable(texts)), np.int64, tokens)
    text_T = np.repeat(np.arange(len(texts)), length_N)
    left_T = np.cumsum(length_N)[text_T] - np.arange(tokens)
    matches_NK = np.zeros((len(texts), order))
    gram_T = prompt_N[text_T]
    start_T = np.arange(tokens)
    for k in range(order):
        kept = left_T[start_T] > k
        start_T, gram_T = start_T[kept], gram_T[kept]
        if not len(start_T):
            break
        key_T = gram_T * len(vocabulary) + word_T[start_T + k]
        sorted_T = np.argsort(key_T, kind="stable")  # texts stay in order within an n-gram
        key_T, owner_T = key_T[sorted_T], text_T[start_T[sorted_T]]
        new_gram_T = np.diff(key_T, prepend=-1) != 0
        new_pair_T = new_gram_T | (np.diff(owner_T, prepend=-1) != 0)
        gram_T = np.empty_like(key_T)
        gram_T[sorted_T] = np.cumsum(new_gram_T) - 1
        pair_C = np.flatnonzero(new_pair_T)
        lost_C = _unmatched(np.diff(pair_C, append=len(key_T)), np.flatnonzero(new_gram_T[pair_C]))
        own_N = np.maximum(length_N - k, 0)
        matches_NK[:, k] = own_N - np.bincount(owner_T[pair_C], lost_C, len(texts))
    return matches_NK


def _unmatched(count_C: np.ndarray, first_G: np.ndarray) -> np.ndarray:
    """By how much the one text that has most of an n-gram exceeds all others: (C,), 0 for every other text.

    Args:
        count_C: how often each text has each of its n-grams, grouped by n-gram.
        first_G: where the pairs of each n-gram begin.
    """
    size_G = np.diff(first_G, append=len(count_C))
    most_G = np.maximum.reduceat(count_C, first_G)
    top_C = count_C == np.repeat(most_G, size_G)
    second_G = np.maximum.reduceat(np.where(top_C, 0, count_C), first_G)
    lead_G = np.where(np.add.reduceat(top_C.astype(np.int64), first_G) == 1, most_G - second_G, 0)
    return np.where(top_C, np.repeat(lead_G, size_G), 0)


def _brevity(prompt_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """Brevity penalty of each text (N,): below 1 only where the other text of closest length is longer."""
    order_N = np.lexsort((length_N, prompt_N))
    prompt, length = prompt_N[order_N], length_N[order_N].astype(np.float64)
    same = prompt[1:] == prompt[:-1]
    shorter = np.append(np.inf, np.where(same, length[1:] - length[:-1], np.inf))
    longer = np.append(np.where(same, length[1:] - length[:-1], np.inf), np.inf)
    penalty_N = np.empty(len(length))
    penalty_N[order_N] = np.where(longer < shorter, np.exp(-longer / length), 1.0)
    return penalty_N
