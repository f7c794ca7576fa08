"""A campaign from raw trajectories to outcomes: repeatable, resumable, reusing what did not change."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetrial.campaign import prepare, stages
from finetrial.campaign.describe import progress
from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.folder import Folder, open_folder
from finetrial.campaign.measures import likelihood
from finetrial.campaign.spec import load_spec
from finetrial.errors import LeakError, UserError
from finetrial.report.build import build, gather
from finetrial.train import cohort


def launch(campaign: Path, logs: Path, *overrides: str, said: list[str] | None = None) -> Folder:
    lines = said if said is not None else []
    return run(load_spec(campaign, overrides), RunOptions(logs=logs), lines.append)


def outcomes(folder: Folder) -> bytes:
    return (folder.path / "outcomes.parquet").read_bytes()


def test_from_trajectories_to_verdicts(campaign: Path, tmp_path: Path) -> None:
    folder = launch(campaign, tmp_path / "logs")
    manifest = folder.manifest()
    assert manifest is not None
    assert manifest["status"] == "complete"
    assert manifest["conditions"] == ["base", "topq", "random"]
    assert {run["status"] for run in manifest["runs"]} == {"done"}
    assert len(manifest["runs"]) == 6
    failed = [check for check in manifest["integrity"] if not check["passed"]]
    assert failed == []
    for entry in manifest["runs"]:
        place = folder.path / entry["folder"]
        steps = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in steps] == [1, 2, 3]
        assert all(row["condition"] == entry["condition"] and row["seed"] == entry["seed"] for row in steps)
        record = json.loads((place / "record.json").read_text())
        assert record["planned"]["steps"] == record["realised"]["steps"] == 3
        assert (place / "adapter" / "adapter_model.safetensors").is_file()
    table = pq.read_table(folder.path / "outcomes.parquet").to_pylist()
    assert len(table) == (1 + 6) * (4 + 5) * 5  # base and runs, items of both suites, five metrics
    gauge = [row for row in table if row["metric"] in ("kl_to_base", "kl_from_base")]
    assert all((row["value"] > 0) == (row["condition"] != "base") for row in gauge)
    assert all(row["value"] > 0 for row in table if row not in gauge)
    assert {row["seed"] for row in table if row["condition"] == "base"} == {None}
    findings = gather(folder.path).findings
    assert [finding.contrast for finding in findings] == [
        "topq vs random on gold",
        "random vs base on random minus gold",
    ]
    assert all(finding.n_seeds[0] == 3 for finding in findings)
    assert build(folder.path).html.stat().st_size < 3_000_000
    assert progress(folder)["done"] == 6


def test_the_same_campaign_gives_the_same_bytes(campaign: Path, tmp_path: Path) -> None:
    first, second = launch(campaign, tmp_path / "one"), launch(campaign, tmp_path / "two")
    assert outcomes(first) == outcomes(second)


def test_a_second_launch_trains_and_evaluates_nothing(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outcomes(launch(campaign, tmp_path / "logs"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing was left to do")

    monkeypatch.setattr(stages, "train_cohort", refuse)
    monkeypatch.setattr(likelihood, "perplexity", refuse)
    said: list[str] = []
    assert outcomes(launch(campaign, tmp_path / "logs", said=said)) == before
    skipped = [line for line in said if "is already evaluated" in line]
    assert len(skipped) == 2 * 7


def test_an_interrupted_cohort_goes_on_bit_for_bit(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outcomes(launch(campaign, tmp_path / "whole"))
    real = stages.train_cohort
    calls = 0

    def cut(model: object, runs: Sequence, steps: int, checkpoint: Path, progress: object) -> list:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise PowerCutError
        return real(model, runs, steps, checkpoint, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "train_cohort", cut)
    spec = load_spec(campaign)
    with pytest.raises(PowerCutError):
        run(spec, RunOptions(logs=tmp_path / "cut", cohort_size=4), lambda _: None)
    folder = open_folder(tmp_path / "cut" / "tiny")
    assert progress(folder)["status"].startswith("interrupted")
    _, decided, _ = make_plan(spec, RunOptions(logs=tmp_path / "cut"), lambda _: None)
    assert sum(run.decision == "REUSE" for run in decided.runs) == 4
    run(spec, RunOptions(logs=tmp_path / "cut", cohort_size=4), lambda _: None)
    assert calls == 3
    sizes = launch(campaign, tmp_path / "sizes")  # cohorts of another size give the same numbers up to rounding
    close = pq.read_table(sizes.path / "outcomes.parquet")["value"].to_numpy()
    again = pq.read_table(folder.path / "outcomes.parquet")["value"].to_numpy()
    assert abs(close - again).max() < 1e-5
    assert outcomes(sizes) == whole


def test_a_changed_weight_reuses_runs_whose_rows_did_not_change(campaign: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    launch(campaign, logs)
    frozen = (logs / "tiny" / "splits.json").read_bytes()
    spec = load_spec(campaign, ["score.efficiency_weight=0"])
    _, decided, folder = make_plan(spec, RunOptions(logs=logs), lambda _: None)
    told = {run.name: (run.decision, run.reason) for run in decided.runs}
    assert told["random_s1"][0] == "REUSE"
    assert told["random_s1"][1] == "same 12 rows although score.efficiency_weight 0.5 → 0.0"
    assert told["topq_s1"][0] == "RETRAIN"
    assert told["topq_s1"][1].endswith("of 12 rows changed: score.efficiency_weight 0.5 → 0.0")
    launch(campaign, logs, "score.efficiency_weight=0")
    assert (logs / "tiny" / "splits.json").read_bytes() == frozen
    manifest = folder.manifest()
    assert manifest is not None
    assert manifest["data"]["test_sets"]["scorer"].startswith("an earlier scorer")


def test_test_sets_are_drawn_again_only_when_the_split_changes(campaign: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    launch(campaign, logs)
    prepared, _, _ = make_plan(load_spec(campaign, ["split.seed=9"]), RunOptions(logs=logs), lambda _: None)
    assert prepared.facts["test_sets"]["redrawn"] == "[split] changed"


class PowerCutError(Exception):
    """Stands for a kill at an exact place."""


def cut_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stop the next training after the checkpoint of `step`, as a kill would."""
    real = cohort.checkpoints.save

    def save(folder: Path, at: int, *rest: Any) -> None:
        real(folder, at, *rest)
        if at == step:
            raise PowerCutError

    monkeypatch.setattr(cohort.checkpoints, "save", save)


