"""Fixed limits that several rooms share."""

from __future__ import annotations

__all__ = ["MAX_HEADER_BYTES", "MAX_STRINGS", "MIN_BYTES_PER_SECOND", "SHARED_MEMORY_BYTES"]

MAX_HEADER_BYTES = 65536
"""The largest size of a request's headers, in REST and in gRPC."""

MAX_STRINGS = 1_000_000
"""The most strings of a tensor over gRPC, and of an answer.

Each is an object of its own: a million of them take a front 0.2 s, for which it answers nobody else, and the worker as
long.
"""

MIN_BYTES_PER_SECOND = 16384
"""The lowest average pace at which clients send a body and read an answer, after `body_grace_seconds`."""

SHARED_MEMORY_BYTES = 256 << 20
"""The most shared memory between a front and a version, each way; payloads without room go through their socket."""
