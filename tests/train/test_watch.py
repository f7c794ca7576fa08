"""Mixtures and guards inside the loop: what is read, what is measured, who stops, and what neighbours notice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import AutoTokenizer

from finetrial.analyze.passk import pass_at_k
from finetrial.errors import UserError
from finetrial.evaluate.choice import ChoiceItem, choice_logp
from finetrial.evaluate.completions import write
from finetrial.evaluate.diversity import diversity
from finetrial.evaluate.perplexity import bits_per_byte, mean_item_nll, perplexity, token_perplexity
from finetrial.generate.config import SamplingConfig
from finetrial.model.config import ModelConfig
from finetrial.model.embed import embed
from finetrial.model.peft_format import load_peft
from finetrial.model.render import Rendered
from finetrial.model.source import locate
from finetrial.records import Grade, Task
from finetrial.train.cohort import train_cohort
from finetrial.train.mixture_config import MixtureConfig
from finetrial.train.runs import Mixture, Questions, RunData, TrainResult, Watch
from finetrial.train.stopping_config import WATCHED, StoppingConfig
from finetrial.train.watch import ANSWERS, DIVERGENCES, OPTIONS, TEXTS
from tiny import random_rows, run_data, tiny_model


def metrics_of(run: RunData) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def weights_of(result: TrainResult) -> torch.Tensor:
    return torch.cat([part.flatten() for _, pair in sorted(result.adapter.weights.items()) for part in pair])


def taught(count: int, seed: int) -> list[Rendered]:
    """Rows that all have something to learn."""
    return [row for row in random_rows(4 * count, seed) if row.mask_T[1:].any()][:count]


def mixed(run: RunData, ratio: object = 0.25, unit: str = "rows", count: int = 6) -> RunData:
    config = MixtureConfig.model_validate({"unit": unit, "parts": [{"name": "old", "source": "x", "ratio": ratio}]})
    return replace(run, rows=taught(13, seed=run.seed), mixture=Mixture(config, {"old": taught(count, seed=77)}))


ITEMS = {f"item{k}": row for k, row in enumerate(taught(7, seed=500))}


def guarded(run: RunData, items: dict[str, Rendered] = ITEMS, **rule: object) -> RunData:
    config = StoppingConfig.model_validate({"suite": "old", "every": 2, **rule})
    return replace(run, watch=Watch(config, "nll", "lower", "old nll", items))


@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_a_mixture_is_told_step_by_step_and_in_the_ledger(tmp_path: Path, unit: str) -> None:
    run = mixed(run_data(tmp_path), unit=unit)
    (result,) = train_cohort(tiny_model(), [run], 8, tmp_path / "checkpoint")
    rows = metrics_of(run)
    for row in rows:
        assert row["rows_selected"] + row["rows_old"] == 4
        assert row["tokens_selected"] + row["tokens_old"] == row["supervised_tokens"]
    counted = result.ledger.parts
    assert counted["old"] == {key: sum(row[f"{key}_old"] for row in rows) for key in ("rows", "tokens")}
    assert counted["old"]["rows"] + counted["selected"]["rows"] == 32
    if unit == "rows":
        assert [row["rows_old"] for row in rows] == [1] * 8
        assert (result.part_rows, result.distinct_rows) == ({"old": 6}, 13)
    else:
        assert run.mixture is not None
        longest = max(int(row.mask_T[1:].sum()) for row in (*run.rows, *run.mixture.parts["old"]))
        total = sum(row["supervised_tokens"] for row in rows)
        assert abs(counted["old"]["tokens"] - 0.25 * total) <= longest


def test_a_part_changes_what_is_learnt_and_a_share_of_nothing_changes_no_bit(tmp_path: Path) -> None:
    (plain,) = train_cohort(
        tiny_model(), [replace(run_data(tmp_path / "a"), rows=taught(13, seed=0))], 6, tmp_path / "ca"
    )
    (none,) = train_cohort(tiny_model(), [mixed(run_data(tmp_path / "b"), 0.0)], 6, tmp_path / "cb")
    (some,) = train_cohort(tiny_model(), [mixed(run_data(tmp_path / "c"), 0.5)], 6, tmp_path / "cc")
    assert torch.equal(weights_of(plain), weights_of(none))
    assert not torch.allclose(weights_of(plain), weights_of(some), atol=1e-3)


def test_a_cohort_with_mixtures_is_its_single_runs(tmp_path: Path) -> None:
    def runs(folder: Path) -> list[RunData]:
        return [
            mixed(run_data(folder, "a", seed=1)),
            run_data(folder, "b", seed=2),
            mixed(run_data(folder, "c", seed=3), [[0.0, 0.0], [1.0, 0.9]], "tokens"),
        ]

    together = train_cohort(tiny_model(), runs(tmp_path / "all"), 8, tmp_path / "checkpoint")
    for run, result in zip(runs(tmp_path / "one"), together, strict=True):
        (alone,) = train_cohort(tiny_model(), [run], 8, tmp_path / f"checkpoint-{run.name}")
        assert alone.ledger.parts == result.ledger.parts
        torch.testing.assert_close(weights_of(alone), weights_of(result), rtol=1e-3, atol=1e-4)


def test_a_mixture_refuses_rows_without_anything_to_learn(tmp_path: Path) -> None:
    run = mixed(run_data(tmp_path))
    assert run.mixture is not None
    empty = Rendered(np.arange(5, dtype=np.int32), np.zeros(5, dtype=bool), 0, 0)
    broken = replace(run, mixture=replace(run.mixture, parts={"old": [*run.mixture.parts["old"], empty]}))
    with pytest.raises(UserError, match="part old of its mixture has 1 of 7 rows without a supervised token"):
        train_cohort(tiny_model(), [broken], 2, tmp_path / "checkpoint")


def test_the_guard_measures_what_the_evaluator_measures(tmp_path: Path) -> None:
    model = tiny_model()
    run = guarded(run_data(tmp_path), select="last", floor=100.0)
    (result,) = train_cohort(model, [run], 6, tmp_path / "checkpoint")
    scores = perplexity(model, [result.adapter], ITEMS)
    base, last = (mean_item_nll(nll_K, scores.tokens_K) for nll_K in scores.nll_GK)
    assert result.ledger.baseline == pytest.approx(base, abs=1e-6)
    assert result.ledger.watched[-1] == {"step": 6, "value": pytest.approx(last, abs=1e-6), "missing": 0}
    assert [one["step"] for one in result.ledger.watched] == [2, 4, 6]
    told = {row["step"]: row["watched_nll"] for row in metrics_of(run) if "watched_nll" in row}
    assert told == {one["step"]: one["value"] for one in result.ledger.watched}


@pytest.mark.parametrize("metric", WATCHED["perplexity"])
def test_every_metric_of_texts_is_the_evaluators(tmp_path: Path, metric: str) -> None:
    model = tiny_model()
    run = guarded(run_data(tmp_path), select="last", floor=100.0, every=6)
    assert run.watch is not None
    run = replace(run, watch=replace(run.watch, metric=metric))
    (result,) = train_cohort(model, [run], 6, tmp_path / "checkpoint")
    scores = perplexity(model, [result.adapter], ITEMS, gauge=True)
    gauge = scores.gauge
    assert gauge is not None
    want = {
        "nll": lambda g: mean_item_nll(scores.nll_GK[g], scores.tokens_K),
        "log_perplexity": lambda g: np.log(token_perplexity(scores.nll_GK[g], scores.tokens_K)),
        "bits_per_byte": lambda g: bits_per_byte(scores.nll_GK[g], scores.bytes_K),
        "kl_to_base": lambda g: mean_item_nll(gauge.to_base_GK[g], scores.tokens_K),
        "kl_from_base": lambda g: mean_item_nll(gauge.from_base_GK[g], scores.tokens_K),
    }[metric]
    assert result.ledger.baseline == pytest.approx(want(0), abs=1e-6)
    assert result.ledger.watched[0]["value"] == pytest.approx(want(1), abs=1e-6)
    assert metric not in DIVERGENCES or result.ledger.watched[0]["value"] > 0.01


@pytest.mark.parametrize("metric", WATCHED["choice"])
def test_every_metric_of_choices_is_the_evaluators(tmp_path: Path, metric: str) -> None:
    random = np.random.default_rng(1)
    items = [
        ChoiceItem(
            f"q{k}",
            random.integers(1, 60, 5 + k),
            tuple(random.integers(1, 60, length) for length in (1, 2, 4)),
            bytes=(2, 5, 9),
            gold=k % 3,
        )
        for k in range(6)
    ]
    model = tiny_model()
    run = guarded(run_data(tmp_path), select="last", floor=100.0, every=6)
    assert run.watch is not None
    run = replace(run, watch=replace(run.watch, metric=metric, better="higher", on=items))
    (result,) = train_cohort(model, [run], 6, tmp_path / "checkpoint")
    found = choice_logp(model, [result.adapter], items)
    of = {
        "acc": lambda logp_O, item: float(logp_O.argmax() == item.gold),
        "acc_norm": lambda logp_O, item: float((logp_O / np.array(item.bytes)).argmax() == item.gold),
        "gold_logp": lambda logp_O, item: float(log_softmax(logp_O)[item.gold]),
    }[metric.removesuffix("_letter")]
    for g, have in enumerate((result.ledger.baseline, result.ledger.watched[0]["value"])):
        want = np.mean([of(logp_GO[g], item) for logp_GO, item in zip(found, items, strict=True)])
        assert have == pytest.approx(want, abs=1e-5)


TOKENIZER = AutoTokenizer.from_pretrained(locate(ModelConfig()))
WARM = SamplingConfig(max_tokens=16, temperature=0.4)
SAMPLES = 4


class ByLength:
    """Right by the length of the text; every fifth length cannot be graded."""

    @staticmethod
    def value(text: str) -> float | None:
        return None if len(text) % 5 == 0 else float(len(text) % 4 == 1)

    def grade(self, tasks: list[Task], texts: list[str]) -> list[Grade]:
        assert len(tasks) == len(texts)
        return [Grade(self.value(text), "length") for text in texts]


def asking(run: RunData, metric: str, graded: bool) -> RunData:
    """The run, watched on what it writes for five prompts."""
    words = ("one", "the other", "what is it", "tell me more", "why")
    on = Questions(
        tasks=[Task(f"t{k}", f"g{k}", ({"role": "user", "content": word},), "x") for k, word in enumerate(words)],
        prompts=[np.array(TOKENIZER(word)["input_ids"], dtype=np.int64) for word in words],
        grader=ByLength() if graded else None,  # type: ignore[arg-type]
        tokenizer=TOKENIZER,
        stop_ids=tuple(range(0, len(TOKENIZER), 8)),
        sampling=WARM,
        samples=SAMPLES,
        seed=3,
        vocabulary=len(TOKENIZER),
        matched_words=5,
    )
    run = guarded(run, select="last", floor=1e9, every=3)
    assert run.watch is not None
    return replace(run, watch=replace(run.watch, metric=metric, better="higher", on=on, key=metric))


def written_in_the_end(run: RunData, result: TrainResult) -> list[list[list]]:
    """Completions (model, task, sample) of the base and the last adapter, as suites are written."""
    assert run.watch is not None
    on = run.watch.on
    assert isinstance(on, Questions)
    model = tiny_model(vocab_size=len(TOKENIZER))
    return write(model, [result.adapter], on.tasks, on.prompts, TOKENIZER, on.stop_ids, WARM, SAMPLES, on.seed)


@pytest.mark.parametrize(
    "metric", ["distinct_1", "distinct_1_matched", "self_bleu_2", "ead_2", "degenerate", "vendi", "semantic_diversity"]
)
def test_texts_are_watched_as_suites_measure_them_and_nobody_grades(tmp_path: Path, metric: str) -> None:
    run = asking(run_data(tmp_path, learning_rate=5e-2), metric, graded=False)
    (result,) = train_cohort(tiny_model(vocab_size=len(TOKENIZER)), [run], 6, tmp_path / "checkpoint")
    found, missing = [], []
    for items in written_in_the_end(run, result):
        values = []
        for mine in items:
            texts = [one.text for one in mine]
            vectors = embed(tiny_model(vocab_size=len(TOKENIZER)), TOKENIZER, texts)
            measured = diversity(texts, len(TOKENIZER), vectors, [one.finished for one in mine], matched=5)
            values.append(measured[metric])
        found.append(np.mean([value for value in values if value is not None]))
        missing.append(values.count(None))
    assert result.ledger.watched[-1]["missing"] == missing[1]
    assert [result.ledger.baseline, result.ledger.watched[-1]["value"]] == pytest.approx(found, abs=1e-6)
    assert found[0] != found[1]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_pass_at_k_is_watched_over_what_is_graded(tmp_path: Path, k: int) -> None:
    """A task with fewer than k graded completions has no value, and is told as missing."""
    run = asking(run_data(tmp_path, learning_rate=5e-2), f"pass@{k}", graded=True)
    (result,) = train_cohort(tiny_model(vocab_size=len(TOKENIZER)), [run], 6, tmp_path / "checkpoint")
    found, missing = [], []
    for items in written_in_the_end(run, result):
        grades = [[ByLength.value(one.text) for one in mine] for mine in items]
        known = [[value for value in mine if value is not None] for mine in grades]
        count, right = (np.array([of(mine) for mine in known if len(mine) >= k]) for of in (len, sum))
        found.append(float(pass_at_k(count, right.astype(int), k).mean()))
        missing.append(len(known) - len(count))
    watched = result.ledger.watched[-1]
    assert [result.ledger.baseline, watched["value"]] == pytest.approx(found)
    assert watched["missing"] == missing[1]
    assert 0 < found[0] < 1
    assert k < 3 or missing[0] + missing[1] > 0


def test_the_best_adapter_is_kept_and_the_last_one_beside_it(tmp_path: Path) -> None:
    """Random rows are learnt by heart, so that random texts become less likely: the first measurement is the best."""
    run = guarded(run_data(tmp_path, learning_rate=5e-2, schedule="constant"))
    (result,) = train_cohort(tiny_model(), [run], 8, tmp_path / "checkpoint")
    values = {one["step"]: one["value"] for one in result.ledger.watched}
    assert result.ledger.kept_step == min(values, key=lambda step: values[step]) < 8
    unguarded = run_data(tmp_path / "plain", learning_rate=5e-2, schedule="constant")
    (plain,) = train_cohort(tiny_model(), [unguarded], 8, tmp_path / "plain" / "checkpoint")
    assert result.last is not None
    assert torch.equal(weights_of(replace(result, adapter=result.last)), weights_of(plain))
    scores = perplexity(tiny_model(), [result.adapter], ITEMS)
    assert mean_item_nll(scores.nll_GK[1], scores.tokens_K) == pytest.approx(min(values.values()), abs=1e-6)


def stopping_pair(folder: Path, floor: float | None, **training: Any) -> list[RunData]:
    """A run that leaves the base fast, with or without a guard, and its neighbour."""
    wild = run_data(folder, "wild", seed=1, learning_rate=5e-2, schedule="constant", **training)
    return [
        wild if floor is None else guarded(wild, floor=floor, select="last"),
        run_data(folder, "calm", seed=2, **training),
    ]


def test_a_stopped_run_leaves_the_passes_and_its_neighbour_is_bit_identical(tmp_path: Path) -> None:
    """One row per pass, so that what a neighbour computes does not depend on who shares its passes."""
    free = stopping_pair(tmp_path / "free", None, micro_batch_tokens=1)
    cut = stopping_pair(tmp_path / "cut", 0.001, micro_batch_tokens=1)
    (_, calm), (stopped, same) = (
        train_cohort(tiny_model(), runs, 10, tmp_path / name) for name, runs in (("cf", free), ("cc", cut))
    )
    end = stopped.ledger.stopped_at
    assert end is not None
    assert end < 10
    assert stopped.status == "done"
    assert "worse than the base's" in str(stopped.ledger.stop_reason)
    assert (stopped.ledger.steps, stopped.ledger.updates, stopped.ledger.rows) == (end, end, 4 * end)
    rows = metrics_of(cut[0])
    assert [row["step"] for row in rows] == list(range(1, end + 1))
    assert rows[-1]["stopped"] == stopped.ledger.stop_reason
    assert torch.equal(weights_of(calm), weights_of(same))
    assert [row["loss"] for row in metrics_of(free[1])] == [row["loss"] for row in metrics_of(cut[1])]


def test_a_stopped_run_is_the_run_of_so_many_steps(tmp_path: Path) -> None:
    runs = stopping_pair(tmp_path / "cut", 0.001)
    stopped, _ = train_cohort(tiny_model(), runs, 10, tmp_path / "cc")
    whole = replace(stopping_pair(tmp_path / "whole", None)[0], snapshots=frozenset({stopped.ledger.stopped_at}))
    train_cohort(tiny_model(), [whole], 10, tmp_path / "cw")
    then = load_peft(whole.folder / "snapshots" / f"step-{stopped.ledger.stopped_at}")
    torch.testing.assert_close(weights_of(replace(stopped, adapter=then)), weights_of(stopped), rtol=1e-3, atol=1e-4)


def fingerprint(runs: list[RunData], results: list[TrainResult]) -> list:
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in metrics_of(run)] for run in runs]
    adapters = [weights_of(result).numpy().tobytes() for result in results]
    last = [None if r.last is None else weights_of(replace(r, adapter=r.last)).numpy().tobytes() for r in results]
    return [rows, [result.ledger for result in results], adapters, last]


def test_the_latest_adapter_within_the_floor_is_kept(tmp_path: Path) -> None:
    """The run is stopped at the first measurement below the floor, and keeps what it was one measurement before."""
    rates = {"learning_rate": 5e-2, "schedule": "constant"}
    free_run = guarded(run_data(tmp_path, **rates), floor=100.0)
    (free,) = train_cohort(tiny_model(), [free_run], 8, tmp_path / "checkpoint")
    losses = [one["value"] - free.ledger.baseline for one in free.ledger.watched]
    worst = [max(0.0, *losses[:k], losses[0]) for k in range(len(losses))]
    broken = next(k for k in range(1, len(losses)) if losses[k] > worst[k])
    floor = (worst[broken] + losses[broken]) / 2
    run = guarded(run_data(tmp_path / "held", **rates), floor=floor, select="within_floor")
    (result,) = train_cohort(tiny_model(), [run], 8, tmp_path / "held" / "checkpoint")
    assert (result.ledger.kept_step, result.ledger.stopped_at) == (2 * broken, 2 * broken + 2)
    scores = perplexity(tiny_model(), [result.adapter], ITEMS)
    before = free.ledger.watched[broken - 1]["value"]
    assert mean_item_nll(scores.nll_GK[1], scores.tokens_K) == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("cut_after", [3, 4, 7])
def test_resumed_equals_uninterrupted_with_guards_and_mixtures(tmp_path: Path, cut_after: int) -> None:
    """Cut between measurements, right after one, and after the stop; the best adapter comes from the checkpoint."""

    def runs(name: str) -> list[RunData]:
        wild = {"learning_rate": 0.2, "schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 0, "save_every": 2}
        return [
            mixed(guarded(run_data(tmp_path / name, "w", seed=1, **wild))),
            mixed(guarded(run_data(tmp_path / name, "s", seed=1, **wild), patience=1)),
        ]

    whole = train_cohort(tiny_model(), runs("whole"), 8, tmp_path / "whole" / "checkpoint")
    assert whole[0].ledger.kept_step is not None
    assert whole[0].ledger.kept_step < 8
    assert whole[1].ledger.stopped_at is not None

    class Stop:
        def update(self, done: int, loss: float | None) -> None:
            if done == cut_after:
                raise OSError("the machine is gone")

    folder = tmp_path / "cut" / "checkpoint"
    with pytest.raises(OSError, match="the machine is gone"):
        train_cohort(tiny_model(), runs("cut"), 8, folder, Stop())  # type: ignore[arg-type]
    resumed = train_cohort(tiny_model(), runs("cut"), 8, folder)
    assert fingerprint(runs("cut"), resumed) == fingerprint(runs("whole"), whole)


def test_a_guard_that_never_ran_leaves_no_measurement(tmp_path: Path) -> None:
    (result,) = train_cohort(tiny_model(), [guarded(run_data(tmp_path), every=9)], 4, tmp_path / "checkpoint")
    assert result.ledger.watched == []
    assert result.ledger.kept_step is None
    assert result.last is None


def test_a_run_whose_numbers_break_has_no_value_and_does_not_stop(tmp_path: Path) -> None:
    runs = [
        guarded(
            run_data(tmp_path, "wild", learning_rate=1e30, schedule="constant", warmup_ratio=0.0, max_grad_norm=0),
            every=1,
            patience=1,
        ),
        guarded(run_data(tmp_path, "calm", seed=1), every=1, patience=9),
    ]
    wild, calm = train_cohort(tiny_model(), runs, 4, tmp_path / "checkpoint")
    assert wild.status == "quarantined"
    assert [one["value"] for one in wild.ledger.watched] == [None]
    assert wild.ledger.watched[0]["missing"] > 0
    assert len(calm.ledger.watched) == 4
    assert all(one["value"] is not None for one in calm.ledger.watched)


def test_an_item_without_anything_to_score_is_refused(tmp_path: Path) -> None:
    empty = Rendered(np.arange(5, dtype=np.int32), np.zeros(5, dtype=bool), 0, 0)
    with pytest.raises(UserError, match="item 'none' has no supervised token"):
        train_cohort(tiny_model(), [guarded(run_data(tmp_path), {"none": empty})], 4, tmp_path / "checkpoint")


def test_every_metric_that_a_guard_may_name_is_measured() -> None:
    assert set(WATCHED["perplexity"]) == set(TEXTS)
    assert set(WATCHED["tasks"]) == set(ANSWERS)
    assert {metric.removesuffix("_letter") for metric in WATCHED["choice"]} == set(OPTIONS)
