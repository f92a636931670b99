"""Options that no longer exist. A configuration that has one starts, with a warning that says what applies instead."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["REMOVED", "removed_warnings"]

_PARITY = "how far an answer may be off is fixed (docs/acceleration.md)"
_CONVERSION = "a conversion is ended after 600 s, and at 8 GiB of memory"

# Name → what applies instead.
REMOVED: dict[str, str] = {
    "conversion_memory_bytes": _CONVERSION,
    "conversion_timeout_seconds": _CONVERSION,
    "drain_timeout_seconds": "a version that is unloaded may end its requests for 60 s",
    "max_header_bytes": "the headers of a request may have 65,536 bytes",
    "max_queue_bytes": "256 MiB of requests may wait for a version; max_queue_requests bounds their number",
    "min_body_bytes_per_second": "a REST body must come at 16 KiB a second, after body_grace_seconds",
    "onnx_spinning": "the threads of ONNX Runtime never spin",
    "parity_absolute_tolerance": _PARITY,
    "parity_tolerance": _PARITY,
    "parity_tolerance_float16": _PARITY,
    "parity_tolerance_int8": _PARITY,
    "parity_tolerance_tf32": _PARITY,
    "reload_timeout_seconds": "a reload by RPC answers after 60 s, or by its own deadline",
    "rest_compression_min_bytes": "answers of 1,024 bytes and more are compressed for clients that accept it",
    "shared_memory_bytes": "a front takes at most 256 MiB of shared memory for a version, each way",
}


def removed_warnings(names: Iterable[str], where: str) -> list[str]:
    """Return a warning for each of `names` that is a removed option; `where` is its location, such as "my.toml: "."""
    return [
        f"{where}{name} is an option no more, and counts for nothing: {REMOVED[name]}; take it out"
        for name in names
        if name in REMOVED
    ]
