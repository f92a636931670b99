"""Child processes: started by posix_spawn, reaped in one place, and never left behind.

The supervisor is a subreaper: a worker whose fork server has died becomes its child. Only the supervisor waits for
processes, so a process number that it knows cannot have been given to another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_CRASHES = (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
_FATAL = (*_CRASHES, signal.SIGBUS)
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Make this process adopt the orphans among its descendants (Linux 3.4)."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def set_name(name: str) -> None:
    """Set the name of this process that ps and top show, at most 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, process `parent`, ends; exit if it has ended."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def become_worker(supervisor: int, is_expendable: bool = False) -> None:
    """Prepare a worker's process, however it was started.

    It dies with the supervisor, whose process number is `supervisor`, and ignores Ctrl-C on the terminal. If it
    `is_expendable`, it serves no requests: it only tries inputs that may crash it.
    """
    die_with_parent(supervisor)
    set_name("ds-trial" if is_expendable else "ds-worker")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


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


def spawn(
    module: str,
    environment: Mapping[str, str],
    descriptors: Sequence[int] = (),
    stderr: int | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
) -> int:
    """Start `python -m module` and return its process number.

    `descriptors` become its descriptors 3, 4 and so on. Its output goes to `stderr`, or to this process's own if None;
    its standard output to `stdout`, if given. `-I` would hide the folder that the project runs from, so it is passed on
    only if this process has it.
    """
    isolated = ["-I"] if sys.flags.isolated else []
    actions: list[tuple[int, int, int] | tuple[int, int]] = []
    if stderr is not None:
        actions.append((os.POSIX_SPAWN_DUP2, stderr, 1))
        actions.append((os.POSIX_SPAWN_DUP2, stderr, 2))
    # Copy in two steps, by way of unused numbers, so that no descriptor is overwritten before it has been copied.
    first = 3 + len(descriptors)
    spares = [number for number in range(first, first + 2 * len(descriptors)) if number not in descriptors]
    for spare, descriptor in zip(spares, descriptors, strict=False):
        actions.append((os.POSIX_SPAWN_DUP2, descriptor, spare))
    for index, spare in enumerate(spares[: len(descriptors)]):
        actions.append((os.POSIX_SPAWN_DUP2, spare, 3 + index))
        actions.append((os.POSIX_SPAWN_CLOSE, spare))
    if stdin is not None:
        actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
    if stdout is not None:
        actions.append((os.POSIX_SPAWN_DUP2, stdout, 1))
    return os.posix_spawn(
        sys.executable,
        [sys.executable, *isolated, "-m", module],
        dict(environment),
        file_actions=actions,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP],
        setpgroup=0,  # Ctrl-C on the terminal reaches only the supervisor, which then stops the rest in order
    )
