"""Inside of the sandbox: `python -I jail.py enter ...` shuts the door, `python -I jail.py run ...` runs what is judged.

`sandbox` describes it from outside. This file imports nothing of finetrial. Three processes follow one another: the
first leaves the namespaces of the machine, the second is what all others in the new ones depend on (they die with it)
and tells how the third ended, the third runs the completion and its tests.
"""

import builtins
import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

NOBODY = 65534
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000
"""CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWIPC."""
PRIVATE = 0x4000 | 0x40000
"""MS_REC, MS_PRIVATE."""
MOUNT_SETATTR, HERE, RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
"""The system call (Linux 5.12), AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY."""
SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVS = 1, 4, 22, 38
THREAD = 0x00010000
"""CLONE_THREAD."""
CALLS = {
    "x86_64": (0xC000003E, {"clone": 56, "fork": 57, "vfork": 58, "clone3": 435}),
    "aarch64": (0xC00000B7, {"clone": 220, "clone3": 435}),
}
"""Machine -> its number in the kernel's audit, and calls that make processes."""
REASON = 300
"""Characters of a reason."""


def enter(setup: dict[str, Any]) -> None:
    """Shut the door and run the completion; what stands in the way goes to `setup["status"]`."""
    try:
        if setup["isolated"]:
            _isolate(setup["folder"], setup["files_mb"])
        elif os.getuid() == 0:
            _drop_root()
        _calls()
        os.chdir(setup["folder"])
    except OSError as error:
        _tell(setup["status"], {"refused": str(error)})
        return
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    _control(SET_PDEATHSIG, signal.SIGKILL)
    second = os.fork()
    if second:
        _control(SET_DUMPABLE, 0)
        for descriptor in (setup["verdict"], setup["token"]):
            os.close(descriptor)
        _, status, used = os.wait4(second, 0)
        _tell(
            setup["status"],
            {"code": os.waitstatus_to_exitcode(status), "cpu_s": used.ru_utime + used.ru_stime},
        )
        os._exit(0)
    os.close(setup["status"])
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    _limit(setup)
    _forbid_processes()
    told = json.dumps({"verdict": setup["verdict"], "token": setup["token"]})
    os.execve(sys.executable, [sys.executable, "-I", "-B", os.path.abspath(__file__), "run", told], {})


def run(setup: dict[str, Any]) -> None:
    """Run the completion, then its tests; the verdict goes to `setup["verdict"]`, with the token where all passed.

    The token is read when the tests are over. The tests see the built-in names as they were before the completion ran,
    and none of its global names that would hide one; nothing that is called afterwards is looked up again.
    """
    job = json.loads(sys.stdin.buffer.read())
    pristine = dict(vars(builtins))
    execute, build, leave, read, write = exec, compile, os._exit, os.read, os.write
    failed, out_of_memory, anything, named, join = AssertionError, MemoryError, BaseException, type, "\n".join
    name, scope = job["entry_point"], {"__name__": "completion"}

    def tell(verdict: str, reason: str, token: bytes = b"-") -> None:
        write(setup["verdict"], token + join(("", verdict, reason[:REASON])).encode("utf-8", "replace"))
        leave(0)

    phase = "running the completion"
    try:
        execute(build(job["code"], "completion.py", "exec"), scope)
        if name not in scope:
            tell("error", f"defines no {name}")
        phase = "running the tests"
        seen = {key: value for key, value in scope.items() if key == name or key not in pristine}
        seen["__builtins__"] = pristine  # type: ignore[assignment]
        execute(build(job["tests"], "tests.py", "exec"), seen)
    except out_of_memory:
        tell("memory", f"out of memory while {phase}")
    except anything as error:
        kind = "failed" if named(error) is failed and phase == "running the tests" else "error"
        tell(kind, f"{named(error).__name__} while {phase}{_said(error)}")
    tell("passed", "", read(setup["token"], 64))


