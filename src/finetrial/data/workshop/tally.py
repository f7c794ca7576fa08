"""Counts and examples by shape."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3
LONGEST = 160
"""Characters of an example that are shown."""


@dataclass
class Tally:
    """How many rows have each shape, with the first few of each."""

    rows: int = 0
    plain: int = 0
    """Rows with none of the shapes."""
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, place: str, found: dict[str, Any]) -> None:
        """Count a row: `found` is shape -> the output that has it."""
        self.rows += 1
        self.plain += not found
        for shape, value in found.items():
            self.counts[shape] += 1
            if len(self.examples[shape]) < EXAMPLES:
                self.examples[shape].append({"place": place, "output": shown(value)})


def shown(value: Any, longest: int = LONGEST) -> str:
    """A value on one line that any terminal and any file can hold: control characters and surrogates are escaped."""
    text = value if isinstance(value, str) else repr(value)
    text = text[:longest] + ("…" if len(text) > longest else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
