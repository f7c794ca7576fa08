"""Built-in worlds: seeded, versioned generators of text, the same bytes on every machine.

A world is a module with `VERSION` (raised whenever its bytes change) and `generate(count, seed, split)`. Problems,
not rows, are held out: the hash of a problem decides whether it belongs to the split `base`, on which the built-in
model was trained, or to `campaign`.
"""

from collections.abc import Callable, Iterator

from finetrial.data.worlds import arithmetic, shell
from finetrial.data.worlds.dice import Split
from finetrial.records import Example

WORLDS: dict[str, Callable[[int, int, Split], Iterator[Example]]] = {
    "shell": shell.generate,
    "arithmetic": arithmetic.generate,
}

VERSIONS: dict[str, int] = {"shell": shell.VERSION, "arithmetic": arithmetic.VERSION}
