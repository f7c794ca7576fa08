"""Single tools: score, select, eval, squeeze, doctor."""

import importlib.util
import json
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import typer

from finetrial.cli.app import AsJson, app, console, emit_json, say, table
from finetrial.data.formats import example_row
from finetrial.data.score import ScoreConfig, ScoreTable
from finetrial.data.select import SelectionConfig, Strategy
from finetrial.data.select import select as select_rows
from finetrial.errors import UserError, nearest
from finetrial.records import Example
from finetrial.store import write_text

Source = Annotated[str, typer.Argument(metavar="IN", help="file, folder, glob, hf:NAME or world:NAME?count=N&seed=S")]
Output = Annotated[Path, typer.Option("--output", "-o", help="where to write; must not exist")]
BaseName = Annotated[str, typer.Option("--base", help="model whose tokenizer counts the tokens")]
MaxLength = Annotated[int, typer.Option("--max-length", min=8, help="tokens of the training context")]
ScoreVersion = Annotated[str, typer.Option("--version", help="v3 (as published) or corrected")]


@app.command()
def score(
    source: Source,
    output: Output,
    base: BaseName = "builtin",
    max_length: MaxLength = 1024,
    score_version: ScoreVersion = "corrected",
    as_json: AsJson = False,
) -> None:
    """Score trajectories by quality: gate, dimensions, composite; Parquet, CSV or JSONL by the ending of OUT."""
    target = _new(output, (".parquet", ".csv", ".jsonl"))
    _, scored, facts = _scored(source, base, max_length, score_version)
    _write_table(scored.to_arrow(), target)
    if as_json:
        emit_json({"output": str(target), "pool": facts, "scores": scored.facts()})
        return
    _print_scores(scored)
    say(f"{len(scored)} rows written to {target}")


@app.command()
def select(
    source: Source,
    output: Output,
    n: Annotated[int | None, typer.Option("--n", min=1, help="rows to select")] = None,
    strategy: Annotated[str, typer.Option("--strategy", help=", ".join(get_args(Strategy)))] = "top",
    by: Annotated[str, typer.Option("--by", help="column that top and bottom rank by")] = "composite",
    per_group_cap: Annotated[
        int | None, typer.Option("--per-group-cap", min=1, help="rows of one task at most")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="of random strategies")] = 42,
    base: BaseName = "builtin",
    max_length: MaxLength = 1024,
    score_version: ScoreVersion = "corrected",
    as_json: AsJson = False,
) -> None:
    """Select rows of a pool and write them as JSONL that finetrial (and others) read back."""
    target = _new(output, (".jsonl",))
    if strategy not in get_args(Strategy) or strategy == "token_matched_random":
        known = [name for name in get_args(Strategy) if name != "token_matched_random"]
        raise UserError(f"--strategy {strategy}{nearest(strategy, known)}: expected one of {', '.join(known)}")
    examples, scored, facts = _scored(source, base, max_length, score_version)
    config = SelectionConfig.model_validate(
        {"strategy": strategy, "n": n, "by": by, "per_group_cap": per_group_cap, "seed": seed}
    )
    chosen = select_rows(scored, config, examples, None, seed, scored.tokens.tolist())
    lines = [json.dumps(example_row(example), ensure_ascii=False) for example in chosen.examples]
    write_text(target, "\n".join(lines) + "\n")
    if as_json:
        emit_json({"output": str(target), "pool": facts, "selection": chosen.facts, "key": chosen.key})
    else:
        told = ", ".join(f"{key} {chosen.facts[key]}" for key in ("examples", "groups", "max_per_group", "tokens"))
        say(f"{strategy}: {told}; written to {target}")


@app.command("eval")
def evaluate(
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="folders in PEFT's format")],
    suite: Annotated[str, typer.Option("--suite", "-s", help="texts to measure: as IN of `score`")],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="first so many texts")] = None,
    base: Annotated[str, typer.Option("--base", help="the frozen base")] = "builtin",
    max_length: MaxLength = 1024,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1")] = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity of adapters and their base on the assistant's text of a suite, in one pass."""
    from finetrial.campaign.workshop import evaluate_adapters

    results = evaluate_adapters(adapters, suite, limit, base, max_length, device)
    if as_json:
        emit_json(results)
        return
    columns = ["model", "items", "tokens", "perplexity", "nll per item", "bits per byte", "nll - base"]
    rows = [
        [
            r["model"],
            r["items"],
            r["tokens"],
            f"{r['perplexity']:.4f}",
            f"{r['nll']:.4f}",
            f"{r['bits_per_byte']:.4f}",
            f"{r['nll_minus_base']:+.4f}",
        ]
        for r in results
    ]
    console.print(table(f"Perplexity on {suite}", columns, rows, (1, 2, 3, 4, 5, 6)))
    say("one number per model over these items: a description of these checkpoints, not a verdict on recipes")


