"""pass@k: the chance that at least one of k samples is right, unbiased from n >= k samples."""

import numpy as np

from finetrial.errors import UserError


def pass_at_k(n: np.ndarray, c: np.ndarray, k: int) -> np.ndarray:
    """1 - C(n-c, k) / C(n, k) per cell, as 1 - Π_{j=0}^{c-1} (1 - k / (n - j)) (Chen et al. 2021, arXiv 2107.03374).

    Args:
        n: samples per cell, any shape.
        c: right ones among them, same shape.
        k: number of tries, at least 1.

    Raises:
        UserError: some cell has fewer than k samples (pass@k is then undefined), or c is not within 0..n.
    """
    n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if k < 1:
        raise UserError(f"pass@{k}: k must be at least 1")
    if n.size and int(n.min()) < k:
        raise UserError(f"pass@{k} needs at least {k} samples of every item; some item has {int(n.min())}")
    if np.any(c < 0) or np.any(c > n):
        raise UserError("pass@k: the number of right samples must lie between 0 and the number of samples")
    failing = np.ones(n.shape)
    for j in range(k):
        failing = failing * np.maximum(n - c - j, 0) / (n - j)
    return 1.0 - failing
