"""What runs of reinforcement learning did: their metrics over steps, what each run came to, what to warn of.

A run is one of reinforcement learning when its rows carry `correct_rate` or `mean_reward`. A field that is absent
from a row is missing there; a mean over steps is then one over the steps that have it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetrial.analyze.metrics import known
from finetrial.report.facts import Cell, Report, RunFacts, SeedMean, snapshot_of
from finetrial.report.theme import count, number

CURVE_POINTS = 60
WARN_MISSING, WARN_CUT, WARN_UNIFORM, WARN_RISE = 0.05, 0.2, 0.5, 0.02
"""Shares above which a reader is warned: grades missing, completions cut, groups without information in the last
quarter; and the rise of the training reward that must show in held-out tasks."""


def policies(report: Report) -> list[RunFacts]:
    """Runs of reinforcement learning that logged a step."""
    return [run for run in report.runs if is_policy(run)]


def is_policy(run: RunFacts) -> bool:
    """Whether it is a run of reinforcement learning."""
    return any("correct_rate" in row or "mean_reward" in row for row in run.curve)


def values(run: RunFacts, field: str) -> list[tuple[int, float]]:
    """(step, value) of the rows with a finite value."""
    found = ((int(row["step"]), row.get(field)) for row in run.curve)
    return [(step, float(value)) for step, value in found if value is not None and math.isfinite(value)]


def last_step(runs: Sequence[RunFacts]) -> int:
    """The last step that any of the runs logged."""
    return max((int(row["step"]) for run in runs for row in run.curve), default=0)


def traces(runs: Sequence[RunFacts], steps: int, field: str) -> list[dict[str, float]]:
    """One row per seed and bin of steps: step (centre of the bin), seed, mean (over the bin)."""
    width = _width(steps)
    rows = []
    for run in runs:
        bins: dict[int, list[float]] = {}
        for step, value in values(run, field):
            bins.setdefault((step - 1) // width, []).append(value)
        rows += [
            {"step": bin_ * width + (width + 1) / 2, "seed": run.seed, "mean": math.fsum(found) / len(found)}
            for bin_, found in sorted(bins.items())
        ]
    return rows


def _width(steps: int) -> int:
    """Steps that one point of a curve averages."""
    return max(1, math.ceil(steps / CURVE_POINTS))


def steps_per_point(steps: int) -> str:
    """A sentence on how many steps a point of a curve averages, or nothing where it is one."""
    return f" Each point averages {_width(steps)} steps." if _width(steps) > 1 else ""


def same_reward(report: Report) -> bool:
    """Whether the mean reward is the share of right answers in every step that has both."""
    pairs = [
        (row["mean_reward"], row["correct_rate"])
        for run in policies(report)
        for row in run.curve
        if row.get("mean_reward") is not None and row.get("correct_rate") is not None
    ]
    return bool(pairs) and all(math.isclose(reward, rate, abs_tol=1e-9) for reward, rate in pairs)


def binned(runs: Sequence[RunFacts], steps: int, field: str) -> list[dict[str, float]]:
    """Mean, lowest and highest seed per bin of steps: step, mean, low, high."""
    at: dict[float, list[float]] = {}
    for row in traces(runs, steps, field):
        at.setdefault(row["step"], []).append(row["mean"])
    return [
        {"step": step, "mean": math.fsum(found) / len(found), "low": min(found), "high": max(found)}
        for step, found in sorted(at.items())
    ]


@dataclass(frozen=True)
class RunSummary:
    """What one run did; None where its rows do not say."""

    condition: str
    seed: int
    steps: int
    completions: int | None
    missing_grades: int | None
    cut: float | None
    """Share of completions that reached the limit of tokens, over all steps."""
    tokens: int | None
    trained_first: float | None
    """Mean share of right answers in training over the first quarter of the steps."""
    trained_last: float | None
    """The same over the last quarter."""
    reward_first: float | None
    reward_last: float | None
    uniform_last: float | None
    """Share of groups whose completions all got one reward, over the last quarter."""
    held_out: dict[str, float | None]
    """suite -> mean of the held-out metric after the last step."""

    @property
    def missing_share(self) -> float | None:
        """Share of completions without a grade."""
        if self.missing_grades is None or not self.completions:
            return None
        return self.missing_grades / self.completions


def summaries(report: Report) -> list[RunSummary]:
    """One entry per run of reinforcement learning, in the manifest's order."""
    return [_summary(report, run) for run in policies(report)]


