"""A few sets of completions as they were drawn while training, side by side for the conditions that drew for a prompt.

Only the last step of one run per condition is read, of the seed that most conditions share.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrial.report.completions import last_step

PROMPTS = 2
"""Prompts that are shown, and more where these leave out a condition."""


@dataclass(frozen=True)
class SampledSet:
    """The completions of one prompt in one step of one run."""

    condition: str
    seed: int
    step: int
    task: str
    prompt: str
    completions: tuple[tuple[str, float | None], ...]
    """(text, quality)."""
    diversity: float | None
    score: float | None


def read_sets(folder: Path, manifest: Mapping[str, Any]) -> tuple[SampledSet, ...]:
    """Sets of the last sampling of one run per condition: those of the prompts that most conditions drew for.

    Raises:
        UserError: a complete line of a log is no JSON object with a step.
    """
    logs = {
        (run["condition"], run["seed"]): path
        for run in manifest.get("runs", [])
        if (path := folder / run["folder"] / "emergence" / "generations.jsonl").is_file()
    }
    shared = Counter(seed for _, seed in logs)
    chosen: dict[str, int] = {}
    for condition, seed in sorted(logs, key=lambda key: -shared[key[1]]):
        chosen.setdefault(condition, seed)
    found = [one for key in logs if chosen[key[0]] == key[1] for one in _sets(key, logs[key])]
    return tuple(one for prompt in _told(found) for one in found if one.prompt == prompt)


def _sets(run: tuple[str, int], path: Path) -> list[SampledSet]:
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in last_step(path):
        if "set_diversity" in row:
            tasks.setdefault(row["task"], []).append(row)
    return [
        SampledSet(
            *run,
            step=rows[0]["step"],
            task=task,
            prompt=rows[0]["prompt"],
            completions=tuple((row["completion"], row["correct"]) for row in rows),
            diversity=rows[0]["set_diversity"],
            score=rows[0]["reward"],
        )
        for task, rows in tasks.items()
    ]


def _told(found: list[SampledSet]) -> list[str]:
    """Prompts to show: those of most conditions first, until there are enough and every condition has one."""
    counted = Counter(one.prompt for one in found)
    missing, told = {one.condition for one in found}, []
    for prompt, _ in counted.most_common():
        having = {one.condition for one in found if one.prompt == prompt}
        if len(told) < PROMPTS or having & missing:
            told.append(prompt)
            missing -= having
    return told


def by_prompt(sets: tuple[SampledSet, ...]) -> dict[str, list[SampledSet]]:
    """prompt -> its sets, one per condition."""
    grouped: dict[str, list[SampledSet]] = {}
    for one in sets:
        grouped.setdefault(one.prompt, []).append(one)
    return grouped
