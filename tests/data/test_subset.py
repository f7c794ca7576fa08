"""Frozen stratified subsets: shares, stability, and what they cost in variance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.data.subset import SubsetConfig, stratified
from finetrial.errors import UserError
from finetrial.records import Example


def items(counts: dict[str, int]) -> list[Example]:
    return [
        Example(f"{kind}-{i}", "g", ({"role": "user", "content": f"{kind} {i}"},), meta={"kind": kind})
        for kind, count in counts.items()
        for i in range(count)
    ]


@given(counts=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 40), min_size=1), data=st.data())
def test_every_stratum_gets_its_share_up_to_rounding(counts: dict[str, int], data: st.DataObject) -> None:
    every = items(counts)
    n = data.draw(st.integers(1, len(every)))
    chosen, facts = stratified(every, SubsetConfig(n=n, by="kind"), "suite s")
    assert len(chosen) == n
    for kind, count in counts.items():
        taken = sum(item.meta["kind"] == kind for item in chosen)
        assert facts["strata"][kind] == [taken, count]
        assert abs(taken - n * count / len(every)) < 1
    assert facts["design_effect"] >= 1 - 1e-12
    again, _ = stratified(every[::-1], SubsetConfig(n=n, by="kind"), "suite s")
    assert {item.id for item in again} == {item.id for item in chosen}


def test_what_a_subset_costs() -> None:
    even, facts = stratified(items({"a": 60, "b": 40}), SubsetConfig(n=10, by="kind"), "suite s")
    assert facts["strata"] == {"a": [6, 60], "b": [4, 40]}
    assert facts["design_effect"] == pytest.approx(1)
    assert facts["variance_against_full"] == pytest.approx(10)
    _, rough = stratified(items({"a": 5, "b": 3}), SubsetConfig(n=2, by="kind"), "suite s")
    # one of each: weights 5 and 3, Kish 2 (25 + 9) / 64
    assert rough["design_effect"] == pytest.approx(2 * 34 / 64)
    _, lost = stratified(items({"a": 99, "b": 1}), SubsetConfig(n=10, by="kind"), "suite s")
    assert lost["left_out"] == ["b"]
    more, _ = stratified([*items({"a": 60, "b": 40}), *items({"c": 1})], SubsetConfig(n=10, by="kind"), "suite s")
    assert len({item.id for item in even} - {item.id for item in more}) <= 1
    _, plain = stratified(items({"a": 5}), SubsetConfig(n=2), "suite s")
    assert plain["strata"] == {"all": [2, 5]}


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(UserError, match=r"suite s: subset.n is 9, but there are only 5 items"):
        stratified(items({"a": 5}), SubsetConfig(n=9), "suite s")
    with pytest.raises(UserError, match=r"no item has a fact 'kinds' \(did you mean 'kind'\?\)"):
        stratified(items({"a": 5}), SubsetConfig(n=2, by="kinds"), "suite s")
