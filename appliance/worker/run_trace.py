"""Traces a worker's runs if its framework has no profiler. Each run of the model is an event.

The format is XSpace, which TensorFlow's profiler writes and TensorBoard reads (tsl/profiler/protobuf/xplane.proto). It
is encoded by https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from appliance.protocols.wire_format import field, varint
from appliance.worker.merging import Merging
from backends.contract import BackendError, Code

__all__ = ["RunTracer"]

_MAX_EVENTS = 1_000_000
_PLANE = b"/host:CPU"  # the only name under which TensorBoard's trace viewer shows threads
_STATS = (b"rows", b"requests")  # of each run: its number of rows, and of requests


@dataclass(frozen=True, slots=True)
class _Run:
    """One run. `end_ns` is of the wall clock, because TensorBoard shows all workers on one time axis."""

    thread: int
    signature: str
    rows: int
    requests: int
    end_ns: int
    nanoseconds: int


class RunTracer:
    """Traces what `merging` runs while a trace is asked for, and costs nothing otherwise."""

    def __init__(self, merging: Merging) -> None:
        self._merging = merging
        self._one = threading.Lock()  # one trace at a time, as in TensorFlow's profiler
        self._ending = threading.Condition()
        self._ended: deque[str] = deque(maxlen=1)  # the last trace that was ended, perhaps before it began

    def profile(self, seconds: float, trace: str, file: int) -> dict[str, Any]:
        """Trace for `seconds` or until `end(trace)`, and write the XSpace to the open `file`.

        Return its size as "bytes" and whether it "has_events". Raise BackendError (ALREADY_EXISTS) if another trace
        runs, and OSError if the file cannot be written.
        """
        if not self._one.acquire(blocking=False):
            raise BackendError(Code.ALREADY_EXISTS, "another trace runs already; wait for its end")
        try:
            runs: deque[_Run] = deque(maxlen=_MAX_EVENTS)
            counted = self._merging.on_run

            def on_run(signature: str, rows: int, requests: int, seconds: float) -> None:
                counted(signature, rows, requests, seconds)
                nanoseconds = int(seconds * 1e9)
                runs.append(_Run(threading.get_native_id(), signature, rows, requests, time.time_ns(), nanoseconds))

            self._merging.on_run = on_run
            try:
                with self._ending:
                    self._ending.wait_for(lambda: trace in self._ended, seconds)
            finally:
                self._merging.on_run = counted
            data = _xspace(list(runs))
            with open(file, "wb", closefd=False) as target:
                target.write(data)
        finally:
            self._one.release()
        return {"bytes": len(data), "has_events": bool(runs)}

    def end(self, trace: str) -> None:
        """End the trace, which keeps the events that it has."""
        with self._ending:
            self._ended.append(trace)
            self._ending.notify_all()


def _xspace(runs: list[_Run]) -> bytes:
    """Return an XSpace with one plane, which has a line for each thread and an event for each run."""
    lines: dict[int, list[_Run]] = {}
    for run in runs:
        lines.setdefault(run.thread, []).append(run)
    names = {name: number for number, name in enumerate(sorted({run.signature for run in runs}), 1)}
    plane = _number(1, 1) + field(2, _PLANE)
    for order, (thread, its_runs) in enumerate(lines.items()):
        plane += field(3, _line(order, thread, its_runs, names))
    for name, number in names.items():
        plane += field(4, _metadata(number, name.encode()))
    for number, stat in enumerate(_STATS, 1):
        plane += field(5, _metadata(number, stat))
    return field(1, plane)


def _line(order: int, thread: int, runs: list[_Run], names: dict[str, int]) -> bytes:
    start_ns = min(run.end_ns - run.nanoseconds for run in runs)
    parts = [_number(1, thread), field(2, b"serve-%d" % order), _number(3, start_ns)]
    for run in runs:
        offset = run.end_ns - run.nanoseconds - start_ns
        event = _number(1, names[run.signature]) + _number(2, offset * 1000) + _number(3, run.nanoseconds * 1000)
        for number, value in enumerate((run.rows, run.requests), 1):
            event += field(4, _number(1, number) + _number(4, value))
        parts.append(field(4, event))
    return b"".join(parts)


def _metadata(number: int, name: bytes) -> bytes:
    """Return an entry of a map from `number` to a name. XEventMetadata and XStatMetadata begin with the same fields."""
    return _number(1, number) + field(2, _number(1, number) + field(2, name))


def _number(number: int, value: int) -> bytes:
    """Return field `number` with a value that is not negative."""
    return bytes([number << 3]) + varint(value)
