"""What is measured on suites: variety of samples, choices, subsets, and what is kept for other graders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.judge import judge
from finetrial.analyze.table import OutcomeTable
from finetrial.campaign.describe import cost
from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.folder import Folder
from finetrial.campaign.health import alive, room
from finetrial.campaign.measures import choice, completions, likelihood
from finetrial.campaign.settings import EvaluationConfig
from finetrial.campaign.spec import load_spec
from finetrial.campaign.suites import check_rendering
from finetrial.errors import UserError
from finetrial.evaluate.diversity import SEMANTIC, TEXTUAL
from finetrial.evaluate.rouge import ROUGE
from finetrial.records import Outcome, Task

SUITES = """
[[suites]]
name = "replies"
kind = "tasks"
source = "world:replies?count=6&seed=3"
samples = 3
temperature = 1.0
max_tokens = 12
semantic = true

[[suites]]
name = "letters"
kind = "tasks"
source = "world:physics_choice?count=8&seed=3"
where = { form = "unit" }

[[suites]]
name = "options"
kind = "choice"
source = "world:physics_choice?count=40&seed=3"
subset = { n = 10, by = "form" }

[[suites]]
name = "texts"
source = "world:replies?count=30&seed=4"
subset = { n = 4, by = "kind" }
"""

ONE = ["campaign.seeds=[1]", "campaign.max_steps=1"]


@pytest.fixture(scope="module")
def measured(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Folder, list[str]]:
    """A campaign of one run that was measured on suites of every kind: its file, its folder, what was said."""
    from tiny_campaign import PRACTICE

    home = tmp_path_factory.mktemp("suites")
    path = home / "suites.toml"
    path.write_text(PRACTICE.format(base=tiny_base).rpartition("[[campaign.conditions]]")[0] + SUITES)
    said: list[str] = []
    return path, launch(path, home / "logs", said=said), said


@pytest.fixture
def logs(measured: tuple[Path, Folder, list[str]], tmp_path: Path) -> Path:
    """A copy of its logs that a test may go on with."""
    return Path(shutil.copytree(measured[1].logs, tmp_path / "logs", symlinks=True))


def launch(path: Path, logs: Path, *overrides: str, said: list[str] | None = None) -> Folder:
    lines = said if said is not None else []
    return run(load_spec(path, [*ONE, *overrides]), RunOptions(logs=logs), lines.append)


def rows(folder: Folder, suite: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(folder.path / "outcomes.parquet").to_pylist() if row["suite"] == suite]


def manifest(folder: Folder) -> dict[str, Any]:
    found = folder.manifest()
    assert found is not None
    return found


def test_samples_of_an_item_are_measured_as_a_set(measured: tuple[Path, Folder, list[str]]) -> None:
    found = rows(measured[1], "replies")
    by_item = {(row["condition"], row["item"], row["metric"]): row for row in found if row["metric"] in TEXTUAL}
    assert len([row for row in found if row["metric"] == "correct"]) == 2 * 6 * 3
    left_out = {line.split("'")[1] for line in measured[2] if line.endswith("it is left out")}
    assert {metric for _, _, metric in by_item} == {*TEXTUAL} - left_out
    assert {"distinct_1", "self_bleu_2", "degenerate"} <= {metric for _, _, metric in by_item}
    assert {*SEMANTIC} <= {row["metric"] for row in found}
    rouge = [row for row in found if row["metric"] == "rouge_1"]
    assert {row["sample"] for row in rouge} == {0, 1, 2}
    assert all(0 <= row["value"] <= 1 for row in rouge)
    assert {*ROUGE} - {row["metric"] for row in found} <= left_out
    assert not {row["metric"] for row in rows(measured[1], "held_out")} & {*TEXTUAL}  # a single sample has no variety


def test_choices_are_weighed_and_written(measured: tuple[Path, Folder, list[str]]) -> None:
    options = rows(measured[1], "options")
    assert {row["metric"] for row in options} == {"acc", "acc_norm", "gold_logp", "acc_letter", "gold_logp_letter"}
    assert len(options) == 2 * 10 * 5
    assert all(row["value"] in (0, 1) for row in options if row["metric"].startswith("acc"))
    assert all(row["value"] < 0 for row in options if row["metric"].startswith("gold"))
    letters = rows(measured[1], "letters")
    assert {row["metric"] for row in letters} == {"correct", "correct_relaxed", "completion_tokens"}
    told = manifest(measured[1])["suites"]
    assert told["options"]["chance"] == told["letters"]["chance"] == 0.25
    assert "chance 25.0% of 10 items" in told["options"]["description"]
    assert told["options"]["prompt"].endswith("Answer:")
    assert "one completion each, graded by choice, chance" in told["letters"]["description"]


def test_subsets_are_told_with_what_they_cost(measured: tuple[Path, Folder, list[str]]) -> None:
    told = manifest(measured[1])["suites"]
    for name, n, of in (("options", 10, 40), ("texts", 4, 30)):
        facts = told[name]["subset"]
        assert (facts["n"], facts["of"]) == (n, of)
        assert facts["design_effect"] >= 1
        assert facts["variance_against_full"] == pytest.approx(facts["design_effect"] * of / n)
        assert len({row["item"] for row in rows(measured[1], name)}) == n


def test_the_first_prompt_of_every_suite_is_kept_and_shown(measured: tuple[Path, Folder, list[str]]) -> None:
    path, folder, _ = measured
    told = manifest(folder)["suites"]
    assert all("<|" in suite["prompt"] and "assistant" in suite["prompt"] for suite in told.values())
    spec = load_spec(path, ONE)
    options = RunOptions(logs=folder.logs)
    prepared, decided, _ = make_plan(spec, options, lambda _: None)
    facts = cost(spec, prepared, decided, options)
    assert {suite["name"]: suite["prompt"] for suite in facts["suites"]} == {
        name: suite["prompt"] for name, suite in told.items()
    }
    assert any(line.startswith("suite options begins with ") for line in facts["sentences"])


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing was left to do")


def test_another_grader_grades_what_is_written(
    measured: tuple[Path, Folder, list[str]], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((completions, "write"), (choice, "choice_logp"), (likelihood, "perplexity")):
        monkeypatch.setattr(module, name, refuse)
    before = (measured[1].path / "outcomes.parquet").read_bytes()
    assert (launch(measured[0], logs).path / "outcomes.parquet").read_bytes() == before
    said: list[str] = []
    folder = launch(measured[0], logs, 'suites.1.grader={kind = "exact"}', said=said)
    told = [line for line in said if line.startswith("[letters]")]
    assert len(told) == 2
    assert all("its completions are stored; they are graded without writing anew" in line for line in told)
    assert {row["metric"] for row in rows(folder, "letters")} == {"correct", "completion_tokens"}
    assert manifest(folder)["suites"]["letters"]["hash"] != manifest(measured[1])["suites"]["letters"]["hash"]
    said.clear()
    folder = launch(measured[0], logs, "suites.1.diversity=true", said=said)
    assert all(
        "they are measured without" in line for line in said if line.startswith("[letters]") and "stored" in line
    )
    found = {row["metric"] for row in rows(folder, "letters")}
    assert "degenerate" in found
    assert "duplicate_share" not in found  # one sample repeats nothing


def test_an_interrupted_examination_goes_on_where_it_was(
    measured: tuple[Path, Folder, list[str]], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of two items are written one by one; a crash in the second loses nothing of the first."""
    before = {(r["condition"], r["item"], r["sample"]): r["text"] for r in texts(measured[1])}
    store = Folder(logs, "practice").store
    for stage in ("completions", "grades", "texts"):
        shutil.rmtree(store.root / stage)
    monkeypatch.setattr(completions, "BLOCK_ITEMS", 2)
    real, calls = completions.write, []

    def cut(*arguments: Any, **options: Any) -> Any:
        if len(calls) == 4:
            raise PowerCutError
        calls.append(len(arguments[2]))
        return real(*arguments, **options)

    monkeypatch.setattr(completions, "write", cut)
    with pytest.raises(PowerCutError):
        launch(measured[0], logs)
    assert len(store.keys("completions")) == 2 * 4  # of the base and the run
    monkeypatch.setattr(completions, "write", lambda *a, **o: calls.append(len(a[2])) or real(*a, **o))
    folder = launch(measured[0], logs)
    assert max(calls) == 2
    assert sum(calls) == sum(suite["items"] for name, suite in manifest(folder)["suites"].items() if name in WRITTEN)
    assert {(r["condition"], r["item"], r["sample"]): r["text"] for r in texts(folder)} == before


