"""Chat template -> token ids and the mask of supervised tokens.

Shapes: T tokens of one rendered row.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rendered:
    """One row as a token stream."""

    ids_T: np.ndarray
    """int32 token ids."""
    mask_T: np.ndarray
    """bool; True where the token is supervised: assistant text and its end-of-turn token."""
    supervised_bytes: int
    """UTF-8 bytes of the supervised tokens' text (for bits per byte)."""
    truncated: int
    """Tokens cut off at the end to fit the maximum length; 0 for a whole row."""
