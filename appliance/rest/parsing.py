"""Parses large bodies in a thread, one at a time: others are answered meanwhile, and their memory does not add up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from appliance.core.errors import Code, ServingError

__all__ = ["LARGE_BYTES", "Parsing"]

_T = TypeVar("_T")

LARGE_BYTES = 1 << 20
"""Smaller bodies are parsed at once: even the costliest takes 50 ms and 30 MB."""


class Parsing:
    """Runs what parses a large body, of which one at a time may take `room` bytes of memory beside the body."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._turn = asyncio.Lock()

    async def run(self, parse: Callable[[int], _T], deadline_ns: int) -> _T:
        """Return what `parse`, called with the room, returns. It waits for its turn until `deadline_ns` (monotonic).

        Raise ServingError: DEADLINE_EXCEEDED, or what `parse` raises.
        """
        try:
            async with asyncio.timeout((deadline_ns - time.monotonic_ns()) / 1e9):
                await self._turn.acquire()
        except TimeoutError:
            raise ServingError(
                Code.DEADLINE_EXCEEDED,
                "Timed out while other large requests were parsed",
                "send fewer values at once, use gRPC, or raise rest_workers",
            ) from None
        try:
            return await asyncio.to_thread(parse, self.room)
        finally:
            self._turn.release()
