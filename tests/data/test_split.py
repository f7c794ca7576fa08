"""Test sets and the leak guard."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import LAW, plain_pool, pools, run, scored
from pydantic import ValidationError

from finetrial.data.split import GuardReport, HoldoutConfig, SplitConfig, freeze, guard, held_out
from finetrial.errors import LeakError, UserError
from finetrial.records import Example

POOL = plain_pool(300, 60)
TABLE = scored(POOL)


def three(n: int, quantile: float = 0.2, **options) -> SplitConfig:
    kinds = ("gold", "random", "low_quality")
    sets = {kind: HoldoutConfig.model_validate({"kind": kind, "n": n, "quantile": quantile}) for kind in kinds}
    return SplitConfig(test_sets=sets, **options)


def rows_of(pool, ids):
    by_id = {example.id: example for example in pool}
    return [by_id[name] for name in ids]


def test_test_sets_are_what_they_say():
    splits = freeze(TABLE, POOL, three(8))
    score = dict(zip(TABLE.ids, TABLE.columns["composite"], strict=True))
    ranked = sorted(score[name] for name, passed in zip(TABLE.ids, TABLE.passed, strict=True) if passed)
    share = -(-len(ranked) * 2 // 10)
    assert all(score[name] >= ranked[-share] for name in splits.test_sets["gold"])
    assert all(score[name] <= ranked[share - 1] for name in splits.test_sets["low_quality"])
    assert all(example.resolved for example in rows_of(POOL, splits.test_sets["gold"]))
    assert {name: len(ids) for name, ids in splits.test_sets.items()} == {"gold": 8, "random": 8, "low_quality": 8}
    drawn = [
        example.resolved
        for seed in range(12)
        for example in rows_of(POOL, freeze(TABLE, POOL, three(8, seed=seed)).test_sets["random"])
    ]
    assert 0.05 < 1 - np.mean(drawn) < 0.4  # a fifth of the pool is unresolved, and the random set keeps them


def check_disjoint(pool, splits, exclusive=True):
    sides = {name: rows_of(pool, ids) for name, ids in splits.test_sets.items()}
    training = rows_of(pool, splits.training_ids)
    assert sorted([*splits.training_ids, *splits.held_out_ids]) == sorted(example.id for example in pool)
    seen_ids: set[str] = set()
    seen_contents: set[str] = set()
    groups: dict[str, str] = {}
    for name, rows in sides.items():
        guard(training, {name: rows}, splits.training_ids)
        for example in rows:
            assert example.id not in seen_ids
            assert example.content_hash not in seen_contents
            if exclusive:
                assert groups.setdefault(example.group, name) == name
            seen_ids.add(example.id)
            seen_contents.add(example.content_hash)


@LAW
@given(pool=pools(min_size=10, max_size=60), n=st.integers(1, 3), seed=st.integers(0, 99), exclusive=st.booleans())
def test_splits_are_disjoint_and_do_not_depend_on_the_order(pool, n, seed, exclusive):
    config = three(n, quantile=0.5, seed=seed, exclusive_groups=exclusive)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(pool))
    found = []
    for rows in (pool, [pool[place] for place in order]):
        try:
            found.append(freeze(scored(rows), rows, config))
        except UserError as error:
            found.append(str(error))
    first, second = found
    if isinstance(first, str):
        assert first == second
        return
    check_disjoint(pool, first, exclusive)
    assert (first.test_sets, first.training_ids, first.key) == (second.test_sets, second.training_ids, second.key)
    assert first.facts == second.facts


def test_groups_that_share_content_count_as_one():
    pool = [run(f"r{i}", [("a", f"{i}", "x")], group=f"g{i}", tools="ab") for i in range(30)]
    pool += [dataclasses.replace(pool[i], id=f"copy{i}", group=f"g{i + 1}") for i in range(0, 28, 2)]
    splits = freeze(scored(pool), pool, SplitConfig(test_sets={"random": HoldoutConfig(kind="random", n=4)}))
    check_disjoint(pool, splits)
    assert len(splits.held_out_ids) > 4


def test_seed_and_content_enter_the_key():
    splits = freeze(TABLE, POOL, three(5))
    assert splits.key != freeze(TABLE, POOL, three(5, seed=1)).key
    victim = splits.test_sets["gold"][0]
    changed = [
        dataclasses.replace(example, messages=(*example.messages, {"role": "user", "content": "thanks"}))
        if example.id == victim
        else example
        for example in POOL
    ]
    table = dataclasses.replace(TABLE, content_hashes=tuple(example.content_hash for example in changed))
    assert freeze(table, changed, three(5)).key != splits.key


def test_freeze_refuses():
    with pytest.raises(UserError, match=r"gold asks for 200 rows; \d+ of 48 rows, the best 20%.*60 rows: not resolved"):
        freeze(TABLE, POOL, three(200))
    few = plain_pool(30, 3)
    with pytest.raises(UserError, match="exclusive_groups = false"):
        freeze(scored(few), few, three(8, quantile=0.5))
    with pytest.raises(UserError, match="nothing is left for training"):
        freeze(scored(few), few, SplitConfig(test_sets={"random": HoldoutConfig(kind="random", n=25)}))
    with pytest.raises(ValueError, match="same rows"):
        freeze(TABLE, POOL[::-1], three(5))
    with pytest.raises(ValidationError, match="no test set"):
        SplitConfig(test_sets={})


def test_defaults_name_three_sets():
    assert SplitConfig().names == ("gold", "random", "low_quality")


SPLITS = freeze(TABLE, POOL, three(6))
TRAINING = rows_of(POOL, SPLITS.training_ids)
TESTS = {name: rows_of(POOL, ids) for name, ids in SPLITS.test_sets.items()}


def test_guard_reports_what_it_compared():
    report = guard(TRAINING, TESTS, SPLITS.training_ids)
    contents = len({example.content_hash for example in TRAINING})
    assert report.training_rows == len(TRAINING)
    assert report.test_rows == {"gold": 6, "random": 6, "low_quality": 6}
    assert report.compared["ids"] == len(TRAINING) * 18
    assert report.compared["contents"] == contents * 18
    assert report.facts()["training_rows"] == len(TRAINING)


@given(victim=st.sampled_from([example for rows in TESTS.values() for example in rows]), kind=st.integers(0, 2))
@settings(deadline=None)
def test_guard_finds_each_kind_of_leak(victim, kind):
    other = ({"role": "user", "content": "new"}, {"role": "assistant", "content": "new"})
    leak, told = [
        (dataclasses.replace(victim, group="new", messages=other), f"ids .*{victim.id}"),
        (dataclasses.replace(victim, id="new", messages=other), f"groups .*{victim.group}"),
        (dataclasses.replace(victim, id="new", group="new"), f"contents .*{victim.content_hash}"),
    ][kind]
    with pytest.raises(LeakError, match=told):
        guard([*TRAINING, leak], TESTS)


@pytest.mark.parametrize(
    ("selection", "tests", "ids", "told"),
    [
        ([], TESTS, None, "selection is empty"),
        (None, TESTS, None, "selection is absent"),
        (TRAINING, {}, None, "no test set"),
        (TRAINING, {"gold": []}, None, "gold is empty"),
        (TRAINING, {"gold": TESTS["gold"], "random": None}, None, "random is absent"),
        (TRAINING, TESTS, [], "training ids is empty"),
        (TRAINING, TESTS, SPLITS.training_ids[1:], "not for training"),
        ([*TRAINING, "row"], TESTS, None, "without id or group"),
        ([*TRAINING, run("x", [], group="")], TESTS, None, "without id or group"),
    ],
)
def test_guard_fails_closed(selection, tests, ids, told):
    with pytest.raises(LeakError, match=told):
        guard(selection, tests, ids)


def test_an_unreadable_subset_is_an_error():
    def rows():
        yield TRAINING[0]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        guard(rows(), TESTS)


def test_a_report_without_comparisons_cannot_exist():
    with pytest.raises(LeakError, match="compared nothing"):
        GuardReport(5, {"gold": 3})
    with pytest.raises(LeakError, match="compared nothing"):
        GuardReport(0, {"gold": 3}, {"ids": 1, "groups": 1, "contents": 1})
    with pytest.raises(LeakError, match="compared nothing"):
        GuardReport(5, {}, {"ids": 1, "groups": 1, "contents": 1})


def test_tau_bench_splits_by_task(data_dir):
    from finetrial.data.read import read

    pool = read(str(data_dir / "tau_bench/historical_trajectories/gpt-4o-airline.json")).examples
    splits = freeze(scored(pool, max_length=100_000), pool, three(5, quantile=0.3))
    check_disjoint(pool, splits)
    assert splits.facts["rows"] == 200
    assert splits.facts["groups"] == 50
    assert len(splits.held_out_ids) == 4 * (50 - splits.facts["training_groups"])


def test_whole_clusters_are_held_out_also_of_a_pool_that_grew() -> None:
    def row(name: str, group: str, text: str) -> Example:
        return Example(name, group, ({"role": "assistant", "content": text},))

    tested = [row("t", "A", "c1")]
    pool = [row("t", "A", "c1"), row("a2", "A", "c2"), row("b1", "B", "c2"), row("b2", "B", "c3"), row("z", "Z", "c4")]
    assert held_out(pool, tested) == ("a2", "b1", "b2", "t")
    assert held_out([row("new", "N", "c1"), row("n2", "N", "c9")], tested) == ("n2", "new")
    assert held_out([row("t", "other", "other")], tested) == ("t",)
    assert held_out([row("z", "Z", "c4")], tested) == ()
