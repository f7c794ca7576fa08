"""Campaign files: what is inherited, what is refused and how the refusal reads."""

import tomllib
from pathlib import Path

import pytest

from finetrial.campaign.spec import Spec, load_spec, resolve
from finetrial.errors import UserError
from finetrial.train.term_config import AnchorConfig, SetDiversityConfig

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))

MINIMAL = {"campaign": {"conditions": [{"name": "a"}, {"name": "b", "selection": {"strategy": "top", "n": 5}}]}}


def spec(**tables: object) -> Spec:
    return resolve({**MINIMAL, **tables}, "file.toml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_resolves(path: Path) -> None:
    loaded = load_spec(path)
    assert loaded.conditions
    assert loaded.contrasts


def test_what_is_left_out_has_a_default_that_runs() -> None:
    loaded = spec()
    assert loaded.model.base == "builtin"
    assert loaded.campaign.seeds == (42, 101, 202)
    assert loaded.data.source.startswith("world:shell")


def test_a_condition_inherits_and_overrides_single_fields() -> None:
    tables = {
        "training": {"learning_rate": 0.5, "batch_size": 3},
        "campaign": {"conditions": [{"name": "a"}, {"name": "b", "training": {"batch_size": 7}}]},
    }
    loaded = spec(**tables)
    assert loaded.condition("a").training.batch_size == 3
    assert loaded.condition("b").training.batch_size == 7
    assert loaded.condition("b").training.learning_rate == 0.5


def test_the_campaigns_max_steps_yield_to_a_condition_that_has_its_own_length() -> None:
    tables = {
        "campaign": {
            "max_steps": 100,
            "conditions": [{"name": "a"}, {"name": "b", "training": {"epochs": 1.0}}],
        },
    }
    loaded = spec(**tables)
    assert loaded.condition("a").training.steps(rows=800) == 100
    assert loaded.condition("b").training.steps(rows=800) == 100  # one epoch of 800 rows in batches of 8
    assert loaded.condition("b").training.steps(rows=80) == 10


def test_contrasts_are_named_and_checked() -> None:
    loaded = spec(contrasts=[{"candidate": "b", "baseline": "base", "suite": "gold", "minus_suite": "low_quality"}])
    assert loaded.contrasts[0].name == "b vs base on gold minus low_quality"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"modle": {}}, r"file.toml: unknown table 'modle' \(did you mean 'model'\?\)"),
        ({"model": {"lora_rnk": 1}}, r"\[model\] unknown key 'lora_rnk' \(did you mean 'lora_rank'\?\)"),
        ({"training": {"learning_rate": -1}}, r"\[training\] learning_rate: .*greater than 0; got -1"),
        ({"training": {"epochs": 1, "max_steps": 1}}, "give epochs or max_steps, not both"),
        (
            {"campaign": {"conditions": [{"name": "a", "selection": {"nn": 1}}]}},
            r"\[campaign.conditions\[0\] \(a\).selection\] unknown key 'nn' \(did you mean 'n'\?\)",
        ),
        ({"campaign": {"conditions": [{"name": "a", "colour": 1}]}}, "unknown key 'colour'"),
        ({"campaign": {"conditions": [{"name": "a", "model": {"base": "x"}}]}}, "the frozen base is common"),
        ({"campaign": {"conditions": [{"name": "base"}]}}, "reserved 'base'"),
        ({"campaign": {"conditions": [{"name": "a/b"}]}}, "expected letters, digits"),
        ({"campaign": {"conditions": [{}]}}, "has no name"),
        ({"campaign": {"conditions": []}}, "compares at least one condition"),
        ({"campaign": {"conditions": [{"name": "a"}, {"name": "a"}]}}, "two conditions are called 'a'"),
        ({"campaign": {"seeds": [1, 1], "conditions": [{"name": "a"}]}}, "seeds repeat"),
        (
            {"contrasts": [{"candidate": "aa", "baseline": "b", "suite": "gold"}]},
            r"candidate 'aa' is no condition \(did you mean 'a'\?\)|candidate 'aa' is no condition",
        ),
        ({"contrasts": [{"candidate": "a", "baseline": "a", "suite": "gold"}]}, "compared with itself"),
        ({"contrasts": [{"candidate": "a", "baseline": "b", "suite": "goldd"}]}, r"did you mean 'gold'\?"),
        ({"contrasts": [{"candidate": "a", "suite": "gold"}]}, "'baseline' is missing"),
        ({"contrasts": [{"candidate": "a", "baseline": "b", "suite": "gold"}] * 2}, "declared twice"),
        ({"split": {"test_sets": {"gold": {"kind": "gold", "nn": 1}}}}, r"\[split.test_sets.gold\] unknown key 'nn'"),
        ({"training": {"epochs": 1}, "campaign": {"max_steps": 3, "conditions": [{"name": "a"}]}}, "both say how long"),
        ({"training": {"learning_rate": float("inf")}}, "learning_rate: .*finite"),
        ({"training": {"batch_size": True}}, "expected a number, not a truth value"),
        ({"data": {"drop_system": "false"}}, "expected bool, not a text"),
        ({"model": {"targets": []}}, r"targets: .*at least 1 item"),
        ({"suites": [{"name": "gold", "source": "x"}]}, "two suites are called 'gold'"),
        ({"suites": [{"name": "a/b", "source": "x"}]}, "suite name 'a/b'"),
        ({"contrasts": [{"candidate": "a", "baseline": "b", "suite": "gold", "metric": "nl"}]}, "'nl' is not measured"),
        (
            {"contrasts": [{"candidate": "a", "baseline": "b", "suite": "gold", "minus_suite": "gold"}]},
            "minus itself is nothing",
        ),
    ],
)
def test_refusals_name_the_place_and_the_nearest_key(tables: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec(**tables)


SWEEP = """
[campaign]
seeds = [42, 101, 202]
max_steps = 100

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "gtpo_sepa"

[model]
lora_rank = 128

[squeeze]
min_variance_retention = 0.95

[logging]
wandb_project = "test-sweep"
"""


def practised(**tables: object) -> Spec:
    conditions = [{"advantage_mode": "grpo"}, {"advantage_mode": "maxrl", "transform_mode": "gtpo_sepa"}]
    return resolve({"campaign": {"conditions": conditions}, **tables}, "file.toml")


def test_a_sweep_of_credit_rules_needs_nothing_but_the_rules() -> None:
    loaded = resolve(tomllib.loads(SWEEP), "file.toml", "sweep")
    assert [condition.name for condition in loaded.conditions] == ["grpo+none", "maxrl+gtpo_sepa"]
    assert {condition.objective for condition in loaded.conditions} == {"rl"}
    assert {condition.training.steps(3000) for condition in loaded.conditions} == {100}
    assert loaded.tasks is not None
    assert loaded.tasks.source.startswith("world:arithmetic")
    assert loaded.split is None  # no pool is read
    assert loaded.campaign.primary_metric == "correct"
    assert [contrast.name for contrast in loaded.contrasts] == [
        "maxrl+gtpo_sepa vs grpo+none on held_out",
        "grpo+none vs base on held_out",
        "maxrl+gtpo_sepa vs base on held_out",
    ]
    assert "3 by default" in (loaded.by_default or "")
    assert loaded.squeeze is not None
    assert loaded.squeeze.min_variance_retention == 0.95
    assert loaded.logging.wandb_project == "test-sweep"


def test_supervised_campaigns_are_what_they_were() -> None:
    loaded = spec()
    assert {condition.objective for condition in loaded.conditions} == {"sft"}
    assert (loaded.tasks, loaded.contrasts, loaded.by_default) == (None, (), None)
    assert loaded.campaign.primary_metric == "nll"


@pytest.mark.parametrize(
    ("tables", "objectives"),
    [
        ({}, ["sft", "rl"]),
        ({"rl": {}}, ["rl", "rl"]),
        ({"tasks": {}}, ["rl", "rl"]),
        ({"tasks": {}, "data": {}}, ["sft", "rl"]),
        ({"training": {"objective": "rl"}}, ["rl", "rl"]),
    ],
)
def test_what_a_condition_trains_by(tables: dict, objectives: list[str]) -> None:
    conditions = [{"name": "a"}, {"name": "b", "rl": {"group_size": 4}}]
    loaded = resolve({"campaign": {"conditions": conditions}, **tables})
    assert [condition.objective for condition in loaded.conditions] == objectives
    assert (loaded.split is not None) == ("sft" in objectives or "data" in tables)
    assert loaded.tasks is not None


def test_a_condition_overrides_single_fields_of_nested_tables() -> None:
    loaded = practised(
        rl={"group_size": 4, "loss": {"kind": "gspo", "clip_high": 0.3}},
        tasks={"instruction": "Think.", "held_out": 50, "grader": {"kind": "numeric", "tolerance": 0.5}},
        campaign={
            "conditions": [
                {"name": "a"},
                {"name": "b", "rl": {"loss": {"clip_high": 0.4}}, "tasks": {"grader": {"tolerance": 0.1}}},
            ]
        },
    )
    a, b = loaded.conditions
    assert a.rl is not None
    assert b.rl is not None
    assert (a.rl.loss.kind, a.rl.loss.clip_high, a.rl.group_size) == ("gspo", 0.3, 4)
    assert (b.rl.loss.kind, b.rl.loss.clip_high, b.rl.group_size) == ("gspo", 0.4, 4)
    assert b.tasks is not None
    assert (b.tasks.instruction, b.tasks.grader.kind, b.tasks.grader.tolerance) == ("Think.", "numeric", 0.1)
    assert loaded.tasks is not None
    assert (loaded.tasks.held_out, loaded.tasks.pool.grader.tolerance) == (50, 0.5)


def test_metrics_belong_to_kinds_of_suites() -> None:
    tables = {
        "evaluation": {"samples": 8, "temperature": 1.0, "every": 10},
        "suites": [{"name": "prose", "source": "x.jsonl"}, {"name": "hard", "kind": "tasks", "source": "y.jsonl"}],
        "contrasts": [
            {"candidate": "maxrl+gtpo_sepa", "baseline": "base", "suite": "prose"},
            {"candidate": "maxrl+gtpo_sepa", "baseline": "base", "suite": "hard", "metric": "pass@4"},
            {"candidate": "maxrl+gtpo_sepa", "baseline": "grpo+none", "suite": "held_out@20"},
        ],
    }
    loaded = practised(**tables)
    assert [contrast.metric for contrast in loaded.contrasts] == ["nll", "pass@4", None]
    assert loaded.contrasts_declared


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"rl": {"group_sizes": 4}}, r"\[rl\] unknown key 'group_sizes' \(did you mean 'group_size'\?\)"),
        ({"campaign": {"conditions": [{"advantage_mode": "gpro"}]}}, r"rl\] advantage_mode: .*'grpo'.*got 'gpro'"),
        (
            {"campaign": {"conditions": [{"advantage_mode": "grpo", "rl": {"advantage_mode": "rloo"}}]}},
            "advantage_mode is written twice",
        ),
        (
            {"campaign": {"conditions": [{"advantage_mode": "grpo", "selection": {"n": 5}}]}},
            r"selection: of no effect.*objective is rl.*training.objective = 'sft'",
        ),
        (
            {"training": {"objective": "sft"}, "campaign": {"conditions": [{"name": "a", "transform_mode": "gtpo"}]}},
            r"transform_mode: of no effect.*objective is sft",
        ),
        ({"selection": {"n": 5}}, r"\[selection\] is of no effect"),
        ({"rl": {}, "training": {"objective": "sft"}, "campaign": MINIMAL["campaign"]}, r"\[rl\] is of no effect"),
        (
            {"campaign": {"conditions": [{"advantage_mode": "grpo", "tasks": {"held_out": 5}}]}},
            "held_out: the held-out tasks are common to all conditions",
        ),
        ({"campaign": {"conditions": [{"advantage_mode": "grpo"}, {"transform_mode": "none"}]}}, "called 'grpo.none'"),
        ({"suites": [{"name": "held_out", "source": "x"}]}, "two suites are called 'held_out'"),
        ({"suites": [{"name": "x", "source": "x", "instruction": "Think."}]}, "instruction: only for kind = 'tasks'"),
        ({"evaluation": {"samples": 4}}, "samples = 4 at temperature 0 are all the same"),
        (
            {"contrasts": [{"candidate": "grpo+none", "baseline": "base", "suite": "held_out", "metric": "nll"}]},
            "'nll' is not measured on suites of kind tasks",
        ),
        (
            {"contrasts": [{"candidate": "grpo+none", "baseline": "base", "suite": "held_out", "metric": "pass@4"}]},
            "'pass@4' needs 4 samples of every item; .*samples is 1",
        ),
        (
            {
                "evaluation": {"every": 10},
                "contrasts": [{"candidate": "grpo+none", "baseline": "base", "suite": "held_out@10"}],
            },
            "the base has no steps",
        ),
        ({"contrasts": [{"candidate": "grpo+none", "baseline": "base", "suite": "gold"}]}, "'gold' is not evaluated"),
        (
            {
                "suites": [{"name": "prose", "source": "x.jsonl"}],
                "contrasts": [
                    {"candidate": "grpo+none", "baseline": "base", "suite": "held_out", "minus_suite": "prose"}
                ],
            },
            "they share no metric",
        ),
        ({"squeeze": {"min_variance_retention": 1.5}}, r"\[squeeze\] min_variance_retention"),
    ],
)
def test_refusals_of_practice_name_the_place(tables: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        practised(**tables)


def test_overrides_address_conditions_by_name_or_index(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[[campaign.conditions]]\nname = "a"\n[[campaign.conditions]]\nname = "b"\n')
    loaded = load_spec(
        path,
        [
            "campaign.conditions.b.training.learning_rate=0.25",
            "campaign.conditions.0.selection.strategy=random",
            "campaign.conditions.0.selection.n=7",
            "data.source=some/where.jsonl",
            "campaign.seeds=[1, 2]",
        ],
    )
    assert loaded.condition("b").training.learning_rate == 0.25
    assert loaded.condition("a").selection.n == 7
    assert loaded.data.source == "some/where.jsonl"
    assert loaded.campaign.seeds == (1, 2)
    assert loaded.campaign.name == "c"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora_rank", "expected table.key=value"),
        ("campaign.conditions.z.selection.n=1", "nothing is called 'z'"),
        ("campaign.name.x=1", "is not a table"),
        ("model.lora_rank=many", "lora_rank: .*got 'many'"),
    ],
)
def test_bad_overrides_are_refused(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[campaign]\nname = "c"\n[[campaign.conditions]]\nname = "a"\n')
    with pytest.raises(UserError, match=message):
        load_spec(path, [override])


def test_an_absent_or_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "campaign.toml").write_text("[campaign\n")
    with pytest.raises(UserError, match=r"campain.toml: no such campaign file \(did you mean 'campaign.toml'\?\)"):
        load_spec(tmp_path / "campain.toml")
    with pytest.raises(UserError, match=r"not valid TOML: .*line 1"):
        load_spec(tmp_path / "campaign.toml")


