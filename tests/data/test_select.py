"""Selections: strategies, controls, ties, and independence of the order of rows."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import LAW, lengths, plain_pool, pools, run, scored

from finetrial.data.overlap import overlap, side_by_side
from finetrial.data.select import Selection, SelectionConfig, select
from finetrial.errors import LeakError, UserError

POOL = plain_pool(120, 12)
TABLE = scored(POOL)
HELD_OUT = [example.id for example in POOL if example.group == "g3"]


def pick(run_seed=0, pool=POOL, table=TABLE, exclude=HELD_OUT, reference=None, **config) -> Selection:
    return select(table, SelectionConfig(**config), pool, exclude, run_seed, lengths(pool), reference)


def test_top_and_bottom_rank_the_rows_that_pass():
    eligible = [
        (TABLE.columns["composite"][place], example.id)
        for place, example in enumerate(POOL)
        if example.resolved and example.group != "g3"
    ]
    values = sorted(value for value, _ in eligible)
    top, bottom = pick(strategy="top", n=10), pick(strategy="bottom", n=10)
    score = dict(zip(TABLE.ids, TABLE.columns["composite"], strict=True))
    assert sorted(score[name] for name in top.ids) == values[-10:]
    assert sorted(score[name] for name in bottom.ids) == values[:10]
    assert top.ids == tuple(sorted(top.ids))
    assert not set(top.ids) & set(bottom.ids)
    assert [example.id for example in top.examples] == list(top.ids)
    assert top.facts["resolved"] == 10


def test_ranking_without_a_dimension_changes_the_top():
    plain = pick(strategy="top", n=15)
    without = pick(strategy="top", n=15, without="error_retry")
    ranking = TABLE.ranking("composite", "error_retry")
    place = {name: i for i, name in enumerate(TABLE.ids)}
    worst = min(ranking[place[name]] for name in without.ids)
    left = [
        name
        for name in TABLE.ids
        if TABLE.passed[place[name]] and name not in HELD_OUT and name not in without.ids
    ]  # fmt: skip
    assert all(ranking[place[name]] <= worst for name in left)
    assert plain.key != without.key


def test_random_draws_from_all_and_resolved_random_from_the_solved():
    everything = pick(strategy="random", n=100)
    assert everything.facts["resolved"] < 100
    solved = pick(strategy="resolved_random", n=80)
    assert all(example.resolved for example in solved.examples)
    assert solved.facts["excluded"]["gate"] > 0
    unsolved_pass = scored(POOL, require_resolved=False)
    assert all(example.resolved for example in pick(table=unsolved_pass, strategy="resolved_random", n=80).examples)


def test_seed_run_draws_anew_and_a_number_fixes():
    drawn = {pick(seed, strategy="random", n=20).key for seed in range(5)}
    assert len(drawn) == 5
    fixed = {pick(seed, strategy="random", n=20, seed=7).key for seed in range(5)}
    assert fixed == {pick(7, strategy="random", n=20).key}
    assert SelectionConfig(strategy="random", n=1).varies
    assert not SelectionConfig(strategy="random", n=1, seed=7).varies
    assert not SelectionConfig(strategy="top", n=1).varies
    assert len({pick(seed, strategy="top", n=20).key for seed in range(3)}) == 1


def test_random_draws_of_one_seed_are_nested():
    small, large = pick(1, strategy="random", n=10), pick(1, strategy="random", n=40)
    assert set(small.ids) < set(large.ids)


def test_random_is_uniform():
    counts = dict.fromkeys(TABLE.ids, 0)
    for seed in range(200):
        for name in pick(seed, strategy="random", n=11).ids:
            counts[name] += 1
    drawn = np.array([count for name, count in counts.items() if name not in HELD_OUT])
    expected = 200 * 11 / 110
    statistic = float(((drawn - expected) ** 2 / (expected * (1 - 11 / 110))).sum()) * 109 / 110
    assert statistic < 160  # chi-squared with 109 degrees of freedom: 99.9 % quantile is 158


def test_longest_and_cap():
    longest = pick(strategy="longest", n=10)
    eligible = sorted(
        (
            length
            for length, example in zip(lengths(POOL), POOL, strict=True)
            if example.resolved and example.group != "g3"
        )
    )
    assert sorted(longest.tokens) == eligible[-10:]
    capped = pick(strategy="top", n=11, per_group_cap=1)
    assert capped.facts["max_per_group"] == 1
    assert capped.facts["groups"] == 11
    with pytest.raises(UserError, match=r"asks for 12 rows; 11 of the pool's 120 are eligible .*by group cap"):
        pick(strategy="top", n=12, per_group_cap=1)


def test_token_matched_random_matches_rows_and_tokens():
    top = pick(strategy="top", n=20)
    plain = pick(2, strategy="resolved_random", n=20)
    matched = pick(2, strategy="token_matched_random", match="top", reference=top)
    assert len(matched.ids) == 20
    assert abs(matched.facts["token_ratio"] - 1) <= 0.05
    assert abs(sum(plain.tokens) / sum(top.tokens) - 1) > 0.05  # the control is needed here
    keys = {pick(seed, strategy="token_matched_random", match="top", reference=top).key for seed in range(5)}
    assert len(keys) > 1
    longest = pick(strategy="longest", n=60)
    with pytest.raises(UserError, match="eligible"):
        pick(strategy="token_matched_random", match="long", reference=longest, per_group_cap=1)
    short = [run(f"short{i}", [("a", "x", "y")], group=f"s{i}") for i in range(30)]
    with pytest.raises(UserError, match="the nearest have"):
        pick(
            pool=short,
            table=scored(short),
            exclude=["short0"],
            strategy="token_matched_random",
            match="t",
            reference=top,
        )


def test_tokens_are_counted_after_truncation():
    table = scored(POOL, max_length=100, min_truncation_ratio=0)
    longest = pick(table=table, strategy="longest", n=5)
    assert max(longest.tokens) == 100
    assert longest.facts["tokens_cut"] > 0
    assert longest.facts["tokens"] == sum(longest.tokens)


def test_ties_are_broken_by_content():
    pool = [run(f"row{i}", [("a", f"cat {i}", "x")], group=f"g{i}", tools="ab") for i in range(20)]
    table = scored(pool)
    assert len(set(table.columns["composite"])) == 1
    chosen = pick(pool=pool, table=table, exclude=None, strategy="top", n=5)
    assert set(chosen.content_hashes) == set(sorted(table.content_hashes)[:5])


def test_held_out_groups_and_contents_are_left_out():
    tested = run("tested", [("a", "x", "y")], group="elsewhere")
    sibling = run("sibling", [("a", "z", "y")], group="elsewhere")
    copy = dataclasses.replace(tested, id="copy", group="another")
    pool = [*POOL, tested, sibling, copy]
    everything = pick(pool=pool, table=scored(pool), exclude=["tested"], strategy="all")
    assert set(everything.ids) == {example.id for example in POOL}
    assert everything.facts["excluded"] == {"test sets": 3}


def test_exclusion_fails_closed():
    with pytest.raises(LeakError, match="empty"):
        pick(exclude=[], strategy="all")
    with pytest.raises(LeakError, match="not in the pool"):
        pick(exclude=["row0000", "renamed"], strategy="all")


@pytest.mark.parametrize(("fraction", "rows"), [(0.25, 28), (0.5, 55), (1.0, 110), (0.001, 1)])
def test_a_fraction_is_that_share_of_what_could_be_selected(fraction, rows):
    """110 of 120 rows can be: the held-out group has 10. The draw is the one by number."""
    chosen = pick(strategy="random", fraction=fraction)
    assert chosen.facts["candidates"] == 110
    assert len(chosen.ids) == chosen.facts["examples"] == rows
    assert chosen.ids == pick(strategy="random", n=rows).ids


def test_a_fraction_that_a_cap_leaves_short_is_refused():
    with pytest.raises(UserError, match="asks for 55 rows; 22 of the pool's 120 are eligible"):
        pick(strategy="random", fraction=0.5, per_group_cap=2)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"strategy": "top"}, "needs n"),
        ({"strategy": "all", "n": 3}, "has no n"),
        ({"strategy": "all", "fraction": 0.3}, "no fraction"),
        ({"strategy": "random", "n": 3, "fraction": 0.3}, "keep one of them"),
        ({"strategy": "token_matched_random"}, "needs match"),
        ({"strategy": "random", "n": 3, "match": "top"}, "match is for token_matched_random"),
        ({"strategy": "random", "n": 3, "by": "style"}, "rank for top and bottom"),
        ({"strategy": "top", "n": 3, "by": "stile"}, "did you mean 'style'"),
        (
            {"strategy": "top", "n": 500},
            r"asks for 500 rows; 88 of the pool's 120 are eligible \(left out: 22 by gate, 10",
        ),
    ],
)
def test_select_refuses(config, told):
    with pytest.raises(UserError, match=told):
        pick(**config)


def test_a_table_of_other_rows_is_a_defect():
    with pytest.raises(ValueError, match="same rows"):
        select(TABLE, SelectionConfig(), POOL[::-1], None, 0, lengths(POOL))


STRATEGIES = st.sampled_from(["all", "top", "bottom", "longest", "random", "resolved_random"])


@LAW
@given(pool=pools(min_size=12), strategy=STRATEGIES, seed=st.integers(0, 99), order=st.integers(0, 99))
def test_selection_does_not_depend_on_the_order_of_rows(pool, strategy, seed, order):
    config = SelectionConfig(strategy=strategy, n=None if strategy == "all" else 4, per_group_cap=2)
    held_out = [pool[0].id]
    places = np.random.Generator(np.random.PCG64(order)).permutation(len(pool))
    found = []
    for rows in (pool, [pool[place] for place in places]):
        try:
            found.append(select(scored(rows), config, rows, held_out, seed, lengths(rows)))
        except UserError as error:
            found.append(str(error))
    first, second = found
    if isinstance(first, str):
        assert first == second
        return
    assert (first.ids, first.key, first.facts) == (second.ids, second.key, second.facts)


def test_key_is_of_the_set_and_its_content():
    one = pick(strategy="top", n=110 - 22, by="composite")
    other = pick(strategy="bottom", n=110 - 22, by="style")
    assert one.key == other.key  # all eligible rows, however they were ranked
    assert one.key != pick(strategy="top", n=50).key


def test_overlap_and_side_by_side():
    top, same = pick(strategy="top", n=20), pick(strategy="top", n=20, without=None)
    bottom = pick(strategy="bottom", n=20)
    random = pick(strategy="random", n=20)
    facts = overlap({"top": top, "same": same, "bottom": bottom, "random": random})
    assert facts["names"] == ["top", "same", "bottom", "random"]
    assert facts["shared"][0][:3] == [20, 20, 0]
    assert facts["matrix"][0][:3] == [1.0, 1.0, 0.0]
    shared = len(set(top.ids) & set(random.ids))
    assert facts["matrix"][3][0] == facts["matrix"][0][3] == pytest.approx(shared / (40 - shared))
    assert facts["nearly_same"] == [["top", "same"]]
    rows = side_by_side({"top": top, "bottom": bottom}, {"top": 5, "bottom": 5})
    assert [row["condition"] for row in rows] == ["top", "bottom"]
    assert rows[0]["tokens"] == sum(top.tokens)
    assert rows[0]["steps"] == 5
