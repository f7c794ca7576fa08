"""A simulated campaign folder with the whole layout that the report reads, for tests and for looking at pages.

The numbers are drawn from a crossed model, value = base + item + recipe effect + seed effect + noise, so that
charts look like those of real runs. Nothing here is a measurement.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SUITES = {"gold": 0.62, "random": 0.71, "low-quality": 0.80, "held-out-repositories": 0.76, "dialogue": 0.93}
DIMENSIONS = ("retry", "step_ratio", "diversity", "observation_use")


@dataclass(frozen=True)
class Recipe:
    """One simulated condition: its name, number of examples and improvement over the base in nats per token."""

    name: str
    examples: int
    gain: float


SMALL = (
    Recipe("random-500", 500, 0.230),
    Recipe("random-1000", 1000, 0.262),
    Recipe("top-500", 500, 0.251),
    Recipe("top-1000", 1000, 0.281),
    Recipe("bottom-500", 500, 0.206),
)
LARGE = (
    *SMALL,
    Recipe("resolved-500", 500, 0.231),
    Recipe("resolved-1000", 1000, 0.264),
    Recipe("no-efficiency-500", 500, 0.243),
    Recipe("no-style-500", 500, 0.240),
    Recipe("step-ratio-only-within-efficiency-500", 500, 0.246),
    Recipe("retry-cycles-only-within-efficiency-500", 500, 0.249),
    Recipe("observation-use-only-500", 500, 0.236),
    Recipe("action-diversity-only-500", 500, 0.247),
)


def small_contrasts() -> list[dict[str, Any]]:
    """Five declared contrasts and one that is marked exploratory."""
    return [
        contrast("top-500", "random-500", "gold", "Does scoring matter at 500 examples?"),
        contrast("top-1000", "random-1000", "gold", "Does scoring still matter at 1000 examples?"),
        contrast("random-1000", "random-500", "random", "How much does doubling the data help?"),
        contrast("top-500", "bottom-500", "low-quality", "Sanity check: is the best selection better than the worst?"),
        contrast("bottom-500", "random-500", "random", "Is the worst selection as good as chance?"),
        contrast("top-1000", "base", "gold", "Does training help at all?", family="exploratory"),
    ]


def large_contrasts() -> list[dict[str, Any]]:
    """Twenty contrasts, two families, some with long names."""
    suites = ["gold", "random", "low-quality"]
    pairs = [("top-500", "random-500"), ("top-1000", "random-1000"), ("resolved-500", "random-500")]
    rows = [contrast(c, b, s, f"Is {c} better than {b} on {s}?") for c, b in pairs for s in suites]
    ablations = [recipe.name for recipe in LARGE[7:]]
    rows += [contrast("top-500", name, "gold", f"What is lost without what {name} leaves out?") for name in ablations]
    rows += [contrast(n, "base", "random", f"Does {n} learn?", family="exploratory") for n in ablations[:5]]
    return rows


def contrast(candidate: str, baseline: str, suite: str, question: str, family: str = "declared") -> dict[str, Any]:
    """One `[[contrasts]]` table as it stands in a resolved spec."""
    name = f"{candidate} vs {baseline} on {suite}"
    table = {"name": name, "question": question, "candidate": candidate, "baseline": baseline, "suite": suite}
    return {**table, "minus_suite": None, "metric": "nll", "better": "lower", "margin": 0.01, "family": family}


def write_campaign(
    folder: Path,
    recipes: Sequence[Recipe] = SMALL,
    seeds: Sequence[int] = (1, 2, 3),
    suites: Sequence[str] = ("gold", "random", "low-quality"),
    items: int = 60,
    contrasts: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write a complete simulated campaign to `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    declared = list(small_contrasts() if contrasts is None else contrasts)
    manifest = make_manifest(recipes, seeds, suites, items, declared, rng)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    pq.write_table(make_outcomes(recipes, seeds, suites, items, rng), folder / "outcomes.parquet")
    for recipe in recipes:
        for seed in seeds:
            write_run(folder / "runs" / f"{recipe.name}_s{seed}", recipe, seed, rng)
    return folder


def make_outcomes(
    recipes: Sequence[Recipe], seeds: Sequence[int], suites: Sequence[str], items: int, rng: np.random.Generator
) -> pa.Table:
    """Outcomes of the base and of every run on every item, metric `nll`, one row each."""
    rows: list[dict[str, Any]] = []
    for suite in suites:
        level_I = SUITES[suite] + 0.08 * rng.standard_normal(items)
        weight_I = rng.integers(60, 900, items)
        runs = [("base", None, 0.0)]
        for recipe in recipes:
            runs += [(recipe.name, seed, recipe.gain + 0.003 * rng.standard_normal()) for seed in seeds]
        for condition, seed, gain in runs:
            value_I = level_I - gain * (1.0 if suite == "gold" else 0.85) + 0.012 * rng.standard_normal(items)
            for i in range(items):
                row = {"condition": condition, "seed": seed, "suite": suite, "item": f"{suite}-{i:03d}", "sample": 0}
                row |= {"metric": "nll", "value": float(value_I[i]), "weight": float(weight_I[i])}
                rows.append(row | {"group": f"task-{i // 2:03d}", "suite_hash": "5f0c" * 16})
    kinds = {"seed": pa.int64(), "sample": pa.int64(), "value": pa.float64(), "weight": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    return pa.Table.from_pylist(rows, schema=schema)


def make_manifest(
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    suites: Sequence[str],
    items: int,
    contrasts: Sequence[Mapping[str, Any]],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """`manifest.json` of a complete campaign with every section recorded."""
    names = [recipe.name for recipe in recipes]
    spec = {
        "campaign": {
            "name": "trajectory-quality",
            "question": "Does selecting trajectories by quality score beat selecting them at random?",
            "hypothesis": "At equal size, the best-scored trajectories give a lower loss than random ones on every "
            "test set; the gap shrinks as the data grows.",
            "primary_metric": "nll",
            "seeds": list(seeds),
            "decision_rule": "Adopt score-based selection if the 500-example contrast on gold is confirmed.",
        },
        "analysis": {"alpha": 0.05, "margin": 0.01, "correction": "holm"},
        "contrasts": list(contrasts),
        "conditions": [resolved_condition(recipe) for recipe in recipes],
    }
    runs = [run_entry(recipe.name, seed, k) for k, recipe in enumerate(recipes) for seed in seeds]
    trained = sum(run["decision"] != "REUSE" for run in runs)
    train_s = 212.4 * trained
    return {
        "finetrial": "0.1.0",
        "campaign": "trajectory-quality",
        "status": "complete",
        "spec": spec,
        "conditions": ["base", *names],
        "seeds": list(seeds),
        "base": {"name": "builtin/shell-2m", "key": "9b1c" * 16, "parameters": 2_148_352},
        "runs": runs,
        "suites": {
            name: {"hash": "5f0c" * 16, "items": items, "groups": items // 2, "description": f"frozen {name} test set"}
            for name in suites
        },
        "data": make_data(recipes, rng),
        "integrity": [
            {"check": "leak guard", "passed": True, "detail": "0 of 2,500 training rows share id, group or content"},
            {"check": "supervision reaches every adapter", "passed": True, "detail": "all gradients are non-zero"},
            {"check": "untrained adapter equals base", "passed": True, "detail": "largest difference 0"},
            {"check": "stop token is supervised", "passed": True, "detail": "in 100 % of assistant turns"},
        ],
        "timing": {
            "data_s": 41.2,
            "train_s": train_s,
            "evaluate_s": 318.0,
            "model_io_s": 22.6,
            "total_s": train_s + 394.1,
        },
        "provenance": {
            "python": "3.11.9",
            "torch": "2.11.0",
            "platform": "Linux x86_64",
            "numerics_class": "cpu/torch-2.11/float32",
            "git": "4c1f0aa",
            "started": "2026-03-02T08:11:04Z",
            "finished": "2026-03-02T09:57:41Z",
        },
    }


def resolved_condition(recipe: Recipe) -> dict[str, Any]:
    """A condition's resolved tables: those of one strategy differ in `selection.n` alone."""
    strategy = recipe.name.rpartition("-")[0]
    selection = {"strategy": strategy, "n": recipe.examples}
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-4}
    return {"name": recipe.name, "question": "", "selection": selection, "training": training}


