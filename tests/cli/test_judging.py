"""`compare` and `power` from the command line."""

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from finetrial.cli import app
from finetrial.cli.run_folders import repeat_option
from finetrial.errors import UserError
from run_folders import write_arms

runner = CliRunner()


def invoke(*args: str) -> str:
    result = runner.invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def outcomes(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "model": m,
            "run": s,
            "q": f"q{i}",
            "points": gain + 0.1 * rng.standard_normal(),
            "kind": "even" if i % 2 else "odd",
        }
        for m, gain in (("base", 0.0), ("new", 1.0))
        for s in range(4)
        for i in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "o.parquet")
    return str(tmp_path / "o.parquet")


MAP = ["--map", "condition=model", "--map", "seed=run", "--map", "item=q", "--map", "value=points"]


def test_compare_prints_and_emits_the_same_verdict(outcomes):
    text = invoke("compare", outcomes, *MAP, "--by", "kind")
    for part in ("CONFIRMED", "test:", "unit: training run (seed)", "family: exploratory", "4+4", "Per kind"):
        assert part in text
    payload = json.loads(invoke("compare", outcomes, *MAP, "--by", "kind", "--json", "--subset", "4"))
    assert [row["verdict"] for row in payload["contrasts"]] == ["CONFIRMED"]
    assert [row["suite"] for row in payload["groups"]] == ["even", "odd"]
    assert len(payload["subsets"]) == 1


def test_output_is_the_json(outcomes, tmp_path):
    invoke("compare", outcomes, *MAP, "--output", str(tmp_path / "c.json"), "--family", "mine", "--margin", "0.2")
    row = json.loads((tmp_path / "c.json").read_text())["contrasts"][0]
    assert (row["family"], row["margin"], row["verdict"]) == ("mine", 0.2, "CONFIRMED")


def test_bad_options_name_what_was_expected(outcomes, tmp_path):
    for args, message in [
        ((outcomes, "--map", "condition"), "expected NAME=COLUMN"),
        ((outcomes, *MAP, "--better", "highre"), "did you mean 'higher'"),
        ((outcomes, *MAP, "--litmus"), "--litmus reads run folders"),
        ((outcomes, *MAP, "--markdown", "x.md"), "--markdown belongs to run folders"),
        ((outcomes, *MAP, "--baseline", "a", "--baseline", "b"), "one condition is expected"),
        ((), "name a file or folder"),
    ]:
        result = runner.invoke(app, ["compare", *args])
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)


def test_shell_globs_reach_the_option_they_follow(tmp_path, monkeypatch):
    write_arms(tmp_path, {"a": 0.3, "b": 0.5}, 4)
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    expanded = ["--baseline", "runs/a_s0", "runs/a_s1", "--candidate", "runs/b_s0", "runs/b_s1", "--alpha", "0.1"]
    assert repeat_option(expanded) == [
        "--baseline", "runs/a_s0", "--baseline", "runs/a_s1", "--candidate", "runs/b_s0", "--candidate", "runs/b_s1",
        "--alpha", "0.1",
    ]  # fmt: skip
    named = ["--baseline", "base", "runs/a_s0", "--candidate", "b", "x.csv"]
    assert repeat_option(named) == named


def test_significance_report_of_seed_folders(tmp_path, monkeypatch):
    write_arms(tmp_path, {"grpo+none": 0.3, "maxrl+gtpo_sepa": 0.5}, 4)
    monkeypatch.chdir(tmp_path)
    files = ["--output", "significance.json", "--markdown", "significance.md", "--resamples", "2000", "--alpha", "0.05"]
    shell = [f"runs/grpo+none_s{s}" for s in range(4)], [f"runs/maxrl+gtpo_sepa_s{s}" for s in range(4)]
    invoke("compare", "--baseline", *shell[0], "--candidate", *shell[1], *files)
    expanded = json.loads((tmp_path / "significance.json").read_text())
    assert expanded["recommendation"] == "statistically_significant_improvement"
    assert expanded["candidate_runs"] == [f"maxrl+gtpo_sepa_s{s}" for s in range(4)]
    invoke("compare", "--baseline", "runs/grpo+none_s*", "--candidate", "runs/maxrl+gtpo_sepa_s*", *files)
    assert json.loads((tmp_path / "significance.json").read_text()) == expanded
    assert "# Significance report" in (tmp_path / "significance.md").read_text()


def test_litmus_of_seed_folders(tmp_path):
    write_arms(tmp_path, {"a": 0.3, "b": 0.5}, 4)
    arms = ["--baseline", str(tmp_path / "runs/a_s*"), "--candidate", str(tmp_path / "runs/b_s*")]
    assert json.loads(invoke("compare", *arms, "--litmus", "--json"))["status"] == "CONFIRMED"
    demanding = json.loads(invoke("compare", *arms, "--litmus", "--json", "--lift-mean-reward", "0.9"))
    assert demanding["status"] == "FAILED"
    assert "**INCONCLUSIVE**" in invoke("compare", *arms, "--litmus", "--min-runs", "5")


def test_campaign_folder_puts_its_declared_contrasts_first(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent.parent / "report"))
    from campaign_folder import write_campaign  # pyright: ignore[reportMissingImports]

    folder = write_campaign(tmp_path / "camp", seeds=(1, 2, 3, 4))
    payload = json.loads(invoke("compare", str(folder), "--json"))
    declared = [row for row in payload["contrasts"] if row.get("declared")]
    assert declared == payload["contrasts"][: len(declared)]
    assert declared[0]["contrast"] == "top-500 vs random-500 on gold"
    assert {row["family"] for row in payload["contrasts"][len(declared) :]} == {"exploratory"}
    assert "Declared contrasts" in invoke("compare", str(folder))


