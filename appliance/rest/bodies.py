"""Reads the bodies of REST requests, within bounds of size and time, and inflates them."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from dataclasses import dataclass
from typing import Any

import falcon.asgi

from appliance.config.options import Options
from appliance.core.errors import Code, ServingError
from appliance.core.limits import MIN_BYTES_PER_SECOND
from appliance.inference.reservation import Reservation
from appliance.rest.bounds import CYCLE

__all__ = ["BodyBounds", "UnwantedBodyError", "read_body"]

_INFLATE_IN_THREAD_BYTES = 256 * 1024
_INFLATE_STEP_BYTES = 4 * 1024 * 1024
_DRAIN_BYTES = 256 * 1024 * 1024
_DRAIN_SECONDS = 2.0

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # RFC 9110

Request = falcon.asgi.Request


class UnwantedBodyError(Exception):
    """A body that is too large or too slow. The connection ends, because the rest of the body is not read."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """The most bytes of a body, and the seconds in which it may come at any pace; as text, what to do about them."""

    nbytes: int
    option: str  # the one that sets `nbytes`
    grace_seconds: float

    @classmethod
    def of(cls, options: Options) -> BodyBounds:
        """Return the bounds that the options set."""
        if 0 < options.max_json_bytes < options.max_request_bytes:
            return cls(options.max_json_bytes, "max_json_bytes", options.body_grace_seconds)
        return cls(options.max_request_bytes, "max_request_bytes", options.body_grace_seconds)

    def __str__(self) -> str:
        return f"{self.option} is {self.nbytes:,}: send less at once, use gRPC, or raise it"


async def read_body(req: Request, bounds: BodyBounds, reserved: Reservation) -> bytes:
    """Return the body, inflated if it came as gzip. Its bytes are added to `reserved` as they arrive.

    Raise UnwantedBodyError for a body that is too large or too slow, ServingError for one that cannot be inflated, or
    if too much is in flight.
    """
    declared = req.content_length
    if declared is not None and declared > bounds.nbytes:
        if req.get_header("expect") is None:  # with "Expect", the client waits for permission to send the body
            await _discard(req.scope[CYCLE])
        raise UnwantedBodyError(413, f"The body has {declared:,} bytes; {bounds}")
    body = await _received(req, bounds, reserved)
    encoding = (req.get_header("content-encoding") or "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in _WINDOWS:
        raise ServingError(
            Code.INVALID_ARGUMENT, f"Content-Encoding is {encoding[:100]!r}", "send gzip or deflate, or none"
        )
    return await _inflated(body, encoding, bounds, reserved)


async def _received(req: Request, bounds: BodyBounds, reserved: Reservation) -> bytes:
    """Return the body as it was sent, within its limits of size and pace."""
    cycle = req.scope[CYCLE]
    if cycle.more_body:
        return await _paced(cycle, bounds, reserved)
    # A small body usually comes with its head. It needs no timer, and falcon's stream would double the cost.
    body, _ = await _next(cycle)
    if len(body) > bounds.nbytes:
        raise UnwantedBodyError(413, f"The body has {len(body):,} bytes; {bounds}")
    reserved.add(len(body))
    return body


async def _paced(cycle: Any, bounds: BodyBounds, reserved: Reservation) -> bytes:
    loop = asyncio.get_running_loop()
    started = loop.time()
    grace, rate = bounds.grace_seconds, MIN_BYTES_PER_SECOND
    chunks: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout_at(started + grace) as pace:
            more = True
            while more and total <= bounds.nbytes:
                chunk, more = await _next(cycle)
                total += len(chunk)
                if total <= bounds.nbytes:
                    reserved.add(len(chunk))
                    chunks.append(chunk)
                pace.reschedule(started + grace + total / rate)
    except TimeoutError:
        raise UnwantedBodyError(
            408,
            f"The body came too slowly: {total:,} bytes in {loop.time() - started:.1f} s; "
            f"at least {rate:,} bytes a second are asked for, after body_grace_seconds",
        ) from None
    if total > bounds.nbytes:
        chunks.clear()
        await _discard(cycle)
        raise UnwantedBodyError(413, f"The body has {total:,} bytes and more; {bounds}")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _next(cycle: Any) -> tuple[bytes, bool]:
    """Wait for the next bytes of the body; return them, and whether more will come.

    Raise ServingError (CANCELLED) if the client is gone.
    """
    event = await cycle.receive()
    if event["type"] != "http.request":
        raise ServingError(Code.CANCELLED, "The client is gone")
    return event["body"], event["more_body"]


async def _discard(cycle: Any) -> None:
    """Read a bounded part of an unwanted body: a client that is still writing would not see the answer otherwise."""
    total = 0
    with contextlib.suppress(TimeoutError, ServingError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            more = True
            while more and total <= _DRAIN_BYTES:
                chunk, more = await _next(cycle)
                total += len(chunk)


async def _inflated(body: bytes, encoding: str, bounds: BodyBounds, reserved: Reservation) -> bytes:
    """Return a body of gzip or zlib data ("deflate" in HTTP) inflated.

    It is inflated in steps that count as in flight as they come, so that many gzip bombs at once stay bounded too.
    """
    inflater = zlib.decompressobj(_WINDOWS[encoding])
    pieces: list[bytes] = []
    total = 0
    position = 0
    rest: bytes | memoryview = b""
    view = memoryview(body)
    try:
        while not inflater.eof:
            if not rest:
                rest = view[position : position + _INFLATE_STEP_BYTES]
                position += len(rest)
            size = min(_INFLATE_STEP_BYTES, bounds.nbytes + 1 - total)
            if len(body) < _INFLATE_IN_THREAD_BYTES and not pieces:
                piece = inflater.decompress(rest, size)
            else:
                piece = await asyncio.to_thread(inflater.decompress, rest, size)
            rest = inflater.unconsumed_tail
            total += len(piece)
            if total > bounds.nbytes:
                raise UnwantedBodyError(413, f"The body inflates to {total:,} bytes and more; {bounds}")
            if not piece and not rest and position == len(body) and not inflater.eof:
                raise ServingError(Code.INVALID_ARGUMENT, f"The {encoding} body is cut off", "send it whole")
            reserved.add(len(piece))
            pieces.append(piece)
    except zlib.error as error:
        raise ServingError(Code.INVALID_ARGUMENT, f"The body is not {encoding}: {error}") from None
    if inflater.unused_data:
        raise ServingError(Code.INVALID_ARGUMENT, f"The body goes on after its {encoding} data", "send one stream")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
