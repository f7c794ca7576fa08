"""Commands of the judging half: compare, power."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from finetrial.analyze.compare import Compared, Options, compare
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.power import Pilot, Prices, Variances
from finetrial.analyze.power import pilot as estimate_pilot
from finetrial.analyze.readers.read import Reading, read
from finetrial.analyze.readers.run_logs import LIFTS, expand, load_runs
from finetrial.analyze.runs.litmus import LitmusConfig
from finetrial.analyze.runs.litmus import litmus as judge_litmus
from finetrial.analyze.runs.markdown import litmus_markdown, significance_markdown
from finetrial.analyze.runs.significance import significance
from finetrial.analyze.sizing import SEEDS, Goal, Sizing, size
from finetrial.cli.app import AsJson, app, console, emit_json, table
from finetrial.cli.people import corrected, show
from finetrial.cli.run_folders import RunFolders
from finetrial.errors import UserError, nearest
from finetrial.store import read_json, write_json, write_text

MT_BENCH_SUBSET = 16
"""Questions of the subset that is warned about by default for MT-Bench, whose users judge on a few at random."""

Sources = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FILE|DIR]...", help="outcomes; without any, --baseline and --candidate name run folders"),
]
Mapping = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="NAME=COLUMN", help="column of condition, seed, item, value, ...; or FOLDER=CONDITION_sSEED"
    ),
]
Margin = Annotated[float, typer.Option("--margin", min=0, help="smallest effect to act on, in units of the metric")]
Alpha = Annotated[float, typer.Option("--alpha", min=1e-9, max=0.5, help="two-sided error rate of a family")]


@app.command("compare", cls=RunFolders)
def compare_command(
    sources: Sources = None,
    baseline: Annotated[
        list[str] | None, typer.Option("--baseline", metavar="C|RUN...", help="condition, or run folders (patterns)")
    ] = None,
    candidate: Annotated[
        list[str] | None, typer.Option("--candidate", metavar="C|RUN...", help="condition, or run folders (patterns)")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", help="only this metric; may be repeated")] = None,
    better: Annotated[str | None, typer.Option("--better", metavar="higher|lower", help="of metrics not known")] = None,
    margin: Margin = 0.0,
    alpha: Alpha = 0.05,
    family: Annotated[
        str | None, typer.Option("--family", help="declare the contrasts as one family (Holm); default: exploratory")
    ] = None,
    pairing: Annotated[
        str | None,
        typer.Option(
            "--pairing",
            metavar="none|seed",
            help="`seed` if equal seed numbers share their randomness (default of campaigns), else `none` (default)",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="COLUMN|none", help="also within groups of items; default: as the format has"),
    ] = None,
    subset: Annotated[
        int | None, typer.Option("--subset", min=2, metavar="N", help="warn what random subsets of N items would show")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="people's labels of judged outcomes, to correct their judge"),
    ] = None,
    mapping: Mapping = None,
    litmus: Annotated[bool, typer.Option("--litmus", help="run folders: pass or fail by thresholds")] = False,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="run folders: bootstrap and permutation")
    ] = 20_000,
    lift_mean_reward: Annotated[float, typer.Option("--lift-mean-reward", help="litmus threshold")] = LIFTS[
        "mean_reward"
    ],
    lift_correct_rate: Annotated[float, typer.Option("--lift-correct-rate", help="litmus threshold")] = LIFTS[
        "correct_rate"
    ],
    min_runs: Annotated[int, typer.Option("--min-runs", min=1, help="litmus: runs per arm")] = 3,
    min_steps: Annotated[int, typer.Option("--min-steps", min=1, help="litmus: steps of every run")] = 8,
    min_generations: Annotated[
        int, typer.Option("--min-generations", min=0, help="litmus: completions of every run")
    ] = 32,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the JSON here as well")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="run folders: write the report here")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare conditions of anybody's outcomes, or two groups of run folders."""
    if not sources:
        if labels is not None:
            raise UserError("--labels belongs to outcomes: name a FILE or DIR")
        if not baseline or not candidate:
            raise UserError("name a file or folder of outcomes, or run folders with --baseline and --candidate")
        runs = load_runs(expand(baseline)), load_runs(expand(candidate))
        if litmus:
            thresholds = LitmusConfig(
                mean_reward=lift_mean_reward,
                correct_rate=lift_correct_rate,
                min_runs=min_runs,
                min_steps=min_steps,
                min_generations=min_generations,
                alpha=alpha,
            )
            gate = judge_litmus(*runs, thresholds)
            _deliver(gate.as_dict(), litmus_markdown(gate), output, markdown, as_json)
        else:
            report = significance(*runs, alpha=alpha, resamples=resamples, margin=margin or None)
            _deliver(report.as_dict(), significance_markdown(report), output, markdown, as_json)
        return
    if litmus:
        raise UserError("--litmus reads run folders: name them with --baseline and --candidate, without a FILE or DIR")
    if markdown is not None:
        raise UserError("--markdown belongs to run folders; for outcomes use --output or --json")
    if baseline and len(baseline) > 1:
        raise UserError(f"--baseline: one condition is expected, got {', '.join(baseline)}")
    reading = read(sources, _mapping(mapping), by)
    if subset is None and reading.format == "MT-Bench judgments":
        subset = MT_BENCH_SUBSET
    options = Options(
        baseline=baseline[0] if baseline else None, candidates=tuple(candidate or ()), metrics=tuple(metric or ()),
        better=_choice("--better", better, ("higher", "lower")), margin=margin, alpha=alpha, family=family,
        pairing=_choice("--pairing", pairing, ("none", "seed"))
        or ("seed" if reading.format == "campaign folder" else "none"), subset=subset,
    )  # fmt: skip
    declared = _declared(sources)
    compared = compare(reading, options)
    people = () if labels is None else corrected(labels, sources, _mapping(mapping), reading, compared, options)
    payload = {**compared.as_dict(), "declared": declared, "people": [asdict(one) for one in people]}
    payload["contrasts"] = [*declared, *payload["contrasts"]]
    if output is not None:
        write_json(output, payload)
    if as_json:
        emit_json(payload)
    else:
        _print_compared(compared, declared)
        show(people)


