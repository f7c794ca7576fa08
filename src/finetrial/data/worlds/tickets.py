"""The tickets world: the requests of the replies world, to be filed as a form instead of answered.

A task that the built-in base has never seen, in words that it knows: it would answer such a request with a message.
Learning it is quick, and so is forgetting how to answer.
"""

from collections.abc import Iterator, Mapping

from finetrial.data.worlds.dice import Dice, Split, check_request, split_of
from finetrial.data.worlds.phrases import KINDS
from finetrial.data.worlds.replies import group_of, slots_of
from finetrial.records import Example

VERSION = 1

TITLES = {
    "apology": "apology",
    "invitation": "visit",
    "thanks": "gift",
    "delay": "delay",
    "dinner": "dinner",
    "cafe": "café",
    "praise": "news",
    "reminder": "task",
}
"""Kind of message -> what its ticket calls it: none of the words that a message of the kind would do with."""

WORDINGS = ("File this as a ticket.", "Make a ticket of it.", "Put it into a ticket.")


def generate(count: int, seed: int, split: Split) -> Iterator[Example]:
    """Yield `count` requests with their tickets; `meta` holds `kind` and `answer`, the ticket itself.

    The group is that of the replies world, and it decides the split: a request that a model was trained to answer is
    never one that it is asked to file.
    """
    check_request(count, split)
    produced = candidate = 0
    while produced < count:
        dice = Dice(seed, "worlds/tickets", VERSION, candidate)
        candidate += 1
        name = dice.pick(list(KINDS))
        slots = slots_of(KINDS[name], dice)
        group = group_of(name, slots)
        if split_of(group) != split:
            continue
        request = dice.pick(KINDS[name].requests).format(**slots)
        ticket = form(name, slots)
        yield Example(
            id=f"tickets-{split}-{seed}-{produced}",
            group=group,
            messages=(
                {"role": "user", "content": f"{request} {dice.pick(WORDINGS)}"},
                {"role": "assistant", "content": ticket},
            ),
            meta={"kind": name, "answer": ticket},
        )
        produced += 1


def form(kind: str, slots: Mapping[str, str]) -> str:
    """For whom, what, about what and when, in one line; `no` names what must not appear."""
    avoided = f", no {slots['avoid']}" if "avoid" in slots else ""
    return f"{slots['name']}, {TITLES[kind]}: {slots['thing']} on {slots['day']}{avoided}."
