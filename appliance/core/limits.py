"""Limits that several rooms keep to, and that nobody needs to set."""

from __future__ import annotations

__all__ = ["MAX_HEADER_BYTES", "SHARED_MEMORY_BYTES"]

MAX_HEADER_BYTES = 65536
"""Size of a request's headers, in REST and in gRPC."""

SHARED_MEMORY_BYTES = 256 << 20
"""Shared memory of one front with one version, each way; what is more goes through their socket."""