def _said(error: BaseException) -> str:
    try:
        return f": {error}".splitlines()[0] if str(error) else ""
    except Exception:  # noqa: BLE001  # an exception of the completion may raise while it is shown
        return ""


def _drop_root() -> None:
    """Become nobody: without namespaces root could write everywhere."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    for needed in (sys.executable, os.__file__, __file__):
        if not os.access(needed, os.R_OK):
            raise PermissionError(f"user nobody, which stands in for root, cannot read {needed}")


def _isolate(folder: str, megabytes: int) -> None:
    """New namespaces: no network, no other processes, a read-only file system but for a small one in `folder`.

    Inside, the user is nobody, whoever it is outside, so that the next program is run without any capability.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()

    def checked(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    checked(libc.unshare(NEW_NAMESPACES), "unshare")
    for name, line in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
        with open(f"/proc/self/{name}", "w") as stream:
            stream.write(line)
    checked(libc.mount(None, b"/", None, PRIVATE, None), "mount private")
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    checked(libc.syscall(MOUNT_SETATTR, HERE, b"/", RECURSIVE, ctypes.byref(attributes), size), "mount read-only")
    options = f"size={megabytes}m,nr_inodes=1024,mode=0700".encode()
    checked(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options), "mount tmpfs")


def _limit(setup: dict[str, Any]) -> None:
    megabyte, seconds = 2**20, setup["cpu_s"]
    threads = setup["threads"] + (0 if setup["isolated"] else _mine())
    for limit, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, setup["memory_mb"] * megabyte, setup["memory_mb"] * megabyte),
        (resource.RLIMIT_FSIZE, setup["files_mb"] * megabyte, setup["files_mb"] * megabyte),
        (resource.RLIMIT_NPROC, threads, threads),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        most = resource.getrlimit(limit)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(limit, (soft, hard))


def _calls() -> tuple[int, dict[str, int]]:
    """The machine as the kernel's audit names it, and the numbers of its calls that make processes.

    Raises:
        OSError: they are not known here.
    """
    machine = os.uname().machine
    if machine not in CALLS:
        raise OSError(f"calls of a {machine} are not known; there are {', '.join(CALLS)}")
    return CALLS[machine]


def _forbid_processes() -> None:
    """From here on, threads can be started, processes cannot: a filter of calls (seccomp), which root obeys too.

    A limit on processes counts none of root's. clone3 keeps its flags in memory, where a filter does not see them; the
    C library falls back to clone where it is told that there is none.
    """
    audit, calls = _calls()
    again, missing, allow = 0x00050000 | errno.EAGAIN, 0x00050000 | errno.ENOSYS, 0x7FFF0000
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    # (operation, jumps where true and where false, number); offsets into seccomp_data: call 0, machine 4, argument 16
    steps = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    for name in ("fork", "vfork"):
        if name in calls:
            steps += [(equal, 0, 1, calls[name]), (give, 0, 0, again)]
    steps += [(equal, 0, 1, calls["clone3"]), (give, 0, 0, missing)]
    steps += [(equal, 0, 3, calls["clone"]), (load, 0, 0, 16), (any_bit, 1, 0, THREAD), (give, 0, 0, again)]
    steps.append((give, 0, 0, allow))
    packed = b"".join(struct.pack("HBBI", *step) for step in steps)
    program = ctypes.create_string_buffer(packed, len(packed))
    described = struct.pack("HP", len(steps), ctypes.addressof(program))
    _control(SET_NO_NEW_PRIVS, 1)
    if ctypes.CDLL(None).prctl(SET_SECCOMP, 2, described, 0, 0):
        raise OSError("the filter of calls was refused")


def _mine() -> int:
    """Processes of this user, all of which count where there is no namespace of users."""
    found = 0
    for entry in os.listdir("/proc"):
        try:
            found += entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == os.getuid()
        except FileNotFoundError:
            continue  # it has just ended
    return found


def _control(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _tell(descriptor: int, message: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(message).encode())


if __name__ == "__main__":
    {"enter": enter, "run": run}[sys.argv[1]](json.loads(sys.argv[2]))
