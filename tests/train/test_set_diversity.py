"""The set-diversity term in the cohort's loop: its gradient, what it leaves alone, and what it tells."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from finetrial.errors import Interrupted, UserError
from finetrial.evaluate.perplexity import perplexity
from finetrial.generate.decode import NotFinite
from finetrial.model.adapters import AdapterStack, fresh_adapter
from finetrial.model.config import ModelConfig
from finetrial.model.loss import head_of
from finetrial.model.source import locate
from finetrial.records import Task
from finetrial.train.batches import step_rows
from finetrial.train.cohort import train_cohort
from finetrial.train.lesson import Lesson
from finetrial.train.rollouts import Engine, Group
from finetrial.train.runs import Ledger, RunData, SetPrompts
from finetrial.train.set_diversity import SetDiversity, chosen_prompts
from finetrial.train.set_log import DrawnSet, SetLog
from finetrial.train.set_scores import SetScore
from finetrial.train.term_config import SetDiversityConfig
from tiny import random_rows, run_data, tiny_model

TOKENIZER = AutoTokenizer.from_pretrained(locate(ModelConfig()))
STOPS = tuple(range(0, len(TOKENIZER), 4))
"""A random model says any token: most completions end by themselves, some are cut."""
ASKED = ("one", "the other", "what is it", "tell me more", "why")


def varied(
    folder: Path, condition: str = "v", seed: int = 0, training: dict | None = None, **config: object
) -> RunData:
    """A run over random rows that also draws sets of 4 completions for 3 prompts."""
    tasks = [Task(f"t{n}", f"g{n}", ({"role": "user", "content": word},), "x") for n, word in enumerate(ASKED)]
    prompts = [np.array(TOKENIZER(word)["input_ids"], dtype=np.int64) for word in ASKED]
    table = {"weight": 1.0, "order": 1, "n_generations": 4, "max_examples": 3, "sampling": {"max_tokens": 8}, **config}
    if "gradient_share" in config:
        del table["weight"]
    sets = SetPrompts(SetDiversityConfig.model_validate(table), tasks, prompts, TOKENIZER, STOPS)
    return replace(run_data(folder, condition, seed, **(training or {})), sets=sets)


def model():
    return tiny_model(vocab_size=len(TOKENIZER))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def unclocked(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "sample_time_s")} for row in rows]


def generations(run: RunData) -> list[dict]:
    return lines(run.folder / "emergence" / "generations.jsonl")


def weights_of(result) -> torch.Tensor:
    return torch.cat([part.flatten() for pair in result.adapter.weights.values() for part in pair])


def lessons_of(run: RunData, step: int = 0) -> tuple[Lesson, Ledger]:
    """What the term adds to an empty lesson of a fresh adapter."""
    theirs, ledger = model(), Ledger()
    head = head_of(theirs)
    with (
        AdapterStack(theirs, [fresh_adapter(theirs, run.model, run.seed)], trainable=True) as stack,
        SetDiversity(Engine(theirs, head, stack), [run]) as diversity,
    ):
        (lesson,) = diversity.added([Lesson((), 0, 0, 0, {})], [ledger], step)
    return lesson, ledger


def test_the_gradient_is_that_of_the_loss_written_out(tmp_path):
    """CE - λ mean over prompts and completions of A log p, by autograd over full logits."""
    run = varied(tmp_path, weight=0.7, training={"max_grad_norm": 0})
    train_cohort(model(), [run], 1, tmp_path / "checkpoint")
    (row,) = lines(run.metrics)
    lesson, _ = lessons_of(run)
    drawn = generations(run)
    assert [line["completion"] for line in lesson.logs["emergence/generations.jsonl"]] == [
        line["completion"] for line in drawn
    ]
    worth = [line["advantage"] for line in drawn if line["advantage"]]
    (rows,) = lesson.updates
    assert len(worth) == len(rows) > 6

    theirs = model()
    with AdapterStack(theirs, [fresh_adapter(theirs, run.model, run.seed)], trainable=True) as stack:
        chosen = [run.rows[place] for place in step_rows(run.seed, len(run.rows), run.train.batch_size, 0)]
        tokens = sum(int(rendered.mask_T[1:].sum()) for rendered in chosen)
        for rendered in chosen:
            ids_T = torch.from_numpy(rendered.ids_T.astype(np.int64))
            with stack.rows([0]):
                logits = theirs(input_ids=ids_T[None], use_cache=False).logits[0]
                nll = F.cross_entropy(logits[:-1], ids_T[1:], reduction="none")
                stack.backward((nll[torch.from_numpy(rendered.mask_T[1:])].sum() / tokens, torch.ones(())))
        for advantage, mine in zip(worth, rows, strict=True):
            ids_T = torch.from_numpy(mine.stream.ids_T)
            target_T = torch.from_numpy(mine.stream.target_M)
            with stack.rows([0]):
                logits = theirs(input_ids=ids_T[None], use_cache=False).logits[0][-len(target_T) :]
                logp = logits.log_softmax(-1).gather(1, target_T[:, None]).sum()
                stack.backward((-0.7 * advantage * logp / (3 * 4), torch.ones(())))
        norm = float(torch.linalg.vector_norm(stack.grad_NP[0]))
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    train_cohort(model(), [replace(run, sets=None, folder=tmp_path / "plain")], 1, tmp_path / "c2")
    (without,) = lines(tmp_path / "plain" / "metrics.jsonl")
    assert without["loss"] == pytest.approx(row["loss"], rel=1e-6)
    assert abs(without["grad_norm"] - norm) > 1e-3


def test_weight_0_measures_and_leaves_the_adapter_bit_identical(tmp_path):
    measured = varied(tmp_path, weight=0)
    plain = replace(measured, sets=None, folder=tmp_path / "plain")
    (one,) = train_cohort(model(), [measured], 5, tmp_path / "c1")
    (two,) = train_cohort(model(), [plain], 5, tmp_path / "c2")
    assert torch.equal(weights_of(one), weights_of(two))
    rows = lines(measured.metrics)
    assert [row["loss"] for row in rows] == [row["loss"] for row in lines(plain.metrics)]
    assert all(0 < row["diversity_score"] <= 1 for row in rows)
    assert [row["combined_loss"] for row in rows] == [row["quality_loss"] for row in rows]
    taught = varied(tmp_path / "taught")
    (three,) = train_cohort(model(), [taught], 5, tmp_path / "c3")
    assert not torch.equal(weights_of(three), weights_of(two))


def test_every_so_many_steps_sets_are_drawn_and_told(tmp_path):
    run = varied(tmp_path, every_n_steps=2, weight=0.5)
    (result,) = train_cohort(model(), [run], 4, tmp_path / "checkpoint")
    rows = lines(run.metrics)
    told = {
        "diversity_score", "set_quality", "set_score", "sets", "missing_sets", "equal_sets",
        "saturated_sets", "set_tokens", "sample_time_s", "set_weight", "combined_loss",
    }  # fmt: skip
    assert [told <= set(row) for row in rows] == [True, False, True, False]
    assert not told & set(rows[1])
    for row in rows:
        assert row["quality_loss"] == row["loss"]
    for row in (rows[0], rows[2]):
        assert row["combined_loss"] == pytest.approx(row["loss"] - 0.5 * row["set_score"])
        assert (row["sets"], row["missing_sets"]) == (3, 0)
    drawn = generations(run)
    assert len(drawn) == 2 * 3 * 4
    assert {line["step"] for line in drawn} == {1, 3}
    first = drawn[:4]
    assert {line["task"] for line in first} == {first[0]["task"]}
    assert sum(line["advantage"] for line in first) == pytest.approx(0, abs=1e-9)
    assert first[0]["prompt"] in ASKED
    assert first[0]["reward"] == pytest.approx(first[0]["set_diversity"] * np.mean([line["correct"] for line in first]))
    assert result.ledger.sampled_tokens == sum(line["num_tokens"] for line in drawn)
    assert result.ledger.sets is not None
    assert result.ledger.sets["sets"] == 6


def test_a_cohort_is_its_single_runs_and_a_neighbour_without_the_term_is_unchanged(tmp_path):
    def runs(folder: Path) -> list[RunData]:
        shared = varied(folder, "shared", seed=3, gradient_share=0.3, score="self_bleu", order=2)
        return [varied(folder, "a", seed=1), replace(varied(folder, "b", seed=2), sets=None), shared]

    together = runs(tmp_path / "together")
    stacked = train_cohort(model(), together, 4, tmp_path / "checkpoint")
    for run, result, single in zip(together, stacked, runs(tmp_path / "alone"), strict=True):
        (alone,) = train_cohort(model(), [single], 4, tmp_path / f"checkpoint-{run.name}")
        torch.testing.assert_close(weights_of(result), weights_of(alone), rtol=1e-3, atol=1e-4)
        if run.sets is not None:
            texts = [line["completion"] for line in generations(run)]
            assert texts == [line["completion"] for line in generations(single)]


def test_a_share_of_the_gradient_sets_the_weight(tmp_path):
    run = varied(tmp_path, gradient_share=0.4, quality=f"{user_functions(tmp_path)}:quality")
    train_cohort(model(), [run], 3, tmp_path / "checkpoint")
    rows = lines(run.metrics)
    assert rows[0]["grad_share_set_diversity"] == pytest.approx(0.4, abs=1e-6)
    assert len({row["set_weight"] for row in rows}) == 3
    for row in rows:
        assert row["combined_loss"] == pytest.approx(row["loss"] - row["set_weight"] * row["set_score"])


def test_resume_is_exact(tmp_path, monkeypatch):
    whole = varied(tmp_path / "whole")
    (want,) = train_cohort(model(), [whole], 6, tmp_path / "c1")
    halved = varied(tmp_path / "halved")
    add = SetDiversity.added

    def stopping(self, lessons: Sequence[Lesson], ledgers: Sequence[Ledger], step: int) -> list[Lesson]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(self, lessons, ledgers, step)

    monkeypatch.setattr(SetDiversity, "added", stopping)
    with pytest.raises(Interrupted):
        train_cohort(model(), [halved], 6, tmp_path / "c2")
    monkeypatch.setattr(SetDiversity, "added", add)
    (have,) = train_cohort(model(), [halved], 6, tmp_path / "c2")
    assert torch.equal(weights_of(have), weights_of(want))
    assert unclocked(lines(halved.metrics)) == unclocked(lines(whole.metrics))
    assert generations(halved) == generations(whole)
    assert have.ledger == want.ledger


def test_conditions_with_the_same_seed_draw_the_same_prompts_and_noise(tmp_path):
    one, two = varied(tmp_path, "a", weight=0), varied(tmp_path, "b", weight=2.0, score="self_bleu", order=2)
    train_cohort(model(), [one, two], 2, tmp_path / "checkpoint")
    first = [[line["completion"] for line in generations(run) if line["step"] == 1] for run in (one, two)]
    assert first[0] == first[1]
    assert [chosen_prompts(one, step) for step in range(9)] == [chosen_prompts(two, step) for step in range(9)]
    assert {place for step in range(9) for place in chosen_prompts(one, step)} == {0, 1, 2, 3, 4}
    few = varied(tmp_path, max_examples=50)
    assert chosen_prompts(few, 0) == [0, 1, 2, 3, 4]


def user_functions(folder: Path) -> Path:
    path = folder / "mine.py"
    path.write_text(
        "def quality(text, meta):\n    return len(text) % 2\n\n"
        "def never(text, meta):\n    return None\n\n"
        "def sometimes(text, meta):\n    return None if len(text) % 5 == 0 else 1.0\n\n"
        "def worthless(text, meta):\n    return 0\n\n"
        "def one(text, meta):\n    return 'always the same'\n\n"
        "def by_length(text, meta):\n    return len(text) % 3\n\n"
        "def fine(text, meta):\n    return 1\n\n"
        "def fair(text, meta):\n    return 0.8\n\n"
        "SEEN = []\n\ndef counted(text, meta):\n    SEEN.append(text)\n    return len(SEEN)\n"
    )
    return path


def test_a_users_quality_multiplies_the_score(tmp_path):
    lesson, _ = lessons_of(varied(tmp_path, quality=f"{user_functions(tmp_path)}:quality"))
    drawn = lesson.logs["emergence/generations.jsonl"]
    assert [line["correct"] for line in drawn] == [len(line["completion"]) % 2 for line in drawn]
    assert lesson.facts["set_quality"] == pytest.approx(np.mean([line["correct"] for line in drawn]))


def test_a_set_without_all_its_qualities_is_left_out_and_counted(tmp_path):
    path = user_functions(tmp_path)
    lesson, ledger = lessons_of(varied(tmp_path, quality=f"{path}:never"))
    assert lesson.updates == ()
    assert {**lesson.facts, "sample_time_s": 0} == {
        "diversity_score": None, "set_quality": None, "set_score": None, "sets": 3, "missing_sets": 3,
        "equal_sets": 0, "saturated_sets": 0, "set_tokens": lesson.facts["set_tokens"], "sample_time_s": 0,
    }  # fmt: skip
    assert ledger.sets is not None
    assert ledger.sets["missing_sets"] == 3
    line = lesson.logs["emergence/generations.jsonl"][0]
    assert (line["reward"], line["advantage"]) == (None, None)
    assert line["no_score"] == "a completion has no quality: returned None"

    lesson, _ = lessons_of(varied(tmp_path, quality=f"{path}:sometimes"))
    drawn = lesson.logs["emergence/generations.jsonl"]
    whole = {line["task"] for line in drawn} - {line["task"] for line in drawn if line["correct"] is None}
    assert len(whole) == 3 - lesson.facts["missing_sets"]
    for line in drawn:
        assert (line["advantage"] is not None) == (line["task"] in whole)


def test_strategies_are_a_users_and_a_constant_one_teaches_nothing(tmp_path):
    path = user_functions(tmp_path)
    lesson, _ = lessons_of(varied(tmp_path, score="clusters", clusters=f"{path}:by_length"))
    drawn = lesson.logs["emergence/generations.jsonl"]
    kinds = {len(line["completion"]) % 3 for line in drawn[:4]}
    assert drawn[0]["set_diversity"] == len(kinds) / 4
    run = varied(tmp_path / "dead", score="clusters", clusters=f"{path}:one")
    (result,) = train_cohort(model(), [run], 9, tmp_path / "checkpoint")
    assert {line["set_diversity"] for line in generations(run)} == {0.25}
    assert result.status == "quarantined"
    assert "none of 9 sets changes, whichever completion is left out" in (result.reason or "")
    assert len(lines(run.metrics)) == 3
    (result,) = train_cohort(model(), [replace(run, sets=measuring(run))], 9, tmp_path / "c2")
    assert result.status == "done"


def measuring(run: RunData) -> SetPrompts:
    """The run's sets with a weight of 0."""
    assert run.sets is not None
    return replace(run.sets, config=run.sets.config.model_copy(update={"weight": 0.0}))


