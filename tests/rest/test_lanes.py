"""Which lane a request takes, and that the lanes differ in nothing else.

Where no model is served, every request to predict is answered with 404: in the fast lane while it is received,
without a turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from appliance.config.front_settings import FrontSettings
from appliance.config.options import Options
from appliance.core.errors import Code
from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import PublicState
from appliance.rest.app import App
from appliance.rest.lanes import RestProtocol
from appliance.transport.wire import Kind
from backends.contract import DEFAULT_SIGNATURE, Signature, TensorSpec
from tests.support.memory_transport import MemoryTransport
from tests.support.worker_end import Worker

BODY = b'{"instances": [1.0]}'
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def request(
    line: bytes = b"POST /v1/models/m:predict HTTP/1.1", headers: bytes = b"host: x\r\n", body: bytes = BODY
) -> bytes:
    return line + b"\r\n" + headers + b"content-length: %d\r\n\r\n" % len(body) + body


class Connections:
    """An unstarted front, and the loop that its connections share."""

    def __init__(self, metrics: Path, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(repr(context)))
        self.app = App(FrontSettings(Options(**options), "", str(metrics), 1, 0, None, 1 << 20))
        self.config = Config(
            self.app,
            proxy_headers=False,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            interface="asgi3",
        )
        self.config.load()
        self.state = ServerState()

    def connect(self) -> tuple[RestProtocol, MemoryTransport]:
        transport = MemoryTransport()
        protocol = RestProtocol(self.config, self.state, {}, self.loop)
        protocol.connection_made(transport)
        return protocol, transport

    def turn(self, count: int = 20) -> None:
        async def turns() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @property
    def in_flight(self) -> int:
        return self.app.fast_lane.router._inflight_bytes


@pytest.fixture
def connections(tmp_path: Path) -> Iterator[Connections]:
    found = Connections(tmp_path)
    yield found
    assert found.faults == []
    assert found.in_flight == 0
    found.loop.close()


FAST = {
    "plain": request(),
    "a version": request(b"POST /v1/models/m/versions/3:predict HTTP/1.1"),
    "a label": request(b"POST /v1/models/m/labels/stable:predict HTTP/1.1"),
    "a query": request(b"POST /v1/models/m:predict?key=value HTTP/1.1"),
    "an escaped name": request(b"POST /v1/models/%6d:predict HTTP/1.1"),
    "HTTP/1.0": request(b"POST /v1/models/m:predict HTTP/1.0"),
    "to be closed": request(headers=b"connection: close\r\n"),
    "no JSON": request(body=b"{"),
    "64 KiB": request(body=BODY + b" " * (65536 - len(BODY))),
}
SLOW = {
    "chunked": b"POST /v1/models/m:predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n",
    "gzip": request(headers=b"content-encoding: gzip\r\n"),
    "identity": request(headers=b"content-encoding: identity\r\n"),
    "an expectation": request(headers=b"expect: 100-continue\r\n"),
    "an upgrade": request(headers=b"connection: upgrade\r\nupgrade: h2c\r\n"),
    "no body": request(body=b""),
    "a large body": request(body=BODY + b" " * 65536),
    "classify": request(b"POST /v1/models/m:classify HTTP/1.1"),
    "another method": request(b"PUT /v1/models/m:predict HTTP/1.1"),
    "a fragment": request(b"POST /v1/models/m:predict#x HTTP/1.1"),
    "another host's": request(b"POST http://x/v1/models/m:predict HTTP/1.1"),
    "a version that is no int64": request(b"POST /v1/models/m/versions/99999999999999999999:predict HTTP/1.1"),
    "status": b"GET /v1/models/m HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", FAST)
def test_a_plain_small_request_is_answered_while_it_is_received(connections: Connections, name: str) -> None:
    protocol, transport = connections.connect()
    protocol.data_received(FAST[name])
    assert STATUS.findall(transport.sent) == [b"400" if name in ("a label", "no JSON") else b"404"]
    protocol.connection_lost(None)
    connections.turn()
    assert len(STATUS.findall(transport.sent)) == 1


@pytest.mark.parametrize("name", SLOW)
def test_any_other_request_takes_a_task(connections: Connections, name: str) -> None:
    protocol, transport = connections.connect()
    protocol.data_received(SLOW[name])
    assert not transport.sent
    connections.turn()
    assert len(STATUS.findall(transport.sent)) == 1 + (name == "an expectation")
    protocol.connection_lost(None)
    connections.turn()


def test_a_body_in_many_pieces_is_gathered(connections: Connections) -> None:
    protocol, transport = connections.connect()
    text = request()
    for index in range(len(text)):
        assert not transport.sent
        protocol.data_received(text[index : index + 1])
    assert STATUS.findall(transport.sent) == [b"404"]


def test_a_body_that_is_late_is_left_to_the_slow_lane_with_what_has_come(connections: Connections) -> None:
    protocol, transport = connections.connect()
    text = request()
    protocol.data_received(text[:-10])
    RestProtocol._sweep(connections.loop)
    connections.turn()
    assert not transport.sent
    protocol.data_received(text[-10:])
    assert not transport.sent
    connections.turn()
    assert STATUS.findall(transport.sent) == [b"404"]
    protocol.data_received(text)  # and the next request is fast again
    assert STATUS.findall(transport.sent) == [b"404", b"404"]


def test_a_client_that_goes_before_its_body_is_there_leaves_nothing(connections: Connections) -> None:
    protocol, transport = connections.connect()
    protocol.data_received(request()[:-10])
    protocol.connection_lost(None)
    RestProtocol._sweep(connections.loop)
    connections.turn()
    assert not transport.sent
    assert not RestProtocol._gathering


def test_pipelined_requests_are_answered_in_order_whatever_their_lanes(connections: Connections) -> None:
    protocol, transport = connections.connect()
    both = [(request(body=b"{"), b"400"), (SLOW["chunked"], b"400"), (request(), b"404"), (SLOW["status"], b"404")]
    sent = b"".join(text for text, _ in both * 3)
    protocol.data_received(sent)
    for _ in both * 3:
        connections.turn()
    assert STATUS.findall(transport.sent) == [status for _, status in both * 3]


def test_what_comes_behind_the_last_request_is_dropped(connections: Connections) -> None:
    protocol, transport = connections.connect()
    protocol.data_received(request(headers=b"connection: close\r\n") + request() + SLOW["status"])
    connections.turn()
    assert STATUS.findall(transport.sent) == [b"404"]
    assert b"\r\nconnection: close\r\n\r\n" in transport.sent
    assert transport.is_closing()


def answers(connections: Connections, texts: list[bytes]) -> list[bytes]:
    found = []
    for text in texts:
        protocol, transport = connections.connect()
        protocol.data_received(text)
        connections.turn()
        protocol.connection_lost(None)
        found.append(bytes(transport.sent))
    return found


@pytest.mark.parametrize("cors", [False, True])
@pytest.mark.parametrize("accepted", [b"", b"accept-encoding: gzip\r\n", b"accept-encoding: gzip, identity;q=0\r\n"])
@pytest.mark.parametrize("closing", [b"", b"connection: close\r\n"])
@pytest.mark.parametrize("body", [BODY, b"{", b'{"instances": "' + b"\xff" * 9 + b'"}'])
def test_both_lanes_send_the_same_bytes(
    tmp_path: Path, cors: bool, accepted: bytes, closing: bytes, body: bytes
) -> None:
    connections = Connections(tmp_path, rest_api_enable_cors_support=cors)
    for headers in (accepted + closing, closing + b"x: 1\r\n" + accepted):
        fast, slow = answers(
            connections,
            [
                request(headers=headers, body=body),
                request(headers=headers + b"content-encoding: identity\r\n", body=body),
            ],
        )
        assert fast == slow
        assert STATUS.match(fast)


def test_both_lanes_write_the_same_lines_into_the_access_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections(tmp_path, access_log=True)
    forwarded = b"x-forwarded-for: 10.0.0.1, 10.0.0.2\r\n"
    caplog.set_level(logging.INFO, "dropserve.access")
    texts = [
        request(headers=headers + more)
        for headers in (b"", forwarded)
        for more in (b"", b"content-encoding: identity\r\n")
    ]
    answers(connections, texts)
    fields = [record.fields for record in caplog.records]
    for one in fields:
        one.pop("milliseconds")
    assert fields[0] == fields[1]
    assert fields[2] == fields[3]
    assert (fields[0]["client"], fields[2]["client"]) == ("127.0.0.1", "10.0.0.2")
    assert fields[0]["status"] == 404


def test_a_connection_is_kept_for_more_requests(connections: Connections) -> None:
    protocol, transport = connections.connect()
    for count in range(1, 6):
        protocol.data_received(request())
        assert len(STATUS.findall(transport.sent)) == count
    assert not transport.is_closing()
    protocol.shutdown()
    assert transport.is_closing()


def test_a_connection_that_is_idle_for_too_long_is_closed(connections: Connections) -> None:
    protocol, transport = connections.connect()
    protocol.data_received(request() + SLOW["status"])
    RestProtocol._sweep(connections.loop)
    connections.turn()
    RestProtocol._sweep(connections.loop)
    assert not transport.is_closing()
    protocol.timeout_keep_alive = -1
    RestProtocol._sweep(connections.loop)
    assert transport.is_closing()
    assert len(STATUS.findall(transport.sent)) == 2


def test_a_request_that_runs_is_not_taken_for_an_idle_connection(connections: Connections) -> None:
    protocol, transport = connections.connect()
    protocol.timeout_keep_alive = -1
    protocol.data_received(request() + SLOW["status"])
    RestProtocol._sweep(connections.loop)
    assert not transport.is_closing()
    connections.turn()
    assert len(STATUS.findall(transport.sent)) == 2


# -- while a request runs: the worker is played by the test ---------------------------------------------------------


class Running:
    """A connection to a front that serves the model m by a worker that the test plays."""

    def __init__(self, connections: Connections, folder: Path) -> None:
        self.worker = Worker(str(folder / "worker"))
        x, y = TensorSpec("float32", (None,), "x:0"), TensorSpec("float32", (None,), "y:0")
        version = VersionRoute(
            1,
            "available",
            PublicState.AVAILABLE,
            socket_path=self.worker.path,
            signatures={DEFAULT_SIGNATURE: Signature({"x": x}, {"y": y})},
        )
        router = connections.app.fast_lane.router
        router._changed = asyncio.Event()
        router._adopt(Snapshot(serial=1, models={"m": ModelRoute("m", (version,))}))
        self.router = router
        self.worker.accept()
        self.protocol, self.transport = connections.connect()

    async def sent(self, count: int) -> list[bytes]:
        """The answers, once there are so many."""
        async with asyncio.timeout(30):
            while len(STATUS.findall(self.transport.sent)) < count:
                await asyncio.sleep(0)
        return [b"HTTP/1.1" + text for text in bytes(self.transport.sent).split(b"HTTP/1.1")[1:]]

    def close(self) -> None:
        if self.protocol.parser is not None:
            self.protocol.connection_lost(None)
        self.router._adopt(Snapshot(serial=2))
        self.worker.listening.close()


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Plays a scene, in which nothing may stay in flight."""
    loops = []

    def run(act: Callable[[Running], Coroutine[Any, Any, None]], **options: Any) -> None:
        connections = Connections(tmp_path, **options)
        loops.append(connections.loop)

        async def scene() -> None:
            running = Running(connections, tmp_path)
            await act(running)
            running.close()
            for _ in range(20):
                await asyncio.sleep(0)

        connections.loop.run_until_complete(scene())
        assert connections.faults == []
        assert connections.in_flight == 0

    yield run
    for loop in loops:
        loop.close()


