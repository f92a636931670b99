"""Carries requests from a front to the worker of the version that they ask for. Runs in one asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from appliance.dataplane import shared
from appliance.dataplane.channel import Channel
from appliance.dataplane.wire import (
    FLAG_DESCRIPTOR,
    FLAG_DRAINING,
    FLAG_SHARED,
    FLAG_UNPROVEN,
    SEGMENT_ID,
    Buffer,
    Frame,
    Kind,
    Packed,
    WireError,
    header,
    inline,
    pack_arrays,
    predict_meta,
    unpack_arrays,
)
from appliance.errors import Code, ServingError
from appliance.questions import Questions
from appliance.routes import ModelRoute, Snapshot, VersionRoute
from appliance.servable import ModelSpec

__all__ = ["ModelRoute", "Router", "Snapshot", "VersionRoute"]

logger = logging.getLogger(__name__)

_RETRIES = 3
_MAX_SECOND_OPINIONS = 8
# What says nothing of the model: the queue is full, time is up, nobody waits, the process is gone or going.
_NO_ANSWER = frozenset({Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE})
_SNAPSHOT_WAIT_SECONDS = 2.0
# What stands by does so for 30 s after it was last asked for: it is not asked for at every request.
_STANDING_SECONDS = 5.0


class _DiedError(ServingError):
    """The worker ended while it held the request."""

    def __init__(self, name: str) -> None:
        super().__init__(
            Code.UNAVAILABLE,
            f"The worker of {name} ended while it held the request",
            "it is being restarted; try again",
            retry_after_seconds=1,
        )


class _DrainingError(Exception):
    """The worker did not run the request, because it is going. Another one may."""


class _UnprovenError(ServingError):
    """The worker did not run the request, because its form was not proven for such inputs."""


class _NobodyError(Exception):
    """The model itself does not stand by."""


Arrays = dict[str, np.ndarray]


class _Pending:
    __slots__ = ("future", "segment")

    def __init__(self, future: asyncio.Future[Arrays], segment: int | None) -> None:
        self.future = future
        self.segment = segment


class _Connection:
    """One multiplexed connection to one worker."""

    def __init__(self, route: VersionRoute, model: str, shared_memory_bytes: int) -> None:
        self._name = f"model {model} version {route.version}"
        self._loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(route.socket_path)  # local, and the worker listens: it does not block
        except OSError:
            sock.close()
            raise
        self._channel = Channel(sock)
        self._pool = shared.SegmentPool(shared_memory_bytes)
        self._pending: dict[int, _Pending] = {}
        self._peer_segments: dict[int, int] = {}  # the worker's segments: number → descriptor
        self._next_id = 1
        self._goodbye = False
        self._leaving = False
        self.open = True
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def submit(self, signature: str, outputs: Sequence[str], packed: Packed, deadline_ns: int) -> tuple[int, _Pending]:
        """Sends a request; the answer arrives in the pending's future."""
        request_id = self._next_id
        self._next_id += 1
        meta = predict_meta(signature, outputs, packed.table)
        segment = self._pool.acquire(packed.payload_bytes) if packed.payload_bytes >= shared.THRESHOLD_BYTES else None
        for number in self._pool.forgotten:
            self._send([header(Kind.FORGET, SEGMENT_ID.size, 0), SEGMENT_ID.pack(number)])
        self._pool.forgotten.clear()
        if segment is None:
            head = header(Kind.PREDICT, len(meta), packed.payload_bytes, request_id, deadline_ns)
            self._send([head + meta, *inline(packed)])
        else:
            segment.write(packed.chunks)
            flags = FLAG_SHARED if segment.announced else FLAG_SHARED | FLAG_DESCRIPTOR
            meta = SEGMENT_ID.pack(segment.number) + meta
            head = header(Kind.PREDICT, len(meta), packed.payload_bytes, request_id, deadline_ns, flags)
            self._send([head + meta], None if segment.announced else segment.descriptor)
            segment.announced = True
        future: asyncio.Future[Arrays] = self._loop.create_future()
        pending = _Pending(future, None if segment is None else segment.number)
        self._pending[request_id] = pending
        return request_id, pending

    def cancel(self, request_id: int) -> None:
        """Tells the worker that nobody waits. Its answer still comes, and frees the request's segment."""
        if self.open and request_id in self._pending:
            self._send([header(Kind.CANCEL, 0, 0, request_id)])

    def leave(self) -> None:
        """Closes the connection once nothing is pending: the version is no longer routed."""
        self._leaving = True
        if not self._pending:
            self._close()

    def _send(self, buffers: Sequence[Buffer], descriptor: int | None = None) -> None:
        with contextlib.suppress(EOFError):  # the reader sees the end, and fails what is pending
            if self.open and not self._channel.send(buffers, descriptor):
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
            # The worker runs an untrusted model: what it sends is checked, and a liar loses its connection.
            logger.error("closed the connection to the worker of %s: %r", self._name, error)
            self._close()

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind in (Kind.RESULT, Kind.ERROR):
            pending = self._pending.pop(frame.request_id)
            if pending.segment is not None:
                self._pool.release(pending.segment)
            answer: Arrays | Exception = self._result(frame) if frame.kind == Kind.RESULT else _error(frame)
            if not pending.future.done():
                if isinstance(answer, Exception):
                    pending.future.set_exception(answer)
                else:
                    pending.future.set_result(answer)
            if self._leaving and not self._pending:
                self._close()
        elif frame.kind == Kind.GOODBYE:
            self._goodbye = True
        elif frame.kind == Kind.FORGET:
            descriptor = self._peer_segments.pop(SEGMENT_ID.unpack(frame.meta)[0], None)
            if descriptor is not None:
                os.close(descriptor)
        else:
            raise WireError(f"a frame of kind {frame.kind}")

    def _result(self, frame: Frame) -> Arrays:
        meta, payload = frame.meta, frame.payload
        if payload is None:
            (number,) = SEGMENT_ID.unpack_from(meta)
            meta = meta[SEGMENT_ID.size :]
            if frame.flags & FLAG_DESCRIPTOR:
                self._peer_segments[number] = self._channel.take_descriptor()
            try:
                payload = shared.read(self._peer_segments[number], frame.payload_bytes)
            except (OSError, MemoryError) as error:
                raise WireError(f"a shared segment that cannot be read: {error}") from error
            self._send([header(Kind.RELEASE, SEGMENT_ID.size, 0), SEGMENT_ID.pack(number)])
        return unpack_arrays(meta, payload)

    def _close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._channel.sock.fileno())
        self._loop.remove_writer(self._channel.sock.fileno())
        self._channel.close()
        self._pool.close()
        for descriptor in self._peer_segments.values():
            os.close(descriptor)
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(_DrainingError() if self._goodbye else _DiedError(self._name))
        self._pending.clear()