def test_a_suite_has_settings_of_its_own_and_falls_back_on_the_common_ones() -> None:
    own = {"name": "own", "kind": "tasks", "source": "x", "samples": 4, "temperature": 1.0, "max_tokens": 9}
    plain = {"name": "plain", "kind": "tasks", "source": "y"}
    loaded = spec(evaluation={"max_tokens": 33, "seed": 7}, suites=[own, plain])
    first, second = (loaded.evaluation.of(suite) for suite in loaded.suites)
    assert (first.samples, first.temperature, first.max_tokens, first.seed) == (4, 1.0, 9, 7)
    assert (second.samples, second.temperature, second.max_tokens) == (1, 0.0, 33)
    with pytest.raises(UserError, match=r"\[\[suites\]\] 'own': samples = 4 at temperature 0 are all the same"):
        spec(suites=[{**own, "temperature": 0}])
    contrast = {"candidate": "a", "baseline": "b", "suite": "own", "metric": "pass@4"}
    assert spec(suites=[own], contrasts=[contrast]).contrasts[0].metric == "pass@4"
    with pytest.raises(UserError, match="needs 5 samples of every item; suite 'own': samples is 4"):
        spec(suites=[own], contrasts=[{**contrast, "metric": "pass@5"}])
    with pytest.raises(UserError, match="samples: only for kind = 'tasks'"):
        spec(suites=[{"name": "own", "source": "x", "samples": 2}])
    with pytest.raises(UserError, match="lead: only for kind = 'choice'"):
        spec(suites=[{**plain, "lead": "Answer:"}])
    with pytest.raises(UserError, match="samples: only for kind = 'tasks'"):
        spec(suites=[{**plain, "kind": "choice", "samples": 2}])


