"""A simulated campaign of reinforcement learning: 3 conditions × 3 seeds × 30 steps, with everything that RL leaves.

Every number comes from a seeded stream; nothing here is a measurement. `maxrl+gtpo_hicra` is made to learn in training
without gaining on the held-out suite, and one of its runs to lose grades, so that the report has something to warn of.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.seeds import stream

BATCH, GROUP, SAMPLES = 8, 16, 4
SUITES = {"arithmetic": 0.42, "word-problems": 0.25}
SNAPSHOTS = (10, 20)
SQUEEZE = {
    "run": "maxrl+gtpo_sepa_s42",
    "min_variance_retention": 0.95,
    "recommended_rank": 32,
    "mean_rank": 16,
    "source_rank": 128,
    "ranks": [
        {"rank": rank, "mean": mean, "worst": worst, "worst_layer": "model.layers.3.mlp.down_proj"}
        for rank, mean, worst in (
            (1, 0.412, 0.201),
            (2, 0.597, 0.342),
            (4, 0.761, 0.540),
            (8, 0.893, 0.734),
            (16, 0.957, 0.881),
            (32, 0.987, 0.962),
            (64, 0.998, 0.991),
            (128, 1.0, 1.0),
        )
    ],
}


@dataclass(frozen=True)
class Policy:
    """One simulated condition: what it gains in training and on held-out tasks, and how it treats its tokens."""

    advantage: str
    transform: str
    gain: float
    held_out: float
    pooled: float = 0.0

    @property
    def name(self) -> str:
        """`<advantage_mode>+<transform_mode>`."""
        return f"{self.advantage}+{self.transform}"


POLICIES = (
    Policy("grpo", "none", 0.14, 0.06),
    Policy("maxrl", "gtpo_hicra", 0.24, -0.02),
    Policy("maxrl", "gtpo_sepa", 0.27, 0.15, pooled=0.8),
)


def write_rl_campaign(
    folder: Path,
    policies: Sequence[Policy] = POLICIES,
    seeds: Sequence[int] = (42, 101, 202),
    steps: int = 30,
    shaped: bool = False,
) -> Path:
    """Write a complete simulated campaign to `folder` and return it.

    Args:
        folder: where to.
        policies: conditions.
        seeds: of every condition.
        steps: of every run.
        shaped: whether the mean reward differs from the share of right answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(rl_manifest(policies, seeds, steps), indent=2))
    pq.write_table(rl_outcomes(policies, seeds), folder / "outcomes.parquet")
    for policy in policies:
        for seed in seeds:
            _write_run(folder / "runs" / f"{policy.name}_s{seed}", policy, seed, steps, shaped)
    return folder


def rl_contrast(candidate: str, baseline: str, metric: str, question: str) -> dict[str, Any]:
    """One `[[contrasts]]` table."""
    table = {"name": f"{candidate} vs {baseline} on arithmetic ({metric})", "question": question, "margin": 0.01}
    pair = {"candidate": candidate, "baseline": baseline, "suite": "arithmetic", "minus_suite": None}
    return {**table, **pair, "metric": metric, "better": None, "family": "declared"}


