"""One HTTP connection in memory: the product's own protocol, fast lane and reading of bodies, without a socket."""

from __future__ import annotations

import asyncio
import re
import zlib
from typing import Any

import falcon.asgi
from uvicorn.config import Config
from uvicorn.server import ServerState

from appliance.config.options import Options
from appliance.core.errors import ServingError
from appliance.inference.accounting import Accounting
from appliance.inference.pipeline import Pipeline
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router
from appliance.metrics.recording import Recorder, RequestMetrics
from appliance.rest.bodies import BodyBounds, UnwantedBodyError, read_body
from appliance.rest.fast_lane import FastLane
from appliance.rest.lanes import RestProtocol
from tests.support.memory_transport import MemoryTransport

__all__ = ["feed_http"]

_BOUNDS = BodyBounds(1 << 20, "max_request_bytes", 10.0)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_EXPECTED = {100, 200, 400, 404, 408, 413, 429, 431, 505}
_TURNS = 8  # of the loop, in which a request is answered


class _Connections:
    """The loop that all connections share, and their application: it answers with the size of the body."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.router = Router("", "rest", 1 << 30)  # it knows no model, so the fast lane answers 404
        counts = RequestMetrics(Recorder("/nonexistent", "rest"), "rest")
        accounting = Accounting(counts, self.router, "rest", access_log=False)
        self.fast_lane = FastLane(Pipeline(self.router, counts), self.router, accounting, Options())
        self.failures: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(repr(context)))
        self.config = Config(
            self, log_config=None, access_log=False, proxy_headers=False, lifespan="off", ws="none", interface="asgi3"
        )
        self.config.load()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["http_version"] not in ("1.0", "1.1"):  # falcon's application takes no other
            self.failures.append(f"a request of HTTP/{scope['http_version']} comes through")
        request = falcon.asgi.Request(scope, receive)
        status, body = 200, b"{}"
        try:
            with Reservation(self.router) as reserved:
                body = str(len(await read_body(request, _BOUNDS, reserved))).encode()
        except ServingError as error:
            status, body = error.http_status, str(error).encode()
        except UnwantedBodyError as error:
            status, body = error.status, str(error).encode()
        except zlib.error as error:
            self.failures.append(repr(error))
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def feed(self, data: bytes) -> bytes:
        """Give a connection `data` in two pieces, end it, and return what it has answered."""
        transport = MemoryTransport()
        protocol = RestProtocol(self.config, ServerState(), {}, self.loop)
        protocol.connection_made(transport)
        middle = len(data) // 2
        for piece in (data[:middle], data[middle:]):
            if piece and not transport.is_closing():
                protocol.data_received(piece)
                self._turn()
        protocol.connection_lost(None)
        self._turn()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self._turn()
        if self.router._inflight_bytes:
            self.failures.append(f"{self.router._inflight_bytes} bytes are in flight for ever")
        return bytes(transport.sent)

    def _turn(self) -> None:
        async def turns() -> None:
            for _ in range(_TURNS):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())


_shared: _Connections | None = None


def feed_http(data: bytes) -> None:
    """Give `data` to a connection. Whatever it is, the answers have a status of a client's fault, or are right."""
    global _shared  # noqa: PLW0603 - a loop costs more than an input
    if _shared is None:
        _shared = _Connections()
    answer = _shared.feed(data)
    statuses = {int(status) for status in _STATUS.findall(answer)}
    failures, _shared.failures = _shared.failures, []
    if failures or statuses - _EXPECTED or (answer and not answer.startswith(b"HTTP/1.1 ")):
        raise AssertionError(f"{failures} {answer[:300]!r}")
