"""A simulated campaign folder of a new task against kept skills: all kinds of suites, snapshots, diversity, a judge.

Nothing here is a measurement.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.campaign.items import SCHEMA

STEPS = (20, 40)
LAST = 60

CONDITIONS = {"plain": (0.45, 0.22), "replay-20": (0.36, 0.07), "anchored-0.03": (0.33, 0.05), "low-rate": (0.12, 0.02)}
"""Condition -> (what it gains on the new task, what it loses of the others)."""

SUITES: dict[str, dict[str, Any]] = {
    "new_task": {"kind": "tasks", "items": 40, "chance": None, "metric": "correct", "level": 0.25, "samples": 8},
    "physics": {"kind": "choice", "items": 60, "chance": 0.25, "metric": "acc", "level": 0.62},
    "arithmetic": {"kind": "choice", "items": 40, "chance": 0.25, "metric": "acc", "level": 0.97},
    "new_texts": {"kind": "perplexity", "items": 30, "chance": None, "metric": "nll", "level": 1.28},
}
CATEGORIES = ("mechanics", "optics", "heat", "waves")
DIVERSE = {"distinct_1": 0.4, "distinct_2": 0.6, "self_bleu_2": 0.5, "self_bleu_4": 0.3, "ead_2": 0.7, "rouge_1": 0.3}


def write_kept_campaign(folder: Path, judge: bool = True) -> Path:
    """Write the folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    rows = [row for name, suite in SUITES.items() for row in _suite_rows(name, suite, rng)]
    kinds = {"seed": pa.int64(), "sample": pa.int64(), "value": pa.float64(), "weight": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "outcomes.parquet")
    items = [
        {
            "suite": name,
            "item": f"{name}-{k:03d}",
            "group": f"g{k}",
            "category": CATEGORIES[k % 4] if name == "physics" else None,
            "prompt": f"Question {k} of {name}: a body of {k + 1} kg falls for {k + 2} s; how <b>fast</b> is it?",
            "reference": "42",
        }
        for name, suite in SUITES.items()
        for k in range(suite["items"])
    ]
    pq.write_table(pa.Table.from_pylist(items, schema=SCHEMA), folder / "items.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest(judge)))
    return folder


def _suite_rows(name: str, suite: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    n, rows = suite["items"], []
    ease_I = rng.normal(0, 0.15, n)
    for condition, (gain, loss) in {"base": (0.0, 0.0), **CONDITIONS}.items():
        change = gain if name.startswith("new") else -loss
        for seed in (None,) if condition == "base" else (1, 2, 3):
            luck = 0.0 if seed is None else rng.normal(0, 0.015)
            for step in (None,) if condition == "base" else (*STEPS, None):
                part = 1.0 if step is None else step / LAST
                where = name if step is None else f"{name}@{step}"
                for k in range(n):
                    place = {"condition": condition, "seed": seed, "suite": where, "item": f"{name}-{k:03d}"}
                    moved = part * change + (luck if change else 0.0)
                    for metric, sample, value in _values(suite, ease_I[k], moved, gain * part, rng):
                        row = {**place, "sample": sample, "metric": metric, "value": value, "weight": 1.0}
                        rows.append({**row, "group": f"g{k}", "suite_hash": f"{name}-hash"})
    return rows


def _values(
    suite: dict[str, Any], ease: float, moved: float, distance: float, rng: np.random.Generator
) -> list[tuple[str, int, float]]:
    if suite["kind"] == "perplexity":
        nll = suite["level"] - moved + ease + rng.normal(0, 0.02)
        kl = max(0.0, 0.6 * distance + abs(rng.normal(0, 0.01))) if distance else 0.0
        return [("nll", 0, nll), ("log_perplexity", 0, nll), ("bits_per_byte", 0, nll / 2), ("kl_to_base", 0, kl)]
    share = float(np.clip(suite["level"] + ease + moved, 0, 1))
    if suite["kind"] == "choice":
        right = float(rng.random() < share)
        return [("acc", 0, right), ("acc_norm", 0, right), ("acc_letter", 0, float(rng.random() < share))]
    found = []
    for sample in range(suite["samples"]):
        right = float(rng.random() < share)
        found += [("correct", sample, right), ("correct_relaxed", sample, max(right, float(rng.random() < 0.1)))]
    narrow = 0.3 * distance
    return [
        *found,
        *((metric, 0, float(np.clip(level - narrow + rng.normal(0, 0.05), 0, 1))) for metric, level in DIVERSE.items()),
    ]


def manifest(judge: bool) -> dict[str, Any]:
    """`manifest.json` of the complete campaign."""
    tradeoffs = [
        {"title": "New task against kept skills", "x": ["new_task:correct"], "y": ["physics:acc", "arithmetic:acc"]},
        {"title": "", "x": ["new_task:correct"], "y": ["new_task:distinct_2"]},
    ]
    suites = {
        name: {
            "hash": f"{name}-hash",
            "items": suite["items"],
            "groups": suite["items"],
            "description": f"simulated {suite['kind']}",
            "kind": suite["kind"],
            "prompt": "",
        }
        | ({"chance": suite["chance"]} if suite["chance"] else {})
        for name, suite in SUITES.items()
    }
    suites["physics"]["subset"] = {
        "n": 60,
        "of": 400,
        "by": "topic",
        "strata": {},
        "left_out": [],
        "design_effect": 1.02,
        "variance_against_full": 6.8,
    }
    runs = [
        {
            "condition": name,
            "seed": seed,
            "folder": f"runs/{name}_s{seed}",
            "status": "done",
            "decision": "NEW",
            "reason": "no earlier result",
            "saves_s": None,
            "train_key": "0" * 64,
            "steps": LAST,
        }
        for name in CONDITIONS
        for seed in (1, 2, 3)
    ]
    found: dict[str, Any] = {
        "finetrial": "0.1.0",
        "campaign": "forgetting",
        "status": "complete",
        "spec": {
            "campaign": {"name": "forgetting", "question": "What does a new task cost?", "primary_metric": "correct"},
            "analysis": {"alpha": 0.05, "margin": 0.02, "correction": "holm", "tradeoffs": tradeoffs},
            "contrasts": [
                {"name": "replay keeps physics", "candidate": "replay-20", "baseline": "plain", "suite": "physics"}
                | {"metric": "acc"}
            ],
        },
        "conditions": ["base", *CONDITIONS],
        "seeds": [1, 2, 3],
        "runs": runs,
        "suites": suites,
        "snapshots": list(STEPS),
        "integrity": [],
    }
    return found | ({"judges": [judge_entry()]} if judge else {})


def judge_entry() -> dict[str, Any]:
    """A judge with six sessions, the last but one of which drifted."""
    means = (0.61, 0.612, 0.604, 0.615, 0.55, 0.608)
    checks = [
        {"check": "gold answers at the top", "n": 20, "as_wanted": 20, "missing": 0, "threshold": 0.9, "passed": True},
        {"check": "wrong answers at the bottom", "n": 20, "as_wanted": 17, "missing": 1, "threshold": 0.8}
        | {"passed": True},
    ]
    for check in checks:
        check["share"] = check["as_wanted"] / check["n"]
    sessions = [
        {
            "session": f"2026-03-{k + 1:02d}T08:00:00.000000+00:00",
            "scores": [0.6] * 60,
            "mean": mean,
            "centre": 0.609 if k else None,
            "low": 0.585 if k else None,
            "high": 0.633 if k else None,
            "drifted": mean < 0.58,
            "reason": "first session: the baseline" if not k else f"mean {mean:.4f} against 0.5850 to 0.6330",
        }
        for k, mean in enumerate(means)
    ]
    return {
        "model": "judge-1",
        "served": ["judge-1-2026"],
        "kind": "single",
        "scale": [1, 10],
        "prompt": "f00d" * 16,
        "outcomes": {
            "graded": 640,
            "missing": 3,
            "lost": 0,
            "judgments": 612,
            "served": ["judge-1-2026"],
            "asked_again": 5,
            "read_by": {"json": 609, "unread": 3},
            "floor_share": 0.02,
            "ceiling_share": 0.4,
            "order_disagreement": None,
        },
        "launch": {"graded": 0, "missing": 0, "pending": 0, "requests": 60, "retried": 4, "asked_again": 0},
        "first_prompt": "Grade this <answer>.",
        "self_test": {"model": "judge-1", "passed": True, "sentence": "judge-1: 2 checks passed", "checks": checks},
        "control": {"judge": "j", "prompt": "p", "baseline": "b", "sessions": sessions, "in_control": True},
    }
