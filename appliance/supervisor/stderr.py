"""What other processes and their libraries print, as lines of our log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

# TensorFlow's remarks (absl's I and W lines), LiteRT's (INFO), and TensorFlow's surprise that we hide the GPU from it.
_CHATTER = re.compile(r"[IW]\d{4} |INFO: |WARNING: All log messages|.*failed call to cuInit|.*cuda_platform")

# What says why a process ends; a stack of calls follows it. F: absl's fatal lines ("Check failed: …" among them).
_REASON = re.compile(r"F\d{4} |.*\bCheck failed: |Fatal Python error|terminate called|\s*what\(\): ")
_MAX_WORDS = 500

# What a load prints at once is logged whole; what prints on and on is not.
_LINES_PER_SECOND = 10
_BURST_LINES = 500
_BYTES_PER_SECOND = 4096
_BURST_BYTES = 256 << 10
_MAX_LINE_BYTES = 4000
_HEARD = 20  # of the dropped lines of a piece, the last, which may say why a process ends


class LastWords:
    """The last line that a process has printed, or the last that says why it ends."""

    def __init__(self) -> None:
        self.text = ""
        self._is_reason = False

    def hear(self, line: str) -> None:
        is_reason = _REASON.match(line) is not None
        if is_reason or not self._is_reason:
            self.text, self._is_reason = line[:_MAX_WORDS], is_reason


class Allowance:
    """How many lines, and bytes of them, may be logged: a token bucket for each. Times are in seconds (monotonic)."""

    def __init__(self, now: float) -> None:
        self.dropped = 0
        """Lines that were refused since `resumed` was last true."""
        self._lines, self._bytes = float(_BURST_LINES), float(_BURST_BYTES)
        self._filled = now

    def takes(self, nbytes: int, now: float) -> bool:
        """Return whether a line of so many bytes may be logged; count it as dropped if not."""
        self._fill(now)
        if self.dropped or self._lines < 1 or self._bytes < nbytes:
            self.dropped += 1
            return False
        self._lines -= 1
        self._bytes -= nbytes
        return True

    def resumed(self, now: float) -> int:
        """Return how many lines were dropped, if lines may be logged again now, else 0. Dropping ends when a fifth of
        the bucket is full: every second line would be about dropped ones otherwise."""
        self._fill(now)
        if not self.dropped or self._lines < _BURST_LINES / 5 or self._bytes < _BURST_BYTES / 5:
            return 0
        dropped, self.dropped = self.dropped, 0
        return dropped

    def _fill(self, now: float) -> None:
        passed, self._filled = max(0.0, now - self._filled), now
        self._lines = min(_BURST_LINES, self._lines + passed * _LINES_PER_SECOND)
        self._bytes = min(_BURST_BYTES, self._bytes + passed * _BYTES_PER_SECOND)


async def relay_stderr(
    who: str,
    descriptor: int,
    hear: Callable[[str], None],
    level: int = logging.WARNING,
    count_dropped: Callable[[int], None] | None = None,
) -> None:
    """Log what comes from `descriptor` (a pipe, which is closed) until its end, and pass its lines to `hear`.

    What prints more than an `Allowance` has its lines dropped: the pipe is read on, so that it never waits for us, a
    line of the log says how many there were, and `count_dropped` is told. Of dropped lines, `hear` gets the last of
    each piece that is read.
    """
    relay = _Relay(who, hear, level, count_dropped or (lambda _: None))
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: relay, pipe)
    try:
        await relay.ended
    finally:
        transport.close()


class _Relay(asyncio.Protocol):
    """Splits what comes into lines, and logs them."""

    def __init__(self, who: str, hear: Callable[[str], None], level: int, count_dropped: Callable[[int], None]) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._who = who
        self._hear = hear
        self._level = level
        self._count_dropped = count_dropped
        self._allowance = Allowance(time.monotonic())
        self._begun = b""  # of a line whose end has not come

    def data_received(self, data: bytes) -> None:
        """Log the lines of a piece of what was printed."""
        *lines, self._begun = (self._begun[:_MAX_LINE_BYTES] + data).split(b"\n")
        now = time.monotonic()
        if dropped := self._allowance.resumed(now):
            self._tell(dropped)
        before = self._allowance.dropped
        for number, line in enumerate(lines):
            is_taken = self._allowance.takes(len(line), now)
            if is_taken or number >= len(lines) - _HEARD:
                self._line(line, is_taken)
        if self._allowance.dropped > before:
            self._count_dropped(self._allowance.dropped - before)
            if not before:
                logger.warning("%s prints more than its log may take: the next lines are dropped", self._who)

    def connection_lost(self, error: Exception | None) -> None:
        """Log what is left."""
        if self._begun:
            self.data_received(b"\n")
        if self._allowance.dropped:
            self._tell(self._allowance.dropped)
        if not self.ended.done():
            self.ended.set_result(None)

    def _tell(self, dropped: int) -> None:
        logger.warning("%s: %d lines that it printed were dropped", self._who, dropped)

    def _line(self, line: bytes, is_logged: bool) -> None:
        text = line[:_MAX_LINE_BYTES].decode(errors="replace").rstrip()
        if not text or _CHATTER.match(text):
            if is_logged:
                logger.debug("%s says: %s", self._who, text)
            return
        self._hear(text)
        if is_logged:
            logger.log(self._level, "%s says: %s", self._who, text)
