"""Run processes that may crash, hang or eat memory: start them at low priority, watch them, kill them at their limits.

A child is forked (from a job that has imported TensorFlow, and never ran an op of it) or started afresh. It leads a
session of its own, so that what it starts is killed with it. Its memory is watched from outside: RLIMIT_AS is no limit
for TensorFlow, which reserves far more than it uses, and before Linux 4.7 RLIMIT_DATA does not count mappings, which
hold all large arrays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.frames import Frame, FrameError, receive, send

__all__ = [
    "Access",
    "Child",
    "ChildError",
    "Limits",
    "Sandbox",
    "become_child",
    "confine_children",
    "fork",
    "start",
    "yield_to_others",
]

_RUNNER = "converters.runner"
_POLL_SECONDS = 0.05
_SESSION_SECONDS = 1.0  # between looks for processes that the child has started
_KILLED_SECONDS = 10.0
_LOG_BYTES = 2000
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_LOWEST = 2 << 13 | 7  # best effort, the last of its levels; the idle class would starve beside a busy disk


@dataclass(frozen=True, slots=True)
class Access:
    """What a child has to do with: paths that it `reads`, besides the runtime; folders in which it `writes`; a folder
    for temporary files, which is made if need be ("" if there are none); whether it uses a GPU."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    scratch: str = ""
    gpu: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a child: `seconds` of life, and resident bytes of its session, TensorFlow's own 0.5 GB included.

    If `yielding`, it runs only when a core has nothing else to do (SCHED_IDLE), else at the lowest nice value. `access`
    is for the sandbox of this process's children, if they have one.
    """

    seconds: float
    memory_bytes: int
    yielding: bool = True
    access: Access = Access()


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How children are confined: `confine` does it in a forked one. One that is started afresh runs the module `runner`
    instead of `converters.runner`, with the `variables` in its environment."""

    confine: Callable[[Access], None]
    runner: str
    variables: Callable[[Access], Mapping[str, str]]


_sandbox: Sandbox | None = None


def confine_children(sandbox: Sandbox) -> None:
    """Confine all children that this process starts from now on: they run models, which may be anybody's programs."""
    global _sandbox  # noqa: PLW0603 - it is the process's, as its children are
    _sandbox = sandbox


class ChildError(Exception):
    """The child crashed, hung or took too much memory, and is gone. The message says which."""


class Child:
    """A child process, and the socket to it. One thread may use it at a time."""

    def __init__(self, name: str, pid: int, sock: socket.socket, log: str, limits: Limits) -> None:
        self.name = name
        self.pid = pid
        self._sock = sock
        self._log = log
        self._limits = limits
        self._memory_bytes = limits.memory_bytes
        self._ends = time.monotonic() + limits.seconds
        self._deadline = self._ends
        self._looked = 0.0
        self._others: list[int] = []
        self._is_over = False
        self._status: int | None = None  # once it is reaped
        sock.setblocking(False)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ask(
        self,
        message: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        seconds: float = 3600.0,
        more_bytes: int | None = None,
    ) -> Frame:
        """Send a request, and return the answer, which may take the child `more_bytes` of memory besides what it had.
        Raise ChildError."""
        self._deadline = min(self._ends, time.monotonic() + seconds)
        self._memory_bytes = self._limits.memory_bytes
        if more_bytes is not None:
            self._memory_bytes = min(self._memory_bytes, _resident_bytes(self.pid) + more_bytes)
        try:
            send(self, message, arrays)
        except FrameError as error:
            raise ChildError(str(error)) from error
        return self.answer(seconds)

    def answer(self, seconds: float = 3600.0) -> Frame:
        """Return the next frame of the child. Raise ChildError, also if it has ended without an error."""
        self._deadline = min(self._ends, time.monotonic() + seconds)
        try:
            frame = receive(self)
        except FrameError as error:
            raise self._over(str(error)) from error
        if frame is None:
            raise self._over("")
        return frame

    def recv_into(self, buffer: memoryview, /) -> int:
        """See `frames.Stream`."""
        while True:
            try:
                return self._sock.recv_into(buffer)
            except BlockingIOError:
                self._wait(select.POLLIN)
            except OSError:
                return 0

    def sendall(self, data: Any, /) -> None:
        """See `frames.Stream`."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError as error:
                raise self._over("") from error

    def kill(self) -> None:
        """Kill the child and all of its session. The second call does nothing."""
        if self._is_over:
            return
        self._is_over = True
        for pid in {self.pid, *self._session()} if self._status is None else self._session():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._sock.close()
        self._reap(_KILLED_SECONDS)

    def _reap(self, seconds: float) -> int | None:
        """Return the wait status; None if the child has not ended by then, because it is in an uninterruptible wait."""
        ends = time.monotonic() + seconds
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
            elif time.monotonic() > ends:
                break
            else:
                time.sleep(0.005)
        return self._status

    def _wait(self, event: int) -> None:
        """Wait until the socket is ready, or the child is to be looked at again. Raise ChildError at a limit."""
        poll = select.poll()
        poll.register(self._sock, event)
        if poll.poll(_POLL_SECONDS * 1000):
            return
        now = time.monotonic()
        if now > self._deadline:
            lived = f"its {self._limits.seconds:g} s" if now > self._ends else "the time for one call"
            self.kill()
            raise ChildError(f"{self.name} did not end within {lived}, and was killed")
        if now - self._looked > _SESSION_SECONDS:
            self._looked = now
            self._others = [pid for pid in self._session() if pid != self.pid]
        resident = sum(map(_resident_bytes, (self.pid, *self._others)))
        if resident > self._memory_bytes:
            self.kill()
            if self._memory_bytes < self._limits.memory_bytes:
                raise ChildError(f"{self.name} took {resident:,} bytes of memory for one call, and was killed")
            raise ChildError(
                f"{self.name} took {resident:,} bytes of memory, more than a conversion may "
                f"({self._memory_bytes:,}), and was killed"
            )

    def _session(self) -> list[int]:
        """Return the process numbers of the child's session."""
        found = []
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with contextlib.suppress(OSError):  # it has ended
                if os.getsid(pid) == self.pid:
                    found.append(pid)
        return found

    def _over(self, why: str) -> ChildError:
        """Return the error for a child whose socket has ended."""
        # If it ended on its own, its own status says how, not that of our signal.
        status = self._reap(1.0)
        self.kill()
        if status is None:
            ended = "closed its socket"
        elif os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            try:
                ended = f"was killed by {signal.Signals(number).name}"
            except ValueError:
                ended = f"was killed by signal {number}"
            if number == signal.SIGKILL:
                ended += " (was the machine out of memory?)"
        else:
            ended = f"ended with status {os.waitstatus_to_exitcode(status)}"
        last = _last_line(self._log)
        return ChildError(f"{self.name} {ended}{f': {why}' if why else ''}{f': {last}' if last else ''}")


