"""A front's connection to a worker that answers what it likes, over a real socket."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from appliance.core.errors import Code, ServingError
from appliance.core.routes import VersionRoute
from appliance.core.servable import PublicState
from appliance.transport.channel import Channel
from appliance.transport.connection import Connection
from appliance.transport.wire import Kind, header, pack_arrays

MAX_ANSWER_BYTES = 1 << 20
SECONDS = 60


def answer(worker: Channel, size: int) -> None:
    """Answer the next request with so many bytes, by the socket."""
    worker.sock.setblocking(True)
    request = next(frame for frame in iter(worker.receive()) if frame.kind == Kind.PREDICT)
    packed = pack_arrays([("y", np.ones(size, np.uint8))])
    head = header(Kind.RESULT, len(packed.table), size, request.request_id)
    worker.sock.sendall(head + packed.table + bytes(packed.chunks[0][1]))


def test_a_worker_that_accepts_nobody_keeps_a_front_for_a_moment_only(tmp_path: Path) -> None:
    path = str(tmp_path / "worker")

    async def scene() -> None:
        route = VersionRoute(1, "available", PublicState.AVAILABLE, socket_path=path)
        waiting = Connection(route, "m", MAX_ANSWER_BYTES)
        with pytest.raises(BlockingIOError):
            Connection(route, "m", MAX_ANSWER_BYTES)
        waiting.leave()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        asyncio.run(scene())


def test_an_answer_that_is_too_large_is_an_error_of_its_request_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "worker")

    async def scene(listener: socket.socket) -> None:
        connection = Connection(
            VersionRoute(1, "available", PublicState.AVAILABLE, socket_path=path), "m", MAX_ANSWER_BYTES
        )
        worker = Channel(listener.accept()[0])
        packed = pack_arrays([("x", np.ones(1, np.float32))])

        async def asked(size: int) -> int:
            answering = asyncio.to_thread(answer, worker, size)
            asking = connection.ask("s", ["y"], packed, time.monotonic_ns() + SECONDS * 10**9)
            _, found = await asyncio.gather(answering, asking)
            return found["y"].size

        assert await asked(MAX_ANSWER_BYTES) == MAX_ANSWER_BYTES
        with pytest.raises(ServingError, match="The answer has more than 1,048,576 bytes") as caught:
            await asked(MAX_ANSWER_BYTES + 1)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert await asked(3) == 3
        connection.leave()
        worker.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        asyncio.run(scene(listener))
