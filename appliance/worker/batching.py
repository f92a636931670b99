"""The queues of one version, with and without batching. Pure: the caller holds the lock and passes the time.

In a `RequestQueue` no request waits for others: it gives the oldest request, with others that wait and may run with it.
In a `BatchQueue`, for `enable_batching`, requests wait for each other, as in TensorFlow's
`core/kernels/batching_util/shared_batch_scheduler.h`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from appliance.config.batching_parameters import BatchingParameters
from backends.contract import Code

T = TypeVar("T")

# The most requests that a search for others to merge with steps over. The search holds the lock, and a request that is
# stepped over again and again must not wait for long.
_MAX_PASSED_OVER = 64


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """A waiting request, or the rows from `start` to `stop` of one that was split; `stop` is None for a whole one.

    `deadline_ns` is in CLOCK_MONOTONIC nanoseconds, 0 for none. `last` is true for a whole request and for the last
    part of a split one.
    """

    item: T
    nbytes: int
    deadline_ns: int
    start: int = 0
    stop: int | None = None
    last: bool = True


class Extent(NamedTuple):
    """What a request may be merged with: others of its `group`. `rows` is the size of dimension 0 of all its inputs."""

    group: Hashable
    rows: int


class Refusal(NamedTuple):
    """Why a request is not queued."""

    code: Code
    message: str


class RequestQueue(Generic[T]):
    """First in, first out; at most `max_requests` and `max_bytes` wait.

    An empty queue takes a request of any size, so that the limit on bytes refuses nothing that could run alone.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._entries: deque[Entry[T]] = deque()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def offer(self, entry: Entry[T]) -> str | None:
        """Queue `entry` and return None, or return which limit refuses it, with its value."""
        reason = _limit_met(len(self._entries), self._max_requests, self.nbytes, entry.nbytes, self._max_bytes)
        if reason is None:
            self.push(entry)
        return reason

    def push(self, entry: Entry[T]) -> None:
        """Queue `entry` despite the limits: a thread is free, so it does not wait."""
        self._entries.append(entry)
        self.nbytes += entry.nbytes

    def take(self) -> Entry[T] | None:
        """Remove and return the request that has waited longest; None if the queue is empty."""
        if not self._entries:
            return None
        entry = self._entries.popleft()
        self.nbytes -= entry.nbytes
        return entry

    def take_like(self, first: Entry[T], extent_of: Callable[[T], Extent | None], max_rows: int) -> list[Entry[T]]:
        """Remove the requests that may run with `first`, which was taken just before; return them after it, in order.

        `extent_of` returns None for a request that is never merged. Together they have at most `max_rows` rows, unless
        `first` alone has more. The search ends at the first request of the group that has too many rows, so that
        requests of one group never overtake each other.
        """
        taken = [first]
        extent = extent_of(first.item)
        if extent is None:
            return taken
        rows = extent.rows
        passed_over: list[Entry[T]] = []
        while self._entries and rows < max_rows and len(passed_over) < _MAX_PASSED_OVER:
            other = extent_of(self._entries[0].item)
            if other is None or other.group != extent.group:
                passed_over.append(self._entries.popleft())
                continue
            if rows + other.rows > max_rows:
                break
            rows += other.rows
            entry = self._entries.popleft()
            self.nbytes -= entry.nbytes
            taken.append(entry)
        self._entries.extendleft(reversed(passed_over))
        return taken


@dataclass(slots=True, eq=False)
class _Batch(Generic[T]):
    queue: Hashable
    opened_ns: int
    entries: list[Entry[T]] = field(default_factory=list)
    rows: int = 0