@app.command()
def squeeze(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="folder in PEFT's format, or of a run")],
    min_variance_retention: Annotated[
        float, typer.Option("--min-variance-retention", help="share of each layer's change that must be kept")
    ] = 0.95,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="default: the recommended one")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write the squeezed adapter to this new folder")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which rank an adapter needs, and write it at that rank with --output (LoRA-Squeeze)."""
    from finetrial.model import squeeze as lora
    from finetrial.model.peft_format import load_peft

    source = _adapter_folder(adapter)
    if output is not None and output.exists():
        raise UserError(f"--output {output} exists; name another folder")
    report = lora.analyse(load_peft(source))
    advice = lora.recommend(report, min_variance_retention)
    chosen = report.at(advice.rank if rank is None else rank)
    if output is not None:
        lora.squeeze_folder(source, chosen["rank"], output)
    if as_json:
        written = None if output is None else str(output)
        emit_json({**advice.facts(), **report.facts(), "chosen": chosen, "output": written})
        return
    named = {advice.rank, advice.mean_rank, chosen["rank"], report.rank}
    shown = sorted(named | {2**power for power in range(report.rank.bit_length())})
    rows = [
        [at["rank"], *(f"{at[key]:.2%}" for key in ("mean", "min", "total")), at["worst_layer"]]
        for at in map(report.at, shown)
    ]
    columns = ["rank", "mean of layers", "worst layer", "all energy", "which is worst"]
    console.print(table(f"What each rank keeps of {source}, rank {report.rank}", columns, rows, (0, 1, 2, 3)))
    if report.zero_layers:
        say(f"{len(report.zero_layers)} of {len(report.layers)} layers change nothing and count as kept")
    largest = int(report.share_L.argmax())
    say(f"largest share of the energy: {report.share_L[largest]:.1%} in {report.layers[largest]}")
    say(
        f"recommended rank: {advice.rank}, the smallest at which every layer keeps {min_variance_retention:.4g} of its "
        f"energy; by the mean over layers alone: {advice.mean_rank}, where the worst layer keeps "
        f"{advice.min_at_mean_rank:.2%}"
    )
    say(lora.NOTE)
    if output is not None:
        say(f"rank {chosen['rank']} written to {output}")


def _adapter_folder(path: Path) -> Path:
    """The folder in PEFT's format that `path` is, or that the run at `path` holds."""
    if not path.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such folder{nearest(path.name, siblings)}; expected an adapter or a run")
    inside = path / "adapter"
    return inside if inside.is_dir() else path


EXTRAS = {
    "train": ("torch", "transformers", "peft", "safetensors", "tokenizers", "datasets"),
    "judge": ("openai",),
    "serve": ("fastapi", "uvicorn"),
    "ray": ("ray",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "lm-eval": ("lm_eval",),
    "semantic": ("sentence_transformers",),
    "gym": ("reasoning_gym",),
    "envs": ("verifiers",),
}


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what each missing part would need, and what this machine has."""
    packages = {extra: {name: _installed(name) for name in names} for extra, names in EXTRAS.items()}
    usage = shutil.disk_usage(".")
    facts: dict[str, Any] = {
        "finetrial": version("finetrial"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "disk_free_gb": round(usage.free / 1e9, 1),
        "packages": packages,
    }
    if packages["train"]["torch"]:
        import torch

        facts["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        facts["threads"] = torch.get_num_threads()
    if as_json:
        emit_json(facts)
        return
    rows = [
        [extra, name, found or "missing", "" if found else f"pip install 'finetrial[{extra}]'"]
        for extra, names in packages.items()
        for name, found in names.items()
    ]
    console.print(
        table(
            f"finetrial {facts['finetrial']}, Python {facts['python']}",
            ["extra", "package", "version", "to install"],
            rows,
        )
    )
    say(f"device {facts.get('device', 'unknown: torch is missing')}; {facts['disk_free_gb']} GB of disk free")


def _scored(
    source: str, base: str, max_length: int, score_version: str
) -> tuple[list[Example], ScoreTable, dict[str, Any]]:
    from finetrial.campaign.tables import validated
    from finetrial.campaign.workshop import score_source

    config = validated(ScoreConfig, {"version": score_version}, "--version", "")
    return score_source(source, config, base, max_length)


def _print_scores(scored: ScoreTable) -> None:
    facts = scored.facts()
    say(f"{facts['passed']} of {facts['rows']} rows pass the gate: {facts['gate'] or 'none refused'}")
    shown = ("min", "q25", "median", "q75", "max", "mean", "std")
    rows = [
        [name, *("" if d.get(key) is None else f"{d[key]:.3f}" for key in shown), f"{d['share_missing']:.0%}"]
        for name, d in facts["dimensions"].items()
    ]
    console.print(table("Scores over all rows", ["column", *shown, "missing"], rows, tuple(range(1, 9))))
    for flag in facts["flags"]:
        say(f"note: {flag}")


def _write_table(rows: pa.Table, target: Path) -> None:
    if target.suffix == ".parquet":
        pyarrow.parquet.write_table(rows, target)
    elif target.suffix == ".csv":
        joined = pa.array(["; ".join(reasons) for reasons in rows["gate"].to_pylist()])
        pyarrow.csv.write_csv(rows.set_column(rows.schema.get_field_index("gate"), "gate", joined), target)
    else:
        write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist()))


def _new(output: Path, endings: tuple[str, ...]) -> Path:
    if output.suffix not in endings:
        raise UserError(f"--output {output}: expected a file ending in {' or '.join(endings)}")
    if output.exists():
        raise UserError(f"--output {output} exists; name another file")
    return output


def _installed(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return version(module)
    except PackageNotFoundError:
        return "unknown"
