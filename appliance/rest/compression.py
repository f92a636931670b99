"""Which answers are sent compressed, and gzip itself (RFC 9110, section 12.5.3; RFC 1952)."""

from __future__ import annotations

import asyncio
import re
import zlib

__all__ = ["MIN_BYTES", "gzipped", "is_gzip_wanted"]

MIN_BYTES = 1024
"""Smaller answers go out as they are."""

# The fastest level: the digits of a prediction take half of their size at each level, and ten times as long at the
# default one (2026-11: 10 KB in 65 µs, 1 MB in 10 ms).
_LEVEL = 1
_GZIP = 16 + zlib.MAX_WBITS
# zlib lets other requests on while it works; what is smaller takes less time than the way to a thread.
_IN_THREAD_BYTES = 64 * 1024

_CODING = re.compile(r"\s*([^\s;,]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?")


def is_gzip_wanted(accept_encoding: str | None, size: int) -> bool:
    """Whether an answer of `size` bytes goes out compressed to a client that sent that header.

    It does from `MIN_BYTES` on if the client likes gzip no less than an answer as it is, and whatever its
    size if the client refuses one as it is. What is no coding with a weight from 0 to 1 counts for nothing.
    """
    if not accept_encoding or (size < MIN_BYTES and "0" not in accept_encoding):
        return False
    weights: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        match = _CODING.fullmatch(part)
        if match and float(match[2] or 1) <= 1:
            weights[match[1]] = float(match[2] or 1)
    others = weights.get("*")
    gzip = weights.get("gzip", weights.get("x-gzip", others or 0.0))
    # Unless it is refused, an answer as it is will always do: it comes last.
    identity = weights.get("identity", 0.0)
    refused = weights.get("identity", 1.0 if others is None else others) == 0
    return gzip > 0 and gzip >= identity and (size >= MIN_BYTES or refused)


async def gzipped(data: bytes) -> bytes:
    """`data` as one gzip member; the same bytes for the same data."""
    if len(data) < _IN_THREAD_BYTES:
        return _gzipped(data)
    return await asyncio.to_thread(_gzipped, data)


def _gzipped(data: bytes) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return compressor.compress(data) + compressor.flush()
