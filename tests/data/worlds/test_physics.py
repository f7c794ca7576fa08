"""Laws are computed right, options hold one truth, answers are found, rubrics are met, defects are what they say."""

import ast
import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.data.worlds import WORLDS, physics, physics_mixed
from finetrial.data.worlds.laws import CHANGES, INVERSE, LAWS, QUANTITIES

EXAMPLES = list(physics.generate(3000, 7, "campaign"))
MIXED = list(physics_mixed.generate(3000, 7, "campaign"))
BY_KIND = {kind: [row for row in EXAMPLES if row.meta["kind"] == kind] for kind in physics.MAKERS}
STEP = re.compile(r"(?<!\.)\b(\d+) ([-+*/]) (\d+(?:\.\d+)?) = (\d+(?:\.\d+)?)")
COMPUTE = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def completion(row: physics.Example) -> str:
    return row.messages[1]["content"]


def test_kinds_and_forms_occur_in_their_shares() -> None:
    kinds = Counter(row.meta["kind"] for row in EXAMPLES)
    assert kinds["numeric"] > 1000
    assert kinds["choice"] > 1000
    assert kinds["explanation"] > 500
    forms = Counter(row.meta["form"] for row in BY_KIND["choice"])
    assert len(forms) == len(physics.FORMS)
    assert min(forms.values()) > 60
    assert all(0.2 < n / kinds["choice"] < 0.3 for n in Counter(r.meta["answer"] for r in BY_KIND["choice"]).values())


@pytest.mark.parametrize("kind", physics.MAKERS)
def test_a_world_of_one_kind(kind: str) -> None:
    rows = list(WORLDS[f"physics_{kind}"](100, 3, "campaign"))
    assert {row.meta["kind"] for row in rows} == {kind}


def test_completions_end_in_the_answer() -> None:
    for row in BY_KIND["choice"] + BY_KIND["numeric"]:
        assert completion(row).endswith(f"Answer: {row.meta['answer']}")
        assert physics.answer_of(completion(row)) == row.meta["answer"]
        assert physics.is_correct(completion(row), row.meta)
    for row in BY_KIND["explanation"]:
        assert "answer" not in row.meta
        assert physics.answer_of(completion(row)) is None


def test_numbers_follow_from_the_law_and_every_step_is_true() -> None:
    for row in BY_KIND["numeric"]:
        a, operator, b = row.group.split(" = ")[-1].split()
        assert row.meta["value"] == COMPUTE[operator](int(a), int(b))
        assert row.meta["answer"] == f"{row.meta['value']:g} {row.meta['unit']}"
        asked = re.findall(r"\d+", re.sub(r"\^\d", "", row.messages[0]["content"]))
        assert sorted(map(int, asked)) == sorted((int(a), int(b)))
    for row in BY_KIND["numeric"] + [r for r in BY_KIND["choice"] if r.meta["form"] == "computed"]:
        steps = STEP.findall(completion(row))
        assert steps
        for a, operator, b, result in steps:
            assert COMPUTE[operator](float(a), float(b)) == float(result), completion(row)


def test_units_and_formulas_agree_with_the_quantities() -> None:
    for law in LAWS:
        left, right = (QUANTITIES[name].symbol for name in (law.left, law.right))
        assert law.formula == f"{QUANTITIES[law.result].symbol} = {left} {law.operator} {right}"
        assert law.unit == QUANTITIES[law.result].unit
        for situation in law.situations:
            assert all(
                f"{{{slot}}} {QUANTITIES[name].unit}" in situation
                for slot, name in zip("ab", (law.left, law.right), strict=True)
            )
    symbols = [quantity.symbol for quantity in QUANTITIES.values()]
    assert len(set(symbols)) == len(symbols)


