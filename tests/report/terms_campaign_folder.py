"""A simulated campaign whose conditions have auxiliary terms, mixtures and guards, with records as runs leave them.

Nothing here is a measurement: the numbers are made up so that every table, chart and warning has something to say.
"""

import json
from pathlib import Path
from typing import Any

from campaign_folder import Recipe, contrast, write_campaign

STEPS, SEEDS = 10, (1, 2)
MODEL: dict[str, Any] = {"lora_rank": 8, "lora_alpha": None, "rslora": False, "init": "lora", "dora": False}
SETS = {"score": "self_bleu", "weight": 1.0, "gradient_share": None, "n_generations": 3, "quality": None}
GUARD = {"suite": "watched", "metric": "nll", "every": 2, "patience": 2, "floor": 0.1, "select": "best"}
MIXED = {
    "unit": "tokens",
    "parts": [
        {"name": "replay", "source": "r.jsonl", "limit": None, "ratio": [[0, 0.6], [1, 0.2]]},
        {"name": "extra", "source": "e.jsonl", "limit": None, "ratio": 0.1},
    ],
}
RECIPES = {
    "plain": {},
    "sets-0.5": {"set_diversity": SETS | {"weight": 0.5}},
    "sets-2": {"set_diversity": SETS | {"weight": 2.0}},
    "sets-share": {"set_diversity": SETS | {"weight": None, "gradient_share": 0.5}},
    "anchored": {"anchor": {"kind": "ref_student", "coef": 0.1, "cap": 0.5}},
    "anchored-weakly": {"anchor": {"kind": "ref_student", "coef": 0.001, "cap": 0.5}},
    "dead": {"anchor": {"kind": "student_ref", "coef": 0.0001, "cap": None}, "training": {"learning_rate": 1e-3}},
    "mixed": {"mixture": MIXED},
    "guarded": {"stopping": GUARD, "model": MODEL | {"rslora": True, "lora_rank": 16}},
    "unguarded": {"stopping": GUARD | {"every": 50}, "training": {"lora_plus_ratio": 8.0}},
}


def write_terms_campaign(folder: Path) -> Path:
    """Write the campaign to `folder` and return it."""
    recipes = [Recipe(name, 4 * STEPS, 0.2 + 0.01 * k) for k, name in enumerate(RECIPES)]
    contrasts = [contrast("sets-2", "plain", "gold", "Does the term help?")]
    write_campaign(folder, recipes, SEEDS, ("gold", "random"), 8, contrasts)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["spec"]["conditions"] = [resolved(name) for name in RECIPES]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in RECIPES:
        for seed in SEEDS:
            _write_run(folder / "runs" / f"{name}_s{seed}", name, seed)
    return folder


def resolved(name: str) -> dict[str, Any]:
    """A condition's resolved tables."""
    own: dict[str, Any] = RECIPES[name]
    training = {"learning_rate": 2e-4, "lora_plus_ratio": 1.0} | own.get("training", {})
    tables = {table: own.get(table) for table in ("anchor", "set_diversity", "mixture", "stopping")}
    selection = {"strategy": "random", "n": 4 * STEPS}
    model = own.get("model", MODEL)
    return {"name": name, "question": "", "selection": selection, "model": model, "training": training, **tables}


def probes(shares: list[float]) -> list[dict[str, Any]]:
    """Measured updates with these shares; the adapter had not moved at the first."""
    return [
        {"step": k + 1, "norm": share, "share": share, "cosine": 0.1 * (-1) ** k if share else None, "moved": k > 0}
        for k, share in enumerate(shares)
    ]


def _term(name: str, seed: int) -> dict[str, Any]:
    if name.startswith("sets"):
        share = 0.5 if name == "sets-share" else 0.2 * RECIPES[name]["set_diversity"]["weight"]
        found = probes([share, share, share + 0.02 * seed, share + 0.1])
        return {"set_diversity": {"acted": STEPS, "share": share, "warning": None, "probes": found}}
    if name == "anchored":
        return {"anchor": {"acted": STEPS, "share": 0.05, "warning": None, "probes": probes([0.0, 0.02, 0.05, 0.2])}}
    if name == "anchored-weakly":
        told = f"the term 'anchor' never has 1% of the gradient, at most 0.0{seed}%: it hardly teaches"
        return {"anchor": {"acted": STEPS, "share": 1e-4, "warning": told, "probes": probes([0.0, 1e-4, 2e-4])}}
    if name == "dead":
        return {"anchor": {"acted": 3, "share": 0.0, "warning": None, "probes": probes([0.0, 0.0, 0.0])}}
    return {}


