"""A front's connection to one worker: sends requests and matches the answers. Runs in one asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable, Sequence

import numpy as np

from appliance.core.errors import Code, ServingError
from appliance.core.limits import MAX_STRINGS
from appliance.core.routes import VersionRoute
from appliance.transport.channel import Channel
from appliance.transport.wire import (
    FLAG_DRAINING,
    FLAG_UNPROVEN,
    LENGTH_BYTES,
    SEGMENT_ID,
    Buffer,
    Frame,
    Kind,
    Packed,
    WireError,
    count_strings,
    header,
    predict_meta,
    small_frame,
    unpack_arrays,
)

__all__ = ["Arrays", "Connection", "DiedError", "Done", "DrainingError", "UnprovenInputError", "answer_too_large"]

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 1  # in which this front does nothing else


class DiedError(ServingError):
    """The worker ended while it had the request, which may have run."""

    def __init__(self, name: str) -> None:
        super().__init__(
            Code.UNAVAILABLE,
            f"The worker of {name} ended while it held the request",
            "it is being restarted; try again",
            retry_after_seconds=1,
        )


class DrainingError(Exception):
    """The worker is shutting down and did not run the request. Another worker may run it."""


class UnprovenInputError(ServingError):
    """The worker did not run the request, because its form was not proven for such inputs."""


Arrays = dict[str, np.ndarray]

Done = Callable[[Arrays | Exception], None]
"""Takes the answer to one request: its arrays by output name, or a ServingError or DrainingError. It raises nothing."""

_GATHERED_BYTES = 16384  # of a request; to copy more would cost as much as another system call
_NEVER = 1 << 64  # later than any deadline (CLOCK_MONOTONIC, nanoseconds)


class Pending:
    """A request without an answer yet, and the number of its segment, if it has one.

    `done` is None once nobody wants the answer any more.
    """

    __slots__ = ("deadline_ns", "done", "segment")

    def __init__(self, done: Done, deadline_ns: int, segment: int | None) -> None:
        self.done: Done | None = done
        self.deadline_ns = deadline_ns
        self.segment = segment


class Connection:
    """A multiplexed connection to one worker, of which an answer may have `max_answer_bytes`."""

    def __init__(self, route: VersionRoute, model: str, max_answer_bytes: int) -> None:
        self._max_answer_bytes = max_answer_bytes
        self._name = f"model {model} version {route.version}"
        self._loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The worker listens, so this waits only if it accepts nobody, and as many as may wait already do.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _CONNECT_SECONDS, 0))
            sock.connect(route.socket_path)
        except OSError:
            sock.close()
            raise
        self._channel = Channel(sock, max_kept_bytes=max_answer_bytes)
        self._pending: dict[int, Pending] = {}
        # One timer, set to the first deadline: one for each request would cost more than the look at all of them.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = _NEVER
        self._gathered: list[Buffer] = []  # frames that are sent at the end of this pass of the loop
        self._next_id = 1
        self._goodbye = False
        self._leaving = False
        self.open = True
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def submit(self, signature: str, outputs: Sequence[str], packed: Packed, deadline_ns: int, done: Done) -> int:
        """Send a request; return its number. `done` is called once with the answer, later, unless `cancel` is before.

        `deadline_ns` is in CLOCK_MONOTONIC nanoseconds. The answer is arrays by output name, DrainingError if the
        request did not run, or a ServingError: DEADLINE_EXCEEDED, DiedError, UnprovenInputError or the worker's own.
        """
        request_id = self._next_id
        self._next_id += 1
        meta = predict_meta(signature, outputs, packed.table)
        segment = None
        if packed.payload_bytes <= _GATHERED_BYTES:
            self._send(small_frame(Kind.PREDICT, request_id, meta, packed, deadline_ns))
        elif self.open:
            self._flush()
            with contextlib.suppress(EOFError):  # as in `_flush`
                sent, segment = self._channel.send_arrays(Kind.PREDICT, request_id, meta, packed, deadline_ns)
                if not sent:
                    self._loop.add_writer(self._channel.sock.fileno(), self._on_writable)
        self._pending[request_id] = Pending(done, deadline_ns, segment)
        if deadline_ns < self._timer_ns:
            self._set_timer(deadline_ns)
        return request_id

    async def ask(self, signature: str, outputs: Sequence[str], packed: Packed, deadline_ns: int) -> Arrays:
        """Send a request, and return the answer's arrays by output name. Raise the errors of `submit`."""
        future: asyncio.Future[Arrays] = self._loop.create_future()

        def done(answer: Arrays | Exception) -> None:
            if future.done():  # cancelled in this pass of the loop
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        request_id = self.submit(signature, outputs, packed, deadline_ns, done)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(request_id)
            raise

    def cancel(self, request_id: int) -> None:
        """Tell the worker that the caller has gone. The answer still comes, and frees the request's segment."""
        pending = self._pending.get(request_id)
        if pending is None:
            return
        pending.done = None
        self._send([header(Kind.CANCEL, 0, 0, request_id)])

    def _set_timer(self, deadline_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = deadline_ns
        # A millisecond later, because the loop counts in milliseconds, and would call too early.
        delay = (deadline_ns - time.monotonic_ns()) / 1e9 + 0.001
        self._timer = self._loop.call_later(max(delay, 0), self._expire)

    def _expire(self) -> None:
        """End the requests whose deadline has passed, and set the timer to the next deadline."""
        self._timer, self._timer_ns = None, _NEVER
        now_ns = time.monotonic_ns()
        waiting = [(number, pending) for number, pending in self._pending.items() if pending.done is not None]
        next_ns = min([pending.deadline_ns for _, pending in waiting if pending.deadline_ns > now_ns], default=_NEVER)
        if next_ns < _NEVER:
            self._set_timer(next_ns)
        for number, pending in waiting:
            done = pending.done
            if pending.deadline_ns <= now_ns and done is not None:
                self.cancel(number)
                done(ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for the model's answer"))

    def leave(self) -> None:
        """Close the connection once no request is pending, because the version is no longer routed."""
        self._leaving = True
        if not self._pending:
            self._close()

    def _send(self, frame: Sequence[Buffer]) -> None:
        """Send a small frame at the end of this pass of the loop, with all others of the pass.

        Each system call may wake the worker, which costs (2026-12: 8 connections, 53 µs of a front's CPU a request
        became 46).
        """
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered += frame

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        with contextlib.suppress(EOFError):  # the reader sees the end of file, and fails all pending requests
            if gathered and self.open and not self._channel.send([b"".join(gathered)]):
                self._loop.add_writer(self._channel.sock.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        with contextlib.suppress(EOFError):
            if not self._channel.flush():
                return
        self._loop.remove_writer(self._channel.sock.fileno())

    def _on_readable(self) -> None:
        try:
            for frame in self._channel.receive():
                self._on_frame(frame)
        except EOFError:
            self._close()
        except (WireError, struct.error, KeyError) as error:
            # The worker runs an untrusted model, so its frames are checked, and the connection is closed if one is
            # malformed.
            logger.error("closed the connection to the worker of %s: %r", self._name, error)
            self._close()

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind in (Kind.RESULT, Kind.ERROR):
            # First, because a malformed answer closes the connection, and its request must be pending then.
            answer: Arrays | Exception = self._result(frame) if frame.kind == Kind.RESULT else _error(frame)
            pending = self._pending.pop(frame.request_id)
            if pending.segment is not None:
                self._channel.release(pending.segment)
            if pending.done is not None:
                pending.done(answer)
            if self._leaving and not self._pending:
                self._close()
        elif frame.kind == Kind.GOODBYE:
            self._goodbye = True
        elif frame.kind == Kind.FORGET:
            self._channel.forget(frame)
        else:
            raise WireError(f"a frame of kind {frame.kind}")

    def _result(self, frame: Frame) -> Arrays | Exception:
        meta, payload = frame.meta, frame.payload
        if payload is not None and len(payload) < frame.payload_bytes:  # the channel has not kept it
            return answer_too_large(self._max_answer_bytes)
        if payload is None:
            meta, payload = self._channel.shared_payload(frame)
            self._send([header(Kind.RELEASE, SEGMENT_ID.size, 0), frame.meta[: SEGMENT_ID.size]])
        # The length of each string is in the payload, so a small one has few.
        if len(payload) > LENGTH_BYTES * MAX_STRINGS and (count := count_strings(meta)) > MAX_STRINGS:
            return ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"The answer has {count:,} strings, more than {MAX_STRINGS:,}",
                "ask for less at once",
            )
        return unpack_arrays(meta, payload)

    def _close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._channel.sock.fileno())
        self._loop.remove_writer(self._channel.sock.fileno())
        self._channel.close()
        if self._timer is not None:
            self._timer.cancel()
        pending, self._pending = self._pending, {}
        for request in pending.values():
            if request.done is not None:
                request.done(DrainingError() if self._goodbye else DiedError(self._name))


def answer_too_large(limit: int) -> ServingError:
    """Return the error for an answer of more than `limit` bytes."""
    return ServingError(
        Code.RESOURCE_EXHAUSTED,
        f"The answer has more than {limit:,} bytes",
        "ask for less at once, or raise max_inflight_bytes, of which each front process has a share",
    )


def _error(frame: Frame) -> Exception:
    if frame.flags & FLAG_DRAINING:
        return DrainingError()
    code = Code(frame.meta[0]) if frame.meta and frame.meta[0] in Code.__members__.values() else Code.INTERNAL
    message = frame.meta[1:].decode(errors="replace")
    if frame.flags & FLAG_UNPROVEN:
        return UnprovenInputError(
            code,
            f"TensorFlow has to answer this request, and could not be loaded: {message}",
            "try again; acceleration = off for this model lets TensorFlow answer all",
            retry_after_seconds=1,
        )
    return ServingError(code, message, retry_after_seconds=1 if code is Code.RESOURCE_EXHAUSTED else None)