def test_mt_bench_from_the_command_line(data_dir):
    text = invoke("compare", str(data_dir / "mt_bench" / "Stefanstud"))
    for category in ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"):
        assert re.search(rf"{category} +phi-3-dpo - phi-3 +win_rate +[+-]\d.* to ", text)
    assert "a random 16 of these 73 items would show the opposite sign" in text
    assert "checkpoints" in text


def test_power_from_components_and_from_a_pilot(outcomes, tmp_path):
    given = ["--seed-sd", "0.01", "--recipe-item-sd", "0.06", "--sampling-sd", "0.3", "--effect", "0.03"]
    payload = json.loads(
        invoke("power", *given, "--items", "100", "--items", "400", "--seeds", "3", "--seeds", "8", "--json")
    )
    assert [(o["seeds"], o["items"]) for o in payload["options"]] == [(3, 100), (8, 100), (3, 400), (8, 400)]
    assert payload["options"][0]["attainable_p"] == pytest.approx(0.1)
    assert payload["cheapest"]["power"] >= 0.8
    text = invoke("power", *given)
    assert "cheapest:" in text
    assert "can never fall below p = 0.1" in text
    pilot = json.loads(invoke("power", outcomes, *MAP, "--json"))
    assert pilot["pilot"]["n_seeds"] == [4, 4]
    assert pilot["pilot"]["upper"]["seed"] >= pilot["pilot"]["estimate"]["seed"]
    assert "planned with" in invoke("power", outcomes, *MAP)


def test_power_draws_its_curve(tmp_path):
    given = ["--seed-sd", "0.01", "--recipe-item-sd", "0.06", "--effect", "0.03", "--margin", "0.01"]
    invoke("power", *given, "--items", "100", "--items", "400", "--chart", str(tmp_path / "p.svg"))
    svg = (tmp_path / "p.svg").read_text()
    assert "seeds per condition" in svg
    assert "400 items" in svg
    invoke("power", *given, "--chart", str(tmp_path / "p.png"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_power_asks_for_what_it_needs(outcomes):
    for args, message in [((), "--seed-sd"), ((outcomes, *MAP, "--seed-sd", "1"), "not both"),
                          (("--seed-sd", "1", "--chart", "x.gif"), r"\.svg or \.png")]:  # fmt: skip
        result = runner.invoke(app, ["power", *args])
        assert isinstance(result.exception, UserError)
        assert re.search(message, str(result.exception))


def test_judging_needs_no_torch():
    code = "import sys; import finetrial.cli.judging; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def labelled(tmp_path, rows, name="labels.csv", head="condition,seed,item,value"):
    (tmp_path / name).write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(tmp_path / name)


def test_labels_correct_the_judge_of_a_table(tmp_path):
    rng = np.random.default_rng(7)
    judged, people = [], []
    for item in range(40):
        for name, gain in (("old", 0.0), ("new", 0.1)):
            for seed in (1, 2, 3):
                worth = float(np.clip(0.4 + gain + rng.normal(0, 0.1) + 0.01 * seed, 0, 1))
                judged.append((name, seed, f"{item:03d}", min(1.0, worth + 0.3 * (name == "new"))))
                if item < 12:
                    people.append((name, seed, f"{item:03d}", worth))
    table = tmp_path / "judged.jsonl"
    names = ("condition", "seed", "item", "value")
    rows = [{**dict(zip(names, row, strict=True)), "metric": "correct"} for row in judged]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ("compare", str(table), "--baseline", "old", "--margin", "0.2")
    labels = labelled(tmp_path, [*people, ("old", 1, "013", "")])
    (one,) = json.loads(invoke(*args, "--labels", labels, "--json"))["people"]
    assert (one["suite"], one["metric"], one["corrected"]["n_labelled"]) == ("all", "correct", 12)
    assert one["judge"] == pytest.approx(0.4, abs=0.03)
    assert one["corrected"]["estimate"] == pytest.approx(0.1, abs=0.06)
    assert one["warnings"]
    text = invoke(*args, "--labels", labels)
    assert "Corrected by people's labels" in text
    assert "over the items of these runs; of other seeds the verdict's own interval speaks" in text
    assert "warning new vs old on all: " in text
    assert json.loads(invoke(*args, "--json"))["people"] == []
    for rows, message in [
        ([*people, ("nwe", 1, "001", 0.5)], "no condition 'nwe' (did you mean 'new'?)"),
        ([*people, ("new", 1, "0001", 0.5)], "no item '0001' (did you mean '001'?)"),
        ([*people, ("new", 1, "020", 1.5)], "1.5 is outside 0..1"),
        ([*people, people[0]], "it is there twice"),
        ([row for row in people if row[2] < "002"], "2 items have labels in both conditions; at least 3"),
        ([("new", 1, "001", "good")], "value is 'good', expected a number"),
        ([("new", 1, "001", "")], "is filled in"),
        ([*people[:2], ("new", 1, "", 0.5)], "row 3: there is no item"),
    ]:
        result = runner.invoke(app, [*args, "--labels", labelled(tmp_path, rows)])
        assert isinstance(result.exception, UserError), (message, result.exception)
        assert message in str(result.exception)
    sheet = labelled(tmp_path, [("0" * 16, 1)], head="label,value")
    for bad, message in [
        ((*args, "--labels", str(tmp_path / "label.csv")), "no such file of labels (did you mean 'labels.csv'?)"),
        ((*args, "--labels", sheet), "read beside the campaign folder"),
        (("compare", "--labels", labels, "--baseline", "a", "--candidate", "b"), "--labels belongs to outcomes"),
    ]:
        result = runner.invoke(app, list(bad))
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)
