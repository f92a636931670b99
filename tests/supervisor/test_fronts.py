"""The supervisor's connection to the fronts, with real sockets: every front adopts what it publishes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.core.route_updates import RouteReader
from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import PublicState
from appliance.inference.router import Router
from appliance.supervisor.fronts import Fronts
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.watch import Watch
from backends.contract import Signature, TensorSpec

SECONDS = 30.0
SPEC = TensorSpec("float32", (-1,), "x:0")
SIGNATURES = {f"s{n}": Signature({"x": SPEC}, {"y": SPEC}) for n in range(2)}


def snapshot(serial: int, count: int, state: str = "available") -> Snapshot:
    """`count` models whose workers are gone: a front may route to them, and need not connect."""
    route = VersionRoute(1, state, PublicState.AVAILABLE, socket_path="/nowhere", signatures=SIGNATURES)
    return Snapshot(serial, True, {f"m{n}": ModelRoute(f"m{n}", (route,)) for n in range(count)})


async def nothing(method: str, params: dict[str, Any]) -> Any:
    raise AssertionError(method)


def play(scene: Callable[[Fronts, str], Awaitable[None]]) -> None:
    """Runs `scene` with the fronts of a supervisor that listens at a path."""

    async def in_time() -> None:
        fronts = Fronts(Tasks(), nothing, lambda _: None, lambda: None, Watch(0.0, print, lambda: None), lambda _: True)
        with tempfile.TemporaryDirectory(prefix="ds-") as directory:
            path = str(Path(directory) / "control")
            server = await fronts.listen(path)
            async with asyncio.timeout(SECONDS):
                await scene(fronts, path)
            server.close()

    asyncio.run(in_time())


async def started(path: str) -> Router:
    router = Router(path, "rest", 1)
    await router.start(lambda: None)
    return router


def test_every_front_adopts_what_is_published_before_that_counts_as_adopted() -> None:
    async def scene(fronts: Fronts, path: str) -> None:
        fronts.publish(snapshot(1, 500))
        routers = [await started(path) for _ in range(3)]
        assert [router.snapshot for router in routers] == [fronts.snapshot] * 3
        for serial in range(2, 6):
            fronts.publish(snapshot(serial, 500 + serial, "draining" if serial % 2 else "available"))
            await fronts.all_adopted()
            assert [router.snapshot for router in routers] == [fronts.snapshot] * 3

    play(scene)


def test_a_front_that_does_not_adopt_is_waited_for_no_longer_than_is_said_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(fronts: Fronts, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(path)
            silent.sendall(b'{"role": "grpc 7"}\n')
            while not fronts.questions("any", 1.0):  # until it is known
                await asyncio.sleep(0)
            fronts.publish(snapshot(1, 1))
            await fronts.all_adopted(0.1)

    play(scene)
    assert f"not every front has the newest routes after 0.1 s: grpc 7 ({os.getpid()}) has not" in caplog.messages


def test_what_changes_while_a_front_reads_nothing_comes_together() -> None:
    async def scene(fronts: Fronts, path: str) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as front:
            front.connect(path)
            front.sendall(b'{"role": "rest", "pid": 1}\n')
            front.setblocking(False)
            serials = 30
            for serial in range(1, serials + 1):
                fronts.publish(snapshot(serial, 1000, f"state {serial}"))
                for _ in range(100):  # so that all is sent that there is room for
                    await asyncio.sleep(0)
            heard, adopted, rest = RouteReader(), [], b""
            while heard.snapshot.serial < serials:
                *lines, rest = (rest + await loop.sock_recv(front, 1 << 20)).split(b"\n")
                adopted += [heard.snapshot.serial for line in lines if heard.hear(json.loads(line))]
            assert heard.snapshot == fronts.snapshot
            assert len(adopted) < 5

    play(scene)


def test_a_front_that_has_lost_an_update_gets_the_whole_snapshot() -> None:
    async def scene(fronts: Fronts, path: str) -> None:
        fronts.publish(snapshot(1, 3))
        router = await started(path)
        router._routes.snapshot = replace(router._routes.snapshot, serial=77)  # as if another had come between
        fronts.publish(snapshot(2, 4))
        await fronts.all_adopted()
        assert router.snapshot == fronts.snapshot

    play(scene)