def fork(name: str, run: Callable[[socket.socket], None], log: str, limits: Limits) -> Child:
    """Return a child that runs `run` on its socket and then ends. What it prints goes to the file `log`.

    This process must have no other threads: a fork does not copy them, and what they have locked stays locked.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        theirs.close()
        return Child(name, pid, ours, log, limits)
    status = 1
    try:
        ours.close()
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        _close_others(theirs.fileno())
        become_child(parent, limits.yielding)
        # TensorFlow is in forked children only, and is served on the CPU: there it must be judged and measured.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        if _sandbox is not None:
            _sandbox.confine(limits.access)
        run(theirs)
        status = 0
    except BaseException:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # without the interpreter's teardown, which is the parent's


def _close_others(kept: int) -> None:
    """Close what a forked process has open of its parent's, but for standard output and error and `kept`.

    By the socket to the job, a process that its model has taken over could say what came of the work.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(descriptor)


def start(name: str, log: str, limits: Limits, module: str = "") -> Child:
    """Return a child that runs `python -m module` with the socket as its standard input; see `fork`. "" stands for
    `converters.runner`, which runs a model, and is confined."""
    ours, theirs = socket.socketpair()
    sandbox = None if module else _sandbox
    environment = {
        **os.environ,
        "DROPSERVE_PARENT": str(os.getpid()),
        "DROPSERVE_YIELD": str(int(limits.yielding)),
        "OPENBLAS_NUM_THREADS": "1",  # NumPy would start a thread for each core, and has nothing to multiply here
        **({} if sandbox is None else sandbox.variables(limits.access)),
    }
    module = module or (_RUNNER if sandbox is None else sandbox.runner)
    isolated = ["-I"] if sys.flags.isolated else []
    with theirs, open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, *isolated, "-m", module],
            stdin=theirs.fileno(),
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    process.returncode = 0  # it is reaped by its Child
    return Child(name, process.pid, ours, log, limits)


def become_child(parent: int, yielding: bool) -> None:
    """Let this process die with `parent`, and leave room for others (see `yield_to_others`)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    yield_to_others(yielding)


def yield_to_others(yielding: bool) -> None:
    """Let this process take only processor and disk time that others leave, and be the first to be killed when memory
    runs out. If `yielding`, it runs only when a core has nothing else to do."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, b"ds-convert", 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here, and 500 MB of it help nobody
    with contextlib.suppress(OSError):
        os.nice(19)
    if yielding:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = _SYS_IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        libc.syscall(number, 1, 0, _IOPRIO_LOWEST)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("900")


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def _last_line(log: str) -> str:
    """Return the last line of a log that says something: the exception of a Python traceback, or a failed check of
    C++."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    telling = [line for line in lines if "Error" in line or "Check failed" in line or line.startswith("F")] or lines
    return telling[-1][:300] if telling else ""
