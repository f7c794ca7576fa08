"""Scores: hand-computed v3, its corrections, missing values, and laws."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import LAW, lengths, plain_pool, pools, run, scored
from pydantic import ValidationError
from scipy.stats import spearmanr

from finetrial.data.dimensions import DIMENSIONS
from finetrial.data.distribution import correlations
from finetrial.data.score import ScoreConfig, parse_problem, score
from finetrial.errors import UserError
from finetrial.records import Example

GOLDEN = run(
    "golden",
    [
        ("bash", "cat src/models.py", "def load(): ...  # src/models.py uses lib/utils.py"),
        ("bash", "pytest test_models.py", "FAILED test_models.py\nValueError: bad"),
        ("bash", "cat utils.py", "a.py"),
        ("edit", "models.py", "done"),
    ],
    tools=("bash", "edit", "search", "submit"),
)
ENTROPY = 0.75 * math.log2(4 / 3) + 0.25 * math.log2(4)


def value(table, name, row=0):
    return table.columns[name][row]


def test_v3_by_hand():
    table = scored([GOLDEN], version="v3")
    assert value(table, "error_retry") == pytest.approx(0.9)  # one cycle: the failed test, then bash again
    assert value(table, "step_ratio") == pytest.approx(0.8)  # a singleton is its own median
    assert value(table, "action_diversity") == pytest.approx(ENTROPY / math.log2(2))
    # models.py and utils.py are used; test_models.py and ValueError are not; a.py is too short to count
    assert value(table, "observation_utilisation") == pytest.approx(2 / 4)
    assert value(table, "non_repetition") == 1.0
    assert value(table, "efficiency") == pytest.approx(0.85)
    assert value(table, "style") == pytest.approx((ENTROPY + 0.5) / 2)
    assert value(table, "composite") == pytest.approx(0.5 * 0.85 + 0.5 * (ENTROPY + 0.5) / 2)


def test_corrections_by_hand():
    table = scored([GOLDEN])
    assert value(table, "error_retry") == 1.0  # a failing test run is no tool error
    assert math.isnan(value(table, "step_ratio"))  # nothing to compare a singleton with
    assert value(table, "action_diversity") == pytest.approx(ENTROPY / math.log2(4))
    assert value(table, "efficiency") == 1.0  # the mean of what is present
    assert value(table, "composite") == pytest.approx((1.0 + (ENTROPY / 2 + 0.5) / 2) / 2)


def test_each_correction_is_an_option():
    only = {"error_test": "tool", "step_reference": "others", "diversity_over": "available", "fallback": {}}
    for option, setting in only.items():
        config = ScoreConfig.model_validate({"version": "v3", option: setting})
        assert getattr(config, option) == setting
        assert sum(getattr(config, name) != getattr(ScoreConfig(version="v3"), name) for name in only) == 1
    assert ScoreConfig.model_validate({"version": "v3", **only}).model_dump(exclude={"version"}) == (
        ScoreConfig().model_dump(exclude={"version"})
    )


def test_step_ratio_by_hand():
    calls = [("bash", "ls", "x")]
    runs = [
        run("a", calls * 4, resolved=True),  # 5 turns
        run("b", calls * 6, resolved=True),  # 7 turns
        run("c", calls * 9, resolved=False),  # 10 turns
        run("d", calls * 39, resolved=False),  # 40 turns: clipped at three times the median
        run("e", [], resolved=None),  # 1 turn: clipped at half the median
    ]
    v3 = scored(runs, version="v3").columns["step_ratio"]
    assert v3 == pytest.approx([1 - (5 / 6 - 0.5) / 2.5, 1 - (7 / 6 - 0.5) / 2.5, 1 - (10 / 6 - 0.5) / 2.5, 0, 1])
    others = scored(runs).columns["step_ratio"]
    assert others == pytest.approx([1 - (5 / 7 - 0.5) / 2.5, 1 - (7 / 5 - 0.5) / 2.5, 1 - (10 / 6 - 0.5) / 2.5, 0, 1])


def test_v3_stand_ins_and_their_count():
    runs = [run("a", [], resolved=False)]
    v3 = scored(runs, version="v3")
    stand_ins = ScoreConfig(version="v3").fallback
    assert {name: value(v3, name) for name in stand_ins} == stand_ins
    assert v3.facts()["dimensions"]["step_ratio"]["share_default"] == 1.0
    corrected = scored(runs)
    assert all(math.isnan(value(corrected, name)) for name in [*DIMENSIONS, "efficiency", "style", "composite"])
    assert corrected.facts()["dimensions"]["step_ratio"]["share_missing"] == 1.0
    assert corrected.to_arrow()["composite"].to_pylist() == [None]


def test_error_retry_saturates_at_ten_cycles():
    calls = [("bash", f"try {k}", "Error: no") for k in range(14)]
    assert scored([run("a", calls)]).columns["error_retry"] == [0.0]
    other_tool = [("ab"[k % 2], f"try {k}", "Error: no") for k in range(14)]
    assert scored([run("a", other_tool)]).columns["error_retry"] == [1.0]


@pytest.mark.parametrize(
    ("tool", "command", "observation", "keyword", "failed"),
    [
        ("bash", "pytest -x", "1 failed\nTraceback (most recent call last)", True, False),
        ("run_tests", "", "Error: 2 tests failed", True, False),
        ("bash", "pytst -x", "sh: pytst: command not found", False, True),
        ("bash", "python -m pytest", "bash: python: command not found", False, True),
        ("bash", "cat a.py", "raise ValueError  # an error", True, False),
        ("bash", "cat secret", "cat: secret: Permission denied", False, True),
        ("bash", "make", "building\n[exit code 2]", False, True),
        ("bash", "make", "building\n[exit code 0]", False, False),
        ("sql", "SELECT x", "Error executing query: Table 'x' doesn't exist", True, True),
        ("book", "", "Error: payment amount does not add up", True, True),
        ("bash", "ls", "", False, False),
    ],
)
def test_what_counts_as_an_error(tool, command, observation, keyword, failed):
    calls = [(tool, command, observation), (tool, "again", "fine")]
    assert (scored([run("a", calls)], version="v3").columns["error_retry"][0] < 1) == keyword
    assert (scored([run("a", calls)]).columns["error_retry"][0] < 1) == failed


def test_diversity_of_one_available_tool_is_undefined_and_of_one_used_tool_is_zero():
    calls = [("bash", "ls", "x"), ("bash", "pwd", "x")]
    assert math.isnan(scored([run("a", calls, tools=["bash"])]).columns["action_diversity"][0])
    assert scored([run("a", calls, tools=["bash", "edit"])]).columns["action_diversity"][0] == 0.0
    assert math.isnan(scored([run("a", calls)]).columns["action_diversity"][0])


def test_diversity_does_not_punish_a_short_run():
    calls = [("bash", "ls", "x"), ("edit", "a", "x")]
    assert scored([run("a", calls, tools=["bash", "edit", "search", "submit"])]).columns["action_diversity"][0] == 1.0


def test_excluded_dimensions_are_computed_for_the_record():
    calls = [("bash", "ls", "a\n\na\nb"), ("bash", "ls", "a\na"), *[("bash", f"{k}", "q") for k in range(5)]]
    calls.append(("bash", "ls", "q"))  # six calls after the last ls: no repetition any more
    table = scored([run("a", calls)])
    assert value(table, "non_repetition") == pytest.approx(1 - 1 / 8)
    # 12 lines; noise: one empty, a after a (blank aside) in the first, a after a in the second
    assert value(table, "clean_observation") == pytest.approx(1 - 3 / 12)
    assert "non_repetition" not in (*table.config.efficiency, *table.config.style)


def test_gate_names_every_reason():
    broken = Example("broken", "g", ({"role": "assistant", "content": " "},), resolved=None)
    table = score([GOLDEN, broken], ScoreConfig(), [100, 120], 100)
    assert table.gate == ((), ("resolution unknown", "not parseable: an empty assistant turn", "truncated"))
    assert score([GOLDEN], ScoreConfig(), [112], 100).gate == (("truncated",),)
    assert score([GOLDEN], ScoreConfig(), [111], 100).gate == ((),)  # 100/111 is just above 0.9
    assert table.passed.tolist() == [True, False]
    assert table.facts()["gate"]["truncated"] == 1


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "tool", "content": "x"}, "an observation without a call"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "a", "arguments": '{"x": '}]},
            "arguments that are not JSON",
        ),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "", "arguments": ""}]}, "a call without a name"),
        ({"role": "assistant", "content": ""}, "an empty assistant turn"),
        ({"role": "user", "content": "x"}, "no assistant turn"),
    ],
)
def test_parse_problems(message, problem):
    assert parse_problem(Example("a", "g", (message,))) == problem


def test_ablations_leave_one_dimension_out():
    pool = plain_pool(20, 4)
    table = scored(pool, version="v3")
    b2, b3, c2, c3 = (table.columns[name] for name in (*table.config.efficiency, *table.config.style))
    e, s = (b2 + b3) / 2, (c2 + c3) / 2
    expected = {
        None: 0.5 * e + 0.5 * s,
        "efficiency": s,
        "style": e,
        "error_retry": 0.5 * b3 + 0.5 * s,
        "step_ratio": 0.5 * b2 + 0.5 * s,
        "action_diversity": 0.5 * e + 0.5 * c3,
        "observation_utilisation": 0.5 * e + 0.5 * c2,
    }
    for without, ranking in expected.items():
        np.testing.assert_allclose(table.ranking("composite", without), ranking, rtol=1e-12)
    np.testing.assert_allclose(table.ranking("efficiency", "error_retry"), b3)
    with pytest.raises(UserError, match="did you mean 'error_retry'"):
        table.ranking("composite", "error_retri")
    with pytest.raises(UserError, match="error_retry has no parts"):
        table.ranking("error_retry", "step_ratio")
    with pytest.raises(UserError, match="did you mean 'composite'"):
        table.ranking("composit")


def test_weights_and_inclusion():
    table = scored([GOLDEN], version="v3", efficiency=["error_retry"], efficiency_weight=3, style_weight=1)
    style = (ENTROPY + 0.5) / 2
    assert value(table, "composite") == pytest.approx((3 * 0.9 + style) / 4)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"style": ["error_retry"]}, "counts twice"),
        ({"style": ["action_diversty"]}, "did you mean 'action_diversity'"),
        ({"efficiency_weight": 0, "style_weight": 0}, "composite is empty"),
        ({"fallback": {"step_ratio": 2}}, "expected a number in"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_config_refuses(table, told):
    with pytest.raises(ValidationError, match=told):
        ScoreConfig.model_validate(table)


def test_facts_are_json_and_flag_what_does_not_tell_rows_apart():
    table = scored(plain_pool(60, 6), version="v3")
    facts = json.loads(json.dumps(table.facts(), allow_nan=False))
    assert facts["rows"] == 60
    assert {"dimension": "clean_observation", "flag": "low variance"}.items() <= next(
        flag for flag in facts["flags"] if flag["dimension"] == "clean_observation"
    ).items()
    assert facts["dimensions"]["clean_observation"]["flagged"]
    names, matrix = facts["correlation"]["names"], facts["correlation"]["matrix"]
    composite, clean = names.index("composite"), names.index("clean_observation")
    assert matrix[composite][composite] == pytest.approx(1.0)
    assert matrix[clean][composite] is None  # constant: undefined, not 0
    few = scored(plain_pool(4, 2)).facts()["correlation"]["matrix"]
    assert few[composite][composite] is None  # too few rows for a correlation


def test_correlations_use_the_rows_where_both_are_present():
    random = np.random.Generator(np.random.PCG64(0))
    x, y = random.normal(size=40), random.normal(size=40)
    y[:9], x[30:] = np.nan, np.nan
    facts = correlations({"x": x, "y": y})
    expected = pytest.approx(float(spearmanr(x[9:30], y[9:30]).statistic))
    assert facts == {"names": ["x", "y"], "matrix": [[pytest.approx(1.0), expected], [expected, pytest.approx(1.0)]]}


def test_quantiles_match_numpy():
    table = scored(plain_pool(50, 5))
    column = table.columns["composite"]
    facts = table.facts()["dimensions"]["composite"]
    assert facts["median"] == pytest.approx(np.nanmedian(column))
    assert facts["std"] == pytest.approx(np.nanstd(column, ddof=1))


def test_token_counts_must_fit():
    with pytest.raises(ValueError, match="1 token counts for 2 examples"):
        score([GOLDEN, GOLDEN], ScoreConfig(), [1], 10)


@LAW
@given(pool=pools(), version=st.sampled_from(["v3", "corrected"]), seed=st.integers(0, 999))
def test_scores_are_in_range_and_do_not_depend_on_the_order(pool, version, seed):
    table = scored(pool, version=version)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(pool))
    shuffled = scored([pool[place] for place in order], version=version)
    for name, column in table.columns.items():
        present = column[~np.isnan(column)]
        assert ((present >= 0) & (present <= 1)).all(), name
        np.testing.assert_array_equal(column[order], shuffled.columns[name])
    assert table.facts() == shuffled.facts()
    if version == "v3":
        assert not np.isnan(table.columns["composite"]).any()


def test_tau_bench(data_dir):
    from finetrial.data.read import read

    pool = read(str(data_dir / "tau_bench/historical_trajectories/gpt-4o-airline.json")).examples
    table = score(pool, ScoreConfig(), lengths(pool), 8192 * 4)
    facts = table.facts()
    assert facts["passed"] == 84
    assert facts["gate"] == {"not resolved": 116}
    assert facts["dimensions"]["observation_utilisation"]["share_missing"] == 1.0  # no files in an airline
    v3 = score(pool, ScoreConfig(version="v3"), lengths(pool), 8192 * 4).facts()
    assert v3["dimensions"]["observation_utilisation"]["share_default"] == 1.0  # v3 rewards the emptiness
    assert {flag["dimension"] for flag in v3["flags"]} >= {"error_retry", "observation_utilisation"}


@pytest.mark.slow
def test_two_thousand_trajectories_a_second(data_dir):
    from time import process_time

    from finetrial.data.read import read

    pool = read(str(data_dir / "tau_bench/historical_trajectories/gpt-4o-airline.json")).examples
    pool = [example for example in pool if sum(m["role"] == "assistant" for m in example.messages) >= 10]
    pool = [example for example in pool if example.content_hash] * 20
    tokens = lengths(pool)
    start = process_time()
    score(pool, ScoreConfig(), tokens, 8192)
    assert len(pool) / (process_time() - start) >= 2000
