"""Randomness by name: every stream is derived from (seed, purpose, ...) by SHA-256 and passed on.

There is no global state. Two conditions with the same seed share every stream of the same name (data order,
adapter initialisation, sampling noise), so a campaign is paired by construction. The name of the campaign does
not enter: the same recipe with the same seed is the same run in every campaign (docs/decisions/0001).
"""

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit integer that names the stream (seed, *purpose); the same on every machine."""
    name = "\x1f".join([str(int(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """An independent numpy generator (PCG64) for the stream (seed, *purpose)."""
    return np.random.Generator(np.random.PCG64(derive(seed, *purpose)))
