"""Fixed limits that several rooms share."""

from __future__ import annotations

__all__ = ["MAX_HEADER_BYTES", "SHARED_MEMORY_BYTES"]

MAX_HEADER_BYTES = 65536
"""The largest size of a request's headers, in REST and in gRPC."""

SHARED_MEMORY_BYTES = 256 << 20
"""The most shared memory between a front and a version, each way; payloads without room go through their socket."""