def _deliver(payload: dict[str, Any], text: str, output: Path | None, markdown: Path | None, as_json: bool) -> None:
    if output is not None:
        write_json(output, payload)
    if markdown is not None:
        write_text(markdown, text)
    if as_json:
        emit_json(payload)
    else:
        print(text)


def _choice(option: str, value: str | None, valid: tuple[str, ...]) -> Any:
    if value is not None and value not in valid:
        raise UserError(f"{option} {value}: expected {' or '.join(valid)}{nearest(value, valid)}")
    return value


def _mapping(pairs: Sequence[str] | None) -> dict[str, str]:
    mapping = {}
    for pair in pairs or ():
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise UserError(f"--map {pair}: expected NAME=COLUMN, such as --map condition=model")
        mapping[name] = column
    return mapping


def _declared(sources: Sequence[Path]) -> list[dict[str, Any]]:
    """Findings of the contrasts that a campaign folder declares; none for anything else."""
    if (
        len(sources) != 1
        or not (sources[0] / "manifest.json").is_file()
        or not (sources[0] / "outcomes.parquet").is_file()
    ):
        return []
    from finetrial.campaign.interim import next_look
    from finetrial.report.build import gather

    if ahead := next_look(read_json(sources[0] / "manifest.json")):
        raise UserError(f"{sources[0]}: nothing is compared between planned looks; {ahead} (see `finetrial status`)")
    return [{**asdict(finding), "declared": True} for finding in gather(sources[0]).findings]


def _print_compared(compared: Compared, declared: list[dict[str, Any]]) -> None:
    console.print(f"[bold]{escape(compared.source)}[/bold]  {compared.format}")
    if declared:
        _print_findings("Declared contrasts", declared)
    _print_findings(f"Every condition against {compared.baseline}", [asdict(finding) for finding in compared.findings])
    if compared.groups:
        _print_findings(f"Per {compared.by}", [asdict(finding) for finding in compared.groups], group=True)
    for name, subset in compared.subsets.items():
        console.print(f"[yellow]warning[/yellow] {escape(name)}: {escape(subset.sentence(compared.by))}")
    for note in compared.notes:
        console.print(f"note: {escape(note)}")