Play = Callable[..., None]


def test_an_answer_is_sent_when_the_worker_has_it(play: Play) -> None:
    async def act(running: Running) -> None:
        running.protocol.data_received(request())
        frame = await running.worker.request()
        assert not running.transport.sent
        running.worker.answer(frame, 2.5)
        (answer,) = await running.sent(1)
        assert answer.endswith(b'\r\n\r\n{"predictions":[2.5]}')

    play(act)


def test_a_request_whose_client_goes_is_cancelled(play: Play) -> None:
    async def act(running: Running) -> None:
        running.protocol.data_received(request())
        frame = await running.worker.request()
        running.protocol.connection_lost(None)
        assert (await running.worker.request(Kind.CANCEL)).request_id == frame.request_id
        assert running.router._inflight_bytes == 0
        running.worker.answer(frame, 2.5)

    play(act)


def test_requests_behind_one_that_runs_wait_for_its_answer(play: Play) -> None:
    async def act(running: Running) -> None:
        running.protocol.data_received(request() + SLOW["status"] + request() + request(body=b"{"))
        frame = await running.worker.request()
        assert not running.transport.sent
        running.worker.answer(frame, 2.5)
        running.worker.answer(await running.worker.request(), 3.5)
        answers = await running.sent(4)
        assert [STATUS.findall(answer)[0] for answer in answers] == [b"200", b"200", b"200", b"400"]
        assert b"[2.5]" in answers[0]
        assert b"AVAILABLE" in answers[1]
        assert b"[3.5]" in answers[2]

    play(act)