def test_a_term_whose_score_is_always_0_is_stopped_by_its_gradient(tmp_path):
    run = varied(tmp_path, quality=f"{user_functions(tmp_path)}:worthless")
    (result,) = train_cohort(model(), [run], 9, tmp_path / "checkpoint")
    assert [row["equal_sets"] for row in lines(run.metrics)] == [3, 3, 3]
    assert result.status == "quarantined"
    assert "the gradient of the term 'set_diversity' is exactly 0" in (result.reason or "")


def test_degenerate_completions_have_no_quality_by_default(tmp_path):
    """What is cut at the limit is degenerate."""
    lesson, _ = lessons_of(varied(tmp_path))
    drawn = lesson.logs["emergence/generations.jsonl"]
    assert [line["correct"] for line in drawn if not line["finished"]] == [0.0] * sum(
        not line["finished"] for line in drawn
    )
    assert {line["finished"] for line in drawn} == {True, False}


@pytest.mark.parametrize("score", ["semantic", "vendi", "log_det"])
def test_embeddings_are_the_bases_own(tmp_path, score: str):
    lesson, _ = lessons_of(varied(tmp_path, score=score, quality=f"{user_functions(tmp_path)}:quality"))
    assert 0 < lesson.facts["diversity_score"] <= 1
    assert lesson.updates


