"""Instructions that functions check: examples, laws, and the way to them as graders."""

import json as json_format

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrial.errors import UserError
from finetrial.evaluate.instructions import (
    CHECKS,
    checked,
    followed,
    followed_loosely,
    loose,
    loose_share,
    strict,
    strict_share,
)
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import grader
from finetrial.records import Task


@pytest.mark.parametrize(
    ("text", "name", "arguments", "right"),
    [
        ("One two-three, don't stop.", "words", {"exactly": 4}, True),
        ("Ein schöner Tag — 3 Wörter?", "words", {"exactly": 5}, True),
        ("One. Two! Three?", "sentences", {"exactly": 3}, True),
        ("It is 3.5 m. And then", "sentences", {"exactly": 2}, True),
        ("你好。再见！", "sentences", {"exactly": 2}, True),
        ('He said "Stop." Then left.', "sentences", {"exactly": 2}, True),
        ("a\n\nb\n \nc\nd", "paragraphs", {"exactly": 3}, True),
        ("a\n\nb\n", "lines", {"exactly": 2}, True),
        ("- a\n* b\n• c\n+ d\n-e\n1. f", "bullets", {"exactly": 4}, True),
        ("1. a\n2) b\n3 c", "numbered", {"exactly": 2}, True),
        ("*a* and **b c**, 2 * 3 * 4", "highlights", {"exactly": 2}, True),
        ("Dear [name], at [address]", "placeholders", {"at_least": 2}, True),
        ("The Sea and the shore", "contains", {"keywords": ["sea", "SHORE"]}, True),
        ("The season", "contains", {"keywords": ["sea"]}, False),
        ("The season", "avoids", {"keywords": ["sea"]}, True),
        ("a, b", "avoids", {"keywords": [","]}, False),
        ("sea Sea seas", "keyword", {"keyword": "sea", "exactly": 2}, True),
        ("A, b, c", "characters", {"of": ",", "exactly": 0}, False),
        ("Anna", "characters", {"of": "a", "exactly": 2}, True),
        ("  Well, yes", "begins_with", {"phrase": "Well,"}, True),
        ("So long.\n", "ends_with", {"phrase": "long."}, True),
        ("So Long.", "ends_with", {"phrase": "long."}, False),
        ("yes \n", "one_of", {"options": ["yes", "no"]}, True),
        ("yes!", "one_of", {"options": ["yes", "no"]}, False),
        ("all small, 3", "lower_case", {}, True),
        ("123", "lower_case", {}, False),
        ("LARGE É", "upper_case", {}, True),
        ("A NATO and EU thing", "capital_words", {"exactly": 2}, True),
        ('"So be it."', "quoted", {}, True),
        ('"So" be', "quoted", {}, False),
        ("<<On the sea>>\nText", "title", {}, True),
        ("<<>>", "title", {}, False),
        ('```json\n{"a": [1]}\n```', "json", {"keys": ["a"]}, True),
        ('{"a": 1}', "json", {"keys": ["b"]}, False),
        ("3", "json", {}, False),
        ("{'a': 1}", "json", {}, False),
        ("[" * 100_000, "json", {}, False),
    ],
)
def test_examples(text, name, arguments, right):
    assert CHECKS[name](text, **arguments) is right
    assert followed(text, [{"name": name, **arguments}]) == [right]


TEXT = st.text(st.sampled_from("abC .!?\n*-,\"'1[]{}"), max_size=40)
COUNTED = [name for name in CHECKS if name not in
           ("contains", "avoids", "begins_with", "ends_with", "one_of", "lower_case", "upper_case", "quoted", "title",
            "json", "keyword", "characters")]  # fmt: skip


@settings(deadline=None)
@given(TEXT, st.sampled_from(COUNTED), st.integers(1, 6))
def test_bounds_divide_every_count(text, name, count):
    check = CHECKS[name]
    assert check(text, at_least=count) is not check(text, at_most=count - 1)
    assert check(text, exactly=count) is (check(text, at_least=count) and check(text, at_most=count))


