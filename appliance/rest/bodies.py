"""Reads the bodies of REST requests, within bounds of size and time, and inflates them."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from typing import Any

import falcon.asgi

from appliance.config.options import Options
from appliance.core.errors import Code, ServingError
from appliance.inference.reservation import Reservation
from appliance.rest.bounds import CYCLE

__all__ = ["UnwantedBodyError", "read_body"]

_INFLATE_IN_THREAD_BYTES = 256 * 1024
_INFLATE_STEP_BYTES = 4 * 1024 * 1024
_DRAIN_BYTES = 16 * 1024 * 1024
_DRAIN_SECONDS = 2.0
_BYTES_PER_SECOND = 16384  # the lowest average pace of a body, after body_grace_seconds

Request = falcon.asgi.Request


class UnwantedBodyError(Exception):
    """A body that is too large or too slow. The connection ends, because the rest of the body is not read."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(req: Request, options: Options, reserved: Reservation) -> bytes:
    """Return the body, inflated if it came as gzip. Its bytes are added to `reserved` as they arrive.

    Raise UnwantedBodyError for a body that is too large or too slow, ServingError for one that cannot be inflated, or
    if too much is in flight.
    """
    limit = options.max_request_bytes
    declared = req.content_length
    if declared is not None and declared > limit:
        if req.get_header("expect") is None:  # with "Expect", the client waits for permission to send the body
            await _discard(req.scope[CYCLE])
        raise UnwantedBodyError(413, f"The body has {declared:,} bytes; max_request_bytes is {limit:,}")
    body = await _received(req, options, reserved)
    encoding = (req.get_header("content-encoding") or "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise ServingError(Code.INVALID_ARGUMENT, f"Content-Encoding is {encoding[:100]!r}", "send gzip, or none")
    return await _inflated(body, limit, reserved)


async def _received(req: Request, options: Options, reserved: Reservation) -> bytes:
    """Return the body as it was sent, within its limits of size and pace."""
    cycle = req.scope[CYCLE]
    if cycle.more_body:
        return await _paced(cycle, options, reserved)
    # A small body usually comes with its head. It needs no timer, and falcon's stream would double the cost.
    body, _ = await _next(cycle)
    if len(body) > options.max_request_bytes:
        raise UnwantedBodyError(413, f"The body is larger than max_request_bytes, {options.max_request_bytes:,}")
    reserved.add(len(body))
    return body


async def _paced(cycle: Any, options: Options, reserved: Reservation) -> bytes:
    loop = asyncio.get_running_loop()
    started = loop.time()
    limit, grace, rate = options.max_request_bytes, options.body_grace_seconds, _BYTES_PER_SECOND
    chunks: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout_at(started + grace) as pace:
            more = True
            while more and total <= limit:
                chunk, more = await _next(cycle)
                total += len(chunk)
                if total <= limit:
                    reserved.add(len(chunk))
                    chunks.append(chunk)
                pace.reschedule(started + grace + total / rate)
    except TimeoutError:
        raise UnwantedBodyError(
            408,
            f"The body came too slowly: {total:,} bytes in {loop.time() - started:.1f} s; "
            f"at least {rate:,} bytes a second are asked for, after body_grace_seconds",
        ) from None
    if total > limit:
        chunks.clear()
        await _discard(cycle)
        raise UnwantedBodyError(413, f"The body is larger than max_request_bytes, {limit:,}")
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


async def _inflated(body: bytes, limit: int, reserved: Reservation) -> bytes:
    """Return a gzip body inflated.

    It is inflated in steps that count as in flight as they come, so that many gzip bombs at once stay bounded too.
    """
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
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
            size = min(_INFLATE_STEP_BYTES, limit + 1 - total)
            if len(body) < _INFLATE_IN_THREAD_BYTES and not pieces:
                piece = inflater.decompress(rest, size)
            else:
                piece = await asyncio.to_thread(inflater.decompress, rest, size)
            rest = inflater.unconsumed_tail
            total += len(piece)
            if total > limit:
                raise UnwantedBodyError(413, f"The body inflates to more than max_request_bytes, {limit:,}")
            if not piece and not rest and position == len(body) and not inflater.eof:
                raise ServingError(Code.INVALID_ARGUMENT, "The gzip body is cut off", "send it whole")
            reserved.add(len(piece))
            pieces.append(piece)
    except zlib.error as error:
        raise ServingError(Code.INVALID_ARGUMENT, f"The body is not gzip: {error}") from None
    if inflater.unused_data:
        raise ServingError(Code.INVALID_ARGUMENT, "The body goes on after its gzip data", "send one gzip member")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