class Encoder:
    """As sentence-transformers' own, of two numbers of a text."""

    def __init__(self, name: str, device: str):
        assert (name, device) == ("sentence-transformers/all-MiniLM-L6-v2", "cpu")

    def encode(self, texts: list[str], show_progress_bar: bool) -> np.ndarray:
        assert not show_progress_bar
        return np.array([[1.0, len(text)] for text in texts], dtype=np.float32)


def test_embeddings_may_be_an_extra_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    run = varied(tmp_path, score="semantic", embedding="sentence-transformers")
    with pytest.raises(UserError, match="pip install 'finetrial\\[semantic\\]'"):
        lessons_of(run)
    package = ModuleType("sentence_transformers")
    package.SentenceTransformer = Encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    lesson, _ = lessons_of(run)
    assert 0 < lesson.facts["diversity_score"] < 0.5


def test_a_run_whose_logits_are_not_finite_is_quarantined_alone(tmp_path, monkeypatch):
    broken, well = varied(tmp_path, "broken", seed=1), varied(tmp_path, "well", seed=2)
    draw = SetDiversity._draw

    def failing(self, due, step):
        if step == 2 and 0 in due:
            raise NotFinite(0)
        return draw(self, due, step)

    monkeypatch.setattr(SetDiversity, "_draw", failing)
    bad, good = train_cohort(model(), [broken, well], 4, tmp_path / "checkpoint")
    assert (bad.status, bad.reason, good.status) == ("quarantined", "logits are not finite at step 3", "done")
    assert (len(lines(broken.metrics)), len(lines(well.metrics))) == (3, 4)
    assert lines(broken.metrics)[-1]["loss"] is None
    assert "quality_loss" not in lines(broken.metrics)[-1]


