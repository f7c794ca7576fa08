"""The replies world: short messages with many acceptable wordings, whose quality can be checked.

A prompt asks for a message of one kind (an apology, an invitation, a name for a café, ...) with slots that have to
appear in it and a limit of words. Replies are built from a grammar: greeting, core, further sentences, closing. Every
prompt has thousands of acceptable replies, so that both the quality and the diversity of samples can be measured.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from finetrial.data.worlds.dice import Dice, Split, check_request, split_of
from finetrial.data.worlds.phrases import (
    CLOSINGS,
    DAYS,
    GREETINGS,
    KINDS,
    LIMIT_WORDINGS,
    LIMITS,
    NAMES,
    Kind,
)
from finetrial.data.worlds.prose import content_words, has_any, is_prose, words
from finetrial.records import Example

VERSION = 1

FORM_PENALTY = 0.5
"""Factor of quality for every breach of form."""
ENDINGS = (".", "!", "?")


def generate(count: int, seed: int, split: Split) -> Iterator[Example]:
    """Yield `count` requests with one acceptable reply each.

    The group is the request behind its wording (kind and slots), and it decides the split. `meta` holds what
    `quality` needs: `kind`, `required` (texts whose content words must appear), `ideas` (lists of phrases, one of
    each must appear), `forbidden` (texts of which none may appear) and `limit` (words).
    """
    check_request(count, split)
    produced = candidate = 0
    while produced < count:
        dice = Dice(seed, "worlds/replies", VERSION, candidate)
        candidate += 1
        name = dice.pick(list(KINDS))
        kind = KINDS[name]
        slots = slots_of(kind, dice)
        group = group_of(name, slots)
        if split_of(group) != split:
            continue
        limit = dice.pick(LIMITS)
        request = dice.pick(kind.requests).format(**slots)
        yield Example(
            id=f"replies-{split}-{seed}-{produced}",
            group=group,
            messages=(
                {"role": "user", "content": f"{request} {dice.pick(LIMIT_WORDINGS).format(limit)}"},
                {"role": "assistant", "content": compose(kind, slots, limit, dice)},
            ),
            meta={
                "kind": name,
                "required": [text for slot, text in slots.items() if slot != "avoid"],
                "ideas": [list(phrases) for phrases in kind.ideas],
                "forbidden": [slots["avoid"]] if kind.avoids else [],
                "limit": limit,
            },
        )
        produced += 1


def slots_of(kind: Kind, dice: Dice) -> dict[str, str]:
    """Whom a request is about, when, what it is about, and what must not appear where the kind has such a thing."""
    slots = {"name": dice.pick(NAMES), "day": dice.pick(DAYS)}
    if kind.avoids:
        slots["thing"], slots["avoid"] = dice.sample(kind.things, 2)
    else:
        slots["thing"] = dice.pick(kind.things)
    return slots


def group_of(name: str, slots: Mapping[str, str]) -> str:
    """The request behind its wording."""
    return f"{name}: {', '.join(slots.values())}"


def compose(kind: Kind, slots: Mapping[str, str], limit: int, dice: Dice) -> str:
    """One reply of the grammar with at most `limit` words: greeting and core always, the rest as far as it fits."""
    filled = {**slots, **{name: dice.pick(items) for name, items in kind.fillers.items()}}
    core = dice.pick(kind.cores).format(**filled)
    if not core.startswith(("I ", filled["name"], filled["day"])):
        core = core[0].lower() + core[1:]
    text = f"{dice.pick(GREETINGS).format(**filled)}, {core}"
    further = dice.sample(kind.extras, dice.below(3))
    for sentence in [*further, dice.pick(CLOSINGS)] if dice.chance(60) else further:
        longer = f"{text} {sentence}"
        if len(words(longer)) <= limit:
            text = longer
    return text


def quality(text: str, meta: Mapping[str, Any]) -> float:
    """How well a reply does what was asked, in [0, 1]: content × 0.5^(breaches of form).

    Content is the share of requirements met: each text of `meta["required"]` counts as met when all its content
    words appear (in any order and case), each list of `meta["ideas"]` when one of its phrases appears. Breaches of
    form: more words than `meta["limit"]`; something of `meta["forbidden"]`; no full stop, exclamation or question
    mark at the end; no prose (a list of keywords, a loop). Replies of the grammar have quality 1; empty text and
    text that shares nothing with the request have 0; the bare request has less than 1.
    """
    spoken = words(text)
    present = set(spoken)
    met = [content_words(slot) <= present for slot in meta["required"]]
    met += [has_any(spoken, phrases) for phrases in meta["ideas"]]
    breaches = (
        (len(spoken) > meta["limit"])
        + has_any(spoken, meta["forbidden"])
        + (not text.rstrip().endswith(ENDINGS))
        + (not is_prose(spoken))
    )
    return sum(met) / len(met) * FORM_PENALTY**breaches


def fulfils(text: str, meta: Mapping[str, Any]) -> float:
    """1 where a reply does all that was asked (its quality is 1), else 0: the strict score, which rates count."""
    return float(quality(text, meta) == 1)
