"""Run one model on what the job sends, in a child process: by TensorFlow, as the reference, or a form.

`python -m converters.runner` has the socket as its standard input. A request is a frame (`backends.frames`):

    {"op": "load", "backend": …, "path": …, "tags": […], "threads": …}    → {"signatures": {…}}
    {"op": "run", "signature": …} and its inputs                          → {} and the outputs
    {"op": "run moved", "signature": …, "move": …} and its inputs         → {"moved": …} and the outputs, if so
    {"op": "time", "signature": …, "calls": …} and its inputs             → {"nanoseconds": […]}

or, if the framework refuses, {"refused": message}.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from backends.contract import Backend, BackendError, Changing, Partial, Signature, Weighted
from backends.frames import receive, send
from backends.registry import load
from converters.child import become_child
from converters.roundings import WeightsMove, moved_weights

__all__ = ["main", "serve"]


def serve(sock: socket.socket) -> None:
    """Answer requests until the job ends."""
    backend: Backend | None = None
    while (frame := receive(sock)) is not None:
        message, arrays = frame
        try:
            if message["op"] == "load":
                backend = _load(message)
                served = msgspec.to_builtins(dict(backend.signatures))
                unsupported = dict(backend.unsupported) if isinstance(backend, Partial) else {}
                changing = sorted(backend.changing) if isinstance(backend, Changing) else []
                send(sock, {"signatures": served, "unsupported": unsupported, "changing": changing})
                continue
            if backend is None:
                raise RuntimeError("nothing is loaded")
            signature = backend.signatures[message["signature"]]
            if message["op"] == "run moved":
                moved = _run_moved(backend, message, signature, arrays)
                send(sock, {"moved": moved is not None}, moved)
            elif message["op"] == "run":
                send(sock, {}, _run(backend, message["signature"], signature, arrays))
            else:
                send(sock, {"nanoseconds": _time(backend, message, signature, arrays)})
        except BackendError as error:
            send(sock, {"refused": error.message, "code": error.code.name})


def _load(message: dict[str, Any]) -> Backend:
    return load(
        message["backend"],
        message["path"],
        tags=message["tags"],
        intra_op_threads=message["threads"],
        inter_op_threads=message["inter_op_threads"],
        session_config_file=message["session_config_file"],
        libraries=message["op_libraries"],
        interpreters=1,
        device=message["device"],
        gpu_memory_limit_bytes=message["gpu_memory_limit_bytes"],
    )


def _run(backend: Backend, name: str, signature: Signature, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    outputs = tuple(signature.outputs)
    return dict(zip(outputs, backend.run(name, arrays, outputs), strict=True))


def _run_moved(
    backend: Backend, message: dict[str, Any], signature: Signature, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """Run with moved weights; return None if the model has none."""
    if not isinstance(backend, Weighted) or not (weights := backend.weights()):
        return None
    backend.set_weights(moved_weights(weights, msgspec.convert(message["move"], WeightsMove)))
    try:
        return _run(backend, message["signature"], signature, arrays)
    finally:
        backend.set_weights(weights)


def _time(backend: Backend, message: dict[str, Any], signature: Signature, arrays: dict[str, np.ndarray]) -> list[int]:
    outputs = tuple(signature.outputs)
    name = message["signature"]
    found = []
    for _ in range(message["calls"]):
        inputs = {alias: array.copy() for alias, array in arrays.items()}  # they are dead after the call
        begun = time.perf_counter_ns()
        backend.run(name, inputs, outputs)
        found.append(time.perf_counter_ns() - begun)
    return found


def main(confine: Callable[[], None] = lambda: None) -> None:
    """Serve the job that has started this process, after `confine`."""
    become_child(int(os.environ["DROPSERVE_PARENT"]), os.environ["DROPSERVE_YIELD"] == "1")
    confine()
    serve(socket.socket(fileno=os.dup(0)))


if __name__ == "__main__":
    main()
