"""What uvicorn's connection lacks: bounds on heads, trailers and unread answers, and answers in one write.

uvicorn with httptools accepts headers of any size at any pace; gunicorn's own limits do not apply to it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from appliance.core.limits import MAX_HEADER_BYTES, MIN_BYTES_PER_SECOND

logger = logging.getLogger(__name__)

CYCLE = "dropserve.cycle"  # in the ASGI scope: uvicorn's RequestResponseCycle, which holds the body as received
ANSWER_BYTES = "dropserve.answer_bytes"  # in the ASGI scope: the bytes of the answer, in flight until it is sent

COUNTED_ANSWER_BYTES = 65536
"""Answers of more bytes count as in flight until they are sent; a connection may hold that much unsent."""

_VERSIONS = ("1.1", "1.0")
_SWEEP_SECONDS = 1.0
# What is parsed of one read before it is looked whether a request has to wait for an earlier one's answer. A waiting
# request takes 2 kB, and may have 18 bytes.
_PARSED_BYTES = 4096
_PARSED_BODY_BYTES = 16384
_JOINED_BYTES = 65536  # copying a larger body would cost more than a second system call


class _OneWrite:
    """A transport that sends a response's head and body in one system call, and in one packet if they fit.

    uvicorn writes them separately: two system calls, which show in a profile of small requests, and two wake-ups of the
    client.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, on_closing: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._on_closing = on_closing
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data`; keep a response's head for a moment, to send it with the body."""
        if self._transport.is_closing():  # the client has left before a request that was answered behind another
            self._head = b""
        elif self._head and len(data) <= _JOINED_BYTES:
            self._transport.write(self._head + data)
            self._head = b""
        elif self._head:
            self.flush()
            self._transport.write(data)
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._loop.call_soon(self.flush)  # in case the answer has no body
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send a head that is kept."""
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()  # once the client has read what is left
        self._on_closing()


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    """Return how many bytes the lines of the headers have."""
    return 4 * len(headers) + sum(map(len, itertools.chain.from_iterable(headers)))


class _Unread(NamedTuple):
    """Bytes that a client has not read, and since when (the loop's clock)."""

    nbytes: int
    since: float

    def is_too_slow(self, left: int, now: float, grace_seconds: float) -> bool:
        """Return whether of these bytes more are `left` now than the lowest pace allows."""
        return self.nbytes - left < (now - self.since - grace_seconds) * MIN_BYTES_PER_SECOND


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, closed if a head is too large or too slow, or if an answer is read too slowly."""

    max_connections: ClassVar[int] = 1024  # further ones are refused, and those that are open go on
    header_timeout_seconds: ClassVar[float] = 10.0
    grace_seconds: ClassVar[float] = 10.0  # in which an answer may be read at any pace
    # Connections whose head is incomplete, and since when (the loop's clock). One sweep a second over them costs less
    # than a timer for each request.
    _heads: ClassVar[dict[BoundedProtocol, float]] = {}
    # Connections that are answered but still send the request's body, and since when.
    _leftovers: ClassVar[dict[BoundedProtocol, float]] = {}
    # Connections that have answered all that they were asked, and since when. uvicorn has a timer for each answer.
    _idle: ClassVar[dict[BoundedProtocol, float]] = {}
    # Connections whose client has yet to read more than the transport should hold, or the last bytes before the end.
    _unread: ClassVar[dict[BoundedProtocol, _Unread]] = {}
    _sweeping: ClassVar[bool] = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        self._head_bytes = 0
        self._head_is_new = False
        self._refused = False
        self._ends_after_answers = False
        self._has_body = False
        self._trailer_bytes = self._header_count = 0
        self._unparsed: bytes | memoryview = b""
        one_write = _OneWrite(transport, self.loop, self._watch_unread)
        super().connection_made(one_write)  # type: ignore[arg-type]  # it acts as one
        if len(self.connections) > self.max_connections:
            self._refuse(
                503, f"This process has {self.max_connections:,} connections; see max_connections and ulimit -n"
            )
            return
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heads.pop(self, None)
        self._leftovers.pop(self, None)
        self._idle.pop(self, None)
        self._unread.pop(self, None)
        self._unparsed = b""
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        self._unread.pop(self, None)
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if len(data) <= _PARSED_BYTES and not self._unparsed:
            self._parse(data)
            return
        self._unparsed = memoryview(bytes(self._unparsed) + data) if self._unparsed else memoryview(data)
        self._parse_on()

    def _parse_on(self) -> None:
        """Parse what was received, until a request has to wait for the answer to the one before."""
        while self._unparsed and not self.pipeline and not self._refused:
            is_body = self.cycle is not None and self.cycle.more_body
            size = _PARSED_BODY_BYTES if is_body else _PARSED_BYTES
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            self._parse(piece)
        if self._refused:
            self._unparsed = b""
        elif self._unparsed:
            self.flow.pause_reading()

    def _parse(self, data: bytes | memoryview) -> None:
        if self._refused:
            return
        self._head_is_new = self._has_body = False
        self._idle.pop(self, None)
        super().data_received(data)  # type: ignore[arg-type]  # httptools takes any buffer
        # A pipelined head may start anywhere in `data`, so it is not counted: the bytes before it may be a large body.
        if self in self._heads and not self._head_is_new:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(431, f"The request's headers have more than {MAX_HEADER_BYTES:,} bytes")
        elif self.cycle is not None and self.cycle.more_body:
            self._count_trailers(len(data))

    def _drop_trailers(self) -> None:
        """Take a request's trailers, which have all come, from its headers: nobody asks for them."""
        size = _size(self.headers[self._header_count :])
        del self.headers[self._header_count :]
        if size > MAX_HEADER_BYTES:
            self._refuse(431, f"The request's trailers have more than {MAX_HEADER_BYTES:,} bytes")

    def _count_trailers(self, nbytes: int) -> None:
        """Count bytes that were received while a body was expected.

        Those without any of the body are trailers, or begin or end a chunk. uvicorn keeps trailers as headers.
        """
        self._trailer_bytes = 0 if self._has_body else self._trailer_bytes + nbytes
        if self._trailer_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"The request's trailers have more than {MAX_HEADER_BYTES:,} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self not in self._heads:
            self._begin_head()

    def on_headers_complete(self) -> None:
        self._heads.pop(self, None)
        self._idle.pop(self, None)  # a request before this one may have been answered meanwhile
        self.http_version = version = self.parser.get_http_version()
        if len(self.url) + _size(self.headers) > MAX_HEADER_BYTES:
            self._refuse(431, f"The request's headers have more than {MAX_HEADER_BYTES:,} bytes")
        elif version not in _VERSIONS:
            # Such as 0.9, which the parser reads of a request line without a version. falcon takes no other.
            self._refuse(505, f"The request is of HTTP/{version}; send HTTP/1.1")
        elif not self._refused:
            self._header_count = len(self.headers)
            self.begin_request()

    def begin_request(self) -> None:
        """Begin a request whose head is complete and within its bounds: uvicorn makes a task of it, or queues it."""
        super().on_headers_complete()
        self.scope[CYCLE] = self.cycle  # type: ignore[literal-required]  # ours

    def on_body(self, body: bytes) -> None:
        self._has_body = True
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._leftovers.pop(self, None)
        self._trailer_bytes = 0
        if len(self.headers) > self._header_count:
            self._drop_trailers()
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, as uvicorn does; if there is none, the connection is idle."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._ends_after_answers:
            self.transport.close()
            return
        else:
            self._idle[self] = self.loop.time()
            self._start_sweeping()
        if self._unparsed:
            self.loop.call_soon(self._parse_on)
        if self.cycle.response_complete and self.cycle.more_body:
            self._leftovers[self] = self.loop.time()
            self._start_sweeping()

    def send_400_response(self, msg: str) -> None:
        if not self._refused:
            self._refuse(400, msg)

    def _watch_unread(self) -> None:
        """Note what the client has yet to read, so that the sweep ends the connection if that takes too long."""
        nbytes = self.transport.get_write_buffer_size()
        if nbytes and self not in self._unread:
            self._unread[self] = _Unread(nbytes, self.loop.time())
            self._start_sweeping()

    def _begin_head(self) -> None:
        self._head_bytes = 0
        self._head_is_new = True
        self._heads[self] = self.loop.time()
        self._start_sweeping()

    def _start_sweeping(self) -> None:
        if not BoundedProtocol._sweeping:
            BoundedProtocol._sweeping = True
            self.loop.call_later(_SWEEP_SECONDS, self._sweep, self.loop)

    def _refuse(self, status: int, message: str) -> None:
        self._refused = True
        self._heads.pop(self, None)
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            # An earlier, pipelined request has no answer yet. Answers keep their order, so its answer is the
            # connection's last.
            self.cycle.keep_alive = False
            return
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            # The request itself waits for the answers to those before it, which are the connection's last.
            self.pipeline.popleft()
            self._ends_after_answers = True
            return
        body = orjson.dumps({"error": message})
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

    @classmethod
    def _sweep(cls, loop: Any) -> None:
        now = loop.time()
        for protocol, since in list(cls._heads.items()):
            if protocol._unparsed or protocol.flow.read_paused:  # the rest may be there, and waits for an answer
                cls._heads[protocol] = now
            elif now - since > cls.header_timeout_seconds:
                seconds = cls.header_timeout_seconds
                protocol._refuse(408, f"The request's headers took longer than {seconds:g} s")
        for protocol, since in list(cls._leftovers.items()):
            if now - since > cls.header_timeout_seconds:
                del cls._leftovers[protocol]
                protocol.transport.close()
        for protocol, since in list(cls._idle.items()):
            if now - since > protocol.timeout_keep_alive:
                del cls._idle[protocol]
                protocol.transport.close()
        for protocol, unread in list(cls._unread.items()):
            if unread.is_too_slow(protocol.transport.get_write_buffer_size(), now, cls.grace_seconds):
                del cls._unread[protocol]
                protocol.transport.abort()
        BoundedProtocol._sweeping = bool(cls._heads or cls._leftovers or cls._idle or cls._unread)
        if BoundedProtocol._sweeping:
            loop.call_later(_SWEEP_SECONDS, cls._sweep, loop)