def run_entry(condition: str, seed: int, order: int) -> dict[str, Any]:
    """One entry of `runs`: random selections are reused, others retrained, as after a change of formula."""
    decision, reason, saves = "RETRAIN", "212 of 500 ids changed: score.efficiency v2 -> v3", 0.0
    if condition.startswith("random"):
        decision, reason, saves = "REUSE", "same data, recipe and base", 212.4
    elif order >= 5:
        decision, reason = "NEW", "no earlier result"
    folder = f"runs/{condition}_s{seed}"
    entry = {"condition": condition, "seed": seed, "folder": folder, "status": "done", "decision": decision}
    entry |= {"reason": reason, "saves_s": saves, "train_key": f"{order:02x}{seed:02x}" * 16, "steps": 125}
    return entry | {"adapter": f"{folder}/adapter", "cohort": f"c{order // 4}"}


def make_data(recipes: Sequence[Recipe], rng: np.random.Generator) -> dict[str, Any]:
    """The `data` section: pool, score distributions, selections and their overlap."""
    names = [recipe.name for recipe in recipes]
    overlap = np.clip(rng.uniform(0.02, 0.5, (len(names), len(names))), 0, 1)
    overlap = np.round((overlap + overlap.T) / 2, 4)
    np.fill_diagonal(overlap, 1.0)
    correlation = np.eye(4) + 0.0
    for i, j, value in ((0, 1, 0.34), (0, 2, -0.12), (0, 3, 0.05), (1, 2, -0.28), (1, 3, 0.11), (2, 3, 0.41)):
        correlation[i, j] = correlation[j, i] = value
    dimensions: dict[str, Any] = {}
    for k, name in enumerate(DIMENSIONS):
        sample = rng.beta(2 + 2 * k, 3, 4000) if name != "retry" else np.minimum(1, rng.normal(0.97, 0.03, 4000))
        low, q25, median, q75, high = (float(q) for q in np.quantile(sample, [0, 0.25, 0.5, 0.75, 1]))
        dimensions[name] = {"min": low, "q25": q25, "median": median, "q75": q75, "max": high}
        dimensions[name] |= {"mean": float(sample.mean()), "std": float(sample.std()), "share_missing": 0.0}
        dimensions[name] |= {"share_default": 0.18 if name == "observation_use" else 0.0}
        dimensions[name] |= {"flagged": bool(sample.std() < 0.05)}
    scores = {"rows": 8571, "passed": 4102, "max_length": 512, "gate": {"not resolved": 4469}}
    scores |= {"dimensions": dimensions, "flags": [{"dimension": "retry", "reason": "standard deviation below 0.05"}]}
    scores["correlation"] = {"names": list(DIMENSIONS), "matrix": correlation.tolist()}
    reasons = {"no assistant turn": {"rows": 214, "places": ["a.jsonl:17"]}, "duplicate": {"rows": 215, "places": []}}
    return {
        "pool": {"rows": 9000, "kept": 8571, "dropped": 429, "reasons": reasons, "files": []},
        "test_sets": {"redrawn": None, "scorer": "this scorer"},
        "scores": scores,
        "selections": [
            {"condition": r.name, "seed": None, "examples": r.examples, "groups": int(0.7 * r.examples)}
            | {"tokens": r.examples * 412, "tokens_cut": 40 * k, "turns": 9 * r.examples, "key": f"{k:04x}" * 16}
            for k, r in enumerate(recipes)
        ],
        "overlap": {"names": names, "matrix": overlap.tolist(), "nearly_same": []},
    }


def write_run(folder: Path, recipe: Recipe, seed: int, rng: np.random.Generator) -> None:
    """Training metrics and the record of one run; seed 2 of the first recipe lost rows to truncation."""
    folder.mkdir(parents=True)
    steps = recipe.examples // 4
    with (folder / "metrics.jsonl").open("w") as stream:
        for step in range(1, steps + 1):
            loss = 0.45 + 0.6 * np.exp(-step / 30) - recipe.gain / 4 + 0.04 * rng.standard_normal()
            row = {"step": step, "condition": recipe.name, "seed": seed, "loss": round(float(loss), 5)}
            row |= {"learning_rate": 2e-4 * (1 - step / steps), "grad_norm": 1.1, "tokens": 1648}
            stream.write(json.dumps(row) + "\n")
    planned = {"rows": recipe.examples, "tokens": recipe.examples * 412, "supervised_tokens": recipe.examples * 180}
    planned |= {"steps": steps, "scale": 2.0, "rank": 16, "truncated_rows": 0}
    lost = 7 if (recipe.name, seed) == ("random-500", 2) else 0
    realised = planned | {"rows": recipe.examples - lost, "truncated_rows": 2 * lost}
    (folder / "record.json").write_text(json.dumps({"planned": planned, "realised": realised}))
