"""W&B runs, written offline by the real package and read back from its files."""

import builtins
import json
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetrial.campaign.folder import Folder
from finetrial.campaign.plan import Run
from finetrial.campaign.spec import Spec, resolve
from finetrial.campaign.tracking import Tail, tracking, wandb_name, wandb_row
from finetrial.data.select import Selection
from finetrial.identity import digest

wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
BLOCK = 32768


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without network or home; its service process ends with the test."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_CONFIG_DIR": str(tmp_path / "home"),
        "WANDB_CACHE_DIR": str(tmp_path / "home"),
        "WANDB_DATA_DIR": str(tmp_path / "home"),
    }.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "logs", "tiny")
    folder.path.mkdir(parents=True)
    return folder


def spec(project: str | None = "trial") -> Spec:
    conditions = [{"name": "a", "training": {"learning_rate": 1e-3}}, {"name": "b"}]
    return resolve({
        "campaign": {"name": "tiny", "question": "Is a better?", "max_steps": 4, "conditions": conditions},
        "logging": {"wandb_project": project} if project else {},
    })  # fmt: skip


def run_of(condition: str, seed: int, decision: Any = "NEW") -> Run:
    key = digest([condition, seed])
    return Run(condition, seed, 4, Selection((), (), (), (), (), {}), {}, {}, "base", key, key, decision)


class Training:
    """Writes a run's metrics as the training loop and the store do."""

    def __init__(self, folder: Folder, run: Run):
        self.folder, self.run = folder, run
        self.metrics = folder.checkpoint / run.name / "metrics.jsonl"
        self.metrics.parent.mkdir(parents=True, exist_ok=True)
        self.metrics.touch()
        folder.show_progress(run.name, self.metrics.parent)

    def step(self, step: int, **more: Any) -> None:
        row = {"step": step, "condition": self.run.condition, "seed": self.run.seed, "loss": 4.0 / step, **more}
        with self.metrics.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def end(self, status: str = "done") -> None:
        with self.folder.store.put("train", self.run.key, {"status": status}) as target:
            (target / "metrics.jsonl").write_bytes(self.metrics.read_bytes())
        self.metrics.unlink()


def files(folder: Folder) -> list[Path]:
    return sorted((folder.path / ".wandb").rglob("*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def records(file: Path) -> Iterator[Any]:
    """Records of a `.wandb` file: LevelDB's log format behind a header of 7 bytes, protobuf messages inside."""
    data, place, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        room = BLOCK - place % BLOCK
        if room < 7:
            place += room
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def sent(folder: Folder) -> dict[str, SimpleNamespace]:
    """W&B run name -> what its files hold, over all sessions, in the order they were written."""
    wandb.teardown()  # files are whole once the service has ended
    runs: dict[str, SimpleNamespace] = defaultdict(lambda: SimpleNamespace(rows=[], exits=[], ids=set()))
    for file in files(folder):
        rows, code, header = [], None, None
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                header = record.run
            elif kind == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            elif kind == "exit":
                code = record.exit.exit_code
        assert header is not None
        found = runs[header.display_name]
        found.rows += rows
        found.exits.append(code)
        found.ids.add(header.run_id)
        found.project, found.group, found.tags = header.project, header.run_group, list(header.tags)
        found.config = {item.key: json.loads(item.value_json) for item in header.config.update}
    return dict(runs)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("correct_rate", "train/rewards/correct_rate"),
        ("mean_reward", "train/rewards/mean_reward"),
        ("running_correct_rate", "train/rewards/running_correct_rate"),
        ("sepa_lambda", "train/sepa_lambda"),
        ("sepa_gate_open", "train/sepa_gate_open"),
        ("exec_entropy_var", "train/entropy/exec_var"),
        ("plan_entropy_mean", "train/entropy/plan_mean"),
        ("exec_surprisal_mean", "train/surprisal/exec_mean"),
        ("post_plan_surprisal_var", "train/surprisal/post_plan_var"),
        ("bp_p_star", "train/backpressure/p_star"),
        ("loss", "train/loss"),
        ("grad_norm", "train/grad_norm"),
        ("quality_loss", "train/quality_loss"),
        ("diversity_score", "train/diversity_score"),
        ("combined_loss", "train/combined_loss"),
        ("entropy_mask_fraction", "train/entropy_mask_fraction"),
        ("step", "step"),
    ],
)
def test_names(field, name):
    assert wandb_name(field) == name


