"""A checkpoint is whole or absent."""

import pytest
import torch

from finetrial.errors import UserError
from finetrial.train import checkpoint


def test_the_newest_state_is_kept_and_no_other(tmp_path):
    assert checkpoint.load(tmp_path) is None
    for step in (5, 10, 100):
        checkpoint.save(tmp_path, step, {"x": torch.full((2, 3), float(step))}, {"note": [step]})
    assert [path.name for path in tmp_path.iterdir()] == ["step-100"]
    state = checkpoint.load(tmp_path)
    assert (state.step, state.facts["note"]) == (100, [100])
    assert torch.equal(state.tensors["x"], torch.full((2, 3), 100.0))


def test_a_failed_write_leaves_the_old_state(tmp_path):
    checkpoint.save(tmp_path, 5, {"x": torch.ones(1)}, {})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 6, {"x": torch.ones(1)}, {"unwritable": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]
    assert checkpoint.load(tmp_path).step == 5


def test_of_two_whole_states_the_newer_counts(tmp_path):
    """A process killed between the rename and the removal leaves two."""
    for step in (9, 10):
        checkpoint.save(tmp_path / str(step), step, {"x": torch.ones(1)}, {})
        (tmp_path / str(step) / f"step-{step}").rename(tmp_path / f"step-{step}")
    assert checkpoint.load(tmp_path).step == 10


def test_a_damaged_state_is_refused(tmp_path):
    checkpoint.save(tmp_path, 5, {"x": torch.ones(1)}, {})
    (tmp_path / "step-5" / "state.json").write_text("{")
    with pytest.raises(UserError, match="unreadable checkpoint"):
        checkpoint.load(tmp_path)
