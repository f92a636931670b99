"""A connection of REST with two lanes: small predict requests by callbacks, everything else by ASGI and falcon.

    state       what happens                                        becomes
    head        plainly a small predict request                     gathering (fast lane)
    head        anything else                                       a task (slow lane)
    gathering   the body is complete                                running
    gathering   a sweep, once a second, finds it incomplete         a task, with what has come of the body
    running     the answer or the error is there, and is small      answered
    running     the answer is large                                 a task, with the answer
    any         the client is gone                                  cancelled

Plainly small: POST to a model's :predict, with a Content-Length of at most 64 KiB, no Expect, Upgrade, Content-Encoding
or Transfer-Encoding, on a connection that has answered all that it was asked before and whose client reads its answers.
So a pipelined request behind one that runs goes the slow lane, which keeps the order.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from appliance.rest.bounds import CYCLE, BoundedProtocol
from appliance.rest.fast_lane import FAST, FastLane, FastRequest

_ODD = frozenset({b"expect", b"upgrade", b"content-encoding", b"transfer-encoding"})
_MAX_DIGITS = 9  # of a Content-Length


class RestProtocol(BoundedProtocol):
    """uvicorn's HTTP/1.1 connection with bounds, and with the fast lane."""

    # Connections that gather a body which has not come in one piece.
    _gathering: ClassVar[dict[RestProtocol, None]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        self._fast: FastRequest | None = None  # the request in the fast lane that has no answer yet
        self._lane: FastLane = self.app.fast_lane  # of our own application, `app.App`
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        request, self._fast = self._fast, None
        self._gathering.pop(self, None)
        if request is not None:
            self._lane.leave(request)
        super().connection_lost(exc)
        if isinstance(self.cycle, FastRequest):
            self.cycle = None  # break the reference cycle, so that no garbage collection is needed

    def begin_request(self) -> None:
        """Choose the lane of a request whose head is complete."""
        request = self._fast_request()
        if request is None:
            super().begin_request()
        else:
            self._fast = self.cycle = request  # type: ignore[assignment]  # it acts as one

    def _fast_request(self) -> FastRequest | None:
        """Return the request if it is plainly a small predict request, and nothing is in its way."""
        parser = self.parser
        before = self.cycle
        if parser.get_method() != b"POST" or (before is not None and not before.response_complete):
            return None
        spec = self._lane.spec_of(self.url)
        if spec is None or self.flow.write_paused or self.transport.is_closing():
            return None
        length = b""
        for name, value in self.headers:
            if name in _ODD:
                return None
            if name == b"content-length":
                length = value
        if not length.isdigit() or len(length) > _MAX_DIGITS or not 0 < int(length) <= self._lane.max_body_bytes:
            return None
        keep_alive = self.http_version != "1.0" and parser.should_keep_alive()
        return FastRequest(self._lane, self, spec, self.url, self.headers, self.http_version, keep_alive)

    def on_body(self, body: bytes) -> None:
        request = self._fast
        if request is None or not request.more_body:
            super().on_body(body)
        else:
            self._has_body = True
            request.body += body

    def on_message_complete(self) -> None:
        request = self._fast
        if request is None or not request.more_body:
            super().on_message_complete()
        else:
            request.more_body = False
            self._trailer_bytes = 0
            self._gathering.pop(self, None)
            self._lane.run(request)

    def _parse(self, data: bytes | memoryview) -> None:
        super()._parse(data)
        if self._fast is not None and self._fast.more_body:
            self._gathering[self] = None
            self._start_sweeping()

    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that every answer begins with; uvicorn makes a new list each second."""
        return self.server_state.default_headers

    def send(self, request: FastRequest, head: bytes, body: bytes) -> None:
        """Send the answer to the request, and go on with the next one."""
        self._fast = None
        request.response_complete = True
        self.transport.write(head + body)
        if not request.keep_alive:
            self._refused = True  # what comes behind it is dropped
            self.transport.close()
        self.on_response_complete()

    def hand_over(self, request: FastRequest) -> None:
        """Let the slow lane go on with the request, as uvicorn would have begun it."""
        self._fast = None
        self._gathering.pop(self, None)
        raw_path, _, query = request.url.partition(b"?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": request.version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": request.headers,
            "state": self.app_state.copy(),
            "method": "POST",
            "path": urllib.parse.unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": query,
            FAST: request,
        }
        cycle = RequestResponseCycle(
            scope=scope,  # type: ignore[arg-type]  # with entries of ours
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=request.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += request.body
        cycle.more_body = request.more_body
        cycle.message_event.set()
        scope[CYCLE] = cycle
        if self.cycle is request:  # type: ignore[comparison-overlap]  # it acts as one
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

    @classmethod
    def _sweep(cls, loop: Any) -> None:
        for protocol in list(cls._gathering):
            if protocol._fast is not None:
                protocol.hand_over(protocol._fast)
        super()._sweep(loop)