def _error(frame: Frame) -> Exception:
    if frame.flags & FLAG_DRAINING:
        return _DrainingError()
    code = Code(frame.meta[0]) if frame.meta and frame.meta[0] in Code.__members__.values() else Code.INTERNAL
    message = frame.meta[1:].decode(errors="replace")
    if frame.flags & FLAG_UNPROVEN:
        return _UnprovenError(
            code,
            f"TensorFlow has to answer this request, and could not be loaded: {message}",
            "try again; acceleration = off for this model lets TensorFlow answer all",
            retry_after_seconds=1,
        )
    return ServingError(code, message, retry_after_seconds=1 if code is Code.RESOURCE_EXHAUSTED else None)


class Router:
    """The front's view of the models, and its way to them."""

    def __init__(self, control_path: str, role: str, shared_memory_bytes: int, max_inflight_bytes: int) -> None:
        self._control_path = control_path
        self._role = role
        self._shared_memory_bytes = shared_memory_bytes
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._connections: dict[str, _Connection] = {}
        self._aside: dict[str, _Connection] = {}  # to workers that are not routed: they judge what a form refused
        self._opinions = 0  # that are being asked for now
        self._standing: dict[str, tuple[str, float]] = {}  # by the socket of its form: its own, and when it was asked
        self._changed: asyncio.Event | None = None
        self._questions = Questions(self._say, "the server", "see its log")
        self.snapshot = Snapshot()
        self.on_snapshot: Callable[[Snapshot], None] = lambda _: None
        self.on_inflight: Callable[[int], None] = lambda _: None  # is told the bytes in flight when they change

    async def start(self, on_lost: Callable[[], None]) -> None:
        """Gets the first snapshot and keeps up with the next ones. `on_lost` is called when the supervisor is gone.

        Raises TimeoutError where the supervisor gives no snapshot within 30 seconds.
        """
        self._changed = asyncio.Event()
        reader, self._writer = await asyncio.open_unix_connection(self._control_path, limit=256 * 1024 * 1024)
        self._say({"role": self._role, "pid": os.getpid()})
        await asyncio.wait_for(self._receive(reader), 30)
        self._task = asyncio.create_task(self._follow(reader, on_lost))

    def say_serving(self) -> None:
        """Tells the supervisor that this front takes requests now."""
        self._say({"serving": True})

    async def _receive(self, reader: asyncio.StreamReader) -> bool:
        line = await reader.readline()
        if not line:
            return False
        message = json.loads(line)
        if "answer_to" in message:
            self._questions.answered(message)
            return True
        self._adopt(Snapshot.from_json(message["snapshot"]))
        self._say({"ack": self.snapshot.serial})
        return True

    async def call(self, method: str, params: Mapping[str, Any], seconds: float) -> Any:
        """Asks the supervisor to do `method`; its answer, plain JSON values both ways.

        Raises ServingError: what the supervisor answers, or DEADLINE_EXCEEDED after `seconds`.
        """
        return await self._questions.ask(method, params, seconds)

    def _say(self, message: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _follow(self, reader: asyncio.StreamReader, on_lost: Callable[[], None]) -> None:
        try:
            while await self._receive(reader):
                pass
        except OSError:
            pass
        except Exception:
            logger.exception("lost the supervisor's snapshots")
        on_lost()

    def _adopt(self, snapshot: Snapshot) -> None:
        routed = {
            version.socket_path: (model, version)
            for model in snapshot.models.values()
            for version in model.versions
            if version.available
        }
        for path in [path for path in self._connections if path not in routed]:
            self._connections.pop(path).leave()
            self._standing.pop(path, None)
        for path, (model, version) in routed.items():
            if path not in self._connections:
                with contextlib.suppress(OSError):  # the worker has just died: the next snapshot says so
                    self._connections[path] = _Connection(version, model.name, self._shared_memory_bytes)
        self.snapshot = snapshot
        assert self._changed is not None
        self._changed.set()
        self._changed = asyncio.Event()
        self.on_snapshot(snapshot)

    def reserve(self, nbytes: int, already: int = 0) -> None:
        """Counts `nbytes` of a request as in flight. Raises RESOURCE_EXHAUSTED where that is too much.

        A request that is alone (it has `already` reserved all there is) is taken whatever its size; its own limit is
        max_request_bytes.
        """
        if self._inflight_bytes > already and self._inflight_bytes + nbytes > self._max_inflight_bytes:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"{self._inflight_bytes:,} bytes of requests are in flight already, and this one has {nbytes:,}",
                f"try again, or raise max_inflight_bytes (this front's share is {self._max_inflight_bytes:,})",
                retry_after_seconds=1,
            )
        self._inflight_bytes += nbytes
        self.on_inflight(self._inflight_bytes)

    def release(self, nbytes: int) -> None:
        self._inflight_bytes -= nbytes
        self.on_inflight(self._inflight_bytes)

    async def predict(
        self,
        spec: ModelSpec,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        deadline_ns: int,
    ) -> Arrays:
        """Runs one request on the version that `spec` asks for, and returns its `outputs` by name.

        `deadline_ns` is in CLOCK_MONOTONIC nanoseconds. Raises ServingError.
        """
        packed = pack_arrays(inputs.items())
        unproven: _UnprovenError | None = None
        for _ in range(_RETRIES):
            serial = self.snapshot.serial
            model, version = self.snapshot.resolve(spec)
            connection = self._connections.get(version.socket_path)
            if connection is not None and connection.open:
                try:
                    return await self._ask(connection, signature, outputs, packed, deadline_ns)
                except _DrainingError:
                    pass
                except _UnprovenError as error:
                    unproven = error
                    with contextlib.suppress(_NobodyError):
                        return await self._by_the_model(model.name, version, signature, outputs, packed, deadline_ns)
                except ServingError as error:
                    died = isinstance(error, _DiedError)
                    if not version.accelerated or (error.code in _NO_ANSWER and not died):
                        raise
                    return await self._second_opinion(
                        model.name, version, signature, outputs, packed, deadline_ns, error
                    )
            await self._newer_snapshot(serial, deadline_ns)
        if unproven is not None:
            if time.monotonic_ns() >= deadline_ns:
                raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out while TensorFlow was loaded for this request")
            raise unproven
        raise ServingError(
            Code.UNAVAILABLE,
            f"Model {model.name} version {version.version} has no worker that takes requests",
            "it is being replaced or restarted; try again",
            retry_after_seconds=1,
        )

    async def _ask(
        self, connection: _Connection, signature: str, outputs: Sequence[str], packed: Packed, deadline_ns: int
    ) -> Arrays:
        request_id, pending = connection.submit(signature, outputs, packed, deadline_ns)
        future = pending.future
        delay = (deadline_ns - time.monotonic_ns()) / 1e9
        timer = asyncio.get_running_loop().call_later(max(delay, 0), _expire, future)
        try:
            return await future
        except BaseException:
            connection.cancel(request_id)
            raise
        finally:
            timer.cancel()

    async def _second_opinion(
        self,
        model: str,
        version: VersionRoute,
        signature: str,
        outputs: Sequence[str],
        packed: Packed,
        deadline_ns: int,
        error: ServingError,
    ) -> Arrays:
        """What the model itself answers, where its accelerated form failed with `error`. Where it answers, the form is
        demoted; where it refuses too, that is the client's error, and its words are the model's own."""
        if self._opinions >= _MAX_SECOND_OPINIONS:
            raise error
        self._opinions += 1
        try:
            try:
                arrays = await self._by_the_model(model, version, signature, outputs, packed, deadline_ns)
            except _NobodyError:
                raise error from None
            if not isinstance(error, _DiedError):  # the supervisor knows of deaths by itself
                why = f"{version.accelerated} failed where TensorFlow answers: {error}"
                self._questions.tell("demote", {"model": model, "version": version.version, "why": why})
            return arrays
        finally:
            self._opinions -= 1

    async def _by_the_model(
        self,
        model: str,
        version: VersionRoute,
        signature: str,
        outputs: Sequence[str],
        packed: Packed,
        deadline_ns: int,
    ) -> Arrays:
        """What the model itself answers, which is loaded beside its accelerated form if need be. Raises ServingError,
        _NobodyError where it is not to be had."""
        path, asked = self._standing.get(version.socket_path, ("", 0.0))
        known = self._aside.get(path)
        if known is None or not known.open or time.monotonic() - asked > _STANDING_SECONDS:
            seconds = max((deadline_ns - time.monotonic_ns()) / 1e9, 0.0)
            which = {"model": model, "version": version.version, "seconds": seconds}
            try:
                path = await self.call("stand_by", which, seconds)
                known = self._aside_to(path, version, model)
            except (ServingError, OSError) as error:
                raise _NobodyError from error
            self._standing[version.socket_path] = path, time.monotonic()
        try:
            return await self._ask(known, signature, outputs, packed, deadline_ns)
        except _DrainingError as error:
            self._standing.pop(version.socket_path, None)
            raise _NobodyError from error

    def _aside_to(self, path: str, version: VersionRoute, model: str) -> _Connection:
        """A connection to the worker at `path`, whether it is routed or not. Raises OSError where it is gone."""
        self._aside = {known: found for known, found in self._aside.items() if found.open}
        connection = self._connections.get(path) or self._aside.get(path)
        if connection is None or not connection.open:
            connection = self._aside[path] = _Connection(
                replace(version, socket_path=path), model, self._shared_memory_bytes
            )
        return connection

    async def _newer_snapshot(self, serial: int, deadline_ns: int) -> None:
        delay = min(_SNAPSHOT_WAIT_SECONDS, (deadline_ns - time.monotonic_ns()) / 1e9)
        if self.snapshot.serial > serial or delay <= 0:
            return
        assert self._changed is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), delay)


def _expire(future: asyncio.Future[Arrays]) -> None:
    if not future.done():
        future.set_exception(ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for the model's answer"))