def _print_findings(title: str, findings: Sequence[dict[str, Any]], group: bool = False) -> None:
    """A table of findings, then which test, unit and family its numbers belong to."""
    rows = []
    for f in findings:
        arm = f"{f['candidate']} - {f['baseline']}"
        rows.append([
            escape(f["suite"] if group else f["contrast"]), escape(arm) if group else f["verdict"], f["metric"],
            _number(f["estimate"], "+"), _interval(f["ci"]), _number(f["p_value"]), _number(f["p_adjusted"]),
            "+".join(map(str, f["n_seeds"])), f["n_items"], f["n_missing"] or "",
        ])  # fmt: skip
    columns = [
        "group" if group else "contrast",
        "difference of" if group else "verdict",
        "metric",
        "difference",
        "interval",
    ]
    columns += ["p", "p in family", "runs", "items", "missing"]
    console.print(table(title, columns, rows, (3, 4, 5, 6, 7, 8, 9)))
    families = {f["family"]: f"{f['family']}: {f['family_size']} contrasts, {f['correction']}" for f in findings}
    for label, words in (("test", {f["test"] for f in findings}), ("unit", {f["unit"] for f in findings})):
        console.print(f"  {label}: {'; '.join(escape(word) for word in sorted(words))}")
    console.print(f"  family: {'; '.join(escape(words) for words in families.values())}")
    if not group:
        for f in findings:
            console.print(f"  {escape(f['contrast'])} ({f['metric']}): {escape(f['reason'])}")
        warned = Counter(warning for f in findings for warning in f["warnings"])
        for warning, times in warned.items():
            console.print(f"  note ({times} of {len(findings)} contrasts): {escape(warning)}")


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3g}"


def _interval(ci: tuple[float, float] | None) -> str:
    return "none" if ci is None else f"{ci[0]:+.3g} to {ci[1]:+.3g}"


@app.command("power")
def power_command(
    sources: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE|DIR]...", help="outcomes of a pilot; else give the --...-sd")
    ] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", help="of the pilot")] = None,
    candidate: Annotated[str | None, typer.Option("--candidate", help="of the pilot")] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="of the pilot; default: the only one")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="of the pilot; default: the only one")] = None,
    mapping: Mapping = None,
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.99, help="upper bound of a pilot")] = 0.8,
    seed_sd: Annotated[float | None, typer.Option("--seed-sd", min=0, help="standard deviation between runs")] = None,
    recipe_item_sd: Annotated[
        float, typer.Option("--recipe-item-sd", min=0, help="of the difference between items")
    ] = 0.0,
    seed_item_sd: Annotated[float, typer.Option("--seed-item-sd", min=0, help="of seed × item")] = 0.0,
    sampling_sd: Annotated[float, typer.Option("--sampling-sd", min=0, help="between samples of one item")] = 0.0,
    effect: Annotated[float | None, typer.Option("--effect", help="true improvement that should be confirmed")] = None,
    margin: Margin = 0.0,
    alpha: Alpha = 0.05,
    target: Annotated[float, typer.Option("--power", min=0.01, max=0.999, help="chance of CONFIRMED")] = 0.8,
    contrasts: Annotated[int, typer.Option("--contrasts", min=1, help="declared contrasts that share alpha")] = 1,
    seeds: Annotated[
        list[int] | None, typer.Option("--seeds", min=2, help="seeds per condition; may be repeated")
    ] = None,
    items: Annotated[list[int] | None, typer.Option("--items", min=2, help="items; may be repeated")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="samples per item")] = 1,
    paired: Annotated[bool, typer.Option("--paired", help="both conditions use the same seeds")] = False,
    frozen: Annotated[bool, typer.Option("--frozen", help="the baseline is the frozen base, without seeds")] = False,
    cost_run: Annotated[float, typer.Option("--cost-run", min=0, help="of one run, in any currency")] = 1.0,
    cost_item: Annotated[float, typer.Option("--cost-item", min=0, help="of one item in one run")] = 0.0,
    cost_sample: Annotated[
        float, typer.Option("--cost-sample", min=0, help="of one sample of one item in one run")
    ] = 1e-4,
    max_seeds: Annotated[int, typer.Option("--max-seeds", min=3)] = 64,
    max_items: Annotated[int, typer.Option("--max-items", min=2)] = 5000,
    chart: Annotated[Path | None, typer.Option("--chart", help="write the curve as .svg or .png")] = None,
    as_json: AsJson = False,
) -> None:
    """What a design can detect, and the cheapest that detects enough, before anything is spent."""
    found: Pilot | None = None
    unit = metric or "metric"
    if sources:
        if seed_sd is not None:
            raise UserError("give a pilot or --seed-sd, not both")
        found, unit = _pilot(read(sources, _mapping(mapping), "none"), baseline, candidate, suite, metric, confidence)
        variances, items = found.upper, items or [found.n_items]
        frozen = frozen or found.n_seeds[1] == 0
    elif seed_sd is None:
        raise UserError(
            "give a pilot (FILE or DIR) or variance components: --seed-sd and, where known, --recipe-item-sd, "
            "--seed-item-sd, --sampling-sd"
        )
    else:
        variances = Variances(seed_sd**2, recipe_item_sd**2, seed_item_sd**2, sampling_sd**2)
    goal = Goal(effect, target, alpha, margin, contrasts)
    prices = Prices(cost_run, cost_item, cost_sample)
    sizings = [
        size(variances, goal, prices, seeds=sorted(set(seeds or SEEDS)), items=n, samples=samples, paired=paired,
             frozen=frozen, max_seeds=max_seeds, max_items=max_items)
        for n in (items or [200])
    ]  # fmt: skip
    if chart is not None:
        _draw(sizings, unit, chart)
    if as_json:
        payload = sizings[0].as_dict()
        payload["options"] = [asdict(option) for sizing in sizings for option in sizing.options]
        emit_json({**payload, "pilot": None if found is None else asdict(found)})
    else:
        _print_sizings(sizings, found, unit)


