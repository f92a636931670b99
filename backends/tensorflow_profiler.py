"""TensorFlow's own profiler, over the sessions of this process. Only TensorFlow workers import this module."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from tensorflow.python.framework import errors
from tensorflow.python.platform import gfile
from tensorflow.python.profiler.internal import _pywrap_profiler

from backends.contract import BackendError, Code
from backends.reading import Reader

_one = threading.Lock()  # the runtime has one profiler for each process
_ending = threading.Condition()
_ended: deque[str] = deque(maxlen=1)  # the trace that was ended last, perhaps before it started
# TensorFlow's file system in memory: a process with a model writes no files.
_FOLDER = "ram://trace"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Traced:
    """The result of a trace. `has_events` is false if nothing ran, which TensorFlow's own server calls empty."""

    bytes: int
    has_events: bool


def profile(seconds: float, trace: str, levels: Mapping[str, int], file: int) -> Traced:
    """Trace for `seconds`, or until `end_profile(trace)`, and write the XSpace to the open `file`.

    Format: tsl/profiler/protobuf/xplane.proto. `levels` are TensorFlow's options by name. Requests are served
    meanwhile, because the runtime traces and writes without the GIL. The session's `stop()` cannot give the XSpace: it
    converts to the trace viewer's format, and drops the rest.

    Raise BackendError: ALREADY_EXISTS while another trace runs, INTERNAL if the profiler fails. Raise OSError if the
    file cannot be written.
    """
    if not _one.acquire(blocking=False):
        raise BackendError(Code.ALREADY_EXISTS, "another trace runs already; wait for its end")
    try:
        session = _pywrap_profiler.ProfilerSession()
        session.start(_FOLDER, dict(levels))
        with _ending:
            _ending.wait_for(lambda: trace in _ended, seconds)
        try:
            session.export_to_tb()
            found = gfile.Glob(f"{_FOLDER}/plugins/profile/*/*.xplane.pb")
            if len(found) != 1:
                raise BackendError(Code.INTERNAL, f"TensorFlow's profiler wrote {len(found)} traces instead of one")
            size = _copy(found[0], file)
        finally:
            gfile.DeleteRecursively(_FOLDER)
    except errors.OpError as error:
        raise BackendError(Code.INTERNAL, f"TensorFlow's profiler failed: {error.message}") from None
    finally:
        _one.release()
    return Traced(size, _has_events(file, size))


def end_profile(trace: str) -> None:
    """End the trace: it returns what it has so far."""
    with _ending:
        _ended.append(trace)
        _ending.notify_all()


def _copy(path: str, file: int) -> int:
    """Copy a file of TensorFlow's into the open `file`; return its size."""
    size = 0
    with gfile.GFile(path, "rb") as source, open(file, "wb", closefd=False) as target:
        while data := source.read(_COPY_BYTES):
            size += target.write(data)
    return size


def _has_events(file: int, size: int) -> bool:
    """Return whether the XSpace in the open `file` has a plane (field 1) with a line (3) with an event (4).

    It stops at the first event.
    """
    with Reader(os.fdopen(os.dup(file), "rb"), "the trace", size) as space:
        return any(
            True
            for plane in space.messages(0, space.size, 1)
            for line in space.messages(*plane, 3)
            for _ in space.messages(*line, 4)
        )
