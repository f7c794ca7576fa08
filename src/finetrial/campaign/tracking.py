"""A campaign's runs in Weights & Biases: `[logging] wandb_project` (the extra `wandb`; no torch here).

Every run becomes one W&B run: group = condition, tags = condition and seed, config = the resolved spec with
`condition` and `seed`. Its rows are read from `metrics.jsonl` while the file grows, by a thread of their own, so
training neither knows of W&B nor waits for it, and `metrics.jsonl` stays the source of truth. The id of a W&B run
derives from the run's key: a launch that goes on after a crash continues the same W&B run, and a run that was trained
before tracking was switched on is sent from its file.

A missing package, login or network is told once and ends the tracking, not the campaign. With WANDB_MODE=offline
everything lies in `<campaign>/.wandb`, ready for `wandb sync`.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetrial.campaign.folder import Folder, Say
from finetrial.campaign.plan import Run
from finetrial.campaign.spec import Spec
from finetrial.identity import digest
from finetrial.store import read_json, write_json

POLL_S = 2.0
"""How often the metrics are looked at."""

INIT_TIMEOUT_S = 30.0
"""How long W&B may take to answer before tracking is given up."""

FINISH_TIMEOUT_S = 60.0
"""How long the end of a run may wait for its upload; what is left then lies on disk for `wandb sync`."""

LONGEST_TAG = 64
"""W&B refuses longer ones."""

REWARDS = ("correct_rate", "mean_reward", "running_correct_rate")
UNCERTAINTY = re.compile(r"(post_)?(exec|plan)_(entropy|surprisal)_(mean|var)")
IN_CONFIG = ("condition", "seed")


def wandb_name(field: str) -> str:
    """The W&B name of a field of `metrics.jsonl`."""
    if field == "step":
        return field
    if field in REWARDS:
        return f"train/rewards/{field}"
    if found := UNCERTAINTY.fullmatch(field):
        stage, part, kind, moment = found.groups()
        return f"train/{kind}/{stage or ''}{part}_{moment}"
    if field.startswith("bp_"):
        return f"train/backpressure/{field.removeprefix('bp_')}"
    return f"train/{field}"


def wandb_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `metrics.jsonl` under W&B's names; what is missing is left out, truth values are charted as 0 and 1."""
    return {
        wandb_name(field): int(value) if isinstance(value, bool) else value
        for field, value in row.items()
        if value is not None and field not in IN_CONFIG
    }


def wandb_config(spec: Spec, run: Run) -> dict[str, Any]:
    """What W&B groups and filters by: the run's own recipe, and the whole resolved spec below `spec`."""
    recipe = spec.condition(run.condition).model_dump(mode="json", exclude={"name"})
    credit = recipe.get("rl") or {}
    modes = {mode: credit[mode] for mode in ("advantage_mode", "transform_mode") if mode in credit}
    facts = {"campaign": spec.campaign.name, "condition": run.condition, "seed": run.seed, "key": run.key}
    return {**recipe, **modes, **facts, "spec": spec.model_dump(mode="json")}


@contextlib.contextmanager
def tracking(spec: Spec, folder: Folder, runs: Sequence[Run], say: Say, poll_s: float = POLL_S) -> Iterator[None]:
    """Send the metrics of `runs` to W&B as they are written inside the block; nothing without `wandb_project`.

    When the block ends, all of `runs` that are whole have been sent; when it raises, those that were under way get
    what they have.

    Raises:
        Exception: a defect of finetrial in the tracking itself, at the end of the block. Errors of W&B, of the
            network and of the disk are told through `say` instead, once.
    """
    project = spec.logging.wandb_project
    wandb = _package() if project else None
    if project is None or wandb is None:
        if project is not None:
            say("W&B is not installed (pip install 'finetrial[wandb]'); the campaign goes on without it")
        yield
        return
    tracker = Tracker(wandb, project, spec, folder, runs, say)
    with ThreadPoolExecutor(1, "wandb") as pool:
        following = pool.submit(tracker.follow, poll_s)
        try:
            yield
        except BaseException:
            tracker.interrupted = True
            raise
        finally:
            tracker.ended.set()
    following.result()


