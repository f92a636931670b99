"""Child processes: started by posix_spawn, reaped in one place, and never left behind.

`spawn` gives the child one argument, which the child takes by `take_argument`. The argument travels in an unlinked file
that is the child's standard input: it has no limit of size (an environment variable may have 128 KiB, a pipe holds
64 KiB), nobody else can open it, and once it is taken nothing of it is left for the child's own children.

The supervisor is a subreaper: a worker whose fork server has died becomes its child. Only the supervisor waits for
processes, so a process number that it knows cannot have been given to another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any, TypeVar

import msgspec

_T = TypeVar("_T")

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_CRASHES = (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
_FATAL = (*_CRASHES, signal.SIGBUS)
_MEMORY_DIRECTORY = "/dev/shm"  # noqa: S108 - memory, so that no disk ever has the argument; the file has no name
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Make this process adopt the orphans among its descendants (Linux 3.4)."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def set_name(name: str) -> None:
    """Set the name of this process that ps and top show, at most 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def forbid_looking_in() -> None:
    """Let nobody but root look into this process, by ptrace or by its files in /proc. A program that it starts may be
    looked into again. Call it last of what sets up a process: it may not write to most of those files itself then."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, process `parent`, ends; exit if it has ended."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def is_crash(status: int) -> bool:
    """Return whether a wait status is that of a process that its own code crashed.

    A process that exited by itself or was killed (by the kernel for lack of memory, for example) is not a crash. SIGBUS
    is not counted, because it comes from files that were truncated.
    """
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in _CRASHES


def fatal_signal(status: int) -> str:
    """Return the name of the fatal signal that ended a process by its own code; "" if it ended otherwise.

    `status` is its wait status.
    """
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return signal.Signals(number).name if number in _FATAL else ""


def describe_status(status: int) -> str:
    """Return a wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "signal"
        hint = "; was the machine out of memory?" if number == signal.SIGKILL else ""
        return f"killed by {name} ({number}){hint}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"


class Reaper:
    """Waits for all children of this process, in the main thread's event loop."""

    def __init__(self) -> None:
        self._futures: dict[int, asyncio.Future[int]] = {}
        # Statuses that nothing waits for yet: a worker may die before the fork server has reported its number.
        self._early: dict[int, int] = {}

    def start(self) -> None:
        """Start to wait for children whenever SIGCHLD arrives."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def stop(self) -> None:
        """Remove the signal handler; call it before the loop closes.

        The loop closes its pipe for signals before it removes its handlers, and Python reports on stderr a child that
        ends in between.
        """
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def exit_of(self, pid: int) -> asyncio.Future[int]:
        """Return a future for the wait status of the child `pid`."""
        if pid not in self._futures:
            self._futures[pid] = asyncio.get_running_loop().create_future()
            if pid in self._early:
                self._futures[pid].set_result(self._early.pop(pid))
        return self._futures[pid]

    def forget(self, pid: int) -> None:
        """Forget an earlier process with the number `pid`; call it for a process that has just been started."""
        future = self._futures.get(pid)
        if future is not None and future.done():
            del self._futures[pid]

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a child that has not been reaped."""
        future = self._futures.get(pid)
        if future is not None and not future.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._futures.get(pid)
            if future is None or future.done():  # a done future belongs to an earlier process with this number
                self._futures.pop(pid, None)
                self._early[pid] = status
                if len(self._early) > 256:
                    self._early.pop(next(iter(self._early)))
            else:
                future.set_result(status)


def argument_file(argument: Any) -> IO[bytes]:
    """Return an open file with `argument` for a child of this process; see `take_argument`.

    The caller closes it. Raise OSError if there is no room for it.
    """
    data = json.dumps({"parent": os.getpid(), "argument": msgspec.to_builtins(argument)}).encode()
    try:
        return _unlinked_file(data, _MEMORY_DIRECTORY)
    except OSError:  # there is no shared memory here, or it is full
        return _unlinked_file(data, None)


def _unlinked_file(data: bytes, directory: str | None) -> IO[bytes]:
    file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - the caller closes it. Its mode is 0600
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        file.seek(0)
    except OSError:
        file.close()
        raise
    return file


def take_argument(kind: type[_T]) -> _T:
    """Return the argument that this process was started with, a `kind`, and have it die with its parent.

    Call it once, before anything else starts a process: the standard input, by which the argument comes, is empty
    afterwards. Raise ValueError if the argument is no `kind`.
    """
    with open(0, "rb", closefd=False) as file:
        message = json.load(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    die_with_parent(message["parent"])
    return msgspec.convert(message["argument"], kind)


def spawn(
    module: str,
    argument: Any,
    descriptors: Sequence[int] = (),
    *,
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> int:
    """Start `python -m module` and return its process number; the module's `main` calls `take_argument`.

    `argument` is made of dataclasses and JSON values. `descriptors` become the child's descriptors 3, 4 and so on. Its
    errors go to `stderr` and its output to `stdout`, or else to `stderr`; without either, where this process's own go.
    Without `environment`, the child has this process's. Raise OSError if it cannot be started.

    `-I` would hide the folder that the project runs from, so it is passed on only if this process has it.
    """
    isolated = ["-I"] if sys.flags.isolated else []
    with argument_file(argument) as file:
        standard = {0: file.fileno(), 1: stderr if stdout is None else stdout, 2: stderr}
        numbers = {n: descriptor for n, descriptor in standard.items() if descriptor is not None}
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *isolated, "-m", module],
            dict(os.environ if environment is None else environment),
            file_actions=_file_actions(numbers | dict(enumerate(descriptors, 3))),
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP],
            setpgroup=0,  # Ctrl-C on the terminal reaches only the supervisor, which then stops the rest in order
        )


def _file_actions(numbers: Mapping[int, int]) -> list[tuple[int, int, int] | tuple[int, int]]:
    """Return the actions that give the child `numbers`: its descriptor → this process's.

    They copy in two steps, by way of unused numbers, so that no descriptor is overwritten before it has been copied.
    """
    first = max(2, *numbers) + 1  # not a standard one that the child shares with this process
    spares = [number for number in range(first, first + 2 * len(numbers)) if number not in numbers.values()]
    actions: list[tuple[int, int, int] | tuple[int, int]] = []
    for spare, descriptor in zip(spares, numbers.values(), strict=False):
        actions.append((os.POSIX_SPAWN_DUP2, descriptor, spare))
    for spare, number in zip(spares, numbers, strict=False):
        actions.append((os.POSIX_SPAWN_DUP2, spare, number))
        actions.append((os.POSIX_SPAWN_CLOSE, spare))
    return actions
