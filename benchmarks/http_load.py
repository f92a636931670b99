"""HTTP load: keep-alive connections that send the same bytes over and over.

    python -m benchmarks.http_load --port 8501 --path /v1/models/m:predict --body FILE --concurrency 8 --seconds 5

A client library would use more CPU than the server under test, on the same cores. So each connection is a uvloop
protocol that writes prebuilt bytes, and of an answer reads only the status line and Content-Length.
"""

import argparse
import asyncio
import time

import uvloop

from benchmarks.measurement import Recorder

STALL_SECONDS = 30.0  # beyond the window: a request without an answer by then is an error
RECONNECT_SECONDS = 0.01  # keeps a refusing server from turning the generator into a busy loop


def build_request(path: str, body: bytes) -> bytes:
    """One POST with everything that HTTP/1.1 and the peers' JSON parsers ask for."""
    fields = ["Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *fields, "\r\n"]).encode() + body


class Connection(asyncio.Protocol):
    """One request at a time until the window closes; a lost connection is an error, and is opened again."""

    def __init__(self, port: int, request: bytes, recorder: Recorder) -> None:
        self._port = port
        self._request = request
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._body_start = 0  # 0 until the head has arrived whole
        self._end = 0
        self._sent = 0.0
        self.done: asyncio.Future[None] = self._loop.create_future()

    async def open(self) -> None:
        """Connect and send the first request; a refusal is retried until the window closes."""
        while not self._recorder.is_over(time.perf_counter()):
            try:
                await self._loop.create_connection(lambda: self, "127.0.0.1", self._port)
            except OSError as error:
                self._recorder.add_error(f"connect: {error}")
                await asyncio.sleep(RECONNECT_SECONDS)
            else:
                return
        self.finish()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio calls this on connecting."""
        self._transport = transport  # type: ignore[assignment]  # a stream transport: create_connection says so
        self._send()

    def data_received(self, data: bytes) -> None:
        """asyncio calls this with each piece of an answer."""
        received = self._received
        received += data
        if not self._body_start and not self._read_head():
            return
        if len(received) < self._end:
            return
        now = time.perf_counter()
        if received.startswith(b"HTTP/1.1 200 "):
            self._recorder.add_answer(self._sent, now, bytes(received[self._body_start : self._end]))
        else:
            self._recorder.add_error(bytes(received[:200]).split(b"\r\n")[0].decode(errors="replace"))
        if self._recorder.is_over(now):
            self.finish()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio calls this when the server hangs up, and after finish()."""
        if self.done.done():
            return
        self._recorder.add_error(f"connection lost: {exc or 'closed by the server'}")
        self._loop.call_later(RECONNECT_SECONDS, lambda: self._loop.create_task(self.open()))

    def finish(self) -> None:
        """Hang up for good."""
        if not self.done.done():
            self.done.set_result(None)
        if self._transport is not None:
            self._transport.abort()

    def _send(self) -> None:
        assert self._transport is not None
        self._received.clear()
        self._body_start = 0
        self._sent = time.perf_counter()
        self._transport.write(self._request)

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


async def generate_load(port: int, request: bytes, concurrency: int, recorder: Recorder) -> None:
    """Run all connections to the end of the window."""
    connections = [Connection(port, request, recorder) for _ in range(concurrency)]
    await asyncio.gather(*(connection.open() for connection in connections))
    wait_seconds = recorder.closes - time.perf_counter() + STALL_SECONDS
    _, stalled = await asyncio.wait([connection.done for connection in connections], timeout=wait_seconds)
    for _ in stalled:
        recorder.add_error(f"no answer {STALL_SECONDS:.0f} s after the window")


def main() -> None:
    """Prints one Measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--body", required=True, help="a file with the request's body")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup-seconds", type=float, default=1.0)
    options = parser.parse_args()
    with open(options.body, "rb") as file:
        request = build_request(options.path, file.read())
    recorder = Recorder(options.warmup_seconds, options.seconds)
    uvloop.run(generate_load(options.port, request, options.concurrency, recorder))
    print(recorder.summarize().to_json())


if __name__ == "__main__":
    main()
