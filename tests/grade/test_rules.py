"""Graders that are pure functions: exact, numeric and choice."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.quantity import read_quantity
from finetrial.grade.rules import RULES
from finetrial.grade.units import unit_of
from finetrial.records import Task


def task(reference: str, **meta: Any) -> Task:
    return Task("t", "g", ({"role": "user", "content": "?"},), reference, meta=meta)


def value(kind: str, reference: str, text: str, meta: dict[str, Any] | None = None, **options: Any) -> float | None:
    return RULES[kind](task(reference, **(meta or {})), text, GraderConfig(**options)).value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18), ("+18", 18), ("$18.00", 18), ("-$5", -5), ("$-5", -5), ("€ 5", 5), ("− 3", -3),
        ("1,234.5", Fraction(2469, 2)), ("1 234", 1234), ("12,345,678", 12_345_678), (".5", Fraction(1, 2)), ("5.", 5),
        ("3/4", Fraction(3, 4)), ("\\frac{3}{4}", Fraction(3, 4)), ("-\\frac34", Fraction(-3, 4)),
        ("1 3/4", Fraction(7, 4)), ("1\\frac{3}{4}", Fraction(7, 4)), ("½", Fraction(1, 2)), ("1½", Fraction(3, 2)),
        ("1.5e3", 1500), ("2E-2", Fraction(1, 50)), ("1.5 × 10^3", 1500), ("1.5\\times10^{-3}", Fraction(3, 2000)),
        ("6.02·10²³", 602 * 10**21), ("10^5", 100_000), ("10²", 100), ("3 million", 3_000_000), ("3 * 4 = 12", 12),
        ("x ≈ 2", 2), ("**18**", 18), ("18 eggs", 18), ("60 miles per hour", 60), ("5 m²", 5),
    ],
)  # fmt: skip
def test_numbers_as_they_are_written(text: str, number: Fraction):
    quantity = read_quantity(text)
    assert quantity is not None
    assert quantity.value == number


@pytest.mark.parametrize(
    "text",
    ["", "eggs", "1,23", "1,2345", "18 or 20", "18-20", "5 + x", "5!", "3/0", "1 2/0", "1e9999", "9" * 500, "x5",
     "18 is what she makes every day at the market", "nan", "inf", "1.2.3", "\\pi"],
)  # fmt: skip
def test_texts_that_are_no_number(text: str):
    assert read_quantity(text) is None


@pytest.mark.parametrize(
    ("reference", "text", "right"),
    [
        ("18", "Answer: $18", 1), ("18", "#### 18.0", 1), ("18", "Answer: 18 eggs.", 1),
        ("18", "Answer: 18 million", 0),
        ("18", "The eggs are 18", 0), ("18", "no idea", 0), ("18", "", 0), ("18", "Answer:", 0),
        ("18", "Answer: -18", 0),
        ("0", "0.0", 1), ("0", "1e-9", 0), ("0.5", "\\frac12", 1), ("3.14159265", "3.141592", 1),
        ("3.14159", "3.14", 0),
        ("50", "50%", 1), ("0.5", "50 %", 1), ("50%", "0.5", 1), ("50%", "50", 1), ("50%", "5%", 0),
        ("1,200", "1200", 1),
    ],
)  # fmt: skip
def test_numeric(reference: str, text: str, right: int):
    assert value("numeric", reference, text) == right


@pytest.mark.parametrize(
    ("reference", "unit", "text", "right"),
    [
        ("5", "m", "5", 1), ("5", "m", "5 m", 1), ("5", "m", "500 cm", 1), ("5", "m", "0.005 kilometers", 1),
        ("5", "m", "5 cm", 0), ("5", "m", "5 s", 0), ("36", "km/h", "10 m/s", 1),
        ("36", "km/h", "10 meters per second", 1),
        ("1", "J", "1 N m", 1), ("1", "J", "1 kg m^2/s^2", 1), ("1", "L", "1000 cm³", 1), ("1", "kWh", "3.6 MJ", 1),
        ("3", "apples", "3 apples", 1), ("3", "apples", "3 apple", 1), ("3", "apples", "3 pears", 0),
        ("2", "h", "120 min", 1),
        ("50", "%", "0.5", 1), ("50", "percent", "50 %", 1), ("5", "°C", "5 °C", 1), ("5", "°C", "5 K", 0),
    ],
)  # fmt: skip
def test_units(reference: str, unit: str, text: str, right: int):
    assert value("numeric", reference, text, {"unit": unit}) == right


def test_a_unit_of_the_reference_counts():
    assert value("numeric", "5 m", "500 cm") == 1
    assert value("numeric", "5 m", "5 s") == 0
    assert value("numeric", "$5", "5 euros") == 0
    assert value("numeric", "$5", "$5") == 1


@pytest.mark.parametrize(
    ("unit", "factor", "bases"),
    [
        ("ms", Fraction(1, 1000), (("s", 1),)), ("min", 60, (("s", 1),)), ("µm", Fraction(1, 10**6), (("m", 1),)),
        ("um", Fraction(1, 10**6), (("m", 1),)), ("Pa", 1000, (("g", 1), ("m", -1), ("s", -2))),
        ("m/s/s", 1, (("m", 1), ("s", -2))), ("m s^-2", 1, (("m", 1), ("s", -2))), ("mL", Fraction(1, 10**6),
        (("m", 3),)),
        ("ml", Fraction(1, 10**6), (("m", 3),)), ("Ω", 1000, (("A", -2), ("g", 1), ("m", 2), ("s", -3))),
    ],
)  # fmt: skip
def test_units_as_base_units(unit: str, factor: Fraction, bases: tuple[tuple[str, int], ...]):
    assert unit_of(unit) == (factor, bases)


def test_tolerance_is_relative_to_the_reference():
    assert value("numeric", "100", "104.9", tolerance=0.05) == 1
    assert value("numeric", "-100", "-95.1", tolerance=0.05) == 1
    assert value("numeric", "100", "105.1", tolerance=0.05) == 0
    assert value("numeric", "12345678901234567890", "12345678901234567891", tolerance=0) == 0


def test_relaxed_numeric_takes_the_last_number():
    text = "She sells 9 eggs, so she makes 18 dollars, I think, every day of the week."
    assert value("numeric", "18", text) == 0
    assert value("numeric", "18", text, relaxed=True) == 1
    assert value("numeric", "18", "Answer: 17, I first thought 18", relaxed=True) == 1
    assert value("numeric", "-3", "pages 5-3", relaxed=True) == 0
    assert value("numeric", "18", "nothing", relaxed=True) == 0


def test_a_reference_that_is_no_number_is_refused():
    with pytest.raises(UserError, match=r"task t: the reference 'Paris' is no number"):
        value("numeric", "Paris", "5")


CHOICES = {"choices": {"A": "Rome", "B": "Paris", "C": "A city", "D": "None of these"}}


@pytest.mark.parametrize(
    ("text", "strict", "relaxed"),
    [
        ("B", 1, 1), ("b", 1, 1), ("(B)", 1, 1), ("Answer: B", 1, 1), ("Answer: **B**.", 1, 1),
        ("\\boxed{\\text{B}}", 1, 1),
        ("[B]", 1, 1), ("A", 0, 0), ("B) Paris", 0, 1), ("B. Paris", 0, 1), ("(B) Paris", 0, 1),
        ("Answer: B: Paris", 0, 1),
        ("Paris", 0, 1), ("Answer: paris.", 0, 1), ("Rome", 0, 0), ("A city", 0, 0), ("The answer is B", 0, 1),
        ("I choose option (B).", 0, 1), ("E", 0, 0), ("", 0, 0), ("perhaps", 0, 0), ("A) Rome", 0, 0),
        ("A or B", 0, 0),
    ],
)  # fmt: skip
def test_choice(text: str, strict: int, relaxed: int):
    assert value("choice", "B", text, CHOICES) == strict
    assert value("choice", "B", text, CHOICES, relaxed=True) == relaxed


def test_choice_says_what_it_would_take_relaxed():
    grade = RULES["choice"](task("B", **CHOICES), "Paris", GraderConfig())
    assert grade.reason == "no label of an option alone: 'Paris'; relaxed, it names B"


def test_choice_without_its_options_is_refused():
    with pytest.raises(UserError, match="as a label"):
        value("choice", "E", "E", CHOICES)
    with pytest.raises(UserError, match="as a label"):
        value("choice", "A", "A")


@given(st.text(min_size=1, max_size=30).filter(lambda text: text.strip()), st.sampled_from(["", " ", "\n", "Answer:"]))
def test_an_empty_answer_is_never_right(reference: str, text: str):
    assert value("exact", reference, text) == 0
    if read_quantity(reference) is not None:
        assert value("numeric", reference, text) == 0
        assert value("numeric", reference, text, relaxed=True) == 0


@given(st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and not set(text) & set("<#:：\\")))
def test_a_reference_answers_itself(reference: str):
    assert value("exact", reference, reference) == 1
    assert value("exact", reference, f"so\n<answer>{reference}</answer>.") == 1


@given(st.fractions(max_denominator=10**6), st.integers(-9, 9))
def test_every_number_answers_itself(number: Fraction, exponent: int):
    text = f"{number.numerator}/{number.denominator}"
    assert value("numeric", text, f"Answer: {text}", tolerance=0) == 1
    assert value("numeric", f"{float(number)!r}", f"{float(number):.17g}") == 1
    scaled = f"{number.numerator}e{exponent}"
    assert value("numeric", scaled, f"{number.numerator} \\times 10^{{{exponent}}}", tolerance=0) == 1