def _summary(report: Report, run: RunFacts) -> RunSummary:
    quarter = math.ceil(len(run.curve) / 4)
    first, last = run.curve[:quarter], run.curve[-quarter:]
    metric = held_out_metric(report)
    cells = {suite: report.cell(run.condition, suite, metric) for suite in held_out_suites(report)} if metric else {}
    return RunSummary(
        condition=run.condition,
        seed=run.seed,
        steps=len(run.curve),
        completions=_total(run.curve, _drawn, "batch_size", "group_size"),
        missing_grades=_total(run.curve, lambda row: row["missing_grades"], "missing_grades"),
        cut=_mean(run.curve, "max_token_hit_rate"),
        tokens=_total(run.curve, lambda row: row["tokens_per_step"], "tokens_per_step"),
        trained_first=_mean(first, "correct_rate"),
        trained_last=_mean(last, "correct_rate"),
        reward_first=_mean(first, "mean_reward"),
        reward_last=_mean(last, "mean_reward"),
        uniform_last=_mean(last, "reward_uniform_group_rate"),
        held_out={suite: _of_seed(cell, run.seed) for suite, cell in cells.items()},
    )


def _drawn(row: Mapping[str, Any]) -> float:
    """Completions of a step: of the groups learned from and of those passed over for being uniform."""
    return (row["batch_size"] + row.get("passed_over_groups", 0)) * row["group_size"]


def _mean(rows: Sequence[Any], field: str) -> float | None:
    found = [float(row[field]) for row in rows if row.get(field) is not None]
    return math.fsum(found) / len(found) if found else None


def _total(rows: Sequence[Any], of: Callable[[Any], float], *fields: str) -> int | None:
    found = [of(row) for row in rows if all(row.get(field) is not None for field in fields)]
    return round(math.fsum(found)) if found else None


def _of_seed(cell: Cell | None, seed: int) -> float | None:
    return None if cell is None else next((found.mean for found in cell.seeds if found.seed == seed), None)


def held_out_metric(report: Report) -> str | None:
    """The proportion by which held-out tasks are told: the primary metric where it is one, else the first."""
    shares = [metric for metric in report.metrics if (fact := known(metric)) and fact.unit == "proportion"]
    return shares[0] if shares else None


def held_out_suites(report: Report) -> list[str]:
    """Suites with values of that metric."""
    metric = held_out_metric(report)
    return [s for s in report.suites if any(cell.suite == s and cell.metric == metric for cell in report.cells)]


@dataclass(frozen=True)
class HeldOut:
    """A condition on a held-out suite after so many steps."""

    condition: str
    suite: str
    metric: str
    step: int
    values: tuple[float, ...]
    """Mean over the items, per seed."""

    @property
    def mean(self) -> float:
        """Mean of the seeds."""
        return math.fsum(self.values) / len(self.values)


def held_out(report: Report) -> list[HeldOut]:
    """Every condition on suites with snapshots: the base as step 0, the snapshots, the end at a run's last step.

    A run that was stopped ends there. Where a guard kept an earlier adapter, what the suite measured is not the end,
    and is left out.
    """
    tracked = {(snapshot_of(cell.suite)[0], cell.metric) for cell in report.snapshots}
    ends = {(run["condition"], run["seed"]): run.get("steps") for run in report.section("runs") or []}
    ends |= {(run.condition, run.seed): last_step([run]) for run in report.runs if run.curve}
    earlier = {(run.condition, run.seed) for run in report.runs if _kept_earlier(run)}
    points: dict[tuple[str, str, str, int], list[float]] = {}

    def put(cell: Cell, seed: SeedMean, suite: str, step: int | None) -> None:
        if seed.mean is not None and step is not None:
            points.setdefault((cell.condition, suite, cell.metric, step), []).append(seed.mean)

    for cell in report.snapshots:
        suite, step = snapshot_of(cell.suite)
        for seed in cell.seeds:
            end = None if seed.seed is None else ends.get((cell.condition, seed.seed))
            if end is None or step < end or (step == end and (cell.condition, seed.seed) in earlier):
                put(cell, seed, suite, step)
    for cell in report.cells:
        if (cell.suite, cell.metric) in tracked:
            for seed in cell.seeds:
                if (cell.condition, seed.seed) not in earlier:
                    put(cell, seed, cell.suite, 0 if seed.seed is None else ends.get((cell.condition, seed.seed)))
    order = {name: k for k, name in enumerate(report.conditions)}
    found = [HeldOut(*key, tuple(means)) for key, means in points.items()]
    return sorted(found, key=lambda point: (point.suite, point.metric, order[point.condition], point.step))


