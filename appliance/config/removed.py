"""Lists options that no longer exist. If a configuration has one, the server starts and warns what applies instead."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["REMOVED", "removed_warnings"]

_PARITY = "the allowed difference of answers is fixed (docs/acceleration.md)"
_CONVERSION = "a conversion may take 600 s and 8 GiB of memory"

# Name → what applies instead.
REMOVED: dict[str, str] = {
    "conversion_memory_bytes": _CONVERSION,
    "conversion_timeout_seconds": _CONVERSION,
    "drain_timeout_seconds": "when a version is unloaded, its requests have 60 s to end",
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
        f"{where}{name} is no longer an option and has no effect: {REMOVED[name]}; remove it"
        for name in names
        if name in REMOVED
    ]
