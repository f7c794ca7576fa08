"""Training data before it is used: standardise, lint."""

import textwrap
import tomllib
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from finetrial.cli.app import AsJson, app, console, emit_json, say, table
from finetrial.cli.lint_page import print_lint, print_mask
from finetrial.data.workshop.config import MEANING, StandardiseConfig
from finetrial.errors import UserError

File = Annotated[str, typer.Argument(metavar="IN", help="JSONL, JSON, CSV or Parquet file, or world:NAME?count=N")]
PREVIEWS = 2
"""Rows whose label mask is shown."""
WIDTH = 96
"""Columns that examples may take."""


@app.command()
def standardise(
    source: File,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write here (a new file); without it rows are only counted")
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option("--config", metavar="TOML", help="format and rules; options below go before it")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template", help=r"text with {fields} for objects, \n for a line break; repeat: first that fits"
        ),
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", metavar="F=KEY,...", help="keys of objects that may fill a field")
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option("--rule", metavar="SHAPE=ACTION", help="keep, rewrite or drop; repeat")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="KEY", help="key of objects that may be left out; repeat")
    ] = None,
    otherwise: Annotated[
        str | None, typer.Option("--otherwise", help="objects that no template takes: refuse, or labels (Key: value)")
    ] = None,
    join: Annotated[str | None, typer.Option("--join", help=r"between parts of a list; default \n")] = None,
    tiny: Annotated[int | None, typer.Option("--tiny", help="characters up to which an output is tiny")] = None,
    undo_map: Annotated[
        Path | None, typer.Option("--undo", metavar="MAP", help="IN is a standardised file: write its original rows")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find outputs of another shape than the rest, rewrite them to one format, and prove that none is left."""
    if undo_map is not None:
        _undo(source, undo_map, output, as_json)
        return
    from finetrial.data.workshop import standardise as workshop

    config = _config(config_path, template, field, rule, ignore, otherwise, join, tiny)
    if output is None:
        facts = workshop.inspect(source, config)
        if as_json:
            emit_json({"source": source, **facts})
        else:
            _print_shapes(source, facts, None)
            say("\nnothing written: give --output (and a --template where objects are to be rewritten)")
        return
    result = workshop.standardise(source, output, config)
    if as_json:
        emit_json({**result.facts, "residual": result.residual, "files": result.files})
    else:
        _print_shapes(source, result.facts["before"], result.facts["after"])
        _print_changes(result.facts["changes"])
    if result.residual:
        if not as_json:
            _print_residual(result.residual)
        left = ", ".join(f"{fact['rows']} {shape}" for shape, fact in result.residual.items())
        raise UserError(
            f"gate: {left} would be left; nothing was written. Mend the templates, or say --rule SHAPE=drop"
        )
    if not as_json:
        facts = result.facts
        say(
            f"\n{facts['rows_in']} rows: {facts['unchanged']} unchanged, {facts['rewritten']} rewritten, "
            f"{facts['dropped']} dropped; gate: 0 of {facts['rows_out']} written rows have a forbidden shape"
        )
        for name, path in result.files.items():
            say(f"{name:<7} {path}")
        say(f"back    finetrial standardise {result.files['output']} --undo {result.files['map']} --output ORIGINAL")


Pool = Annotated[str, typer.Argument(metavar="IN", help="file, folder, glob, hf:NAME or world:NAME?count=N&seed=S")]


@app.command()
def lint(
    source: Pool,
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="SOURCE", help="suite that must not be in IN; repeat")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="base whose tokenizer counts tokens and shows the label mask")
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", min=8, help="tokens of the training context")] = 1024,
    similarity: Annotated[
        float, typer.Option("--similarity", help="Jaccard index from which rows are near-duplicates; 1: none")
    ] = 0.8,
    ngram: Annotated[int, typer.Option("--ngram", min=3, help="words of the n-grams of --against")] = 13,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="first so many rows")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 when there are errors")] = False,
    as_json: AsJson = False,
) -> None:
    """Check training data: roles, empty and cut turns, duplicates, contamination, lengths, languages, label mask."""
    from finetrial.data.workshop.lint import CountTokens, LintConfig
    from finetrial.data.workshop.lint import lint as check

    if not 0 < similarity <= 1:
        raise UserError(f"--similarity {similarity}: expected a number above 0, at most 1")
    config = LintConfig(similarity=similarity if similarity < 1 else 0.8, near_duplicates=similarity < 1, ngram=ngram)
    counter: CountTokens | None = None
    if model is not None:
        from finetrial.cli.tokens import count_tokens, load_tokenizer

        counter = partial(count_tokens, tokenizer=load_tokenizer(model), max_length=max_length)
    facts = check(source, config, suites=against or (), limit=limit, count_tokens=counter)
    facts |= {"model": model, "max_length": max_length if model is not None else None}
    previews = [] if model is None else _previews(source, model, max_length)
    if as_json:
        masks = [{"id": name, "pieces": [{"text": t, "supervised": s} for t, s in row]} for name, row in previews]
        emit_json({**facts, "label_masks": masks})
    else:
        print_lint(facts)
        print_mask(previews)
    if strict and facts["errors"]:
        raise typer.Exit(1)


def _previews(source: str, model: str, max_length: int) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The first rows as the model would be trained on them; a row that it refuses says why."""
    from finetrial.cli.tokens import label_mask, load_tokenizer
    from finetrial.data.read import read

    tokenizer = load_tokenizer(model)
    rows: list[tuple[str, list[tuple[str, bool]]]] = []
    for example in read(source, limit=PREVIEWS, on_malformed="drop").examples:
        try:
            rows.append((example.id, label_mask(example, tokenizer, max_length)))
        except UserError as reason:
            rows.append((example.id, [(f"(cannot be trained on: {reason})", False)]))
    return rows


def _undo(source: str, undo_map: Path, output: Path | None, as_json: bool) -> None:
    from finetrial.data.workshop.undo import undo

    if output is None:
        raise UserError("--undo writes the original rows: name a new file with --output")
    facts = undo(source, undo_map, output)
    if as_json:
        emit_json(facts)
        return
    told = {True: "; the bytes of the original", False: "; values as they were", None: ""}[facts["identical"]]
    done = f"{facts['restored']} changed back, {facts['returned']} returned"
    say(f"{facts['rows']} rows written to {output}: {done}{told}")


def _config(
    path: Path | None,
    template: list[str] | None,
    field: list[str] | None,
    rule: list[str] | None,
    ignore: list[str] | None,
    otherwise: str | None,
    join: str | None,
    tiny: int | None,
) -> StandardiseConfig:
    from finetrial.campaign.tables import validated

    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {error}") from error
    if template:
        values["templates"] = [_escaped(text) for text in template]
    if field:
        pairs = {name: keys.split(",") for name, keys in (_pair(text, "--field", "FIELD=KEY,...") for text in field)}
        values["fields"] = {**values.get("fields", {}), **pairs}
    if rule:
        pairs = dict(_pair(text, "--rule", "SHAPE=ACTION") for text in rule)
        values["rules"] = {**values.get("rules", {}), **pairs}
    if ignore:
        values["ignore"] = [*values.get("ignore", []), *ignore]
    if otherwise is not None:
        values["otherwise"] = otherwise
    if join is not None:
        values["join"] = _escaped(join)
    if tiny is not None:
        values["tiny"] = tiny
    return validated(StandardiseConfig, values, str(path) if path else "standardise", "")


def _pair(text: str, option: str, expected: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign or not value:
        raise UserError(f"{option} {text}: expected {expected}")
    return key, value


def _escaped(text: str) -> str:
    """A text of the command line, in which `\\n` and `\\t` are typed as two characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _print_shapes(source: str, before: dict[str, Any], after: dict[str, Any] | None) -> None:
    rows = []
    left = after["shapes"] if after else {}
    for shape in (name for name in MEANING if name in before["shapes"] or name in left):
        first = before["shapes"].get(shape, {"rows": 0, "share": 0.0})
        action = (before["shapes"].get(shape) or left[shape])["action"]
        last = left.get(shape, {"rows": 0})["rows"]
        style = "dim" if action == "keep" else ("green" if last == 0 else "bold red")
        rows.append(
            [
                shape,
                first["rows"],
                f"{first['share']:.1%}",
                action,
                *([] if after is None else [Text(str(last), style=style)]),
                MEANING[shape],
            ]
        )
    share = before["plain"] / before["rows"]
    plain = ["plain text", before["plain"], f"{share:.1%}", "", "none of these"]
    rows.insert(0, plain if after is None else [*plain[:4], after["plain"], plain[4]])
    columns = ["shape", "rows", "share", "rule", *([] if after is None else ["after"]), "what it is"]
    right = (1, 2) if after is None else (1, 2, 4)
    console.print(table(f"Shapes of {before['rows']} outputs of {source}", columns, rows, right))
    if after is None:
        _print_examples({shape: fact["examples"] for shape, fact in before["shapes"].items()})


def _print_examples(examples: dict[str, list[dict[str, str]]]) -> None:
    for shape, found in examples.items():
        console.print(Text(f"\n{shape}", style="bold"))
        for example in found[:2]:
            say(_fit(f"  {_place(example['place'])}  {example['output'] or '(nothing)'}"))


def _print_changes(changes: dict[str, list[dict[str, str]]]) -> None:
    for shape, found in changes.items():
        console.print(Text(f"\n{shape}", style="bold") + Text(f"  {_place(found[0]['place'])}", style="dim"))
        console.print(Text(_fit(f"  - {found[0]['before']}"), style="red"))
        console.print(Text(_fit(f"  + {found[0]['after']}"), style="green"))


def _print_residual(residual: dict[str, Any]) -> None:
    for shape, fact in residual.items():
        console.print(Text(f"\nleft: {shape}, {fact['rows']} rows", style="bold red"))
        for reason, rows in fact["reasons"].items():
            say(textwrap.fill(f"{rows} rows: {reason}", WIDTH, initial_indent="  ", subsequent_indent="    "))
        for example in fact["examples"][:2]:
            say(_fit(f"  {_place(example['place'])}  {example['output']}"))


def _place(place: str) -> str:
    """`line 12` of line-based files, `row 12` of others; the file is in the title."""
    if place.endswith("]"):
        return f"row {place[place.rindex('[') + 1 : -1]}"
    return f"line {place.rpartition(':')[2]}"


def _fit(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
