"""The supervisor's side of the fronts: they get every snapshot, report that they have adopted it, and ask questions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from appliance.core.errors import Code, ServingError
from appliance.core.questions import Questions
from appliance.core.routes import Snapshot
from appliance.host.processes import peer_pid
from appliance.supervisor.tasks import Tasks

logger = logging.getLogger(__name__)

_ACK_SECONDS = 5.0
_HELLO_SECONDS = 10.0
_MAX_LINE_BYTES = 256 * 1024 * 1024

Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class _Front:
    """A connected front: what it has been sent, and what it has adopted."""

    role: str
    pid: int
    writer: asyncio.StreamWriter
    questions: Questions
    acked: int = 0


class Fronts:
    """All connected fronts. `call(method, params)` answers what they ask; `on_serving(role)` hears that one takes
    requests, `on_gone()` that one has ended. `is_ours(pid)` says whether the supervisor has started a process: no other
    may connect."""

    def __init__(
        self,
        tasks: Tasks,
        call: Call,
        on_serving: Callable[[str], None],
        on_gone: Callable[[], None],
        is_ours: Callable[[int], bool],
    ) -> None:
        self._is_ours = is_ours
        self._tasks = tasks
        self._call = call
        self._on_serving = on_serving
        self._on_gone = on_gone
        self._fronts: set[_Front] = set()
        self._acked = asyncio.Event()
        self.snapshot = Snapshot()

    async def listen(self, path: str) -> asyncio.AbstractServer:
        return await asyncio.start_unix_server(self._on_front, path, limit=_MAX_LINE_BYTES)

    def publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        data = self._encoded(snapshot)
        for front in self._fronts:
            self._send(front, data)

    async def all_adopted(self) -> None:
        """Wait until every front has adopted the snapshot that is current now, for a while at most."""
        serial = self.snapshot.serial
        deadline = time.monotonic() + _ACK_SECONDS
        while any(front.acked < serial for front in self._fronts):
            self._acked.clear()
            delay = deadline - time.monotonic()
            if delay <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._acked.wait(), delay)

    async def _on_front(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front: _Front | None = None
        pid = peer_pid(writer.get_extra_info("socket"))
        if not self._is_ours(pid):
            logger.warning("process %d, which is none of the server's, connected to its control socket: refused", pid)
            writer.close()
            return
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), _HELLO_SECONDS))
            front = self._front(hello["role"], pid, writer)
            self._fronts.add(front)
            self._send(front, self._encoded(self.snapshot))
            while line := await reader.readline():
                message = json.loads(line)
                if "ack" in message:
                    front.acked = message["ack"]
                    self._acked.set()
                elif "serving" in message:
                    self._on_serving(front.role)
                elif "answer_to" in message:
                    front.questions.answered(message)
                elif "ask" in message:
                    self._tasks.start(self._answer(front, message))
        except (OSError, ValueError, KeyError, TimeoutError) as error:
            logger.debug("a front's control connection ended: %s", error)
        finally:
            if front is not None:
                self._fronts.discard(front)
                front.questions.fail(f"the {front.role} process has ended")
                self._acked.set()
                self._on_gone()
            writer.close()

    def _front(self, role: str, pid: int, writer: asyncio.StreamWriter) -> _Front:
        def ask(question: dict[str, Any]) -> None:
            self._send(front, json.dumps(question).encode() + b"\n")

        front = _Front(role, pid, writer, Questions(ask, f"the {role} process"))
        return front

    def questions(self, method: str, seconds: float) -> dict[int, Callable[[], Awaitable[Any]]]:
        """Return how to ask each front to do `method`, by process number. What is returned raises ServingError, also
        after `seconds`."""
        return {front.pid: partial(front.questions.ask, method, {}, seconds) for front in self._fronts}

    async def _answer(self, front: _Front, message: dict[str, Any]) -> None:
        """Do what a front asks for, and answer it."""
        answer: dict[str, Any] = {"answer_to": message["ask"]}
        try:
            answer["result"] = await self._call(message["method"], message["params"])
        except ServingError as error:
            answer |= {"code": int(error.code), "message": str(error)}
        except Exception as error:
            logger.exception("a front's call failed: %s", message["method"])
            answer |= {"code": int(Code.INTERNAL), "message": f"{type(error).__name__}: {error}"}
        self._send(front, json.dumps(answer).encode() + b"\n")

    @staticmethod
    def _encoded(snapshot: Snapshot) -> bytes:
        return json.dumps({"snapshot": msgspec.to_builtins(snapshot)}).encode() + b"\n"

    @staticmethod
    def _send(front: _Front, data: bytes) -> None:
        if front.writer.transport.get_write_buffer_size() > _MAX_LINE_BYTES:
            front.writer.transport.abort()  # it does not read: its end restarts it
            return
        front.writer.write(data)
