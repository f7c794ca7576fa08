"""Suites of kind `lm_eval`: tasks of lm-evaluation-harness as suites of a campaign."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
from test_suite_kinds import contrast, facts, launch, refuse, rows, written
from transformers import AutoConfig, AutoTokenizer

from finetrial.campaign.execute import RunOptions, make_plan
from finetrial.campaign.harness import Harness, load
from finetrial.campaign.measures import examinee
from finetrial.campaign.practice import questions
from finetrial.campaign.preflight import preflight
from finetrial.campaign.settings import SuiteConfig
from finetrial.campaign.spec import load_spec
from finetrial.data.read import read
from finetrial.data.select import Selection
from finetrial.errors import UserError
from finetrial.model.base import load_base
from finetrial.records import Task

TASK = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: right
num_fewshot: 1
fewshot_split: test
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: f1
"""

WRITTEN = """
task: numbers
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: answer
generation_kwargs:
  until: ["."]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
filter_list:
  - name: strict
    filter:
      - function: take_first
  - name: loose
    filter:
      - function: regex
        regex_pattern: "(-?[0-9]+)"
      - function: take_first
"""

TEXTS = """
task: texts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{q}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""

ROWS = [
    {"q": f"What is {n} + {n}?", "options": [str(2 * n), str(n)], "right": 0, "answer": str(2 * n)} for n in range(1, 5)
]


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    """A folder with three tasks over a local file."""
    folder = tmp_path / "harness"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("letters", TASK), ("numbers", WRITTEN), ("texts", TEXTS)):
        (folder / f"{name}.yaml").write_text(text.format(data=folder / "rows.jsonl"))
    return folder


def suite(name: str, task: str, **more: object) -> str:
    extra = "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
    return f'name = "{name}"\nkind = "lm_eval"\ntask = "{task}"\n{extra}'


def test_without_the_harness_the_extra_is_named(tmp_path: Path, tiny_base: Path, yaml: Path) -> None:
    path = written(tmp_path, tiny_base, suite("exam", str(yaml / "letters.yaml")))
    program = "import sys; sys.modules['lm_eval'] = None; from finetrial.cli import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", program, "plan", str(path), "--logs", str(tmp_path / "logs")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert "pip install 'finetrial[lm-eval]'" in " ".join(told.stderr.split())


def test_tasks_of_the_harness_are_suites(
    tmp_path: Path, tiny_base: Path, yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")
    from finetrial.evaluate import lm_eval_model

    path = written(
        tmp_path,
        tiny_base,
        suite("exam", "letters", include_path=str(yaml), chat_template=True),
        suite("written", str(yaml / "numbers.yaml"), limit=3),
        suite("texts", "texts", include_path=str(yaml)),
    )
    path.write_text(path.read_text() + contrast("exam", "acc_norm"))
    folder = launch(path, tmp_path / "logs")
    exam = {(r["condition"], r["item"], r["metric"]): r["value"] for r in rows(folder, "exam")}
    assert {metric for *_, metric in exam} == {"acc", "acc_norm"}
    assert len(exam) == 2 * 4 * 2
    assert set(exam.values()) <= {0.0, 1.0}
    told = facts(folder, "exam")
    assert (told["items"], told["chance"], told["metrics"]) == (4, 0.5, ["acc", "acc_norm"])
    assert "chance 50.0%; without f1, which no item has" in told["description"]
    assert told["prompt"].count("<|") > 2  # in the base's chat template, with its example
    assert {r["metric"] for r in rows(folder, "written")} == {"exact_match,strict", "exact_match,loose"}
    assert {r["item"] for r in rows(folder, "written")} == {"numbers/0", "numbers/1", "numbers/2"}
    bits = rows(folder, "texts")
    assert {(r["metric"], r["weight"]) for r in bits} == {("bits_per_byte", float(len("What is 1 + 1?")))}
    assert {r["suite"] for r in rows(folder, "exam@2")} == {"exam@2"}
    assert {r["condition"] for r in rows(folder, "exam@2")} == {"new"}

    prepared, _, _ = make_plan(load_spec(path), RunOptions(logs=tmp_path / "logs"), refuse_nothing)
    base, tasks = load_base(load_spec(path).model), list(prepared.harness["texts"].tasks.values())
    theirs = lm_eval_model.evaluate_all(base, {}, tasks, bootstrap_iters=0)["base"]["results"]
    mine = [r for r in bits if r["condition"] == "base"]
    mean = sum(r["value"] * r["weight"] for r in mine) / sum(r["weight"] for r in mine)
    assert mean == pytest.approx(theirs["texts"]["bits_per_byte,none"], rel=1e-6)

    monkeypatch.setattr(lm_eval_model, "evaluate_all", refuse)
    before = (folder.path / "outcomes.parquet").read_bytes()
    assert (launch(path, tmp_path / "logs").path / "outcomes.parquet").read_bytes() == before
    hashes = facts(folder, "exam")["hash"]
    _, decided, _ = make_plan(
        load_spec(path, ["suites.0.num_fewshot=0", "suites.0.limit=3"]),
        RunOptions(logs=tmp_path / "logs"),
        refuse_nothing,
    )
    assert hashes not in {one.hash for one in decided.suites}


def refuse_nothing(_: str) -> None:
    """Silence."""


def test_unknown_tasks_metrics_and_directions_are_refused(tmp_path: Path, tiny_base: Path, yaml: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")
    options = RunOptions(logs=tmp_path / "logs")

    def planned(path: Path) -> None:
        make_plan(load_spec(path), options, refuse_nothing)

    with pytest.raises(UserError, match=r"suite exam: .* knows no task 'lettres' \(did you mean 'letters'\?\)"):
        planned(written(tmp_path, tiny_base, suite("exam", "lettres", include_path=str(yaml))))
    with pytest.raises(UserError, match=r"include_path: ./nowhere is no folder"):
        planned(written(tmp_path, tiny_base, suite("exam", "letters", include_path="./nowhere")))
    path = written(tmp_path, tiny_base, suite("exam", str(yaml / "letters.yaml")))
    path.write_text(path.read_text() + contrast("exam", "acc_nrm"))
    with pytest.raises(UserError, match=r"'acc_nrm' is not measured on suite 'exam' .*did you mean 'acc_norm'"):
        planned(path)
    (yaml / "letters.yaml").write_text(
        (yaml / "letters.yaml").read_text().replace("metric: f1", "metric: likelihood\n    higher_is_better: true")
    )
    path = written(tmp_path, tiny_base, suite("exam", str(yaml / "letters.yaml")))
    path.write_text(path.read_text() + contrast("exam", "likelihood"))
    with pytest.raises(UserError, match="'likelihood' is better is not known; the harness says higher: set better"):
        planned(path)
    (yaml / "texts.yaml").write_text((yaml / "texts.yaml").read_text().replace("  - metric: bits_per_byte\n", ""))
    with pytest.raises(UserError, match=r"word_perplexity of .*texts.yaml are numbers of a set; no item has one"):
        planned(written(tmp_path, tiny_base, suite("exam", str(yaml / "texts.yaml"))))
    checks = {
        check.check: check.detail
        for check in preflight(
            load_spec(written(tmp_path, tiny_base, suite("exam", str(yaml / "numbers.yaml")))), tmp_path, refuse_nothing
        )
    }
    assert "4 items; begins 'What is 1 + 1?'" in checks["suite exam can be asked"]


GROUP = """
group: both
task:
  - letters
  - numbers
