"""Threads for file system calls that may hang for ever, as a stat on a dead NFS server does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["ScanThreads"]

T = TypeVar("T")

_MAX_SCAN_THREADS = 256


class ScanThreads:
    """Daemon threads for calls that may hang: a hung thread does not keep the process from ending."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._count = 0

    async def call(self, function: Callable[[], T]) -> T:
        """Return the result of `function`, called in a thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)  # type: ignore[arg-type]  # None only where T allows it

        def job() -> None:
            result, error = None, None
            try:
                result = function()
            except BaseException as exception:  # noqa: BLE001 - it is raised again where the call is awaited
                error = exception
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish, result, error)

        with self._lock:
            if self._idle == 0 and self._count < _MAX_SCAN_THREADS:
                self._count += 1
                threading.Thread(target=self._run, daemon=True, name="scan").start()
            else:
                self._idle -= 1
        self._jobs.put(job)
        return await future

    def _run(self) -> None:
        while True:
            self._jobs.get()()
            with self._lock:
                self._idle += 1