def test_dropout_acts_on_the_rows_and_not_on_what_was_drawn(tmp_path):
    """B is 0 at first, so that both draw the same; the gradient of B would differ where inputs of A were dropped."""
    shares = {}
    for chance in (0.0, 0.5):
        lora = ModelConfig(lora_rank=4, lora_dropout=chance)
        run = varied(tmp_path / f"{chance}", training={"model": lora, "max_grad_norm": 0})
        (result,) = train_cohort(model(), [run], 1, tmp_path / f"checkpoint-{chance}")
        (probe,) = result.ledger.terms["set_diversity"]["probes"]
        (row,) = lines(run.metrics)
        shares[chance] = probe["norm"], row["grad_norm"], [line["completion"] for line in generations(run)]
    assert shares[0.5][2] == shares[0.0][2]
    assert shares[0.5][0] == pytest.approx(shares[0.0][0], rel=1e-6)
    assert abs(shares[0.5][1] - shares[0.0][1]) > 1e-2


def test_sets_that_teach_nothing_leave_the_dropout_of_rows_alone(tmp_path):
    lora = {"model": ModelConfig(lora_rank=4, lora_dropout=0.3)}
    measured = varied(tmp_path, weight=0, training=lora)
    plain = replace(measured, sets=None, folder=tmp_path / "plain")
    (one,) = train_cohort(model(), [measured], 4, tmp_path / "c1")
    (two,) = train_cohort(model(), [plain], 4, tmp_path / "c2")
    assert torch.equal(weights_of(one), weights_of(two))
    without = replace(plain, model=ModelConfig(lora_rank=4), folder=tmp_path / "without")
    (three,) = train_cohort(model(), [without], 4, tmp_path / "c3")
    assert not torch.equal(weights_of(three), weights_of(two))


