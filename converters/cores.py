"""Which cores a job uses: it leaves one free for what is served, but where there are so few that timings without it
would not hold, it measures on all.

A process of the lowest priority still makes others wait where it fills every core: a kernel need not preempt it before
its next tick (2026-11, Linux 6.18 without preemption, 2 cores: a served model's p99 was 1.3 ms with the job stopped,
5.0 ms with it on both cores, 2.1 ms with it on one).
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
    """This process, and those that it will start, use all cores but one, where there are several."""
    _use(os.getpid(), _BUT_ONE)


def work_on(pid: int) -> None:
    """All threads of a process use what this one does."""
    _use(pid, os.sched_getaffinity(0))


def widen(pid: int) -> None:
    """All threads of a process use the cores to measure on: they are measured, or its pools of threads made."""
    _use(pid, MEASURED)


def _use(pid: int, cores: AbstractSet[int]) -> None:
    with contextlib.suppress(OSError):  # it is gone, or an administrator has taken cores away: it runs where it may
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)
