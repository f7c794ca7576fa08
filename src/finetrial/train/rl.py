"""Reinforcement learning: from a step's rollouts to the rows that its updates learn from.

Grades become rewards, rewards become advantages of whole completions, credit spreads them over tokens, and the
aggregation says what each token weighs. Everything here is a constant of the policy loss (train/policy_loss.py).

There is no dropout: completions are drawn without it, by the policy that is evaluated. In the updates alone it would
make ratios differ from 1 before anything was learnt, and clips would act on that; the remedy of drawing with the same
masks as well (Hausknecht and Wagener 2022, arXiv:2202.11818) would grade and reinforce other policies than the one that
is kept.

Shapes: G completions of a prompt, C completions of a step, T tokens of one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from finetrial import seeds
from finetrial.generate.decode import NotFinite
from finetrial.model.distribution import token_stats
from finetrial.model.embed import embed
from finetrial.model.loss import collate, supervised_hidden
from finetrial.model.pieces import token_offsets
from finetrial.train.advantages import advantages, reinforce_pp_returns, strategies
from finetrial.train.anchor import anchor_coefficient
from finetrial.train.batch_sizing import fields
from finetrial.train.batches import layout
from finetrial.train.credit import Credit, credit, uncertainty
from finetrial.train.lesson import Lesson, PolicyTokens, Row, per_token
from finetrial.train.planning import DEFAULT_GRAMS, centroids, planning_mask, semantic_masks
from finetrial.train.policy_loss import token_weights
from finetrial.train.rl_config import RLConfig
from finetrial.train.rl_facts import CORRECT, Known, logs, step_facts
from finetrial.train.rollouts import Engine, Group, Rollout, practice_of, roll_out
from finetrial.train.runs import Ledger, RunData
from finetrial.train.sepa import SepaState, observe, sepa_lambda
from finetrial.train.shaping import kl_returns, overlong_penalty

POOLING = ("gtpo_sepa", "gtpo_sepa_amp", "gtpo_sepa_amp_c", "delight_sepa")
"""Transforms that the strength of SEPA acts in."""


def lessons(
    engine: Engine, runs: Sequence[RunData], ledgers: Sequence[Ledger], step: int, steps: int, budget: int
) -> dict[int, Lesson]:
    """What every practising run learns from in step `step` (0, 1, ...), by its place in the cohort.

    A run in quarantine, or that its guard has stopped, draws nothing more; one whose logits are not finite is put into
    quarantine, and the others go on.

    Args:
        engine: samples and scores.
        runs: the cohort.
        ledgers: of the runs; what was drawn and graded is entered.
        step: which step.
        steps: how many the runs have.
        budget: most padded tokens of a scoring pass.
    """
    practising = {n: run for n, run in enumerate(runs) if run.practice is not None}
    nothing = {n: Lesson((), 0, 0, 0, {}) for n in practising}
    configs = {n: practice_of(run).rl for n, run in practising.items() if ledgers[n].training}
    if not configs:
        return nothing
    most = min(rl.batch_sizing.rows for rl in configs.values())
    adapt = all(rl.batch_sizing.enabled for rl in configs.values())
    rows = engine.pace.next_rows(most) if adapt else most
    try:
        rollouts = roll_out(engine, {n: practising[n] for n in configs}, ledgers, rows)
    except NotFinite as error:
        if error.adapter is None:
            raise
        ledgers[error.adapter].quarantined_at = step + 1
        ledgers[error.adapter].reason = f"logits are not finite at step {step + 1}"
        return lessons(engine, runs, ledgers, step, steps, budget)
    needed = {n: rl for n, rl in configs.items() if _needs_old(rl)}
    told = {n for n, rl in needed.items() if _sampler_knows(engine, rl)}
    asked = {n: rollouts[n] for n in needed if n not in told}
    old = _logp(engine, asked, configs, budget, base=False)
    old |= {n: [done.raw_logp_T for group in rollouts[n].learnt for done in group.completions] for n in told}
    base = _logp(engine, {n: rollouts[n] for n, rl in configs.items() if rl.loss.kl_coef}, configs, budget, base=True)
    pace = _pace(engine, rollouts, rows, most)
    return nothing | {
        n: _lesson(engine, practising[n], rollout, old.get(n), base.get(n), ledgers[n], step, steps, pace)
        for n, rollout in rollouts.items()
    }


def _pace(engine: Engine, rollouts: Mapping[int, Rollout], rows: int, most: int) -> dict[str, Any]:
    """What the cohort's sampling tells of batch sizing; all generated tokens count, learnt from or not."""
    every = [done for rollout in rollouts.values() for group in rollout.groups for done in group.completions]
    tokens = sum(len(done.ids_T) for done in every)
    seconds = next(iter(rollouts.values())).sampling_s
    told = fields(engine.pace, min(rows, len(every)), min(most, len(every)), tokens, seconds)
    return {name: value for name, value in told.items() if value is not None}


