"""The queue of one version: bounded in requests and in bytes. Pure: the caller holds the lock and says the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """A request that waits. `deadline_ns` is in CLOCK_MONOTONIC nanoseconds, 0 for none."""

    item: T
    nbytes: int
    deadline_ns: int
    cancelled: bool = False


class RequestQueue(Generic[T]):
    """First in, first out; at most `max_requests` and `max_bytes` wait.

    A request that finds the queue empty is taken whatever its size: a limit on bytes must not make a model refuse
    what it could run.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._entries: deque[Entry[T]] = deque()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def offer(self, entry: Entry[T]) -> str | None:
        """Queues `entry`, or says why not: the limit that it meets, with its value."""
        if len(self._entries) >= self._max_requests:
            return f"{len(self._entries)} requests wait already (max_queue_requests is {self._max_requests})"
        if self._entries and self.nbytes + entry.nbytes > self._max_bytes:
            return f"{self.nbytes:,} bytes wait already (max_queue_bytes is {self._max_bytes:,})"
        self.push(entry)
        return None

    def push(self, entry: Entry[T]) -> None:
        """Queues `entry` whatever the limits: a thread is free, so it does not wait."""
        self._entries.append(entry)
        self.nbytes += entry.nbytes

    def take(self) -> Entry[T] | None:
        """The request that has waited longest, or None."""
        if not self._entries:
            return None
        entry = self._entries.popleft()
        self.nbytes -= entry.nbytes
        return entry
