"""A front's view of the models, and its connections to workers and supervisor. Runs in one asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from appliance.core.errors import Code, ServingError
from appliance.core.questions import Questions
from appliance.core.route_updates import LostUpdateError, RouteReader
from appliance.core.routes import Snapshot, VersionRoute
from appliance.transport.connection import Connection, answer_too_large

__all__ = ["Router"]

logger = logging.getLogger(__name__)

_SNAPSHOT_WAIT_SECONDS = 2.0
_START_SECONDS = 30.0
_MAX_LINE_BYTES = 256 * 1024 * 1024
_MAX_BYTES_AT_ONCE = 65536  # of what the supervisor says, before requests have their turn


class Router:
    """The models as this front knows them, and its connections to their workers and to the supervisor."""

    def __init__(
        self,
        control_path: str,
        role: str,
        max_inflight_bytes: int,
        answers: Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:
        """`answers` are what the supervisor may ask, by method: functions that are called in a thread, and return JSON
        values."""
        self._control_path = control_path
        self._role = role
        self._answers = answers or {}
        self._answering: set[asyncio.Task[None]] = set()
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._connections: dict[str, Connection] = {}
        self._aside: dict[str, Connection] = {}  # to standby workers, which are not routed
        self._changed: asyncio.Event | None = None
        self._questions = Questions(self._say, "the server", "see its log")
        self._routes = RouteReader()
        self._heard_bytes = 0
        self.snapshot = Snapshot()
        self.on_snapshot: Callable[[Snapshot], None] = lambda _: None
        self.on_inflight: Callable[[int], None] = lambda _: None  # called with the bytes in flight when they change

    async def start(self, on_lost: Callable[[], None]) -> None:
        """Get the first snapshot, and follow the next ones. `on_lost` is called when the supervisor is gone.

        Raise TimeoutError if the supervisor sends no snapshot within 30 seconds.
        """
        self._changed = asyncio.Event()
        reader, self._writer = await asyncio.open_unix_connection(self._control_path, limit=_MAX_LINE_BYTES)
        self._say({"role": self._role, "pid": os.getpid()})
        async with asyncio.timeout(_START_SECONDS):
            while not self.snapshot.serial and await self._receive(reader):
                pass
        self._task = asyncio.create_task(self._follow(reader, on_lost))

    def say_serving(self) -> None:
        """Tell the supervisor that this front takes requests now."""
        self._say({"serving": True})

    async def _receive(self, reader: asyncio.StreamReader) -> bool:
        line = await reader.readline()
        if not line:
            return False
        message = json.loads(line)
        if "answer_to" in message:
            self._questions.answered(message)
        elif "ping" in message:
            self._say({"alive": True})
        elif "ask" in message:
            task = asyncio.create_task(self._answer(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        else:
            self._hear_routes(message)
        self._heard_bytes += len(line)
        if self._heard_bytes >= _MAX_BYTES_AT_ONCE:
            self._heard_bytes = 0
            await asyncio.sleep(0)
        return True

    def _hear_routes(self, message: Mapping[str, Any]) -> None:
        try:
            if self._routes.hear(message):
                self._adopt(self._routes.snapshot)
                self._say({"ack": self.snapshot.serial})
        except LostUpdateError as error:
            logger.warning("%s: the whole is asked for", error)
            self._say({"lost": True})

    async def call(self, method: str, params: Mapping[str, Any], seconds: float) -> Any:
        """Ask the supervisor to do `method`, and return its answer; plain JSON values both ways.

        Raise ServingError: the supervisor's error, or DEADLINE_EXCEEDED after `seconds`.
        """
        return await self._questions.ask(method, params, seconds)

    async def _answer(self, question: Mapping[str, Any]) -> None:
        """Answer the supervisor."""
        known = self._answers.get(question["method"])
        result = None if known is None else await asyncio.to_thread(known)
        self._say({"answer_to": question["ask"], "result": result})

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
        for path, (model, version) in routed.items():
            if path not in self._connections:
                with contextlib.suppress(OSError):  # the worker has just died: the next snapshot will show it
                    self._connections[path] = Connection(version, model.name, self._max_inflight_bytes)
        self.snapshot = snapshot
        assert self._changed is not None
        self._changed.set()
        self._changed = asyncio.Event()
        self.on_snapshot(snapshot)

    def reserve(self, nbytes: int, already: int = 0) -> None:
        """Count `nbytes` of a request as in flight. Raise RESOURCE_EXHAUSTED if that exceeds the limit.

        A request that is alone (it has `already` reserved all bytes in flight) is accepted whatever its size; its own
        limit is max_request_bytes.
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

    def check_answer(self, nbytes: int) -> None:
        """Raise RESOURCE_EXHAUSTED if an answer of `nbytes` is too large, also if nothing else is in flight: no option
        bounds what a model answers."""
        if nbytes > self._max_inflight_bytes:
            raise answer_too_large(self._max_inflight_bytes)

    def release(self, nbytes: int) -> None:
        """Stop counting `nbytes` that `reserve` has counted."""
        self._inflight_bytes -= nbytes
        self.on_inflight(self._inflight_bytes)

    def connection_to(self, version: VersionRoute) -> Connection | None:
        """Return the connection to the worker that serves `version`; None if it has none that takes requests."""
        connection = self._connections.get(version.socket_path)
        return connection if connection is not None and connection.open else None

    def aside_to(self, path: str, model: str, version: VersionRoute) -> Connection:
        """Return a connection to the standby worker at `path` for `version`, whether it is routed or not.

        Raise OSError if it is gone.
        """
        self._aside = {known: found for known, found in self._aside.items() if found.open}
        connection = self._connections.get(path) or self._aside.get(path)
        if connection is None or not connection.open:
            connection = self._aside[path] = Connection(
                replace(version, socket_path=path), model, self._max_inflight_bytes
            )
        return connection

    def tell(self, method: str, params: Mapping[str, Any]) -> None:
        """Notify the supervisor, without waiting for an answer."""
        self._questions.tell(method, params)

    async def newer_snapshot(self, serial: int, deadline_ns: int) -> None:
        """Wait for a snapshot newer than number `serial`, for at most 2 s and until `deadline_ns` (CLOCK_MONOTONIC)."""
        delay = min(_SNAPSHOT_WAIT_SECONDS, (deadline_ns - time.monotonic_ns()) / 1e9)
        if self.snapshot.serial > serial or delay <= 0:
            return
        assert self._changed is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), delay)