def _kept_earlier(run: RunFacts) -> bool:
    """Whether a guard kept another adapter than the last one."""
    guard = run.record.get("stopping") or {}
    return guard.get("selected") != guard.get("last_adapter")


def stopped_told(runs: Iterable[RunFacts]) -> str:
    """That lines of some of these runs end before the others, with a space before it; nothing where none does."""
    ended = any(run.stopped_at is not None for run in runs)
    return " A run that its guard stopped ends there; later points are of the others." if ended else ""


def ends_told(report: Report, conditions: Sequence[str]) -> str:
    """What guards have to do with where the curves of `held_out` end, as `stopped_told`."""
    runs = [run for run in report.runs if run.condition in conditions]
    kept = any(_kept_earlier(run) for run in runs)
    earlier = " Where a guard kept an earlier adapter, verdicts rest on that one, and the run has no dot at its end."
    return stopped_told(runs) + (earlier if kept else "")


def held_out_metrics(report: Report) -> list[str]:
    """Metrics with snapshots, the primary one first."""
    measured = {cell.metric for cell in report.snapshots}
    return [metric for metric in report.metrics if metric in measured]


def warnings(report: Report) -> list[str]:
    """What makes the numbers of training runs doubtful, a sentence per condition and kind."""
    found = summaries(report)
    told = []
    for condition in dict.fromkeys(run.condition for run in found):
        runs = [run for run in found if run.condition == condition]
        told += _not_carried_over(report, condition, runs)
        told += _told(runs, WARN_MISSING, lambda run: run.missing_share, _MISSING)
        told += _told(runs, WARN_UNIFORM, lambda run: run.uniform_last, _UNIFORM)
        told += _told(runs, WARN_CUT, lambda run: run.cut, _CUT)
    return told


_MISSING = "of the completions have no grade; they are left out of training and of every rate"
_UNIFORM = "of the groups of the last quarter of training got one reward for all their completions and taught nothing"
_CUT = "of the completions were cut at the limit of tokens, where an answer may have been lost"


def _told(
    runs: Sequence[RunSummary], limit: float, share: Callable[[RunSummary], float | None], what: str
) -> list[str]:
    above = [(run, value) for run in runs if (value := share(run)) is not None and value > limit]
    if not above:
        return []
    shares = sorted({f"{100 * value:.0f}" for _, value in above}, key=int)
    ends = shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
    which = "" if len(above) == len(runs) else f" ({_seeds([run for run, _ in above])} of {count(len(runs), 'run')})"
    return [f"{above[0][0].condition}{which}: {ends} % {what}."]


def _seeds(runs: Sequence[RunSummary]) -> str:
    return f"seed{'' if len(runs) == 1 else 's'} {', '.join(str(run.seed) for run in runs)}"


def _not_carried_over(report: Report, condition: str, runs: Sequence[RunSummary]) -> list[str]:
    """A reward that rises in every run by enough while held-out tasks are solved no better than by the base."""
    ends = [(r.reward_first, r.reward_last) for r in runs]
    whole = [(first, last) for first, last in ends if first is not None and last is not None]
    if not whole or any(last <= first for first, last in whole):
        return []
    first, last = (math.fsum(pair[k] for pair in whole) / len(whole) for k in (0, 1))
    if last - first < WARN_RISE:
        return []
    told = []
    metric = held_out_metric(report)
    for suite in held_out_suites(report):
        base = report.base_mean(suite, metric or "")
        cell = report.cell(condition, suite, metric or "")
        if base is not None and cell is not None and cell.mean is not None and cell.mean <= base:
            told.append(
                f"{condition}: the reward in training rose from {number(first, 3)} to {number(last, 3)} (first and "
                f"last quarter, mean of {count(len(whole), 'run')}), but {metric} on the held-out {suite} did not: "
                f"{number(cell.mean, 3)} against {number(base, 3)} of the base. What was learned may not carry over."
            )
    return told


def facts(report: Report) -> dict[str, Any] | None:
    """The same for machines; None without runs of reinforcement learning."""
    found = summaries(report)
    if not found:
        return None
    return {
        "runs": [asdict(run) | {"missing_share": run.missing_share} for run in found],
        "held_out_metric": held_out_metric(report),
        "held_out_over_steps": [asdict(point) | {"mean_of_seeds": point.mean} for point in held_out(report)],
        "warnings": warnings(report),
    }