def rl_manifest(policies: Sequence[Policy], seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """`manifest.json` of the campaign."""
    names = [policy.name for policy in policies]
    contrasts = [rl_contrast(names[-1], "base", "correct", "Does reinforcement learning help at all?")]
    if len(names) > 1:
        contrasts.append(rl_contrast(names[-1], names[-2], "correct", "Does pooling beat amplifying?"))
        contrasts.append(rl_contrast(names[-1], names[-2], "pass@4", "And over four tries?"))
    campaign = {
        "name": "sepa-or-hicra",
        "question": "Does pooling the uncertainty of execution tokens beat amplifying planning tokens?",
        "hypothesis": "SEPA reaches a higher held-out accuracy than HICRA at equal steps.",
        "primary_metric": "correct",
        "seeds": list(seeds),
    }
    conditions = [
        {"name": p.name, "rl": {"advantage_mode": p.advantage, "transform_mode": p.transform}} for p in policies
    ]
    runs = [
        {"condition": name, "seed": seed, "folder": f"runs/{name}_s{seed}", "status": "done", "decision": "NEW"}
        | {"reason": "no earlier result", "saves_s": 0.0, "train_key": "ab" * 32, "steps": steps, "cohort": "c0"}
        for name in names
        for seed in seeds
    ]
    hashes = {name: {"hash": "77aa" * 16, "items": 40, "groups": 40, "description": name} for name in SUITES}
    read = {"source": "arithmetic", "rows": 512, "kept": 500, "groups": 500, "styles": {"numeric": 500}}
    practice = {"examples": 460, "groups": 460, "left_out": 40, "source": "arithmetic", "content": "ef" * 32}
    tasks = {
        "suites": {name: {"items": 40, **read} for name in SUITES},
        "practice": [{"condition": name, **practice, "read": read} for name in names],
    }
    analysis = {"alpha": 0.05, "margin": 0.01, "correction": "holm"}
    return {
        "finetrial": "0.1.0",
        "campaign": "sepa-or-hicra",
        "status": "complete",
        "spec": {"campaign": campaign, "analysis": analysis, "contrasts": contrasts, "conditions": conditions},
        "conditions": ["base", *names],
        "seeds": list(seeds),
        "base": {"name": "builtin/shell-2m", "key": "9b1c" * 16},
        "runs": runs,
        "suites": hashes,
        "snapshots": list(SNAPSHOTS),
        "data": {"tasks": tasks},
        "integrity": [{"check": "leak guard", "passed": True, "detail": "no task of a suite is practised on"}],
        "squeeze": SQUEEZE,
    }


def rl_outcomes(policies: Sequence[Policy], seeds: Sequence[int]) -> pa.Table:
    """Four graded samples of every item: of the base, of every run, and of two snapshots on the way."""
    rows: list[dict[str, Any]] = []
    for suite, level in SUITES.items():
        ease_I = np.clip(level + 0.2 * stream(1, "items", suite).standard_normal(40), 0.02, 0.98)
        runs = [("base", None, suite, 0.0)]
        for policy in policies:
            for seed in seeds:
                luck = 0.02 * stream(seed, "luck", policy.name).standard_normal()
                places = [(f"{suite}@{step}", step / 30) for step in SNAPSHOTS] if suite == "arithmetic" else []
                runs += [
                    (policy.name, seed, place, done * policy.held_out + luck) for place, done in [*places, (suite, 1.0)]
                ]
        for condition, seed, place, gain in runs:
            draw = stream(seed or 0, "samples", condition, place).random((40, SAMPLES))
            for i, k in np.ndindex(draw.shape):
                row = {"condition": condition, "seed": seed, "suite": place, "item": f"{suite}-{i:03d}"}
                right = float(draw[i, k] < ease_I[i] + gain)
                row |= {"sample": int(k), "metric": "correct", "value": right, "weight": 1.0}
                rows.append(row | {"group": None, "suite_hash": "77aa" * 16})
    kinds = {"seed": pa.int64(), "sample": pa.int64(), "value": pa.float64(), "weight": pa.float64()}
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]]))