def test_a_saturated_score_is_told_and_stops_nothing(tmp_path):
    """Every completion is a strategy of its own and as good as can be: nothing is left to gain."""
    path = user_functions(tmp_path)
    best = {"score": "clusters", "clusters": f"{path}:counted", "quality": f"{path}:fine"}
    run = varied(tmp_path, **best)
    (result,) = train_cohort(model(), [run], 5, tmp_path / "checkpoint")
    assert result.status == "done"
    rows = lines(run.metrics)
    assert [(row["saturated_sets"], row["equal_sets"], row["set_score"]) for row in rows] == [(3, 3, 1.0)] * 5
    assert result.ledger.sets is not None
    assert set(result.ledger.sets["alarms"]) == {"saturated"}
    assert "all 9 sets drawn until step 3 is at its maximum of 1" in result.ledger.sets["alarms"]["saturated"]
    assert "set_diversity" not in result.ledger.terms
    (plain,) = train_cohort(model(), [replace(run, sets=None, folder=tmp_path / "plain")], 5, tmp_path / "c2")
    assert torch.equal(weights_of(result), weights_of(plain))

    taught = varied(tmp_path / "taught", **{**best, "quality": f"{path}:quality"})
    (result,) = train_cohort(model(), [taught], 5, tmp_path / "c3")
    assert result.status == "done"
    assert result.ledger.terms["set_diversity"]["acted"] == 5
    constant = varied(tmp_path / "constant", **{**best, "quality": f"{path}:fair"})
    (result,) = train_cohort(model(), [constant], 5, tmp_path / "c4")
    assert result.status == "quarantined"
    assert "the gradient of the term 'set_diversity' is exactly 0" in (result.reason or "")


