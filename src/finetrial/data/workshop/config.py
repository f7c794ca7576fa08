"""What `standardise` looks for, and what it does about it."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from finetrial.errors import nearest
from finetrial.records import Config

Action = Literal["keep", "rewrite", "drop"]

FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
"""A field of a template."""

DEFAULT_RULES: dict[str, Action] = {
    "missing": "drop",
    "object": "rewrite",
    "list": "rewrite",
    "number": "rewrite",
    "empty": "drop",
    "blank": "drop",
    "tiny": "drop",
    "lost": "drop",
    "mojibake": "rewrite",
    "control": "rewrite",
    "markers": "rewrite",
    "echo": "rewrite",
    "fence": "rewrite",
    "quoted": "rewrite",
    "json": "rewrite",
    "json_list": "rewrite",
    "python": "rewrite",
    "python_list": "rewrite",
    "lines": "rewrite",
    "broken": "rewrite",
    "embedded": "keep",
    "unlike": "drop",
    "duplicate": "drop",
    "conflict": "keep",
}
"""Shape -> what is done with a row that has it, unless `[rules]` says otherwise. A shape that is kept is allowed."""

MEANING = {
    "missing": "no output at all, or null",
    "object": "an object instead of text",
    "list": "a list instead of text",
    "number": "a number or truth value instead of text",
    "empty": "the empty text, list or object",
    "blank": "nothing but white space",
    "tiny": "hardly any characters",
    "lost": "characters that cannot be brought back: U+FFFD, lone surrogates, half a mojibake",
    "mojibake": "UTF-8 that was read as Windows-1252",
    "control": "control characters, byte order marks, LaTeX commands eaten by escapes",
    "markers": "role markers or special tokens of a chat template",
    "echo": "begins by repeating the prompt",
    "fence": "a structure in a Markdown fence",
    "quoted": "a JSON string with its quotes and escapes",
    "json": "a JSON object as text",
    "json_list": "a JSON list as text",
    "python": "a Python dict as text",
    "python_list": "a Python list or tuple as text",
    "lines": "a structure on the first line, more text below",
    "broken": "begins like JSON or a Python literal and is neither",
    "embedded": "an object as text within other text",
    "unlike": "text that the declared pattern does not match",
    "duplicate": "same prompt and output as an earlier row",
    "conflict": "same prompt as an earlier row, another output",
}
"""Shape -> what it means, in the order in which they are looked for."""

REWRITABLE = frozenset(shape for shape, action in DEFAULT_RULES.items() if action == "rewrite" or shape == "embedded")
"""Shapes that can be brought to text."""


class StandardiseConfig(Config):
    """The declared format, and the rule of every shape."""

    templates: tuple[str, ...] = Field(
        default=(),
        description="texts with {fields}; an object is rendered by the first one whose fields it has and that leaves "
        "none of its keys out",
    )
    fields: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="field -> keys of objects that may fill it, first match wins"
    )
    otherwise: Literal["refuse", "labels"] = Field(
        default="refuse",
        description="an object that no template takes: refuse leaves it for the gate, labels writes `Key: value` parts",
    )
    ignore: tuple[str, ...] = Field(default=(), description="keys of objects that no template needs to take")
    join: str = Field(default="\n", description="what stands between the parts of a list")
    tiny: int = Field(default=3, ge=0, description="characters up to which an output counts as tiny")
    match: str | None = Field(default=None, description="regular expression that every output must match as a whole")
    max_dropped: float = Field(
        default=0.5, ge=0, le=1, description="share of rows above which dropping is refused as a mistake in the rules"
    )
    rules: dict[str, Action] = Field(default_factory=dict, description="shape -> keep, rewrite or drop")
    prompt_column: str | None = Field(default=None, description="column of the prompt, where it is not recognised")
    output_column: str | None = Field(default=None, description="column of the output, where it is not recognised")

    @field_validator("templates")
    @classmethod
    def _with_fields(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if not FIELD.search(template):
                raise ValueError(f"{template!r} has no {{field}}")
        return templates

    @field_validator("match")
    @classmethod
    def _compiles(cls, match: str | None) -> str | None:
        if match is not None:
            try:
                re.compile(match)
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from error
        return match

    @field_validator("rules")
    @classmethod
    def _known(cls, rules: dict[str, Action]) -> dict[str, Action]:
        for shape, action in rules.items():
            if shape not in DEFAULT_RULES:
                known = ", ".join(DEFAULT_RULES)
                raise ValueError(f"unknown shape {shape!r}{nearest(shape, DEFAULT_RULES)}; there are {known}")
            if action == "rewrite" and shape not in REWRITABLE:
                raise ValueError(f"{shape} cannot be rewritten, only kept or dropped")
        return rules

    @property
    def actions(self) -> Mapping[str, Action]:
        """Every shape's rule."""
        return DEFAULT_RULES | self.rules

    def declared(self) -> dict[str, Any]:
        """The format in JSON types, for the report."""
        return self.model_dump(mode="json", exclude={"rules"}) | {"rules": dict(self.actions)}
