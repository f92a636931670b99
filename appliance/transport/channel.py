"""One end of a connection between a front and a worker: reads and sends frames, and shares memory. Never blocks.

Payloads of 1 MiB and more travel in segments (`appliance.transport.shared`). The sender announces each segment once, by
its descriptor, and writes it again only after the reader has released it. A worker releases a segment by its answer; a
front copies the payload, and sends RELEASE. A FORGET frame names a segment that the sender has closed.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Sequence

from appliance.core.limits import SHARED_MEMORY_BYTES
from appliance.transport.shared import THRESHOLD_BYTES, PeerSegments, SegmentPool
from appliance.transport.wire import (
    FLAG_DESCRIPTOR,
    FLAG_SHARED,
    SEGMENT_ID,
    Buffer,
    Decoder,
    Frame,
    Kind,
    Packed,
    WireError,
    header,
    small_frame,
)

_MAX_PAYLOAD_BYTES = 4 * 1024**3
_MAX_BUFFERS = 1024  # the most in one sendmsg (Linux's UIO_MAXIOV): with more, the call fails
_MAX_UNCLAIMED = 16  # descriptors whose frames are not whole yet; one comes at a time
_ANCILLARY_BYTES = socket.CMSG_SPACE(16 * 4)


class Channel:
    """A non-blocking Unix stream socket for frames, with a queue of what could not be sent yet.

    `trusts_peer` is for a worker, which maps the segments of its front. A front must not map those of a worker: the
    worker could shrink them, and so kill the front. This side shares at most `shared_bytes` of memory at once. It keeps
    no payload of more than `max_kept_bytes` from the socket: see `Decoder`.

    Not thread-safe, but one thread may receive (`receive`, `shared_payload`, `forget`) while another one sends (the
    other methods).
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        trusts_peer: bool = False,
        shared_bytes: int = SHARED_MEMORY_BYTES,
        max_kept_bytes: int = _MAX_PAYLOAD_BYTES,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.unsent_bytes = 0
        self._descriptors: deque[int] = deque()  # received descriptors, in the order of their frames
        self._decoder = Decoder(_MAX_PAYLOAD_BYTES, max_kept_bytes)
        self._unsent: deque[tuple[Buffer, int | None]] = deque()  # a descriptor goes with its buffer's first byte
        self._pool = SegmentPool(shared_bytes)
        self._peer_segments = PeerSegments(trusts_peer)

    def receive(self) -> list[Frame]:
        """Return the frames that are complete now.

        Raise EOFError at the connection's end, WireError for malformed bytes and for descriptors without frames.
        """
        try:
            count, ancillary, _, _ = self.sock.recvmsg_into([self._decoder.target()], _ANCILLARY_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EOFError from error
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors.extend(struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4]))
        if not count:
            raise EOFError
        if len(self._descriptors) > _MAX_UNCLAIMED:
            raise WireError(f"{len(self._descriptors)} descriptors that no frame announces")
        return self._decoder.received(count)

    def shared_payload(self, frame: Frame) -> tuple[bytes, Buffer]:
        """Return the meta and the payload of a frame whose own payload is None.

        Call it for all such frames, in the order of their arrival. Raise WireError, KeyError or struct.error if the
        frame is faulty, OSError or ValueError if its segment cannot be mapped.
        """
        (number,) = SEGMENT_ID.unpack_from(frame.meta)
        if frame.flags & FLAG_DESCRIPTOR:
            if not self._descriptors:
                raise WireError("a frame announces a descriptor that has not come")
            self._peer_segments.add(number, self._descriptors.popleft())
        return frame.meta[SEGMENT_ID.size :], self._peer_segments.payload(number, frame.payload_bytes)

    def forget(self, frame: Frame) -> None:
        """Drop the peer's segment that a FORGET frame names. Raise struct.error if the frame is faulty."""
        self._peer_segments.forget(*SEGMENT_ID.unpack(frame.meta))

    def release(self, number: int) -> None:
        """Let a segment that the peer has read be written again; ignore an unknown number."""
        self._pool.release(number)

    def send_arrays(
        self, kind: Kind, request_id: int, meta: bytes, packed: Packed, deadline_ns: int = 0
    ) -> tuple[bool, int | None]:
        """Send a frame with arrays; return what `send` returns, and the number of the segment that holds them.

        The number is None if they went through the socket: they are small, or there is no room for a segment. The
        segment's owner calls `release` once the peer has read it. `deadline_ns` is in CLOCK_MONOTONIC nanoseconds, 0
        for none. Raise EOFError if the peer is gone.
        """
        nbytes = packed.payload_bytes
        segment = self._pool.acquire(nbytes) if nbytes >= THRESHOLD_BYTES else None
        for number in self._pool.forgotten:  # closed to make room, also if there was not enough: the peer holds them
            self.send([header(Kind.FORGET, SEGMENT_ID.size, 0) + SEGMENT_ID.pack(number)])
        self._pool.forgotten.clear()
        if segment is None:
            return self.send(small_frame(kind, request_id, meta, packed, deadline_ns)), None
        segment.write(packed.chunks)
        flags = FLAG_SHARED if segment.announced else FLAG_SHARED | FLAG_DESCRIPTOR
        head = header(kind, SEGMENT_ID.size + len(meta), nbytes, request_id, deadline_ns, flags)
        buffers = [head + SEGMENT_ID.pack(segment.number) + meta]
        sent = self.send(buffers, None if segment.announced else segment.descriptor)
        segment.announced = True
        return sent, segment.number

    def send(self, buffers: Sequence[Buffer], descriptor: int | None = None) -> bool:
        """Send the buffers of one frame, and queue what the socket does not take.

        Return False if something was queued: call `flush` when the socket is writable. `descriptor` must stay open
        until then. Raise EOFError if the peer is gone.
        """
        if self._unsent:
            self._keep(buffers, descriptor)
            return False
        sent = self._sendmsg(buffers, descriptor)
        for index, buffer in enumerate(buffers):
            if sent < len(buffer):
                rest = [memoryview(buffer)[sent:], *buffers[index + 1 :]]
                self._keep(rest, None if index or sent else descriptor)
                return False
            sent -= len(buffer)
        return True

    def flush(self) -> bool:
        """Send what was queued; return whether nothing is left. Raise EOFError if the peer is gone."""
        while self._unsent:
            buffer, descriptor = self._unsent.popleft()
            sent = self._sendmsg([buffer], descriptor)
            self.unsent_bytes -= sent
            if sent < len(buffer):
                self._unsent.appendleft((memoryview(buffer)[sent:], None if sent else descriptor))
                return False
        return True

    def close(self) -> None:
        """Close the socket, the segments of both sides, and the descriptors that no frame has claimed."""
        self.sock.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._unsent.clear()
        self._pool.close()
        self._peer_segments.close()

    def _keep(self, buffers: Sequence[Buffer], descriptor: int | None) -> None:
        for buffer in buffers:
            if len(buffer):
                self._unsent.append((buffer, descriptor))
                self.unsent_bytes += len(buffer)
                descriptor = None

    def _sendmsg(self, buffers: Sequence[Buffer], descriptor: int | None) -> int:
        if len(buffers) > _MAX_BUFFERS:
            buffers = buffers[:_MAX_BUFFERS]
        try:
            if descriptor is None:
                return self.sock.sendmsg(buffers)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            return self.sock.sendmsg(buffers, rights)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise EOFError from error
