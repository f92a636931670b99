"""The watch over real processes: one that shows no life is suspected, and then killed; one that does is left alone."""

from __future__ import annotations

import asyncio
import os
import signal

from appliance.supervisor.watch import Watch, Watched

SECONDS = 60.0


def child() -> int:
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def test_who_shows_no_life_is_suspected_and_killed_and_who_does_is_not() -> None:
    silent, alive = child(), child()
    counted: list[str] = []
    suspected: list[bool] = []
    reasons: list[str] = []

    async def scene() -> None:
        hung = asyncio.Event()

        def on_hang(why: str) -> None:
            reasons.append(why)
            hung.set()

        watch = Watch(0.5, counted.append, lambda: suspected.append(watch.is_suspected("grpc", "rest")))
        watch.add(Watched("what it was while it started", "worker", alive))
        lively = Watched("a worker", "worker", alive, lambda: watch.heard(lively))
        watch.add(lively)  # and is no more
        watch.add(Watched("a front", "grpc", silent, lambda: None, on_hang))
        running = asyncio.create_task(watch.run())
        async with asyncio.timeout(SECONDS):
            await hung.wait()
            while suspected != [True, False]:
                await asyncio.sleep(0)
        running.cancel()

    try:
        asyncio.run(scene())
        assert os.WTERMSIG(os.waitpid(silent, 0)[1]) == signal.SIGKILL
        assert os.waitpid(alive, os.WNOHANG) == (0, 0)
        assert counted == ["grpc"]
        assert "hang_seconds is 0.5" in reasons[0]
    finally:
        os.kill(alive, signal.SIGKILL)
        os.waitpid(alive, 0)
