"""Reinforcement learning in the cohort's loop: what it promises about ratios, neighbours, resume and bookkeeping."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from finetrial.errors import Interrupted
from finetrial.generate.decode import NotFinite
from finetrial.generate.sample import sample
from finetrial.model.adapters import AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.loss import head_of
from finetrial.model.peft_format import load_peft
from finetrial.model.source import locate
from finetrial.records import Grade, Task
from finetrial.train.cohort import train_cohort
from finetrial.train.config import TrainConfig
from finetrial.train.rl_config import AdvantageMode, RLConfig, TransformMode
from finetrial.train.rollouts import Engine, roll_out
from finetrial.train.runs import Ledger, Practice, RunData
from finetrial.train.term_config import AnchorConfig
from tiny import run_data, tiny_model

TOKENIZER = AutoTokenizer.from_pretrained(locate(ModelConfig()))
CLOCKED = ("_time_s", "_share", "tokens_per_second", "seconds", "process_max_rss_mb")


class Judge:
    """Grades completions by a rule of their text."""

    def __init__(self, rule: Callable[[str], float | None]):
        self.rule = rule

    def grade(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[Grade]:
        values = [self.rule(text) for text in texts]
        return [Grade(value, "" if value is not None else "the rule gave none") for value in values]


def odd(text: str) -> float:
    """About half of all completions, at any temperature; nothing that could be learnt."""
    return float(sum(map(ord, text)) % 2)


def practising(
    folder: Path,
    condition: str = "p",
    seed: int = 0,
    rule: Callable[[str], float | None] = odd,
    model: ModelConfig | None = None,
    snapshots: Sequence[int] = (),
    rl: dict | None = None,
    **training: object,
) -> RunData:
    words = ["one", "the other", "what is it", "12 + 7", "tell me more", "why"]
    tasks = [Task(f"t{n}", f"g{n}", ({"role": "user", "content": word},), "x") for n, word in enumerate(words)]
    prompts = [np.array(TOKENIZER(word)["input_ids"], dtype=np.int64) for word in words]
    config = RLConfig.model_validate(
        {"group_size": 4, **(rl or {}), "sampling": {"max_tokens": 12, **(rl or {}).get("sampling", {})}}
    )
    return RunData(
        condition=condition,
        seed=seed,
        rows=[],
        train=TrainConfig(**{"batch_size": 3, "learning_rate": 1e-2, "schedule": "constant", **training}),
        model=model or ModelConfig(lora_rank=4),
        folder=folder / f"{condition}_s{seed}",
        key=f"{condition}-{seed}",
        practice=Practice(tasks, prompts, Judge(rule), config, TOKENIZER, (2,)),  # type: ignore[arg-type]
        snapshots=frozenset(snapshots),
    )


def model():
    return tiny_model(vocab_size=len(TOKENIZER))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def unclocked(rows: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in row.items() if not name.endswith(CLOCKED) and not name.startswith("bp_")}
        for row in rows
    ]


def completions(run: RunData) -> list[tuple]:
    rows = lines(run.folder / "emergence" / "generations.jsonl")
    return [(row["step"], row["task"], row["sample"], row["completion"]) for row in rows]


def weights_of(result) -> torch.Tensor:
    return torch.cat([part.flatten() for pair in result.adapter.weights.values() for part in pair])


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"temperature": 0.6}, {"temperature": 1.4, "top_p": 0.8, "top_k": 300}]
)
@pytest.mark.parametrize("kind", ["ppo", "gspo", "grpo_s", "cispo"])
def test_the_first_update_of_a_step_is_exactly_on_policy(tmp_path, sampling, kind):
    run = practising(tmp_path, rl={"sampling": sampling, "loss": {"kind": kind}})
    train_cohort(model(), [run], 3, tmp_path / "checkpoint")
    rows = lines(run.metrics)
    assert any(row["num_datums"] for row in rows)
    for row in rows:
        assert row.get("ratio_mean", 1.0) == 1.0
        assert row.get("clip_fraction", 0.0) == row.get("approx_kl", 0.0) == 0.0


def test_the_gradient_is_that_of_the_policy_loss_written_out(tmp_path):
    """RLOO with token means: the gradient of -sum(A log p) / tokens by autograd over full logits, row by row."""
    rl = {"advantage_mode": "rloo", "sampling": {"temperature": 0.7}}
    run = practising(tmp_path, rl=rl)
    train_cohort(model(), [run], 1, tmp_path / "checkpoint")
    (row,) = lines(run.metrics)

    theirs = model()
    head = head_of(theirs)
    with AdapterStack(theirs, [fresh_adapter(theirs, run.model, run.seed)], trainable=True) as stack:
        groups = roll_out(Engine(theirs, head, stack), {0: run}, [Ledger()], rows=256)[0].learnt
        tokens = sum(len(done.ids_T) for group in groups for done in group.completions)
        loss = 0.0  # every ratio is 1
        for group in groups:
            reward_G = group.accuracy_G
            for done, reward in zip(group.completions, reward_G, strict=True):
                advantage = (reward - reward_G.mean()) * len(reward_G) / (len(reward_G) - 1)
                ids_T = torch.from_numpy(np.concatenate([group.prompt_T, done.ids_T]))
                with stack.rows([0]):
                    logits_TV = theirs(input_ids=ids_T[None, :-1], use_cache=False).logits[0]
                    logp_T = (logits_TV / 0.7).log_softmax(-1).gather(1, ids_T[1:, None])[len(group.prompt_T) - 1 :]
                    stack.backward((-advantage * logp_T.sum() / tokens, torch.ones(())))
                loss -= advantage * len(done.ids_T) / tokens
        assert row["grad_norm"] == pytest.approx(float(stack.grad_NP.norm()), rel=1e-4)
    assert row["loss"] == pytest.approx(loss, abs=1e-6)


def test_a_cohort_gives_what_single_runs_give_whatever_their_neighbours_learn(tmp_path):
    """float32; the same completions, and weights to 1e-4 after four steps."""

    def cohort(name: str) -> list[RunData]:
        folder = tmp_path / name
        return [
            practising(folder, "a", seed=1, rl={"sampling": {"temperature": 0.8}}),
            practising(
                folder,
                "b",
                seed=2,
                rl={"group_size": 5, "mini_batches": 2, "epochs": 2},
                model=ModelConfig(lora_rank=2),
            ),
            run_data(folder, "rows", seed=3),
        ]

    together = train_cohort(model(), cohort("together"), 4, tmp_path / "c")
    for n, run in enumerate(cohort("alone")):
        (single,) = train_cohort(model(), [run], 4, tmp_path / f"c{n}")
        torch.testing.assert_close(weights_of(single), weights_of(together[n]), rtol=1e-3, atol=1e-4)
        if run.practice is not None:
            assert completions(run) == completions(cohort("together")[n])


def test_passes_of_any_size_give_the_same_gradient(tmp_path):
    rl = {"loss": {"kl_coef": 0.05, "entropy_coef": 0.01, "aggregation": "sequence_mean"}, "epochs": 2}
    results = []
    for budget in (4096, 40):
        run = practising(tmp_path / str(budget), rl=rl, micro_batch_tokens=budget)
        results += train_cohort(model(), [run], 2, tmp_path / f"c{budget}")
    torch.testing.assert_close(weights_of(results[0]), weights_of(results[1]), rtol=1e-3, atol=1e-5)


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    rl = {
        "transform_mode": "gtpo_sepa",
        "sepa": {"delay_steps": 1, "steps": 3},
        "dynamic_sampling": {"enabled": True, "max_rounds": 2},
    }

    def cohort(name: str) -> list[RunData]:
        return [practising(tmp_path / name, "a", rl=rl, snapshots=(2, 5)), run_data(tmp_path / name, "rows")]

    class Stop:
        def update(self, done: int, loss: float | None) -> None:
            if done == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    whole = train_cohort(model(), cohort("whole"), 6, tmp_path / "c1")
    with pytest.raises(Interrupted):
        train_cohort(model(), cohort("cut"), 6, tmp_path / "c2", Stop())  # type: ignore[arg-type]
    resumed = train_cohort(model(), cohort("cut"), 6, tmp_path / "c2")
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(weights_of(one), weights_of(two))
        assert one.ledger == two.ledger
    a, b = cohort("whole")[0], cohort("cut")[0]
    assert unclocked(lines(a.metrics)) == unclocked(lines(b.metrics))
    for name in ("steps", "generations"):
        assert (a.folder / f"emergence/{name}.jsonl").read_bytes() == (
            b.folder / f"emergence/{name}.jsonl"
        ).read_bytes()
    for step in (2, 5):
        one, two = (load_peft(run.folder / "snapshots" / f"step-{step}") for run in (a, b))
        assert all(torch.equal(one.weights[path][1], two.weights[path][1]) for path in one.weights)


def test_a_step_that_teaches_nothing_is_told_and_changes_nothing(tmp_path):
    run = practising(tmp_path, rule=lambda text: 1.0)
    (result,) = train_cohort(model(), [run], 2, tmp_path / "checkpoint")
    rows = lines(run.metrics)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] == 0 and row["num_datums"] == 0 and row["correct_rate"] == 1 for row in rows)
    assert all(row["reward_uniform_group_rate"] == 1 for row in rows)
    assert (result.ledger.steps, result.ledger.updates) == (2, 0)
    assert all(not b_RO.any() for _, b_RO in result.adapter.weights.values())


def test_a_missing_grade_is_counted_and_teaches_nothing(tmp_path):
    """Every third grade is missing; the rest differ."""
    run = practising(tmp_path, rule=lambda text: None if sum(map(ord, text)) % 3 == 0 else odd(text), batch_size=6)
    (result,) = train_cohort(model(), [run], 2, tmp_path / "checkpoint")
    logged = lines(run.folder / "emergence" / "generations.jsonl")
    missing = [row for row in logged if row["correct"] is None]
    assert 0 < len(missing) < len(logged) == 2 * 6 * 4
    assert all(row["reward"] is None and row["advantage"] == 0 and row["no_grade"] for row in missing)
    assert result.ledger.missing_grades == len(missing) == sum(row["missing_grades"] for row in lines(run.metrics))
    assert result.ledger.graded == len(logged) - len(missing)


def test_all_completions_are_logged_with_what_they_earned(tmp_path):
    run = practising(tmp_path)
    train_cohort(model(), [run], 3, tmp_path / "checkpoint")
    logged, metrics = lines(run.folder / "emergence" / "generations.jsonl"), lines(run.metrics)
    steps = lines(run.folder / "emergence" / "steps.jsonl")
    assert len(logged) == 3 * 3 * 4
    for row, step in zip(metrics, steps, strict=True):
        mine = [one for one in logged if one["step"] == row["step"]]
        assert row["mean_reward"] == pytest.approx(np.mean([one["reward"] for one in mine]))
        assert row["correct_rate"] == pytest.approx(step["correct_count"] / step["total_count"])
        assert row["max_token_hit_rate"] == pytest.approx(np.mean([not one["finished"] for one in mine]))
        assert row["tokens_per_step"] == sum(one["num_tokens"] for one in mine)
    running = np.cumsum([step["correct_count"] for step in steps]) / np.cumsum([step["total_count"] for step in steps])
    assert [row["running_correct_rate"] for row in metrics] == pytest.approx(running.tolist())


def test_dynamic_sampling_replaces_groups_that_teach_nothing_and_is_capped(tmp_path):
    """Every second prompt is always right, so its groups are passed over."""
    rl = {"dynamic_sampling": {"enabled": True, "max_rounds": 3}}
    run = practising(tmp_path, rule=lambda text: 1.0, rl=rl)
    (result,) = train_cohort(model(), [run], 1, tmp_path / "checkpoint")
    assert result.ledger.prompts_drawn == 3 * 3
    (row,) = lines(run.metrics)
    assert row["passed_over_groups"] == 6
    mixed = practising(tmp_path, "mixed", rl=rl)
    (result,) = train_cohort(model(), [mixed], 2, tmp_path / "checkpoint2")
    logged = lines(mixed.folder / "emergence" / "generations.jsonl")
    assert len(logged) == 4 * result.ledger.prompts_drawn


def test_several_updates_per_step_leave_the_old_policy_behind(tmp_path):
    run = practising(tmp_path, rl={"epochs": 3, "mini_batches": 2}, learning_rate=3e-2, batch_size=6)
    (result,) = train_cohort(model(), [run], 2, tmp_path / "checkpoint")
    rows = lines(run.metrics)
    assert result.ledger.updates == sum(row["updates"] for row in rows) > 6
    assert any(row["approx_kl"] > 0 and row["ratio_mean"] != 1 for row in rows)


def test_divergence_from_the_base_holds_the_policy_back(tmp_path):
    free = practising(tmp_path, "free", rl={"group_size": 8, "loss": {"kl_coef": 1e-9}})
    held = practising(tmp_path, "held", rl={"group_size": 8, "loss": {"kl_coef": 5.0}})
    train_cohort(model(), [free, held], 10, tmp_path / "checkpoint")
    far, near = (np.mean([row["kl_to_base"] for row in lines(run.metrics)[-3:]]) for run in (free, held))
    assert lines(free.metrics)[0]["kl_to_base"] == pytest.approx(0, abs=1e-9)
    assert 0 < near < far / 2


def test_divergence_in_the_reward_is_paid_by_the_completion(tmp_path):
    rl = {"loss": {"kl_coef": 0.5, "kl_in": "reward"}, "advantage_mode": "rloo"}
    run = practising(tmp_path, rl=rl, learning_rate=3e-2)
    train_cohort(model(), [run], 4, tmp_path / "checkpoint")
    logged = lines(run.folder / "emergence" / "generations.jsonl")
    assert all(row["reward"] == row["correct"] for row in logged if row["step"] == 1)
    assert any(abs(row["reward"] - row["correct"]) > 1e-3 for row in logged if row["step"] == 4)


def test_without_a_group_baseline_each_token_pays_for_what_follows_it(tmp_path):
    rl = {"loss": {"kl_coef": 0.5, "kl_in": "reward"}, "advantage_mode": "reinforce_pp"}
    run = practising(tmp_path, rl=rl, learning_rate=3e-2)
    train_cohort(model(), [run], 4, tmp_path / "checkpoint")
    logged = lines(run.folder / "emergence" / "generations.jsonl")
    assert all(row["reward"] == row["correct"] for row in logged)
    advantages = {(row["correct"], round(row["advantage"], 9)) for row in logged if row["step"] == 4}
    assert len(advantages) > 2, "tokens of equal grades differ by their divergence"


@pytest.mark.parametrize("mode", ["entropy_mask", "delight"])
def test_what_a_transform_let_through_is_told(tmp_path, mode):
    run = practising(tmp_path, rl={"transform_mode": mode})
    train_cohort(model(), [run], 2, tmp_path / "checkpoint")
    row = lines(run.metrics)[0]
    assert row["batch_adv_count"] == 12
    assert row["batch_adv_mean"] == pytest.approx(0, abs=1e-6)
    assert row["batch_adv_std"] > 0.5
    assert row["policy_loss_mode"] == "ppo"
    if mode == "entropy_mask":
        assert 0.1 < row["entropy_mask_fraction"] < 0.4
        assert row["entropy_mask_threshold"] > 0
    else:
        assert 0 < row["dg_gate_min"] < 0.5 < row["dg_gate_max"] < 1
        assert 0 <= row["dg_suppressed"] + row["dg_neutral"] + row["dg_breakthrough"] <= 1


@pytest.mark.parametrize("transform", get_args(TransformMode))
def test_every_way_of_credit_trains(tmp_path, transform):
    runs = []
    for mode in get_args(AdvantageMode):
        rl = {
            "advantage_mode": mode,
            "transform_mode": transform,
            "advantage": {"k": 2, "set_size": 2},
            "sepa": {"delay_steps": 0, "steps": 1},
            "uncertainty_kind": "entropy",
        }
        runs.append(practising(tmp_path, mode, rl=rl))
    results = train_cohort(model(), runs, 3, tmp_path / "checkpoint")
    for run, result in zip(runs, results, strict=True):
        assert result.status == "done"
        assert all(np.isfinite(row["loss"]) for row in lines(run.metrics))
        assert result.ledger.updates > 0


def test_a_run_whose_logits_are_not_finite_is_quarantined_and_the_others_go_on(tmp_path):
    good = practising(tmp_path, "good")
    bad = practising(tmp_path, "bad", learning_rate=1e30, max_grad_norm=0.0)
    kept, lost = train_cohort(model(), [good, bad], 4, tmp_path / "checkpoint")
    assert (kept.status, lost.status) == ("done", "quarantined")
    assert "not finite" in str(lost.reason)
    (alone,) = train_cohort(model(), [practising(tmp_path / "alone", "good")], 4, tmp_path / "c")
    torch.testing.assert_close(weights_of(kept), weights_of(alone), rtol=1e-3, atol=1e-4)
    rows = lines(bad.metrics)
    assert rows[-1]["quarantined"] == lost.reason
    assert rows[-1]["loss"] is None
    assert len(rows) < 4 == len(lines(good.metrics))


def test_planning_words_can_be_found_by_meaning(tmp_path):
    run = practising(tmp_path, rl={"planning": {"detector": "semantic", "threshold": 0.0}})
    train_cohort(model(), [run], 1, tmp_path / "checkpoint")
    (row,) = lines(run.metrics)
    assert 0 <= row["planning_token_ratio"] <= 1
    assert all(0 <= one["planning_token_ratio"] <= 1 for one in lines(run.folder / "emergence/generations.jsonl"))


def test_a_base_cannot_be_practised_on_with_dropout(tmp_path):
    run = practising(tmp_path, model=ModelConfig(lora_rank=4, lora_dropout=0.1))
    with pytest.raises(Exception, match="lora_dropout"):
        train_cohort(model(), [run], 1, tmp_path / "checkpoint")


def test_a_step_that_is_drawn_again_without_a_broken_run_is_that_of_the_others_alone(tmp_path, monkeypatch):
    """The run breaks in the second round of dynamic sampling, when the first has advanced all ledgers."""
    rl = {"dynamic_sampling": {"enabled": True, "max_rounds": 2}}

    def good(name: str) -> RunData:
        return practising(tmp_path / name, "good", rule=lambda text: 1.0, rl=rl)

    calls = []

    def breaking(model, head, stack, tokenizer, requests, *rest, **named):
        calls.append({request.adapter for request in requests})
        if len(calls) == 2:
            raise NotFinite(1)
        return sample(model, head, stack, tokenizer, requests, *rest, **named)

    monkeypatch.setattr("finetrial.train.rollouts.sample", breaking)
    bad = practising(tmp_path, "bad", seed=5, rule=lambda text: 1.0, rl=rl)
    kept, lost = train_cohort(model(), [good("together"), bad], 2, tmp_path / "c1")
    assert (kept.status, lost.status) == ("done", "quarantined")
    assert calls == [{0, 1}, {0, 1}, {0}, {0}, {0}, {0}]
    monkeypatch.undo()
    (alone,) = train_cohort(model(), [good("alone")], 2, tmp_path / "c2")
    assert kept.ledger == alone.ledger
    assert completions(good("together")) == completions(good("alone"))


def test_what_was_not_measured_is_absent_and_the_divergence_is_told_wherever_it_enters(tmp_path):
    free = practising(tmp_path, "free", rl={"transform_mode": "entropy_mask"}, rule=lambda text: 1.0)
    odds = practising(tmp_path, "odds")
    paid = practising(tmp_path, "paid", rl={"loss": {"kl_coef": 0.01, "kl_in": "reward"}}, learning_rate=3e-2)
    train_cohort(model(), [free, odds, paid], 4, tmp_path / "checkpoint")
    assert not any("kl_to_base" in row for run in (free, odds) for row in lines(run.metrics))
    assert not any("entropy_mask_fraction" in row for row in lines(free.metrics))
    assert lines(paid.metrics)[-1]["kl_to_base"] > 0


@pytest.mark.parametrize("kind", ["surprisal", "entropy", "predictive_variance"])
def test_what_was_pooled_is_told_under_its_own_name_and_drives_the_schedule(tmp_path, kind):
    rl = {"transform_mode": "gtpo_sepa", "uncertainty_kind": kind, "sepa": {"correct_rate_gate": 0.0, "delay_steps": 1}}
    run = practising(tmp_path, rl=rl)
    (result,) = train_cohort(model(), [run], 1, tmp_path / "checkpoint")
    (row,) = lines(run.metrics)
    assert {name for name in row if name.startswith("post_")} >= {f"post_exec_{kind}_mean", f"post_exec_{kind}_var"}
    assert all(f"_{kind}_" in name for name in row if name.startswith("post_"))
    assert result.ledger.sepa is not None
    assert result.ledger.sepa["ema"] == pytest.approx(row[f"post_exec_{kind}_var"])  # strength 0: nothing was pooled
    assert lines(run.folder / "emergence/steps.jsonl")[0][f"post_exec_{kind}_mean"] == row[f"post_exec_{kind}_mean"]


def test_a_group_of_one_is_refused_where_completions_of_a_prompt_are_compared():
    with pytest.raises(ValueError, match="group_size is 1"):
        RLConfig(group_size=1)
    assert RLConfig(group_size=1, advantage_mode="reinforce_pp").group_size == 1


def test_an_anchor_holds_every_completion_at_the_temperature_of_sampling(tmp_path):
    """Also those that teach nothing (all rewards of a group are equal): there the anchor is the whole gradient."""
    sampling = {"sampling": {"temperature": 0.7}}
    free = practising(tmp_path, "free", rl={**sampling, "group_size": 8})
    free = replace(free, anchor=AnchorConfig(kind="student_ref", coef=1e-9))
    held = replace(free, condition="held", folder=tmp_path / "held", key="held", anchor=AnchorConfig(coef=5.0))
    top = replace(free, condition="top", folder=tmp_path / "top", key="top", anchor=AnchorConfig(coef=1e-9, top_k=5))
    train_cohort(model(), [free, held, top], 8, tmp_path / "checkpoint")
    first, far = lines(free.metrics)[0], np.mean([row["anchor_kl"] for row in lines(free.metrics)[-2:]])
    assert first["anchor_kl"] == pytest.approx(0, abs=1e-6)
    assert first["anchor_tokens"] == first["tokens_per_step"]
    assert 0 < np.mean([row["anchor_kl"] for row in lines(held.metrics)[-2:]]) < far / 2
    bound = lines(top.metrics)[-1]
    assert bound["anchor_lower_bound"]
    assert bound["anchor_kl"] > 0


def test_entropy_and_divergence_of_a_policy_are_measured_apart(tmp_path):
    """Where nothing else acts, one of them is the whole gradient."""
    loss = {"kl_coef": 0.3, "entropy_coef": 0.05}
    run = practising(tmp_path, "both", rl={"loss": loss})
    idle = practising(tmp_path, "idle", rl={"loss": loss}, rule=lambda text: 1.0)
    (result, other) = train_cohort(model(), [run, idle], 3, tmp_path / "checkpoint")
    assert set(result.ledger.terms) == {"entropy", "kl"}
    row = lines(run.metrics)[1]
    assert 0 < row["grad_norm_kl"] < row["grad_norm_entropy"] * 100
    assert row["grad_share_entropy"] + row["grad_share_kl"] < 1
    alone = other.ledger.terms["entropy"]["probes"][0]
    assert alone["share"] == pytest.approx(1, abs=1e-3)  # equal rewards: no advantage, and no divergence yet
    assert lines(idle.metrics)[0]["grad_norm"] == pytest.approx(alone["norm"], rel=1e-3)


def test_a_practising_run_with_an_anchor_goes_on_bit_for_bit(tmp_path):
    def cohort(name):
        run = practising(tmp_path / name, rl={"epochs": 2, "mini_batches": 2}, save_every=1)
        return [replace(run, anchor=AnchorConfig(kind="js", coef=1.0))]

    class Stop:
        def update(self, done, loss):
            if done == 2:
                raise OSError("the machine is gone")

    (whole,) = train_cohort(model(), cohort("whole"), 3, tmp_path / "whole" / "checkpoint")
    with pytest.raises(OSError, match="gone"):
        train_cohort(model(), cohort("cut"), 3, tmp_path / "cut" / "checkpoint", Stop())  # type: ignore[arg-type]
    (resumed,) = train_cohort(model(), cohort("cut"), 3, tmp_path / "cut" / "checkpoint")
    assert resumed.ledger == whole.ledger
    assert all(
        torch.equal(a, b)
        for path, pair in whole.adapter.weights.items()
        for a, b in zip(pair, resumed.adapter.weights[path], strict=True)
    )


def test_before_its_start_an_anchor_makes_no_update(tmp_path):
    """All rewards are equal, so there is nothing to learn but what an anchor that acts would teach."""
    run = practising(tmp_path, rule=lambda text: 1.0)
    late = replace(run, anchor=AnchorConfig(coef=1.0, start_step=1))
    (result,) = train_cohort(model(), [late], 2, tmp_path / "c1")
    assert [row["updates"] for row in lines(late.metrics)] == [0, 1]
    assert result.ledger.updates == 1
