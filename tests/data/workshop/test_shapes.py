"""Shapes are told by how an output looks; encodings and literals are mended only where that is exact."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.data.workshop.config import MEANING, REWRITABLE, StandardiseConfig
from finetrial.data.workshop.encoding import MOJIBAKE, remove_control, repair_mojibake
from finetrial.data.workshop.literals import read_structure
from finetrial.data.workshop.rewrite import STEPS, rewrite
from finetrial.data.workshop.shapes import shapes

CONFIG = StandardiseConfig()

OUTPUTS = {
    "missing": [None],
    "object": [{"a": 1}],
    "list": [["a", "b"]],
    "number": [12, 2.5, True],
    "empty": ["", {}, []],
    "blank": [" \n\t "],
    "tiny": ["C", " ab "],
    "lost": ["a replacement \ufffd here", "a lone \ud800 surrogate", "donâ€?t know"],
    "mojibake": ["cafÃ© at noon", "a â€œquoteâ€\x9d here", "48 Ã— 3 = 144", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ðŸ˜€ smile"],
    "control": ["a\x00b is here", "\ufeffmarked text", "the half is \x0crac{1}{2}"],
    "markers": ["[INST] what [/INST] that", "Assistant: yes, of course", "the end</s>", "### Response:\nyes, it is"],
    "fence": ['```json\n{"a": 1}\n```', "```\n{'a': 1}\n```"],
    "quoted": ['"He said \\"no\\" and left"', '"first\\nsecond"'],
    "json": ['{"answer": "B"}', ' {"a": {"b": [1, null]}} ', '{"t": "$\\\\theta$"}'],
    "json_list": ['["a", "b", "c"]', "[[1, 2], [3, 4]]"],
    "python": ["{'answer': None, 'b': True}", "{'a': 'it\\'s'}"],
    "python_list": ["['a', 'b', 'c']", "('one', 'two')"],
    "lines": ["{'v': 'speed'}\nThe symbol v is the speed.", "[1, 2]\n[3, 4]"],
    "broken": [
        '{"answer": "B", "steps": ["one", "tw',
        '{"a": "\\circ and \\mu"}',
        '{"value": $19$, "unit": "m"}',
        '{"a": "one\ntwo"}',
        '["a", "b",]',
        '{"r": 20*pi/180}',
        "{answer: 5}",
    ],
    "embedded": ['The result is {"answer": "B"} as asked.', "block\n[{'name': 'weight'}]"],
}
PLAIN = [
    "A sentence.",
    "{10}^{2}",
    "{L}_{3y}=+43.3 m",
    "{x | x > 2}",
    "[1] Smith et al. found this.",
    "[vector diagram]",
    "[$m^3$] is the unit",
    "(a) is right",
    '"No," he said, "never."',
    "He said “no” – and left…",
    "MAÇÃ” ESPAÑA",
    "„Ä“ is a letter",
    "the letter «À»",
    "```python\nprint(1)\n```",
    "```json\nof one\n```\nand\n```json\nof another\n```",
    "Émile naïve Ångström façade",
    "The human: a mammal",
    "\\frac{1}{2} \\times \\theta",
    "two\nlines\tand a tab\r\n",
]


@pytest.mark.parametrize(("shape", "value"), [(shape, value) for shape in OUTPUTS for value in OUTPUTS[shape]])
def test_every_shape_is_found(shape: str, value: object) -> None:
    assert shape in shapes(value, "", CONFIG)


@pytest.mark.parametrize("text", PLAIN)
def test_text_that_only_resembles_a_shape_has_none(text: str) -> None:
    assert shapes(text, "", CONFIG) == ()


def test_shapes_need_their_prompt_or_pattern() -> None:
    prompt = "How large is the momentum of the bird?"
    assert shapes(f"{prompt} It is 4.", prompt, CONFIG) == ("echo",)
    assert shapes("Yes, it is.", "Yes", CONFIG) == ()
    strict = StandardiseConfig(match=r"(?s).*Answer: .+")
    assert shapes("It is so. Answer: B", "", strict) == ()
    assert shapes("It is so.", "", strict) == ("unlike",)


def test_content_in_parts_is_text() -> None:
    assert shapes([{"type": "text", "text": "hello there"}], "", CONFIG) == ()


def test_every_shape_has_a_meaning_and_every_rewritable_one_a_step() -> None:
    assert set(STEPS) == REWRITABLE
    assert set(OUTPUTS) | {"echo", "unlike", "duplicate", "conflict"} == set(MEANING)


@given(st.text(st.characters(codec="cp1252", min_codepoint=0xA0), min_size=2).map(lambda t: f"a {t} b"))
def test_mojibake_is_undone_exactly_or_not_at_all(text: str) -> None:
    try:
        damaged = text.encode().decode("cp1252")
    except UnicodeDecodeError:
        return
    repaired = repair_mojibake(damaged)
    if repaired != damaged and MOJIBAKE.search(text) is None and MOJIBAKE.sub("", damaged).isascii():
        assert repaired == text


@given(st.text())
def test_repairs_settle_at_once(text: str) -> None:
    assert repair_mojibake(repair_mojibake(text)) == repair_mojibake(text)
    assert remove_control(remove_control(text)) == remove_control(text)


@given(st.text(st.characters(codec="ascii")))
def test_ascii_is_never_mojibake(text: str) -> None:
    assert repair_mojibake(text) == text


def test_doubled_mojibake_and_emoji() -> None:
    twice = "café".encode().decode("cp1252").encode().decode("cp1252")
    assert repair_mojibake(f"the {twice} door") == "the café door"
    assert repair_mojibake("😀".encode().decode("cp1252")) == "😀"
    assert repair_mojibake("你好".encode().decode("cp1252")) == "你好"
    assert remove_control("\x08eta and \x0crac{1}{2} and \x07lpha") == "\\beta and \\frac{1}{2} and \\alpha"


SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@given(st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), VALUES, min_size=1))
def test_what_json_and_python_write_is_read_back(value: dict[str, object]) -> None:
    as_json = read_structure(json.dumps(value))
    assert as_json is not None
    as_python = read_structure(repr(value))
    assert as_python is not None
    if not as_json.repairs:  # "\beta" as an escape is kept as the command that it resembles
        assert as_json.value == value
    if not as_python.repairs:
        assert as_python.value == value


@pytest.mark.parametrize(
    ("text", "value", "repairs"),
    [
        ('{"a": "\\frac{1}{2}\\theta"}', {"a": "\\frac{1}{2}\\theta"}, ("LaTeX commands",)),
        ('{"a": "\\alpha \\circ"}', {"a": "\\alpha \\circ"}, ("LaTeX commands", "backslashes")),
        ('{"a": $-9.4$, "b": [-$5.0$]}', {"a": "$-9.4$", "b": ["-$5.0$"]}, ("bare $maths$",)),
        ('{"a": "x\ny"}', {"a": "x\ny"}, ("line breaks",)),
        ('["a, ]", "b",\n]', ["a, ]", "b"], ("commas",)),
        ("{'a': '\\frac'}", {"a": "\\frac"}, ("LaTeX commands",)),
    ],
)
def test_what_latex_and_editors_break_is_mended(text: str, value: object, repairs: tuple[str, ...]) -> None:
    structure = read_structure(text)
    assert structure is not None
    assert (structure.value, structure.repairs) == (value, repairs)


@pytest.mark.parametrize(
    "text", ['{"a": "b', '{"a": 1} and more', "{'a', 'b'}", "[" * 100_000, "[" + "9" * 5000, "{x}"]
)
def test_what_would_have_to_be_guessed_is_no_structure(text: str) -> None:
    assert read_structure(text) is None


HOSTILE = [
    '"' + "\\n" * 200_000,
    "```\n" + " " * 200_000 + "x",
    "Assistant:" + "\n" * 200_000,
    "</s>" + " \n" * 100_000 + "x",
    "{'a': " + "[" * 50_000,
    "[" + "-" * 50_000 + "1]",
    "[1" + "+1" * 50_000 + "]",
    '{"a": ' + '"b", ' * 50_000,
    "[" + '"],' * 50_000,
    "{" + " " * 200_000,
    "\\" * 200_000,
    "{\\" * 50_000,
    "Ã" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    rewrite(text, "", CONFIG)
    assert time.process_time() - began < 5
