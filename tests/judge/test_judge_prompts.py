"""What a judge is shown."""

import pytest

from finetrial.errors import UserError
from finetrial.grade.judge_config import PROMPT_VERSION, JudgeConfig
from finetrial.identity import digest
from finetrial.judge.prompts import ASK_AGAIN, TEMPLATES, ask_again, check_template, prompt, prompt_hash
from finetrial.records import Task

BARE = Task("t1", "g", ({"role": "user", "content": "Why is the sky blue?"},), "")
FULL = Task(
    "t2",
    "g",
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which one?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": '{"x": 1}'}]},
        {"role": "tool", "content": "seen"},
        {"role": "user", "content": "So?"},
    ),
    "B",
    meta={"choices": {"A": "red {{ 1 }}", "B": "blue"}, "rubric": [["names blue", "says azure"], "is brief"]},
)
SINGLE = JudgeConfig(model="judge", rubric="Count the {% ideas %}.")
PAIR = JudgeConfig(model="judge", kind="pairwise")


def test_everything_that_an_item_has_is_shown():
    text = prompt(FULL, SINGLE, ["<think>hm</think>It is B."])
    for shown in ("Be brief.", "Which one?", 'look({"x": 1})', "seen", "So?", "A. red {{ 1 }}\nB. blue", "It is B."):
        assert shown in text
    assert "<reference_answer>\nB\n</reference_answer>" in text
    assert "Count the {% ideas %}.\n- names blue / says azure\n- is brief" in text
    assert "from 1 to 10" in text
    assert "hm" not in text.split()
    assert "There is no reference answer" not in text


def test_what_an_item_lacks_leaves_no_trace():
    text = prompt(BARE, JudgeConfig(model="judge", scale=(0, 1)), [""])
    assert "<question>\nWhy is the sky blue?\n</question>\n\n<answer>\n(the answer is empty)\n</answer>" in text
    assert "There is no reference answer" in text
    for absent in ("options", "rubric", "<reference_answer>"):
        assert absent not in text
    assert "from 0 to 1" in text


def test_a_pair_is_shown_in_its_order():
    text = prompt(FULL, PAIR, ["first", "second"])
    assert "<answer_a>\nfirst\n</answer_a>\n\n<answer_b>\nsecond\n</answer_b>" in text
    assert "A. red" in text


def test_built_in_wording_belongs_to_its_version():
    """Whoever changes a template raises PROMPT_VERSION, for judgments of other wording are others."""
    assert PROMPT_VERSION == 1
    assert digest([TEMPLATES, ASK_AGAIN])[:16] == "c969b81077db7515"


def test_a_template_that_hides_the_question_is_refused():
    hiding = JudgeConfig(model="judge", template="Reference {{ reference }}, answer {{ answer }}")
    with pytest.raises(UserError, match="does not show question, which item 't1' has"):
        check_template(hiding, [BARE])


def test_a_template_must_show_what_some_items_have():
    config = JudgeConfig(model="judge", template="{{ question }} {{ answer }} {% if reference %}see{% endif %}")
    check_template(config, [BARE])
    with pytest.raises(UserError, match="does not show options, reference, rubric, which item 't2' has"):
        check_template(config, [BARE, FULL])
    never = "{{ question }} {{ answer }} {% if low == 5 %}{{ reference }}{{ options }}{{ rubric }}{% endif %}"
    with pytest.raises(UserError, match="does not show options, reference, rubric"):
        check_template(JudgeConfig(model="judge", template=never), [FULL])


def test_a_template_of_a_user_that_shows_all_is_taken():
    template = "Q {{ question }} O {{ options }} R {{ reference }} {{ rubric }} A {{ answer }} {{ low }}-{{ high }} {x}"
    config = JudgeConfig(model="judge", template=template, scale=(0, 5))
    check_template(config, [BARE, FULL])
    assert prompt(BARE, config, ["it"]) == "Q Why is the sky blue? O  R   A it 0-5 {x}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ question }} {{ answr }}", r"the field 'answr' \(did you mean 'answer'\?\)"),
        ("{{ question }} {% if %}", "no Jinja template"),
        ("{{ question }} {{ answer }} {{ ''.__class__.__mro__ }}", "cannot be rendered"),
    ],
)
def test_a_template_with_mistakes_is_refused_at_load(template: str, message: str):
    with pytest.raises(UserError, match=message):
        check_template(JudgeConfig(model="judge", template=template), [BARE])


def test_wording_has_an_identity():
    hashes = {
        prompt_hash(config)
        for config in (
            SINGLE, PAIR, JudgeConfig(model="judge"), JudgeConfig(model="judge", scale=(0, 1)),
            JudgeConfig(model="judge", template="{{ question }} {{ answer }}"),
        )
    }  # fmt: skip
    assert len(hashes) == 5
    assert prompt_hash(JudgeConfig(model="another")) == prompt_hash(JudgeConfig(model="judge"))


def test_the_second_question_names_the_problem():
    assert "could not be read: 11 is outside 1 to 10." in ask_again(SINGLE, "11 is outside 1 to 10")
    assert '{"reason": "<one sentence>", "score": <a number from 1 to 10>}' in ask_again(SINGLE, "x")
    assert '"A" or "B" or "tie"}' in ask_again(PAIR, "x")