def test_what_is_missing_is_not_sent():
    sample = {"step": 3, "condition": "a", "seed": 1, "loss": None, "sepa_gate_open": True, "bp_regime": "scaling"}
    assert wandb_row(sample) == {"step": 3, "train/sepa_gate_open": 1, "train/backpressure/regime": "scaling"}


def test_a_tail_sees_whole_lines_and_notices_a_cut(tmp_path):
    file, tail = tmp_path / "metrics.jsonl", Tail()
    assert tail.rows(file) == []
    file.write_text('{"step": 1}\n{"step": 2, "x": 1}\n{"ste')
    assert [row["step"] for row in tail.rows(file)] == [1, 2]
    with file.open("a") as stream:
        stream.write('p": 3}\n')
    assert [row["step"] for row in tail.rows(file)] == [3]
    assert tail.rows(file) == []
    file.write_text('{"step": 1}\n{"step": 2, "x": 22}\n{"step": 3, "y": 0}\n{"step": 4}\n')
    assert [row["step"] for row in tail.rows(file)] == [1, 2, 3, 4]
    file.write_text('{"step": 1}\n')
    assert [row["step"] for row in tail.rows(file)] == [1]


@pytest.mark.usefixtures("offline")
def test_runs_of_a_cohort_are_sent_while_they_are_trained(folder, monkeypatch, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    said: list[str] = []
    a, b, failed, stopped = run_of("a", 1), run_of("b", 1), run_of("a", 2), run_of("b", 2, "STOPPED")
    with tracking(spec(), folder, [a, b, failed, stopped], said.append, poll_s=0.01):
        cohort = [Training(folder, run) for run in (a, b)]
        for training in cohort:
            training.step(1, correct_rate=0.25, bp_regime="warmup", bp_p_star=None)
        until(lambda: len(files(folder)) == 2)  # both are open before they end
        for training in cohort:
            training.step(2, correct_rate=0.5)
            training.end()
        third = Training(folder, failed)
        third.step(1, quarantined="loss is nan")
        third.end("quarantined")
    found = sent(folder)
    assert set(found) == {"a_s1", "b_s1", "a_s2"}
    assert (found["a_s1"].project, found["a_s1"].group, found["a_s1"].tags) == ("trial", "a", ["a", "seed1"])
    assert [row["step"] for row in found["b_s1"].rows] == [1, 2]
    assert [row["_step"] for row in found["b_s1"].rows] == [1, 2]
    assert [row["train/rewards/correct_rate"] for row in found["a_s1"].rows] == [0.25, 0.5]
    assert found["a_s1"].rows[0]["train/backpressure/regime"] == "warmup"
    assert "train/backpressure/p_star" not in found["a_s1"].rows[0]
    config = found["a_s1"].config
    assert (config["condition"], config["seed"], config["training"]["learning_rate"]) == ("a", 1, 1e-3)
    assert config["spec"]["campaign"]["question"] == "Is a better?"
    assert {name: run.exits for name, run in found.items()} == {"a_s1": [0], "b_s1": [0], "a_s2": [1]}
    assert said == [f"W&B: project trial: offline, in {folder.path / '.wandb'}; upload with `wandb sync`"]
    assert not list(project.iterdir())


@pytest.mark.usefixtures("offline")
def test_a_launch_that_goes_on_continues_the_same_run(folder):
    said: list[str] = []
    a = run_of("a", 1)

    def first_launch() -> None:
        with tracking(spec(), folder, [a, run_of("b", 1)], said.append, poll_s=0.01):
            training = Training(folder, a)
            training.step(1)
            until(lambda: len(files(folder)) == 1)
            training.step(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_launch()
    assert sent(folder)["a_s1"].exits == [1]
    with tracking(spec(), folder, [a, run_of("b", 1)], said.append, poll_s=0.01):
        training = Training(folder, a)
        training.metrics.write_text(training.metrics.read_text().splitlines(keepends=True)[0])  # as at the checkpoint
        training.step(2)
        training.step(3)
        training.end()
    found = sent(folder)
    assert set(found) == {"a_s1"}  # nothing of b is there to send
    assert len(found["a_s1"].ids) == 1
    assert [row["step"] for row in found["a_s1"].rows] == [1, 2, 1, 2, 3]  # offline every session is whole
    assert found["a_s1"].exits == [1, 0]
    with tracking(spec(), folder, [run_of("a", 1, "REUSE")], said.append, poll_s=0.01):
        pass
    assert len(files(folder)) == 2  # what is finished is not sent again
    assert len(said) == 2


@pytest.mark.usefixtures("offline")
def test_what_another_recipe_left_behind_is_not_sent(folder):
    Training(folder, run_of("a", 1)).step(7)
    with tracking(spec(), folder, [run_of("a", 1)], print, poll_s=0.01):
        time.sleep(0.1)
    assert not files(folder)


@pytest.mark.usefixtures("offline")
def test_runs_trained_before_are_sent_from_their_files(folder):
    reused = run_of("b", 1, "REUSE")
    before = Training(folder, reused)
    before.step(1)
    before.step(2)
    before.end()
    with tracking(spec(), folder, [run_of("a", 1), reused], print):
        pass
    assert [row["train/loss"] for row in sent(folder)["b_s1"].rows] == [4.0, 2.0]


@pytest.mark.usefixtures("offline")
def test_what_wandb_has_is_not_sent_twice(folder, monkeypatch):
    """Online a resumed W&B run begins at the step after its last one."""
    logged = []
    resumed = SimpleNamespace(
        step=2, offline=False, disabled=False, project_url="https://example.org",
        log=lambda row, step, commit: logged.append(step), finish=lambda exit_code: logged.append("end"),
    )  # fmt: skip
    monkeypatch.setattr(wandb, "init", lambda **_: resumed)
    with tracking(spec(), folder, [run_of("a", 1)], print, poll_s=0.01):
        training = Training(folder, run_of("a", 1))
        for step in (1, 2, 3, 4):
            training.step(step)
        training.end()
    assert logged == [2, 3, 4, "end"]


def test_without_a_project_nothing_happens(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracking(spec(None), folder, [run_of("a", 1)], pytest.fail):
        pass


def test_without_the_package_it_is_said_and_the_campaign_goes_on(folder, monkeypatch):
    original = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    said: list[str] = []
    with tracking(spec(), folder, [run_of("a", 1)], said.append, poll_s=0.01):
        pass
    assert len(said) == 1
    assert "pip install 'finetrial[wandb]'" in said[0]


def launch(folder: Folder, said: list[str]) -> None:
    runs = [run_of("a", 1), run_of("b", 1)]
    with tracking(spec(), folder, runs, said.append, poll_s=0.01):
        for run in runs:
            training = Training(folder, run)
            training.step(1)
            training.end()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WANDB_MODE": "online"}, "No API key configured"),
        ({"WANDB_MODE": "sometimes"}, "mode"),
    ],
)
def test_without_login_or_with_nonsense_it_is_said_once(folder, monkeypatch, environment, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(folder.path / "no-netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said: list[str] = []
    launch(folder, said)
    assert len(said) == 1
    assert told in said[0]
    assert "the campaign goes on" in said[0]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("error", [ConnectionError("no route"), wandb.errors.CommError("no route")])
def test_without_network_it_is_said_once(folder, monkeypatch, error):
    def unreachable(**_: Any) -> None:
        raise error

    monkeypatch.setattr(wandb, "init", unreachable)
    said: list[str] = []
    launch(folder, said)
    assert said == ["W&B: no route; the campaign goes on without it, and metrics.jsonl has every row"]


@pytest.mark.usefixtures("offline")
def test_a_defect_is_not_swallowed(folder, monkeypatch):
    def broken(**_: Any) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(wandb, "init", broken)
    with pytest.raises(KeyError, match="a defect"):
        launch(folder, [])
