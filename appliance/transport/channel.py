"""One end of a connection between a front and a worker: reads and sends frames and descriptors. Never blocks."""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Sequence

from appliance.transport.wire import Buffer, Decoder, Frame, WireError

_MAX_PAYLOAD_BYTES = 4 * 1024**3
_MAX_BUFFERS = 1024  # the most in one sendmsg (Linux's UIO_MAXIOV): with more, the call fails
_ANCILLARY_BYTES = socket.CMSG_SPACE(16 * 4)


class Channel:
    """A non-blocking Unix stream socket for frames, with a queue of what could not be sent yet.

    Not thread-safe, but one thread may receive while another sends.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.unsent_bytes = 0
        self.descriptors: deque[int] = deque()  # received descriptors, in the order of their frames
        self._decoder = Decoder(_MAX_PAYLOAD_BYTES)
        self._unsent: deque[tuple[Buffer, int | None]] = deque()  # a descriptor goes with its buffer's first byte

    def receive(self) -> list[Frame]:
        """Return the frames that are complete now.

        Raise EOFError at the connection's end, WireError for malformed bytes.
        """
        try:
            count, ancillary, _, _ = self.sock.recvmsg_into([self._decoder.target()], _ANCILLARY_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EOFError from error
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self.descriptors.extend(struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4]))
        if not count:
            raise EOFError
        return self._decoder.received(count)

    def take_descriptor(self) -> int:
        """Return the descriptor that came with the current frame; the caller closes it.

        Raise WireError if there is none.
        """
        if not self.descriptors:
            raise WireError("a frame announces a descriptor that has not come")
        return self.descriptors.popleft()

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
        """Close the socket and all descriptors that were received but not taken."""
        self.sock.close()
        while self.descriptors:
            os.close(self.descriptors.popleft())
        self._unsent.clear()

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
