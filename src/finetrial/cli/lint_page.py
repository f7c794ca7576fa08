"""The facts of `lint` on a terminal of 100 columns."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from finetrial.cli.app import console, say, table

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
WIDTH = 98
LANGUAGES = 6
LONGEST = 600
"""Characters of a piece of a row that are shown."""


def print_lint(facts: dict[str, Any]) -> None:
    """Findings with examples, then what is in the data: near-duplicates, contamination, lengths, languages."""
    source = facts["source"]
    if facts["findings"]:
        rows = [
            [
                Text(f["severity"], style=STYLES[f["severity"]]),
                f["check"],
                f["rows"],
                _percent(f["share"]),
                f["message"],
            ]
            for f in facts["findings"]
        ]
        columns = ["severity", "check", "rows", "share", "what it is"]
        console.print(table(f"{facts['rows']} rows of {source}", columns, rows, (2, 3)))
        for finding in facts["findings"]:
            console.print(Text(f"\n{finding['check']}", style=STYLES[finding["severity"]]))
            for example in finding["examples"][:2]:
                place = short_place(example["place"], source)
                say(_fit(f"  {place}  {_shorter(example['text'], source)}" if place else f"  {example['text']}"))
    else:
        say(f"{facts['rows']} rows of {source}: nothing found")
    _print_clusters(facts)
    _print_contamination(facts)
    _print_distributions(facts)
    errors, warnings = facts["errors"], facts["warnings"]
    say(f"\n{errors} kind{'' if errors == 1 else 's'} of error, {warnings} of warning")


def _print_clusters(facts: dict[str, Any]) -> None:
    if not facts["clusters"]:
        return
    rows = []
    for cluster in facts["clusters"][:5]:
        others = [f"{short_place(m['place'], facts['source'])} ({m['similarity']:.0%})" for m in cluster["members"]]
        rows.append([cluster["rows"], short_place(cluster["first"], facts["source"]), ", ".join(others)])
    say("")
    console.print(table("Largest clusters of near-duplicates", ["rows", "first", "others"], rows, (0,)))


def _print_contamination(facts: dict[str, Any]) -> None:
    if not facts["contamination"]:
        return
    rows = [
        [_fit(s["suite"], 40), s["items"], s["checked"], s["hit"], _percent(s["share"]), s["hit_by"]["prompt"],
         s["hit_by"]["output"]]
        for s in facts["contamination"]
    ]  # fmt: skip
    say("")
    title = f"Items that share {facts['contamination'][0]['n']} words in a row (a short item: all) with these rows"
    columns = ["suite", "items", "checked", "hit", "share", "by prompt", "by output"]
    console.print(table(title, columns, rows, (1, 2, 3, 4, 5, 6)))


def _print_distributions(facts: dict[str, Any]) -> None:
    shown = ("min", "q05", "median", "q95", "max", "mean")
    rows = [[name, *(f"{d[key]:.6g}" for key in shown), f"{d['sum']:,}"] for name, d in facts["lengths"].items()]
    say("")
    console.print(table("Lengths", ["", *shown, "sum"], rows, tuple(range(1, 8))))
    total = sum(language["rows"] for language in facts["languages"])
    sure = sorted(facts["languages"], key=lambda language: -language["sure"])
    parts = [
        f"{language['language']} {language['sure'] / total:.1%}" for language in sure[:LANGUAGES] if language["sure"]
    ]
    unsure = sum(language["rows"] - language["sure"] for language in sure)
    if unsure:
        parts.append(f"{unsure / total:.1%} open (too short, formulas, or mixed)")
    if parts:
        say(f"\nlanguages of outputs: {', '.join(parts)}")
    systems = facts["system_prompts"]
    told = f"{systems['distinct']} different, {systems['rows_without']} rows without one"
    say(f"system prompts: {told if systems['distinct'] else 'none'}")
    if facts["model"] is None:
        say("tokens, truncation and label mask: give --model")


def print_mask(previews: Sequence[tuple[str, list[tuple[str, bool]]]]) -> None:
    """Rows as the model sees them; what is learned from stands in ⟦ ⟧."""
    for name, pieces in previews:
        console.print(Text(f"\n{name}", style="bold") + Text("  supervised text in ⟦ ⟧", style="dim"))
        text = Text()
        for piece, supervised in pieces:
            short = piece if len(piece) <= LONGEST else f"{piece[: LONGEST // 2]} … {piece[-LONGEST // 2 :]}"
            text += Text(f"⟦{short}⟧", style="green") if supervised else Text(short, style="dim")
        console.print(text)


def short_place(place: str, source: str) -> str:
    """A place without the source that the title names: `line 12`, `row 12`, else as it is."""
    rest = place.removeprefix(source)
    if rest.startswith(":"):
        return f"line {rest[1:]}"
    return f"row {rest[1:-1]}" if rest.startswith("[") and rest.endswith("]") else place


def _shorter(text: str, source: str) -> str:
    head, found, tail = text.rpartition(source)
    return head + short_place(found + tail, source) if found else text


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _fit(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
