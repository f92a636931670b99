"""A worker's end of the fronts' connections, and the requests that came by them, from arrival to answer."""

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
    inline,
    pack_arrays,
)
from appliance.worker.batching import Extent
from appliance.worker.merging import Outcome
from backends.contract import BackendError, Code
from backends.domain import UnprovenError

__all__ = ["Client", "Request"]

# If more than this is unsent, threads wait before they send their next answer to that front. The connection of a front
# that reads nothing for `_ROOM_SECONDS` is closed.
_MAX_UNSENT_BYTES = 64 * 1024 * 1024
_ROOM_SECONDS = 30.0
_GOODBYE_SECONDS = 10.0
_SMALL_BYTES = 16384  # so few are copied to be sent with others


class Request:
    """One request between its arrival and its answer.

    `extent` says what it may be merged with; None means that it runs alone. It is set when the queue first needs it.
    `unfinished` is the number of rows of a split request that have not run, and `parts` has the outcomes of the others,
    by their first row.
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
        """Send the outputs, once the front has read enough of what was sent; return what `Client.send` returns."""
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

    def small_frame(self, arrays: list[tuple[str, np.ndarray]]) -> bytes | None:
        """Return the frame that `answer` would send if it is small, else None."""
        packed = pack_arrays(arrays)
        if packed.payload_bytes > _SMALL_BYTES:
            return None
        head = header(Kind.RESULT, len(packed.table), packed.payload_bytes, self.request_id)
        return b"".join([head, packed.table, *inline(packed)])

    def refuse(self, code: Code, message: str, flags: int = 0) -> bool:
        """Send an error; return what `Client.send` returns. `flags` are those of `transport.wire`."""
        meta = bytes([code]) + message.encode(errors="replace")[:65536]  # a file's name need not be UTF-8
        with self.client.lock:
            return self.client.send([header(Kind.ERROR, len(meta), 0, self.request_id, flags=flags), meta])

    def fail(self, error: Exception) -> bool:
        """Send `error` instead of an answer; return what `Client.send` returns."""
        if isinstance(error, BackendError):
            return self.refuse(error.code, error.message, FLAG_UNPROVEN if isinstance(error, UnprovenError) else 0)
        return self.refuse(Code.INTERNAL, f"{type(error).__name__}: {error}")


class Client:
    """One front's connection. Any thread answers, so `lock` guards `open` and the sending side of the channel."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock, trusts_peer=True)
        self.pending: dict[int, Request] = {}
        self.lock = threading.Lock()
        self._room = threading.Condition(self.lock)
        self.open = True

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send `buffers`; return False if a part must wait for room in the socket. The caller holds `lock`."""
        if not self.open:
            return True
        try:
            return self.channel.send(buffers)
        except EOFError:
            self.open = False
            return True

    def send_frames(self, frames: Sequence[bytes]) -> bool:
        """Send frames by one call, which wakes the front once, when it has read enough of what was sent; return what
        `send` returns."""
        with self.lock:
            self.wait_for_room()
            return self.send([b"".join(frames)])

    def flush(self) -> bool:
        """Send what was kept; return whether nothing is left. The caller holds `lock`.

        Raise EOFError if the front is gone.
        """
        done = self.channel.flush()
        self._room.notify_all()
        return done

    def wait_for_room(self) -> None:
        """Wait until the leader has sent enough of what is kept. The caller, not the leader, holds `lock`."""
        while self.open and self.channel.unsent_bytes > _MAX_UNSENT_BYTES:
            if not self._room.wait(_ROOM_SECONDS) and self.open:
                self.open = False
                self.channel.sock.shutdown(socket.SHUT_RDWR)  # the leader then sees the end of the file

    def request_of(self, frame: Frame) -> Request:
        """Return the request in a PREDICT frame. Raise as `Channel.shared_payload`."""
        meta, payload = frame.meta, frame.payload
        if payload is None:
            meta, payload = self.channel.shared_payload(frame)
        return Request(self, frame.request_id, meta, payload)

    def say_goodbye(self) -> None:
        """Tell the front that requests without an answer did not run, send what is kept, and close the connection."""
        with self.lock, contextlib.suppress(EOFError, OSError):
            self.send([header(Kind.GOODBYE, 0, 0)])
            deadline = time.monotonic() + _GOODBYE_SECONDS
            room = select.poll()  # select.select takes no descriptor from 1,024 on
            room.register(self.channel.sock, select.POLLOUT)
            while not self.channel.flush() and time.monotonic() < deadline:
                room.poll(100)
        self.channel.close()

    def close(self) -> None:
        """Close the connection. The caller holds `lock`."""
        self.open = False
        self.channel.close()
        self._room.notify_all()
