"""The bodies of REST requests: bounded in size and in time, and inflated."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

import falcon.asgi

from appliance.errors import Code, ServingError
from appliance.fronts.reservation import Reservation
from appliance.options import Options

__all__ = ["UnwantedBodyError", "read_body"]

_INFLATE_IN_THREAD_BYTES = 256 * 1024
_INFLATE_STEP_BYTES = 4 * 1024 * 1024
_DRAIN_BYTES = 16 * 1024 * 1024
_DRAIN_SECONDS = 2.0

Request = falcon.asgi.Request


class UnwantedBodyError(Exception):
    """A body that is too large or too slow: the connection ends, since what still comes of it is not wanted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(req: Request, options: Options, reserved: Reservation) -> bytes:
    """The body, inflated where it came as gzip; its bytes are added to `reserved` as they come.

    Raises UnwantedBodyError for a body that is too large or too slow, ServingError for one that cannot be inflated, or
    where too much is in flight.
    """
    limit = options.max_request_bytes
    declared = req.content_length
    if declared is not None and declared > limit:
        if req.get_header("expect") is None:  # else the client waits for leave to send it
            await _discard(aiter(req.stream))
        raise UnwantedBodyError(413, f"The body has {declared:,} bytes; max_request_bytes is {limit:,}")
    body = await _received(req, options, reserved)
    encoding = (req.get_header("content-encoding") or "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise ServingError(Code.INVALID_ARGUMENT, f"Content-Encoding is {encoding[:100]!r}", "send gzip, or none")
    return await _inflated(body, limit, reserved)


async def _received(req: Request, options: Options, reserved: Reservation) -> bytes:
    """The body as it was sent, at the pace that is asked for."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    limit, grace, rate = options.max_request_bytes, options.body_grace_seconds, options.min_body_bytes_per_second
    chunks: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout_at(started + grace) as pace:
            stream = aiter(req.stream)
            async for chunk in stream:
                total += len(chunk)
                if total > limit:
                    break
                reserved.add(len(chunk))
                chunks.append(chunk)
                pace.reschedule(started + grace + total / rate)
    except TimeoutError:
        raise UnwantedBodyError(
            408,
            f"The body came too slowly: {total:,} bytes in {loop.time() - started:.1f} s; "
            f"at least {rate:,} bytes a second are asked for (min_body_bytes_per_second)",
        ) from None
    if total > limit:
        chunks.clear()
        await _discard(stream)
        raise UnwantedBodyError(413, f"The body is larger than max_request_bytes, {limit:,}")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _discard(stream: AsyncIterator[bytes]) -> None:
    """Reads a little of an unwanted body: a client that is still writing it would not see the answer otherwise."""
    total = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in stream:
                total += len(chunk)
                if total > _DRAIN_BYTES:
                    return
    except TimeoutError:
        pass


async def _inflated(body: bytes, limit: int, reserved: Reservation) -> bytes:
    """A gzip body, inflated in steps that count as in flight as they come: many bombs at once stay bounded too."""
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
        raise ServingError(Code.INVALID_ARGUMENT, "There is something behind the gzip body", "send one gzip member")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
