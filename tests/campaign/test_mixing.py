"""Campaigns with mixtures and guards: what is left out, what keys depend on, what records and plans say."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetrial.campaign import prepare
from finetrial.campaign.describe import cost
from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.folder import Folder
from finetrial.campaign.plan import Plan
from finetrial.campaign.pools import part_rows
from finetrial.campaign.prepare import Prepared
from finetrial.campaign.spec import load_spec
from finetrial.errors import LeakError, UserError
from finetrial.report.build import build, gather
from finetrial.store import read_json

REPLAY = """
[mixture]
[[mixture.parts]]
name = "replay"
source = "world:shell?count=240&seed=5"
limit = 60
ratio = 0.5
"""


def written(campaign: Path, *tables: str, **changes: str) -> Path:
    text = campaign.read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    campaign.write_text("\n".join([text, *tables]))
    return campaign


def planned(path: Path, logs: Path, *overrides: str) -> tuple[Prepared, Plan, Folder]:
    return make_plan(load_spec(path, overrides), RunOptions(logs=logs), lambda _: None)


def launch(path: Path, logs: Path, *overrides: str) -> Folder:
    return run(load_spec(path, overrides), RunOptions(logs=logs), lambda _: None)


def record(folder: Folder, name: str) -> dict[str, Any]:
    return read_json(folder.run(name) / "record.json")


def failed(folder: Folder) -> list[dict]:
    manifest = folder.manifest()
    assert manifest is not None
    return [check for check in manifest["integrity"] if not check["passed"]]


def part_file(path: Path, count: int, said: str = "so") -> Path:
    rows = [
        {"id": f"r{k}", "messages": [{"role": "user", "content": f"q {k}"}, {"role": "assistant", "content": said * 3}]}
        for k in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_mixture_from_plan_to_record(campaign: Path, tmp_path: Path) -> None:
    path = written(campaign, REPLAY)
    spec = load_spec(path)
    prepared, decided, folder = planned(path, tmp_path / "logs")
    part = decided.runs[0].parts["replay"]
    tested = {item for suite in decided.suites for item in suite.items}
    assert prepared.facts["mixtures"][0]["left_out"]["tested"] > 0
    assert prepared.facts["mixtures"][0]["left_out"]["tested"] + len(part.ids) == 60
    assert not tested & set(part.ids)
    told = cost(spec, prepared, decided, RunOptions(logs=tmp_path / "logs"))
    assert told["conditions"][0]["mixture"]["replay"]["share"] == 0.5
    assert any("topq mixes in replay: 50.0% of the rows, about 3, from" in line for line in told["sentences"])
    guarded = next(check for check in prepared.integrity if check["check"].startswith("no training row"))
    assert "6 selections and 2 parts of mixtures" in guarded["detail"]

    folder = launch(path, tmp_path / "logs")
    assert failed(folder) == []
    said = record(folder, "topq_s1")
    assert said["mixture"]["unit"] == "rows"
    assert said["mixture"]["parts"]["replay"]["planned"] == {"share": 0.5, "rows": 3.0}
    realised = said["mixture"]["parts"]["replay"]["realised"]
    assert (realised["rows"], realised["share"], realised["distinct_rows"]) == (3, 0.5, 3)
    assert said["mixture"]["parts"]["selected"]["realised"]["rows"] == 3
    steps = [json.loads(line) for line in (folder.run("topq_s1") / "metrics.jsonl").read_text().splitlines()]
    assert [row["rows_replay"] for row in steps] == [1, 1, 1]
    rows = read_json(folder.run("topq_s1") / "rows.json")
    assert sum(len(row) == 3 and row[2] == "replay" for row in rows) == len(part.ids)
    assert {r.decision for r in planned(path, tmp_path / "logs")[1].runs} == {"REUSE"}


def test_tested_rows_that_slip_into_a_part_are_a_leak(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(campaign, REPLAY)
    monkeypatch.setattr(prepare, "part_rows", lambda part, pool, tested, most: part_rows(part, pool, (), most))
    with pytest.raises(LeakError, match="are not for training"):
        planned(path, tmp_path / "logs")


def test_a_part_of_which_nothing_is_left_is_refused(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(campaign, REPLAY)
    every = lambda part, pool, tested, most: part_rows(part, pool, [row.id for row in pool.examples], most)  # noqa: E731
    monkeypatch.setattr(prepare, "part_rows", every)
    said = (
        r"condition topq: part replay: none of the 60 rows of world:shell.* is left \(60 tested, 0 nothing to learn\)"
    )
    with pytest.raises(UserError, match=said):
        planned(path, tmp_path / "logs")


def test_keys_change_with_a_parts_content_and_share_and_with_nothing_else(campaign: Path, tmp_path: Path) -> None:
    source = part_file(tmp_path / "part.jsonl", 9)
    path = written(campaign, REPLAY.replace("world:shell?count=240&seed=5", str(source)))

    def keys(*overrides: str) -> list[str]:
        return [one.key for one in planned(path, tmp_path / "logs", *overrides)[1].runs]

    first = keys()
    moved = source.rename(tmp_path / "elsewhere.jsonl")
    assert keys(f"mixture.parts.0.source={moved}", "mixture.parts.0.limit=1000") == first
    assert not set(keys(f"mixture.parts.0.source={moved}", "mixture.parts.0.ratio=0.4")) & set(first)
    part_file(moved, 9, "other")
    assert not set(keys(f"mixture.parts.0.source={moved}")) & set(first)


def test_why_tells_which_rows_of_which_part_changed(campaign: Path, tmp_path: Path) -> None:
    source = part_file(tmp_path / "part.jsonl", 9)
    path = written(campaign, REPLAY.replace("world:shell?count=240&seed=5", str(source)))
    launch(path, tmp_path / "logs")
    part_file(source, 12)
    reason = planned(path, tmp_path / "logs")[1].runs[0].reason
    assert reason.startswith("9 rows of part replay became 12: mixture.replay.pool")
    part_file(source, 9, "other")
    assert planned(path, tmp_path / "logs")[1].runs[0].reason.startswith("9 of 9 rows of part replay changed")


def test_an_epoch_lasts_until_the_selected_rows_were_read(campaign: Path, tmp_path: Path) -> None:
    path = written(campaign, REPLAY, **{"max_steps = 3": "", "batch_size = 2": "batch_size = 2\nepochs = 1"})
    assert {one.steps for one in planned(path, tmp_path / "logs")[1].runs} == {12}  # 12 rows, one of two a step
    with pytest.raises(UserError, match=r"\(topq\).mixture\] unit 'tokens': how many steps an epoch takes"):
        load_spec(path, ['mixture.unit="tokens"'])


def test_a_condition_goes_without_the_mixture_of_the_file(campaign: Path, tmp_path: Path) -> None:
    path = written(campaign, REPLAY)
    path.write_text(path.read_text().replace('name = "random"\n', 'name = "random"\nmixture = false\n', 1))
    by_name = {one.name: one for one in planned(path, tmp_path / "logs")[1].runs}
    assert list(by_name["topq_s1"].parts) == ["replay"]
    assert by_name["random_s1"].parts == {}
    assert "mixture" not in by_name["random_s1"].science


GUARD = '[stopping]\nsuite = "watched"\nevery = 2\n'


def guarded(campaign: Path, rule: str = "", steps: int = 6) -> Path:
    changes = {"max_steps = 3": f"max_steps = {steps}", "[training]": f"{GUARD}{rule}\n[training]"}
    changes["test_sets.random"] = 'test_sets.watched = { kind = "random", n = 4 }\ntest_sets.random'
    return written(campaign, **changes)


def test_a_guard_from_plan_to_record(campaign: Path, tmp_path: Path) -> None:
    path = guarded(campaign, "items = 3")
    folder = launch(path, tmp_path / "logs")
    assert failed(folder) == []
    manifest = folder.manifest()
    assert manifest is not None
    assert "every guard of early stopping measured its run" in [check["check"] for check in manifest["integrity"]]
    said = record(folder, "topq_s1")["stopping"]
    assert said["ran"]
    assert (said["metric"], said["better"]) == ("nll", "lower")
    assert [one["step"] for one in said["watched"]] == [2, 4, 6]
    best = min(said["watched"], key=lambda one: one["value"])
    assert said["best"] == {"step": best["step"], "value": best["value"]}
    assert said["last"]["step"] == 6
    assert said["selected_step"] == best["step"]
    kept = (folder.run("topq_s1") / "last" / "adapter_model.safetensors").is_file()
    assert kept == (best["step"] != 6)
    assert build(folder.path).html.is_file()


def test_a_run_that_its_guard_stopped_is_complete(campaign: Path, tmp_path: Path) -> None:
    """A guard without patience for anything but huge steps: every run ends at its second measurement."""
    path = guarded(campaign, "patience = 2\nthreshold = 100.0", steps=8)
    folder = launch(path, tmp_path / "logs")
    assert failed(folder) == []
    said = record(folder, "random_s2")
    assert said["status"] == "done"
    assert (said["stopping"]["stopped_at"], said["planned"]["steps"], said["realised"]["steps"]) == (4, 8, 4)
    assert said["realised"]["rows"] == 8
    assert "did not improve" in said["stopping"]["reason"]
    assert all(one.mismatches == [] for one in gather(folder.path).runs)


def test_a_guard_that_never_ran_fails_its_campaign(campaign: Path, tmp_path: Path) -> None:
    path = guarded(campaign, steps=1)
    prepared, decided, _ = planned(path, tmp_path / "logs")
    told = cost(load_spec(path), prepared, decided, RunOptions(logs=tmp_path / "logs"))["sentences"]
    assert "topq ends after 1 steps, before its guard has measured it: it is unguarded" in told
    folder = launch(path, tmp_path / "logs")
    (check,) = failed(folder)
    assert check["check"] == "every guard of early stopping measured its run"
    assert "topq_s1: never measured on watched" in check["detail"]
    assert record(folder, "topq_s1")["stopping"]["ran"] is False


def test_what_is_watched_is_not_compared_on(campaign: Path) -> None:
    path = guarded(campaign)
    with pytest.raises(UserError, match=r"'topq vs random on gold' is on suite 'gold', which \[stopping\] of topq"):
        load_spec(path, ['stopping.suite="gold"'])
    with pytest.raises(UserError, match=r"'random' is not evaluated|'random', which \[stopping\] of topq watches"):
        load_spec(path, ['stopping.suite="random"'])
    with pytest.raises(UserError, match="did you mean 'watched'"):
        load_spec(path, ['stopping.suite="watchd"'])
    with pytest.raises(UserError, match="metric 'correct' cannot be watched on suites of kind perplexity"):
        load_spec(path, ['stopping.metric="correct"'])


def test_the_key_of_a_guarded_run_holds_rule_and_items(campaign: Path, tmp_path: Path) -> None:
    path = guarded(campaign)

    def keys(*overrides: str) -> list[str]:
        return [one.key for one in planned(path, tmp_path / "logs", *overrides)[1].runs]

    first = keys()
    assert keys('stopping.metric="nll"') == first
    for change in ("stopping.every=3", "stopping.items=2", "stopping.floor=0.1", 'stopping.metric="bits_per_byte"'):
        assert not set(keys(change)) & set(first)


def test_practising_runs_are_guarded_by_their_answers(practice: Path, tmp_path: Path) -> None:
    suite = '[[suites]]\nname = "watched"\nkind = "tasks"\nsource = "world:arithmetic?count=4&seed=99"\n'
    path = written(practice, suite, **{"[training]": '[stopping]\nsuite = "watched"\nevery = 1\n[training]'})
    folder = launch(path, tmp_path / "logs")
    assert failed(folder) == []
    said = record(folder, "grpo+none_s1")["stopping"]
    assert said["metric"] == "correct"
    assert [one["step"] for one in said["watched"]] == [1, 2]
    assert all(one["value"] is not None and one["missing"] == 0 for one in said["watched"])


@pytest.mark.parametrize(
    ("suite", "metric"),
    [
        ('kind = "tasks"\nsource = "world:arithmetic?count=4&seed=99"\nsamples = 2\ntemperature = 1.0', "correct"),
        ('kind = "tasks"\nsource = "world:arithmetic?count=4&seed=99"\nmax_tokens = 7', "completion_tokens"),
        ('kind = "choice"\nsource = "{choices}"', "gold_logp_letter"),
    ],
)
def test_the_guard_measures_what_the_campaign_measures(practice: Path, tmp_path: Path, suite: str, metric: str) -> None:
    rule = f'[stopping]\nsuite = "watched"\nmetric = "{metric}"\nevery = 2\nselect = "last"\nfloor = 1e9\n[training]'
    asked = [
        {"id": f"c{k}", "question": f"Is it {k}?", "choices": ["yes", "no"], "answer": "AB"[k % 2]} for k in range(4)
    ]
    source = tmp_path / "choices.jsonl"
    source.write_text("\n".join(map(json.dumps, asked)))
    suite = suite.replace("{choices}", str(source))
    path = written(practice, f'[[suites]]\nname = "watched"\n{suite}\n', **{"[training]": rule})
    text = path.read_text().replace("seeds = [1, 2, 3]", "seeds = [1]").replace("max_length = 128", "max_length = 512")
    path.write_text(text)
    folder = launch(path, tmp_path / "logs")
    table = pq.read_table(folder.path / "outcomes.parquet").to_pylist()
    mine = [row for row in table if row["suite"] == "watched" and row["metric"] == metric]
    said = record(folder, "grpo+none_s1")["stopping"]
    for condition, value in (("base", said["baseline"]), ("grpo+none", said["last"]["value"])):
        values = [row["value"] for row in mine if row["condition"] == condition]
        assert value == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_snapshots_of_supervised_runs_are_measured_on_texts(campaign: Path, tmp_path: Path) -> None:
    path = written(campaign, "[evaluation]\nevery = 2\n")
    path.write_text(path.read_text().replace('suite = "gold"', 'suite = "gold@2"', 1))
    folder = launch(path, tmp_path / "logs")
    assert failed(folder) == []
    manifest = folder.manifest()
    assert manifest is not None
    assert manifest["snapshots"] == [2]
    findings = {one.contrast: one for one in gather(folder.path).findings}
    assert findings["topq vs random on gold@2"].n_seeds[0] == 3
    assert build(folder.path).html.is_file()


def test_a_plan_of_practice_counts_epochs_and_rounds_of_sampling(practice: Path, tmp_path: Path) -> None:
    def tokens(*overrides: str) -> tuple[int, float]:
        spec = load_spec(practice, overrides)
        prepared, decided, _ = planned(practice, tmp_path / "logs", *overrides)
        facts = cost(spec, prepared, decided, RunOptions(logs=tmp_path / "logs"))
        prompt = facts["conditions"][0]["tokens"] / facts["conditions"][0]["examples"]
        return facts["tokens"], prompt

    per_run = 6 * 2 * 2 * 4  # runs, steps, prompts and completions of each
    once, prompt = tokens()
    assert once == pytest.approx(per_run * (5 + prompt + 5), abs=6)
    often, _ = tokens("rl.epochs=3", "rl.dynamic_sampling={enabled=true, max_rounds=4}")
    assert often == pytest.approx(per_run * (4 * 5 + 3 * (prompt + 5)), abs=6)


def test_a_dry_run_of_a_guarded_campaign_is_a_dry_run(campaign: Path, tmp_path: Path) -> None:
    path = guarded(campaign)
    folder = run(load_spec(path), RunOptions(logs=tmp_path / "logs", max_steps=1), lambda _: None)
    manifest = folder.manifest()
    assert manifest is not None
    assert manifest["status"] == "dry"
    assert {check["check"] for check in failed(folder)} == {
        "not a dry run",
        "every guard of early stopping measured its run",
    }
