"""TensorFlow's own profiler, over the sessions of this process. Only TensorFlow workers import this module."""

from __future__ import annotations

import glob
import os
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from tensorflow.python.framework import errors
from tensorflow.python.profiler.internal import _pywrap_profiler

from backends.contract import BackendError, Code
from backends.reading import open_file

_one = threading.Lock()  # the runtime has one profiler for each process
_ending = threading.Condition()
_ended: deque[str] = deque(maxlen=1)  # the path of the trace that was ended last, perhaps before it started


@dataclass(frozen=True, slots=True)
class Traced:
    """The result of a trace. `has_events` is false if nothing ran, which TensorFlow's own server calls empty."""

    bytes: int
    has_events: bool


def profile(seconds: float, path: str, levels: Mapping[str, int]) -> Traced:
    """Trace for `seconds`, or until `end_profile(path)`, and write the XSpace to the new file `path`.

    Format: tsl/profiler/protobuf/xplane.proto. `levels` are TensorFlow's options by name. Requests are served
    meanwhile, because the runtime traces and writes without the GIL. The session's `stop()` cannot give the XSpace: it
    converts to the trace viewer's format, and drops the rest.

    Raise BackendError: ALREADY_EXISTS while another trace runs, INTERNAL if the profiler fails.
    """
    if not _one.acquire(blocking=False):
        raise BackendError(Code.ALREADY_EXISTS, "another trace runs already; wait for its end")
    try:
        with tempfile.TemporaryDirectory(prefix="tensorflow-", dir=os.path.dirname(path)) as folder:
            session = _pywrap_profiler.ProfilerSession()
            session.start(folder, dict(levels))
            with _ending:
                _ending.wait_for(lambda: path in _ended, seconds)
            session.export_to_tb()
            found = glob.glob(f"{glob.escape(folder)}/plugins/profile/*/*.xplane.pb")
            if len(found) != 1:
                raise BackendError(Code.INTERNAL, f"TensorFlow's profiler wrote {len(found)} traces instead of one")
            os.chmod(found[0], 0o600)
            os.rename(found[0], path)
    except errors.OpError as error:
        raise BackendError(Code.INTERNAL, f"TensorFlow's profiler failed: {error.message}") from None
    finally:
        _one.release()
    return Traced(os.path.getsize(path), _has_events(path))


def end_profile(path: str) -> None:
    """End the trace to `path`: it returns what it has so far."""
    with _ending:
        _ended.append(path)
        _ending.notify_all()


def _has_events(path: str) -> bool:
    """Return whether the XSpace in the file `path` has a plane (field 1) with a line (3) with an event (4).

    It stops at the first event.
    """
    with open_file(*os.path.split(path)) as file:
        return any(
            True
            for plane in file.messages(0, file.size, 1)
            for line in file.messages(*plane, 3)
            for _ in file.messages(*line, 4)
        )
