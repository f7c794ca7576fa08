"""Decisions: what is reused, what is made again, and the reason in words."""

from pathlib import Path
from typing import Any

import pytest

from finetrial.campaign.plan import Inputs, Plan, Run, Suite, cohorts, plan
from finetrial.campaign.spec import Spec, resolve
from finetrial.data.select import Selection
from finetrial.records import Example
from finetrial.store import Store, write_json

CPU = "cpu, torch 2.13"


def selection(*ids: str, text: str = "") -> Selection:
    examples = tuple(Example(i, i, ({"role": "assistant", "content": f"{text}{i}"},)) for i in sorted(ids))
    facts: dict[str, Any] = {"examples": len(ids), "groups": len(ids), "tokens": 10 * len(ids)}
    hashes = tuple(example.content_hash for example in examples)
    return Selection(tuple(sorted(ids)), hashes, tuple(sorted(ids)), (10,) * len(ids), examples, facts)


def campaign(**tables: Any) -> Spec:
    conditions = [{"name": "a"}, {"name": "b", "training": {"learning_rate": 0.5}}]
    return resolve({"campaign": {"name": "c", "seeds": [1, 2], "conditions": conditions}, **tables})


def inputs(spec: Spec, rows: dict[str, Selection], numerics: str = CPU, score: dict | None = None) -> Inputs:
    return Inputs(
        base_key="b" * 64,
        numerics=numerics,
        selections={(c.name, s): rows[c.name] for c in spec.conditions for s in spec.campaign.seeds},
        upstream={c.name: {"score": score or {"weight": 0.5}} for c in spec.conditions},
        suites=(Suite("gold", "", ("x",), 1, "h" * 64),),
    )


def finish(store: Store, run: Run, numerics: str = CPU, name: str = "c") -> None:
    record = {
        "campaign": name,
        "science_key": run.science_key,
        "numerics": numerics,
        "base_key": run.base_key,
        "science": dict(run.science),
        "upstream": dict(run.upstream),
        "seconds": 12.0,
    }
    with store.put("train", run.key, record) as folder:
        write_json(folder / "rows.json", sorted(map(list, run.rows)))


def published(decided: Plan) -> dict[str, str]:
    return {run.name: run.key for run in decided.runs}


ROWS = {"a": selection("1", "2", "3"), "b": selection("4", "5", "6")}


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Spec, Store, dict[str, str]]:
    """A campaign of two conditions and two seeds, all trained."""
    spec, store = campaign(), Store(tmp_path)
    decided = plan(spec, inputs(spec, ROWS), store, {})
    assert {run.decision for run in decided.runs} == {"NEW"}
    for run in decided.runs:
        finish(store, run)
    return spec, store, published(decided)


def decisions(decided: Plan) -> dict[str, tuple[str, str]]:
    return {run.name: (run.decision, run.reason) for run in decided.runs}


def test_an_unchanged_campaign_is_reused_whole(finished: tuple[Spec, Store, dict]) -> None:
    spec, store, before = finished
    decided = plan(spec, inputs(spec, ROWS), store, before)
    assert set(decisions(decided).values()) == {("REUSE", "nothing changed")}
    assert decided.pending == ()
    assert sum(run.saves_s or 0 for run in decided.runs) == 48.0


def test_a_changed_scorer_with_the_same_rows_is_reused_and_says_so(finished: tuple[Spec, Store, dict]) -> None:
    spec, store, before = finished
    decided = plan(spec, inputs(spec, ROWS, score={"weight": 0.7}), store, before)
    assert set(decisions(decided).values()) == {("REUSE", "same 3 rows although score.weight 0.5 → 0.7")}


def test_changed_rows_are_counted_and_explained(finished: tuple[Spec, Store, dict]) -> None:
    spec, store, before = finished
    rows = {**ROWS, "b": selection("4", "7", "8")}
    told = decisions(plan(spec, inputs(spec, rows, score={"weight": 0.7}), store, before))
    assert told["b_s1"] == ("RETRAIN", "2 of 3 rows changed: score.weight 0.5 → 0.7")
    assert told["a_s1"][0] == "REUSE"


def test_the_same_ids_with_other_text_are_other_rows(finished: tuple[Spec, Store, dict]) -> None:
    spec, store, before = finished
    rows = {**ROWS, "b": selection("4", "5", "6", text="edited ")}
    assert decisions(plan(spec, inputs(spec, rows), store, before))["b_s1"] == ("RETRAIN", "3 of 3 rows changed")


