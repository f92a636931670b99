"""A front's connection to a worker, whose side is played by a channel of the product's own."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.core.errors import Code, ServingError
from appliance.core.routes import VersionRoute
from appliance.core.servable import PublicState
from appliance.transport.channel import Channel
from appliance.transport.connection import Connection, DiedError, DrainingError
from appliance.transport.wire import FLAG_DRAINING, Frame, Kind, header, pack_arrays

MAX_ANSWER_BYTES = 1 << 20
SECONDS = 60
ROUTE = VersionRoute(1, "available", PublicState.AVAILABLE)
PACKED = pack_arrays([("x", np.array([1.0, 2.0], np.float32))])


class Scene:
    """A connection, the worker's end of it, and the answers that came."""

    def __init__(self, route: VersionRoute, listening: socket.socket) -> None:
        self.connection = Connection(route, "m", MAX_ANSWER_BYTES)
        self.worker = Channel(listening.accept()[0], trusts_peer=True)
        self.answers: dict[int, Any] = {}
        self.changed = asyncio.Event()

    def submit(self, seconds: float = 60.0) -> int:
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        number = 0

        def done(answer: Any) -> None:
            assert number not in self.answers
            self.answers[number] = answer
            self.changed.set()

        number = self.connection.submit("serve", ["y"], PACKED, deadline_ns, done)
        return number

    async def answered(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.answers) < count:
                self.changed.clear()
                await self.changed.wait()

    async def received(self, count: int) -> list[Frame]:
        """The next frames that the worker gets."""
        frames: list[Frame] = []
        async with asyncio.timeout(30):
            while len(frames) < count:
                frames += self.worker.receive()
                await asyncio.sleep(0)
        return frames

    def answer(self, number: int) -> None:
        self.worker.send_arrays(Kind.RESULT, number, PACKED.table, PACKED)

    def send(self, kind: Kind, number: int, meta: bytes, flags: int = 0) -> None:
        self.worker.send([header(kind, len(meta), 0, number, flags=flags) + meta])


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[Scene], Coroutine[Any, Any, None]]], None]:
    def run(act: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
        async def scene() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
                listening.bind(str(tmp_path / "s"))
                listening.listen()
                played = Scene(replace(ROUTE, socket_path=str(tmp_path / "s")), listening)
                await act(played)
                played.connection.leave()
                played.worker.close()

        asyncio.run(scene())

    return run


Play = Callable[[Callable[[Scene], Coroutine[Any, Any, None]]], None]


def test_answers_go_to_their_requests_whatever_their_order(play: Play) -> None:
    async def act(scene: Scene) -> None:
        first, second = scene.submit(), scene.submit()
        await scene.received(2)
        scene.answer(second)
        await scene.answered(1)
        scene.send(Kind.ERROR, first, bytes([Code.NOT_FOUND]) + b"no")
        await scene.answered(2)
        assert scene.answers[second]["x"].tolist() == [1.0, 2.0]
        assert (scene.answers[first].code, str(scene.answers[first])) == (Code.NOT_FOUND, "no")

    play(act)


def test_a_request_whose_deadline_passes_ends_then_and_the_others_go_on(play: Play) -> None:
    async def act(scene: Scene) -> None:
        late, short, past = scene.submit(), scene.submit(0.001), scene.submit(-1.0)
        await scene.answered(2)
        for number in (short, past):
            assert scene.answers[number].code is Code.DEADLINE_EXCEEDED
        frames = await scene.received(5)
        assert {frame.request_id for frame in frames if frame.kind == Kind.CANCEL} == {short, past}
        for number in (short, late):  # the worker may answer nevertheless
            scene.answer(number)
        await scene.answered(3)
        assert "x" in scene.answers[late]

    play(act)


def test_a_cancelled_request_gets_no_answer(play: Play) -> None:
    async def act(scene: Scene) -> None:
        first, second = scene.submit(), scene.submit()
        scene.connection.cancel(first)
        frames = await scene.received(3)
        assert [(frame.kind, frame.request_id) for frame in frames[2:]] == [(Kind.CANCEL, first)]
        scene.answer(first)
        scene.answer(second)
        await scene.answered(1)
        assert list(scene.answers) == [second]

    play(act)


def test_a_worker_that_says_goodbye_leaves_its_requests_to_another(play: Play) -> None:
    async def act(scene: Scene) -> None:
        refused, left = scene.submit(), scene.submit()
        await scene.received(2)
        scene.send(Kind.ERROR, refused, b"", FLAG_DRAINING)
        scene.send(Kind.GOODBYE, 0, b"")
        scene.worker.close()
        await scene.answered(2)
        assert isinstance(scene.answers[refused], DrainingError)
        assert isinstance(scene.answers[left], DrainingError)

    play(act)


def test_a_worker_that_dies_fails_its_requests(play: Play) -> None:
    async def act(scene: Scene) -> None:
        number = scene.submit()
        await scene.received(1)
        scene.worker.close()
        await scene.answered(1)
        assert isinstance(scene.answers[number], DiedError)
        assert not scene.connection.open

    play(act)


def test_a_malformed_answer_fails_its_request_and_ends_the_connection(play: Play) -> None:
    async def act(scene: Scene) -> None:
        first, second = scene.submit(), scene.submit()
        await scene.received(2)
        scene.send(Kind.RESULT, first, b"\xff\xff")
        await scene.answered(2)
        assert isinstance(scene.answers[first], DiedError)
        assert isinstance(scene.answers[second], DiedError)
        assert not scene.connection.open

    play(act)


def test_one_who_waits_is_told_errors_and_gives_the_request_up_if_cancelled(play: Play) -> None:
    async def act(scene: Scene) -> None:
        with pytest.raises(ServingError, match="Timed out waiting"):
            await scene.connection.ask("serve", ["y"], PACKED, time.monotonic_ns())
        assert [frame.kind for frame in await scene.received(2)] == [Kind.PREDICT, Kind.CANCEL]
        waiting = asyncio.ensure_future(scene.connection.ask("serve", ["y"], PACKED, time.monotonic_ns() + 10**11))
        await scene.received(1)
        waiting.cancel()
        assert [frame.kind for frame in await scene.received(1)] == [Kind.CANCEL]
        with pytest.raises(asyncio.CancelledError):
            await waiting

    play(act)


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
