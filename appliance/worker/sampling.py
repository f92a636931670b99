"""Samples of what a form answers, for TensorFlow to verify: chosen and kept beside the requests, and taken by the
supervisor.

The first runs of a form are kept, and of the others a fraction by chance. Runs whose inputs are unlike all before them
(larger, smaller, of another shape) are kept in preference, since a proof is most likely to have missed those.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from backends.samples import Sample, write_samples

__all__ = ["DUE_COUNT", "DUE_SECONDS", "Chances", "Sampler", "Waiting"]

DUE_COUNT = 64
"""With so many samples, it is time to take them."""

DUE_SECONDS = 10.0
"""And so long after the first of them."""

_MAX_COUNT = 256
_MAX_BYTES = 32 << 20
# Inputs of so many bytes may lie in memory that the front writes again after the answer (`transport.shared`, whose
# threshold counts padding too): what is kept of them is copied before it.
_BORROWED_BYTES = 512 << 10
# Unlike inputs are kept whatever chance says. But where each request is larger than the one before, as a time is, all
# are unlike: only so many are kept, and one more for so many answers.
_FIRST_UNLIKE = 64
_ANSWERS_FOR_UNLIKE = 200
_MAX_SHAPES = 64  # of an input, that are remembered

Arrays = Mapping[str, np.ndarray]


@dataclass(slots=True)
class _Seen:
    """What an input of a signature has been so far: its shapes, and its least and largest value (strings: length)."""

    shapes: set[tuple[int, ...]] = field(default_factory=set)
    least: float = math.inf
    largest: float = -math.inf

    def is_unlike(self, array: np.ndarray, looks_at_values: bool) -> bool:
        """Return whether `array` is of another shape than those before, or has a value beyond theirs; take it in."""
        is_unlike = False
        if array.shape not in self.shapes and len(self.shapes) < _MAX_SHAPES:
            self.shapes.add(array.shape)
            is_unlike = True
        if not looks_at_values or not array.size:
            return is_unlike
        kind = array.dtype.kind
        if kind == "O":
            lengths = [len(element) for element in array.reshape(-1)]
            least, largest = min(lengths), max(lengths)
        elif kind in "iu" or (kind == "f" and array.itemsize > 2):
            least, largest = np.minimum.reduce(array, None), np.maximum.reduce(array, None)
        elif kind in "fV":  # numpy warns of NaN in 16 bits
            wide = array.astype(np.float32)
            least, largest = wide.min(), wide.max()
        else:
            return is_unlike
        if least >= self.least and largest <= self.largest:
            return is_unlike
        # A NaN gets here too, and stays unlike: it compares with nothing.
        self.least = min(self.least, least)
        self.largest = max(self.largest, largest)
        return True


class Chances:
    """Decides which runs are kept: the first `first` answers, then each with the probability `fraction`.

    `chance` gives numbers from 0 to 1.
    """

    def __init__(self, first: int, fraction: float, chance: Callable[[], float] = random.random) -> None:
        self._first = first
        self._fraction = fraction
        self._chance = chance
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._unlike = 0

    def are_over(self, answered: int) -> bool:
        """Return whether none is kept any more after so many answers."""
        return answered > self._first and not self._fraction

    def wants(self, answered: int, signature: str, inputs: Arrays, looks_at_values: bool) -> tuple[bool, bool]:
        """Return whether to keep a run on `inputs`, after which `answered` answers had been given; and whether it is
        unlike those before."""
        is_unlike = False
        for name, array in inputs.items():
            seen = self._seen.get((signature, name))
            if seen is None:
                seen = self._seen[signature, name] = _Seen()
            is_unlike |= seen.is_unlike(array, looks_at_values)
        if is_unlike and self._unlike < _FIRST_UNLIKE + answered // _ANSWERS_FOR_UNLIKE:
            self._unlike += 1
            return True, True
        return answered <= self._first or self._chance() < self._fraction, False


class Waiting:
    """The samples that wait to be taken, at most `max_count` of at most `max_bytes` together.

    If there is no room, those go that are like others, the newest first; the oldest tell where an error began. Pure:
    the caller holds the lock, and passes the time in seconds.
    """

    def __init__(self, max_count: int = _MAX_COUNT, max_bytes: int = _MAX_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._like: deque[tuple[Sample, int]] = deque()
        self._unlike: deque[tuple[Sample, int]] = deque()
        self._bytes = 0
        self._since = 0.0
        self.dropped = 0
        """How many there was no room for, since the last `take`."""

    def __len__(self) -> int:
        return len(self._like) + len(self._unlike)

    def put(self, sample: Sample, is_unlike: bool, now: float) -> None:
        """Keep `sample`, in place of others that are like those before if need be; or drop it."""
        nbytes = _bytes_of(sample.inputs) + _bytes_of(sample.outputs)
        while is_unlike and self._like and nbytes <= self._max_bytes and not self._has_room(nbytes):
            _, freed = self._like.pop()
            self._bytes -= freed
            self.dropped += 1
        if not self._has_room(nbytes):
            self.dropped += 1
            return
        if not len(self):
            self._since = now
        self._bytes += nbytes
        (self._unlike if is_unlike else self._like).append((sample, nbytes))

    def _has_room(self, nbytes: int) -> bool:
        return len(self) < self._max_count and self._bytes + nbytes <= self._max_bytes

    def due(self, now: float) -> float | None:
        """Return in how many seconds it is time to take them, 0 if it is; None if nothing waits."""
        count = len(self)
        if not count:
            return None
        return 0.0 if count >= DUE_COUNT else max(0.0, self._since + DUE_SECONDS - now)

    def take(self) -> list[Sample]:
        """Remove and return all of them, the unlike ones first."""
        taken = [sample for sample, _ in (*self._unlike, *self._like)]
        self._unlike.clear()
        self._like.clear()
        self._bytes = self.dropped = 0
        return taken


class Sampler:
    """The samples of one form. Threads that run it report each run by `ran`, and call `look` after their answers.

    `count_doubtful(answers)` counts answers after `doubt`. A failure in here is printed once, and ends the sampling: it
    never reaches a request.
    """

    def __init__(self, chances: Chances, count_doubtful: Callable[[int], None]) -> None:
        self._chances = chances
        self._count_doubtful = count_doubtful
        self._waiting = Waiting()
        self._answered = 0
        self._is_off = False
        self._is_doubted = False
        self._changed = threading.Condition()  # its lock guards what waits, and the counts
        self._deciding = threading.Lock()  # guards `_chances`, which may look at many values
        self._runs = threading.local()

    # -- beside the requests ---------------------------------------------------------------------------------

    def ran(
        self, signature: str, outputs: Sequence[str], inputs: Arrays, arrays: Sequence[np.ndarray], requests: int
    ) -> None:
        """Note a run that answers so many requests. What must be copied before the answer is copied here."""
        try:
            with self._changed:
                self._answered += requests
                number = self._answered
                if self._is_doubted:
                    self._count_doubtful(requests)
            if self._is_off or self._chances.are_over(number):
                return
            run = number, requests, signature, outputs, inputs, arrays
            if _is_borrowed(inputs):
                self._decide(*run, looks_at_values=False)
            else:
                self._runs.last = run
        except Exception:  # noqa: BLE001 - a request must not fail because of its verification
            self._switch_off()

    def look(self) -> None:
        """Decide whether to keep the last run of this thread, if that is still to be decided."""
        run = getattr(self._runs, "last", None)
        if run is None:
            return
        self._runs.last = None
        try:
            self._decide(*run, looks_at_values=True)
        except Exception:  # noqa: BLE001 - the thread has requests to run
            self._switch_off()

    def _decide(
        self,
        number: int,
        requests: int,
        signature: str,
        outputs: Sequence[str],
        inputs: Arrays,
        arrays: Sequence[np.ndarray],
        *,
        looks_at_values: bool,
    ) -> None:
        with self._deciding:
            is_wanted, is_unlike = self._chances.wants(number, signature, inputs, looks_at_values)
        if not is_wanted:
            return
        if not looks_at_values:
            inputs = {name: array.copy() for name, array in inputs.items()}
        sample = Sample(number, requests, signature, inputs, dict(zip(outputs, arrays, strict=True)))
        with self._changed:
            self._waiting.put(sample, is_unlike, time.monotonic())
            if len(self._waiting) in (1, DUE_COUNT):
                self._changed.notify_all()

    def _switch_off(self) -> None:
        if not self._is_off:
            self._is_off = True
            print("its answers are not verified any more: sampling them failed", file=sys.stderr)
            traceback.print_exc()

    # -- what the supervisor asks ----------------------------------------------------------------------------

    def wait_until_due(self, seconds: float) -> bool:
        """Wait until it is time to take samples, for `seconds` at most; return whether it is."""
        ends = time.monotonic() + seconds
        with self._changed:
            while True:
                now = time.monotonic()
                due = self._waiting.due(now)
                if due == 0.0 or now >= ends:
                    return due == 0.0
                self._changed.wait(ends - now if due is None else min(due, ends - now))

    def take(self, file: int) -> dict[str, int]:
        """Write what waits to an open file; return how many samples it has and of how many requests, how many were
        dropped, and how many answers were given so far. Raise OSError."""
        with self._changed:
            dropped = self._waiting.dropped
            samples = self._waiting.take()
            answered = self._answered
        write_samples(file, samples)
        requests = sum(sample.requests for sample in samples)
        return {"count": len(samples), "requests": requests, "dropped": dropped, "answered": answered}

    def doubt(self, since: int) -> int:
        """Count the answers after the one with the number `since` as doubtful, those to come included; return how many
        there are so far."""
        with self._changed:
            doubtful = self._answered - since
            if not self._is_doubted:
                self._is_doubted = True
                self._count_doubtful(doubtful)
            return doubtful


def _is_borrowed(inputs: Arrays) -> bool:
    """Return whether the inputs may lie in memory that is written again after the answer."""
    nbytes = 0
    for array in inputs.values():
        if array.dtype.hasobject:
            return True
        nbytes += array.nbytes
    return nbytes >= _BORROWED_BYTES


def _bytes_of(arrays: Arrays) -> int:
    return sum(sum(map(len, array.reshape(-1))) if array.dtype.hasobject else array.nbytes for array in arrays.values())
