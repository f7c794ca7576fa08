"""Rows of the tables about reinforcement learning, as text ready to print."""

from collections.abc import Mapping

from finetrial.report.facts import Report
from finetrial.report.learning import HeldOut, held_out, held_out_metric, held_out_suites, summaries
from finetrial.report.tables import Table, flat
from finetrial.report.theme import number


def runs(report: Report) -> Table:
    """What each run did."""
    heads = ["condition", "seed", "steps", "completions", "no grade", "cut at the limit", "tokens", "uninformative"]
    rows = [
        [
            run.condition,
            str(run.seed),
            number(run.steps),
            number(run.completions),
            _share(run.missing_share),
            _share(run.cut),
            number(run.tokens),
            _share(run.uniform_last),
        ]
        for run in summaries(report)
    ]
    return heads, rows


def beside(report: Report) -> Table:
    """Training beside held-out tasks, the base first."""
    suites, metric = held_out_suites(report), held_out_metric(report) or ""
    base = [report.base_mean(suite, metric) for suite in suites]
    rows = [["base", "—", "—", "—", *(number(mean, 3) for mean in base)]] if any(m is not None for m in base) else []
    for run in summaries(report):
        trained = [number(run.trained_first, 3), number(run.trained_last, 3)]
        held = [number(run.held_out[suite], 3) for suite in suites]
        rows.append([run.condition, str(run.seed), *trained, *held])
    return ["condition", "seed", "training, first quarter", "training, last quarter", *suites], rows


def practice(report: Report) -> Table:
    """The tasks that each condition practises on."""
    rows = [
        [
            found["condition"],
            str(found.get("source") or "not recorded"),
            number(found.get("examples")),
            number(found.get("groups")),
            number(found.get("left_out")),
        ]
        for found in report.section("data", "tasks", "practice") or []
    ]
    return ["condition", "source", "tasks", "groups", "left out as held out"], rows


def readings(report: Report) -> list[tuple[str, str]]:
    """What was read, kept and dropped: of every test set of tasks, and of every distinct source that is practised."""
    practised = report.section("data", "tasks", "practice") or []
    of = {f"test set {name}": facts for name, facts in (report.section("data", "tasks", "suites") or {}).items()}
    for found in practised:
        of.setdefault(f"practice from {found.get('source')}", found.get("read") or {})
    return [(f"{name}: {key}", text) for name, facts in of.items() for key, text in flat(facts)]


def _share(share: float | None) -> str:
    return "not recorded" if share is None else "0" if share == 0 else f"{100 * share:.2g} %"


def held_out_steps(report: Report, metric: str) -> Table:
    """Mean of the seeds on every held-out suite at every step, with the lowest and the highest seed."""
    points = [point for point in held_out(report) if point.metric == metric]
    steps = sorted({point.step for point in points})
    rows: dict[tuple[str, str], dict[int, HeldOut]] = {}
    for point in points:
        rows.setdefault((point.condition, point.suite), {})[point.step] = point
    heads = ["condition", "test set", *(f"step {step}" for step in steps)]
    return heads, [[*key, *_at(found, steps)] for key, found in rows.items()]


def _at(found: Mapping[int, HeldOut], steps: list[int]) -> list[str]:
    return [_mean(found[step]) if step in found else "—" for step in steps]


def _mean(point: HeldOut) -> str:
    if len(point.values) == 1:
        return number(point.mean, 3)
    return f"{number(point.mean, 3)} ({number(min(point.values), 3)}–{number(max(point.values), 3)})"
