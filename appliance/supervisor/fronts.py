"""The supervisor's side of the fronts: they get what changes, report what they have adopted, and ask questions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from appliance.core.errors import Code, ServingError
from appliance.core.questions import Questions
from appliance.core.route_updates import RouteUpdate, encoded, update
from appliance.core.routes import Snapshot
from appliance.host.processes import peer_pid
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.watch import Watch, Watched

logger = logging.getLogger(__name__)

_ACK_SECONDS = 5.0
_HELLO_SECONDS = 10.0
_MAX_LINE_BYTES = 256 * 1024 * 1024
_BEHIND_BYTES = 1 << 20  # a front that has more to read gets what is new together, once it has read
_MAX_UNREAD_BYTES = 16 << 20  # a front that has more to read is not asked for a sign of life

Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class _Front:
    """A connected front: the snapshot that it has been sent, and the serial of the one that it has adopted."""

    role: str
    pid: int
    writer: asyncio.StreamWriter
    watched: Watched
    questions: Questions
    sent: Snapshot = field(default_factory=Snapshot)
    is_lost: bool = False  # it does not have what `sent` says: it gets the whole snapshot
    is_fed: bool = False  # it is being sent what is new, piece by piece
    news: asyncio.Event = field(default_factory=asyncio.Event)
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
        watch: Watch,
        is_ours: Callable[[int], bool],
    ) -> None:
        self._watch = watch
        self._is_ours = is_ours
        self._tasks = tasks
        self._call = call
        self._on_serving = on_serving
        self._on_gone = on_gone
        self._fronts: set[_Front] = set()
        self._acked = asyncio.Event()
        self._turn = asyncio.Lock()  # of the front that is sent something
        self._updates: dict[int, RouteUpdate] = {}  # to the current snapshot, by the serial of the earlier one
        self.snapshot = Snapshot()

    async def listen(self, path: str) -> asyncio.AbstractServer:
        return await asyncio.start_unix_server(self._on_front, path, limit=_MAX_LINE_BYTES)

    def publish(self, snapshot: Snapshot) -> None:
        """Have every front adopt `snapshot`, whose serial is greater than that of the one before.

        What is short goes to all at once, so that they adopt it at almost the same moment.
        """
        old, self.snapshot = self.snapshot, snapshot
        changes = update(old, snapshot)
        self._updates = {old.serial: changes}
        lines = encoded(changes)
        first, is_short = next(lines), next(lines, None) is None
        for front in self._fronts:
            is_ready = front.sent is old and not front.is_fed and not front.is_lost
            if is_short and is_ready and front.writer.transport.get_write_buffer_size() < _BEHIND_BYTES:
                front.writer.write(first)
                front.sent = snapshot
            else:
                front.news.set()

    async def all_adopted(self, seconds: float = _ACK_SECONDS) -> None:
        """Wait until every front has adopted the snapshot that is current now, for `seconds` at most.

        One that has not by then hangs, or has much to do. What it sends to a worker that is unloaded is not lost: the
        worker refuses it, and the front asks anew once it has the snapshot.
        """
        serial = self.snapshot.serial
        deadline = time.monotonic() + seconds
        while any(front.acked < serial for front in self._fronts):
            self._acked.clear()
            delay = deadline - time.monotonic()
            if delay <= 0:
                late = ", ".join(f"{front.role} ({front.pid})" for front in self._fronts if front.acked < serial)
                logger.warning("not every front has the newest routes after %g s: %s has not", seconds, late)
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._acked.wait(), delay)

    async def _on_front(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front: _Front | None = None
        feeding: asyncio.Task[None] | None = None
        pid = peer_pid(writer.get_extra_info("socket"))
        if not self._is_ours(pid):
            logger.warning("process %d, which is none of the server's, connected to its control socket: refused", pid)
            writer.close()
            return
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), _HELLO_SECONDS))
            front = _front(hello["role"], pid, writer)
            self._fronts.add(front)
            self._watch.add(front.watched)
            front.news.set()
            feeding = self._tasks.start(self._feed(front))
            while line := await reader.readline():
                self._watch.heard(front.watched)  # whatever it says
                message = json.loads(line)
                if "ack" in message:
                    front.acked = message["ack"]
                    self._acked.set()
                elif "lost" in message:
                    front.is_lost = True
                    front.news.set()
                elif "serving" in message:
                    self._on_serving(front.role)
                elif "answer_to" in message:
                    front.questions.answered(message)
                elif "ask" in message:
                    self._tasks.start(self._answer(front, message))
        except (OSError, ValueError, KeyError, TimeoutError) as error:
            logger.debug("a front's control connection ended: %s", error)
        finally:
            if feeding is not None:
                feeding.cancel()
            if front is not None:
                self._fronts.discard(front)
                self._watch.remove(front.watched)
                front.questions.fail(f"the {front.role} process has ended")
                self._acked.set()
                self._on_gone()
            writer.close()

    def questions(self, method: str, seconds: float) -> dict[int, Callable[[], Awaitable[Any]]]:
        """Return how to ask each front to do `method`, by process number. What is returned raises ServingError, also
        after `seconds`."""
        return {front.pid: partial(front.questions.ask, method, {}, seconds) for front in self._fronts}

    async def _feed(self, front: _Front) -> None:
        """Send a front what it does not have yet, whenever there is something, and no faster than it reads. What has
        changed meanwhile comes together in the next update."""
        with contextlib.suppress(OSError):  # its end is noticed by who reads
            while True:
                await front.news.wait()
                front.news.clear()
                if front.is_lost:
                    front.sent, front.is_lost = Snapshot(), False
                snapshot = self.snapshot
                if snapshot.serial == front.sent.serial:
                    continue
                front.is_fed = True
                if front.sent.serial not in self._updates:
                    self._updates[front.sent.serial] = update(front.sent, snapshot)
                lines = encoded(self._updates[front.sent.serial])
                while True:
                    async with self._turn:  # the event loop has other things to do between two large versions
                        data = next(lines, None)
                        await asyncio.sleep(0)
                    if data is None:
                        break
                    front.writer.write(data)
                    await front.writer.drain()
                front.sent, front.is_fed = snapshot, False
                if front.sent is not self.snapshot:
                    front.news.set()

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
    def _send(front: _Front, data: bytes) -> None:
        if front.writer.transport.get_write_buffer_size() > _MAX_LINE_BYTES:
            front.writer.transport.abort()  # it does not read: its end restarts it
            return
        front.writer.write(data)


def _front(role: str, pid: int, writer: asyncio.StreamWriter) -> _Front:
    def ask_for_life() -> None:
        if writer.transport.get_write_buffer_size() < _MAX_UNREAD_BYTES:
            writer.write(b'{"ping": true}\n')

    def ask(question: dict[str, Any]) -> None:
        writer.write(json.dumps(question).encode() + b"\n")

    watched = Watched(f"the {role} process", role.partition(" ")[0], pid, ask_for_life)
    return _Front(role, pid, writer, watched, Questions(ask, f"the {role} process"))
