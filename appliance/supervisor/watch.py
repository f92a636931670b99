"""Looks after the other processes: asks each for a sign of life, and kills what hangs, so that it is started again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance.host.activity import threads_of
from appliance.supervisor.liveness import Liveness

__all__ = ["Watch", "Watched"]

logger = logging.getLogger(__name__)

_LOOKS = 5  # in the time after which a silent process hangs
_MAX_INTERVAL_SECONDS = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """A process: `who` it is in a log line, its `role` in the metrics, how it is asked for a sign of life (None: it
    gives one by itself every second), and who hears why it was killed."""

    who: str
    role: str
    pid: int
    ask: Callable[[], None] | None = None
    on_hang: Callable[[str], None] = lambda _: None


class Watch:
    """Watches processes in the event loop; see `liveness` for what counts as a hang.

    `count(role)` counts one that was killed. `on_suspicion()` hears that `is_suspected` may have changed.
    """

    def __init__(self, hang_seconds: float, count: Callable[[str], None], on_suspicion: Callable[[], None]) -> None:
        interval = hang_seconds / _LOOKS if hang_seconds else _MAX_INTERVAL_SECONDS
        self._liveness: Liveness[Watched] = Liveness(
            hang_seconds, min(interval, _MAX_INTERVAL_SECONDS), time.monotonic()
        )
        self._watched: set[Watched] = set()
        self._count = count
        self._on_suspicion = on_suspicion
        self._suspects: set[Watched] = set()

    def add(self, watched: Watched, run_limit_seconds: float = 0.0) -> None:
        """Watch a process from now on, and its runs too, unless the limit is 0. It takes the place of what the same
        process was watched as before."""
        for earlier in [each for each in self._watched if each.pid == watched.pid]:
            self.remove(earlier)
        self._watched.add(watched)
        self._liveness.add(watched, run_limit_seconds)

    def watches(self, pid: int) -> bool:
        """Tell whether the process with this number is watched."""
        return any(watched.pid == pid for watched in self._watched)

    def remove(self, watched: Watched) -> None:
        """Watch a process no more: it has ended, or is to end by a deadline of its own."""
        self._watched.discard(watched)
        self._liveness.remove(watched)

    def heard(self, watched: Watched, overdue: int = 0) -> None:
        """Note a sign of life; `overdue` as for `Liveness.heard`."""
        self._liveness.heard(watched, overdue)

    def is_suspected(self, *roles: str) -> bool:
        """Tell whether a process of one of `roles` seems to hang."""
        return any(watched.role in roles for watched in self._suspects)

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(self._liveness.interval_seconds)
            self._look()

    def _look(self) -> None:
        for process, why in self._liveness.look(time.monotonic(), lambda watched: threads_of(watched.pid)):
            self._kill(process, why)
        for watched in self._watched:
            if watched.ask is not None:
                watched.ask()
        suspects = self._liveness.suspects()
        for watched in suspects - self._suspects:
            logger.warning("%s (process %d) is silent; it is killed if it stays so", watched.who, watched.pid)
        if suspects != self._suspects:
            self._suspects = suspects
            self._on_suspicion()

    def _kill(self, watched: Watched, why: str) -> None:
        logger.error("%s (process %d) hangs: %s; it is killed, and started again", watched.who, watched.pid, why)
        self.remove(watched)
        self._count(watched.role)
        watched.on_hang(why)
        try:
            os.kill(watched.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has just ended
        except OSError as error:
            logger.error("%s (process %d) cannot be killed: %s", watched.who, watched.pid, error)
