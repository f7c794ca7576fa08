"""Built-in worlds: seeded, versioned generators of text, the same bytes on every machine.

A world is a module with `VERSION` (raised whenever its bytes change) and `generate(count, seed, split)`. Problems,
not rows, are held out: the hash of a problem decides whether it belongs to the split `base`, on which the built-in
model was trained, or to `campaign`.
"""

from collections.abc import Callable, Iterator
from functools import partial

from finetrial.data.worlds import arithmetic, physics, physics_mixed, replies, shell, tickets
from finetrial.data.worlds.dice import Split
from finetrial.records import Example

WORLDS: dict[str, Callable[[int, int, Split], Iterator[Example]]] = {
    "shell": shell.generate,
    "arithmetic": arithmetic.generate,
    "replies": replies.generate,
    "physics": physics.generate,
    "physics_choice": partial(physics.generate, kinds=("choice",)),
    "physics_numeric": partial(physics.generate, kinds=("numeric",)),
    "physics_explanation": partial(physics.generate, kinds=("explanation",)),
    "physics_mixed": physics_mixed.generate,
    "physics_clean": partial(physics_mixed.generate, clean=True),
    "tickets": tickets.generate,
}

VERSIONS: dict[str, int] = {
    "shell": shell.VERSION,
    "arithmetic": arithmetic.VERSION,
    "replies": replies.VERSION,
    "physics": physics.VERSION,
    "physics_choice": physics.VERSION,
    "physics_numeric": physics.VERSION,
    "physics_explanation": physics.VERSION,
    "physics_mixed": physics_mixed.VERSION,
    "physics_clean": physics_mixed.VERSION,
    "tickets": tickets.VERSION,
}
