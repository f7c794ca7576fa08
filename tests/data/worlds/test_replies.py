"""Replies of the grammar are perfect, noise is worthless, and every breach costs what the docstring says."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.data.worlds import replies
from finetrial.data.worlds.dice import Dice
from finetrial.data.worlds.phrases import DAYS, GREETINGS, KINDS, LIMITS, NAMES
from finetrial.data.worlds.prose import content_words, has_phrase, is_prose, words

EXAMPLES = list(replies.generate(3000, 7, "campaign"))
SLOTS = {"name": "Anna", "day": "Friday", "thing": "rice", "avoid": "beans"}
META = {
    "required": ["Anna", "Friday", "the loud music"],
    "ideas": [["sorry", "i apologise"]],
    "forbidden": ["beans"],
    "limit": 12,
}


def test_every_reply_of_the_grammar_is_perfect() -> None:
    assert {replies.quality(row.messages[1]["content"], row.meta) for row in EXAMPLES} == {1.0}


def test_the_bare_request_does_not_pass() -> None:
    """Also without the sentence about the limit, which is what a model that echoes would be cut to."""
    for row in EXAMPLES:
        request = row.messages[0]["content"]
        assert replies.quality(request, row.meta) < 1
        spoken = words(request)
        assert not all(any(has_phrase(spoken, p) for p in phrases) for phrases in row.meta["ideas"])


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "...", "???", "asdf qwer zxcv", "the of and to", "Answer: 12", "1 2 3."]
)
def test_noise_is_worth_nothing(text: str) -> None:
    for row in EXAMPLES[:200]:
        assert replies.quality(text, row.meta) == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Anna, I am sorry for the loud music on Friday.", 1.0),
        ("ANNA! so sorry: Friday, the music, it was loud!", 1.0),
        ("I apologise, Anna, for the music on Friday, so loud it was!", 1.0),
        ("I am sorry for the loud music on Friday.", 3 / 4),
        ("Anna, the loud music on Friday was great.", 3 / 4),
        ("I am sorry, Anna.", 2 / 4),
        ("I am sorry.", 1 / 4),
        ("Anna, I am sorry for the loud music on Friday", 1 / 2),
        ("Anna, I am sorry for the loud music on Friday and beans.", 1 / 2),
        ("Anna, I am so very sorry for the loud music that we had on Friday.", 1 / 2),
        ("Anna sorry loud music Friday.", 1 / 2),
        ("Anna sorry loud music Friday", 1 / 4),
        ("Annabel is sorry for loudness and musical fridays.", 1 / 4),
    ],
)
def test_partial_credit(text: str, value: float) -> None:
    assert replies.quality(text, META) == pytest.approx(value)


@given(st.text(max_size=200), st.sampled_from(EXAMPLES[:50]))
def test_quality_is_a_number_from_0_to_1_for_any_text(text: str, row: replies.Example) -> None:
    assert 0 <= replies.quality(text, row.meta) <= 1


@given(st.sampled_from(EXAMPLES))
def test_a_reply_fulfils_its_request_where_its_quality_is_whole(row: replies.Example) -> None:
    reply = str(row.messages[-1]["content"])
    assert replies.fulfils(reply, row.meta) == 1
    assert replies.fulfils(f"{reply} " + "and so on " * 40, row.meta) == 0
    assert replies.fulfils("", row.meta) == 0


@given(st.sampled_from(EXAMPLES), st.data())
def test_dropping_a_slot_lowers_quality(row: replies.Example, data: st.DataObject) -> None:
    slot = data.draw(st.sampled_from(row.meta["required"]))
    text = row.messages[1]["content"]
    for word in content_words(slot):
        text = " ".join(part for part in text.split() if words(part) != [word])
    assert replies.quality(text, row.meta) < 1


@pytest.mark.parametrize("name", KINDS)
def test_every_prompt_has_hundreds_of_acceptable_replies(name: str) -> None:
    kind, dice = KINDS[name], Dice(0, "test", name)
    slots = {**SLOTS, "thing": kind.things[0], "avoid": kind.things[1]}
    required = [slots["name"], slots["day"], slots["thing"]]
    meta = {"required": required, "ideas": kind.ideas, "forbidden": [slots["avoid"]] if kind.avoids else []}
    for limit, least in ((min(LIMITS), 150), (max(LIMITS), 900)):
        texts = {replies.compose(kind, slots, limit, dice) for _ in range(1500)}
        assert len(texts) >= least
        assert {replies.quality(text, {**meta, "limit": limit}) for text in texts} == {1.0}


@pytest.mark.parametrize("name", KINDS)
def test_the_shortest_limit_leaves_room_for_every_greeting_and_core(name: str) -> None:
    kind = KINDS[name]
    longest = max(GREETINGS, key=lambda greeting: len(words(greeting.format(name="Anna"))))
    for core, thing, *fillers in product(kind.cores, kind.things, *kind.fillers.values()):
        filled = {**SLOTS, "thing": thing, **dict(zip(kind.fillers, fillers, strict=True))}
        assert len(words(f"{longest}, {core}".format(**filled))) <= min(LIMITS)


@pytest.mark.parametrize("name", KINDS)
def test_phrases_of_a_kind_keep_its_promises(name: str) -> None:
    """Cores name every slot and show every idea; further sentences name no thing that could be forbidden."""
    kind = KINDS[name]
    for core in kind.cores:
        assert all(slot in core for slot in ("{day}", "{thing}")), core
    if kind.avoids:
        things = set().union(*map(content_words, kind.things))
        free = [*kind.extras, *(text for texts in kind.fillers.values() for text in texts)]
        assert not any(set(words(text)) & things for text in free)


def test_every_kind_name_and_day_occurs() -> None:
    assert {row.meta["kind"] for row in EXAMPLES} == set(KINDS)
    assert {row.meta["required"][0] for row in EXAMPLES} == set(NAMES)
    assert {row.meta["required"][1] for row in EXAMPLES} == set(DAYS)
    assert len(set(NAMES)) == len(NAMES)


def test_what_a_dinner_must_avoid_is_asked_for_and_absent() -> None:
    for row in EXAMPLES:
        for text in row.meta["forbidden"]:
            assert text in row.messages[0]["content"]
            assert text not in row.messages[1]["content"]


def test_prose_is_told_from_keywords_and_loops() -> None:
    assert is_prose(words("I will come to you on Friday."))
    assert not is_prose(words("Anna dinner Friday kettle"))
    assert not is_prose(words("I am I am I am I am I am"))
    assert not is_prose([])
    assert words("Don\u2019t forget: caf\u00e9, 2 x!") == ["don't", "forget", "café", "2", "x"]
    assert has_phrase(words("So, thank you!"), "thank you")
    assert not has_phrase(words("thank your"), "thank you")
