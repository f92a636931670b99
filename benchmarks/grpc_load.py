"""gRPC load: the same serialized PredictRequest over and over, never parsing an answer.

    python -m benchmarks.grpc_load --port 8500 --body FILE --concurrency 8 --seconds 5

A client library would use the CPU that the server needs: against a server that only echoes, one caller made 2,200 calls
a second through grpc.aio's client, with raw bytes, and 3,900 through these connections. They speak the little of HTTP/2
(RFC 9113) that a unary call needs, with headers encoded once (HPACK, RFC 7541). Each caller has a connection of its
own, as separate clients have.
"""

import struct

from benchmarks.connection import LoadConnection, make_parser, run_load
from benchmarks.measurement import Recorder

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8  # frame types
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
SETTINGS_HEADER_TABLE_SIZE, SETTINGS_INITIAL_WINDOW_SIZE, SETTINGS_MAX_FRAME_SIZE = 1, 4, 5
DEFAULT_WINDOW = 65535
MAX_WINDOW = 2**31 - 1

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def build_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame: 24 bits of length, type, flags, stream, payload (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def encode_headers(path: bytes) -> bytes:
    """The request's header block, without the dynamic table, so that it is the same in every request."""

    def text(value: bytes) -> bytes:
        assert len(value) < 127  # longer ones need more than one byte for their length
        return bytes([len(value)]) + value

    return (
        b"\x83\x86"  # :method POST and :scheme http, whole in the static table
        + (b"\x04" + text(path) + b"\x01" + text(b"127.0.0.1"))  # :path, :authority
        + (b"\x0f\x10" + text(b"application/grpc") + b"\x00" + text(b"te") + text(b"trailers"))  # content-type is 31
    )


class GrpcConnection(LoadConnection):
    """HTTP/2 with one stream at a time."""

    def __init__(self, port: int, path: bytes, message: bytes, recorder: Recorder) -> None:
        super().__init__(port, recorder)
        self._headers = encode_headers(path)
        self._body = b"\0" + struct.pack(">I", len(message)) + message  # not compressed, length, message

    def start(self) -> None:
        """A connection's state, and its first frames: windows so wide that the server never waits for us."""
        self._received = bytearray()
        self._answer = bytearray()
        self._stream = -1
        self._unsent = memoryview(b"")
        self._connection_window = self._stream_window = self._initial_window = DEFAULT_WINDOW
        self._frame_size = 16384
        settings = {SETTINGS_HEADER_TABLE_SIZE: 0, SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW}
        payload = b"".join(struct.pack(">HI", key, value) for key, value in settings.items())
        widen = struct.pack(">I", MAX_WINDOW - DEFAULT_WINDOW)
        self._transport.write(PREFACE + build_frame(SETTINGS, 0, 0, payload) + build_frame(WINDOW_UPDATE, 0, 0, widen))
        self._consumed = 0

    def send(self) -> None:
        """Open the next stream."""
        self._stream += 2
        self._answer.clear()
        self._stream_window = self._initial_window
        self._unsent = memoryview(self._body)
        self._send_more(build_frame(HEADERS, END_HEADERS, self._stream, self._headers))

    def _send_more(self, head: bytes = b"") -> None:
        """As much of the body as the server's windows take (RFC 9113, section 5.2), in one write."""
        frames = [head]
        while self._unsent:
            size = min(len(self._unsent), self._frame_size, self._connection_window, self._stream_window)
            if size <= 0:
                break
            flags = END_STREAM if size == len(self._unsent) else 0
            frames.append(build_frame(DATA, flags, self._stream, bytes(self._unsent[:size])))
            self._unsent = self._unsent[size:]
            self._connection_window -= size
            self._stream_window -= size
        self._transport.write(b"".join(frames))

    def data_received(self, data: bytes) -> None:
        """asyncio calls this with whatever has arrived; frames are taken out whole."""
        self._received += data
        start = 0
        while len(self._received) - start >= 9:
            end = start + 9 + int.from_bytes(self._received[start : start + 3], "big")
            if len(self._received) < end:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._received, start + 3)
            payload = bytes(self._received[start + 9 : end])
            start = end
            self._take_frame(kind, flags, stream, payload)
        del self._received[:start]

    def _take_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in {DATA, HEADERS, RST_STREAM}:
            if kind == DATA:
                self._return_window(len(payload))
            if stream == self._stream:
                self._take_answer_frame(kind, flags, payload)
        elif kind == SETTINGS and not flags & ACK:
            self._apply_settings(payload)
            self._transport.write(build_frame(SETTINGS, ACK, 0, b""))
            self._send_more()
        elif kind == PING and not flags & ACK:
            self._transport.write(build_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            if stream == 0:
                self._connection_window += int.from_bytes(payload, "big")
            elif stream == self._stream:
                self._stream_window += int.from_bytes(payload, "big")
            self._send_more()
        elif kind == GOAWAY:
            self._recorder.add_error(f"GOAWAY: {payload[8:].decode(errors='replace')}")
            self._transport.abort()  # connection_lost() opens another

    def _take_answer_frame(self, kind: int, flags: int, payload: bytes) -> None:
        """An answer is DATA and then trailers with `grpc-status: 0`; a failed call has another status, or none."""
        if kind == DATA:
            self._answer += payload
        elif kind == RST_STREAM:
            self._unsent = memoryview(b"")
            self.take_answer(None, f"RST_STREAM with code {int.from_bytes(payload, 'big')}")
        elif flags & END_STREAM:
            self._unsent = memoryview(b"")
            # The dynamic table is off and gRPC's C core writes plain strings: the length 1 and the digit follow.
            if b"grpc-status\x010" in payload:
                self.take_answer(bytes(self._answer[5:]))
            else:
                self.take_answer(None, "".join(chr(byte) for byte in payload if 32 <= byte < 127))

    def _apply_settings(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", payload):
            if key == SETTINGS_INITIAL_WINDOW_SIZE:  # it moves the window of the open stream too
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif key == SETTINGS_MAX_FRAME_SIZE:
                self._frame_size = value

    def _return_window(self, size: int) -> None:
        """Give back what a connection has used of its window, long before it is used up."""
        self._consumed += size
        if self._consumed > MAX_WINDOW // 2:
            self._transport.write(build_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._consumed)))
            self._consumed = 0


def main() -> None:
    """Prints one Measurement as JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--path", default="/tensorflow.serving.PredictionService/Predict")
    options = parser.parse_args()
    with open(options.body, "rb") as file:
        message = file.read()
    path = options.path.encode()
    run_load(lambda recorder: GrpcConnection(options.port, path, message, recorder), options)


if __name__ == "__main__":
    main()
