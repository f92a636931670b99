"""Choose the cores that a job uses: all but one, which is left to what is served. On a machine with few cores, timings
on so few would not hold, so the job measures on all of them.

A process of the lowest priority still makes others wait if it fills every core: a kernel need not preempt it before its
next tick (2026-11, Linux 6.18 without preemption, 2 cores: a served model's p99 was 1.3 ms with the job stopped, 5.0 ms
with it on both cores, 2.1 ms with it on one).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Set as AbstractSet

__all__ = ["ALL", "MEASURED", "leave_one", "widen", "work_on"]

ALL = frozenset(os.sched_getaffinity(0))  # as the job finds them: it imports this before it gives one up
_BUT_ONE = ALL - {min(ALL)} or ALL
MEASURED = ALL if len(ALL) < 4 else _BUT_ONE


def leave_one() -> None:
    """Restrict this process, and those that it will start, to all cores but one, if there are several."""
    _use(os.getpid(), _BUT_ONE)


def work_on(pid: int) -> None:
    """Restrict all threads of a process to the cores that this one uses."""
    _use(pid, os.sched_getaffinity(0))


def widen(pid: int) -> None:
    """Let all threads of a process use the cores to measure on: before it is measured, or makes its pools of
    threads."""
    _use(pid, MEASURED)


def _use(pid: int, cores: AbstractSet[int]) -> None:
    with contextlib.suppress(OSError):  # it is gone, or an administrator has taken cores away: it runs where it may
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)