def test_recipes_edited_between_interruptions_do_not_mix(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = "training.save_every=1"
    whole = launch(campaign, tmp_path / "whole", every)
    for override in ("training.learning_rate=0.005", "training.learning_rate=0.05"):
        with monkeypatch.context() as patch:
            cut_after(patch, 2)
            with pytest.raises(PowerCutError):
                launch(campaign, tmp_path / "cut", every, override)
    folder = launch(campaign, tmp_path / "cut", every)
    assert outcomes(folder) == outcomes(whole)
    for metrics in folder.path.glob("runs/*/metrics.jsonl"):
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3]
        assert max(row["learning_rate"] for row in rows) <= 0.005


def test_an_interrupted_relaunch_is_not_judged_on_old_outcomes(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = launch(campaign, tmp_path / "logs")
    assert len(gather(folder.path).findings) == 2
    with monkeypatch.context() as patch:
        cut_after(patch, 1)
        with pytest.raises(PowerCutError):
            launch(campaign, tmp_path / "logs", "training.learning_rate=1e-4", "training.save_every=1")
    report = gather(folder.path)
    assert report.findings == ()
    assert len(report.unjudged) == 2
    spec = load_spec(campaign, ["training.learning_rate=1e-4"])
    _, decided, _ = make_plan(spec, RunOptions(logs=tmp_path / "logs"), lambda _: None)
    assert {run.decision for run in decided.runs} == {"RETRAIN"}


def test_a_crash_while_storing_trains_nothing_again(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = launch(campaign, tmp_path / "whole")
    real, stored = stages._store_run, []

    def store(*arguments: Any) -> None:
        if len(stored) == 2:
            raise PowerCutError
        stored.append(real(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(stages, "_store_run", store)
        with pytest.raises(PowerCutError):
            launch(campaign, tmp_path / "cut")
    steps = []
    monkeypatch.setattr(stages.Progress, "update", lambda self, done, loss=None: steps.append(self.name))
    folder = launch(campaign, tmp_path / "cut")
    assert "train" not in steps
    assert outcomes(folder) == outcomes(whole)


def test_a_quarantined_run_leaves_no_verdict_on_the_survivors(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.train_cohort

    def diverging(model: Any, runs: Sequence, *rest: Any) -> list:
        results = real(model, runs, *rest)
        return [
            replace(result, status="quarantined", reason="loss is nan at step 2")
            if (result.condition, result.seed) == ("topq", 2)
            else result
            for result in results
        ]

    monkeypatch.setattr(stages, "train_cohort", diverging)
    folder = launch(campaign, tmp_path / "logs")
    finding = gather(folder.path).findings[0]
    assert finding.verdict == "INCONCLUSIVE"
    assert any("every measurement of topq" in text for text in (finding.reason, *finding.warnings)), finding


def test_planning_freezes_nothing(campaign: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    make_plan(load_spec(campaign), RunOptions(logs=logs), lambda _: None)
    assert not (logs / "tiny" / "splits.json").exists()
    launch(campaign, logs)
    frozen = (logs / "tiny" / "splits.json").read_bytes()
    make_plan(load_spec(campaign, ["split.seed=9"]), RunOptions(logs=logs), lambda _: None)
    assert (logs / "tiny" / "splits.json").read_bytes() == frozen


def test_a_renamed_condition_is_reused_under_its_new_name(campaign: Path, tmp_path: Path) -> None:
    launch(campaign, tmp_path / "logs")
    campaign.write_text(campaign.read_text().replace("topq", "best").replace('name = "tiny"', 'name = "other"'))
    said: list[str] = []
    folder = launch(campaign, tmp_path / "logs", said=said)
    assert any("6 REUSE" in line for line in said)
    row = json.loads((folder.run("best_s1") / "metrics.jsonl").read_text().splitlines()[0])
    record = json.loads((folder.run("best_s1") / "record.json").read_text())
    assert row["condition"] == record["condition"] == "best"


def test_deleting_the_store_costs_time_and_nothing_else(campaign: Path, tmp_path: Path) -> None:
    folder = launch(campaign, tmp_path / "logs")
    before = outcomes(folder)
    metrics = {
        path: json.loads(path.read_text().splitlines()[-1])["loss"] for path in folder.path.glob("runs/*/metrics.jsonl")
    }
    shutil.rmtree(tmp_path / "logs" / ".store")
    assert outcomes(launch(campaign, tmp_path / "logs")) == before
    for path, loss in metrics.items():
        assert not path.is_symlink()
        assert json.loads(path.read_text().splitlines()[-1])["loss"] == loss


def test_a_half_stored_run_is_no_run(campaign: Path, tmp_path: Path) -> None:
    folder = launch(campaign, tmp_path / "logs")
    store = folder.store
    for key in store.keys("train"):
        whole = store.path("train", key)
        whole.rename(whole.with_name(f".{key}.1.partial"))
    assert store.keys("train") == []
    _, decided, _ = make_plan(load_spec(campaign), RunOptions(logs=tmp_path / "logs"), lambda _: None)
    assert {run.decision for run in decided.runs} == {"NEW"}


def test_a_dry_run_is_kept_apart_and_never_judged(campaign: Path, tmp_path: Path) -> None:
    spec = load_spec(campaign)
    folder = run(spec, RunOptions(logs=tmp_path / "logs", max_steps=1), lambda _: None)
    assert folder.path.name == "tiny-dry"
    assert not (tmp_path / "logs" / "tiny").exists()
    assert {finding.verdict for finding in gather(folder.path).findings} == {"INVALID"}
    _, decided, _ = make_plan(spec, RunOptions(logs=tmp_path / "logs"), lambda _: None)
    assert {run.decision for run in decided.runs} == {"NEW"}


def test_two_processes_cannot_run_one_campaign(campaign: Path, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "logs", "tiny")
    with folder.lock(), pytest.raises(UserError, match="is running this campaign"):
        launch(campaign, tmp_path / "logs")
    assert not (folder.path / "manifest.json").exists()


def test_a_leak_is_refused_before_anything_is_written(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(
        json.dumps({"id": f"r{i}", "group": f"g{i}", "resolved": True, "messages": messages(i)}) + "\n"
        for i in range(60)
    )
    pool, leaky = tmp_path / "pool.jsonl", tmp_path / "leaky.jsonl"
    pool.write_text(rows)
    leaky.write_text(rows.replace('"id": "r', '"id": "copy').replace('"group": "g', '"group": "other'))
    suites = f'\n[[suites]]\nname = "old"\nsource = "{leaky}"\n'
    campaign.write_text(campaign.read_text() + suites)
    overrides = (f"data.source={pool}", "split.test_sets.gold.quantile=0.5")
    with pytest.raises(UserError, match="left out: 60 by test sets"):
        launch(campaign, tmp_path / "logs", *overrides)
    with monkeypatch.context() as patch:  # even if holding out failed, the guard compares what was selected
        patch.setattr(prepare, "held_out", lambda pool, tested: ())
        with pytest.raises(LeakError, match=r"contents of test set old are trained on"):
            launch(campaign, tmp_path / "logs", *overrides)
    assert not (tmp_path / "logs" / "tiny" / "manifest.json").exists()


def messages(i: int) -> list[dict]:
    calls = [{"name": "ls", "arguments": f'{{"path": "d{i}"}}'}, {"name": "cat", "arguments": f'{{"path": "f{i}.py"}}'}]
    turns: list[dict] = [{"role": "user", "content": f"find file {i}"}]
    for call in calls[: 1 + i % 2]:
        turns += [
            {"role": "assistant", "content": "looking", "tool_calls": [call]},
            {"role": "tool", "content": f"f{i}.py", "name": call["name"]},
        ]
    return [*turns, {"role": "assistant", "content": f"done {i}"}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("campaign.conditions.topq.selection.n=5000", "condition topq, seed 1: .*asks for 5000 rows"),
        ("split.test_sets.gold.n=5000", "split.test_sets.gold asks for 5000 rows"),
        ("data.source=nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("model.base=/nowhere/model", "model.base: '/nowhere/model' is no folder"),
    ],
)
def test_bad_input_is_named_and_nothing_is_half_written(
    campaign: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        launch(campaign, tmp_path / "logs", override)
    assert not (tmp_path / "logs" / "tiny" / "manifest.json").exists()
    assert not list((tmp_path / "logs").rglob("*.partial"))