def _pilot(
    reading: Reading,
    baseline: str | None,
    candidate: str | None,
    suite: str | None,
    metric: str | None,
    confidence: float,
) -> tuple[Pilot, str]:
    """(pilot, metric) of the one contrast that is meant."""
    chosen = {}
    for kind, given, have in (("suite", suite, reading.table.suites), ("metric", metric, reading.table.metrics)):
        if given is None and len(have) > 1:
            raise UserError(f"--{kind} is needed: one of {', '.join(have)}")
        if given is not None and given not in have:
            raise UserError(f"--{kind} {given}: not there{nearest(given, have)}; there are: {', '.join(have)}")
        chosen[kind] = given or next(iter(have))
    names = list(reading.table.conditions)
    baseline = baseline or next((name for name in ("base", "baseline", "control", *names) if name in names), names[0])
    candidate = candidate or next((name for name in names if name != baseline), None)
    if candidate is None:
        raise UserError(f"only one condition is there ({baseline}): a pilot needs two, or one and the frozen base")
    contrast = Contrast(
        candidate=candidate, baseline=baseline, suite=chosen["suite"], metric=chosen["metric"], better="higher"
    )
    config = AnalysisConfig(pairing="none")
    return estimate_pilot(reading.table, contrast, config, chosen["metric"], confidence), chosen["metric"]


def _draw(sizings: list[Sizing], unit: str, target: Path) -> None:
    from finetrial.report.statistics_charts import power_curve

    drawn = power_curve(sizings, unit)
    if target.suffix == ".svg":
        write_text(target, drawn.svg)
    elif target.suffix == ".png":
        target.write_bytes(drawn.png())
    else:
        raise UserError(f"--chart {target}: expected a name that ends in .svg or .png")


def _print_sizings(sizings: list[Sizing], found: Pilot | None, unit: str) -> None:
    first = sizings[0]
    if found is not None:
        for name in vars(found.estimate):
            low, high = (getattr(v, name) ** 0.5 for v in (found.estimate, found.upper))
            console.print(f"  {name}: standard deviation {low:.3g}, planned with {high:.3g}")
        for warning in found.warnings:
            console.print(f"  note: {escape(warning)}")
    rows = [
        [o.seeds, o.items, o.samples, _number(o.mde), _number(o.power), f"{o.attainable_p:.2g}", f"{o.cost:.4g}"]
        for sizing in sizings
        for o in sizing.options
    ]
    columns = ["seeds per condition", "items", "samples", f"detectable ({unit})", "power at effect", "least p", "cost"]
    goal = first.goal
    title = f"Detectable with probability {goal.target:g} at alpha {goal.alpha:g} over {goal.contrasts} contrasts"
    title += f", margin {goal.margin:g}"
    console.print(table(title, columns, rows, tuple(range(7))))
    console.print(
        "  test: t over training runs crossed with items; unit: training run (seed); least p: permutation of seeds"
    )
    if first.optimal_samples is not None:
        console.print(f"  samples per item of least variance for the money: {max(1.0, first.optimal_samples):.1f}")
    for sentence in first.sentences:
        console.print(f"  {escape(sentence)}")