aggregate_metric_list:
  - metric: acc
"""


@pytest.fixture
def asked(tiny_base: Path) -> Callable[..., Harness]:
    """Loads a suite for the tiny base."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")
    tokenizer, config = AutoTokenizer.from_pretrained(tiny_base), AutoConfig.from_pretrained(tiny_base)
    return lambda **keys: load(SuiteConfig(name="exam", kind="lm_eval", **keys), tokenizer, config)


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_group_is_one_suite_whose_categories_are_its_tasks(asked: Callable[..., Harness], yaml: Path) -> None:
    (yaml / "group.yaml").write_text(GROUP)
    for task in ({"task": str(yaml / "group.yaml")}, {"task": "both", "include_path": str(yaml)}):
        found = asked(**task, limit=2)
        assert [item.id for item in found.items] == ["letters/0", "letters/1", "numbers/0", "numbers/1"]
        assert [item.meta["category"] for item in found.items] == ["letters", "letters", "numbers", "numbers"]
        assert found.metrics == ("acc", "acc_norm", "exact_match,strict", "exact_match,loose")
        assert found.left_out == ("f1",)
        assert found.called == "both (2 tasks)"
        assert found.chance is None  # the second task is written
    assert [item.reference for item in found.items if isinstance(item, Task)] == ["2", "4", "2", "4"]
    (plain,) = {item.meta.get("category") for item in asked(task=str(yaml / "letters.yaml")).items}
    assert plain is None
    named = asked(task=str(yaml / "letters.yaml"), category="answer")
    assert [item.meta["answer"] for item in named.items] == ["2", "4", "6", "8"]
    with pytest.raises(
        UserError, match=r"suite exam: category: no item has a fact 'anser' \(did you mean 'answer'\?\)"
    ):
        asked(task=str(yaml / "letters.yaml"), category="anser")