@settings(deadline=None)
@given(TEXT, TEXT, st.sampled_from(("begins_with", "ends_with", "contains", "avoids")))
def test_what_is_put_in_is_found(text, phrase, name):
    if not phrase.strip() or not text.strip():
        return
    if name == "begins_with":
        assert CHECKS[name](phrase.strip() + text, phrase=phrase)
    elif name == "ends_with":
        assert CHECKS[name](text + phrase.strip(), phrase=phrase)
    else:
        found = CHECKS["contains"](f"{text} {phrase} {text}", keywords=[phrase])
        assert found
        assert CHECKS["avoids"](f"{text} {phrase} {text}", keywords=[phrase]) is not found


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@settings(deadline=None)
@given(JSON)
def test_what_is_written_as_json_is_json(value):
    text = json_format.dumps(value, indent=1)
    assert CHECKS["json"](text) is isinstance(value, (list, dict))
    assert CHECKS["json"](f"```json\n{text}\n```") is isinstance(value, (list, dict))


@settings(deadline=None)
@given(TEXT)
def test_loosely_is_never_stricter(text):
    asked = [{"name": name, "at_most": 3} for name in COUNTED] + [{"name": "json"}, {"name": "lower_case"}]
    assert all(
        loosely or not strictly
        for strictly, loosely in zip(followed(text, asked), followed_loosely(text, asked), strict=True)
    )


def test_loosely_forgives_an_introduction_a_farewell_and_markup():
    asked = [{"name": "json"}, {"name": "words", "at_most": 3}, {"name": "begins_with", "phrase": "{"}]
    text = 'Sure, here it is:\n**{"a": 1}**\nThat was it.'
    assert followed(text, asked) == [False, False, False]
    assert followed_loosely(text, asked) == [True, True, True]


def test_an_empty_answer_follows_nothing():
    meta = {"instructions": [{"name": "avoids", "keywords": ["sea"]}, {"name": "words", "at_most": 3}]}
    for text in ("", " \n", "<think>ships", "<think>no sea</think>"):
        assert strict(text, meta) == loose(text, meta) == strict_share(text, meta) == loose_share(text, meta) == 0
    assert strict("<think>The sea!</think>Ships", meta) == 1
    assert strict_share("A ship on the shore", meta) == 0.5


def test_they_are_reached_as_graders():
    ask = ({"role": "user", "content": "Answer in three words, without commas."},)
    asked = [{"name": "words", "exactly": 3}, {"name": "characters", "of": ",", "exactly": 0}]
    task = Task("t", "t", ask, "Yes I do", meta={"instructions": asked})
    config = GraderConfig(kind="function", function="finetrial.evaluate.instructions:strict_share", timeout_s=60)
    with grader(config) as one:
        grades = one.grade([task] * 3, ["Yes I do", "Yes, I do", ""])
    assert [grade.value for grade in grades] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, "expected a list of objects"),
        ([], "expected a list of objects"),
        ([{"name": "word", "at_most": 3}], "no instruction 'word'.*did you mean 'words'"),
        ([{"name": "words", "atmost": 3}], "words has no 'atmost'.*did you mean 'at_most'"),
        ([{"name": "words"}], "words counts; give at_least, at_most or exactly"),
        ([{"name": "words", "at_most": "3"}], "words.at_most is '3'; expected a count"),
        ([{"name": "contains"}], "contains needs keywords"),
        ([{"name": "contains", "keywords": "sea"}], "contains.keywords is 'sea'; expected a list of texts"),
        ([{"name": "ends_with", "phrase": ""}], "ends_with.phrase is ''; expected a text"),
        ([{"name": "title", "at_least": 1}], "title has no 'at_least'"),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused(asked, message):
    with pytest.raises(UserError, match=message):
        checked(asked)
