"""Suites of every kind end to end in a tiny campaign: conversations, reward models, instructions, code, judges."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.folder import Folder
from finetrial.campaign.measures import completions, rewards
from finetrial.campaign.preflight import preflight
from finetrial.campaign.spec import load_spec
from finetrial.errors import UserError
from finetrial.model.config import ModelConfig
from finetrial.model.source import locate
from judge_server import KEY, part, serving

CAMPAIGN = """
[campaign]
name = "kinds"
seeds = [1]
max_steps = 3

[model]
base = "{base}"
lora_rank = 2
max_length = 512

[data]
source = "world:shell?count=60&seed=5"

[training]
learning_rate = 5e-2
batch_size = 2

[split]
test_sets.random = {{ kind = "random", n = 3 }}

[evaluation]
max_tokens = 6
every = 2

[[campaign.conditions]]
name = "new"
selection = {{ strategy = "random", n = 12 }}
"""

DIALOGUES = [
    {"question_id": 81, "category": "writing", "turns": ["Write about the sea.", "Now shorter."]},
    {"question_id": 8, "category": "math", "turns": ["What is 2 + 2?", "And plus 3?"], "reference": ["4", "7"]},
    {"question_id": 9, "category": "math", "turns": ["What is 5 + 1?", "Why?"], "reference": ["6", ""]},
]


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES))
    return path


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sequence classifier of one output with the built-in tokenizer."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = AutoTokenizer.from_pretrained(locate(ModelConfig()))
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=256, initializer_range=0.3, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForSequenceClassification(config)
        torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def written(tmp_path: Path, base: Path, *suites: str) -> Path:
    path = tmp_path / "kinds.toml"
    path.write_text(CAMPAIGN.format(base=base) + "".join(f"\n[[suites]]\n{suite}\n" for suite in suites))
    return path


def launch(path: Path, logs: Path, *overrides: str, said: list[str] | None = None) -> Folder:
    lines = said if said is not None else []
    return run(load_spec(path, overrides), RunOptions(logs=logs), lines.append)


def rows(folder: Folder, suite: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(folder.path / "outcomes.parquet").to_pylist() if row["suite"] == suite]


def facts(folder: Folder, suite: str) -> dict[str, Any]:
    found = folder.manifest()
    assert found is not None
    return found["suites"][suite]


def texts(folder: Folder, suite: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(folder.path / "completions.parquet").to_pylist() if row["suite"] == suite]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing was left to do")


def talk(source: Path, grader: str, **more: Any) -> str:
    extra = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'name = "talk"\nkind = "conversation"\nsource = "{source}"\ngrader = {grader}\n{extra}'


def test_turns_of_conversations_are_graded_where_they_have_a_reference(
    tmp_path: Path, tiny_base: Path, spoken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, tiny_base, talk(spoken, '{ kind = "numeric" }'))
    folder = launch(path, tmp_path / "logs")
    found = rows(folder, "talk")
    assert Counter(row["metric"] for row in found if row["condition"] == "base") == {
        "completion_tokens": 6,
        "correct": 3,
    }
    assert {row["item"] for row in found if row["metric"] == "correct"} == {"8/1", "8/2", "9/1"}
    assert {row["group"] for row in found if row["item"].startswith("8/")} == {"8"}
    told = facts(folder, "talk")
    assert told["kind"] == "conversation"
    assert (told["items"], told["dialogues"]) == (6, 3)
    assert "3 conversations" in told["description"]
    assert "6 turns, 3 of them graded by numeric" in told["description"]
    assert told["metrics"] == ["correct", "completion_tokens"]
    assert "What is 2 + 2?" in told["prompt"]
    items = [row for row in pq.read_table(folder.path / "items.parquet").to_pylist() if row["suite"] == "talk"]
    assert {row["item"]: (row["category"], row["prompt"]) for row in items}["81/2"] == ("writing", "Now shorter.")
    assert {row["suite"] for row in pq.read_table(folder.path / "outcomes.parquet").to_pylist()} >= {"talk@2"}
    (ungraded,) = [r for r in texts(folder, "talk") if r["item"] == "81/1" and r["condition"] == "base"]
    assert (ungraded["grade"], ungraded["reason"]) == (None, "the turn has no reference")

    for name in ("write", "converse"):
        monkeypatch.setattr(completions, name, refuse)
    before = (folder.path / "outcomes.parquet").read_bytes()
    assert (launch(path, tmp_path / "logs").path / "outcomes.parquet").read_bytes() == before
    said: list[str] = []
    other = launch(path, tmp_path / "logs", 'suites.0.grader={kind = "exact"}', said=said)
    assert sum("its completions are stored; they are graded without writing anew" in line for line in said) == 3
    assert facts(other, "talk")["hash"] != told["hash"]


def by_last_word(prompt: str, _: int) -> str:
    """10 for the reference, 1 for what is something else, and 4 where there is none."""
    reference = part(prompt, "reference_answer")
    right = part(prompt, "answer").split()[-1:] == [reference]
    return json.dumps({"reason": "a rule", "score": 10 if right else 1 if reference else 4})


def judged(url: str, **more: Any) -> str:
    extra = "".join(f", {key} = {value}" for key, value in more.items())
    return f'{{ kind = "judge", judge = {{ model = "judge", base_url = "{url}", retries = 0{extra} }} }}'


def test_a_judge_reads_the_whole_conversation_and_is_asked_nothing_twice(
    tmp_path: Path, tiny_base: Path, spoken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(by_last_word) as server:
        path = written(tmp_path, tiny_base, talk(spoken, judged(server.url), system='"Be brief."'))

        def asked_of(text: str) -> list[str]:
            prompts = [request["messages"][-1]["content"] for request in server.asked]
            return [prompt for prompt in prompts if text in prompt]

        server.fault = lambda number: ("status", 500) if "Now shorter." in str(server.asked[number]) else None
        with pytest.raises(UserError, match="of 6 completions of base are not judged yet"):
            launch(path, tmp_path / "logs", "evaluation.every=0")
        answered_before = set(server.answered)
        assert any("Write about the sea." in prompt for prompt in answered_before)
        server.fault = lambda _: None
        monkeypatch.setattr(completions, "converse", refuse)
        server.asked.clear()
        folder = launch(path, tmp_path / "logs", "evaluation.every=0")
        asked = asked_of("Write about the sea.")
        assert not answered_before & {*asked}
        assert len(asked) == len({*asked})
        second = asked_of("Now shorter.")
        server.asked.clear()
        launch(path, tmp_path / "logs", "evaluation.every=0")
        assert not asked_of("Write about the sea.")
    found = [row for row in rows(folder, "talk") if row["metric"] == "score"]
    assert len(found) == 2 * 6
    assert {row["value"] for row in found if row["item"].startswith("81")} == {4.0}
    assert {row["value"] for row in found} <= {1.0, 4.0, 10.0}
    assert facts(folder, "talk")["metrics"] == ["score", "completion_tokens"]
    answered = {r["item"]: r["text"] for r in texts(folder, "talk") if r["condition"] == "base"}
    whole = f"SYSTEM:\nBe brief.\n\nUSER:\nWrite about the sea.\n\nASSISTANT:\n{answered['81/1'].strip()}"
    assert any(whole in prompt and "USER:\nNow shorter." in prompt for prompt in second)


SUMS = 'name = "sums"\nkind = "tasks"\nsource = "world:arithmetic?count=5&seed=9"\ngrader = {}\n'


def test_a_reward_model_grades_tasks_and_conversations(
    tmp_path: Path, tiny_base: Path, spoken: Path, reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = f'kind = "reward_model", model = "{reward_folder}", gold_above_empty = 0'
    scaled = f"{{ {model}, map = [[-8.0, 1.0], [8.0, 9.0]] }}"
    path = written(tmp_path, tiny_base, talk(spoken, f"{{ {model} }}"), SUMS.format(scaled))
    said: list[str] = []
    folder = launch(path, tmp_path / "logs", "evaluation.every=0", said=said)
    proven = [line for line in said if "of 5 gold answers are rewarded above an empty one" in line]
    assert all(line.startswith("[sums]") for line in proven)
    assert proven
    sums = {(r["condition"], r["item"], r["metric"]): r["value"] for r in rows(folder, "sums")}
    assert {metric for *_, metric in sums} == {"reward", "score", "completion_tokens"}
    for (condition, item, metric), value in sums.items():
        if metric == "reward":
            expected = min(max((value + 8) / 2 + 1, 1.0), 9.0)
            assert sums[condition, item, "score"] == pytest.approx(expected)
    assert len({value for (*_, metric), value in sums.items() if metric == "reward"}) > 2
    assert facts(folder, "sums")["metrics"] == ["reward", "score", "completion_tokens"]
    talked = [row for row in rows(folder, "talk") if row["metric"] == "reward"]
    assert len(talked) == 2 * 6
    assert all(row["value"] is not None for row in talked)

    monkeypatch.setattr(rewards, "rewards", refuse)
    monkeypatch.setattr(completions, "write", refuse)
    before = (folder.path / "outcomes.parquet").read_bytes()
    assert (launch(path, tmp_path / "logs", "evaluation.every=0").path / "outcomes.parquet").read_bytes() == before
    earlier = facts(folder, "sums")["hash"]
    other = launch(path, tmp_path / "logs", "evaluation.every=0", "suites.1.grader.map=[[0, 0], [1, 1]]")
    assert facts(other, "sums")["hash"] != earlier
    assert max(row["value"] for row in rows(other, "sums") if row["metric"] == "score") <= 1


def test_a_reward_model_that_does_not_know_right_answers_is_refused(
    tmp_path: Path, tiny_base: Path, reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grader = f'{{ kind = "reward_model", model = "{reward_folder}" }}'
    path = written(tmp_path, tiny_base, SUMS.format(grader))
    monkeypatch.setattr(rewards, "rewards", lambda model, tasks, texts, room: [float(not text) for text in texts])
    message = "suite 'sums': reward model .*: 0 of 5 gold answers are rewarded above an empty one, at least 90% wanted"
    with pytest.raises(UserError, match=message):
        preflight(load_spec(path), tmp_path / "logs", lambda _: None)
    with pytest.raises(UserError, match=message):
        launch(path, tmp_path / "logs")
    monkeypatch.setattr(rewards, "rewards", lambda model, tasks, texts, room: [float(bool(text)) for text in texts])
    checks = {check.check: check for check in preflight(load_spec(path), tmp_path / "logs", lambda _: None)}
    assert "5 of 5 gold answers are rewarded above an empty one" in checks["suite sums can be asked"].detail
    missing = written(tmp_path, tiny_base, SUMS.format('{ kind = "reward_model", model = "./nowhere/at/all" }'))
    with pytest.raises(UserError, match=r"reward model './nowhere/at/all'"):
        launch(missing, tmp_path / "logs")


def test_what_a_conversation_has_no_room_for_is_missing(tmp_path: Path, tiny_base: Path) -> None:
    source = tmp_path / "long.jsonl"
    turns = ["Say yes.", "sea " * 2000, "And now?"]
    source.write_text(json.dumps({"question_id": "x", "turns": turns, "reference": ["yes", "yes", "yes"]}) + "\n")
    path = written(tmp_path, tiny_base, talk(source, '{ kind = "exact" }'))
    folder = launch(path, tmp_path / "logs", "evaluation.every=0")
    values = {(r["item"], r["metric"]): r["value"] for r in rows(folder, "talk") if r["condition"] == "new"}
    assert {key: value is None for key, value in values.items()} == {
        (f"x/{turn}", metric): turn > 1 for turn in (1, 2, 3) for metric in ("correct", "completion_tokens")
    }
    reasons = {row["item"]: row["reason"] for row in texts(folder, "talk")}
    assert reasons["x/2"] == reasons["x/3"] == completions.NO_ROOM


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ('kind = "conversation"\nsource = "q.jsonl"', "of kind conversation needs 'grader', which is missing"),
        (
            'kind = "conversation"\nsource = "q.jsonl"\ngrader = { kind = "code" }',
            "'code' does not grade conversations",
        ),
        ('kind = "conversation"\nsource = "q"\ninstruction = "x"', "instruction: only for kind = 'tasks' or 'choice'"),
        ('kind = "lm_eval"\nsource = "arc_easy"', "source: only for kind ="),
        ('kind = "lm_eval"', "needs 'task', which is missing"),
        ('kind = "tasks"', "needs 'source', which is missing"),
        ('kind = "tasks"\nsource = "x"\nnum_fewshot = 3', "num_fewshot: only for kind = 'lm_eval'"),
        ('kind = "tasks"\nsource = "x"\ntemperatures = "mt_bench"', "temperatures: only for kind = 'conversation'"),
        ('kind = "talks"\nsource = "x"', "Input should be 'perplexity', 'tasks'"),
        ('kind = "tasks"\nsource = "x"\ngrader = { kind = "reward_model" }', r"\[suites.0.grader\] 'model' is missing"),
        (
            'kind = "tasks"\nsource = "x"\ngrader = { kind = "reward_model", model = "m", mapp = [[0, 1]] }',
            r"\[suites.0.grader\] unknown key 'mapp' \(did you mean 'map'\?\)",
        ),
        (
            'kind = "tasks"\nsource = "x"\ngrader = { kind = "reward_model", model = "m", map = [[0, 5], [1, 1]] }',
            "the map to a scale is not monotone",
        ),
        (
            'kind = "tasks"\nsource = "x"\ngrader = { kind = "reward_model", model = "m", map = [[1, 5], [0, 1]] }',
            "two or more .* with rising rewards",
        ),
        ('kind = "tasks"\nsource = "x"\ngrader = { kin = "exact" }', r"unknown key 'kin' \(did you mean 'kind'\?\)"),
    ],
)
def test_what_a_kind_does_not_know_or_lacks_is_refused(tmp_path: Path, suite: str, message: str) -> None:
    path = written(tmp_path, Path("builtin"), f'name = "s"\n{suite}\n')
    with pytest.raises(UserError, match=message):
        load_spec(path)


def contrast(suite: str, metric: str = "") -> str:
    named = f'metric = "{metric}"\n' if metric else ""
    return f'\n[[contrasts]]\ncandidate = "new"\nbaseline = "base"\nsuite = "{suite}"\n{named}'


def test_contrasts_know_what_a_grader_gives(tmp_path: Path) -> None:
    judge = '{ kind = "judge", judge = { model = "j" } }'
    reward = '{ kind = "reward_model", model = "m" }'
    for grader, metric in ((judge, "score"), (reward, "reward"), ('{ kind = "exact" }', "correct")):
        path = written(tmp_path, Path("builtin"), talk(Path("q.jsonl"), grader))
        path.write_text(path.read_text() + contrast("talk", metric))
        assert load_spec(path).contrasts[0].metric == metric
        wrong = "correct" if metric != "correct" else "score"
        path.write_text(path.read_text() + contrast("talk", wrong))
        with pytest.raises(UserError, match=f"metric '{wrong}' is not measured on suites of kind conversation"):
            load_spec(path)
    path = written(tmp_path, Path("builtin"), SUMS.format(reward))
    path.write_text(path.read_text() + contrast("sums", "pass@1"))
    with pytest.raises(UserError, match=r"metric 'pass@1' is not measured on suites of kind tasks.*there are reward"):
        load_spec(path)
    path = written(tmp_path, Path("builtin"), talk(Path("q.jsonl"), judge))
    path.write_text(path.read_text() + '\n[stopping]\nsuite = "talk"\npatience = 2\n')
    with pytest.raises(UserError, match="suite 'talk' of kind conversation cannot be watched"):
        load_spec(path)


def test_conversations_without_any_reference_need_a_judge_that_may_be_unproven(tmp_path: Path, tiny_base: Path) -> None:
    source = tmp_path / "bare.jsonl"
    source.write_text(json.dumps({"question_id": 1, "turns": ["Write."]}) + "\n")
    judge = '{{ kind = "judge", judge = {{ model = "j", self_test = {{ allow_failure = {} }} }} }}'
    options = RunOptions(logs=tmp_path / "logs")
    for grader in (judge.format("false"), '{ kind = "exact" }', '{ kind = "function", function = "x.py:f" }'):
        path = written(tmp_path, tiny_base, talk(source, grader))
        with pytest.raises(UserError, match="suite talk: no turn has a reference, so a grader of kind"):
            make_plan(load_spec(path), options, lambda _: None)
    path = written(tmp_path, tiny_base, talk(source, judge.format("true"), temperatures='"mt_bench"'))
    _, decided, _ = make_plan(load_spec(path), options, lambda _: None)
    (suite,) = [one for one in decided.suites if one.name == "talk"]
    assert suite.items == ("1/1",)
    again = written(tmp_path, tiny_base, talk(source, judge.format("true")))
    _, decided, _ = make_plan(load_spec(again), options, lambda _: None)
    assert suite.hash not in {one.hash for one in decided.suites}
