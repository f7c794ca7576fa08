"""The domain campaign: contrasts of one factor, a file that extends another, and suites graded by the local judge."""

import importlib.util
import json
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetrial.campaign.execute import RunOptions, run
from finetrial.campaign.folder import Folder
from finetrial.campaign.prepare import prepare
from finetrial.campaign.spec import load_spec
from finetrial.data.read import read
from finetrial.data.tasks import TaskConfig, read_tasks
from finetrial.data.workshop.config import StandardiseConfig
from finetrial.data.workshop.standardise import standardise
from finetrial.errors import UserError
from finetrial.grade.judge_config import JudgeConfig
from finetrial.judge.prompts import prompt
from finetrial.judge.selftest import gold_answer

EXAMPLES = Path(__file__).parents[2] / "examples"

QA = """
[campaign]
name = "qa"
seeds = [1]
max_steps = 1
primary_metric = "correct"

[model]
base = "{base}"
lora_rank = 2
max_length = 256

[data]
source = "world:physics_clean?count=60&seed=5"

[split]
test_sets.random = {{ kind = "random", n = 4 }}

[evaluation]
max_tokens = 6

[[campaign.conditions]]
name = "plain"
"""

JUDGED = """
extends = "qa.toml"

[campaign]
name = "judged"

[[suites]]
name = "explanation"
kind = "tasks"
source = "world:physics_explanation?count=6&seed=9"

[suites.grader]
kind = "judge"
judge = {{ model = "local-judge", retries = 0{more} }}
"""


@pytest.fixture(scope="module")
def local_judge() -> ModuleType:
    """The module of the example."""
    spec = importlib.util.spec_from_file_location("local_judge", EXAMPLES / "local_judge.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(local_judge: ModuleType, **options: Any) -> Iterator[str]:
    """Its base URL while the block runs."""
    with local_judge.Server(**options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["domain_qa", "domain_qa_judged"])
def test_contrasts_change_one_factor_but_for_those_that_say_so(name: str) -> None:
    spec = load_spec(EXAMPLES / f"{name}.toml")
    assert spec.campaign.name == name
    factors = {c.name: (c.model.lora_alpha, c.data.source) for c in spec.conditions}
    assert len(set(factors.values())) == 4
    plain = {c.name: c.model_copy(update={"name": "", "question": ""}) for c in spec.conditions}
    for other in plain.values():
        same = {"model": other.model.model_copy(update={"lora_alpha": 16}), "data": spec.data}
        assert other.model_copy(update=same) == plain["alpha16-clean"]
    for contrast in spec.contrasts:
        if contrast.baseline != "base":
            changed = sum(a != b for a, b in zip(factors[contrast.candidate], factors[contrast.baseline], strict=True))
            assert changed == (2 if contrast.family == "two factors at once" else 1), contrast.name


def test_the_judged_campaign_is_the_other_one_and_a_suite() -> None:
    plain, judged = (load_spec(EXAMPLES / f"{name}.toml") for name in ("domain_qa", "domain_qa_judged"))
    assert judged.suites[:-1] == plain.suites
    assert judged.contrasts[: len(plain.contrasts)] == plain.contrasts
    assert (judged.conditions, judged.data, judged.evaluation) == (plain.conditions, plain.data, plain.evaluation)
    assert judged.suites[-1].source == next(s.source for s in plain.suites if s.name == "explanation")


def test_the_rules_that_are_shipped_mend_the_mixed_rows(tmp_path: Path) -> None:
    rules = tomllib.loads((EXAMPLES / "standardise" / "domain_qa.toml").read_text())
    source = load_spec(EXAMPLES / "domain_qa.toml").condition("alpha16-mixed").data.source
    out = tmp_path / "clean.jsonl"
    assert not standardise(source, out, StandardiseConfig.model_validate(rules)).residual
    whole = {row.id: row.messages[-1]["content"] for row in read(source.replace("mixed", "clean")).examples}
    rows = [row for row in read(str(out)).examples if row.meta["defect"] != "duplicate"]
    assert len(rows) > 1000
    assert all(row.messages[-1]["content"].rstrip(".") == whole[row.id].rstrip(".") for row in rows)


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(QA.format(base="builtin"))
    two = tmp_path / "two.toml"
    two.write_text(
        'extends = "one.toml"\n[campaign]\nseeds = [7]\n[[campaign.conditions]]\nname = "more"\n'
        "[split.test_sets.random]\nn = 9\n"
    )
    spec = load_spec(two)
    assert (spec.campaign.name, spec.campaign.seeds) == ("qa", (7,))
    assert [condition.name for condition in spec.conditions] == ["plain", "more"]
    assert spec.split is not None
    assert (spec.split.test_sets["random"].n, spec.split.test_sets["random"].kind) == (9, "random")
    assert load_spec(two, ["campaign.conditions.plain.model.lora_rank=3"]).conditions[0].model.lora_rank == 3


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('extends = "on.toml"', r"on\.toml: no such campaign file \(which .*two\.toml extends\).*one\.toml"),
        ('extends = "two.toml"', r"two\.toml: extends itself, by way of .*two\.toml"),
        ("extends = 3", r"two\.toml: extends is 3; expected the name of a campaign file"),
        (
            'extends = "one.toml"\n[[campaign.conditions]]\nname = "plain"',
            r"two\.toml: two conditions are called 'plain'",
        ),
    ],
)
def test_what_cannot_be_extended_is_named(tmp_path: Path, written: str, told: str) -> None:
    (tmp_path / "one.toml").write_text(QA.format(base="builtin"))
    (tmp_path / "two.toml").write_text(written)
    with pytest.raises(UserError, match=told):
        load_spec(tmp_path / "two.toml")


