"""What there is to tell of a step of reinforcement learning: a row of metrics, and the emergence logs.

The names are those that readers of such logs know. All completions count, not only those of groups that teach; a
number that has no meaning in a step (no planning token was written) is absent from its row. Where dynamic sampling
passed groups over, rewards, ties, uncertainty and advantages are those of the groups that the step learns from.

Shapes: P groups, G completions of a group, C all completions of a step, T tokens of a completion.
"""

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetrial.train.credit import Credit
from finetrial.train.journal import GENERATIONS, STEPS
from finetrial.train.lesson import Lesson, Report
from finetrial.train.rl_config import RLConfig
from finetrial.train.rollouts import Group, Rollout

CORRECT = 0.5
"""A grade above this counts as a right answer."""
TIE = 1e-6
"""Rewards closer than this are tied."""


@dataclass(frozen=True)
class Known:
    """What is known of a completion's tokens."""

    uncertainty_T: np.ndarray
    planning_T: np.ndarray
    """bool; the others are execution tokens."""
    old_logp_T: np.ndarray | None
    """Under the adapter before the step; None where no update needs it."""
    base_logp_T: np.ndarray | None
    """Under the frozen base; None where no divergence is asked for."""


def step_facts(
    rl: RLConfig,
    rollout: Rollout,
    rewards: Sequence[np.ndarray],
    known: Sequence[Sequence[Known]],
    advantage: Sequence[np.ndarray],
    credits: Sequence[Credit],
) -> dict[str, Any]:
    """The step's numbers; `rewards`, `known`, `advantage` (before credit) and `credits` are of the groups that it
    learns from."""
    grade_C = np.concatenate([group.accuracy_G for group in rollout.groups])
    reward_C = np.concatenate(rewards)
    graded = grade_C[np.isfinite(grade_C)]
    every = [done for group in rollout.groups for done in group.completions]
    length_C = np.array([len(done.ids_T) for done in every])
    learnt = [done for group in rollout.learnt for done in group.completions]
    planning = np.concatenate([k.planning_T for mine in known for k in mine])
    surprisal = -np.concatenate([done.raw_logp_T for done in learnt])
    entropy = np.concatenate([done.entropy_T for done in learnt])
    after = np.concatenate([after_T for credit in credits for after_T in credit.uncertainty_after])
    advantages = [advantage_T for credit in credits for advantage_T in credit.advantage]
    worth_C = np.concatenate(advantage)[np.isfinite(reward_C)]
    facts: dict[str, Any] = {
        "mean_reward": float(np.nanmean(reward_C)) if np.isfinite(reward_C).any() else None,
        "correct_rate": float((graded > CORRECT).mean()) if len(graded) else None,
        "missing_grades": int(np.isnan(grade_C).sum()),
        "max_token_hit_rate": float(np.mean([not done.finished for done in every])),
        "num_datums": sum(bool(advantage_T.any()) for advantage_T in advantages),
        "informative_groups": sum(any(a_T.any() for a_T in credit.advantage) for credit in credits),
        "passed_over_groups": len(rollout.passed_over),
        "batch_adv_count": len(worth_C),
        **ties(rewards),
        **_spread("entropy", entropy, planning),
        **_spread("surprisal", surprisal, planning),
        **_spread(rl.uncertainty_kind, after, planning, "post_"),
        "planning_token_ratio": float(planning.mean()),
        "completion_length_mean": float(length_C.mean()),
        "tokens_per_step": int(length_C.sum()),
    }
    if len(worth_C):
        facts |= {"batch_adv_mean": float(worth_C.mean()), "batch_adv_std": float(worth_C.std())}
    if rl.transform_mode == "entropy_mask":
        facts |= _mask_facts(known, credits)
    if rl.transform_mode in ("delight", "delight_sepa"):
        facts |= _gate_facts(advantage, credits)
    return facts


