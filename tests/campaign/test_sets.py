"""Set diversity in a campaign: what enters keys, what a run's record tells, and that plain runs stay what they are."""

import json
from pathlib import Path

import pytest

from finetrial.campaign.describe import cost
from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.plan import Run
from finetrial.campaign.spec import load_spec
from finetrial.campaign.stages import last_turn
from finetrial.errors import UserError
from finetrial.records import Example
from finetrial.report.build import build

CAMPAIGN = """
[campaign]
name = "varied"
seeds = [1, 2]
max_steps = 2
primary_metric = "nll"

[model]
base = "{base}"
lora_rank = 2
max_length = 256

[data]
source = "world:replies?count=60&seed=5"

[training]
batch_size = 2

[split]
test_sets.random = {{ kind = "random", n = 3 }}

[set_diversity]
order = 1
n_generations = 3
max_examples = 2
quality = "{quality}"
sampling = {{ max_tokens = 6 }}

[[campaign.conditions]]
name = "plain"
set_diversity = false
selection = {{ strategy = "random", n = 6 }}

[[campaign.conditions]]
name = "varied"
selection = {{ strategy = "random", n = 6 }}
"""


@pytest.fixture
def varied(tiny_base: Path, tmp_path: Path) -> Path:
    """A campaign of one plain condition and one with the term, whose quality is a user's function."""
    (tmp_path / "mine.py").write_text("def quality(text, meta):\n    return len(text) / (1 + len(text))\n")
    path = tmp_path / "varied.toml"
    path.write_text(CAMPAIGN.format(base=tiny_base, quality=tmp_path / "mine.py:quality"))
    return path


def planned(path: Path, logs: Path, *overrides: str) -> dict[str, Run]:
    _, decided, _ = make_plan(load_spec(path, overrides), RunOptions(logs=logs), lambda _: None)
    return {one.name: one for one in decided.runs}


def test_runs_draw_sets_and_their_records_tell_of_them(varied: Path, tmp_path: Path) -> None:
    folder = run(load_spec(varied), RunOptions(logs=tmp_path / "logs"), [].append)
    place = folder.path / "runs" / "varied_s1"
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [row["sets"] for row in rows] == [2, 2]
    assert all(row["combined_loss"] < row["quality_loss"] for row in rows)
    drawn = [json.loads(line) for line in (place / "emergence" / "generations.jsonl").read_text().splitlines()]
    assert len(drawn) == 2 * 2 * 3
    facts = json.loads((place / "record.json").read_text())["realised"]["set_diversity"]
    assert facts["prompts"] == 6
    assert facts["sets"] == 4
    assert facts["sampled_tokens"] == sum(line["num_tokens"] for line in drawn)
    assert facts["warnings"] == []
    plain = folder.path / "runs" / "plain_s1"
    assert not (plain / "emergence").exists()
    assert "set_diversity" not in json.loads((plain / "record.json").read_text())["realised"]
    assert build(folder.path).html.is_file()


def test_a_users_function_enters_the_key_by_its_content(varied: Path, tmp_path: Path) -> None:
    before = planned(varied, tmp_path / "logs")
    (tmp_path / "mine.py").write_text("def quality(text, meta):\n    return 1.0\n")
    after = planned(varied, tmp_path / "logs")
    assert after["varied_s1"].key != before["varied_s1"].key
    assert after["plain_s1"].key == before["plain_s1"].key
    more = planned(varied, tmp_path / "logs", "set_diversity.n_generations=4")
    assert more["varied_s1"].key != after["varied_s1"].key


def test_a_sentence_encoder_enters_the_key_by_its_content(varied: Path, tmp_path: Path) -> None:
    """A copy in another folder is the same encoder; another file in the same folder is another one."""

    def key(folder: Path) -> str:
        table = {"score": "semantic", "embedding": "sentence-transformers", "embedding_model": folder}
        overrides = [f"set_diversity.{field}={value}" for field, value in table.items()]
        return planned(varied, tmp_path / "logs", *overrides)["varied_s1"].key

    one, copy = tmp_path / "one", tmp_path / "copy"
    for folder in (one, copy):
        (folder / "1_Pooling").mkdir(parents=True)
        (folder / "1_Pooling" / "config.json").write_text("{}")
    before = key(one)
    assert key(copy) == before
    (one / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert key(one) != before
    with pytest.raises(UserError, match=r"embedding_model: '.*/ones' is no folder.*one"):
        key(tmp_path / "ones")


def test_prompts_that_leave_no_room_are_refused(varied: Path, tmp_path: Path) -> None:
    spec = load_spec(varied, ["set_diversity.sampling.max_tokens=250"])
    with pytest.raises(UserError, match="none of the 6 prompts of its rows leaves room"):
        run(spec, RunOptions(logs=tmp_path / "logs"), [].append)


def test_a_prompt_is_what_comes_before_the_last_reply() -> None:
    turns = ("user", "assistant", "user", "assistant", "user")
    messages = tuple({"role": role, "content": f"{n}"} for n, role in enumerate(turns))
    task = last_turn(Example("a", "g", messages, meta={"kind": "x"}))
    assert [message["content"] for message in task.messages] == ["0", "1", "2"]
    assert (task.reference, task.meta) == ("3", {"kind": "x"})


def test_a_plan_counts_what_sets_draw(varied: Path, tmp_path: Path) -> None:
    def told(*overrides: str) -> dict:
        options, spec = RunOptions(logs=tmp_path / "logs"), load_spec(varied, overrides)
        prepared, decided, _ = make_plan(spec, options, lambda _: None)
        return cost(spec, prepared, decided, options)

    drawn = told()["tokens"] - told("set_diversity.every_n_steps=2")["tokens"]
    assert drawn == 2 * (1 * 2 * 3 * 6)  # seeds × (samplings spared × prompts × completions × longest)
    assert "at most" in told()["sentences"][0]
