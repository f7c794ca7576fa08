"""Control charts: what is drift, and what is not."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.judge_config import JudgeConfig
from finetrial.judge.control import Session, baseline, control, judged, limits, refuse_drift
from finetrial.judge.grader import JudgeGrader
from finetrial.records import Task
from judge_server import KEY, fair, part, serving

TASKS = [
    Task(f"t{i}", f"g{i}", ({"role": "user", "content": f"What is {i} plus {i}?"},), f"={2 * i}") for i in range(20)
]


def sessions(scores_KN: np.ndarray, tolerance: float = 0.0) -> list[Session]:
    found: list[Session] = []
    for k, scores_N in enumerate(scores_KN):
        found.append(judged(str(k), [float(one) for one in scores_N], found, tolerance))
    return found


def test_limits_are_those_of_repeated_measures():
    """With one earlier session they are the paired t test's: 3 sigma of Student's t with N - 1 degrees of freedom."""
    rng = np.random.default_rng(1)
    old_N, new_N = rng.uniform(size=12), rng.uniform(size=12)
    found = limits(old_N[None], new_N, 0.0)
    error = stats.sem(new_N - old_N)
    assert found.centre == pytest.approx(old_N.mean())
    assert found.high - found.centre == pytest.approx(stats.t.ppf(0.99865, 11) * error)
    assert found.low + found.high == pytest.approx(2 * found.centre)


def test_false_alarms_are_as_rare_as_three_sigma_promises():
    rng = np.random.default_rng(7)
    items_N = rng.uniform(0.2, 0.8, 15)
    for earlier in (1, 2, 5):
        scores = items_N + rng.normal(0, 0.05, (4000, earlier + 1, 15))
        outside = 0
        for each in scores:
            found = limits(each[:-1], each[-1], 0.0)
            outside += not found.low <= each[-1].mean() <= found.high
        assert outside / 4000 == pytest.approx(0.0027, abs=0.0027)


def test_a_shift_is_drift_and_noise_is_not():
    rng = np.random.default_rng(3)
    items_N = rng.uniform(0.2, 0.6, 20)
    scores_KN = items_N + rng.normal(0, 0.03, (6, 20))
    scores_KN[4] += 0.1
    found = sessions(scores_KN)
    assert [one.drifted for one in found] == [False, False, False, False, True, False]
    assert found[0].reason == "first session: the baseline"
    assert found[5].centre == pytest.approx(np.mean(scores_KN[:4])), "what drifted is no part of the centre"


def test_a_judge_that_always_says_the_same_may_change_one_answer_within_the_tolerance():
    same_N = np.linspace(0, 1, 20)
    changed_N = same_N.copy()
    changed_N[3] += 0.2
    assert [one.drifted for one in sessions(np.stack([same_N, same_N, same_N]))] == [False] * 3
    assert not sessions(np.stack([same_N, same_N, changed_N]), 0.02)[-1].drifted
    shifted_N = (same_N + 0.03).clip(0, 1)
    assert sessions(np.stack([same_N, same_N, shifted_N]), 0.02)[-1].drifted


def test_missing_scores_are_left_out_and_too_few_are_drift():
    first = judged("1", [0.1 * i for i in range(10)], [], 0.02)
    second = judged("2", [None, *(0.1 * i for i in range(1, 10))], [first], 0.02)
    assert not second.drifted
    assert second.centre == pytest.approx(0.5)
    third = judged("3", [None] * 6 + [0.6, 0.7, 0.8, 0.9], [first, second], 0.02)
    assert third.drifted
    assert "only 4 answers" in third.reason
    assert judged("1", [None] * 10, [], 0.02).drifted


def test_a_session_is_judged_anew_each_time_and_drift_blocks(tmp_path: Path, monkeypatch):
    pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tasks, texts = baseline(TASKS, 6)
    assert len(texts) == 18
    with serving(fair) as server:
        settings = JudgeConfig(model="judge", base_url=server.url, retries=0)
        config = GraderConfig(kind="judge", judge=settings)

        def session(name: str = ""):
            with JudgeGrader(config, tmp_path) as judge:
                return control(judge, tasks, texts, name)

        session("monday")
        chart = session("tuesday")
        assert len(server.asked) == 2 * len(set(zip([t.id for t in tasks], texts, strict=True)))
        assert session("tuesday") == chart
        assert [one.session for one in chart.sessions] == ["monday", "tuesday"]
        assert chart.in_control
        refuse_drift(chart, "judge")

        server.rule = lambda prompt, _: json.dumps({"score": 8 if part(prompt, "answer") else 1})
        chart = session()
        assert not chart.in_control
        with pytest.raises(UserError, match=r"judge judge has drifted: mean .* is outside"):
            refuse_drift(chart, "judge")
        server.rule = fair
        chart = session("later")
        assert [one.drifted for one in chart.sessions] == [False, False, True, False]
        assert json.loads(json.dumps(chart.facts()))["in_control"]

        server.fault = lambda _: ("status", 500)
        with pytest.raises(UserError, match="its control chart could not be made"):
            session("broken")
        server.fault = lambda _: None
        assert len(session("after").sessions) == 5
    assert len(list(tmp_path.glob("control-*.json"))) == 1
