"""Which processes hang: they give no sign of life, or a run of theirs goes on long after its requests. Pure: the caller
passes the time, and how busy a process is.

A false alarm is worse than a late one, so time counts against a process only if it could have shown that it lives:

- not while the supervisor itself did not run (a suspended machine, a stopped supervisor, a machine without a free
  processor): its looks come late then;
- not while one of the process's threads waited for a processor, for as long as it waited;
- not while one waited for a disk, or pages came from a disk (a swap storm), or a debugger has stopped it;
- a third of it while the process computes: a large request may keep it from answering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from appliance.host.activity import ThreadActivity

__all__ = ["Liveness", "could_run"]

_LATE = 2.0  # intervals between two looks: more, and the supervisor did not run
_BUSY_SHARE = 0.5
_PATIENCE = 3.0  # so many times as long may a process be silent that computes

P = TypeVar("P", bound=Hashable)
Threads = Mapping[int, ThreadActivity]
_NEW = ThreadActivity("S")


@dataclass(slots=True, eq=False)
class _Signs:
    """What is known of one process. The seconds are those that count."""

    run_limit_seconds: float
    is_heard: bool = True
    silent_seconds: float = 0.0
    overdue: int = 0  # the run that goes on after its requests' deadlines, 0 if none does
    overdue_seconds: float = 0.0
    threads: Threads | None = None  # at the last look, if there was a reason to look


class Liveness(Generic[P]):
    """Hears the signs of life, and judges at each look, which comes every `interval_seconds`. With `hang_seconds` 0 no
    process is silent for too long. `now` is monotonic seconds."""

    def __init__(self, hang_seconds: float, interval_seconds: float, now: float) -> None:
        self.interval_seconds = interval_seconds
        self._hang_seconds = hang_seconds
        self._looked = now
        self._signs: dict[P, _Signs] = {}

    def add(self, process: P, run_limit_seconds: float = 0.0) -> None:
        """Judge `process` from now on; its runs too, unless the limit is 0."""
        self._signs[process] = _Signs(run_limit_seconds or math.inf)

    def remove(self, process: P) -> None:
        """Judge a process no more, if it was."""
        self._signs.pop(process, None)

    def heard(self, process: P, overdue: int = 0) -> None:
        """Note a sign of life. `overdue` identifies the run that goes on the longest after the deadlines of all its
        requests; 0 if none does."""
        signs = self._signs.get(process)
        if signs is None:
            return
        signs.is_heard = True
        if overdue != signs.overdue:
            signs.overdue, signs.overdue_seconds = overdue, 0.0

    def look(self, now: float, threads_of: Callable[[P], Threads]) -> list[tuple[P, str]]:
        """Return the processes that hang, and why each is said to.

        `threads_of` is asked about those that are silent or have an overdue run.
        """
        step, self._looked = now - self._looked, now
        is_late = step > _LATE * self.interval_seconds
        hanging = []
        for process, signs in self._signs.items():
            before, signs.threads = signs.threads, None
            able = busy = 0.0
            if signs.overdue or not signs.is_heard:
                signs.threads = threads_of(process)
                if before is not None and not is_late:
                    able, busy = could_run(step, before, signs.threads)
            if signs.is_heard:
                signs.is_heard, signs.silent_seconds = False, 0.0
            else:
                signs.silent_seconds += able / _PATIENCE if busy >= _BUSY_SHARE * step else able
            if signs.overdue:
                signs.overdue_seconds += able
            if why := self._why_hanging(signs):
                hanging.append((process, why))
        return hanging

    def _why_hanging(self, signs: _Signs) -> str:
        if self._hang_seconds and signs.silent_seconds >= self._hang_seconds:
            return f"it has not answered for {signs.silent_seconds:.1f} s (hang_seconds is {self._hang_seconds:g})"
        if signs.overdue_seconds >= signs.run_limit_seconds:
            return (
                f"a run went on for {signs.overdue_seconds:.1f} s after the deadlines of all its requests "
                f"(run_limit_seconds is {signs.run_limit_seconds:g})"
            )
        return ""

    def suspects(self) -> set[P]:
        """Return the processes that have been silent for half the time after which they hang."""
        if not self._hang_seconds:
            return set()
        return {name for name, signs in self._signs.items() if signs.silent_seconds >= self._hang_seconds / 2}


def could_run(seconds: float, before: Threads, after: Threads) -> tuple[float, float]:
    """Return for how many of `seconds` all threads of a process could run, and for how many its threads ran in all.

    Nothing is known of a process without threads: it counts as busy.
    """
    if not after:
        return seconds, seconds
    waited = ran = 0.0
    for number, thread in after.items():
        earlier = before.get(number, _NEW)
        if thread.state in ("D", "t") or thread.faults > earlier.faults:
            return 0.0, 0.0
        thread_ran = max(thread.ran - earlier.ran, 0.0)
        thread_waited = max(thread.waited - earlier.waited, 0.0)
        if thread.state == "R":  # its wait is counted only once it has ended
            thread_waited = max(thread_waited, seconds - thread_ran)
        waited, ran = max(waited, thread_waited), ran + thread_ran
    return max(seconds - waited, 0.0), ran
