"""Campaign files: what is inherited, what is refused and how the refusal reads."""

from pathlib import Path

import pytest

from finetrial.campaign.spec import Spec, load_spec, resolve
from finetrial.errors import UserError

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
        ({"campaign": {"conditions": [{"advantage_mode": "grpo"}]}}, "reinforcement learning"),
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
        ({"squeeze": {"min_variance_retention": 0.9}}, "not available in this version"),
        ({"logging": {"wandb_project": "x"}}, "not available in this version"),
    ],
)
def test_refusals_name_the_place_and_the_nearest_key(tables: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec(**tables)


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