def _needs_old(rl: RLConfig) -> bool:
    """Whether the adapter's log-probabilities before the step must be known apart from its first update."""
    return rl.epochs * rl.mini_batches > 1 or _kl_in_reward(rl)


def _sampler_knows(engine: Engine, rl: RLConfig) -> bool:
    """Whether the sampler's plain log-probabilities are the trainer's, up to the rounding of float32: then no pass has
    to be made for them. In 16 bits the two differ by more than that. A divergence in the reward wants the pass: by
    rounding alone equal rewards of a group would differ, and an advantage that divides by their spread would teach it.
    """
    return rl.sampling.temperature == 1 and engine.head.weight_VH.dtype == torch.float32 and not _kl_in_reward(rl)


def _logp(
    engine: Engine, rollouts: Mapping[int, Rollout], configs: Mapping[int, RLConfig], budget: int, base: bool
) -> dict[int, list[np.ndarray]]:
    """log-probability of every token of the learnt completions under the adapters as they are, or under the base,
    at each run's sampling temperature: one array (T,) per completion, group after group."""
    streams = {
        n: [group.stream(done) for group in rollout.learnt for done in group.completions]
        for n, rollout in rollouts.items()
    }
    found = {n: [np.empty(0)] * len(mine) for n, mine in streams.items()}
    order = list(streams)
    device = engine.head.weight_VH.device
    for places in layout([[row.tokens for row in streams[n]] for n in order], budget, device.type):
        batch = collate([streams[order[at.run]][at.place] for at in places], device)
        warm_M = per_token([configs[order[at.run]].sampling.temperature for at in places], batch.counts_S, device)
        with engine.stack.rows([None if base else order[at.run] for at in places]), torch.no_grad():
            stats = token_stats(
                supervised_hidden(engine.model, batch), batch.target_M, engine.head, temperature_M=warm_M
            )
        parts = np.split(-stats.nll_M.double().cpu().numpy(), np.cumsum(batch.counts_S)[:-1])
        for at, logp_T in zip(places, parts, strict=True):
            found[order[at.run]][at.place] = logp_T
    return found


