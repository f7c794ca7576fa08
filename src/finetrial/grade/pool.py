"""Worker processes as the grader sees them: asked, timed, killed and started again."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from finetrial.errors import UserError
from finetrial.records import Grade

START_S = 120.0
"""Seconds a worker may take to start and to import what it grades with."""

GRACE_S = 10.0
"""Seconds after the time limit at which a worker whose parent is gone ends itself."""


class Worker:
    """One process, started when first asked. Used by one thread at a time."""

    def __init__(self, setup: dict[str, Any], limit_s: float):
        self.setup, self.limit_s = setup, limit_s
        self.process: subprocess.Popen[bytes] | None = None
        self.pending = b""

    def ask(self, request: dict[str, Any]) -> Grade:
        """The grade of one request; missing, with the reason, where the time is up or the process dies.

        Raises:
            UserError: the worker does not start (the user's file cannot be loaded, too little memory).
        """
        process = self._started()
        try:
            _pipe(process.stdin).write(json.dumps(request).encode() + b"\n")
            _pipe(process.stdin).flush()
            reply = self._read(self.limit_s)
        except TimeoutError:
            self._kill()
            return Grade(None, f"no answer within {self.limit_s:g} s")
        except (BrokenPipeError, EOFError):
            return Grade(None, f"the worker {self._death()}")
        return Grade(reply["value"], reply["reason"])

    def close(self) -> None:
        """End the process; it starts again when asked again."""
        self._kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        self._kill()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "finetrial.grade.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads},  # threads of BLAS reserve address space, which is what is limited
            start_new_session=True,
        )
        what = self.setup.get("path", self.setup["kind"])
        try:
            setup = {**self.setup, "limit_s": self.limit_s + GRACE_S}
            _pipe(self.process.stdin).write(json.dumps(setup).encode() + b"\n")
            _pipe(self.process.stdin).flush()
            reply = self._read(START_S)
        except TimeoutError as error:
            self._kill()
            raise UserError(f"{what}: not loaded within {START_S:g} s") from error
        except (BrokenPipeError, EOFError) as error:
            death = self._death()
            raise UserError(
                f"{what}: the worker {death} while loading (memory_mb is {self.setup['memory_mb']})"
            ) from error
        if "error" in reply:
            self._kill()
            raise UserError(f"{what}: cannot be loaded: {reply['error']}")
        return self.process

    def _read(self, limit_s: float) -> dict[str, Any]:
        """One line from the process.

        Raises:
            TimeoutError: none within `limit_s` seconds.
            EOFError: the process closed its end.
        """
        assert self.process is not None
        descriptor = _pipe(self.process.stdout).fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + limit_s
        while b"\n" not in self.pending:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            received = os.read(descriptor, 65536)
            if not received:
                raise EOFError
            self.pending += received
        line, _, self.pending = self.pending.partition(b"\n")
        return json.loads(line)

    def _death(self) -> str:
        """How the process ended, which it has done or is about to do."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            code = None
        self._kill()
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}" if code is not None else "closed its pipe"

    def _kill(self) -> None:
        """End the process with everything that it has started, and reap it."""
        process, self.process, self.pending = self.process, None, b""
        if process is None:
            return
        with suppress(ProcessLookupError):  # it has ended, and so have its children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # what was still to be written has no reader any more
                _pipe(pipe).close()


class Pool:
    """`count` workers; requests are answered in order, by whichever worker is free."""

    def __init__(self, setup: dict[str, Any], limit_s: float, count: int):
        self.workers = [Worker(setup, limit_s) for _ in range(count)]

    def ask(self, requests: Sequence[dict[str, Any]]) -> list[Grade]:
        """One grade per request."""
        if len(self.workers) == 1:
            return [self.workers[0].ask(request) for request in requests]
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            free.put(worker)

        def one(request: dict[str, Any]) -> Grade:
            worker = free.get()
            try:
                return worker.ask(request)
            finally:
                free.put(worker)

        with ThreadPoolExecutor(len(self.workers)) as threads:
            return list(threads.map(one, requests))

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.close()


def _pipe(stream: Any) -> Any:
    assert stream is not None  # both are opened as pipes
    return stream
