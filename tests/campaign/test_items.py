"""`items.parquet`: what the items ask, and their categories."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finetrial.campaign.items import ITEMS, SCHEMA, check_category, item_rows, write_items
from finetrial.campaign.spec import load_spec
from finetrial.errors import UserError
from finetrial.records import Example, Task


def task(name: str, **meta: str) -> Task:
    said = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {name}?"})
    return Task(name, "g", said, "42", meta=meta)


def test_the_category_is_the_first_fact_that_names_one() -> None:
    rows = item_rows("s", [task("b", topic="x", kind="hard"), task("a", topic="y")])
    assert [(row["item"], row["category"]) for row in rows] == [("a", None), ("b", "hard")]
    assert [row["category"] for row in item_rows("s", [task("b", topic="x", kind="hard")], "topic")] == ["x"]
    assert [row["category"] for row in item_rows("s", [task("a")])] == [None]


def test_a_row_tells_what_is_asked() -> None:
    turns = tuple(
        {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes"), ("user", "So?"))
    )
    (asked,), (told,) = item_rows("s", [task("a")]), item_rows("t", [Example("e", "g", turns)])
    assert (asked["prompt"], asked["reference"], asked["group"]) == ("What is a?", "42", "g")
    assert (told["prompt"], told["reference"]) == ("So?", None)


def test_a_fact_that_no_item_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"suite s: category: no item has a fact 'topc' \(did you mean 'topic'"):
        check_category("suite s", "topc", [task("a", topic="x")])
    check_category("suite s", "", [])


def test_the_table_is_written_whole(tmp_path: Path) -> None:
    write_items(tmp_path, {"s": [task("a", topic="x")], "t": [task("b", level="1")]}, {"t": "level"})
    table = pq.read_table(tmp_path / ITEMS)
    assert table.schema.equals(SCHEMA)
    assert table["category"].to_pylist() == ["x", "1"]
    assert [path.name for path in tmp_path.iterdir()] == [ITEMS]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('x = "gold:nll"\ny = "rndom:nll"', r"suite 'rndom' is not evaluated.*random"),
        ('x = "gold:acc"\ny = "random:nll"', "'acc' is not measured on suites of kind perplexity"),
        ('x = "gold:nll"\ny = "random:nll"\nbaseline = "topk"', r"baseline 'topk' is no condition.*topq"),
    ],
)
def test_tradeoffs_on_what_is_not_measured_are_refused(campaign: Path, table: str, told: str) -> None:
    campaign.write_text(f"{campaign.read_text()}\n[[analysis.tradeoffs]]\n{table}\n")
    with pytest.raises(UserError, match=told):
        load_spec(campaign)


def test_a_tradeoff_is_part_of_the_spec_and_of_no_key(campaign: Path) -> None:
    before = load_spec(campaign)
    declared = '[[analysis.tradeoffs]]\ntitle = "t"\nx = "gold:nll"\ny = ["random:nll"]\n'
    campaign.write_text(f"{campaign.read_text()}\n{declared}")
    after = load_spec(campaign)
    assert after.analysis.tradeoffs[0].name == "t"
    assert after.conditions == before.conditions
