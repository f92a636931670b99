"""What a source leaves behind when it no longer follows a model."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from appliance.core.observed import Observed
from appliance.source.watcher import Source

DEADLINE_SECONDS = 60.0


class Held(frozenset[int]):
    """Loaded versions at which a scan stands still until the test goes on, and then fails."""

    def __new__(cls) -> Held:
        return super().__new__(cls)

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    def __sub__(self, other: object) -> Held:
        return self

    def __contains__(self, number: object) -> bool:
        self.reached.set()
        assert self.released.wait(DEADLINE_SECONDS)
        raise RuntimeError("the scan fails")


class Listener:
    """Hears nothing that matters here."""

    def __init__(self, loaded: frozenset[int]) -> None:
        self.loaded = loaded

    def loaded_versions(self, name: str) -> frozenset[int]:
        return self.loaded

    def model_appeared(self, name: str, base_path: str) -> float:
        return 0.0

    def model_vanished(self, name: str) -> None: ...
    def versions_observed(self, name: str, observed: dict[int, Observed], remark: str, holds_model: bool) -> None: ...
    def base_path_lost(self, name: str, reason: str) -> None: ...


@pytest.mark.parametrize("passes", [None, 0, 1, 2, 3, 4])
def test_a_scan_that_fails_as_its_model_is_removed_is_no_unheard_error(tmp_path: Path, passes: int | None) -> None:
    """The model is removed so many passes of the loop after the scan has failed; None: before it fails."""
    base = tmp_path / "m"
    (base / "1").mkdir(parents=True)
    unheard: list[dict[str, Any]] = []
    held = Held()

    async def follow_and_remove() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unheard.append(context))
        source = Source(Listener(held), 1000.0)
        source.add("m", str(base), 0.0)
        assert await asyncio.to_thread(held.reached.wait, DEADLINE_SECONDS)
        shutil.rmtree(base)
        if passes is None:
            source.remove("m")
            await asyncio.sleep(0)
        told, tell = threading.Event(), loop.call_soon_threadsafe

        def note(*told_what: Any, **how: Any) -> asyncio.Handle:
            handle = tell(*told_what, **how)
            told.set()
            return handle

        loop.call_soon_threadsafe = note  # type: ignore[method-assign]
        held.released.set()
        # The loop stands meanwhile: what the thread says is heard in its next pass.
        assert told.wait(DEADLINE_SECONDS)
        if passes is not None:
            for _ in range(passes):
                await asyncio.sleep(0)
            source.remove("m")
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(follow_and_remove())
    gc.collect()  # asyncio tells of an exception that nobody took when it is collected
    assert unheard == []


class Looks(Listener):
    """Keeps what is observed."""

    def __init__(self) -> None:
        super().__init__(frozenset())
        self.seen: asyncio.Queue[dict[int, Observed]] = asyncio.Queue()

    def versions_observed(self, name: str, observed: dict[int, Observed], remark: str, holds_model: bool) -> None:
        self.seen.put_nowait(observed)


def test_files_of_a_loaded_version_are_looked_at_when_that_is_asked_for(tmp_path: Path) -> None:
    """Also where folders are scanned once only; their content is told, and is the same whoever touches them."""
    base = tmp_path / "m"
    (base / "1").mkdir(parents=True)
    (base / "1" / "saved_model.pb").write_bytes(b"graph")

    async def look_twice() -> list[Observed]:
        listener = Looks()
        source = Source(listener, 0.0)
        source.add("m", str(base), 0.0)

        async def look() -> Observed:
            source.look("m")
            return (await listener.seen.get())[1]

        async with asyncio.timeout(DEADLINE_SECONDS):
            found = [(await listener.seen.get())[1]]
            listener.loaded = frozenset({1})
            os.utime(base / "1" / "saved_model.pb")
            found.append(await look())
            (base / "1" / "saved_model.pb").write_bytes(b"another graph")
            found.append(await look())
        source.stop()
        source.look("unknown")
        return found

    first, touched, changed = asyncio.run(look_twice())
    assert [seen.in_place for seen in (first, touched, changed)] == [False, True, True]
    assert first.content == touched.content != changed.content
    assert first.content
    assert all(seen.settled for seen in (first, touched, changed))
