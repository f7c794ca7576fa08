"""Commands over a campaign: init, check, plan, why, run, status, report, verdict."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from finetrial.campaign.spec import Spec, load_spec
from finetrial.cli.app import AsJson, Logs, Overrides, SpecPath, app, console, emit_json, say, table
from finetrial.errors import UserError, nearest
from finetrial.store import read_json

EXIT_CODES = {"CONFIRMED": 0, "FAILED": 10, "INCONCLUSIVE": 20, "INVALID": 30}

MaxSteps = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="dry run of N steps, kept apart and never judged")
]
CampaignDir = Annotated[
    Path | None, typer.Argument(metavar="[DIR]", help="campaign folder; default: the last one below --logs")
]
LOGS = Path("logs")


def _templates() -> dict[str, str]:
    folder = resources.files("finetrial") / "assets" / "campaigns"
    return {
        Path(entry.name).stem: entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }


@app.command()
def init(
    template: Annotated[
        str, typer.Argument(metavar="[TEMPLATE]", help="which commented campaign to write")
    ] = "quickstart",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="default: TEMPLATE.toml")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented campaign TOML to start from."""
    templates = _templates()
    if template not in templates:
        raise UserError(
            f"no template {template!r}{nearest(template, templates)}; there are: {', '.join(sorted(templates))}"
        )
    target = output or Path(f"{template}.toml")
    if target.exists():
        raise UserError(f"{target} exists; name another file with --output")
    target.write_text(templates[template], encoding="utf-8")
    if as_json:
        emit_json({"template": template, "written": str(target)})
    else:
        say(f"wrote {target}; run it with: finetrial run {target}")


@app.command()
def check(spec: SpecPath, overrides: Overrides = None, logs: Logs = LOGS, as_json: AsJson = False) -> None:
    """Preflight that executes: data, masks, graders, leak guard, one step of every condition, disk, power."""
    from finetrial.campaign.preflight import preflight

    results = preflight(load_spec(spec, overrides or ()), logs, _silent if as_json else say)
    if as_json:
        emit_json([vars(result) for result in results])
    else:
        marks = ["FAILED" if not r.passed else "warning" if r.warning else "ok" for r in results]
        rows = [[mark, r.check, r.detail] for mark, r in zip(marks, results, strict=True)]
        console.print(table("Preflight", ["", "check", "detail"], rows))
    failed = [result.check for result in results if not result.passed]
    if failed:
        raise UserError(f"preflight failed: {', '.join(failed)}")


@app.command()
def plan(
    spec: SpecPath, overrides: Overrides = None, max_steps: MaxSteps = None, logs: Logs = LOGS, as_json: AsJson = False
) -> None:
    """Show runs, cohorts, rows, tokens, steps, time and power, before anything is spent."""
    from finetrial.campaign.describe import cost

    loaded, prepared, decided, options = _planned(spec, overrides, max_steps, logs)
    facts = cost(loaded, prepared, decided, options)
    if as_json:
        emit_json(facts)
        return
    say(f"{loaded.campaign.name}: {loaded.campaign.question}")
    rows = [
        [s["condition"], s["seeds"], s["examples"], s["groups"], s["tokens"], s["steps"], s["scale"], s["decisions"]]
        for s in facts["conditions"]
    ]
    columns = ["condition", "seeds", "rows", "groups", "tokens", "steps", "scale", "runs"]
    console.print(
        table("Conditions (one row each; rows and tokens of the first seed)", columns, rows, (1, 2, 3, 4, 5, 6))
    )
    console.print(
        table(
            "Suites",
            ["suite", "items", "groups", "what"],
            [[s["name"], s["items"], s["groups"], s["description"]] for s in facts["suites"]],
            (1, 2),
        )
    )
    for line in facts["sentences"]:
        say(line)
    for design in facts["power"]:
        say(f"power: {design['name']}: {design['sentence']}")
        for warning in design["warnings"]:
            say(f"  warning: {warning}")


@app.command()
def why(
    spec: SpecPath, overrides: Overrides = None, max_steps: MaxSteps = None, logs: Logs = LOGS, as_json: AsJson = False
) -> None:
    """Say per run whether it is reused or made again, and why."""
    _, _, decided, _ = _planned(spec, overrides, max_steps, logs)
    if as_json:
        emit_json(
            {
                "runs": [
                    {
                        "run": r.name,
                        "condition": r.condition,
                        "seed": r.seed,
                        "decision": r.decision,
                        "reason": r.reason,
                        "saves_s": r.saves_s,
                        "key": r.key,
                    }
                    for r in decided.runs
                ],
                "leftover": [{"run": name, "decision": "STALE", "reason": reason} for name, reason in decided.leftover],
            }
        )
        return
    rows = [[r.name, r.decision, "" if r.saves_s is None else f"{r.saves_s:.0f} s", r.reason] for r in decided.runs]
    rows += [[name, "STALE", "", reason] for name, reason in decided.leftover]
    console.print(table("What would be redone, and why", ["run", "decision", "saves", "reason"], rows, (2,)))
    saved = sum(r.saves_s or 0.0 for r in decided.runs)
    say(f"{len(decided.pending)} of {len(decided.runs)} runs would be trained; reuse saves {saved:.0f} s")