def _write_run(folder: Path, name: str, seed: int) -> None:
    record = json.loads((folder / "record.json").read_text()) | {"status": "done", "terms": _term(name, seed)}
    rows = [{"step": k, "condition": name, "seed": seed, "loss": 1 / k} for k in range(1, STEPS + 1)]
    if name == "dead":
        reason = "the gradient of the term 'anchor' is exactly 0 (steps 2, 3): it teaches nothing"
        record |= {"status": "quarantined", "reason": reason}
    if name.startswith("anchored"):
        for row in rows:
            row |= {"anchor_coef": 0.1, "anchor_kl": 0.01 * row["step"] * seed, "anchor_tokens": 100}
            row["anchor_capped_share"] = 0.25
    if name.startswith("sets"):
        weight = RECIPES[name]["set_diversity"]["weight"] or 0.4
        for row in rows[::2]:
            row |= {"diversity_score": 0.5 - 0.01 * row["step"], "set_quality": 0.9, "set_score": 0.4, "sets": 2}
            row |= {"quality_loss": row["loss"], "set_weight": weight, "combined_loss": row["loss"] - weight * 0.4}
        first, last = {"diversity": 0.49, "quality": 0.9}, {"diversity": 0.41, "quality": 0.9}
        alarm = "collapse: mean diversity of sets of completions is 0.1 at step 9, below half of the 0.49"
        drawn = {"prompts": 4, "sets": 10, "missing_sets": 1, "equal_sets": 2, "sampled_tokens": 500, "first": first}
        warned = [alarm] if (name, seed) == ("sets-0.5", 2) else []
        record["realised"] |= {"set_diversity": drawn | {"recent": [last] * 3, "warnings": warned}}
        (folder / "emergence").mkdir()
        lines = [json.dumps(line) + "\n" for step in (1, 9) for line in generations(name, seed, step)]
        (folder / "emergence" / "generations.jsonl").write_text("".join(lines))
    if name == "mixed":
        for row in rows:
            row |= {"tokens_selected": 30 + row["step"], "tokens_replay": 60 - row["step"], "tokens_extra": 10}
        record["mixture"] = {
            "unit": "tokens",
            "parts": {
                "selected": _part(0.5, 0.49 + 0.01 * seed, 20, 16),
                "replay": _part(0.4, 0.41 - 0.01 * seed, 16, 30),
                "extra": _part(0.1, 0.1, 4, 30),
            },
        }
    if name in ("guarded", "unguarded"):
        record["stopping"] = _guard(name == "guarded", seed)
        rows = rows[:6] if name == "guarded" else rows
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def generations(name: str, seed: int, step: int) -> list[dict[str, Any]]:
    """Two sets of three completions; the second prompt is the condition's own."""
    who = {"step": step, "condition": name, "seed": seed, "reward": 0.4, "set_diversity": 0.45}
    return [
        who | {"task": task, "sample": g, "prompt": f"Say {task}", "completion": f"<b>{task} {g}", "correct": 0.5 * g}
        for task in ("hello", f"only {name}")
        for g in range(3)
    ]


def _part(asked: float, given: float, rows: int, available: int) -> dict[str, Any]:
    got = {"share": given, "rows": rows, "supervised_tokens": 100 * rows, "distinct_rows": min(rows, available)}
    return {"planned": {"share": asked, "tokens": 1000 * asked}, "realised": got, "rows": available}


def _guard(ran: bool, seed: int) -> dict[str, Any]:
    seen = [{"step": 2, "value": 0.30, "missing": 0}, {"step": 4, "value": 0.32 + seed / 100, "missing": 0}]
    seen.append({"step": 6, "value": 0.45, "missing": 0})
    fact = {"suite": "watched", "metric": "nll", "better": "lower", "ran": ran, "baseline": 0.31}
    if not ran:
        nothing = {"watched": [], "best": None, "last": None, "stopped_at": None, "reason": None}
        return fact | nothing | {"selected_step": STEPS}
    best, last = {"step": 2, "value": 0.30}, {"step": 6, "value": 0.45}
    reason = "nll 0.45 is worse than the base's 0.31 by more than 0.1"
    return fact | {
        "watched": seen,
        "best": best,
        "last": last,
        "stopped_at": 6,
        "reason": reason,
        "selected_step": 2,
    }
