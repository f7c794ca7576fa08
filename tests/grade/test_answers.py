"""Where a completion gives its answer, and the one spelling that answers are compared in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.errors import UserError
from finetrial.grade.answers import boxed, compiled, find_answer, is_marked
from finetrial.grade.plain import normalised, plain


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is\nAnswer: 18", "18"),
        ("Answer: 17\nNo, wait.\nAnswer: 18\n", "18"),
        ("Answer: 16 Answer: 17", "17"),
        ("**Final Answer:** 18 eggs\nbecause", "18 eggs"),
        ("The answer is: B", "B"),
        ("Answer:\n42", "42"),
        ("ANSWER：3", "3"),
        ("worked\n#### 1,200", "1,200"),
        ("a \\boxed{3} then \\boxed{\\frac{1}{2}} ok", "\\frac{1}{2}"),
        ("\\boxed 5$ is it", "5"),
        ("set \\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("open \\boxed{3} and \\boxed{4", "3"),
        ("Answer: \\boxed{5}", "5"),
        ("\\boxed{4}\nAnswer: 5", "5"),
        ("Answer: let me see\n... \\boxed{5}", "5"),
        ("<answer>\n1 2\n3 4\n</answer> done", "1 2\n3 4"),
        ("<think>Answer: 1</think>\nAnswer: 2", "2"),
        ("Answer: 1</think>just 7", "just 7"),
        ("<think>Answer: 1", None),
        ("the answers: none of them", "the answers: none of them"),
        ("##### 5", "##### 5"),
        (" 18 ", "18"),
        ("", None),
        ("   \n", None),
        ("Answer:", ""),
    ],
)
def test_the_last_marker_holds_the_answer(text: str, answer: str | None):
    assert find_answer(text) == answer


def test_a_pattern_gives_its_last_match():
    assert find_answer("A: 1\nso\nA: 2", r"^A: (.*)$") == "2"
    assert find_answer("1 and 22", r"\d+") == "22"
    assert find_answer("#### 5", r"^A: (.*)$") is None
    with pytest.raises(UserError, match="no regular expression"):
        compiled("(")


def test_marks():
    assert is_marked("#### 5")
    assert not is_marked("five")
    assert boxed("#### 5") is None


@pytest.mark.parametrize("piece", ["\\boxed{", "answer: ", "**", "#### ", "."])
def test_a_degenerate_completion_is_read_in_linear_time(piece: str):
    find_answer(piece * 20_000)
    normalised(piece * 20_000)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", " paris. "),
        ("Paris", "**Paris!**"),
        ("$18$", "18"),
        ("\\text{Paris}", '"Paris"'),
        ("1,234,567", "1234567"),
        ("1{,}234", "1234"),
        ("\\frac12", "\\dfrac{1}{2}"),
        ("\\frac{1}{2}", "1/2"),
        ("x²", "x^2"),
        ("ﬁve", "five"),
        ("−3", "-3"),
        ("a\u00a0 b", "a b"),
        ("\\left(1, 2\\right)", "(1, 2)"),
        ("50\\%", "50%"),
    ],
)
def test_spellings_that_are_the_same(one: str, other: str):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"), [("5!", "5"), ("1,23", "123"), (".5", "5"), ("-5", "5"), ("10²", "102"), ("a b", "ab")]
)
def test_spellings_that_differ(one: str, other: str):
    assert normalised(one) != normalised(other)


@given(st.text(max_size=40))
def test_spellings_are_fixed_points_and_keep_something(text: str):
    assert plain(plain(text)) == plain(text)
    assert normalised(normalised(text)) == normalised(text)
    assert bool(plain(text)) == bool(normalised(text))
