"""Auxiliary terms of the loss in a campaign: what records, notes and the check before it say of them."""

import json
from pathlib import Path

import pytest

from finetrial.campaign.execute import RunOptions, run
from finetrial.campaign.preflight import preflight
from finetrial.campaign.spec import load_spec
from finetrial.errors import UserError

NAME = "auxiliary terms of the loss have their part in the gradient"
FAR = "training.learning_rate=0.5"
"""So that each token's divergence is more than rounding, which may be below 0 and so below any cap."""


def with_anchor(campaign: Path, **anchor: object) -> Path:
    """The condition `topq` anchored, the other one not."""
    table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in anchor.items())
    text = campaign.read_text().replace('name = "topq"', f'name = "topq"\nanchor = {{ {table} }}')
    campaign.write_text(text.replace("max_steps = 3", "max_steps = 5"))
    return campaign


def test_records_and_notes_tell_what_an_anchor_did(campaign: Path, tmp_path: Path) -> None:
    folder = run(load_spec(with_anchor(campaign, coef=1e-3)), RunOptions(logs=tmp_path / "logs"), lambda _: None)
    for seed in (1, 2, 3):
        record = json.loads((folder.run(f"topq_s{seed}") / "record.json").read_text())
        facts = record["terms"]["anchor"]
        assert facts["acted"] == 5
        assert [probe["step"] for probe in facts["probes"]] == [1, 2, 3, 4]
        assert "never has 1% of the gradient" in facts["warning"]
        rows = [json.loads(line) for line in (folder.run(f"topq_s{seed}") / "metrics.jsonl").read_text().splitlines()]
        assert all(row["anchor_coef"] == 1e-3 for row in rows)
        assert rows[1]["grad_share_anchor"] == facts["probes"][1]["share"]
        assert json.loads((folder.run(f"random_s{seed}") / "record.json").read_text())["terms"] == {}
    (note,) = [check for check in (folder.manifest() or {})["integrity"] if check["check"] == NAME]
    assert note["passed"]
    assert note["warning"]
    assert "topq_s1: the term 'anchor' never has 1%" in note["detail"]


def test_the_check_measures_terms_and_fails_on_one_that_teaches_nothing(campaign: Path, tmp_path: Path) -> None:
    spec = load_spec(with_anchor(campaign, coef=1.0, start_step=2, warmup_steps=2))
    told = {check.check: check for check in preflight(spec, tmp_path / "logs", lambda _: None)}
    alive = told["topq: the term 'anchor' has a gradient"]
    assert alive.passed
    assert alive.detail.count("%") == 3
    assert "random: the term 'anchor' has a gradient" not in told
    assert all(check.passed for check in told.values())

    dead = load_spec(campaign, ["anchor.cap=1e-30", FAR])
    told = {check.check: check for check in preflight(dead, tmp_path / "logs", lambda _: None)}
    for name in ("topq", "random"):
        check = told.get(f"{name}: the term 'anchor' has a gradient")
        assert check is not None
        assert not check.passed
        assert "it teaches nothing" in check.detail
        assert told[f"{name}: the first gradient is finite and not zero"].passed


def test_a_run_with_a_dead_term_is_stopped_with_the_reason(campaign: Path, tmp_path: Path) -> None:
    spec = load_spec(with_anchor(campaign, coef=1.0, cap=1e-30), [FAR])
    folder = run(spec, RunOptions(logs=tmp_path / "logs"), lambda _: None)
    record = json.loads((folder.run("topq_s1") / "record.json").read_text())
    assert record["status"] == "quarantined"
    assert "the gradient of the term 'anchor' is exactly 0" in record["reason"]
    assert {run["status"] for run in (folder.manifest() or {})["runs"] if run["condition"] == "random"} == {"done"}


def test_weights_of_data_are_refused_where_completions_are_practised(practice: Path) -> None:
    with pytest.raises(UserError, match="token_weighting = 'dft' weighs tokens of a data set"):
        load_spec(practice, ["training.token_weighting=dft"])