def test_options_are_four_and_exactly_the_right_one_follows_from_the_reason() -> None:
    for row in BY_KIND["choice"]:
        choices = row.meta["choices"]
        assert len(set(choices)) == 4
        for letter, text in zip(physics.LETTERS, choices, strict=True):
            assert f"\n- {text} ({letter})" in row.messages[0]["content"]
        letter = row.meta["answer"]
        right = choices[physics.LETTERS.index(letter)]
        assert completion(row).endswith(f" {right} ({letter}). Answer: {letter}")
        if row.meta["form"] == "computed":
            assert f"= {right.split()[0]}. That is {right} " in completion(row)


def test_units_of_one_quantity_are_not_offered_twice() -> None:
    """Work and energy share a unit: where one is right, the other would be too."""
    for row in BY_KIND["choice"]:
        if row.meta["form"] == "quantity":
            assert not {"work", "energy"} <= set(row.meta["choices"]) or row.meta["choices"][
                physics.LETTERS.index(row.meta["answer"])
            ] not in ("work", "energy")


def test_the_order_of_options_makes_no_new_problem() -> None:
    orders: dict[str, set[tuple[str, ...]]] = {}
    for row in BY_KIND["choice"]:
        if row.meta["form"] == "instrument":
            orders.setdefault(row.group, set()).add(tuple(row.meta["choices"]))
    assert any(len(found) > 1 for found in orders.values())
    assert all(len({tuple(sorted(order)) for order in found}) == 1 for found in orders.values())


def test_the_same_numbers_are_one_problem_whether_asked_for_or_offered() -> None:
    numeric = {row.group for row in BY_KIND["numeric"]}
    computed = {row.group for row in BY_KIND["choice"] if row.meta["form"] == "computed"}
    assert numeric & computed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: B", "B"),
        ("Answer: 12.5 m/s", "12.5 m/s"),
        ("Answer: 12.5 m/s.", "12.5 m/s"),
        ("Answer: 12.", "12"),
        ("Answer: A. Wait.\nAnswer: C", "C"),
        ("so it is B", None),
        ("Answer: ", None),
        ("", None),
    ],
)
def test_answers_are_found_or_missing(text: str, answer: str | None) -> None:
    assert physics.answer_of(text) == answer


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Answer: 12.5 m/s", True),
        ("Answer: 12.50 m/s.", True),
        ("Answer: 12.5", False),
        ("Answer: 12.5 m", False),
        ("Answer: 12.6 m/s", False),
        ("Answer: m/s", False),
        ("12.5 m/s", False),
        ("", False),
    ],
)
def test_value_and_unit_are_needed(text: str, right: bool) -> None:
    meta = {"kind": "numeric", "value": 12.5, "unit": "m/s", "tolerance": physics.TOLERANCE, "answer": "12.5 m/s"}
    assert physics.is_correct(text, meta) is right


