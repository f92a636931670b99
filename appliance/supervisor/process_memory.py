"""The memory of the server's processes, as each reads it of itself: none may look into another."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeGuard

from appliance.core.errors import ServingError
from appliance.host.memory import proportional_bytes

__all__ = ["ProcessMemory"]

_SECONDS = 2.0  # that a process has to answer
_MOST_BYTES = 1 << 62
_KEEP_SECONDS = 10.0  # the kernel walks a process's pages for milliseconds


class Asked(Protocol):
    """Other processes that can be asked."""

    def questions(self, method: str, seconds: float) -> Mapping[int, Callable[[], Awaitable[object]]]:
        """Return how to ask each of them to do `method`, by process number. What is returned raises ServingError, also
        after `seconds`."""
        ...


class ProcessMemory:
    """What the supervisor's and other processes read last, and read anew when somebody asks."""

    def __init__(self, others: Sequence[Asked]) -> None:
        self._others = others
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
            questions = {pid: ask for each in self._others for pid, ask in each.questions("memory", _SECONDS).items()}
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
