"""Runs a request in a thread of its own, so that one that never ends blocks nothing; and tells if it seems to hang."""

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
    """How busy this process had been by `moment` (monotonic seconds).

    Its threads `ran` and `waited` for a processor for so many seconds in all. It was `reading` if a thread waited for a
    disk or a file system at that moment.
    """

    moment: float
    ran: float
    waited: float
    reading: bool


def hangs(before: Activity, after: Activity) -> bool:
    """Return whether a process that had work did almost nothing between the two moments."""
    seconds = after.moment - before.moment
    busy = (
        after.ran - before.ran + max(after.waited - before.waited, 0.0)
    )  # less if threads with waiting times have ended
    return not (before.reading or after.reading) and busy < _IDLE_SHARE * seconds


def _activity() -> Activity:
    """Return the activity of this process now."""
    waited, reading = 0.0, False
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
                waited += int(file.read().split()[1]) / 1e9
            with open(f"/proc/self/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
                reading = reading or file.read().rpartition(")")[2].split()[0] == "D"
        except (OSError, IndexError):  # the thread has ended, or this kernel does not tell
            continue
    return Activity(time.monotonic(), time.process_time(), waited, reading)


class Running:
    """A request that runs in its own thread; making it starts the run."""

    def __init__(self, backend: Backend, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]):
        self._began = time.monotonic()
        self._midway: Activity | None = None  # in the middle of the last wait
        self._over = threading.Event()
        self._answer: list[np.ndarray] | BackendError | None = None
        threading.Thread(
            target=self._work, args=(backend, signature, inputs, outputs), name="warm-up", daemon=True
        ).start()

    def wait(self, deadline: float) -> bool:
        """Wait until the run is over or `deadline` (monotonic seconds) has come; return whether it is over."""
        now = time.monotonic()
        if deadline > now and not self._over.wait((deadline - now) / 2):
            # Only the second half counts: the work of the first, such as choosing kernels, is no sign of an end.
            self._midway = _activity()
            self._over.wait(max(deadline - time.monotonic(), 0.0))
        return self._over.is_set()

    def answer(self) -> list[np.ndarray]:
        """Return the outputs; call it once the run is over. Raise BackendError if it has failed."""
        assert self._answer is not None
        if isinstance(self._answer, BackendError):
            raise self._answer
        return self._answer

    def idle_seconds(self) -> float:
        """Return for how many seconds the run has gone on if it seems to hang, else 0."""
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
        except Exception as error:  # noqa: BLE001 - the outer loop of this thread: every error is the model's
            self._answer = BackendError(Code.INTERNAL, f"{type(error).__name__}: {error}")
        self._over.set()