class BatchQueue(Generic[T]):
    """Requests that wait for each other, in batches: one queue of them for each `queue` key (signature and outputs).

    A batch takes requests of one `group`. It is closed, and may run, when it has the rows that may run at once, or when
    the next request does not fit. An open batch may run from `batch_timeout_micros` after its first request came. At
    most `max_enqueued_batches` wait in each queue, and at most `max_requests` and `max_bytes` in all queues together.
    Batches run in the order in which their first requests came.
    """

    def __init__(self, parameters: BatchingParameters, max_requests: int, max_bytes: int) -> None:
        self._parameters = parameters
        self._timeout_ns = parameters.batch_timeout_micros * 1000
        self._limit = parameters.max_execution_batch_size
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        # In the order in which they were opened, which is that in which they are due: all wait equally long.
        self._open: dict[tuple[Hashable, Hashable], _Batch[T]] = {}
        self._closed: deque[_Batch[T]] = deque()
        self._batches: dict[Hashable, int] = {}  # how many wait in each queue that has any
        self._requests = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return self._requests

    def offer(self, entry: Entry[T], queue: Hashable, extent: Extent, now_ns: int, idle: int = 0) -> Refusal | None:
        """Queue `entry` and return None, or return why it is refused.

        `now_ns` is in CLOCK_MONOTONIC nanoseconds. `idle` threads are free to take batches: so many more may wait.
        """
        refusal = self._refusal(entry, queue, extent, idle)
        if refusal is not None:
            return refusal
        self._requests += 1
        self.nbytes += entry.nbytes
        if not extent.rows:  # it runs alone: there is no row to pad it with
            batch = self._new(queue, now_ns)
            batch.entries.append(entry)
            self._closed.append(batch)
            return None
        key = queue, extent.group
        parts = self._parts(entry, extent.rows, self._room(key))
        for part, rows in parts:
            found = self._open.get(key)
            if found is not None and found.rows + rows > self._limit:
                self._closed.append(self._open.pop(key))
                found = None
            if found is None:
                found = self._open[key] = self._new(queue, now_ns)
            found.entries.append(part)
            found.rows += rows
            if found.rows >= self._limit:
                self._closed.append(self._open.pop(key))
        return None

    def take(self, now_ns: int, drain: bool = False) -> list[Entry[T]] | None:
        """Remove and return the requests of the next batch to run; None if all batches must still wait.

        `now_ns` is in CLOCK_MONOTONIC nanoseconds. With `drain` no batch waits for more requests.
        """
        closed = self._closed[0] if self._closed else None
        for key, batch in self._open.items():
            if (drain or now_ns >= batch.opened_ns + self._timeout_ns) and (
                closed is None or batch.opened_ns < closed.opened_ns
            ):
                del self._open[key]
                return self._taken(batch)
            break
        return None if closed is None else self._taken(self._closed.popleft())

    @property
    def due_ns(self) -> int | None:
        """When `take` next gives a batch if no request comes, in CLOCK_MONOTONIC nanoseconds: 0 now, None never."""
        if self._closed:
            return 0
        for batch in self._open.values():
            return batch.opened_ns + self._timeout_ns
        return None

    def _refusal(self, entry: Entry[T], queue: Hashable, extent: Extent, idle: int) -> Refusal | None:
        parameters, rows = self._parameters, extent.rows
        if rows > parameters.max_batch_size:
            return Refusal(
                Code.INVALID_ARGUMENT,
                f"Task size {rows} is larger than maximum input batch size {parameters.max_batch_size}",
            )
        waiting, room = self._batches.get(queue, 0), self._room((queue, extent.group))
        free = max(parameters.max_enqueued_batches + idle - waiting, 0)
        # What the idle threads are about to take is not counted: how many they have taken by now is chance.
        enqueued = max(waiting - idle, 0)
        full = "The batch scheduling queue to which this task was submitted is full; "
        if parameters.enable_large_batch_splitting:
            capacity = free * self._limit + room
            if rows > capacity or not (rows or free):
                return Refusal(
                    Code.RESOURCE_EXHAUSTED,
                    f"{full}task size is {rows} but scheduling capacity is only {capacity} (num_enqueued_batches="
                    f"{enqueued}, max_enqueued_batches={parameters.max_enqueued_batches}, open_batch_size="
                    f"{self._limit - room if room else 0}, max_execution_batch_size={self._limit})",
                )
        elif not free and not 0 < rows <= room:
            return Refusal(
                Code.RESOURCE_EXHAUSTED,
                f"{full}currently {enqueued} batches enqueued and max_enqueued_batches is "
                f"{parameters.max_enqueued_batches}",
            )
        if self._requests < idle:
            return None
        reason = _limit_met(self._requests, self._max_requests, self.nbytes, entry.nbytes, self._max_bytes)
        return None if reason is None else Refusal(Code.RESOURCE_EXHAUSTED, reason)

    def _room(self, key: tuple[Hashable, Hashable]) -> int:
        batch = self._open.get(key)
        return 0 if batch is None else self._limit - batch.rows

    def _parts(self, entry: Entry[T], rows: int, room: int) -> Sequence[tuple[Entry[T], int]]:
        """Return `entry` with its rows, or its parts if it must be split.

        The first part fills the open batch, which has `room` for so many rows; the others are as large as a batch.
        """
        if rows <= (room or self._limit) or not self._parameters.enable_large_batch_splitting:
            return [(entry, rows)]
        parts: list[tuple[Entry[T], int]] = []
        start = 0
        while start < rows:
            stop = min(start + (room or self._limit), rows)
            room = 0
            last = stop == rows
            part = Entry(entry.item, entry.nbytes if last else 0, entry.deadline_ns, start, stop, last)
            parts.append((part, stop - start))
            start = stop
        return parts

    def _new(self, queue: Hashable, now_ns: int) -> _Batch[T]:
        self._batches[queue] = self._batches.get(queue, 0) + 1
        return _Batch(queue, now_ns)

    def _taken(self, batch: _Batch[T]) -> list[Entry[T]]:
        left = self._batches[batch.queue] - 1
        if left:
            self._batches[batch.queue] = left
        else:
            del self._batches[batch.queue]
        for entry in batch.entries:
            self._requests -= entry.last
            self.nbytes -= entry.nbytes
        return batch.entries


def _limit_met(requests: int, max_requests: int, waiting: int, nbytes: int, max_bytes: int) -> str | None:
    if requests >= max_requests:
        return f"{requests} requests wait already (max_queue_requests is {max_requests})"
    if requests and waiting + nbytes > max_bytes:
        return f"{waiting:,} bytes wait already (at most {max_bytes:,} may)"
    return None
