"""Rows that say nearly the same: MinHash signatures in a locality-sensitive index (Broder 1997; Indyk & Motwani 1998).

Shapes: W words of a row, P permutations.
"""

from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH

from finetrial.data.workshop.ngrams import ngram_hashes

PERMUTATIONS = 128
"""The estimate of a Jaccard index J has the standard error sqrt(J (1 - J) / 128), 0.035 at J = 0.8."""
SHINGLE = 3
"""Words of a shingle."""


class NearDuplicates:
    """Clusters of rows whose sets of word shingles have a Jaccard index of at least `threshold` with the first of them.

    Only the first row of a cluster is in the index, so clusters do not chain: every member resembles the first one.
    Held are about 4.5 KB for a row that is the first (signature and index), and its number for any other.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        self._index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        self._signatures: dict[int, np.ndarray] = {}
        self._members: dict[int, list[tuple[int, float]]] = {}

    def add(self, row: int, hashes_W: np.ndarray) -> None:
        """Put a row with at least one word into the cluster it resembles most, or make it the first of a new one."""
        shingles = ngram_hashes(hashes_W, min(SHINGLE, len(hashes_W)))
        signature = self._empty.copy()
        signature.update_batch((shingles >> np.uint64(32)).tolist())
        candidates: list[Any] = sorted(self._index.query(signature))
        if candidates:
            known = np.stack([self._signatures[first] for first in candidates])
            alike = (known == signature.hashvalues).mean(axis=1)
            best = int(alike.argmax())
            if alike[best] >= self.threshold:
                self._members.setdefault(candidates[best], []).append((row, float(alike[best])))
                return
        self._signatures[row] = signature.hashvalues
        self._index.insert(row, signature, check_duplication=False)

    def clusters(self) -> dict[int, list[tuple[int, float]]]:
        """First row -> (row, estimated Jaccard index) of the others, the largest clusters first."""
        return dict(sorted(self._members.items(), key=lambda item: (-len(item[1]), item[0])))
