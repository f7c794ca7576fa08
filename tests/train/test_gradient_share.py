"""What is told of auxiliary terms' gradients, a term that teaches nothing, and factors that give a share."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetrial.model.adapters import AdapterStack, fresh_adapter
from finetrial.model.loss import stream
from finetrial.train import gradient_share, sft
from finetrial.train.batches import step_rows
from finetrial.train.cohort import train_cohort
from finetrial.train.gradient_share import Gradients, TermState, is_probed, term_facts, weight_for_share
from finetrial.train.lesson import Lesson, Row
from finetrial.train.runs import Ledger
from finetrial.train.term_config import AnchorConfig
from tiny import random_rows, run_data, tiny_model

DEAD = {"coef": 2.0, "cap": 1e-30}
"""Every token of an adapter that has moved lies beyond this cap, where an anchor pulls no more."""


def anchored(run, **config):
    return replace(run, anchor=AnchorConfig(**config))


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def weights_of(result) -> torch.Tensor:
    return torch.cat([part.flatten() for pair in result.adapter.weights.values() for part in pair])


def test_terms_are_measured_at_their_first_updates_and_then_ever_more_rarely():
    assert [acted + 1 for acted in range(300) if is_probed(acted)] == [1, 2, 3, 4, 16, 64, 256]


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_a_factor_gives_the_share(share, main, term):
    found = weight_for_share(share, main, term) * term
    assert found / (main + found) == pytest.approx(share, rel=1e-9)


def test_a_term_without_gradient_gets_no_factor():
    assert weight_for_share(0.3, 1.0, 0.0) == 0
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="inside"):
            weight_for_share(share, 1.0, 1.0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_probing_changes_no_bit_of_training(tmp_path, monkeypatch, checkpointing):
    def cohort(name):
        runs = [
            anchored(run_data(tmp_path / name, "a", seed=1, gradient_checkpointing=checkpointing), coef=1.0),
            run_data(tmp_path / name, "p", seed=2),
            anchored(run_data(tmp_path / name, "j", seed=3, token_weighting="dft"), kind="js", coef=2.0, tail_tokens=2),
        ]
        return runs, train_cohort(tiny_model(), runs, 6, tmp_path / name / "checkpoint")

    runs, probed = cohort("probed")
    monkeypatch.setattr(gradient_share, "is_probed", lambda acted: False)
    quiet, unprobed = cohort("unprobed")
    assert all(torch.equal(weights_of(a), weights_of(b)) for a, b in zip(probed, unprobed, strict=True))
    assert [row["loss"] for run in runs for row in metrics_of(run)] == [
        row["loss"] for run in quiet for row in metrics_of(run)
    ]
    assert "grad_share_anchor" in metrics_of(runs[0])[0]
    assert not any("grad_share_anchor" in row for row in metrics_of(quiet[0]))


def test_norm_share_and_cosine_are_those_of_the_gradients_taken_alone(tmp_path):
    """Against autograd on full logits at the second update, from the adapter that the first one left."""
    run = anchored(run_data(tmp_path, seed=4, schedule="constant", warmup_ratio=0.0), coef=1.5, kind="student_ref")
    (after,) = train_cohort(tiny_model(), [run], 1, tmp_path / "c1")
    train_cohort(tiny_model(), [run], 2, tmp_path / "c2")
    model = tiny_model()
    rows = [stream(run.rows[i], "") for i in step_rows(run.seed, len(run.rows), run.train.batch_size, 1)]
    tokens = sum(len(row.target_M) for row in rows)
    with AdapterStack(model, [after.adapter], trainable=True) as stack:
        main, term = torch.zeros_like(stack.grad_NP), torch.zeros_like(stack.grad_NP)
        for row in rows:
            ids, at = torch.from_numpy(row.ids_T)[None], torch.from_numpy(row.position_M)
            with stack.rows([None]), torch.no_grad():
                logr = model(input_ids=ids, use_cache=False).logits[0, at].log_softmax(1)
            with stack.rows([0]):
                logp = model(input_ids=ids, use_cache=False).logits[0, at].log_softmax(1)
                nll = -logp.gather(1, torch.from_numpy(row.target_M)[:, None]).sum() / tokens
                kl = 1.5 * (logp.exp() * (logp - logr)).sum() / tokens
                stack.backward((nll, torch.ones_like(nll)), into_NP=main, keep=True)
                stack.backward((kl, torch.ones_like(kl)), into_NP=term)
        assert not stack.grad_NP.any()
    told = metrics_of(run)[1]
    norms = float(main.norm()), float(term.norm())
    assert told["grad_norm_anchor"] == pytest.approx(norms[1], rel=1e-4)
    assert told["grad_share_anchor"] == pytest.approx(norms[1] / sum(norms), rel=1e-4)
    cosine = float((main * term).sum()) / (norms[0] * norms[1])
    assert told["grad_cosine_anchor"] == pytest.approx(cosine, abs=1e-4)
    assert told["grad_norm"] == pytest.approx(float((main + term).norm()), rel=1e-4)


def test_a_dead_term_stops_its_run_and_the_neighbours_go_on(tmp_path):
    def cohort(name, config):
        runs = [
            anchored(run_data(tmp_path / name, "a", seed=0), coef=0.5),
            anchored(run_data(tmp_path / name, "b", seed=1), **config),
            run_data(tmp_path / name, "c", seed=2),
        ]
        return runs, train_cohort(tiny_model(), runs, 6, tmp_path / name / "checkpoint")

    runs, results = cohort("dead", DEAD)
    _, alive = cohort("alive", {**DEAD, "cap": 1e30})
    assert [result.status for result in results] == ["done", "quarantined", "done"]
    assert results[1].ledger.quarantined_at == 3
    assert results[1].ledger.updates == 2
    assert "the term 'anchor' is exactly 0 (steps 2, 3): it teaches nothing" in (results[1].reason or "")
    rows = metrics_of(runs[1])
    assert rows[-1]["quarantined"] == results[1].reason
    assert [row["grad_norm_anchor"] for row in rows[1:]] == [0, 0]
    assert len(rows) == 3
    assert all(result.status == "done" for result in alive)
    for n in (0, 2):
        assert torch.equal(weights_of(results[n]), weights_of(alive[n]))


def test_a_divergence_that_begins_at_zero_is_not_dead(tmp_path):
    run = anchored(run_data(tmp_path), coef=1.0)
    (result,) = train_cohort(tiny_model(), [run], 5, tmp_path / "checkpoint")
    probes = result.ledger.terms["anchor"]["probes"]
    assert [probe["step"] for probe in probes] == [1, 2, 3, 4]
    assert [probe["moved"] for probe in probes] == [False, True, True, True]
    assert probes[0]["share"] < 1e-4 < probes[1]["share"]
    assert result.status == "done"
    assert json.loads(json.dumps(result.ledger.terms)) == result.ledger.terms


def probe(step, share, norm=1.0):
    return {"step": step, "norm": norm, "share": share, "cosine": 0.0, "moved": step > 1}


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([1e-9, 0.02, 0.2], None),
        ([0.5, 0.002, 0.009], "never has 1% of the gradient, at most 0.90%"),
        ([0.0, 0.95, 0.96], "has 95.5% of the gradient, above 90%"),
        ([0.5], "never measured after a first update"),
    ],
)
def test_a_share_that_is_too_small_or_too_large_is_a_warning(shares, told):
    state = TermState(acted=len(shares), probes=[probe(n, share) for n, share in enumerate(shares, start=1)])
    warning = term_facts({"anchor": asdict(state)})["anchor"]["warning"]
    assert (warning is None) if told is None else told in warning


def test_a_term_that_never_acted_is_named(tmp_path):
    run = anchored(run_data(tmp_path), coef=1.0, start_step=9)
    (result,) = train_cohort(tiny_model(), [run], 3, tmp_path / "checkpoint")
    assert term_facts(result.ledger.terms, gradient_share.auxiliary_terms(run))["anchor"] == {
        "acted": 0, "share": None, "warning": "the term 'anchor' never acted", "probes": [],
    }  # fmt: skip


def with_rows_of(monkeypatch, weights: dict[str, float], shares: dict[str, float] | None = None) -> None:
    """Every run also learns the first of these rows, as rows of a term of their own."""
    extra = [stream(row, "") for row in random_rows(3, seed=77)]
    plain = sft.lessons

    def lessons(runs, courses, ledgers, step) -> dict[int, Lesson]:
        made = plain(runs, courses, ledgers, step)
        return {
            n: replace(
                lesson,
                updates=tuple(
                    (*rows, *(Row(one, weight, term=term) for term, weight in weights.items() for one in extra))
                    for rows in lesson.updates
                ),
                shares=shares or {},
            )
            for n, lesson in made.items()
        }

    monkeypatch.setattr(sft, "lessons", lessons)


def test_rows_of_a_term_teach_and_are_in_no_reported_loss(tmp_path, monkeypatch):
    """One update by rows of both terms is that of the summed gradients; a weight may have either sign."""
    plain, both = run_data(tmp_path / "plain"), run_data(tmp_path / "both")
    (before,) = train_cohort(tiny_model(), [plain], 1, tmp_path / "c1")
    with_rows_of(monkeypatch, {"variety": -0.02})
    (result,) = train_cohort(tiny_model(), [both], 1, tmp_path / "c2")
    one, two = metrics_of(plain)[0], metrics_of(both)[0]
    assert two["loss"] == one["loss"]
    assert two["grad_norm"] != one["grad_norm"]
    assert not torch.equal(weights_of(result), weights_of(before))
    assert result.ledger.supervised_tokens == before.ledger.supervised_tokens
    assert 0 < two["grad_share_variety"] < 1

    model = tiny_model()
    with AdapterStack(model, [fresh_adapter(model, both.model, both.seed)], trainable=True) as stack:
        for row in random_rows(3, seed=77):
            one = stream(row, "")
            with stack.rows([0]):
                logits = model(input_ids=torch.from_numpy(one.ids_T)[None], use_cache=False).logits[0]
                logp = logits[torch.from_numpy(one.position_M)].log_softmax(1)
                loss = 0.02 * logp.gather(1, torch.from_numpy(one.target_M)[:, None]).sum()
                stack.backward((loss, torch.ones_like(loss)))
        assert two["grad_norm_variety"] == pytest.approx(float(stack.grad_NP.norm()), rel=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_a_target_share_is_met_whatever_the_rows_weigh(tmp_path, monkeypatch, share):
    """In the first update exactly; then by moving averages, so that one odd step moves little."""
    finals = []
    for name, weight in (("small", 1e-4), ("large", 10.0)):
        with_rows_of(monkeypatch, {"variety": weight}, {"variety": share})
        run = run_data(tmp_path / name)
        (result,) = train_cohort(tiny_model(), [run], 5, tmp_path / name / "checkpoint")
        shares = [row["grad_share_variety"] for row in metrics_of(run) if "grad_share_variety" in row]
        assert shares[0] == pytest.approx(share, rel=1e-4)
        assert all(abs(found - share) < 0.25 for found in shares)
        finals.append(weights_of(result))
        monkeypatch.undo()
    torch.testing.assert_close(finals[0], finals[1], rtol=1e-3, atol=1e-4)


def test_a_target_share_and_probes_survive_a_resume_bit_for_bit(tmp_path, monkeypatch):
    with_rows_of(monkeypatch, {"variety": 0.01}, {"variety": 0.3})

    def cohort(name) -> list:
        return [
            anchored(run_data(tmp_path / name, "ab"[n], seed=n, save_every=2), coef=1.0, tail_tokens=4)
            for n in range(2)
        ]

    class Stop:
        def update(self, done, loss):
            if done == 3:
                raise OSError("the machine is gone")

    whole = train_cohort(tiny_model(), cohort("whole"), 6, tmp_path / "whole" / "checkpoint")
    folder: Path = tmp_path / "cut" / "checkpoint"
    with pytest.raises(OSError, match="gone"):
        train_cohort(tiny_model(), cohort("cut"), 6, folder, Stop())  # type: ignore[arg-type]
    resumed = train_cohort(tiny_model(), cohort("cut"), 6, folder)
    assert [one.ledger for one in resumed] == [one.ledger for one in whole]
    assert all(torch.equal(weights_of(a), weights_of(b)) for a, b in zip(resumed, whole, strict=True))
    assert whole[0].ledger.terms["variety"]["term_norm"] > 0


def test_rows_of_a_term_change_no_neighbour_without_it(tmp_path, monkeypatch):
    """It is what it is alone."""
    alone = run_data(tmp_path / "alone", "p", seed=2)
    (want,) = train_cohort(tiny_model(), [alone], 5, tmp_path / "c1")
    plain = sft.lessons
    with_rows_of(monkeypatch, {"variety": 0.01})
    taught = sft.lessons

    def lessons(runs, courses, ledgers, step):
        return plain(runs, courses, ledgers, step) | {0: taught(runs, courses, ledgers, step)[0]}

    monkeypatch.setattr(sft, "lessons", lessons)
    runs = [run_data(tmp_path / "two", "a", seed=1), run_data(tmp_path / "two", "p", seed=2)]
    results = train_cohort(tiny_model(), runs, 5, tmp_path / "c2")
    torch.testing.assert_close(weights_of(results[1]), weights_of(want), rtol=1e-3, atol=1e-4)
    assert not any(name.startswith("grad_share") for row in metrics_of(runs[1]) for name in row)


def test_a_run_in_quarantine_is_measured_no_more():
    alive, gone = Ledger(), Ledger(quarantined_at=2)
    gradients = Gradients(torch.zeros(2, 3), [alive, gone])
    gradients.begin([set(), {"anchor"}])
    assert not gradients.probing
    gradients.begin([{"anchor"}, {"anchor"}])
    assert gradients.due == [{"anchor"}, set()]