@pytest.mark.parametrize("key", ["quality", "clusters"])
def test_a_function_that_cannot_be_used_is_named_with_its_key(tmp_path, key: str):
    path = user_functions(tmp_path)
    for function, told in ((f"{tmp_path}/mime.py:fine", "no such file.*mine.py"), (f"{path}:absent", "absent")):
        table = {"score": "clusters", "clusters": f"{path}:one", key: function}
        with pytest.raises(
            UserError, match=rf"\[set_diversity\] {key}: .*{told}.*expected a function of \(text, meta\)"
        ):
            lessons_of(varied(tmp_path / key, **table))


def a_set(diversity: float, quality: float, **kind: bool) -> DrawnSet:
    group = Group(Task("t", "g", (), "x"), 0, np.zeros(1, np.int64), (), ())
    return DrawnSet(group, SetScore(diversity, quality, np.zeros(4), **{"flat": False, **kind}))


def test_sets_that_were_saturated_and_become_copies_are_dead():
    log = SetLog()
    for step in range(1, 4):
        log.enter([a_set(1.0, 1.0, saturated=True)], step)
    assert set(log.alarms) == {"saturated"}
    assert not log.deaf
    log.enter([a_set(0.25, 1.0, flat=True)], 4)
    assert log.deaf
    log.enter([a_set(0.5, 1.0)], 5)
    assert not log.deaf


def test_a_collapse_raises_the_alarm_once():
    log = SetLog()
    for step, diversity in enumerate([0.8, 0.5, 0.1, 0.2, 0.1, 0.05], 1):
        log.enter([a_set(diversity, 0.9)], step)
    assert log.alarms == {
        "diversity": "collapse: mean diversity of sets of completions is 0.267 at step 4, below half of the 0.8 that "
        "it was at first"
    }
    assert log.enter([], 7) == {}
    for step in range(8, 11):
        log.enter([a_set(0.8, 0.4)], step)
    assert set(log.alarms) == {"diversity", "quality"}


def test_the_loss_on_held_out_rows_never_contains_the_term(tmp_path):
    """What evaluation gives an adapter that learnt with the term is its cross-entropy, by full logits, and no more."""
    (result,) = train_cohort(model(), [varied(tmp_path)], 3, tmp_path / "checkpoint")
    row = random_rows(1, seed=9)[0]
    theirs = model()
    found = perplexity(theirs, [result.adapter], {"row": row})
    ids_T = torch.from_numpy(row.ids_T.astype(np.int64))
    with AdapterStack(theirs, [result.adapter], trainable=False) as stack, stack.rows([0]), torch.no_grad():
        logits_TV = theirs(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
    nll_T = F.cross_entropy(logits_TV, ids_T[1:], reduction="none")
    assert found.nll_GK[1, 0] == pytest.approx(float(nll_T[torch.from_numpy(row.mask_T[1:])].sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"n_generations": 2}, "greater than or equal to 3"),
        ({"weight": 1, "gradient_share": 0.3}, "weight or gradient_share"),
        ({"weight": 1, "score": "clusters"}, "go together"),
        ({"weight": 1, "sampling": {"temperature": 0}}, "greedy"),
    ],
)
def test_what_makes_no_sense_is_refused(table: dict, told: str):
    with pytest.raises(ValueError, match=told):
        SetDiversityConfig.model_validate(table)


def test_a_step_of_sets_alone_has_no_loss(tmp_path):
    """Its row has no supervised token: sets still teach, and what is missing is not 0."""
    taught, *_ = (row for row in random_rows(9, seed=3) if row.mask_T[1:].any())
    empty = replace(taught, mask_T=np.zeros_like(taught.mask_T), supervised_bytes=0)
    run = replace(varied(tmp_path, training={"batch_size": 1}), rows=[empty, taught])
    (result,) = train_cohort(model(), [run], 4, tmp_path / "checkpoint")
    rows = lines(run.metrics)
    assert sorted(row["supervised_tokens"] == 0 for row in rows) == [False, False, True, True]
    for row in rows:
        assert (row["loss"] is None) == (row["quality_loss"] is None) == (row["supervised_tokens"] == 0)
        assert ("combined_loss" in row) == (row["supervised_tokens"] > 0)
        assert row["grad_norm"] > 0
    assert result.ledger.updates == 4
