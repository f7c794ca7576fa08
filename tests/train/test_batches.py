"""Which rows a step sees, and that the layout never changes that."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from finetrial.train.batches import PASS_TOKENS, layout, step_rows


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_every_row_comes_once_per_epoch_and_epochs_follow_without_gap(rows, batch_size, seed):
    steps = 3 * rows
    seen = [row for step in range(steps) for row in step_rows(seed, rows, batch_size, step)]
    assert len(seen) == steps * batch_size
    for epoch in range(len(seen) // rows):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_order_depends_on_the_seed_and_changes_between_epochs():
    first = step_rows(1, 20, 20, 0)
    assert first != step_rows(2, 20, 20, 0)
    assert first != step_rows(1, 20, 20, 1)
    assert first == step_rows(1, 20, 5, 0) + step_rows(1, 20, 5, 1) + step_rows(1, 20, 5, 2) + step_rows(1, 20, 5, 3)


@given(
    st.lists(st.lists(st.integers(1, 300), max_size=9), min_size=1, max_size=5),
    st.integers(1, 3000),
    st.sampled_from(["cpu", "cuda"]),
)
def test_a_layout_holds_every_row_once_within_budget_and_ordered_by_run(lengths, budget, device):
    passes = layout(lengths, budget, device)
    have = Counter((at.run, at.place, at.tokens) for rows in passes for at in rows)
    assert have == Counter((n, i, tokens) for n, row in enumerate(lengths) for i, tokens in enumerate(row))
    for rows in passes:
        assert [at.run for at in rows] == sorted(at.run for at in rows)
        assert len(rows) == 1 or len(rows) * max(at.tokens for at in rows) <= min(
            budget, PASS_TOKENS.get(device, budget)
        )


def shown(passes):
    return [[(at.run, at.tokens) for at in rows] for rows in passes]


def test_on_a_gpu_equal_batches_give_equal_rows_per_run():
    passes = layout([[9000, 10, 10, 10], [10, 8000, 11, 12]], 40_000, "cuda")
    assert shown(passes) == [
        [(0, 9000), (1, 8000)],
        [(0, 10), (0, 10), (0, 10), (1, 12), (1, 11), (1, 10)],
    ]


def test_on_a_cpu_rows_of_like_length_share_a_pass_whatever_their_run():
    passes = layout([[1000, 10, 10, 300], [10, 900, 310, 12]], 4000, "cpu")
    assert shown(passes) == [[(0, 1000)], [(1, 900)], [(0, 300), (1, 310)], [(0, 10), (0, 10), (1, 12), (1, 10)]]
