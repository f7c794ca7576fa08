"""Campaigns of reinforcement learning: from tasks to verdicts, repeatable, resumable, and without a leak."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from finetrial.campaign import practice, stages
from finetrial.campaign.describe import cost, progress
from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.folder import Folder
from finetrial.campaign.measures import completions
from finetrial.campaign.plan import Plan, cohorts
from finetrial.campaign.practice import PracticeSet, questions
from finetrial.campaign.preflight import preflight
from finetrial.campaign.spec import load_spec
from finetrial.errors import LeakError, UserError
from finetrial.generate.decode import NotFinite
from finetrial.model.peft_format import load_peft
from finetrial.records import Example
from finetrial.report.build import build, gather
from finetrial.store import read_json

NAMES = ("grpo+none", "maxrl+gtpo_sepa")


def launch(campaign: Path, logs: Path, *overrides: str, said: list[str] | None = None) -> Folder:
    lines = said if said is not None else []
    return run(load_spec(campaign, overrides), RunOptions(logs=logs), lines.append)


def rows(folder: Folder) -> list[dict]:
    return pq.read_table(folder.path / "outcomes.parquet").to_pylist()


def manifest(folder: Folder) -> dict[str, Any]:
    found = folder.manifest()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Folder, list[str]]:
    """A campaign with snapshots and squeeze that has run once: its file, its folder, what was said."""
    from tiny_campaign import PRACTICE

    home = tmp_path_factory.mktemp("practised")
    path = home / "practice.toml"
    path.write_text(
        PRACTICE.format(base=tiny_base).replace("[evaluation]", "[evaluation]\nevery = 1") + "\n[squeeze]\n"
    )
    said: list[str] = []
    return path, launch(path, home / "logs", said=said), said


@pytest.fixture
def logs(finished: tuple[Path, Folder, list[str]], tmp_path: Path) -> Path:
    """A copy of its logs that a test may go on with."""
    return Path(shutil.copytree(finished[1].logs, tmp_path / "logs", symlinks=True))


def test_from_tasks_to_verdicts(finished: tuple[Path, Folder, list[str]]) -> None:
    _, folder, said = finished
    told = manifest(folder)
    assert told["status"] == "complete"
    assert told["conditions"] == ["base", *NAMES]
    assert [check for check in told["integrity"] if not check["passed"]] == []
    assert "gold answers are graded 1, empty completions not" in [check["check"] for check in told["integrity"]]
    assert (list(told["suites"]), told["snapshots"]) == (["held_out"], [1])
    table = rows(folder)
    assert len(table) == (7 + 6) * 5 * 2  # base and runs, and runs after one step; five items, two metrics
    assert {row["metric"] for row in table} == {"correct", "completion_tokens"}
    assert not [row for row in table if row["suite"] == "held_out@1" and row["condition"] == "base"]
    findings = gather(folder.path).findings
    assert [finding.contrast for finding in findings] == [
        "maxrl+gtpo_sepa vs grpo+none on held_out",
        "grpo+none vs base on held_out",
        "maxrl+gtpo_sepa vs base on held_out",
    ]
    assert all(finding.verdict in ("CONFIRMED", "FAILED", "INCONCLUSIVE") for finding in findings)
    assert any("3 by default" in line for line in said)
    assert any(line.startswith("squeeze: rank ") for line in said)
    assert build(folder.path).html.is_file()
    assert progress(folder)["done"] == 6


def test_every_run_leaves_what_readers_expect(finished: tuple[Path, Folder, list[str]]) -> None:
    _, folder, _ = finished
    for entry in manifest(folder)["runs"]:
        place = folder.path / entry["folder"]
        steps = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in steps] == [1, 2]
        generations = [json.loads(line) for line in (place / "emergence/generations.jsonl").read_text().splitlines()]
        assert len(generations) == 2 * 2 * 4  # steps, prompts, completions of each
        assert {row["condition"] for row in [*steps, *generations]} == {entry["condition"]}
        record = read_json(place / "record.json")
        assert record["planned"]["rows"] == record["realised"]["rows"] == 16
        assert record["realised"]["completions"] == 16
        assert record["realised"]["missing_grades"] == 0
        kept, final = load_peft(place / "snapshots" / "step-1"), load_peft(place / "adapter")
        assert any((kept.weights[name][1] != final.weights[name][1]).any() for name in final.weights)
    written = pq.read_table(folder.path / "completions.parquet").to_pylist()
    assert len(written) == 13 * 5
    assert {(row["condition"], row["seed"]) for row in written} == {
        ("base", None),
        *((name, seed) for name in NAMES for seed in (1, 2, 3)),
    }
    assert all(row["text"] is not None and row["grade"] is not None for row in written)


def test_squeeze_is_in_the_manifest(finished: tuple[Path, Folder, list[str]]) -> None:
    squeeze = manifest(finished[1])["squeeze"]
    assert (squeeze["run"], squeeze["source_rank"], squeeze["min_variance_retention"]) == ("grpo+none_s1", 2, 0.95)
    assert 1 <= squeeze["mean_rank"] <= squeeze["recommended_rank"] <= 2
    assert [row["rank"] for row in squeeze["ranks"]] == [1, 2]
    assert all(0 < row["worst"] <= row["mean"] <= 1 for row in squeeze["ranks"])


def test_a_second_launch_samples_nothing(
    finished: tuple[Path, Folder, list[str]], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing was left to do")

    monkeypatch.setattr(stages, "train_cohort", refuse)
    monkeypatch.setattr(completions, "write", refuse)
    monkeypatch.setattr(practice, "prove", refuse)
    before = (finished[1].path / "outcomes.parquet").read_bytes()
    folder = launch(finished[0], logs)
    assert (folder.path / "outcomes.parquet").read_bytes() == before


def test_a_crash_between_suites_measures_only_the_rest(
    finished: tuple[Path, Folder, list[str]], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished[1].path / "outcomes.parquet").read_bytes()
    store = Folder(logs, "practice").store
    snapshots = [key for key in store.keys("completions") if store.record("completions", key)["suite"] == "held_out@1"]
    assert len(snapshots) == 6
    shutil.rmtree(store.path("completions", snapshots[0]))
    real, swept = completions.write, []

    def counted(*arguments: Any, **options: Any) -> Any:
        swept.append(len(arguments[1]))
        return real(*arguments, **options)

    monkeypatch.setattr(completions, "write", counted)
    folder = launch(finished[0], logs)
    assert swept == [1]
    assert (folder.path / "outcomes.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "decision", "reason"),
    [
        (["rl.batch_sizing.rows=7", "training.micro_batch_tokens=99"], "REUSE", "nothing changed"),
        (["evaluation.temperature=0.5"], "REUSE", "nothing changed"),
        (["rl.loss.clip_high=0.3"], "RETRAIN", "rl.loss.clip_high 0.2 → 0.3"),
        (["rl.group_size=6"], "RETRAIN", "rl.group_size 4 → 6"),
        (["tasks.instruction=Think."], "RETRAIN", "55 of 55 tasks changed: tasks.content "),
        (["tasks.held_out=6"], "RETRAIN", "1 of 55 tasks changed: examined "),
        (["evaluation.every=0"], "RETRAIN", "snapshots [1] → unset"),
    ],
)
def test_why_names_what_changed(
    finished: tuple[Path, Folder, list[str]], overrides: list[str], decision: str, reason: str
) -> None:
    path, folder, _ = finished
    _, decided, _ = make_plan(load_spec(path, overrides), RunOptions(logs=folder.logs), lambda _: None)
    assert {run.decision for run in decided.runs} == {decision}
    assert all(reason in run.reason for run in decided.runs), decided.runs[0].reason


def test_plan_reckons_before_anything_is_spent(finished: tuple[Path, Folder, list[str]], tmp_path: Path) -> None:
    spec = load_spec(finished[0])
    options = RunOptions(logs=tmp_path / "none")
    prepared, decided, _ = make_plan(spec, options, lambda _: None)
    facts = cost(spec, prepared, decided, options)
    assert facts["to_train"] == 6
    assert [row["examples"] for row in facts["conditions"]] == [55, 55]
    assert [row["name"] for row in facts["suites"]] == ["held_out", "held_out@1"]
    assert any("3 by default" in sentence for sentence in facts["sentences"])
    assert any("at most" in sentence for sentence in facts["sentences"])


def test_check_makes_one_real_step_and_warns_of_equal_rewards(practice: Path, tmp_path: Path) -> None:
    told = {check.check: check for check in preflight(load_spec(practice), tmp_path / "logs", lambda _: None)}
    assert all(check.passed for check in told.values())
    spread = told["grpo+none: rewards differ within groups"]
    assert "2 of 2 groups of 4 completions differ in reward" in spread.detail
    assert not spread.warning
    assert told["grpo+none: completions end themselves"].warning  # a random base never ends itself
    assert (
        "Calculate" in told["suite held_out can be asked"].detail or "?" in told["suite held_out can be asked"].detail
    )
    assert not (tmp_path / "logs").exists()
    graded = preflight(load_spec(practice, ["rl.reward=grade"]), tmp_path / "logs", lambda _: None)
    flat = next(check for check in graded if check.check == "grpo+none: rewards differ within groups")
    assert flat.passed
    assert flat.warning
    assert "0 of 2 groups" in flat.detail


def test_what_is_examined_is_never_practised_on(
    practice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that asks practised questions again, under other names and with another instruction."""
    options = RunOptions(logs=tmp_path / "logs")
    prepared, _, _ = make_plan(load_spec(practice), options, lambda _: None)
    tasks = prepared.tasks.practice["grpo+none"].tasks[:7]
    lines = [
        {"id": f"copy{i}", "question": f"  {task.messages[-1]['content']} ", "answer": task.reference}
        for i, task in enumerate(tasks)
    ]
    (tmp_path / "copies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    suite = (
        f'\n[[suites]]\nname = "copies"\nkind = "tasks"\nsource = "{tmp_path}/copies.jsonl"\ninstruction = "Think."\n'
    )
    practice.write_text(practice.read_text() + suite)
    prepared, decided, _ = make_plan(load_spec(practice), options, lambda _: None)
    assert [suite.name for suite in decided.suites] == ["held_out", "copies"]
    left = prepared.tasks.practice["grpo+none"]
    assert len(left.tasks) == 48
    assert left.facts["left_out"] == 12
    assert not {task.id for task in left.tasks} & {task.id for task in tasks}
    with monkeypatch.context() as patch:  # even if leaving out failed, the guard compares what is practised on
        patch.setattr("finetrial.campaign.practice.held_out", lambda pool, tested: ())
        with pytest.raises(LeakError, match="of test set held_out are trained on"):
            make_plan(load_spec(practice), options, lambda _: None)