def _package() -> Any:
    """The module wandb, or None where it is not installed."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        return None
    return wandb if hasattr(wandb, "init") else None  # a folder of that name beside the campaign looks like a package


def _from_outside(error: Exception) -> bool:
    """Whether W&B, the network or the disk failed, rather than finetrial.

    wandb has no common base class for what it raises when its service process dies. A validation error is a variable
    WANDB_... of the environment that it does not understand.
    """
    return isinstance(error, OSError | ValidationError) or type(error).__module__.partition(".")[0] == "wandb"


@dataclass
class Tail:
    """What a file gained since the last look; it may meanwhile have been cut and written on from an earlier place."""

    place: int = 0
    last: bytes = b""

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """New whole lines, parsed; all lines again when what was read before is no longer there."""
        try:
            with path.open("rb") as stream:
                stream.seek(self.place - len(self.last))
                if stream.read(len(self.last)) != self.last:
                    self.place, self.last = 0, b""
                    stream.seek(0)
                whole = [line for line in stream if line.endswith(b"\n")]
        except FileNotFoundError:  # not begun, or just moved into the store
            return []
        self.place += sum(map(len, whole))
        self.last = whole[-1] if whole else self.last
        return [json.loads(line) for line in whole]


class Tracker:
    """The W&B runs of one launch. All calls into W&B are made by the one thread that runs `follow`."""

    def __init__(self, wandb: Any, project: str, spec: Spec, folder: Folder, runs: Sequence[Run], say: Say):
        self.wandb = wandb
        self.project = project
        self.spec = spec
        self.folder = folder
        self.say = say
        self.home = folder.path / ".wandb"
        self.marks = self.home / "finished.json"
        self.finished: set[str] = set(read_json(self.marks)) if self.marks.is_file() else set()
        self.runs = {
            run.name: run
            for run in runs
            if run.decision != "STOPPED" and not (run.decision == "REUSE" and self.id(run) in self.finished)
        }
        self.open: dict[str, Any] = {}
        self.next_step: dict[str, int] = {}
        self.tails = {name: Tail() for name in self.runs}
        self.left_behind = {name: self._linked(name) for name in self.runs}
        self.ended = threading.Event()
        self.interrupted = False

    def id(self, run: Run) -> str:
        """Id of the W&B run: the same for the same result under the same name in the same campaign."""
        return digest([self.spec.campaign.name, run.name, run.key])[:16]

    def follow(self, poll_s: float) -> None:
        """Look at the metrics every `poll_s` seconds until the launch ends, and once more then."""
        try:
            while not self.ended.wait(poll_s):
                self._catch_up(list(self.runs))
            self._catch_up(list(self.open) if self.interrupted else list(self.runs))
            for run in self.open.values():
                run.finish(exit_code=1)
        except Exception as error:
            if not _from_outside(error):
                raise
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            self.say(f"W&B: {reason}; the campaign goes on without it, and metrics.jsonl has every row")

    def _catch_up(self, names: Sequence[str]) -> None:
        """Send what is new of these runs, and close those that are whole."""
        for name in names:
            whole = self.folder.store.has("train", self.runs[name].key)
            path = self.folder.store.path("train", self.runs[name].key) / "metrics.jsonl" if whole else self._live(name)
            for row in self.tails[name].rows(path) if path else ():
                self._send(name, row)
            if whole:
                self._complete(name)

    def _send(self, name: str, row: Mapping[str, Any]) -> None:
        """Send a row that W&B does not have yet: a launch that goes on after a crash repeats steps."""
        if name not in self.open:
            self._begin(name)
        if row["step"] >= self.next_step[name]:
            self.open[name].log(wandb_row(row), step=row["step"], commit=True)
            self.next_step[name] = row["step"] + 1

    def _complete(self, name: str) -> None:
        """Close the W&B run, which W&B shows as failed if it was quarantined, and note that all of it is sent."""
        run = self.runs.pop(name)
        if name not in self.open:
            return  # it has no rows
        opened = self.open.pop(name)
        opened.finish(exit_code=0 if self.folder.store.record("train", run.key)["status"] == "done" else 1)
        if not opened.disabled:
            self.finished.add(self.id(run))
            write_json(self.marks, sorted(self.finished))

    def _linked(self, name: str) -> int | None:
        """When a link to metrics in the making was set in the run's folder; None where there is none."""
        path = self.folder.run(name) / "metrics.jsonl"
        with contextlib.suppress(FileNotFoundError):
            return path.lstat().st_mtime_ns if path.is_symlink() else None
        return None

    def _live(self, name: str) -> Path | None:
        """Metrics of a run that this launch is training; a link that was there before may show another recipe."""
        linked = self._linked(name)
        return None if linked is None or linked == self.left_behind[name] else self.folder.run(name) / "metrics.jsonl"

    def _begin(self, name: str) -> None:
        run, wandb = self.runs[name], self.wandb
        self.home.mkdir(parents=True, exist_ok=True)
        wandb.setup(wandb.Settings(silent=True))  # or a missing login is asked for on the terminal
        opened = wandb.init(
            project=self.project,
            id=self.id(run),
            name=run.name,
            group=run.condition,
            tags=[run.condition[:LONGEST_TAG], f"seed{run.seed}"],
            config=wandb_config(self.spec, run),
            dir=self.home,
            resume="allow",
            reinit="create_new",  # a cohort's runs are open at the same time
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                disable_code=True,
                x_disable_machine_info=True,  # the manifest has the machine, which the runs of a stack share
                x_save_requirements=False,
            ),
        )
        if not self.next_step:
            place = f"offline, in {self.home}; upload with `wandb sync`" if opened.offline else opened.project_url
            self.say(f"W&B: project {self.project}: {place}")
        self.open[name], self.next_step[name] = opened, opened.step
