"""Suites of kind `lm_eval`: tasks of lm-evaluation-harness as suites of a campaign."""

import json
import sys
from pathlib import Path

import pytest
from test_suite_kinds import contrast, facts, launch, refuse, rows, written

from finetrial.campaign.execute import RunOptions, make_plan
from finetrial.campaign.preflight import preflight
from finetrial.campaign.spec import load_spec
from finetrial.errors import UserError
from finetrial.model.base import load_base

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


def test_without_the_harness_the_extra_is_named(
    tmp_path: Path, tiny_base: Path, yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lm_eval", "finetrial.evaluate.lm_eval_model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    path = written(tmp_path, tiny_base, suite("exam", str(yaml / "letters.yaml")))
    with pytest.raises(UserError, match=r"pip install 'finetrial\[lm-eval\]'"):
        make_plan(load_spec(path), RunOptions(logs=tmp_path / "logs"), lambda _: None)


@pytest.mark.filterwarnings("default")
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


@pytest.mark.filterwarnings("default")
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
