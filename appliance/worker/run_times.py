"""Decides which requests the leader runs without giving up the lead: those that take less time than waking another
thread. Pure.

Only a run that keeps the lead is measured exactly: the others wait for the interpreter beside their own work. So a kind
of requests is tried now and then, once it has taken little enough for that.
"""

from __future__ import annotations

import math
from collections import OrderedDict

__all__ = ["RunTimes"]

_SHORT_SECONDS = 150e-6
"""A run of less is short: with its answer, it costs about what it costs to hand it to another thread."""

_PLAUSIBLE = 8.0  # times as long: a run that took longer was not short, however long it waited for the interpreter
_WEIGHT = 1 / 32  # of the newest run in the average, so that one which the kernel has interrupted decides nothing
_FIRST_RUNS = 4  # of a new kind, before it is tried
_RUNS = 32  # between two trials
_RUNS_AFTER_LOSS = 200  # before the next trial, if a run has held up the others for so long that it lost the lead
_MAX_KINDS = 256
_MAX_KIND_BYTES = 512  # clients choose the kinds, so only short ones are remembered


class _Times:
    """`average` is of the recent runs that kept the lead, in seconds."""

    __slots__ = ("average", "runs_to_trial")

    def __init__(self) -> None:
        self.average = math.inf
        self.runs_to_trial = _FIRST_RUNS


class RunTimes:
    """The times of each kind of requests, from the reading of their inputs to their answer.

    A kind is the meta of a PREDICT frame: signature, outputs, and the inputs' dtypes and shapes.
    """

    def __init__(self, short_seconds: float = _SHORT_SECONDS) -> None:
        self._short_seconds = short_seconds
        self._times: OrderedDict[bytes, _Times] = OrderedDict()  # the kind that was met first comes first

    def may_keep_lead(self, kind: bytes) -> bool:
        """Return whether a request of this kind is to run in the leader: it is probably short, or to be tried."""
        times = self._times.get(kind)
        return times is not None and (times.average < self._short_seconds or not times.runs_to_trial)

    def number_of_short(self, kind: bytes) -> int:
        """Return how many requests of this kind are short together; 0 if not even one is."""
        times = self._times.get(kind)
        return 0 if times is None else int(self._short_seconds / max(times.average, 1e-6))

    def kept_lead(self, kind: bytes, seconds: float) -> None:
        """Note that a request of this kind took so long in the leader."""
        times = self._times.get(kind)
        if times is None:  # forgotten meanwhile
            return
        if times.average < self._short_seconds:
            times.average += (min(seconds, _PLAUSIBLE * self._short_seconds) - times.average) * _WEIGHT
        else:
            times.average = seconds
        times.runs_to_trial = _RUNS

    def lost_lead(self, kind: bytes) -> None:
        """Note that a request of this kind took so long in the leader that another thread had to lead."""
        times = self._times.get(kind)
        if times is not None:
            times.average = math.inf
            times.runs_to_trial = _RUNS_AFTER_LOSS

    def gave_up_lead(self, kind: bytes, seconds: float) -> None:
        """Note that a request of this kind took so long beside a leader."""
        times = self._times.get(kind)
        if times is None:
            if len(kind) > _MAX_KIND_BYTES:
                return
            if len(self._times) >= _MAX_KINDS:
                self._times.popitem(last=False)
            times = self._times[kind] = _Times()
        if seconds > _PLAUSIBLE * self._short_seconds:
            times.runs_to_trial = max(times.runs_to_trial, _RUNS)
        elif times.runs_to_trial:
            times.runs_to_trial -= 1