def _write_run(folder: Path, policy: Policy, seed: int, steps: int, shaped: bool) -> None:
    (folder / "emergence").mkdir(parents=True)
    rng = stream(seed, "run", policy.name)
    luck, running = 0.02 * rng.standard_normal(), 0.0
    lost = (policy.transform, seed) == ("gtpo_hicra", 101)
    metrics, states, generations = [], [], []
    for step in range(1, steps + 1):
        done = step / steps
        rate = 0.38 + luck + policy.gain * (1 - np.exp(-2.5 * done)) / (1 - np.exp(-2.5))
        right = int(rng.binomial(BATCH * GROUP, min(max(rate, 0.0), 1.0)))
        row = _row(policy, seed, step, steps, right, rng)
        running += right / (BATCH * GROUP)
        row |= {"running_correct_rate": running / step, "missing_grades": int(rng.binomial(128, 0.12)) if lost else 0}
        row["mean_reward"] = row["correct_rate"] - (0.1 * row["max_token_hit_rate"] if shaped else 0.0)
        metrics.append(row)
        fact = {key: row[key] for key in ("step", "condition", "seed", "mean_reward", "exec_surprisal_mean")}
        states.append(fact | {"correct_count": right, "total_count": BATCH * GROUP, "uncertainty_kind": "surprisal"})
        generations += [_generation(policy, seed, step, k, k < right * 6 // 128, lost, rng) for k in range(6)]
    for name, rows in (
        ("metrics.jsonl", metrics),
        ("emergence/steps.jsonl", states),
        ("emergence/generations.jsonl", generations),
    ):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {"steps": steps, "completions": steps * BATCH * GROUP, "rank": 128}
    (folder / "record.json").write_text(json.dumps({"planned": facts, "realised": facts}))


def _row(policy: Policy, seed: int, step: int, steps: int, right: int, rng: np.random.Generator) -> dict[str, Any]:
    """One row of metrics.jsonl without the fields that add up over steps."""
    done = step / steps
    uniform = int(rng.binomial(BATCH, 0.25 + (0.5 * done if policy.transform == "none" else 0.1)))
    sepa = policy.transform == "gtpo_sepa"
    gate = sepa and done >= 0.2 + 0.1 * (seed % 3) / 2
    row: dict[str, Any] = {
        "step": step,
        "condition": policy.name,
        "seed": seed,
        "advantage_mode": policy.advantage,
        "transform_mode": policy.transform,
        "uncertainty_kind": "surprisal",
        "loss": float(0.02 * rng.standard_normal()),
        "correct_rate": right / (BATCH * GROUP),
        "max_token_hit_rate": float(np.clip((0.34 if not policy.pooled else 0.2) - 0.2 * done, 0, 1)),
        "num_datums": (BATCH - uniform) * GROUP,
        "informative_groups": BATCH - uniform,
        "batch_size": BATCH,
        "group_size": GROUP,
        "reward_uniform_groups": uniform,
        "reward_uniform_group_rate": uniform / BATCH,
        "reward_unique_fraction_mean": 0.12,
        "sepa_lambda": max(0.0, min(1.0, (done - 0.25) * 2)) if gate else 0.0,
        "sepa_gate_open": bool(gate) if sepa else step > 2,
        "passed_over_groups": 0,
        "planning_token_ratio": 0.08 + 0.01 * float(rng.random()),
        "completion_length_mean": 88 + 30 * done + 4 * float(rng.standard_normal()),
        "clip_fraction": 0.03 + 0.02 * float(rng.random()),
        "ratio_mean": 1.0,
        "approx_kl": 0.002 * (1 + done),
        "kl_to_base": 0.03 * done,
        "learning_rate": 1e-4,
        "grad_norm": 0.4 + 0.1 * float(rng.random()),
        "tokens_per_step": 13_000,
        "tokens_per_second": 900.0,
    }
    for kind, mean, var in (("exec", 0.62, 0.30), ("plan", 0.95, 0.52)):
        if kind == "plan" and rng.random() < 0.06:
            continue  # no planning token in this step
        fall = (0.35 if kind == "exec" else 0.05) * done
        row[f"{kind}_entropy_mean"] = mean - fall + 0.02 * float(rng.standard_normal())
        row[f"{kind}_entropy_var"] = var * (1 - fall - (0.3 * policy.pooled * done if kind == "exec" else 0))
        row[f"{kind}_surprisal_mean"] = mean - fall + 0.03 * float(rng.standard_normal())
        row[f"{kind}_surprisal_var"] = var * (1.1 - fall) + 0.02 * float(rng.random())
        row[f"post_{kind}_surprisal_mean"] = row[f"{kind}_surprisal_mean"]
        pooled = row["sepa_lambda"] if kind == "exec" else 0.0
        row[f"post_{kind}_surprisal_var"] = row[f"{kind}_surprisal_var"] * (1 - pooled) ** 2
    return row


def _generation(
    policy: Policy, seed: int, step: int, sample: int, right: bool, lost: bool, rng: np.random.Generator
) -> dict[str, Any]:
    a, b = (int(n) for n in rng.integers(12, 99, 2))
    answer = a + b if right else a + b + int(rng.integers(1, 10))
    thought = (
        f"Let me check: {a} + {b}. First the tens: {a // 10 * 10} + {b // 10 * 10}, then the ones. So x < y & done."
    )
    missing = lost and sample == 5
    return {
        "step": step,
        "condition": policy.name,
        "seed": seed,
        "task": f"sum-{a}-{b}",
        "sample": sample,
        "prompt": f"What is {a} + {b}?",
        "completion": f"{thought}\nAnswer: {answer}",
        "reward": None if missing else float(right),
        "correct": None if missing else float(right),
        "num_tokens": 41,
        "finished": True,
        "advantage": 0.8 if right else -0.5,
        "planning_token_ratio": 0.1,
        "surprisal_mean": 0.4,
        "entropy_mean": 0.5,
    }