def test_a_changed_hyper_parameter_is_named(finished: tuple[Spec, Store, dict]) -> None:
    _, store, before = finished
    spec = campaign(model={"lora_rank": 16})
    told = decisions(plan(spec, inputs(spec, ROWS), store, before))
    assert told["a_s2"] == ("RETRAIN", "model.alpha 16.0 → 32.0; model.lora_rank 8 → 16")


def test_execution_settings_change_nothing(finished: tuple[Spec, Store, dict]) -> None:
    _, store, before = finished
    spec = campaign(training={"micro_batch_tokens": 99, "save_every": 3, "gradient_checkpointing": True})
    assert {run.decision for run in plan(spec, inputs(spec, ROWS), store, before).runs} == {"REUSE"}


def test_a_new_seed_is_new_and_a_dropped_condition_is_left_over(finished: tuple[Spec, Store, dict]) -> None:
    _, store, before = finished
    spec = resolve({"campaign": {"name": "c", "seeds": [1, 3], "conditions": [{"name": "a"}]}})
    decided = plan(spec, inputs(spec, ROWS), store, before)
    assert decisions(decided) == {"a_s1": ("REUSE", "nothing changed"), "a_s3": ("NEW", "not trained before")}
    assert dict(decided.leftover) == {
        "a_s2": "seed dropped",
        "b_s1": "condition is no longer in the campaign",
        "b_s2": "condition is no longer in the campaign",
    }


def test_another_machine_is_stale_unless_the_spec_allows_it(finished: tuple[Spec, Store, dict]) -> None:
    spec, store, before = finished
    told = decisions(plan(spec, inputs(spec, ROWS, numerics="cuda, torch 2.11"), store, before))
    assert told["a_s1"] == ("STALE", "was trained on cpu, torch 2.13; this machine is cuda, torch 2.11")
    mixed = spec.model_copy(update={"campaign": spec.campaign.model_copy(update={"mix_numerics": True})})
    decided = plan(mixed, inputs(spec, ROWS, numerics="cuda, torch 2.11"), store, before)
    assert {run.decision for run in decided.runs} == {"REUSE"}
    assert all(store.has("train", run.key) for run in decided.runs)


def test_another_campaign_lends_its_runs(finished: tuple[Spec, Store, dict]) -> None:
    spec, store, _ = finished
    told = decisions(plan(spec, inputs(spec, ROWS), store, {}))
    assert told["a_s1"] == ("REUSE", "the same recipe, rows and seed were trained in campaign 'c'")


def test_a_dry_run_is_never_the_real_one(finished: tuple[Spec, Store, dict]) -> None:
    spec, store, _ = finished
    assert {run.decision for run in plan(spec, inputs(spec, ROWS), store, {}, dry=True).runs} == {"NEW"}


def test_cohorts_share_steps_and_survive_an_interruption() -> None:
    spec = resolve(
        {
            "campaign": {
                "seeds": [1, 2, 3],
                "conditions": [
                    {"name": "a"},
                    {"name": "b", "training": {"max_steps": 7}},
                    {"name": "c", "model": {"lora_rank": 2}},
                    {"name": "d", "model": {"targets": ["q_proj"]}},
                ],
            }
        }
    )
    rows = {name: selection("1", "2") for name in "abcd"}
    runs = plan(spec, inputs(spec, rows), Store(Path("nowhere")), {}).runs
    groups = list(cohorts(runs, size=2))
    assert sorted(run.name for group in groups for run in group) == sorted(run.name for run in runs)
    assert all(len({run.steps for run in group}) == 1 and len(group) <= 2 for group in groups)
    assert all(len({tuple(run.science["model"]["targets"]) for run in group}) == 1 for group in groups)
    names = [[run.name for run in group] for group in groups]
    for done in range(len(groups)):
        left = {name for group in names[done:] for name in group}
        again = [[run.name for run in group] for group in cohorts([r for r in runs if r.name in left], size=2)]
        assert sorted(again) == sorted(names[done:])


def test_golden_key_of_a_run() -> None:
    """This value moves only with a stage version (last: render 2): it says that every stored run can still be found."""
    spec = campaign()
    run = plan(spec, inputs(spec, ROWS), Store(Path("nowhere")), {}).runs[0]
    assert (run.name, run.science_key) == ("a_s1", "07024fcc305beaf0d384a087c61505b0abfc3ed5144d1a77d50019641cf520f2")
