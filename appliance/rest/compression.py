"""Decides which answers are sent compressed, and compresses them (RFC 9110, section 12.5.3; RFC 1952)."""

from __future__ import annotations

import asyncio
import re
import zlib
from typing import NamedTuple

__all__ = ["MIN_BYTES", "Coding", "coding_of", "gzipped", "gzipped_at_once", "is_gzip_wanted"]

MIN_BYTES = 1024
"""Smaller answers are sent uncompressed."""

# The fastest level: digits of predictions shrink to half their size at every level, but take ten times as long at the
# default level (2026-11: 10 KB in 65 µs, 1 MB in 10 ms).
_LEVEL = 1
_GZIP = 16 + zlib.MAX_WBITS
# zlib releases the GIL while it works; smaller data takes less time than the switch to a thread.
_IN_THREAD_BYTES = 64 * 1024

_CODING = re.compile(r"\s*([^\s;,]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?")


def is_gzip_wanted(accept_encoding: str | None, size: int) -> bool:
    """Return whether to compress an answer of `size` bytes for a client that sent that Accept-Encoding header.

    Compress it from `MIN_BYTES` on if the client's weight for gzip is at least that for identity, and at any size if
    the client refuses identity. Codings without a valid weight from 0 to 1 are ignored.
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
    # Unless it is refused, identity is always acceptable, with the lowest weight.
    identity = weights.get("identity", 0.0)
    refused = weights.get("identity", 1.0 if others is None else others) == 0
    return gzip > 0 and gzip >= identity and (size >= MIN_BYTES or refused)


class Coding(NamedTuple):
    """Whether an answer is sent as gzip, and the headers that say so."""

    is_gzip: bool
    headers: tuple[tuple[str, str], ...]


def coding_of(accept_encoding: str | None, size: int) -> Coding:
    """Return how to send an answer of `size` bytes to a client that sent that Accept-Encoding header."""
    vary = ("vary", "Accept-Encoding")  # so that caches keep both forms
    if is_gzip_wanted(accept_encoding, size):
        return Coding(True, (("content-encoding", "gzip"), vary))
    return Coding(False, (vary,) if size >= MIN_BYTES else ())


async def gzipped(data: bytes) -> bytes:
    """Return `data` as one gzip member; the same data gives the same bytes."""
    if len(data) < _IN_THREAD_BYTES:
        return gzipped_at_once(data)
    return await asyncio.to_thread(gzipped_at_once, data)


def gzipped_at_once(data: bytes) -> bytes:
    """Return what `gzipped` returns; for small data, because nobody else is served meanwhile."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return compressor.compress(data) + compressor.flush()
