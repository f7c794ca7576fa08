"""Simulated run folders in the layout of an RL trainer, for tests. Nothing here is a measurement."""

import json
from pathlib import Path

import numpy as np

BATCH, GROUP = 4, 8


def write_run(
    folder: Path, rate: float, rng: np.random.Generator, steps: int = 12, generations: str = "all", first: int = 0
) -> Path:
    """One run whose completions are right with probability `rate`.

    `generations` is `all`, `best` (only the best completion of partly right groups, the layout's default) or `none`.
    """
    (folder / "emergence").mkdir(parents=True)
    metrics, counts, texts = [], [], []
    for step in range(first, first + steps):
        right_BG = rng.random((BATCH, GROUP)) < rate
        correct, total = int(right_BG.sum()), right_BG.size
        row = {"step": step, "mean_reward": correct / total, "correct_rate": correct / total}
        metrics.append(row | {"batch_size": BATCH, "group_size": GROUP, "loss": 0.1})
        counts.append({"step": step, "mean_reward": correct / total, "correct_count": correct, "total_count": total})
        for prompt in range(BATCH):
            rewards = [float(right) for right in right_BG[prompt]]
            if generations == "best":
                rewards = [max(rewards)] if 0 < sum(rewards) < GROUP else []
            texts += [{"step": step, "prompt": f"p{prompt}", "completion": "c", "reward": r} for r in rewards]
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "emergence" / "steps.jsonl", counts)
    if generations != "none":
        write_lines(folder / "emergence" / "generations.jsonl", texts)
    return folder


def write_arms(
    root: Path, rates: dict[str, float], runs: int, seed: int = 0, spread: float = 0.01, steps: int = 12
) -> Path:
    """`runs/<condition>_s<seed>` for every condition."""
    rng = np.random.default_rng(seed)
    for condition, rate in rates.items():
        for s in range(runs):
            write_run(root / "runs" / f"{condition}_s{s}", rate + spread * rng.standard_normal(), rng, steps)
    return root


def write_lines(path: Path, rows: list[dict]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