WRITTEN = ("held_out", "replies", "letters")


class PowerCutError(Exception):
    """Stands for a kill at an exact place."""


def texts(folder: Folder) -> list[dict[str, Any]]:
    return pq.read_table(folder.path / "completions.parquet").to_pylist()


def test_outcomes_of_different_subsets_are_not_compared() -> None:
    def outcomes(condition: str, suite_hash: str) -> list[Outcome]:
        return [
            Outcome(condition, seed, "s", f"i{i}", 0, "acc", float(i % 2), suite_hash=suite_hash)
            for seed in (1, 2, 3)
            for i in range(4)
        ]

    table = OutcomeTable.read([*outcomes("a", "full"), *outcomes("b", "part")])
    contrast = Contrast(candidate="a", baseline="b", suite="s")
    (finding,) = judge(table, [contrast], AnalysisConfig(), primary_metric="acc")
    assert finding.verdict == "INVALID"
    assert "the suite 's' is not the same for a and b" in finding.reason


def outcome(metric: str, value: float | None, condition: str = "a", item: str = "i", sample: int = 0) -> Outcome:
    return Outcome(condition, 1, "s", item, sample, metric, value)


def test_an_instrument_that_tells_nothing_apart_is_no_result() -> None:
    found = [outcome(m, v, item=f"i{i}") for m, v in (("distinct_2", 1.0), ("degenerate", 0.0)) for i in range(3)]
    found += [outcome("self_bleu_2", 0.1 * i, item=f"i{i}") for i in range(3)]
    said: list[str] = []
    kept = alive(found, [], "correct", said.append)
    assert {one.metric for one in kept} == {"degenerate", "self_bleu_2"}
    assert len(said) == 1
    assert "metric 'distinct_2': all 3 values are 1" in said[0]
    contrast = Contrast(candidate="a", baseline="base", suite="s@4", metric="distinct_2", name="c")
    with pytest.raises(UserError, match="'c' on suite 's@4': metric 'distinct_2': all 3 values"):
        alive(found, [contrast], "correct", said.append)


