"""Keys depend on meaning alone, and what has no canonical form is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.identity import canonical_json, digest, file_digest, stage_key
from finetrial.train.config import TrainConfig

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, min_size=2, max_size=5))
def test_the_order_of_keys_does_not_matter(table: dict) -> None:
    assert digest(table) == digest(dict(reversed(list(table.items()))))


@given(json_values)
def test_one_spelling_per_meaning(value: object) -> None:
    assert canonical_json(value) == canonical_json([value])[1:-1]


def test_numbers_of_equal_value_are_equal() -> None:
    assert digest({"lr": 1}) == digest({"lr": 1.0}) == digest({"lr": np.float64(1.0)}) == digest({"lr": np.int32(1)})
    assert digest({"lr": 1}) != digest({"lr": True})
    assert digest((1, 2)) == digest([1, 2])


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {1, 2}}, "value.a"),
        ({"a": [0, math.nan]}, "value.a[1]"),
        ({"f": print}, "value.f"),
        ({1: 2}, "value"),
        (b"x", "value"),
        (Path("x"), "value"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_its_place(value: object, place: str) -> None:
    with pytest.raises(TypeError, match=place.replace("[", r"\[").replace(".", r"\.")):
        digest(value)


def test_golden_keys_never_change() -> None:
    """These values must not be edited: a key that moves makes every result in every store unreachable."""
    key = stage_key("train", 1, {"rank": 8, "rate": 0.002}, {"base": "b", "rows": "r"}, 42)
    assert key == "e96bd0808762defe140c8fffdf9fbf5fd14c05b4db20c2a028928ddb2c4ec1cb"


def test_models_are_keyed_by_their_fields() -> None:
    assert digest(TrainConfig()) == digest(TrainConfig().model_dump())
    assert digest(TrainConfig()) != digest(TrainConfig(learning_rate=1e-4))


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
