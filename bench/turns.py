"""Subjects measured in turns: each lives in a process of its own, and works only while it is its turn.

On a shared machine the speed of a core changes from minute to minute. Subjects therefore alternate in short turns
(A B A B ...), and a ratio compares turns that follow one another. Separate processes keep their memory apart.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload import Options

HERE = Path(__file__).resolve().parent


class Turns:
    """The subject's end: it says `ready`, waits for its turn, and says what the turn took."""

    def __init__(self, options: Options):
        self.device = options.device
        self.channel = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print must not mix with what we say
        self.spans: dict[str, list[float]] = {}
        self.imported = 0.0

    def imports_done(self) -> None:
        """Note the resident size before there is a model, with the code of the model loaded as well."""
        from transformers import Qwen3ForCausalLM

        assert Qwen3ForCausalLM.__name__
        self.imported = _status("VmRSS")

    def begin(self) -> None:
        """Wait for a turn."""
        self._say({"ready": True})
        if not sys.stdin.readline():
            raise SystemExit("the other end is gone")
        self.spans = {}

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure a part of the turn, in wall seconds and in processor seconds over all threads."""
        began = self.clocks()
        yield
        self.add(name, began)

    def add(self, name: str, began: tuple[float, float]) -> None:
        """End a part of the turn that began at `began`."""
        now = self.clocks()
        self.spans[name] = [now[0] - began[0], now[1] - began[1]]

    def clocks(self) -> tuple[float, float]:
        """Wall and processor seconds; a GPU has finished its work."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def end(self, **facts: Any) -> None:
        """The turn is over."""
        self._say({"spans": self.spans, **facts})

    def finish(self, **facts: Any) -> None:
        """After the last turn: the peak of memory, in MiB, and facts."""
        peak = _status("VmHWM")
        if self.device == "cuda":
            import torch

            peak, self.imported = torch.cuda.max_memory_allocated() / 2**20, 0.0
        self._say({"peak": peak, "imported": self.imported, **facts})

    def _say(self, message: dict) -> None:
        self.channel.write(json.dumps(message) + "\n")
        self.channel.flush()


def _status(field: str) -> float:
    """A size of this process in MiB. VmHWM is the peak of this program; ru_maxrss would include the parent's."""
    with open("/proc/self/status") as stream:
        for line in stream:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def subject(workers: Mapping[str, Callable[[Options, Turns], None]]) -> None:
    """Entry of a subject's process: `python SCRIPT NAME OPTIONS`."""
    options = Options.loads(sys.argv[2])
    workers[sys.argv[1]](options, Turns(options))


@dataclass(frozen=True)
class Subject:
    """What to start: a worker of a script of this folder."""

    name: str
    script: str
    worker: str
    options: Options


@dataclass(frozen=True)
class Played:
    """What a subject measured."""

    turns: list[dict[str, Any]]
    """One per round: `spans`, name -> (wall, processor) seconds, and facts."""
    facts: dict[str, Any]
    """`peak` and `imported` in MiB, and facts of the whole."""

    def seconds(self, name: str, clock: int = 0) -> list[float]:
        """Seconds of a span per round; clock 0 is the wall's, 1 the processor's."""
        return [turn["spans"][name][clock] for turn in self.turns]


def play(subjects: Sequence[Subject], rounds: int) -> dict[str, Played]:
    """Start every subject, let them take turns, and collect what they say.

    Raises:
        RuntimeError: a subject died; the message holds the end of what it printed.
    """
    with contextlib.ExitStack() as exits:
        players = [exits.enter_context(_started(subject)) for subject in subjects]
        for player in players:
            player.hear()  # ready
        turns: dict[str, list[dict[str, Any]]] = {subject.name: [] for subject in subjects}
        for number in range(rounds):
            for player in players:
                player.go()
                turns[player.name].append(player.hear())
                if number < rounds - 1:
                    player.hear()  # ready
        return {player.name: Played(turns[player.name], player.hear()) for player in players}


class _Player:
    def __init__(self, name: str, process: subprocess.Popen, log: Path):
        self.name, self.process, self.log = name, process, log

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}:\n{self.log.read_text()[-4000:]}")
        return json.loads(line)


@contextlib.contextmanager
def _started(subject: Subject) -> Iterator[_Player]:
    options = subject.options
    log = Path(options.folder) / f"{subject.name}.log"
    threads = str(options.threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(Path(options.folder) / "cache"),
    }
    command = [sys.executable, str(HERE / subject.script), subject.worker, options.dumps()]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            yield _Player(subject.name, process, log)
            process.wait()
        finally:
            process.kill()
            process.wait()