def _lesson(
    engine: Engine,
    run: RunData,
    rollout: Rollout,
    old: list[np.ndarray] | None,
    base: list[np.ndarray] | None,
    ledger: Ledger,
    step: int,
    steps: int,
    pace: Mapping[str, Any],
) -> Lesson:
    """A run's rows and what there is to tell of its step; enters grades and the pooling's state into the ledger."""
    rl = practice_of(run).rl
    known = _known_tokens(engine, run, rollout.learnt, old, base)
    rewards = [_rewards(run, group, mine) for group, mine in zip(rollout.learnt, known, strict=True)]
    lengths = [np.array([len(done.ids_T) for done in group.completions]) for group in rollout.learnt]
    whole = advantages(rl, rewards, lengths, [_strategies(group) for group in rollout.learnt])
    advantage: Sequence[Sequence[float | np.ndarray]] = [list(advantage_G) for advantage_G in whole]
    if rl.advantage_mode == "reinforce_pp" and _kl_in_reward(rl):
        advantage = reinforce_pp_returns(_returns(rl, rewards, known))
    state = SepaState(**ledger.sepa) if ledger.sepa else SepaState()
    strength = sepa_lambda(rl.sepa, state, step + 1, steps) if rl.transform_mode in POOLING else 0.0
    credits = [
        credit(rl, own, reward_G, [k.uncertainty_T for k in mine], [k.planning_T for k in mine], strength)
        for own, reward_G, mine in zip(advantage, rewards, known, strict=True)
    ]
    facts = step_facts(rl, rollout, rewards, known, whole, credits)
    execution = np.concatenate([k.uncertainty_T[~k.planning_T] for mine in known for k in mine])
    variance = float(execution.var()) if len(execution) else None
    ledger.sepa = asdict(observe(rl.sepa, state, facts["correct_rate"], variance))
    graded_G = np.concatenate([group.accuracy_G for group in rollout.groups])
    ledger.graded += int(np.isfinite(graded_G).sum())
    ledger.correct += int((graded_G > CORRECT).sum())
    ledger.missing_grades += int(np.isnan(graded_G).sum())
    facts = {
        "advantage_mode": rl.advantage_mode,
        "transform_mode": rl.transform_mode,
        "policy_loss_mode": rl.loss.kind,
        "uncertainty_kind": rl.uncertainty_kind,
        **facts,
        "running_correct_rate": ledger.correct / ledger.graded if ledger.graded else None,
        "sepa_lambda": strength,
        "sepa_gate_open": state.gate_open,
        "batch_size": run.train.batch_size,
        "group_size": rl.group_size,
        **pace,
    }
    rows = _rows(rl, rollout.learnt, known, rewards, credits)
    who = {"condition": run.condition, "seed": run.seed}
    return Lesson(
        updates=_updates(rl, rows, run, step, steps),
        rows=sum(len(group.completions) for group in rollout.learnt),
        tokens=sum(len(group.prompt_T) + int(t.sum()) for group, t in zip(rollout.learnt, lengths, strict=True)),
        supervised_tokens=sum(int(t.sum()) for t in lengths),
        facts=facts,
        logs=logs({"step": step + 1, **who}, rl, rollout, rewards, known, credits, facts),
        sampling_s=rollout.seconds,
    )


def _known_tokens(
    engine: Engine,
    run: RunData,
    groups: Sequence[Group],
    old: list[np.ndarray] | None,
    base: list[np.ndarray] | None,
) -> list[list[Known]]:
    practice, rl = practice_of(run), practice_of(run).rl
    every = [done for group in groups for done in group.completions]
    spelled = [token_offsets(done.ids_T, practice.tokenizer) for done in every]
    if rl.planning.detector == "semantic":
        encode = partial(embed, engine.model, practice.tokenizer, stack=engine.stack)
        texts, offsets = [text for text, _ in spelled], [offsets_T2 for _, offsets_T2 in spelled]
        planning = semantic_masks(texts, offsets, encode, centroids(encode), rl.planning.threshold)
    else:
        grams = rl.planning.grams or DEFAULT_GRAMS
        planning = [planning_mask(text, offsets_T2, grams) for text, offsets_T2 in spelled]
    known = iter(
        Known(
            uncertainty(rl.uncertainty_kind, done.raw_logp_T, done.entropy_T),
            planning_T,
            old[place] if old is not None else None,
            base[place] if base is not None else None,
        )
        for place, (done, planning_T) in enumerate(zip(every, planning, strict=True))
    )
    return [[next(known) for _ in group.completions] for group in groups]