def test_ceilings_and_floors_are_told() -> None:
    def graded(condition: str, right: int) -> list[Outcome]:
        return [outcome("correct", float(j < right), condition, f"i{i}", j) for i in range(4) for j in range(4)]

    (check,) = room([*graded("easy", 4), *graded("hard", 0), *graded("fair", 1)])
    assert check["passed"]
    assert check["warning"]
    assert "easy on s: pass@1 is 100.0%" in check["detail"]
    assert "hard on s: pass@4 is 0.0%" in check["detail"]
    assert "fair on s: pass@4 is 100.0%" in check["detail"]
    assert "fair on s: pass@1" not in check["detail"]
    assert not room(graded("fair", 2)[:4:4])  # one sample each
    assert not room([outcome("correct", 0.3, sample=j) for j in range(3)])  # shares of a rubric


def test_what_is_measured_of_texts_follows_the_settings(measured: tuple[Path, Folder, list[str]]) -> None:
    assert EvaluationConfig().metrics == ()
    assert {*TEXTUAL, *ROUGE} == {*EvaluationConfig(samples=2, temperature=1).metrics}
    assert {*SEMANTIC} <= {*EvaluationConfig(samples=2, temperature=1, semantic=True).metrics}
    assert EvaluationConfig(samples=2, temperature=1, diversity=False).metrics == ()
    assert "rouge_1" in EvaluationConfig(diversity=True).metrics
    contrast = '\n[[contrasts]]\ncandidate = "grpo+none"\nbaseline = "base"\nsuite = "{}"\nmetric = "{}"\n'
    path = measured[0].with_name("contrasts.toml")
    for suite, metric in (("replies", "distinct_2"), ("options", "acc_norm"), ("texts", "kl_to_base")):
        path.write_text(measured[0].read_text() + contrast.format(suite, metric))
        assert load_spec(path).contrasts[0].metric == metric
    for suite, metric in (("held_out", "distinct_2"), ("options", "correct"), ("texts", "acc")):
        path.write_text(measured[0].read_text() + contrast.format(suite, metric))
        with pytest.raises(UserError, match=f"'{metric}' is not measured on suites of kind"):
            load_spec(path)


def test_training_and_evaluation_read_the_same_prompt(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    task = Task("t", "g", ({"role": "user", "content": "Say 4."},), "4")
    check_rendering("suite 's'", task, tokenizer)
    template = str(tokenizer.chat_template)
    assert "add_generation_prompt" in template
    before, _, after = template.rpartition("{%- if add_generation_prompt")
    if not before:
        before, _, after = template.rpartition("{% if add_generation_prompt")
    end = after.index("%}") + 2
    tokenizer.chat_template = f"{before}{{% if add_generation_prompt{after[:end]}Think. {after[end:]}"
    with pytest.raises(UserError, match=r"suite 's': a row of training and the prompt of evaluation part at token"):
        check_rendering("suite 's'", task, tokenizer)


def test_a_model_whose_logits_are_not_finite_is_missing_on_every_block(
    measured: tuple[Path, Folder, list[str]], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetrial.generate.decode import NotFinite

    store = Folder(logs, "practice").store
    for stage in ("completions", "grades", "texts"):
        shutil.rmtree(store.root / stage)
    monkeypatch.setattr(completions, "BLOCK_ITEMS", 2)
    real, calls = completions.write, []

    def breaking(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise NotFinite(0)
        return real(*arguments, **options)

    monkeypatch.setattr(completions, "write", breaking)
    folder = launch(measured[0], logs)
    lost = [row for row in rows(folder, "held_out") if row["condition"] != "base"]
    assert {row["value"] for row in lost} == {None}
    assert all(row["value"] is not None for row in rows(folder, "held_out") if row["condition"] == "base")
    reasons = {r["reason"] for r in texts(folder) if r["suite"] == "held_out" and r["condition"] != "base"}
    assert reasons == {completions.NOT_FINITE}


def test_rows_that_are_not_json_types_never_reach_the_manifest(measured: tuple[Path, Folder, list[str]]) -> None:
    assert json.loads(json.dumps(manifest(measured[1])["suites"])) == manifest(measured[1])["suites"]
