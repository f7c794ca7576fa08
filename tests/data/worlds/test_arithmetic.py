"""Worked steps are true, lead to the answer, and the answer is found in the text."""

import re

import pytest

from finetrial.data.worlds import arithmetic

EXAMPLES = list(arithmetic.generate(3000, 7, "campaign"))
STEP = re.compile(r"(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)")


def value(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right, "/": left // right if right else 0}[operator]


def test_answers_are_the_values_of_the_expressions() -> None:
    for example in EXAMPLES:
        assert example.meta["answer"] == eval(example.meta["expression"])
        assert example.meta["expression"] in example.messages[0]["content"]
        assert arithmetic.answer_of(example.messages[1]["content"]) == example.meta["answer"]


def test_every_written_step_is_true() -> None:
    for example in EXAMPLES:
        steps = STEP.findall(example.messages[1]["content"])
        assert steps
        for left, operator, right, result in steps:
            assert value(int(left), operator, int(right)) == int(result), example.messages[1]["content"]


def test_a_part_of_the_texts_plans_in_words() -> None:
    texts = [example.messages[1]["content"] for example in EXAMPLES]
    planning = sum("et me" in text or "Wait" in text for text in texts) / len(texts)
    assert 0.3 < planning < 0.7


def test_no_answer_is_missing_not_zero() -> None:
    assert arithmetic.answer_of("12 + 3 = 15.") is None
    assert arithmetic.answer_of("Answer: ") is None
    assert arithmetic.answer_of("Answer: 3. Wait. Answer: -14") == -14


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ((31, "+", 4), "4 + 31"),
        ((9, "+", 30, "+", 2), "2 + 9 + 30"),
        ((31, "*", 4), "4 * 31"),
        ((31, "-", 4), "31 - 4"),
        ((31, "-", 4, "+", 2), "31 - 4 + 2"),
        ((5, "+", 12, "*", 3), "5 + 12 * 3"),
    ],
)
def test_operand_order_makes_no_new_problem(terms: arithmetic.Terms, problem: str) -> None:
    assert arithmetic.canonical_problem(terms) == problem


def test_products_are_split_into_tens_and_ones() -> None:
    assert arithmetic.solve((5, "+", 12, "*", 3)) == (["10 * 3 = 30", "2 * 3 = 6", "30 + 6 = 36", "5 + 36 = 41"], 41)
    assert arithmetic.solve((40, "*", 3)) == (["40 * 3 = 120"], 120)
