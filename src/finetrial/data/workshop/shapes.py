"""The shape of an output, told by how it looks and not by whether a parser accepts it."""

import re
from collections.abc import Mapping
from typing import Any

from finetrial.data.workshop import encoding
from finetrial.data.workshop.config import StandardiseConfig
from finetrial.data.workshop.literals import EMBEDDED, begins_structure, has_leading_line, is_broken, read_structure

_SPECIAL = (
    r"<\|(?:im_start|im_end|endoftext|eot_id|eom_id|begin_of_text|end_of_text|start_header_id|end_header_id"
    r"|system|user|assistant|end|pad)\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<bos>|<eos>"
)
_HEADING = r"#{2,3} ?(?:Instruction|Input|Response|Human|Assistant|User|System)s?\s*:"
_SPEAKER = r"(?:Human|User|Assistant|System|AI|Bot)\s*:"

MARKER = re.compile(rf"{_SPECIAL}|{_HEADING}|^\s*{_SPEAKER}|\n[ \t]*(?:Human|User)[ \t]*:|^\s*<s>|</s>\s*$")
LEADING = re.compile(
    r"(?:\s*(?:<\|im_start\|>assistant\s*|<\|start_header_id\|>assistant<\|end_header_id\|>\s*|<start_of_turn>model\s*"
    r"|<\|assistant\|>|\[/INST\]|<s>|<bos>|<\|begin_of_text\|>|#{2,3} ?(?:Response|Assistant)\s*:"
    r"|(?:Assistant|AI|Bot)\s*:))+\s*"
)
TRAILING = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>", "<eos>",
)  # fmt: skip
"""What ends a turn."""
_STRING = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)
_ESCAPED = re.compile(r'\\(?:n|t|"|u[0-9A-Fa-f]{4})')

SHORTEST_ECHO = 20
"""Characters below which an output that begins with the prompt is no echo but an answer."""


def fenced(text: str) -> tuple[str, str] | None:
    """(language, content) of a text that is one Markdown fence as a whole, or None."""
    stripped = text.strip()
    if not stripped.startswith("```") or not stripped.endswith("```"):
        return None
    head, found, body = stripped[3:-3].partition("\n")
    return (head.strip().lower(), body.strip()) if found and "`" not in head and "```" not in body else None


def is_content_parts(value: Any) -> bool:
    """Whether a list is a message content in parts (`{"type": "text", ...}`), which is text in another spelling."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) and "type" in v for v in value)


def shapes(value: Any, prompt: str, config: StandardiseConfig) -> tuple[str, ...]:
    """Every shape in `config.MEANING` that an output has, in that order; none for plain text.

    `duplicate` and `conflict` are facts of a row among others and never returned here.
    """
    if value is None:
        return ("missing",)
    if isinstance(value, Mapping):
        return ("object",) if value else ("empty",)
    if isinstance(value, (list, tuple)):
        return () if is_content_parts(value) else ("list",) if value else ("empty",)
    if not isinstance(value, str):
        return ("number",)
    if not value.strip():
        return ("blank",) if value else ("empty",)
    found = ["tiny"] if len(value.strip()) <= config.tiny else []
    found += _of_characters(value)
    found += _of_wrapping(value, prompt)
    if (structure := _of_structure(value)) is not None:
        found.append(structure)
    elif "fence" not in found and EMBEDDED.search(value):
        found.append("embedded")
    if config.match is not None and not re.fullmatch(config.match, value):
        found.append("unlike")
    return tuple(found)


def _of_characters(text: str) -> list[str]:
    if text.isascii():
        return ["control"] if encoding.CONTROL.search(text) else []
    repaired = encoding.repair_mojibake(text)
    facts = {
        "lost": encoding.LOST.search(repaired) is not None,
        "mojibake": repaired != text,
        "control": encoding.CONTROL.search(repaired) is not None,
    }
    return [shape for shape, holds in facts.items() if holds]


def _of_wrapping(text: str, prompt: str) -> list[str]:
    asked = prompt.strip()
    fence, stripped = fenced(text), text.strip()
    facts = {
        "markers": MARKER.search(text) is not None,
        "echo": len(asked) >= SHORTEST_ECHO and text.lstrip().startswith(asked),
        "fence": fence is not None and (fence[0].startswith("json") or _of_structure(fence[1]) is not None),
        "quoted": _STRING.fullmatch(stripped) is not None and _ESCAPED.search(stripped) is not None,
    }
    return [shape for shape, holds in facts.items() if holds]


def _of_structure(text: str) -> str | None:
    if not begins_structure(text):
        return None
    structure = read_structure(text)
    if structure is None:
        return "lines" if has_leading_line(text) else "broken" if is_broken(text) else None
    if structure.dialect == "broken":
        return "broken"
    return structure.dialect if isinstance(structure.value, dict) else f"{structure.dialect}_list"
