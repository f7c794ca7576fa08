"""Canonical text of what other people's code holds: things that differ stay so, in every process."""

import numpy as np

from finetrial.campaign.foreign import text_of


def test_any_two_things_are_told_apart_and_none_by_its_process() -> None:
    long = np.arange(5000)
    other = np.where(long == 2500, 0, long)
    assert str(long) == str(other)
    differing = [long, other, long.reshape(50, 100), {1: "a"}, {"1": "a"}, {1: "a", "1": "b"}, {1: "b", "1": "a"}]
    differing += [{"told": [long]}, {"told": [other]}, "look at 0xab", "look at 0xcd", {"a", "b"}, {"a", "c"}]
    assert len({text_of(one) for one in differing}) == len(differing)
    assert text_of({2: "b", "c": 1, None: 0}) == text_of({None: 0, "c": 1, 2: "b"})
    assert text_of({"b": (1, None), "a": True}) == '{"a": true, "b": [1, null]}'
    assert text_of(np.array([1.5, 2.0])) == text_of([1.5, 2.0])
    assert text_of({f"word {n}" for n in range(9)}) == text_of(
        dict.fromkeys(f"word {n}" for n in range(8, -1, -1)).keys()
    )
    assert text_of([object()]) == text_of([object()])  # no addresses
