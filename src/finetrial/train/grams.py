"""Mining phrases that tell completions that succeed from completions that fail.

A phrase that is merely frequent says nothing. Here its presence is contrasted between successes and failures, within
groups (prompts) where these are known, and every phrase that was tested counts in the correction.

Shapes: K phrases, S groups.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import false_discovery_control, hypergeom, norm

from finetrial.errors import UserError

WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:'[^\W\d_]+)*(?!'?\w)")
RUN = re.compile(rf"{WORD.pattern}(?:(?:\s*,\s*|\s+){WORD.pattern})*")
"""Words that a phrase may be taken from; between them stands what `planning.planning_mask` allows there."""
APOSTROPHES = str.maketrans("’ʼ", "''")

SAME = 0.9
"""Share of its texts from which on a shorter phrase is taken for a part of the longer one."""


@dataclass(frozen=True)
class Gram:
    """A phrase and what sets its texts apart."""

    text: str
    successes: int
    """Successful texts that contain it."""
    failures: int
    """Failed texts that contain it."""
    log_odds: float
    """Log odds ratio of success with and without it, shrunk towards 0; above 0 it goes with success."""
    p_value: float
    """Two-sided, of the hypothesis that success does not depend on it."""
    adjusted_p: float
    """Corrected over all phrases that were tested."""


def mine(
    texts: Sequence[str],
    successes: Sequence[bool],
    n: tuple[int, int] = (3, 5),
    groups: Sequence[Hashable] | None = None,
    min_support: int = 5,
    prior_sd: float = 1.0,
    correction: Literal["holm", "benjamini_hochberg"] = "benjamini_hochberg",
) -> list[Gram]:
    """Phrases of n[0] to n[1] words with their contrast between successes and failures, strongest first.

    Given how many texts of a group hold the phrase and how many succeed, the number that do both is hypergeometric
    if the phrase does not matter: O observed, E its mean, V its variance, summed over groups.
    log odds = (O - E) / (V + 1 / prior_sd²), the one-step estimate (Yusuf et al. 1985) under a normal prior; defined
    also where a count is 0. p: Fisher's exact test, twice the smaller tail, without groups; with several groups
    Cochran-Mantel-Haenszel with continuity correction, so that easy prompts, which have their own words, do not pass
    for good phrases. Texts of a group are taken for independent.

    Words are lower-case and have neither digits nor underscores; phrases do not cross punctuation other than a comma.

    Args:
        texts: completions.
        successes: whether each succeeded.
        n: least and greatest number of words.
        groups: prompt of each text; None takes all texts as one group.
        min_support: least number of texts with the phrase, whatever their success.
        prior_sd: standard deviation of the prior of the log odds ratio.
        correction: holm (family-wise) or benjamini_hochberg (false discovery rate).

    Returns:
        Phrases in order of falling log odds. One that hardly occurs outside a longer one (90 % of its texts), or that
        occurs in exactly the texts of another, no shorter one, is left out before anything is tested.

    Raises:
        UserError: lengths differ, no text succeeded or none failed, or n is no range of at least 1.
    """
    members = range(len(texts)) if groups is None else groups
    if not len(texts) == len(successes) == len(members):
        raise UserError(f"{len(texts)} texts, {len(successes)} successes and {len(members)} groups; expected as many")
    if not 1 <= n[0] <= n[1]:
        raise UserError(f"n = {n}: expected a range of words such as (3, 5)")
    success_N = np.array([bool(s) for s in successes], dtype=bool)
    if success_N.all() or not success_N.any():
        raise UserError(f"{int(success_N.sum())} of {len(texts)} texts succeeded; a contrast needs both kinds")
    group_N = np.zeros(len(texts), np.int64)
    if groups is not None:
        index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        group_N = np.array([index[group] for group in groups])
    found = _without_redundant(_texts_of_grams(texts, n, min_support))
    if not found:
        return []
    successes_K, failures_K, excess_K, variance_K, p_K = _contrast(list(found.values()), success_N, group_N)
    adjusted_K = _holm(p_K) if correction == "holm" else false_discovery_control(p_K)
    log_odds_K = excess_K / (variance_K + prior_sd**-2)
    grams = [
        Gram(" ".join(words), int(s), int(f), float(odds), float(p), float(q))
        for words, s, f, odds, p, q in zip(found, successes_K, failures_K, log_odds_K, p_K, adjusted_K, strict=True)
    ]
    return sorted(grams, key=lambda gram: (-gram.log_odds, gram.text))


Words = tuple[str, ...]


def _texts_of_grams(texts: Sequence[str], n: tuple[int, int], min_support: int) -> dict[Words, np.ndarray]:
    """Phrase -> ascending indices of the texts that contain it, for phrases with enough of them.

    All places are lengthened by one word at a time and renumbered; a place is given up once its phrase is too rare,
    for no longer phrase can then be frequent. Time follows the number of words and memory what is frequent.
    """
    numbers: dict[str, int] = {}
    words: list[int] = []
    owners: list[int] = []
    for i, text in enumerate(texts):
        for run in RUN.findall(text.lower().translate(APOSTROPHES)):
            here = [numbers.setdefault(word, len(numbers)) for word in WORD.findall(run)]
            words += [*here, -1]  # no phrase goes on beyond a run
            owners += [i] * (len(here) + 1)
    word_N, owner_N = np.array(words, np.int64), np.array(owners, np.int64)
    spelled = list(numbers)
    found: dict[Words, np.ndarray] = {}
    at_M = np.flatnonzero(word_N >= 0)  # places where a phrase that is still frequent begins
    id_M = word_N[at_M]
    for size in range(1, n[1] + 1):
        if size > 1:
            next_M = word_N[at_M + size - 1]
            at_M, id_M, next_M = at_M[next_M >= 0], id_M[next_M >= 0], next_M[next_M >= 0]
            id_M = id_M * len(spelled) + next_M
        _, first, id_M = np.unique(id_M, return_index=True, return_inverse=True)
        pairs = np.sort(id_M * len(texts) + owner_N[at_M])
        gram, owner = np.divmod(pairs[np.diff(pairs, prepend=-1) != 0], len(texts))
        support = np.bincount(gram, minlength=len(first))
        frequent, ends = support >= min_support, support.cumsum()
        for k in np.flatnonzero(frequent).tolist() if size >= n[0] else ():
            start = int(at_M[first[k]])
            phrase = tuple(spelled[word] for word in words[start : start + size])
            found[phrase] = owner[ends[k] - support[k] : ends[k]]
        kept_M = frequent[id_M]
        at_M, id_M = at_M[kept_M], id_M[kept_M]
    return dict(sorted(found.items()))


def _without_redundant(found: dict[Words, np.ndarray]) -> dict[Words, np.ndarray]:
    """Drop what another phrase says as well; looks at texts only, never at success, so that tests stay valid."""
    kept: dict[Words, np.ndarray] = {}
    covered: dict[Words, int] = {}
    signatures: set[bytes] = set()
    for words in sorted(found, key=lambda words: (-len(words), words)):
        ids = found[words]
        signature = ids.tobytes()
        if signature not in signatures and covered.get(words, 0) < SAME * len(ids):
            kept[words] = ids
            signatures.add(signature)
        for size in range(1, len(words)):
            for at in range(len(words) - size + 1):
                part = words[at : at + size]
                covered[part] = max(covered.get(part, 0), len(ids))
    return kept


def _contrast(
    members: list[np.ndarray], success_N: np.ndarray, group_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Successes and failures with the phrase, O - E, V and two-sided p, each (K,)."""
    total_S = np.bincount(group_N).astype(np.float64)
    right_S = np.bincount(group_N, success_N)
    spread_S = right_S * (total_S - right_S) / (total_S**2 * np.maximum(total_S - 1, 1))
    out = np.empty((5, len(members)))
    for k, ids in enumerate(members):
        with_S = np.bincount(group_N[ids], minlength=len(total_S))
        both = float(success_N[ids].sum())
        excess = both - float(with_S @ (right_S / total_S))
        variance = float((with_S * (total_S - with_S)) @ spread_S)
        out[:4, k] = both, len(ids) - both, excess, variance
    if len(total_S) == 1:
        shape = (int(total_S[0]), out[0] + out[1], int(right_S[0]))
        tail_K = np.minimum(hypergeom.cdf(out[0], *shape), hypergeom.sf(out[0] - 1, *shape))
    else:
        distance_K = np.maximum(np.abs(out[2]) - 0.5, 0.0)
        z_K = np.divide(distance_K, np.sqrt(out[3]), out=np.zeros(len(members)), where=out[3] > 0)
        tail_K = norm.sf(z_K)
    out[4] = np.minimum(2 * tail_K, 1.0)
    return out[0], out[1], out[2], out[3], out[4]


def _holm(p_K: np.ndarray) -> np.ndarray:
    order = np.argsort(p_K, kind="stable")
    stepped = np.maximum.accumulate(p_K[order] * np.arange(len(p_K), 0, -1))
    out = np.empty(len(p_K))
    out[order] = np.minimum(stepped, 1.0)
    return out
