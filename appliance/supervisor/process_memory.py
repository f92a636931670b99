"""The memory of the server's processes, as each reads it of itself: none may look into another."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeGuard

from appliance.core.errors import ServingError
from appliance.host.memory import proportional_bytes

__all__ = ["ProcessMemory"]

_MOST_BYTES = 1 << 62
_KEEP_SECONDS = 10.0  # the kernel walks a process's pages for milliseconds


class ProcessMemory:
    """What was read last, and is read anew when somebody asks. `questions()` returns, by process number, how to ask
    each of the other processes; a question has its own deadline, and raises ServingError."""

    def __init__(self, questions: Callable[[], Mapping[int, Callable[[], Awaitable[object]]]]) -> None:
        self._questions = questions
        self._known: dict[int, int] = {}
        self._read = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def proportional(self) -> dict[int, int]:
        """Return the resident memory in bytes, shared pages divided by their users (PSS), by process number. Those that
        do not answer are left out. What is returned may be 10 s old."""
        if self._reading is None and time.monotonic() - self._read >= _KEEP_SECONDS:
            self._reading = asyncio.create_task(self._read_all())
        if self._reading is not None:
            await asyncio.shield(self._reading)
        return dict(self._known)

    async def _read_all(self) -> None:
        try:
            questions = self._questions()
            own, *answers = await asyncio.gather(
                asyncio.to_thread(proportional_bytes), *(_answer(ask) for ask in questions.values())
            )
            found = {os.getpid(): own, **dict(zip(questions, answers, strict=True))}
            self._known = {pid: nbytes for pid, nbytes in found.items() if _is_memory(nbytes)}
            self._read = time.monotonic()
        finally:
            self._reading = None


def _is_memory(value: object) -> TypeGuard[int]:
    """Tell whether a process can have so much memory: a worker says what its model likes."""
    return isinstance(value, int) and 0 <= value < _MOST_BYTES


async def _answer(ask: Callable[[], Awaitable[object]]) -> object:
    try:
        return await ask()
    except ServingError:  # it has ended, or hangs
        return None