def ties(rewards: Sequence[np.ndarray]) -> dict[str, Any]:
    """How far rewards (G,) of a group fall together; groups with fewer than two graded completions do not count.

    Sorted rewards within `TIE` of the first of their bucket are tied: `pair_rate` is the share of pairs in one
    bucket, `unique_fraction` buckets over completions, a group with one bucket is uniform.
    """
    groups = [reward_G[np.isfinite(reward_G)] for reward_G in rewards]
    buckets = [_buckets(reward_G) for reward_G in groups if len(reward_G) >= 2]
    facts: dict[str, Any] = {
        "reward_tie_eligible_groups": len(buckets),
        "reward_tie_groups": sum(max(sizes) > 1 for sizes in buckets),
        "reward_uniform_groups": sum(len(sizes) == 1 for sizes in buckets),
    }
    if buckets:
        tied = sum(size * (size - 1) // 2 for sizes in buckets for size in sizes)
        pairs = sum(sum(sizes) * (sum(sizes) - 1) // 2 for sizes in buckets)
        facts |= {
            "reward_tie_group_rate": facts["reward_tie_groups"] / len(buckets),
            "reward_tie_pair_rate": tied / pairs,
            "reward_uniform_group_rate": facts["reward_uniform_groups"] / len(buckets),
            "reward_unique_fraction_mean": float(np.mean([len(sizes) / sum(sizes) for sizes in buckets])),
        }
    return facts


def _buckets(reward_G: np.ndarray) -> list[int]:
    sizes: list[int] = []
    anchor = -np.inf
    for reward in np.sort(reward_G):
        if reward - anchor > TIE:
            sizes.append(0)
            anchor = reward
        sizes[-1] += 1
    return sizes


def _spread(name: str, values: np.ndarray, planning: np.ndarray, prefix: str = "") -> dict[str, float]:
    """Mean and population variance over execution and over planning tokens, each where there are any."""
    facts = {}
    for kind, among in (("exec", ~planning), ("plan", planning)):
        if among.any():
            facts[f"{prefix}{kind}_{name}_mean"] = float(values[among].mean())
            facts[f"{prefix}{kind}_{name}_var"] = float(values[among].var())
    return facts


def _mask_facts(known: Sequence[Sequence[Known]], credits: Sequence[Credit]) -> dict[str, float]:
    """Share of tokens that keep an advantage, among those of completions that have one, and the uncertainty from which
    on they keep it (mean over groups); nothing where no completion has an advantage."""
    kept = total = 0
    thresholds = []
    for mine, credit in zip(known, credits, strict=True):
        taught = [(k.uncertainty_T, a_T) for k, a_T in zip(mine, credit.advantage, strict=True) if a_T.any()]
        kept += sum(int(np.count_nonzero(advantage_T)) for _, advantage_T in taught)
        total += sum(len(advantage_T) for _, advantage_T in taught)
        if taught:
            thresholds.append(min(float(u_T[advantage_T != 0].min()) for u_T, advantage_T in taught))
    if not total:
        return {}
    return {"entropy_mask_fraction": kept / total, "entropy_mask_threshold": float(np.mean(thresholds))}


def _gate_facts(advantage: Sequence[np.ndarray], credits: Sequence[Credit]) -> dict[str, float]:
    """What the gate of delight let through: the share of its advantage that each token kept, where it had one."""
    pairs = [
        (before, after_T)
        for advantage_G, credit in zip(advantage, credits, strict=True)
        for before, after_T in zip(advantage_G, credit.advantage, strict=True)
        if before
    ]
    if not pairs:
        return {}
    gate = np.concatenate([after_T / before for before, after_T in pairs])
    return {
        "dg_gate_mean": float(gate.mean()),
        "dg_gate_std": float(gate.std()),
        "dg_gate_min": float(gate.min()),
        "dg_gate_max": float(gate.max()),
        "dg_breakthrough": float((gate > 0.8).mean()),
        "dg_suppressed": float((gate < 0.2).mean()),
        "dg_neutral": float(((gate >= 0.4) & (gate <= 0.6)).mean()),
    }


def policy_facts(report: Report, lesson: Lesson, seconds: float) -> dict[str, Any]:
    """What the updates did and how long the step took; sampling is shared by all runs of the cohort.

    `loss` is 0 in a step that taught nothing: all advantages were 0.
    """
    facts: dict[str, Any] = {
        "loss": report.loss or 0.0,
        "loss_is_placeholder": False,
        "backend_reports_sync_loss": True,
        "updates": len(report.tallies),
        "clip_fraction": report.per_token("clipped"),
        "ratio_mean": report.per_token("ratio"),
        "approx_kl": report.per_token("drift"),
        "kl_to_base": report.per_token("base_kl"),
        "step_time_s": round(seconds, 4),
        "sample_time_s": round(lesson.sampling_s, 4),
        "train_time_s": round(seconds - lesson.sampling_s, 4),
        "sample_share": lesson.sampling_s / seconds,
        "train_share": 1 - lesson.sampling_s / seconds,
        "tokens_per_second": lesson.facts["tokens_per_step"] / seconds,
        "process_max_rss_mb": _max_rss_mb(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _max_rss_mb() -> float:
    """Most memory that the process has held, in MB; the system tells kilobytes, on macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def logs(
    who: Mapping[str, Any],
    rl: RLConfig,
    rollout: Rollout,
    rewards: Sequence[np.ndarray],
    known: Sequence[Sequence[Known]],
    credits: Sequence[Credit],
    facts: Mapping[str, Any],
) -> dict[str, list[dict[str, Any]]]:
    """Lines of `emergence/steps.jsonl` and `emergence/generations.jsonl`: every completion that was drawn."""
    grade_C = np.concatenate([group.accuracy_G for group in rollout.groups])
    step = {
        **who,
        "mean_reward": facts["mean_reward"],
        "correct_count": int((grade_C > CORRECT).sum()),
        "total_count": int(np.isfinite(grade_C).sum()),
        "uncertainty_kind": rl.uncertainty_kind,
        **{name: value for name, value in facts.items() if name.startswith(("exec_", "plan_", "post_", "entropy_"))},
    }
    lines = []
    for group, reward_G, mine, credit in zip(rollout.learnt, rewards, known, credits, strict=True):
        for g, (reward, k, advantage_T) in enumerate(zip(reward_G, mine, credit.advantage, strict=True)):
            told = {"advantage": float(advantage_T.mean()), "planning_token_ratio": float(k.planning_T.mean())}
            lines.append({**who, **_generation(group, g, None if np.isnan(reward) else float(reward)), **told})
    for group in rollout.passed_over:
        for g, grade in enumerate(group.grades):
            lines.append({**who, **_generation(group, g, grade.value), "passed_over": True})
    return {STEPS: [step], GENERATIONS: lines}


def _generation(group: Group, g: int, reward: float | None) -> dict[str, Any]:
    done, grade = group.completions[g], group.grades[g]
    told: dict[str, Any] = {
        "task": group.task.id,
        "sample": g,
        "prompt": group.task.messages[-1]["content"],
        "completion": done.text,
        "reward": reward,
        "correct": grade.value,
        "num_tokens": len(done.ids_T),
        "finished": done.finished,
        "surprisal_mean": float(-done.raw_logp_T.mean()),
        "entropy_mean": float(done.entropy_T.mean()),
    }
    return told if grade.value is not None else {**told, "no_grade": grade.reason}
