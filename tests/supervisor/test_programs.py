"""The fork server as the supervisor keeps it: one that hangs is replaced as one that died."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine

import pytest

from appliance.host.processes import Reaper
from appliance.supervisor.programs import ForkServer, Programs
from appliance.supervisor.watch import Watch

Fork = Callable[[], Coroutine[None, None, int | None]]
_SECONDS = 120.0  # TensorFlow is imported twice, beside whatever else the machine does


def play(scene: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run `scene`, for `_SECONDS` at most."""

    async def in_time() -> None:
        async with asyncio.timeout(_SECONDS):
            await scene()

    asyncio.run(in_time())


def unwatched() -> Watch:
    """A watch for which nothing hangs: what is asked for in vain shows it."""
    return Watch(0, lambda _: None, lambda: None)


def test_a_fork_server_that_cannot_be_asked_is_replaced() -> None:
    async def scene() -> None:
        reaper = Reaper()
        reaper.start()
        server = ForkServer(reaper, unwatched(), os.close)
        programs = Programs(reaper)
        programs.keep(server.program)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert await server.fork({}, 1 << 20, theirs.fileno()) is None  # there is no such descriptor to send
            worker = await server.fork({}, theirs.fileno(), theirs.fileno())
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        server.program.stopping = True
        reaper.kill(server.program.pid or 0)
        await server.program.ended.wait()

    play(scene)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "dies"])
def test_a_fork_server_that_fails_is_replaced_and_the_next_request_is_answered(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        reaper = Reaper()
        reaper.start()
        server = ForkServer(reaper, unwatched(), os.close, fork_seconds=5.0)
        programs = Programs(reaper)
        programs.keep(server.program)

        async def fork() -> int | None:
            """A worker; it waits for this process to be its parent, and is ended before it finds that it is not."""
            ours, theirs = socket.socketpair()
            with ours, theirs:
                worker = await server.fork({"large": "x" * 1_000_000}, theirs.fileno(), theirs.fileno())
            if worker is not None:
                os.kill(worker, signal.SIGKILL)
            return worker

        assert await fork() is not None
        first = server.program.pid
        assert first is not None
        os.kill(first, number)
        assert await fork() is None
        assert await fork() is not None
        assert server.program.pid not in (None, first)
        await programs.stop(0.1, but=server.program)
        server.program.stopping = True
        reaper.kill(server.program.pid or 0)
        await server.program.ended.wait()

    play(scene)
    said = "the fork server did not answer within 5 s; it is killed" in caplog.messages
    assert said == (number is signal.SIGSTOP)
    assert any("the fork server process ended (killed by SIGKILL (9)" in message for message in caplog.messages)


def test_a_fork_server_that_cannot_be_started_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        server = ForkServer(Reaper(), unwatched(), os.close)
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="Argument list too long"):
            server.program.start()
        assert set(os.listdir("/proc/self/fd")) == before

    monkeypatch.setenv("LARGE", "x" * 200_000)  # more than one variable may have
    asyncio.run(scene())
