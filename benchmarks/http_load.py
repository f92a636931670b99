"""HTTP load: keep-alive connections that send the same bytes over and over.

    python -m benchmarks.http_load --port 8501 --path /v1/models/m:predict --body FILE --concurrency 8 --seconds 5

A client library would use more CPU than the server under test, on the same cores. So each connection writes prebuilt
bytes, and of an answer reads only the status line and Content-Length.
"""

from benchmarks.connection import LoadConnection, make_parser, run_load
from benchmarks.measurement import Recorder


def build_request(path: str, body: bytes) -> bytes:
    """One POST with everything that HTTP/1.1 and the peers' JSON parsers ask for."""
    fields = ["Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *fields, "\r\n"]).encode() + body


class HttpConnection(LoadConnection):
    """HTTP/1.1 (RFC 9112), as far as a benchmark needs it: no chunks, no pipelining."""

    def __init__(self, port: int, request: bytes, recorder: Recorder) -> None:
        super().__init__(port, recorder)
        self._request = request
        self._received = bytearray()
        self._body_start = 0  # 0 until the head has arrived whole
        self._end = 0

    def send(self) -> None:
        """Forget the last answer and write the request."""
        self._received.clear()
        self._body_start = 0
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """asyncio calls this with each piece of an answer."""
        received = self._received
        received += data
        if not self._body_start and not self._read_head():
            return
        if len(received) < self._end:
            return
        if received.startswith(b"HTTP/1.1 200 "):
            self.take_answer(bytes(received[self._body_start : self._end]))
        else:
            self.take_answer(None, bytes(received[:200]).split(b"\r\n")[0].decode(errors="replace"))

    def _read_head(self) -> bool:
        """Find the body's bounds; False while the head is incomplete."""
        blank = self._received.find(b"\r\n\r\n")
        if blank < 0:
            return False
        head = bytes(self._received[:blank]).lower()
        field = head.find(b"\r\ncontent-length:")
        if field < 0:
            self._recorder.add_error("answer without Content-Length")
            self.finish()
            return False
        length = head[field + len(b"\r\ncontent-length:") :].split(b"\r\n", 1)[0]
        self._body_start = blank + 4
        self._end = self._body_start + int(length)
        return True


def main() -> None:
    """Prints one Measurement as JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--path", required=True)
    options = parser.parse_args()
    with open(options.body, "rb") as file:
        request = build_request(options.path, file.read())
    run_load(lambda recorder: HttpConnection(options.port, request, recorder), options)


if __name__ == "__main__":
    main()