def test_a_large_answer_goes_on_in_the_slow_lane_and_is_the_same(play: Play) -> None:
    async def act(running: Running) -> None:
        for headers in (b"", b"content-encoding: identity\r\n", b"accept-encoding: gzip\r\nconnection: close\r\n"):
            running.protocol.data_received(request(headers=headers))
            running.worker.answer(await running.worker.request(), *[0.25] * 6000)
        fast, slow, closing = await running.sent(3)
        assert fast == slow
        assert fast.endswith(b"0.25]}")
        assert b"content-encoding: gzip" in closing
        assert running.transport.is_closing()

    play(act)


def test_a_stop_lets_what_runs_be_answered_and_ends_the_connection(play: Play) -> None:
    async def act(running: Running) -> None:
        running.protocol.data_received(request())
        frame = await running.worker.request()
        running.protocol.shutdown()
        assert not running.transport.is_closing()
        running.worker.answer(frame, 2.5)
        (answer,) = await running.sent(1)
        assert b"\r\nconnection: close\r\n" in answer
        assert running.transport.is_closing()

    play(act)


def test_a_deadline_that_passes_is_told_and_the_connection_goes_on(play: Play) -> None:
    async def act(running: Running) -> None:
        running.protocol.data_received(request())
        (answer,) = await running.sent(1)
        assert answer.startswith(b"HTTP/1.1 504 ")
        running.protocol.data_received(SLOW["status"])
        assert (await running.sent(2))[1].startswith(b"HTTP/1.1 200 ")

    play(act, rest_api_timeout_in_ms=1)


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.INTERNAL])
def test_an_error_of_the_worker_is_the_same_in_both_lanes(play: Play, code: Code) -> None:
    async def act(running: Running) -> None:
        for headers in (b"", b"content-encoding: identity\r\n"):
            running.protocol.data_received(request(headers=headers))
            running.worker.refuse(await running.worker.request(), code)
        fast, slow = await running.sent(2)
        assert fast == slow
        assert (b"retry-after: 1" in fast) is (code is Code.RESOURCE_EXHAUSTED)

    play(act)
