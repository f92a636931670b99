"""Whose counts a worker's file may have: its own.

A worker runs an untrusted model, which may write to its file what it likes. But the file was named before the model was
loaded, and a confined process cannot rename it. So the name says whose it is, and what the file says of others is
ignored. The name has a digest each of the model, the version and the folder, which may be too long for it.
"""

from __future__ import annotations

import hashlib

import orjson

from appliance.core.errors import as_utf8
from appliance.metrics.catalogue import METRICS

__all__ = ["WORKER", "is_of_worker", "is_own_process", "is_own_series", "worker_file"]

WORKER = "worker"
"""The role of processes that run models."""

_MODEL, _VERSION, _PATH = range(3)
_OWNED = {"model": _MODEL, "model_name": _MODEL, "version": _VERSION, "model_path": _PATH}
_LABELS = {metric.name: metric.labels for metric in METRICS}


def worker_file(model: str, version: str, path: str) -> str:
    """Return how the name begins of the file of a worker that serves the version folder `path`."""
    return "-".join((WORKER, *map(_digest, (model, version, path))))


def is_of_worker(name: str) -> bool:
    """Tell whether the file `name` is a worker's."""
    return name.startswith(f"{WORKER}-")


def is_own_series(name: str, key: bytes) -> bool:
    """Tell whether the worker's file `name` may count under this key: it says whose it is, and says the truth."""
    try:
        metric, *labels = orjson.loads(key)
        said = [(_OWNED[label], value) for label, value in zip(_LABELS[metric], labels, strict=True) if label in _OWNED]
        owner = name.split("-")
        return bool(said) and all(owner[1 + part] == _digest(value) for part, value in said)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def is_own_process(name: str, model: str, version: str, pid: int) -> bool:
    """Tell whether the worker's file `name` is that of process `pid`, for this version."""
    _, of_model, of_version, _, of_pid, *_ = name.split("-")
    return (of_model, of_version, of_pid) == (_digest(model), _digest(version), str(pid))


def _digest(text: str) -> str:
    return hashlib.blake2b(as_utf8(text).encode(), digest_size=8).hexdigest()