@app.command()
def run(
    spec: SpecPath,
    max_steps: MaxSteps = None,
    executor: Annotated[str, typer.Option("--executor", help="where cohorts run: local")] = "local",
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    ] = None,
    cohort_size: Annotated[int, typer.Option("--cohort-size", min=1, help="most runs in one stack")] = 16,
    logs: Logs = LOGS,
    as_json: AsJson = False,
) -> None:
    """Run a campaign, or go on where it stopped, and write its report."""
    if executor != "local":
        raise UserError(f"--executor {executor}: expected local{nearest(executor, ['local'])}")
    from finetrial.campaign.execute import RunOptions
    from finetrial.campaign.execute import run as execute
    from finetrial.report.build import build

    options = RunOptions(logs=logs, max_steps=max_steps, device=device, cohort_size=cohort_size)
    folder = execute(load_spec(spec, overrides or ()), options, _silent if as_json else say)
    built = build(folder.path)
    if as_json:
        emit_json({"folder": str(folder.path), "report": str(built.html), **read_json(built.json)})
    else:
        _print_verdicts(read_json(built.json)["contrasts"])
        say(f"report: {built.html}")


@app.command()
def status(directory: CampaignDir = None, logs: Logs = LOGS, as_json: AsJson = False) -> None:
    """Show which runs are done, running or missing: conditions × seeds."""
    from finetrial.campaign.describe import progress
    from finetrial.campaign.folder import open_folder

    folder = open_folder(directory, logs)
    state = progress(folder)
    if as_json:
        emit_json(state)
        return
    seeds = [str(seed) for seed in state["seeds"]]
    rows = [[condition, *(cells[seed] for seed in seeds)] for condition, cells in state["matrix"].items()]
    console.print(table(f"{state['campaign']}: {state['status']}", ["condition", *[f"seed {s}" for s in seeds]], rows))
    stopped = f", {state['stopped']} stopped by looks" if state["stopped"] else ""
    say(f"{state['done']} of {state['runs']} runs done{stopped}; folder {folder.path}")
    if state["next_look"]:
        say(state["next_look"])


@app.command()
def report(directory: CampaignDir = None, logs: Logs = LOGS, as_json: AsJson = False) -> None:
    """Write the report of a campaign again from its manifest and outcomes."""
    from finetrial.campaign.folder import open_folder
    from finetrial.report.build import build

    built = build(open_folder(directory, logs).path)
    if as_json:
        emit_json({"html": str(built.html), "json": str(built.json), "markdown": str(built.markdown)})
    else:
        say(f"report: {built.html}")


@app.command()
def verdict(
    directory: CampaignDir = None,
    contrast: Annotated[str | None, typer.Option("--contrast", help="only this contrast decides the exit code")] = None,
    logs: Logs = LOGS,
    as_json: AsJson = False,
) -> None:
    """Judge the declared contrasts; exit 0 confirmed, 10 failed, 20 inconclusive, 30 invalid.

    Over several contrasts the exit code is the gravest: invalid, then failed, then inconclusive.
    """
    from finetrial.campaign.folder import open_folder
    from finetrial.report.build import gather
    from finetrial.report.facts import twin

    judged = twin(gather(open_folder(directory, logs).path))
    findings, waiting = judged["contrasts"], judged["unjudged"]
    ahead = judged["looks"]["next"] if judged["looks"] else None
    if contrast is not None:
        names = [finding["contrast"] for finding in findings]
        if contrast not in [*names, *waiting]:
            raise UserError(f"no contrast {contrast!r}{nearest(contrast, names)}; there are: {', '.join(names)}")
        findings = [finding for finding in findings if finding["contrast"] == contrast]
        waiting = [name for name in waiting if name == contrast]
    if not findings and not waiting:
        raise UserError("the campaign declares no [[contrasts]], so there is nothing to decide")
    if as_json:
        emit_json({"contrasts": findings, "not_evaluated_yet": waiting, "next_look": ahead})
    else:
        _print_verdicts(findings)
        for name in waiting:
            say(f"undecided, {ahead}: {name}" if ahead else f"not evaluated yet: {name}")
    verdicts = [finding["verdict"] for finding in findings] + ["INCONCLUSIVE"] * len(waiting)
    gravity = ["INVALID", "FAILED", "INCONCLUSIVE", "CONFIRMED"]
    raise typer.Exit(EXIT_CODES[min(verdicts, key=gravity.index)])


def _planned(spec: Path, overrides: list[str] | None, max_steps: int | None, logs: Path) -> tuple[Spec, Any, Any, Any]:
    from finetrial.campaign.execute import RunOptions, make_plan

    loaded = load_spec(spec, overrides or ())
    options = RunOptions(logs=logs, max_steps=max_steps)
    prepared, decided, _ = make_plan(loaded, options, _silent)
    return loaded, prepared, decided, options


def _print_verdicts(findings: list[dict[str, Any]]) -> None:
    if not findings:
        return
    styles = {"CONFIRMED": "green", "FAILED": "red", "INCONCLUSIVE": "yellow", "INVALID": "bold red"}
    rows = []
    for finding in findings:
        word = finding["verdict"] + (f" ({finding['subtype']})" if finding["subtype"] else "")
        rows.append([Text(word, style=styles[finding["verdict"]]), finding["contrast"], finding["reason"]])
    console.print(table("Verdicts", ["verdict", "contrast", "reason"], rows))


def _silent(_: str) -> None:
    """Say nothing: standard output carries JSON."""
