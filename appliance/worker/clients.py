"""The fronts that a worker serves: their connections, and the requests that came by them, from arrival to answer."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Sequence

import numpy as np

from appliance.transport.channel import Channel
from appliance.transport.wire import (
    FLAG_UNPROVEN,
    Buffer,
    Frame,
    Kind,
    header,
    pack_arrays,
)
from appliance.worker.batching import Extent
from appliance.worker.merging import Outcome
from backends.contract import BackendError, Code
from backends.domain import UnprovenError

__all__ = ["Client", "Request"]

# While more than this waits for a front to read it, running threads wait with their next answer. A front that reads
# nothing for so long is broken: its connection is closed.
_MAX_UNSENT_BYTES = 64 * 1024 * 1024
_ROOM_SECONDS = 30.0
_GOODBYE_SECONDS = 10.0


class Request:
    """One request between its arrival and its answer.

    `extent` is what it may be merged with, None for nothing; it is there once it was asked for. `unfinished` counts the
    rows of a split request that have not run, and `parts` are what came of the others, by their first row.
    """

    __slots__ = ("cancelled", "client", "extent", "meta", "parts", "payload", "request_id", "unfinished")

    extent: Extent | None
    parts: dict[int, Outcome]
    unfinished: int

    def __init__(self, client: Client, request_id: int, meta: bytes, payload: Buffer) -> None:
        self.client = client
        self.request_id = request_id
        self.meta = meta
        self.payload = payload
        self.cancelled = False

    def answer(self, arrays: list[tuple[str, np.ndarray]]) -> bool:
        """Send the outputs; see `Client.send`. Waits while much is unsent to this front."""
        packed = pack_arrays(arrays)
        client = self.client
        with client.lock:
            client.wait_for_room()
            if not client.open:
                return True
            try:
                return client.channel.send_arrays(Kind.RESULT, self.request_id, packed.table, packed)[0]
            except EOFError:
                client.open = False
                return True

    def refuse(self, code: Code, message: str, flags: int = 0) -> bool:
        """Send an error; see `Client.send`."""
        meta = bytes([code]) + message.encode()[:65536]
        with self.client.lock:
            return self.client.send([header(Kind.ERROR, len(meta), 0, self.request_id, flags=flags), meta])

    def fail(self, error: Exception) -> bool:
        """Send what became of the request instead of an answer."""
        if isinstance(error, BackendError):
            return self.refuse(error.code, error.message, FLAG_UNPROVEN if isinstance(error, UnprovenError) else 0)
        return self.refuse(Code.INTERNAL, f"{type(error).__name__}: {error}")


class Client:
    """One front's connection. `lock` guards the channel's sending side, the segments and `open`: any thread answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock, trusts_peer=True)
        self.pending: dict[int, Request] = {}
        self.lock = threading.Lock()
        self._room = threading.Condition(self.lock)
        self.open = True

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Sends or keeps `buffers`; false where something is kept, and the loop must wait for room. Holds `lock`."""
        if not self.open:
            return True
        try:
            return self.channel.send(buffers)
        except EOFError:
            self.open = False
            return True

    def flush(self) -> bool:
        """Sends what was kept; true when nothing is left. Raises EOFError where the front is gone. Holds `lock`."""
        done = self.channel.flush()
        self._room.notify_all()
        return done

    def wait_for_room(self) -> None:
        """Waits while much is unsent: a running thread's turn, for the leader sends it. Holds `lock`."""
        while self.open and self.channel.unsent_bytes > _MAX_UNSENT_BYTES:
            if not self._room.wait(_ROOM_SECONDS) and self.open:
                self.open = False
                self.channel.sock.shutdown(socket.SHUT_RDWR)  # the leader sees the end

    def request_of(self, frame: Frame) -> Request:
        """Take a request out of its frame, whose arrays may lie in a segment of the front's."""
        meta, payload = frame.meta, frame.payload
        if payload is None:
            meta, payload = self.channel.shared_payload(frame)
        return Request(self, frame.request_id, meta, payload)

    def say_goodbye(self) -> None:
        """Send what is kept, and close: what has no answer by now did not run."""
        with self.lock, contextlib.suppress(EOFError, OSError):
            self.send([header(Kind.GOODBYE, 0, 0)])
            deadline = time.monotonic() + _GOODBYE_SECONDS
            while not self.channel.flush() and time.monotonic() < deadline:
                select.select([], [self.channel.sock], [], 0.1)
        self.channel.close()

    def close(self) -> None:
        """Holds `lock`."""
        self.open = False
        self.channel.close()
        self._room.notify_all()