def test_what_a_document_asks_is_compared_without_what_a_task_puts_around_it(
    asked: Callable[..., Harness], yaml: Path
) -> None:
    found = asked(task=str(yaml / "letters.yaml"), limit=1)
    texts = [example.messages[0]["content"] for example in found.asked]
    assert texts == ["What is 1 + 1?\nAnswer:", "What is 1 + 1?", "1"]  # an option that stands in the question, too
    with (yaml / "rows.jsonl").open("w") as file:
        for row in ROWS:
            file.write(json.dumps({**row, "options": ["yes", "no"], "told": "What is", "answer": "-"}) + "\n")
    found = asked(task=str(yaml / "letters.yaml"), limit=2)
    texts = [example.messages[0]["content"] for example in found.asked]
    assert texts == [text for n in (1, 2) for text in (f"What is {n} + {n}?\nAnswer:", f"What is {n} + {n}?")]


def test_the_key_is_of_what_is_asked_and_how_not_of_where_it_lies(
    asked: Callable[..., Harness], yaml: Path, tmp_path: Path
) -> None:
    path = yaml / "letters.yaml"
    first = asked(task=str(path))
    assert asked(task=str(path)).key == first.key
    moved = tmp_path / "elsewhere"
    shutil.copytree(yaml, moved)
    changed(moved / "letters.yaml", str(yaml), str(moved))
    assert asked(task=str(moved / "letters.yaml")).key == first.key
    others = [asked(task=str(path), chat_template=True).key, asked(task=str(path), limit=3).key]
    others.append(asked(task=str(path), num_fewshot=2).key)
    (yaml / "helpers.py").write_text("def asked(doc):\n    return doc['q'] + END\n\n\nEND = '?'\n")
    changed(path, 'doc_to_text: "{{q}}\\nAnswer:"', "doc_to_text: !function helpers.asked")
    others.append(asked(task=str(path)).key)
    (yaml / "helpers.py").write_text("def asked(doc):\n    return doc['q'] + END\n\n\nEND = ':'\n")  # not the function
    others.append(asked(task=str(path)).key)
    (yaml / "more.jsonl").write_text(json.dumps({**ROWS[0], "q": "What is 0?"}) + "\n" + json.dumps(ROWS[1]) + "\n")
    changed(path, "rows.jsonl\n", f"rows.jsonl\n    train: {yaml / 'more.jsonl'}\n")
    changed(path, "fewshot_split: test", "fewshot_split: train")
    others.append(asked(task=str(path)).key)
    changed(yaml / "more.jsonl", "What is 0?", "What is 00?")
    others.append(asked(task=str(path)).key)
    assert len({first.key, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_gen_toks: 4", "max_gen_toks: 4\n  num_beams: 3", "task numbers: generation_kwargs: 'num_beams' is not"),
        ("max_gen_toks: 4", "max_gen_toks: 5000", "task numbers: max_gen_toks is 5000, .* context of 1024"),
        ("test_split: test", "test_split: test\nunsafe_code: true", "task numbers runs what models write"),
        ("test_split: test", "test_split: test\ndoc_to_image: picture", "task numbers shows pictures"),
        ("test_split: test", "test_split: tset", "cannot load .*numbers.yaml: KeyError: 'tset'"),
        ("test_split: test", "test_split: [", "cannot read .*numbers.yaml: "),
        (
            "test_split: test",
            "test_split: test\nnum_fewshot: 0",
            "num_fewshot is 9, but task numbers says 0 ",
        ),
        ("{{q}}", "{{q.no.such}}", "cannot load .*numbers.yaml: UndefinedError"),
        (
            "test_split: test",
            "test_split: test\nfewshot_split: test",
            "task numbers gives no prompt: ValueError",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_trained(
    asked: Callable[..., Harness], yaml: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    from finetrial.evaluate import lm_eval_tasks

    index = lm_eval_tasks.TaskManager  # that of the harness's own tasks takes seconds, and has none of these
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", lambda **keys: index(**{**keys, "include_defaults": False}))
    changed(yaml / "numbers.yaml", old, new)
    with pytest.raises(UserError, match=f"suite exam: .*{message}"):
        asked(task=str(yaml / "numbers.yaml"), num_fewshot=9)


HELPERS = """
def part(doc):
    return dict.fromkeys(doc["parts"], "ab")["first"]
"""


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("numbers", "{{q}}", "{{part.strip()}}", "UndefinedError: .* has no attribute 'strip'; expected what it asks"),
        ("numbers", '"{{q}}"', "!function helpers.part", "KeyError: 'first'; expected what it asks; .* doc_to_text"),
        ("numbers", "_target: answer", "_target: !function helpers.part", "KeyError: 'first'; expected a right answer"),
        ("letters", '"{{options}}"', "!function helpers.part", "KeyError: 'first'; expected a list of choices"),
        ("letters", '"{{options}}"', "few", "no choices; expected at least one"),
    ],
)
def test_a_document_on_which_a_task_fails_is_named(
    asked: Callable[..., Harness], yaml: Path, name: str, old: str, new: str, message: str
) -> None:
    (yaml / "helpers.py").write_text(HELPERS)
    docs = [{**row, "part": "a", "parts": ["first"], "few": ["0", "1"]} for row in ROWS]
    docs[2] |= {"part": None, "parts": [], "few": []}
    (yaml / "rows.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    changed(yaml / f"{name}.yaml", old, new)
    assert len(asked(task=str(yaml / f"{name}.yaml"), limit=2).items) == 2
    with pytest.raises(UserError, match=rf"^suite exam: task {name}, document 2 \(the first is 0\): {message}"):
        asked(task=str(yaml / f"{name}.yaml"))


CLASS = """
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task


class Words(Task):
    VERSION = 0
    OUTPUT_TYPE = "loglikelihood"

    def __init__(self, config=None):
        super().__init__(config={"task": "words", "num_fewshot": 0})

    def download(self, *_, **__):
        pass

    def has_training_docs(self):
        return False

    has_validation_docs = has_training_docs

    def has_test_docs(self):
        return True

    def test_docs(self):
        return DOCS

    def doc_to_text(self, doc):
        return f"Spell {doc[0]}:"

    def doc_to_target(self, doc):
        return doc[-1]

    def construct_requests(self, doc, ctx, **more):
        return [Instance("loglikelihood", doc, (ctx, doc[-1]), 0, metadata=more["metadata"])]

    def process_results(self, doc, results):
        return {"acc": float(results[0][1])}

    def aggregation(self):
        return {"acc": mean}

    def higher_is_better(self):
        return {"acc": True}


def mean(values):
    return sum(values) / len(values)


"""


def test_documents_without_names_are_examined_and_those_that_cannot_be_made_are_refused(
    asked: Callable[..., Harness], yaml: Path
) -> None:
    (yaml / "words.yaml").write_text("task: words\nclass: !function words.Words\n")
    (yaml / "words.py").write_text(CLASS + "DOCS = [('one', '1'), ('two', '2')]\n")
    found = asked(task=str(yaml / "words.yaml"))
    assert [
        (item.id, item.messages[0]["content"], item.reference) for item in found.items if isinstance(item, Task)
    ] == [
        ("words/0", "Spell one:", "1"),
        ("words/1", "Spell two:", "2"),
    ]
    assert [item.meta for item in found.items] == [{"task": "words"}] * 2
    (yaml / "words.py").write_text(CLASS + "DOCS = [('one', '1'), ()]\n")
    with pytest.raises(UserError, match=r"task words, document 1 \(the first is 0\): IndexError: tuple index out"):
        asked(task=str(yaml / "words.yaml"))
    (yaml / "words.py").write_text(CLASS + "DOCS = None\n")
    with pytest.raises(UserError, match=r"suite exam: task words gives no documents: "):
        asked(task=str(yaml / "words.yaml"))


def test_a_guard_cannot_watch_a_task_of_the_harness(tmp_path: Path, tiny_base: Path) -> None:
    path = written(tmp_path, tiny_base, suite("exam", "letters"))
    path.write_text(
        path.read_text().replace("[split]", '[stopping]\nsuite = "exam"\nevery = 1\npatience = 2\n\n[split]')
    )
    with pytest.raises(UserError, match="suite 'exam' of kind lm_eval cannot be watched"):
        load_spec(path)


def test_what_is_asked_is_held_out_of_training(
    tmp_path: Path, tiny_base: Path, asked: Callable[..., Harness], yaml: Path
) -> None:
    pool = read("world:shell?count=60&seed=5").examples
    examined = {*sorted({str(one.messages[0]["content"]) for one in questions(pool)})[:3]}
    docs = [{**ROWS[0], "q": f" {text}"} for text in sorted(examined)]
    (yaml / "rows.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    path = written(tmp_path, tiny_base, suite("exam", str(yaml / "letters.yaml")))
    every = ["campaign.conditions.new.selection.n=30"]
    prepared, decided, _ = make_plan(load_spec(path, every), RunOptions(logs=tmp_path / "logs"), refuse_nothing)
    (selected,) = [run.selection for run in decided.runs]
    assert isinstance(selected, Selection)
    assert not examined & {str(one.messages[0]["content"]) for one in questions(selected.examples)}
    same = {one.group for one in pool for text in [questions([one])[0].messages[0]["content"]] if text in examined}
    assert 12 <= prepared.facts["test_sets"]["rows_for_training"] <= len(pool) - len(same)


def test_an_adapter_whose_numbers_are_not_finite_is_missing_and_the_others_go_on(
    tmp_path: Path, tiny_base: Path, yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")
    read_adapter = examinee.load_peft
    broken: list[Path] = []

    def spoilt(folder: Path) -> Any:
        adapter = read_adapter(folder)
        if not broken or folder in broken:
            broken.append(folder)
            return dataclasses.replace(adapter, weights={k: (a, b * nan) for k, (a, b) in adapter.weights.items()})
        return adapter

    monkeypatch.setattr(examinee, "load_peft", spoilt)
    path = written(tmp_path, tiny_base, suite("exam", str(yaml / "letters.yaml"), limit=2))
    folder = launch(path, tmp_path / "logs", "campaign.seeds=[1,2]", "evaluation.every=0")
    values = {(r["condition"], r["seed"], r["item"], r["metric"]): r["value"] for r in rows(folder, "exam")}
    assert len(values) == 3 * 2 * 2
    assert {key[:2] for key, value in values.items() if value is None} == {("new", 1)}
    assert all(value is None for key, value in values.items() if key[:2] == ("new", 1))
