"""The arithmetic world: sums, differences and products with worked steps and an answer that can be verified.

A problem is an expression of two or three terms over integers of one or two digits. Its worked solution writes
out every intermediate result; a part of the texts also plans and checks in words ("Wait, let me check."), and all
of them end in `Answer: N`.
"""

import re
from collections.abc import Iterator

from finetrial.data.worlds.dice import Dice, Split, check_request, split_of
from finetrial.records import Example

VERSION = 1

QUESTIONS = (
    "What is {}?",
    "Compute {}.",
    "Work out {}.",
    "Calculate {}.",
    "Find the value of {}.",
    "How much is {}?",
)
OPENINGS = (
    "Let me think. ",
    "Let me think step by step. ",
    "First, I need to see the parts. ",
    "Let me work it out. ",
)
LINKS = ("Next, ", "Then ", "Now ", "So ")
CHECKS = (
    "Wait, let me check. ",
    "Let me verify that. ",
    "Wait, is this right? ",
)
AGREEMENTS = ("That is right. ", "It fits. ", "Good. ")

ANSWER = re.compile(r"Answer: (-?\d+)(?!\d)")

Terms = tuple[int | str, ...]
"""Numbers and operators in turn: (12, "+", 7, "*", 3)."""


def answer_of(text: str) -> int | None:
    """The integer after the last `Answer:`; None where the text gives none."""
    found = ANSWER.findall(text)
    return int(found[-1]) if found else None


def generate(count: int, seed: int, split: Split) -> Iterator[Example]:
    """Yield `count` questions with worked answers; `meta` holds `answer` (int), `expression`, `terms` and
    `kind` (`kind_of`).

    The group is the problem up to the order of the operands of a sum or product, and it decides the split.
    """
    check_request(count, split)
    produced = candidate = 0
    while produced < count:
        dice = Dice(seed, "worlds/arithmetic", VERSION, candidate)
        candidate += 1
        terms = _terms(dice)
        group = canonical_problem(terms)
        if split_of(group) != split:
            continue
        expression = " ".join(map(str, terms))
        steps, answer = solve(terms)
        question = dice.pick(QUESTIONS).format(expression)
        yield Example(
            id=f"arithmetic-{split}-{seed}-{produced}",
            group=group,
            messages=(
                {"role": "user", "content": question},
                {"role": "assistant", "content": _worked(dice, terms, steps, answer)},
            ),
            meta={"answer": answer, "expression": expression, "terms": (len(terms) + 1) // 2, "kind": kind_of(terms)},
        )
        produced += 1


def kind_of(terms: Terms) -> str:
    """`sum` and `product` of two terms, `chain` of three with sums alone, `mixed` of three with a product."""
    if "*" in terms:
        return "product" if len(terms) == 3 else "mixed"
    return "sum" if len(terms) == 3 else "chain"


def canonical_problem(terms: Terms) -> str:
    """One spelling per problem: a pure sum or product does not depend on the order of its operands."""
    operators = set(terms[1::2])
    if len(operators) == 1 and operators <= {"+", "*"}:
        return f" {terms[1]} ".join(map(str, sorted(int(number) for number in terms[::2])))
    return " ".join(map(str, terms))


def _terms(dice: Dice) -> Terms:
    shape = dice.below(10)
    if shape < 3:
        return (_number(dice), dice.pick("+-"), _number(dice))
    if shape < 7:
        return (_number(dice), dice.pick("+-"), _number(dice), dice.pick("+-"), _number(dice))
    if shape < 9:
        return (dice.between(11, 99), "*", dice.between(2, 9))
    return (_number(dice), dice.pick("+-"), dice.between(11, 99), "*", dice.between(2, 9))


def _number(dice: Dice) -> int:
    return dice.between(1, 9) if dice.chance(25) else dice.between(10, 99)


def solve(terms: Terms) -> tuple[list[str], int]:
    """Intermediate results in order, products first and split into tens and ones, and the value."""
    steps: list[str] = []
    values = list(terms)
    while "*" in values:
        at = values.index("*")
        left, right = int(values[at - 1]), int(values[at + 1])
        tens, ones = left // 10 * 10, left % 10
        if ones:
            steps.append(f"{tens} * {right} = {tens * right}")
            steps.append(f"{ones} * {right} = {ones * right}")
            steps.append(f"{tens * right} + {ones * right} = {left * right}")
        else:
            steps.append(f"{left} * {right} = {left * right}")
        values[at - 1 : at + 2] = [left * right]
    while len(values) > 1:
        left, operator, right = int(values[0]), values[1], int(values[2])
        value = left + right if operator == "+" else left - right
        steps.append(f"{left} {operator} {right} = {value}")
        values[:3] = [value]
    return steps, int(values[0])


def _worked(dice: Dice, terms: Terms, steps: list[str], answer: int) -> str:
    text = dice.pick(OPENINGS) if dice.chance(40) else ""
    for i, step in enumerate(steps):
        link = dice.pick(LINKS) if i and dice.chance(40) else ""
        text += f"{link}{step}. "
    if dice.chance(25):
        text += dice.pick(CHECKS) + _check(terms, answer) + ". " + dice.pick(AGREEMENTS)
    return f"{text}Answer: {answer}"


def _check(terms: Terms, answer: int) -> str:
    """The inverse of the last step, which leads back to the value before it."""
    if "*" in terms[-2:]:
        product = int(terms[-3]) * int(terms[-1])
        if len(terms) == 3:
            return f"{product} / {terms[-1]} = {terms[0]}"
        back = "-" if terms[1] == "+" else "+"
        return f"{answer} {back} {product} = {terms[0]}"
    back = "-" if terms[-2] == "+" else "+"
    before = answer - int(terms[-1]) if terms[-2] == "+" else answer + int(terms[-1])
    return f"{answer} {back} {terms[-1]} = {before}"