def test_a_condition_with_tasks_of_its_own_is_examined_on_the_common_ones(practice: Path, tmp_path: Path) -> None:
    override = "campaign.conditions.1.tasks.source=world:arithmetic?count=90&seed=6"
    prepared, decided, _ = make_plan(load_spec(practice, [override]), RunOptions(logs=tmp_path), lambda _: None)
    first, second = (prepared.tasks.practice[name] for name in NAMES)
    assert not set(first.ids) & set(second.ids)
    assert [len(suite.items) for suite in decided.suites] == [5]
    asked = {example.content_hash for example in questions(prepared.tasks.exams["held_out"].tasks)}
    assert not asked & {example.content_hash for example in questions(second.tasks)}
    keys = {run.name: run.key for run in decided.runs}
    _, plain, _ = make_plan(load_spec(practice), RunOptions(logs=tmp_path), lambda _: None)
    unchanged = {run.name for run in plain.runs if keys[run.name] == run.key}
    assert unchanged == {f"grpo+none_s{seed}" for seed in (1, 2, 3)}


def test_a_question_is_the_same_whatever_surrounds_it() -> None:
    def row(text: str, *before: dict) -> Example:
        return Example("a", "b", (*before, {"role": "user", "content": text}))

    plain = questions([row("What is 2 + 2?")])
    assert questions([row("What is  2 + 2? \nThink.")], "Think.") == plain
    assert questions([row("What is 2 + 2?", {"role": "system", "content": "Be brief."})]) == plain
    speechless = Example("a", "b", ({"role": "assistant", "content": "4"},))
    assert questions([speechless])[0].messages == speechless.messages


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.held_out=60", "cannot hold out 60 of 60 tasks"),
        ("model.max_length=16", "prompts leave no room for 5 tokens within model.max_length = 16"),
        ("tasks.source=nowhere.jsonl", "nowhere.jsonl: no such file"),
        (
            "campaign.conditions.1.tasks.source=nowhere.jsonl",
            "condition maxrl.gtpo_sepa: .*nowhere.jsonl: no such file",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_half_written(
    practice: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        launch(practice, tmp_path / "logs", override)
    assert not (tmp_path / "logs" / "practice" / "manifest.json").exists()


def test_supervised_and_practising_conditions_stand_side_by_side(campaign: Path, tmp_path: Path) -> None:
    text = campaign.read_text().replace("seeds = [1, 2, 3]", "seeds = [1, 2]").replace("max_steps = 3", "max_steps = 1")
    tables = """
[tasks]
source = "world:arithmetic?count=40&seed=5"
held_out = 4

[evaluation]
max_tokens = 4
samples = 2
temperature = 1.0

[[campaign.conditions]]
name = "practised"
rl = { group_size = 4, reward = "random", sampling = { max_tokens = 4 } }

[[contrasts]]
candidate = "practised"
baseline = "topq"
suite = "held_out"
metric = "pass@2"
"""
    campaign.write_text(text + tables)
    folder = launch(campaign, tmp_path / "logs")
    told = manifest(folder)
    assert set(told["suites"]) == {"gold", "random", "held_out"}
    assert [check for check in told["integrity"] if not check["passed"]] == []
    table = rows(folder)
    seen = {(row["condition"], row["suite"]) for row in table}
    assert seen == {(c, s) for c in told["conditions"] for s in told["suites"]}
    spec = load_spec(campaign)
    _, decided, _ = make_plan(spec, RunOptions(logs=tmp_path / "logs"), lambda _: None)
    assert {run.decision for run in decided.runs} == {"REUSE"}
    for cohort in cohorts(decided.runs, 16):
        assert len({run.objective for run in cohort}) == 1
    assert {type(run.selection) is PracticeSet for run in decided.runs if run.condition == "practised"} == {True}
    assert [finding.metric for finding in gather(folder.path).findings] == ["nll", "nll", "pass@2"]


def test_a_row_that_asks_an_examined_question_is_not_learnt_from(campaign: Path, tmp_path: Path) -> None:
    prepared, _, _ = make_plan(load_spec(campaign), RunOptions(logs=tmp_path / "logs"), lambda _: None)
    selection = next(iter(prepared.inputs.selections.values()))
    assert not isinstance(selection, PracticeSet)
    row = selection.examples[0]
    asked = questions([row])[0].messages[0]["content"]
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": asked, "answer": "x"}) + "\n")
    suite = f'\n[[suites]]\nname = "exam"\nkind = "tasks"\nsource = "{tmp_path}/exam.jsonl"\n'
    campaign.write_text(campaign.read_text() + suite)
    prepared, _, _ = make_plan(load_spec(campaign), RunOptions(logs=tmp_path / "logs"), lambda _: None)
    for selection in prepared.inputs.selections.values():
        assert not isinstance(selection, PracticeSet)
        assert row.group not in selection.groups


def load_metrics(run_dir: str) -> list[dict]:
    with open(Path(run_dir) / "metrics.jsonl") as f:
        return [json.loads(line) for line in f if line.strip()]


def test_readers_of_run_folders_work_unchanged(
    finished: tuple[Path, Folder, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curves per condition over all folders below `runs`, as scripts of researchers draw them."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib draws the curves")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_condition: dict[str, list] = {}
    for run_dir in sorted((finished[1].path / "runs").iterdir()):
        metrics = load_metrics(str(run_dir))
        by_condition.setdefault(metrics[0]["condition"], []).append(metrics)
    assert {name: len(runs) for name, runs in by_condition.items()} == dict.fromkeys(NAMES, 3)
    figure, axes = plt.subplots()
    for condition, runs in sorted(by_condition.items()):
        all_correct = [[m["correct_rate"] for m in run] for run in runs]
        shortest = min(len(c) for c in all_correct)
        curves = np.array([c[:shortest] for c in all_correct])
        assert curves.shape == (3, 2)
        axes.plot(range(shortest), curves.mean(axis=0), label=condition)
    figure.savefig(tmp_path / "curves.png")
    plt.close(figure)
    late = [
        m["exec_entropy_var"]
        for runs in by_condition.values()
        for run in runs
        for m in run
        if 0 <= m["step"] < 500 and "exec_entropy_var" in m
    ]
    assert len(late) == 12
    root = next((finished[1].path / "runs").iterdir()) / "emergence"
    for name, count in (("steps.jsonl", 2), ("generations.jsonl", 16)):
        assert len([json.loads(line) for line in (root / name).read_text().splitlines() if line.strip()]) == count


def test_what_the_key_of_a_practising_run_is_made_of(practice: Path, tmp_path: Path) -> None:
    """Execution does not enter it."""
    _, decided, _ = make_plan(load_spec(practice), RunOptions(logs=tmp_path), lambda _: None)
    science = decided.runs[0].science
    assert set(science) == {"model", "training", "steps", "rl", "grader"}
    assert "batch_sizing" not in science["rl"]
    assert not {"objective", "save_every", "max_steps"} & set(science["training"])


def test_a_changed_fact_of_a_task_changes_run_and_suite(practice: Path, tmp_path: Path) -> None:
    """The unit decides grades, though question and reference read the same."""

    def planned(unit: str) -> Plan:
        tasks = [{"id": f"t{n}", "question": f"How far is {n}?", "answer": str(n), "unit": unit} for n in range(40)]
        source = tmp_path / "tasks.jsonl"
        source.write_text("".join(json.dumps(task) + "\n" for task in tasks))
        spec = load_spec(practice, [f"tasks.source={source}"])
        return make_plan(spec, RunOptions(logs=tmp_path / "logs"), lambda _: None)[1]

    metres, miles = planned("m"), planned("km")
    assert metres.runs[0].key != miles.runs[0].key
    assert metres.suites[0].hash != miles.suites[0].hash
    assert metres.runs[0].key == planned("m").runs[0].key


def test_completions_must_fit_the_context_of_the_base(practice: Path, tmp_path: Path) -> None:
    spec = load_spec(practice, ["model.max_length=100000", "rl.sampling.max_tokens=50000"])
    with pytest.raises(UserError, match="the base's context"):
        make_plan(spec, RunOptions(logs=tmp_path), lambda _: None)


def test_a_policy_whose_logits_are_not_finite_is_missing_and_the_others_are_examined(
    practice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = completions.write
    sizes = []

    def breaking(model: Any, adapters: Any, *rest: Any, **named: Any) -> Any:
        sizes.append(len(adapters))
        if len(sizes) == 1:
            raise NotFinite(1)
        return real(model, adapters, *rest, **named)

    monkeypatch.setattr(completions, "write", breaking)
    folder = launch(practice, tmp_path / "logs")
    assert sizes == [6, 5]
    lost = {(row["condition"], row["seed"]) for row in rows(folder) if row["value"] is None}
    assert len(lost) == 1
    kept = [row for row in rows(folder) if (row["condition"], row["seed"]) not in lost]
    assert kept
    assert all(row["value"] is not None for row in kept)


def test_a_contrast_on_a_snapshot_that_no_run_makes_is_refused(practice: Path, tmp_path: Path) -> None:
    declared = '\n[[contrasts]]\ncandidate = "{}"\nbaseline = "{}"\nsuite = "held_out@{}"\n'
    text = practice.read_text().replace("[evaluation]", "[evaluation]\nevery = 1")
    path = tmp_path / "snapshot.toml"
    path.write_text(text + declared.format(*NAMES, 1))
    assert load_spec(path).contrasts[0].suite == "held_out@1"
    path.write_text(text + declared.format(*NAMES, 2))
    with pytest.raises(UserError, match=r"held_out@2.*ends after 2 steps.*'held_out' for the end"):
        load_spec(path)
