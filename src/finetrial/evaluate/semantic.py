"""Diversity in a space of embeddings: how far apart the samples of a prompt lie.

A row of NaN is an embedding that is missing (a text without tokens) and is left out.

Shapes: N samples, H features.
"""

import math

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from finetrial.errors import UserError

TOLERANCE = 1e-6
"""Rounding that a similarity matrix may show, also one of float32 embeddings."""


def vendi_score(similarity_NN: np.ndarray, q: float = 1.0) -> float | None:
    """Effective number of different samples, in [1, N] (Friedman and Dieng 2023, arXiv:2210.02410).

    exp of the Rényi entropy of order q of the eigenvalues p of K / N: exp(-sum p ln p) for q = 1,
    (sum p^q)^(1 / (1 - q)) else, 1 / max p for q = inf. A larger q listens less to rare samples. Values grow with N:
    compare at equal N. None for fewer than two samples.

    Args:
        similarity_NN: K, symmetric, positive semi-definite, 1 on the diagonal.
        q: order, above 0.

    Raises:
        UserError: K is not such a matrix, or q is not above 0.
    """
    k_NN = np.asarray(similarity_NN, dtype=np.float64)
    if k_NN.ndim != 2 or k_NN.shape[0] != k_NN.shape[1]:
        raise UserError(f"similarity matrix of shape {k_NN.shape}: expected N × N")
    if len(k_NN) < 2:
        return None
    if not np.allclose(np.diagonal(k_NN), 1, rtol=0, atol=TOLERANCE):
        raise UserError("similarity matrix: expected 1 everywhere on the diagonal")
    if not np.allclose(k_NN, k_NN.T, rtol=0, atol=TOLERANCE):
        raise UserError("similarity matrix: expected it to be symmetric")
    return _effective_number(np.linalg.eigvalsh(k_NN / len(k_NN)), q)


def vendi(embedding_NH: np.ndarray, q: float = 1.0) -> float | None:
    """Vendi score under the cosine of embeddings: `vendi_score` of their similarity matrix, in [1, min(N, H)].

    The eigenvalues are those of the smaller of the two matrices of products, so memory never grows with N².
    """
    unit_NH = _unit(embedding_NH)
    count, width = unit_NH.shape
    if count < 2:
        return None
    products = unit_NH @ unit_NH.T if count <= width else unit_NH.T @ unit_NH
    return _effective_number(np.linalg.eigvalsh(products / count), q)


def semantic_diversity(embedding_NH: np.ndarray) -> float | None:
    """1 - mean cosine over pairs of different samples, in [0, N / (N - 1)]; None for fewer than two.

    The cosines of all pairs add up to the squared length of the sum of the unit vectors u, so the mean is
    (|sum u|² - N) / (N (N - 1)): exact, in time and memory N × H.
    """
    unit_NH = _unit(embedding_NH)
    count = len(unit_NH)
    if count < 2:
        return None
    total_H = unit_NH.sum(axis=0)
    return max(0.0, 1 - (float(total_H @ total_H) - count) / (count * (count - 1)))


def log_det_bonus(embedding_NH: np.ndarray) -> np.ndarray:
    """What each sample adds to the volume that the samples span: float64 (N,) in [0, ln 2] (DQO, arXiv:2509.04784).

    ln det(L + I) - ln det(L without i + I) for the matrix L of cosines, which is -ln of the i-th diagonal element of
    (L + I)^-1. Alone against orthogonal samples it is ln 2; a copy of another sample adds at most ln 1.5. NaN where
    the embedding is missing.
    """
    unit_MH = _unit(embedding_NH)
    present_N = _present(embedding_NH)
    bonus_N = np.full(len(present_N), np.nan)
    if len(unit_MH):
        identity_MM = np.eye(len(unit_MH))
        inverse_MM = cho_solve(cho_factor(unit_MH @ unit_MH.T + identity_MM), identity_MM)
        bonus_N[present_N] = -np.log(np.diagonal(inverse_MM))
    return bonus_N


def _unit(embedding_NH: np.ndarray) -> np.ndarray:
    """Rows without missing ones, at length 1, float64.

    Raises:
        UserError: not a matrix, or a row is zero or infinite.
    """
    if np.ndim(embedding_NH) != 2:
        raise UserError(f"embeddings of shape {np.shape(embedding_NH)}: expected one row per sample")
    kept_NH = embedding_NH[_present(embedding_NH)].astype(np.float64)
    norm_N1 = np.linalg.norm(kept_NH, axis=1, keepdims=True)
    if not np.isfinite(norm_N1).all() or not norm_N1.all():
        raise UserError("embeddings: a row is zero or not finite, so it has no direction")
    return kept_NH / norm_N1


def _present(embedding_NH: np.ndarray) -> np.ndarray:
    """Which rows are not missing: bool (N,)."""
    return np.asarray(~np.isnan(embedding_NH).any(axis=1))


def _effective_number(eigenvalue_N: np.ndarray, q: float) -> float:
    """exp of the Rényi entropy of order q of eigenvalues that add up to 1."""
    if not q > 0:
        raise UserError(f"q = {q}: expected a number above 0")
    if eigenvalue_N[0] < -TOLERANCE:
        raise UserError(f"similarity matrix: smallest eigenvalue {eigenvalue_N[0]:.3g}, expected none below 0")
    p_N = eigenvalue_N[eigenvalue_N > 0]
    if q == 1:
        return math.exp(-float(p_N @ np.log(p_N)))
    if math.isinf(q):
        return 1 / float(p_N.max())
    return float((p_N**q).sum()) ** (1 / (1 - q))
