"""The lead: of a worker's threads, one at a time reads and writes the sockets.

The leader gives up the lead before a run, so that another thread leads meanwhile, or keeps it during a run that will
probably be short. If that run goes on for too long all the same, the lead is taken from it.
"""

from __future__ import annotations

import threading
import time

__all__ = ["Lead"]

_LOOK_SECONDS = 0.01
_QUIET_LOOKS = 3  # so many looks without a run, and nobody looks any more until the next run


class Lead:
    """A lock that one thread holds, and that `watch` lets go of for a thread that runs something for too long.

    `look_seconds`: a run may keep the lead for so long, and at most for twice as long.
    """

    def __init__(self, look_seconds: float = _LOOK_SECONDS) -> None:
        self._look_seconds = look_seconds
        self._held = threading.Lock()
        self._guard = threading.Lock()  # guards what follows
        self._runs = 0  # how many runs have kept the lead
        self._runs_now = False
        self._is_watched = False
        self._wanted = threading.Semaphore(0)  # released when `watch` is to look

    def take(self) -> None:
        """Wait until no other thread leads, and lead."""
        self._held.acquire()

    def give_up(self) -> None:
        """Let another thread lead. The caller leads."""
        self._held.release()

    def begin_run(self) -> None:
        """Note that the caller, which leads, runs something and means to lead on after it."""
        with self._guard:
            self._runs += 1
            self._runs_now = True
            if self._is_watched:
                return
            self._is_watched = True
        self._wanted.release()

    def end_run(self) -> bool:
        """Note that the run has ended, and return whether the caller leads still."""
        with self._guard:
            leads, self._runs_now = self._runs_now, False
        return leads

    def watch(self) -> None:
        """Take the lead from runs that keep it for too long, for ever. A thread of its own calls this.

        It looks at intervals, but only while there are such runs, so that an idle worker wakes up for nothing.
        """
        while True:
            self._wanted.acquire()
            seen, quiet = 0, 0
            while quiet < _QUIET_LOOKS:
                time.sleep(self._look_seconds)
                with self._guard:
                    quiet = quiet + 1 if self._runs == seen and not self._runs_now else 0
                    if self._runs_now and self._runs == seen:
                        self._runs_now = False
                        self._held.release()
                    seen = self._runs
                    if quiet == _QUIET_LOOKS:
                        self._is_watched = False
