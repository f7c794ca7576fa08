"""Run folders of an RL trainer: `runs/<condition>_s<seed>/metrics.jsonl` and `emergence/{steps,generations}.jsonl`.

What counts per step: `mean_reward` and `correct_rate` (from `correct_count` of `total_count` in steps.jsonl, else
`correct_rate` of metrics.jsonl). `generations.jsonl` holds single completions, often not all of them: the trainer this
layout comes from keeps, by default, only the best completion of groups that are partly right. Rates over such rows say
what was logged, not what the model does; when data has that shape it is said, and the rows are used for nothing.

Shapes: T steps, C completions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from finetrial.analyze.readers.shared import Foreign, as_number, json_lines, run_name
from finetrial.errors import UserError, nearest

CORRECT_FROM = 0.99
"""Reward from which a completion counts as correct, where the log does not say."""
MEASURES = ("mean_reward", "correct_rate")
LIFTS = {"mean_reward": 0.01, "correct_rate": 0.005}
"""Lifts that count where the user names none: thresholds of the litmus, planning effects of the significance report."""
_FILES = ("metrics.jsonl", "emergence/steps.jsonl", "emergence/generations.jsonl")


@dataclass
class RunLog:
    """One training run as its folder tells it; NaN where a step lacks a number."""

    folder: Path
    condition: str
    seed: int | None
    steps_T: np.ndarray
    """Step numbers, ascending."""
    values_T: Mapping[str, np.ndarray]
    """`mean_reward` and `correct_rate` of each step."""
    correct_T: np.ndarray
    """Correct completions of each step; NaN where no count is logged."""
    total_T: np.ndarray
    """Completions of each step; NaN where no count is logged."""
    rewards_C: np.ndarray
    """Rewards of the completions in generations.jsonl."""
    correct_C: np.ndarray
    complete: bool
    """Whether generations.jsonl holds every completion that was sampled, as far as one can tell."""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def completions(self) -> int:
        """Completions that the run's numbers rest on."""
        counted = int(np.nansum(self.total_T))
        return counted or len(self.rewards_C)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders at, or one or two levels below, the given folders."""
    found: list[Path] = []
    for path in paths:
        levels = [[path], sorted(path.glob("*")), sorted(path.glob("runs/*"))]
        for candidates in levels:
            runs = [p for p in candidates if p.is_dir() and any((p / file).is_file() for file in _FILES)]
            if runs:
                found += runs
                break
    return list(dict.fromkeys(found))


def expand(patterns: Sequence[str]) -> list[Path]:
    """Run folders that the patterns match, as a shell would expand them.

    Raises:
        UserError: a pattern matches no folder that holds a run.
    """
    runs: list[Path] = []
    for pattern in patterns:
        matches = [Path(match) for match in sorted(glob(pattern))] or (
            [Path(pattern)] if Path(pattern).is_dir() else []
        )
        found = find_runs([match for match in matches if match.is_dir()])
        if not found:
            parent = Path(pattern).parent
            siblings = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
            raise UserError(
                f"{pattern}: matches no run folder (one with metrics.jsonl or emergence/)"
                f"{nearest(Path(pattern).name, siblings)}"
            )
        runs += found
    return list(dict.fromkeys(runs))


def load_runs(folders: Sequence[Path]) -> list[RunLog]:
    """Read every run folder."""
    return [load_run(folder) for folder in folders]


def load_run(folder: Path) -> RunLog:
    """Read one run folder.

    Raises:
        UserError: a line is not a JSON object, or a row has no `step`.
    """
    notes: list[str] = []
    metrics = _by_step(folder / "metrics.jsonl", notes)
    counts = _by_step(folder / "emergence" / "steps.jsonl", notes)
    steps = sorted(metrics.keys() | counts.keys())
    columns: dict[str, list[float]] = {name: [] for name in (*MEASURES, "correct", "total")}
    for step in steps:
        row, count = metrics.get(step, {}), counts.get(step, {})
        total, correct = as_number(count.get("total_count")), as_number(count.get("correct_count"))
        rate = as_number(row.get("correct_rate"))
        if total is None and (size := _sampled(row)) is not None and rate is not None:
            total, correct = size, round(rate * size)
        if total and correct is not None:
            rate = correct / total
        reward = as_number(row.get("mean_reward"))
        reward = as_number(count.get("mean_reward")) if reward is None else reward
        for name, value in zip(columns, (reward, rate, correct, total), strict=True):
            columns[name].append(np.nan if value is None else value)
    arrays = {name: np.array(column, dtype=float) for name, column in columns.items()}
    gaps = int(steps[-1] - steps[0] + 1 - len(steps)) if steps else 0
    if gaps:
        notes.append(
            f"{gaps} steps between {steps[0]} and {steps[-1]} have no row (a trainer may skip steps whose "
            "groups are all right or all wrong)"
        )
    rewards_C, correct_C, complete = _generations(
        folder / "emergence" / "generations.jsonl", arrays["total"], arrays["correct"], notes
    )
    named = run_name(folder.name)
    declared = next(
        (str(row["condition"]) for row in (*metrics.values(), *counts.values()) if row.get("condition")), None
    )
    condition, seed = named or (
        declared or folder.name,
        next((int(row["seed"]) for row in metrics.values() if isinstance(row.get("seed"), int)), None),
    )
    values_T = {name: arrays[name] for name in MEASURES}
    return RunLog(
        folder,
        condition,
        seed,
        np.array(steps, dtype=int),
        values_T,
        arrays["correct"],
        arrays["total"],
        rewards_C,
        correct_C,
        complete,
        notes,
    )


def outcomes(runs: Sequence[RunLog]) -> Foreign:
    """The steps of the runs as outcomes: suite `training`, a step is an item.

    Raises:
        UserError: no run logs mean_reward or correct_rate.
    """
    logged = [name for name in MEASURES if any(not np.isnan(run.values_T[name]).all() for run in runs)]
    if not logged:
        raise UserError(f"{', '.join(run.name for run in runs)}: no step has mean_reward or correct_rate")
    foreign = Foreign("run folders")
    foreign.notes.append("these are rewards on the training prompts while training, not a held-out evaluation")
    for run in runs:
        for name in logged:
            for step, value in zip(run.steps_T, run.values_T[name], strict=True):
                number = None if np.isnan(value) else float(value)
                foreign.add((run.condition, run.seed), "training", f"step {step:06d}", 0, name, number)
        foreign.notes += [f"{run.name}: {note}" for note in run.notes]
    return foreign


def common_steps(runs: Sequence[RunLog], measure: str) -> np.ndarray:
    """Steps at which every run has a value of `measure`, ascending."""
    steps: set[int] | None = None
    for run in runs:
        have = set(run.steps_T[~np.isnan(run.values_T[measure])].tolist())
        steps = have if steps is None else steps & have
    return np.array(sorted(steps or ()), dtype=int)


def _by_step(path: Path, notes: list[str]) -> dict[int, dict[str, Any]]:
    """Rows by step; a step that occurs twice with different numbers is missing."""
    rows: dict[int, dict[str, Any]] = {}
    conflicting: set[int] = set()
    repeated = 0
    if not path.is_file():
        return rows
    for line, row in enumerate(json_lines(path), 1):
        step = row.get("step")
        if not isinstance(step, int):
            raise UserError(f"{path}:{line}: no whole number 'step'{nearest('step', row)}")
        if step in rows:
            repeated += 1
            keys = ("mean_reward", "correct_rate", "correct_count", "total_count")
            if any(row.get(key) != rows[step].get(key) for key in keys):
                conflicting.add(step)
        rows[step] = row
    if repeated:
        notes.append(
            f"{path.name} repeats {repeated} steps (a run that was started again?); {len(conflicting)} of them "
            "with other numbers, which are taken as missing"
        )
    return {step: row for step, row in rows.items() if step not in conflicting}


def _sampled(row: Mapping[str, Any]) -> float | None:
    """Completions of a step: prompts per step × completions per prompt."""
    batch, group = as_number(row.get("batch_size")), as_number(row.get("group_size"))
    return None if batch is None or group is None else batch * group


def _generations(
    path: Path, total_T: np.ndarray, correct_T: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(rewards, correct or not, whether these are all completions) of generations.jsonl."""
    rewards, correct = [], []
    groups: Counter[tuple[Any, Any]] = Counter()
    if path.is_file():
        for line, row in enumerate(json_lines(path), 1):
            reward = as_number(row.get("reward"))
            if reward is None:
                raise UserError(f"{path}:{line}: no number 'reward'{nearest('reward', row)}")
            told = (row.get("metadata") or {}).get("correctness", row.get("correct"))
            rewards.append(reward)
            correct.append(reward >= CORRECT_FROM if told is None else bool(told))
            groups[row.get("step"), row.get("prompt")] += 1
    rewards_C, correct_C = np.array(rewards, dtype=float), np.array(correct, dtype=bool)
    if not len(rewards_C):
        return rewards_C, correct_C, False
    sampled = float(np.nansum(total_T))
    alone = max(groups.values()) == 1
    if sampled and len(rewards_C) < sampled:
        known = ~np.isnan(total_T) & ~np.isnan(correct_T)
        rate = float(correct_T[known].sum() / total_T[known].sum())
        best = " It looks like the best completion of each group." if alone and correct_C.mean() > rate else ""
        notes.append(
            f"generations.jsonl holds {len(rewards_C)} of {sampled:.0f} completions, {correct_C.mean():.0%} of them "
            f"correct where the steps say {rate:.0%}: a selection, not used.{best}"
        )
        return rewards_C, correct_C, False
    if alone and (correct_C.all() or not sampled):
        notes.append(
            "generations.jsonl holds one completion per prompt and step and nothing says how many were sampled: it may "
            "be only the best one of each group, so it is not used"
        )
        return rewards_C, correct_C, False
    return rewards_C, correct_C, True
