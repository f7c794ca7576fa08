"""The report of `standardise` as a page of Markdown."""

from collections.abc import Mapping
from typing import Any


def report_markdown(facts: Mapping[str, Any]) -> str:
    """Counts before and after, what was done, and examples of every change and of every shape."""
    before, after = facts["before"]["shapes"], facts["after"]["shapes"]
    lines = [
        f"# Standardised: {facts['source']}",
        "",
        f"{facts['rows_in']} rows read, {facts['rows_out']} written: {facts['unchanged']} unchanged, "
        f"{facts['rewritten']} rewritten, {facts['dropped']} dropped.",
        "",
        "| shape | meaning | before | share | rule | after |",
        "|---|---|---:|---:|---|---:|",
    ]
    for shape in dict.fromkeys([*before, *after]):
        fact = before.get(shape) or after[shape]
        first = before.get(shape, {"rows": 0, "share": 0.0})
        left = after.get(shape, {"rows": 0})["rows"]
        lines.append(
            f"| {shape} | {fact['meaning']} | {first['rows']} | {first['share']:.1%} | {fact['action']} | {left} |"
        )
    lines += ["", f"Plain text: {facts['before']['plain']} rows before, {facts['after']['plain']} after.", ""]
    declared = facts["format"]
    lines += ["## Declared format", ""]
    lines += [f"- template {_code(template)}" for template in declared["templates"]] or ["- no template"]
    lines += [f"- {field} may be filled by {', '.join(map(_code, keys))}" for field, keys in declared["fields"].items()]
    lines += [f"- parts of a list are joined by {_code(repr(declared['join']))}", ""]
    for shape, examples in facts["changes"].items():
        lines += [f"## Rewritten: {shape}", ""]
        for example in examples:
            lines += [f"- {example['place']}", f"  - before {_code(example['before'])}"]
            lines += [f"  - after {_code(example['after'])}"]
        lines.append("")
    for shape, fact in before.items():
        if shape not in facts["changes"]:
            lines += [f"## {shape} ({fact['action']})", ""]
            lines += [f"- {example['place']}: {_code(example['output'])}" for example in fact["examples"]] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _code(text: str) -> str:
    """Text as inline code that Markdown leaves alone."""
    one_line = text.replace("\n", "\\n")
    fence = "`" * (1 + max((len(run) for run in _runs(one_line)), default=0))
    pad = " " if one_line.startswith("`") or one_line.endswith("`") or not one_line.strip() else ""
    return f"{fence}{pad}{one_line}{pad}{fence}"


def _runs(text: str) -> list[str]:
    return [run for run in "".join(c if c == "`" else " " for c in text).split() if run]