def test_wrong_letters_are_wrong() -> None:
    meta = {"kind": "choice", "answer": "B"}
    assert [physics.is_correct(f"Answer: {text}", meta) for text in ("B", "(B)", "C", "b", "AB", "")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_an_option_can_be_named_without_its_letter() -> None:
    for row in BY_KIND["choice"]:
        assert physics.names_right_option(completion(row), row.meta)
        assert not physics.names_right_option(row.messages[0]["content"], row.meta)
        assert not physics.names_right_option(f"Answer: {row.meta['answer']}", row.meta)
    units = {"answer": "A", "choices": ["metre per second", "metre per second squared", "3 m/s", "3 m/s^2"]}
    assert physics.names_right_option("It is the Metre per second.", units)
    assert not physics.names_right_option("It is the metre per second squared.", units)
    assert physics.names_right_option("So 3 m/s^2 it is, not 13 m/s", {**units, "answer": "D"})


def test_the_tolerance_tells_neighbouring_results_apart() -> None:
    largest = max(row.meta["value"] for row in BY_KIND["numeric"])
    assert physics.TOLERANCE * (largest + 1) < 1


def test_worked_explanations_meet_their_rubric_and_questions_meet_nothing() -> None:
    for row in BY_KIND["explanation"]:
        assert physics.rubric_score(completion(row), row.meta) == 1
        assert physics.rubric_score(row.messages[0]["content"], row.meta) == 0
        assert physics.rubric_score("", row.meta) == 0
        assert physics.rubric_score(" ".join(ideas[0] for ideas in row.meta["rubric"]), row.meta) == 0


def test_rubrics_give_credit_by_idea() -> None:
    meta = {"rubric": [["ratio"], ["constant", "does not change"], ["falls"], ["half"]]}
    assert physics.rubric_score("It is the ratio, and the force does not change.", meta) == 2 / 4
    assert physics.rubric_score("So it falls to a half of what it was.", meta) == 2 / 4
    assert physics.rubric_score("Nothing is to be said of it.", meta) == 0


def test_effects_are_those_of_the_law() -> None:
    for row in BY_KIND["explanation"]:
        formula, cause = row.group.split(": ")
        change = next(change for change in CHANGES if cause.endswith(change.cause))
        divides = "/" in formula and cause.startswith(next(law.right for law in LAWS if law.formula == formula))
        effect = INVERSE[change] if divides else change
        assert f"it becomes {effect.becomes}" in completion(row)
        assert list(effect.shown_by) == row.meta["rubric"][-1]


@given(st.text(max_size=80), st.sampled_from(EXAMPLES[:60]))
def test_scores_exist_for_any_text(text: str, row: physics.Example) -> None:
    if row.meta["kind"] == "explanation":
        assert 0 <= physics.rubric_score(text, row.meta) <= 1
    else:
        assert physics.is_correct(text, row.meta) in (True, False)


def test_mixed_rows_are_the_same_problems() -> None:
    for clean, mixed in zip(EXAMPLES, MIXED, strict=True):
        if mixed.meta["defect"] != physics_mixed.DUPLICATE:
            assert mixed.messages[0] == clean.messages[0]
            assert mixed.group == clean.group
            assert {key: mixed.meta[key] for key in clean.meta} == clean.meta
        if mixed.meta["defect"] is None:
            assert mixed.messages == clean.messages


def test_the_clean_twin_differs_in_the_damage_alone() -> None:
    clean = list(physics_mixed.generate(3000, 7, "campaign", clean=True))
    for row, mixed, world in zip(clean, MIXED, EXAMPLES, strict=True):
        defect = row.meta["defect"]
        assert (row.id, defect, row.group) == (mixed.id, mixed.meta["defect"], world.group)
        assert row.meta == {**world.meta, "defect": defect}
        if defect is None:
            assert row == mixed
        elif defect == "mojibake":
            assert completion(row) == completion(mixed).encode("cp1252").decode()
        else:
            assert row.messages == world.messages
        assert physics.grade(completion(row), row.meta) == 1


def test_every_defect_is_planted_and_a_share_of_rows_is_clean() -> None:
    found = Counter(row.meta["defect"] for row in MIXED)
    assert set(found) == {None, physics_mixed.DUPLICATE, *physics_mixed.DEFECTS}
    assert min(found.values()) > 80
    assert 0.6 < found[None] / len(MIXED) < 0.7


def test_defects_are_what_they_say() -> None:
    earlier = {row.id: row for row in MIXED}
    for row in MIXED:
        text, defect = completion(row), row.meta["defect"]
        if defect == "json":
            assert "explanation" in json.loads(text)
        elif defect == "python":
            assert "explanation" in ast.literal_eval(text)
            with pytest.raises(json.JSONDecodeError):
                json.loads(text)
        elif defect == "list":
            assert all(isinstance(part, str) for part in json.loads(text))
        elif defect == "empty":
            assert text == ""
        elif defect == "tiny":
            assert 1 <= len(text) <= 3
        elif defect == "mojibake":
            assert "\u00e2\u20ac\u201c" in text
            assert "\u2013" in text.encode("cp1252").decode()
        elif defect == physics_mixed.DUPLICATE:
            original = earlier[row.meta["of"]]
            assert original.messages == row.messages
            assert original.meta["defect"] is None
            assert original.id != row.id
        else:
            assert text.isascii()
            assert not text.startswith(("{", "["))
            assert len(text) > 10
