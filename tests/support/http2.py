"""A client of gRPC by hand, frame by frame (RFC 9113, RFC 7541), which does what no library lets its caller do."""

from __future__ import annotations

import socket
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0, 1, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW = 4


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name: str, value: str) -> bytes:
    """A literal field without indexing; both are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class Client:
    """A connection that gives the server leave to send `window` bytes of each answer."""

    def __init__(self, port: int, window: int = 65535) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.sock.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, window)))
        self._port = port
        self._stream = 1
        self._received = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def call(self, path: str, message: bytes, *, whole: bool = True) -> None:
        """Send a call; if it is not `whole`, its message never ends."""
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", f"127.0.0.1:{self._port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        head = b"".join(_header(*field) for field in fields)
        data = b"\0" + struct.pack(">I", len(message) + (not whole)) + message
        self.sock.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, head)
            + _frame(_DATA, _END_STREAM if whole else 0, self._stream, data)
        )
        self._stream += 2

    def frames(self) -> list[tuple[int, int, bytes]]:
        """The frames up to the next receive's end: (kind, stream, payload). Raises EOFError at the connection's end."""
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        self._received += data
        found = []
        while len(self._received) >= 9:
            size = int.from_bytes(self._received[:3])
            if len(self._received) < 9 + size:
                break
            kind, flags, stream = struct.unpack(">BBI", self._received[3:9])
            payload, self._received = self._received[9 : 9 + size], self._received[9 + size :]
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                self.sock.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            found.append((kind, stream, payload))
        return found

    def ended(self) -> bool:
        """Whether the server ends the connection; answers its pings until then. Raises TimeoutError if not."""
        try:
            while True:
                self.frames()
        except EOFError:
            return True
