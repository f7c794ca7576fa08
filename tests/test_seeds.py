"""Streams are named, stable across machines, and independent of one another."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetrial.seeds import derive, stream


def test_golden_streams_never_change() -> None:
    """These values must not be edited: data order, initialisation and selections hang on them."""
    assert derive(42, "data order", 0) == 9012910925657677036
    assert derive(0) == 3456079177858693020
    assert stream(42, "data order", 0).integers(0, 1000, 5).tolist() == [55, 848, 615, 382, 58]


@given(st.integers(0, 2**62), st.lists(st.text(min_size=1, max_size=5), max_size=3))
def test_a_stream_is_a_function_of_its_name(seed: int, purpose: list[str]) -> None:
    assert derive(seed, *purpose) == derive(seed, *purpose)
    assert 0 <= derive(seed, *purpose) < 2**63


def test_names_are_not_concatenated() -> None:
    assert derive(1, "ab", "c") != derive(1, "a", "bc")
    assert derive(11, "a") != derive(1, "1a")


def test_streams_of_different_names_are_uncorrelated() -> None:
    draws = np.stack([stream(7, "noise", index).standard_normal(4000) for index in range(6)])
    off_diagonal = np.corrcoef(draws)[np.triu_indices(6, 1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(4000)
