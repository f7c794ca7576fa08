"""The litmus: intervals decide against thresholds, and missing evidence is not failure."""

import json

import numpy as np
import pytest

from finetrial.analyze.readers.run_logs import RunLog, expand, load_runs
from finetrial.analyze.runs.litmus import LitmusConfig, litmus
from finetrial.analyze.runs.markdown import litmus_markdown
from run_folders import write_arms, write_run


def arms(tmp_path, baseline: float, candidate: float, runs: int, **more) -> tuple[list[RunLog], list[RunLog]]:
    write_arms(tmp_path, {"b": baseline, "c": candidate}, runs, **more)
    return tuple(load_runs(expand([str(tmp_path / "runs" / f"{name}_s*")])) for name in "bc")  # pyright: ignore[reportReturnType]


def test_confirmed_failed_and_inconclusive(tmp_path):
    confirmed = litmus(*arms(tmp_path / "1", 0.3, 0.5, 4))
    assert (confirmed.status, confirmed.evidence_ok) == ("CONFIRMED", True)
    assert all(check.passed for check in confirmed.checks)
    failed = litmus(*arms(tmp_path / "2", 0.5, 0.3, 4))
    assert failed.status == "FAILED"
    assert "mean_reward" in failed.reason
    open_ = litmus(*arms(tmp_path / "3", 0.40, 0.41, 4, spread=0.03))
    assert open_.status == "INCONCLUSIVE"
    assert [check.passed for check in open_.checks] == [None, None]


def test_a_lift_beyond_the_threshold_is_not_enough_when_it_is_uncertain(tmp_path):
    result = litmus(*arms(tmp_path, 0.35, 0.42, 3, seed=4, spread=0.1))
    assert result.checks[0].delta > 0.01
    assert result.status == "INCONCLUSIVE"


def test_a_real_but_too_small_lift_fails(tmp_path):
    baseline, candidate = arms(tmp_path, 0.3, 0.35, 6, spread=0.0, steps=60)
    assert litmus(baseline, candidate, LitmusConfig(mean_reward=0.0, correct_rate=0.0)).status == "CONFIRMED"
    demanding = litmus(baseline, candidate, LitmusConfig(mean_reward=0.2, correct_rate=0.0))
    assert demanding.status == "FAILED"
    assert demanding.reason == "the whole interval of mean_reward lies below the threshold"


def test_missing_evidence_is_inconclusive_and_named(tmp_path):
    baseline, candidate = arms(tmp_path, 0.1, 0.9, 2)
    result = litmus(baseline, candidate)
    assert result.status == "INCONCLUSIVE"
    assert result.evidence_failures == ["baseline: 2 runs, 3 required", "candidate: 2 runs, 3 required"]
    short = load_runs([write_run(tmp_path / "c_s8", 0.9, np.random.default_rng(0), steps=5)])
    few = LitmusConfig(min_runs=1, min_generations=200)
    assert litmus(baseline, short, few).evidence_failures == [
        "c_s8: 5 steps, 8 required",
        "c_s8: 160 completions, 200 required",
    ]
    assert litmus(baseline[:1], candidate[:1], LitmusConfig(min_runs=1)).status == "INCONCLUSIVE"


def test_json_and_markdown(tmp_path):
    result = litmus(*arms(tmp_path, 0.3, 0.5, 4))
    payload = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert {"status", "baseline", "candidate", "thresholds", "evidence", "checks", "evidence_ok"} <= payload.keys()
    assert payload["checks"][0]["threshold"] == 0.01
    assert payload["checks"][0]["ci_low"] == pytest.approx(result.checks[0].ci_low)
    text = litmus_markdown(result)
    for heading in ("Evidence", "Threshold Checks", "Runs"):
        assert heading in text
