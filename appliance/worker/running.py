"""Requests that run in threads of their own, so that one that never ends holds up nobody; and what suggests that it
never will.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.contract import Backend, BackendError, Code

__all__ = ["Running", "hangs"]

_LEAST_SECONDS = 1.0
_IDLE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Activity:
    """What this process had done up to `moment` (monotonic seconds): how long its threads ran, and how long they
    waited for a processor; and whether one of them waited for a disk or a file system just then."""

    moment: float
    ran: float
    waited: float
    reading: bool


def hangs(before: Activity, after: Activity) -> bool:
    """Whether a process that should have worked did next to nothing between the two."""
    seconds = after.moment - before.moment
    busy = after.ran - before.ran + max(after.waited - before.waited, 0.0)  # threads that ended take theirs along
    return not (before.reading or after.reading) and busy < _IDLE_SHARE * seconds


def _activity() -> Activity:
    waited, reading = 0.0, False
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
                waited += int(file.read().split()[1]) / 1e9
            with open(f"/proc/self/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
                reading = reading or file.read().rpartition(")")[2].split()[0] == "D"
        except (OSError, IndexError):  # it has ended meanwhile, or this kernel does not say
            continue
    return Activity(time.monotonic(), time.process_time(), waited, reading)


class Running:
    """A request from its beginning on."""

    def __init__(self, backend: Backend, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]):
        self._began = time.monotonic()
        self._midway: Activity | None = None  # of the last wait
        self._over = threading.Event()
        self._answer: list[np.ndarray] | BackendError | None = None
        threading.Thread(
            target=self._work, args=(backend, signature, inputs, outputs), name="warm-up", daemon=True
        ).start()

    def wait(self, deadline: float) -> bool:
        """Waits until it is over, or for `deadline`; whether it is over."""
        now = time.monotonic()
        if deadline > now and not self._over.wait((deadline - now) / 2):
            # What a run does first, such as to choose kernels, says nothing of whether it will end.
            self._midway = _activity()
            self._over.wait(max(deadline - time.monotonic(), 0.0))
        return self._over.is_set()

    def answer(self) -> list[np.ndarray]:
        """What came of it, once it is over. Raises BackendError."""
        assert self._answer is not None
        if isinstance(self._answer, BackendError):
            raise self._answer
        return self._answer

    def idle_seconds(self) -> float:
        """How long it has run, if it hangs by all appearances, else 0."""
        now = _activity()
        seconds = now.moment - self._began
        if self._midway is None or seconds < _LEAST_SECONDS or not hangs(self._midway, now):
            return 0.0
        return seconds

    def _work(self, backend: Backend, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> None:
        try:
            self._answer = backend.run(signature, inputs, outputs)
        except BackendError as error:
            self._answer = error
        except Exception as error:  # noqa: BLE001 - the outer loop of this thread: whatever a model raises is its refusal
            self._answer = BackendError(Code.INTERNAL, f"{type(error).__name__}: {error}")
        self._over.set()
