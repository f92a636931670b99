"""How a worker's process ended, and what it leaves."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from appliance.core.poison import NO_RUNS, Runs
from appliance.host.processes import describe_status, fatal_signal, is_crash
from appliance.lifecycle.replicas import Attempt
from appliance.worker.run_record import read_record

__all__ = ["WorkerEnd", "end_of", "what_was_fatal"]

_CHECK = "Check failed: "  # before it, a line has the time, the thread and the file
# As the C library and TensorFlow say that the machine lacks something: a thread, a descriptor, memory.
_WANT = re.compile(
    "bad_alloc|out of memory|cannot allocate memory|pthread_create|resource temporarily unavailable"
    "|too many open files",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a process ended, in words; `crashed` if its own code brought it down (`processes.is_crash`). `fatal` is what
    a request of `runs`, which ran then, may be to blame for, "" if none is. `attempt` is the made-up request of its
    warm-up that it died of."""

    how: str
    crashed: bool = False
    fatal: str = ""
    runs: Runs = NO_RUNS
    attempt: Attempt | None = None


def end_of(status: int, words: str, socket_path: str, record_path: str) -> WorkerEnd:
    """Return how the process with this wait status and these last words ended, and remove its files."""
    runs = read_record(record_path)
    for path in (socket_path, record_path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    how = describe_status(status) + (f"; its last words: {words}" if words else "")
    return WorkerEnd(how, is_crash(status), what_was_fatal(status, words), runs)


def what_was_fatal(status: int, words: str) -> str:
    """Return the signal that a process raised by what it ran, with the reason that its last words give; "" if it ended
    otherwise, or for want of memory, threads or descriptors."""
    name = fatal_signal(status)
    if not name or _WANT.search(words):
        return ""
    start = max(words.find(_CHECK), 0)
    return f"{name}: {words[start:]}" if words else name
