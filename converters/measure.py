"""Measure how long calls of several forms take, in turns: what else the machine does then slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from converters.report import Timing

__all__ = ["Call", "Calls", "measure"]

Call = Callable[[int], Sequence[int]]
"""Makes so many calls, and returns the nanoseconds of each."""

Calls = Mapping[tuple[str, int], Mapping[str, Call]]
"""By signature and batch size, a call of each form by its name."""

_MAX_SLICE_SECONDS = 0.03
_MIN_SLICE_SECONDS = 0.002
_MAX_CALLS = 200
_MIN_ROUNDS = 5
_MAX_ROUNDS = 25


def measure(calls: Calls, seconds: float, now: Callable[[], float] = time.monotonic) -> dict[str, list[Timing]]:
    """Return the timings of each form, by its name. All take about `seconds` on the clock `now`, but each gets at least
    five rounds."""
    found: dict[str, list[Timing]] = {}
    for index, ((signature, batch), forms) in enumerate(calls.items()):
        begun = now()
        ends = begun + seconds / len(calls)
        share = seconds / len(calls) / len(forms) / _MIN_ROUNDS / 2 if forms else 0.0
        slice_nanoseconds = int(1e9 * min(_MAX_SLICE_SECONDS, max(_MIN_SLICE_SECONDS, share)))
        # The first call of a shape plans memory and compiles kernels; the second tells how many fit in a slice.
        each = {}
        for name, call in forms.items():
            call(1)
            each[name] = max(1, min(_MAX_CALLS, slice_nanoseconds // max(1, call(2)[-1])))
        taken: dict[str, list[int]] = {name: [] for name in forms}
        for number in range(_MAX_ROUNDS):
            if number >= _MIN_ROUNDS and now() > ends:
                break
            names = list(forms)
            first = (number + index) % len(names)  # no form always follows the same one
            for name in names[first:] + names[:first]:
                taken[name] += forms[name](each[name])
        for name, times in taken.items():
            milliseconds = statistics.median(times) / 1e6
            found.setdefault(name, []).append(Timing(signature, batch, milliseconds, len(times)))
    return found
