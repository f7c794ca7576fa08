"""Rows that branch, and what is left out of a pass because nobody looks at it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetrial.evaluate.trees import common, forest, last_feed_forward, longest_path, read, tree
from tiny import KINDS, tiny_model

CPU = torch.device("cpu")
TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(paths=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), padding=st.integers(0, 3))
def test_every_path_of_a_tree_is_a_row(paths, padding):
    paths = sorted(paths, key=lambda path: path[0] + path[1])
    one = tree([(np.array(prompt), np.array(option)) for prompt, option in paths])
    distinct = {tuple((prompt + option[:-1])[:n]) for prompt, option in paths for n in range(1, 10)}
    assert one.tokens == len(distinct)
    assert (np.diff(one.row_M) >= 0).all()
    other = tree([(np.arange(one.tokens + padding), np.array([1]))])
    mask_STT = forest([one, other], CPU).mask(torch.float32)
    assert (mask_STT is None) == (not one.branches)
    seen_TT = np.tri(one.tokens, dtype=bool) if mask_STT is None else (mask_STT[0, 0] == 0).numpy()
    for o, (prompt, option) in enumerate(paths):
        places = one.node_U[one.row_M[one.option_M == o]]
        assert one.target_M[one.option_M == o].tolist() == option
        path = np.flatnonzero(seen_TT[places[-1]])
        assert one.ids_T[path].tolist() == [*prompt, *option[:-1]]
        assert one.depth_T[path].tolist() == list(range(len(path)))
        assert path[len(prompt) - 1 :].tolist() == places.tolist()


def test_what_texts_begin_with_in_common():
    assert common(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert common(np.array([2]), np.array([1, 2])) == 0
    assert common(np.empty(0, np.int64), np.array([1])) == 0


def test_windows_bound_what_is_shared():
    """Layers of a window of 8."""
    assert longest_path(tiny_model("gemma3")) == 8
    assert longest_path(tiny_model("mistral")) == 8
    assert longest_path(tiny_model("llama")) == float("inf")


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_feed_forward_layer_is_computed_where_it_is_scored(kind):
    model = tiny_model(kind)
    last = last_feed_forward(model)
    assert last is model.base_model.layers[-1].mlp
    texts = [[(np.array([5, 6, 7, 8]), np.array([1])), (np.array([5, 6, 7, 8]), np.array([9, 2]))]]
    batch = forest([tree(paths) for paths in [*texts, [(np.array([3, 4]), np.array([1]))]]], CPU)
    widths: list[int] = []
    hook = last.down_proj.register_forward_hook(lambda layer, given, output: widths.append(output.shape[1]))
    with torch.no_grad():
        whole_PH, some_PH = (read(model, batch, 2, layer).flatten(0, 1) for layer in (None, last))
    hook.remove()
    assert widths == [5, 2]  # of five places the first row asks for two
    index_U = torch.cat([batch.index_U, batch.index_U + batch.ids_ST.numel()])
    torch.testing.assert_close(some_PH[index_U], whole_PH[index_U], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        again_PH = read(model, batch, 2).flatten(0, 1)
    assert torch.equal(again_PH, whole_PH)


class Mixing(nn.Module):
    """A layer whose output at a token depends on all of them."""

    def forward(self, hidden_STH):
        """The mean over tokens beside the token itself."""
        return hidden_STH - hidden_STH.mean(dim=1, keepdim=True)


def test_a_layer_that_mixes_tokens_is_computed_everywhere():
    model = tiny_model()
    model.base_model.layers[-1].mlp = Mixing()
    assert last_feed_forward(model) is None
    del model.base_model.layers[-1].mlp
    assert last_feed_forward(model) is None
