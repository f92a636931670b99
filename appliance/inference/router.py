"""Carries requests from a front to the worker of the version that they ask for. Runs in one asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from appliance.core.errors import Code, ServingError
from appliance.core.poison import refusal, shape_text
from appliance.core.questions import Questions
from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import ModelSpec
from appliance.transport.connection import Arrays, Connection, DiedError, DrainingError, UnprovenInputError
from appliance.transport.wire import Packed, pack_arrays

__all__ = ["ModelRoute", "Router", "Snapshot", "VersionRoute"]

logger = logging.getLogger(__name__)

_RETRIES = 3
_MAX_SECOND_OPINIONS = 8
_MAX_WANTED = 300  # characters of a signature's inputs in an error
# What says nothing of the model: the queue is full, time is up, nobody waits, the process is gone or going.
_NO_ANSWER = frozenset({Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE})
_SNAPSHOT_WAIT_SECONDS = 2.0
# What stands by does so for 30 s after it was last asked for: it is not asked for at every request.
_STANDING_SECONDS = 5.0


class _NobodyError(Exception):
    """The model itself does not stand by."""


class Router:
    """The front's view of the models, and its way to them."""

    def __init__(self, control_path: str, role: str, shared_memory_bytes: int, max_inflight_bytes: int) -> None:
        self._control_path = control_path
        self._role = role
        self._shared_memory_bytes = shared_memory_bytes
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._connections: dict[str, Connection] = {}
        self._aside: dict[str, Connection] = {}  # to workers that are not routed: they judge what a form refused
        self._opinions = 0  # that are being asked for now
        self._standing: dict[str, tuple[str, float]] = {}  # by the socket of its form: its own, and when it was asked
        self._changed: asyncio.Event | None = None
        self._questions = Questions(self._say, "the server", "see its log")
        self.snapshot = Snapshot()
        self.on_snapshot: Callable[[Snapshot], None] = lambda _: None
        self.on_inflight: Callable[[int], None] = lambda _: None  # is told the bytes in flight when they change
        # Are told the model of a request that its form was not proven for, and of one that is refused as it has ended
        # the version's process.
        self.on_unproven: Callable[[str], None] = lambda _: None
        self.on_refused: Callable[[str], None] = lambda _: None

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
                    self._connections[path] = Connection(version, model.name, self._shared_memory_bytes)
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
        unproven: UnprovenInputError | None = None
        for _ in range(_RETRIES):
            serial = self.snapshot.serial
            model, version = self.snapshot.resolve(spec)
            if version.refused:
                self._check_not_refused(model, version, signature, inputs)
            connection = self._connections.get(version.socket_path)
            if connection is not None and connection.open:
                try:
                    return await self._ask(connection, signature, outputs, packed, deadline_ns)
                except DrainingError:
                    pass
                except UnprovenInputError as error:
                    if unproven is None:
                        self.on_unproven(model.name)
                    unproven = error
                    with contextlib.suppress(_NobodyError):
                        return await self._by_the_model(model.name, version, signature, outputs, packed, deadline_ns)
                except ServingError as error:
                    died = isinstance(error, DiedError)
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

    def _check_not_refused(
        self, model: ModelRoute, version: VersionRoute, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> None:
        """Raises INVALID_ARGUMENT for a request of a kind that has ended the version's process before."""
        declared = version.signatures.get(signature)
        found = None if declared is None else refusal(version.refused, signature, declared, inputs)
        if found is None or declared is None:
            return
        self.on_refused(model.name)
        wanted = ", ".join(f"{name}: {spec.dtype} {shape_text(spec.shape)}" for name, spec in declared.inputs.items())
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"Refused by model {model.name} version {version.version}: {found}",
            f"the signature takes {wanted[:_MAX_WANTED]}",
        )

    async def _ask(
        self, connection: Connection, signature: str, outputs: Sequence[str], packed: Packed, deadline_ns: int
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
            if not isinstance(error, DiedError):  # the supervisor knows of deaths by itself
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
        except DrainingError as error:
            self._standing.pop(version.socket_path, None)
            raise _NobodyError from error

    def _aside_to(self, path: str, version: VersionRoute, model: str) -> Connection:
        """A connection to the worker at `path`, whether it is routed or not. Raises OSError where it is gone."""
        self._aside = {known: found for known, found in self._aside.items() if found.open}
        connection = self._connections.get(path) or self._aside.get(path)
        if connection is None or not connection.open:
            connection = self._aside[path] = Connection(
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
