"""The physics world: multiple choice, numbers with units, and short explanations with a rubric.

Laws have two factors and small integers, so that a model of a million parameters can learn them. A completion ends in
`Answer: B` or `Answer: 12.5 m/s`; explanations have no extractable answer and are scored by their rubric.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from finetrial.data.worlds.arithmetic import solve
from finetrial.data.worlds.dice import Dice, Split, check_request, split_of
from finetrial.data.worlds.laws import (
    BODIES,
    CHANGES,
    INSTRUMENTS,
    INVERSE,
    LAWS,
    QUANTITIES,
    SCALARS,
    UNCHANGED,
    VECTORS,
    Change,
    Law,
)
from finetrial.data.worlds.prose import has_any, is_prose, words
from finetrial.records import Example

VERSION = 1

LETTERS = "ABCD"
TOLERANCE = 0.001
"""Relative tolerance of a number: the largest whole results must be met exactly."""
ANSWER = re.compile(r"Answer: *([^\n]*?)\.?[ \t]*(?:\n|$)")
MEASURE = re.compile(r"(-?\d+(?:\.\d+)?)\s*(.*)")
ASKS = ("What is the {}?", "Find the {}.", "Calculate the {}.", "How large is the {}?")


@dataclass(frozen=True)
class Problem:
    """A question with a worked completion; `canonical` is the problem behind the wording and decides the split."""

    canonical: str
    question: str
    completion: str
    meta: dict[str, Any] = field(default_factory=dict)


def answer_of(text: str) -> str | None:
    """What stands after the last `Answer:` on its line, without a closing full stop; None where nothing does."""
    found = ANSWER.findall(text)
    return found[-1].strip() or None if found else None


def is_correct(text: str, meta: Mapping[str, Any]) -> bool:
    """Whether a completion of a `choice` or `numeric` problem gives the right letter, or value and unit.

    A number may be off by the relative `meta["tolerance"]`; the unit has to be written as in `meta["unit"]`.
    """
    given = answer_of(text)
    if given is None:
        return False
    if meta["kind"] == "choice":
        return given.strip("()") == meta["answer"]
    measure = MEASURE.fullmatch(given)
    return (
        measure is not None
        and isclose(float(measure[1]), meta["value"], rel_tol=meta["tolerance"])
        and measure[2] == meta["unit"]
    )


def names_right_option(text: str, meta: Mapping[str, Any]) -> bool:
    """Whether a completion of a `choice` problem mentions the right option's text and none of the others'.

    The lenient score beside `is_correct`: it tells knowing the fact from finding its letter. Where one option
    contains another, the longer counts. `meta["choices"]` are texts in the order of letters, or by letter, as tasks
    have them; of tasks the letter of the right one is `answer`, too.
    """
    choices = meta["choices"]
    options = list(choices.values()) if isinstance(choices, Mapping) else choices
    named = []
    for option in sorted(options, key=len, reverse=True):
        text, found = re.subn(rf"(?<![\w.^]){re.escape(option)}(?![\w^])", "", text, flags=re.IGNORECASE)
        if found:
            named.append(option)
    return named == [options[LETTERS.index(meta["answer"])]]


def rubric_score(text: str, meta: Mapping[str, Any]) -> float:
    """Share of the ideas of `meta["rubric"]` that an explanation shows, in [0, 1]; 0 for a text that is no prose.

    An idea is a list of words or phrases of which one must occur (whole words, any case). No idea is expressed in the
    words of the question, so repeating the question scores 0.
    """
    spoken = words(text)
    if not is_prose(spoken):
        return 0.0
    ideas = meta["rubric"]
    return sum(has_any(spoken, phrases) for phrases in ideas) / len(ideas)


def grade(text: str, meta: Mapping[str, Any]) -> float:
    """How good a completion of a problem of any kind is, in [0, 1]: `rubric_score` of an explanation, else 1 or 0."""
    return rubric_score(text, meta) if meta["kind"] == "explanation" else float(is_correct(text, meta))


def numeric(dice: Dice) -> Problem:
    """A law with two numbers; the completion names the law and works the value out."""
    law, a, b = _numbers(dice)
    steps, value = _worked(law, a, b)
    ask = dice.pick(ASKS).format(law.result)
    answer = f"{value:g} {law.unit}"
    return Problem(
        _case(law, a, b),
        f"{_situation(law, a, b, dice)} {ask}",
        f"{steps} Answer: {answer}",
        {"answer": answer, "value": float(value), "unit": law.unit, "tolerance": TOLERANCE, "law": law.formula},
    )


def choice(dice: Dice) -> Problem:
    """Multiple choice of one of the forms in `FORMS`."""
    return dice.pick(FORMS)(dice)


def explanation(dice: Dice) -> Problem:
    """What happens to a result when one factor changes, and why. The rubric lists relation, constancy and effect."""
    law, cause, other, change, effect = _variation(dice)
    grows = "grows" if effect.rises else "falls"
    relation = (
        dice.pick(("{} is the product of {} and {}", "{} equals {} multiplied by {}"))
        if law.operator == "*"
        else dice.pick(("{} is the ratio of {} and {}", "{} equals {} divided by {}"))
    ).format(law.result.capitalize(), law.left, law.right)
    kept = dice.pick(("The {} is constant", "The {} does not change", "The {} is unchanged")).format(other)
    question = dice.pick(
        (
            "Explain what happens to the {} if the {} {} and the {} stays the same.",
            "The {1} {2} while the {3} stays as it was. What happens to the {0}, and why?",
            "How does the {} react if the {} {} at the same {}? Explain.",
        )
    ).format(law.result, cause, change.cause, other)
    completion = (
        f"{relation}, {law.formula}. {kept}. "
        f"So with {change.twice.format(cause)} the {law.result} {grows}: it becomes {effect.becomes}."
    )
    rubric = [
        ["product", "multiplied", "proportional"] if law.operator == "*" else ["ratio", "divided by", "inversely"],
        ["constant", "does not change", "unchanged", "fixed"],
        ["grows", "rises", "increases", "larger"] if effect.rises else ["falls", "drops", "decreases", "smaller"],
        list(effect.shown_by),
    ]
    return Problem(f"{law.formula}: {cause} {change.cause}", question, completion, {"rubric": rubric})


MAKERS: dict[str, Callable[[Dice], Problem]] = {"choice": choice, "numeric": numeric, "explanation": explanation}
SHARES = ("choice",) * 2 + ("numeric",) * 2 + ("explanation",)
"""Kinds of the whole world, each as often as it is drawn."""


def generate(count: int, seed: int, split: Split, kinds: Sequence[str] = SHARES) -> Iterator[Example]:
    """Yield `count` questions with worked completions, drawn evenly from `kinds`.

    The group is the problem behind the wording, which decides the split. `meta` holds `kind`; for `choice` `answer`
    (a letter), `choices` (four texts) and `form`; for `numeric` `answer` (as written, "12.5 m/s"), `value`, `unit`,
    `tolerance` (relative) and `law`; for `explanation` `rubric` (lists of phrases).
    """
    check_request(count, split)
    produced = candidate = 0
    while produced < count:
        dice = Dice(seed, "worlds/physics", VERSION, candidate)
        candidate += 1
        kind = dice.pick(kinds)
        problem = MAKERS[kind](dice)
        if split_of(problem.canonical) != split:
            continue
        yield Example(
            id=f"physics-{split}-{seed}-{produced}",
            group=problem.canonical,
            messages=(
                {"role": "user", "content": problem.question},
                {"role": "assistant", "content": problem.completion},
            ),
            meta={"kind": kind, **problem.meta},
        )
        produced += 1


def _numbers(dice: Dice) -> tuple[Law, int, int]:
    """A law and its two numbers; a quotient is whole or ends in .5."""
    law = dice.pick(LAWS)
    if law.operator == "*":
        return law, dice.between(2, 60), dice.between(2, 9)
    if dice.chance(20):
        divisor = dice.pick((2, 4, 6, 8))
        return law, divisor * dice.between(1, 19) + divisor // 2, divisor
    divisor = dice.between(2, 9)
    return law, divisor * dice.between(2, 25), divisor


def _worked(law: Law, a: int, b: int) -> tuple[str, float]:
    """`v = d / t = 60 / 5. 50 / 5 = 10. 10 / 5 = 2. 10 + 2 = 12.` and the value; tens come first."""
    steps, value = solve((a, "*", b)) if law.operator == "*" else _divide(a, b)
    return f"{law.formula} = {a} {law.operator} {b}. {'. '.join(steps)}.", value


def _divide(a: int, b: int) -> tuple[list[str], float]:
    tens = a // b // 10 * 10
    if not tens or a == tens * b:
        return [f"{a} / {b} = {a / b:g}"], a / b
    rest = a - tens * b
    return [
        f"{tens * b} / {b} = {tens}",
        f"{a} - {tens * b} = {rest}",
        f"{rest} / {b} = {rest / b:g}",
        f"{tens} + {rest / b:g} = {a / b:g}",
    ], a / b


def _case(law: Law, a: int, b: int) -> str:
    return f"{law.formula} = {a} {law.operator} {b}"


def _situation(law: Law, a: int, b: int, dice: Dice) -> str:
    return dice.pick(law.situations).format(a=a, b=b, body=dice.pick(BODIES))


def _variation(dice: Dice) -> tuple[Law, str, str, Change, Change]:
    """A law, the factor that changes, the factor that does not, the change, and its effect on the result."""
    law, change = dice.pick(LAWS), dice.pick(CHANGES)
    left = dice.chance(50)
    cause, other = (law.left, law.right) if left else (law.right, law.left)
    return law, cause, other, change, change if left or law.operator == "*" else INVERSE[change]


def _options(topic: str, form: str, question: str, lead: str, options: Sequence[str], dice: Dice) -> Problem:
    """A multiple choice problem; the first option is the right one until they are shuffled.

    Letters follow their options, in the question and in the completion that repeats the right one, so that copying
    what came next is all that the letter takes.
    """
    shuffled = dice.sample(options, 4)
    letter = LETTERS[shuffled.index(options[0])]
    listed = "\n".join(f"- {text} ({key})" for key, text in zip(LETTERS, shuffled, strict=True))
    return Problem(
        topic,
        f"{question}\n{listed}",
        f"{lead} {options[0]} ({letter}). Answer: {letter}",
        {"answer": letter, "choices": shuffled, "form": form},
    )


def _about(topic: str, options: Sequence[str]) -> str:
    return f"{topic}: {', '.join(sorted(options))}"


def _unit(dice: Dice) -> Problem:
    quantity = dice.pick(list(QUANTITIES.values()))
    others = [name for name in dict.fromkeys(q.unit_name for q in QUANTITIES.values()) if name != quantity.unit_name]
    options = [quantity.unit_name, *dice.sample(others, 3)]
    question = dice.pick(("What is the unit of {}?", "Which unit measures {}?", "In which unit is {} given?"))
    lead = f"The unit of {quantity.name} is the"
    return _options(
        _about(f"unit of {quantity.name}", options), "unit", question.format(quantity.name), lead, options, dice
    )


def _measured(dice: Dice) -> Problem:
    quantity = dice.pick(list(QUANTITIES.values()))
    others = [q.name for q in QUANTITIES.values() if q.unit != quantity.unit]
    options = [quantity.name, *dice.sample(others, 3)]
    question = dice.pick(("What is measured in {}?", "Which quantity has the unit {}?"))
    lead = f"{quantity.unit} is a unit of"
    return _options(
        _about(f"has {quantity.unit}", options), "quantity", question.format(quantity.unit), lead, options, dice
    )


def _formula(dice: Dice) -> Problem:
    law = dice.pick(LAWS)
    result, left, right = (QUANTITIES[name].symbol for name in (law.result, law.left, law.right))
    wrong = [
        f"{result} = {left} {'/' if law.operator == '*' else '*'} {right}",
        f"{result} = {right} / {left}",
        f"{result} = {left} + {right}",
        f"{result} = {left} - {right}",
    ]
    options = [law.formula, *dice.sample(wrong, 3)]
    question = dice.pick(("Which formula gives the {} from {} and {}?", "How do you find the {} from {} and {}?"))
    asked = question.format(law.result, law.left, law.right)
    return _options(_about("formula", options), "formula", asked, "The law is", options, dice)


def _scaling(dice: Dice) -> Problem:
    law, cause, other, change, effect = _variation(dice)
    others = [c.result for c in CHANGES if c is not effect] + [UNCHANGED]
    options = [effect.result, *dice.sample(others, 3)]
    question = f"The {cause} {change.cause} and the {other} stays the same. What happens to the {law.result}?"
    lead = f"{law.formula}, so"
    return _options(f"{law.formula}: {cause} {change.cause}", "scaling", question, lead, options, dice)


def _computed(dice: Dice) -> Problem:
    law, a, b = _numbers(dice)
    steps, value = _worked(law, a, b)
    wrong = [a * b if law.operator == "/" else a + b, a - b, a + 2 * b, value + 1, value + 10, value * 2]
    values = [value, *dice.sample([v for v in dict.fromkeys(wrong) if v > 0 and v != value], 3)]
    options = [f"{v:g} {law.unit}" for v in values]
    question = f"{_situation(law, a, b, dice)} {dice.pick(ASKS).format(law.result)}"
    return _options(_case(law, a, b), "computed", question, f"{steps} That is", options, dice)


def _instrument(dice: Dice) -> Problem:
    quantity = dice.pick(list(INSTRUMENTS))
    others = [name for key, name in INSTRUMENTS.items() if key != quantity]
    options = [INSTRUMENTS[quantity], *dice.sample(others, 3)]
    question = dice.pick(("Which instrument measures {}?", "What do you need to measure {}?")).format(quantity)
    lead = f"The instrument for {quantity} is the"
    return _options(_about(f"instrument for {quantity}", options), "instrument", question, lead, options, dice)


def _direction(dice: Dice) -> Problem:
    kind, right, wrong = ("vector", VECTORS, SCALARS) if dice.chance(50) else ("scalar", SCALARS, VECTORS)
    options = [dice.pick(right), *dice.sample(wrong, 3)]
    question = dice.pick(("Which of these is a {}?", "Find the {}.")).format(kind)
    return _options(_about(kind, options), "direction", question, f"A {kind} is", options, dice)


FORMS = (_unit, _measured, _formula, _scaling, _computed, _instrument, _direction)
