"""Tickets say what was asked in one form, and are no answers to what was asked."""

from finetrial.data.tasks import TaskConfig, read_tasks
from finetrial.data.worlds import replies, tickets
from finetrial.data.worlds.phrases import KINDS
from finetrial.data.worlds.prose import content_words, has_any, words

EXAMPLES = list(tickets.generate(2000, 7, "campaign"))


def test_the_form_of_each_kind() -> None:
    slots = {"name": "Anna", "day": "Friday", "thing": "rice"}
    assert tickets.form("dinner", {**slots, "avoid": "beans"}) == "Anna, dinner: rice on Friday, no beans."
    assert tickets.form("praise", {**slots, "thing": "the exam"}) == "Anna, news: the exam on Friday."
    assert set(tickets.TITLES) == set(KINDS) == {row.meta["kind"] for row in EXAMPLES}
    assert len(set(tickets.TITLES.values())) == len(KINDS)


def test_a_ticket_follows_from_its_request() -> None:
    for row in EXAMPLES:
        request, ticket = (message["content"] for message in row.messages)
        title = tickets.TITLES[row.meta["kind"]]
        assert content_words(ticket) - set(words(title)) <= set(words(request)), ticket


def test_a_ticket_is_no_reply_to_the_request() -> None:
    """None of a kind's ideas is expressed by its ticket: who files what should be answered loses the skill."""
    for row in EXAMPLES:
        kind = KINDS[row.meta["kind"]]
        assert not any(has_any(words(row.messages[1]["content"]), phrases) for phrases in kind.ideas)


def test_requests_are_divided_between_the_splits_as_those_of_replies_are() -> None:
    answered = {row.group for row in replies.generate(3000, 3, "base")}
    assert not answered & {row.group for row in EXAMPLES}
    assert answered & {row.group for row in tickets.generate(3000, 3, "base")}


def test_a_ticket_is_graded_as_a_whole() -> None:
    found = read_tasks(TaskConfig(source="world:tickets?count=20&seed=1"))
    assert found.grader == "exact"
    assert all(task.reference == task.gold for task in found.tasks)