def test_the_local_judge_follows_its_rule(local_judge: ModuleType) -> None:
    tasks = read_tasks(TaskConfig(source="world:physics_explanation?count=30&seed=9")).tasks
    config = JudgeConfig(model="local-judge")

    def score(task: Any, answer: str) -> float:
        return local_judge.judgment(prompt(task, config, [answer]))["score"]

    assert {score(task, gold_answer(task)) for task in tasks} == {10.0}
    assert {score(task, "") for task in tasks} == {1.0}
    first = tasks[0]
    other = next(task for task in tasks if gold_answer(task).split("becomes")[1] != first.reference.split("becomes")[1])
    assert score(first, gold_answer(other)) == 1.0
    assert 1 < score(first, "The force is constant and unchanged.") < 10
    bare = prompt(first, config.model_copy(update={"template": "{{ question }}"}), ["?"])
    with pytest.raises(local_judge.NotShown, match="does not show question, answer, rubric"):
        local_judge.judgment(bare)


def test_a_judged_campaign_tests_charts_and_remembers_its_judge(
    local_judge: ModuleType, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "qa.toml").write_text(QA.format(base=tiny_base))
    path = tmp_path / "judged.toml"
    path.write_text(JUDGED.format(more=""))
    options = RunOptions(logs=tmp_path / "logs")

    def launch() -> dict[str, Any]:
        folder = run(load_spec(path), options, lambda _: None)
        (judge,) = json.loads((folder.path / "manifest.json").read_text())["judges"]
        grades = [
            row for row in pq.read_table(folder.path / "outcomes.parquet").to_pylist() if row["metric"] == "correct"
        ]
        assert len(grades) == 2 * 6  # base and run
        assert all(row["value"] is not None for row in grades)
        return judge

    with pytest.raises(UserError, match=r"local-judge: no server; expected judge\.base_url or the environment"):
        launch()
    with serving(local_judge) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        first = launch()
        assert [check["passed"] for check in first["self_test"]["checks"]] == [True] * 4
        assert len(first["control"]["sessions"]) == 1
        assert first["launch"]["graded"] == first["outcomes"]["graded"] == 12
        second = launch()
    baseline = len(second["control"]["sessions"][-1]["scores"])
    assert second["launch"]["requests"] == baseline == 3 * 6  # the chart alone is asked anew
    assert len(second["control"]["sessions"]) == 2
    assert second["control"]["in_control"]
    assert second["launch"]["graded"] == 0
    assert second["outcomes"] == first["outcomes"]
    with serving(local_judge, bonus=3.0) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(UserError, match="has drifted"):
            launch()
    with pytest.raises(UserError, match="no server answers"):
        launch()


def test_a_suite_of_multiple_choice_refuses_other_questions(tiny_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "qa.toml"
    suite = '\n[[suites]]\nname = "letters"\nkind = "choice"\nsource = "world:physics?count=20&seed=9"\n'
    path.write_text(QA.format(base=tiny_base) + suite)
    with pytest.raises(UserError, match=r"suite 'letters': task .*: no choices from label to text"):
        prepare(load_spec(path), Folder(tmp_path / "logs", "qa"), "cpu", lambda _: None)
    path.write_text(path.read_text() + 'where = { kind = "choice" }\n')
    prepared = prepare(load_spec(path), Folder(tmp_path / "logs", "qa"), "cpu", lambda _: None)
    assert prepared.tasks.exams["letters"].chance == 0.25
