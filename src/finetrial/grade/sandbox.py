"""Code that nobody has read, run with its tests in a process of its own (Linux).

Bounded are processor time and wall time, memory, open files, and the size of files; a completion may start threads but
no processes. It runs with an empty environment in namespaces of its own: without network and other processes, without
rights, on a read-only file system but for a folder of its own, in memory. It may read what its user may read. Where
the kernel does not allow such namespaces, nothing is run unless that is asked for (`isolated=False`): code then sees
the network and all that its user may write; in the place of root it is run as nobody.

What this does not do: it runs completion and tests in one interpreter, so that a completion may read the tests, return
objects that equal everything, patch a module that the tests import, or, by searching the interpreter for the token
that only the end of the tests reads, forge a pass. It withstands accidents, and cheating that ends, prints or patches
built-in names; not an author who attacks this very program. Use a virtual machine for such.
"""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from finetrial.errors import UserError

JAIL = Path(__file__).with_name("jail.py")
THREADS = 32
"""Most threads of a completion (where finetrial runs as root, memory bounds them)."""
FILES_MB = 16
"""Most MiB of a file, and of all files together."""
WALL_FACTOR, WALL_EXTRA_S = 6.0, 10.0
"""Wall seconds are this factor times processor seconds, and this much more: a busy machine must not decide."""

Verdict = Literal["passed", "failed", "error", "timeout", "memory"]
"""All tests passed; one failed (AssertionError); something else was raised, or the process ended before the tests did;
time was up; memory was."""


class SandboxFailure(RuntimeError):
    """Nothing is known of the code: the sandbox itself failed."""


@dataclass(frozen=True)
class Limits:
    """What a completion may use."""

    cpu_s: float = 5.0
    """Processor seconds, rounded up to whole ones."""
    memory_mb: int = 1024
    """Address space of each process."""
    isolated: bool = True
    """In namespaces of its own: without network, on a read-only file system."""


@dataclass(frozen=True)
class Ended:
    """How the tests of a completion ended."""

    verdict: Verdict
    reason: str


def run_tests(code: str, tests: str, entry_point: str, limits: Limits) -> Ended:
    """Run `code`, then `tests`, which see its global names.

    Args:
        code: a module that defines `entry_point`.
        tests: a module that raises AssertionError where the code is wrong.
        entry_point: a global name.
        limits: what may be used.

    Raises:
        SandboxFailure: the sandbox could not be entered, or ended without telling how.
    """
    token = secrets.token_hex(16)
    job = {"code": code, "tests": tests, "entry_point": entry_point}
    with tempfile.TemporaryDirectory(prefix="finetrial-code-") as folder, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        if os.getuid() == 0 and not limits.isolated:
            os.chmod(folder, 0o777)  # it is nobody who writes there
        pipes = {name: os.pipe() for name in ("status", "verdict", "token")}
        ours = [pipes["status"][0], pipes["verdict"][0], pipes["token"][1]]
        theirs = [pipes["status"][1], pipes["verdict"][1], pipes["token"][0]]
        try:
            os.write(pipes["token"][1], token.encode())
            status = _supervised(pipes["status"][0], theirs, folder, stdin.fileno(), limits)
            os.set_blocking(pipes["verdict"][0], False)
            said = ""
            with suppress(BlockingIOError):  # nothing was written, and something still holds the other end
                said = os.read(pipes["verdict"][0], 4096).decode("utf-8", "replace")
        finally:
            for end in (*ours, *theirs):
                os.close(end)
    return _ended(status, said, token, limits)


@cache
def prove_sandbox(limits: Limits) -> None:
    """Run what must pass and check that it is bounded, once per process.

    Raises:
        UserError: code cannot be run here, or not within these limits.
    """
    tests = _PROBE + (_ISOLATED if limits.isolated else "")
    try:
        found = run_tests("def probe():\n    return 1\n", tests, "probe", limits)
    except SandboxFailure as error:
        way = (
            "allow user namespaces, or say network = 'allowed' to do without (code then sees the network and all files)"
            if limits.isolated
            else "run as another user"
        )
        raise UserError(f"code cannot be run in a sandbox here: {error}; {way}") from error
    if found.verdict != "passed":
        raise UserError(f"the sandbox does not hold here: {found.verdict}, {found.reason}")


_PROBE = """
import os, resource
assert probe() == 1
assert not os.environ or set(os.environ) <= {"LC_CTYPE"}, "the environment is not empty"
assert resource.getrlimit(resource.RLIMIT_AS)[0] > 0
try:
    child = os.fork()
except BlockingIOError:
    child = None
if child == 0:
    os._exit(0)
assert child is None, "processes can be started"
"""

_ISOLATED = """
import errno, socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError as error:
    assert error.errno == errno.ENETUNREACH, f"there is a network: {error}"
else:
    assert False, "there is a network"
try:
    open("/tmp/finetrial-probe", "w")
except OSError as error:
    assert error.errno == errno.EROFS, f"files can be written: {error}"
else:
    assert False, "files can be written"
open("mine", "w").write("x")
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        seen = open(f"/proc/{process}/environ", "rb").read()
    except OSError:
        continue
    assert not seen.strip(b"\\0") or seen.startswith(b"LC_CTYPE"), "environments of other processes can be read"
"""


def _supervised(status: int, theirs: list[int], folder: str, stdin: int, limits: Limits) -> dict[str, Any] | None:
    """What the sandbox tells of the end of its process; None where the time was up.

    Their ends of the pipes are closed here and taken from the list: only then is the end of theirs the end of a pipe,
    and a number that is closed twice may be somebody else's by then.
    """
    cpu_s = -int(-limits.cpu_s // 1)
    setup = {
        "folder": folder,
        "isolated": limits.isolated,
        "cpu_s": cpu_s,
        "memory_mb": limits.memory_mb,
        "files_mb": FILES_MB,
        "threads": THREADS,
        **dict(zip(("status", "verdict", "token"), theirs, strict=True)),
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(JAIL), "enter", json.dumps(setup)],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={},
        cwd=folder,
        pass_fds=tuple(theirs),
        start_new_session=True,
    )
    while theirs:
        os.close(theirs.pop())
    deadline = time.monotonic() + cpu_s * WALL_FACTOR + WALL_EXTRA_S
    poll = select.poll()
    poll.register(status, select.POLLIN)
    try:
        if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            return None
        told = os.read(status, 4096)
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        errors = process.communicate()[1].decode("utf-8", "replace").strip()
    if not told:
        raise SandboxFailure(f"it ended without a word{': ' + errors.splitlines()[-1] if errors else ''}")
    found = json.loads(told)
    if "refused" in found:
        raise SandboxFailure(found["refused"])
    return found


def _ended(status: dict[str, Any] | None, said: str, token: str, limits: Limits) -> Ended:
    """The verdict of how the process ended and what it said: a token, a verdict and a reason, a line each."""
    given, _, rest = said.partition("\n")
    verdict, _, reason = rest.partition("\n")
    if status is None:
        return Ended("timeout", "wall time was up")
    if given == token and verdict == "passed":
        return Ended("passed", "")
    for known in ("failed", "error", "memory"):
        if verdict == known:
            return Ended(known, reason)
    code = status["code"]
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and status["cpu_s"] >= limits.cpu_s):
        return Ended("timeout", f"{limits.cpu_s:g} s of processor time were up")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return Ended("error", f"the process {how} before the tests ended")