def test_an_empty_table_asks_for_the_thing_as_it_is_by_default() -> None:
    conditions = [{"name": "a"}, {"name": "b", "anchor": False}]
    held = spec(anchor={}, campaign={"conditions": conditions})
    assert held.condition("a").anchor == AnchorConfig()
    assert held.condition("b").anchor is None
    own = spec(campaign={"conditions": [{"name": "a", "set_diversity": {}}, {"name": "b"}]})
    assert own.condition("a").set_diversity == SetDiversityConfig()
    assert own.condition("b").set_diversity is None
    with pytest.raises(UserError, match=r"\[campaign.conditions\[0\] \(a\).stopping\] 'suite' is missing"):
        spec(campaign={"conditions": [{"name": "a", "stopping": {}}]})
    with pytest.raises(UserError, match=r"\(a\).set_diversity\] is of no effect: this condition's objective is rl"):
        spec(campaign={"conditions": [{"name": "a", "rl": {"group_size": 2}, "set_diversity": {}}]})


def test_dropout_is_refused_where_a_policy_is_trained_as_it_samples() -> None:
    conditions = [{"name": "a", "rl": {"group_size": 2}}, {"name": "b", "set_diversity": {}}]
    with pytest.raises(UserError, match=r"\(a\).model\] lora_dropout is 0.1, but completions are sampled without it"):
        spec(model={"lora_dropout": 0.1}, campaign={"conditions": conditions})
    mended = [{**conditions[0], "model": {"lora_dropout": 0}}, conditions[1]]
    loaded = spec(model={"lora_dropout": 0.1}, campaign={"conditions": mended})
    assert [one.model.lora_dropout for one in loaded.conditions] == [0, 0.1]


def test_what_is_wrong_with_a_mixture_is_said_once() -> None:
    part = {"name": "old", "source": "x", "ratio": 0.2}
    with pytest.raises(UserError, match="it has no parts") as none:
        spec(mixture={"parts": []})
    with pytest.raises(UserError, match="unknown key 'raito'") as typo:
        spec(mixture={"parts": [{**part, "raito": 0.1}]})
    assert [str(error.value).count("\n") for error in (none, typo)] == [0, 0]
