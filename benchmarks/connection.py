"""A client's connection under load, whatever it speaks: connect, one request at a time, reconnect, stop in time."""

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import cast

import uvloop

from benchmarks.measurement import Recorder

STALL_SECONDS = 30.0  # beyond the window: a request without an answer by then is an error
RECONNECT_SECONDS = 0.01  # keeps a refusing server from turning the generator into a busy loop


class LoadConnection(asyncio.Protocol):
    """Sends the next request when the last is answered, until the window closes. A lost connection is an error."""

    def __init__(self, port: int, recorder: Recorder) -> None:
        self._port = port
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._sent = 0.0
        self.done: asyncio.Future[None] = self._loop.create_future()

    def start(self) -> None:
        """Called on each new connection, before the first request."""

    def send(self) -> None:
        """Write one request."""
        raise NotImplementedError

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
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, not derived from it
        self.start()
        self._send_timed()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio calls this when the server hangs up, and after finish()."""
        if not self.done.done():
            self._recorder.add_error(f"connection lost: {exc or 'closed by the server'}")
            self._loop.call_later(RECONNECT_SECONDS, lambda: self._loop.create_task(self.open()))

    def take_answer(self, answer: bytes | None, error: str = "") -> None:
        """Called with each answer, or None and an error; sends the next request."""
        now = time.perf_counter()
        if answer is None:
            self._recorder.add_error(error)
        else:
            self._recorder.add_answer(self._sent, now, answer)
        if self._recorder.is_over(now):
            self.finish()
        else:
            self._send_timed()

    def finish(self) -> None:
        """Hang up for good."""
        if not self.done.done():
            self.done.set_result(None)
        if hasattr(self, "_transport"):
            self._transport.abort()

    def _send_timed(self) -> None:
        self._sent = time.perf_counter()
        self.send()


async def generate_load(connect: Callable[[], LoadConnection], concurrency: int, recorder: Recorder) -> None:
    """Run `concurrency` connections to the end of the window."""
    connections = [connect() for _ in range(concurrency)]
    await asyncio.gather(*(connection.open() for connection in connections))
    wait_seconds = recorder.closes - time.perf_counter() + STALL_SECONDS
    _, stalled = await asyncio.wait([connection.done for connection in connections], timeout=wait_seconds)
    for _ in stalled:
        recorder.add_error(f"no answer {STALL_SECONDS:.0f} s after the window")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every generator takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--body", required=True, help="a file with what every request carries")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup-seconds", type=float, default=1.0)
    return parser


def run_load(make: Callable[[Recorder], LoadConnection], options: argparse.Namespace) -> None:
    """Generate load and print one Measurement as JSON."""
    recorder = Recorder(options.warmup_seconds, options.seconds)
    uvloop.run(generate_load(lambda: make(recorder), options.concurrency, recorder))
    print(recorder.summarize().to_json())