def _rewards(run: RunData, group: Group, known: Sequence[Known]) -> np.ndarray:
    """float64 rewards (G,): the grade (or the control's coin), plus penalties; NaN where there is no grade.

    A divergence from the base is taken off later, by tokens (`_returns`), where the advantages are those of tokens.
    """
    rl = practice_of(run).rl
    reward_G = group.accuracy_G
    if rl.reward == "random":
        coin_G = seeds.stream(run.seed, "random reward", group.task.id, group.place).integers(0, 2, len(reward_G))
        reward_G = np.where(np.isnan(reward_G), np.nan, coin_G)
    if rl.overlong.cache is not None:
        length_G = np.array([len(done.ids_T) for done in group.completions])
        reward_G = reward_G + overlong_penalty(length_G, rl.sampling.max_tokens, rl.overlong.cache)
    if _kl_in_reward(rl) and rl.advantage_mode != "reinforce_pp":
        reward_G = np.array([return_T[0] for return_T in _returns(rl, [reward_G], [known])[0]])
    return reward_G


def _kl_in_reward(rl: RLConfig) -> bool:
    return bool(rl.loss.kl_coef) and rl.loss.kl_in == "reward"


def _returns(rl: RLConfig, rewards: Sequence[np.ndarray], known: Sequence[Sequence[Known]]) -> list[list[np.ndarray]]:
    """Return (T,) from each token on of every completion, the divergence from the base taken off."""
    found = []
    for reward_G, mine in zip(rewards, known, strict=True):
        found.append([])
        for reward, k in zip(reward_G, mine, strict=True):
            assert k.old_logp_T is not None
            assert k.base_logp_T is not None
            found[-1].append(kl_returns(float(reward), k.old_logp_T, k.base_logp_T, rl.loss.kl_coef))
    return found


def _strategies(group: Group) -> np.ndarray:
    """Cluster (G,) of each completion: the same words around other numbers are the same strategy."""
    return strategies([re.sub(r"\d+", "#", " ".join(done.text.split())) for done in group.completions])


def _rows(
    rl: RLConfig,
    groups: Sequence[Group],
    known: Sequence[Sequence[Known]],
    rewards: Sequence[np.ndarray],
    credits: Sequence[Credit],
) -> list[Row]:
    """Every completion that takes part. One without a grade does not, nor one cut short where those are masked."""
    rows = []
    for group, mine, reward_G, credit_ in zip(groups, known, rewards, credits, strict=True):
        for done, k, advantage_T, reward in zip(group.completions, mine, credit_.advantage, reward_G, strict=True):
            if np.isnan(reward) or (rl.overlong.mask_truncated and not done.finished):
                continue
            policy = PolicyTokens(advantage_T, done.logp_T, k.old_logp_T, k.base_logp_T)
            rows.append(Row(group.stream(done), 0.0, policy))
    return rows


def _updates(rl: RLConfig, rows: Sequence[Row], run: RunData, step: int, steps: int) -> tuple[tuple[Row, ...], ...]:
    """Rows of each update, weighted by the aggregation over all rows that take part in it.

    A row that pulls at nothing (no advantage, no divergence, no entropy, no anchor) counts in the denominators, but no
    pass is made for it. The first update's old policy is its own, so its ratios are exactly 1.
    """
    always = bool(rl.loss.entropy_coef) or bool(rl.loss.kl_coef and rl.loss.kl_in == "loss")
    always |= run.anchor is not None and anchor_coefficient(run.anchor, step, steps) > 0
    updates = []
    for epoch in range(rl.epochs):
        order = np.arange(len(rows))
        if rl.mini_batches > 1:
            order = seeds.stream(run.seed, "mini-batches", step, epoch).permutation(len(rows))
        for part in np.array_split(order, rl.mini_batches):
            chosen = [rows[place] for place in part]
            lengths_S = [len(row.stream.target_M) for row in chosen]
            share_S = token_weights(
                rl.loss.aggregation, lengths_S, rl.sampling.max_tokens, len(chosen), sum(lengths_S)
            ).tolist()
            weighted = [
                replace(row, weight=share, policy=row.policy if updates else replace(row.policy, old_logp_m=None))
                for row, share in zip(chosen, share_S, strict=True)
                if row.policy is not None and (always or row.policy.advantage_m.any())
            ]
            updates.append(tuple(weighted))
    return tuple(updates) if any(updates) else ()
