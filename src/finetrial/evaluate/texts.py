"""Everything that is measured of completions' texts beside their grades: how the samples of an item differ, and how
each of them resembles the item's reference. A suite is measured so in the end, and by a guard on the way.

Shapes: N completions, H features of an embedding.
"""

from collections.abc import Callable, Sequence

import numpy as np

from finetrial.evaluate.diversity import diversity_by_prompt
from finetrial.evaluate.rouge import LEAST_WORDS, rouge_of_words, rouge_words

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float32 (N, H), a row of NaN for one without tokens."""


def text_metrics(
    texts: Sequence[Sequence[str]],
    finished: Sequence[Sequence[bool]],
    references: Sequence[str],
    vocabulary: int,
    matched_words: int | None = None,
    embed: Embed | None = None,
) -> list[dict[str, list[float | None]]]:
    """Per item: metric -> its values, one of the item as a whole (`diversity_by_prompt`) or one per sample (`rouge`).

    A value is None where the metric has no meaning for these texts. An item whose reference has fewer than
    `rouge.LEAST_WORDS` words has no `rouge_n`.

    Args:
        texts: the samples of every item.
        finished: whether each ended by itself.
        references: of every item.
        vocabulary: of `ead_2`.
        matched_words: words that `distinct_n_matched` cuts samples to.
        embed: of `semantic_diversity` and `vendi`; None for neither.
    """
    embeddings = None
    if embed is not None:
        ends = np.cumsum([len(mine) for mine in texts])[:-1]
        embeddings = np.split(embed([text for mine in texts for text in mine]), ends)
    found = []
    measured = diversity_by_prompt(texts, vocabulary, embeddings, finished, matched=matched_words)
    for mine, reference, whole in zip(texts, references, measured, strict=True):
        values: dict[str, list[float | None]] = {name: [value] for name, value in whole.items()}
        wanted = rouge_words(reference)
        if len(wanted) >= LEAST_WORDS:
            likeness = [rouge_of_words(rouge_words(text), wanted) for text in mine]
            values |= {name: [one[name] for one in likeness] for name in likeness[0]}
        found.append(values)
    return found
