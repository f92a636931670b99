"""What other processes and their libraries print, as lines of our log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable

logger = logging.getLogger(__name__)

# TensorFlow's remarks (absl's I and W lines), LiteRT's (INFO), and TensorFlow's surprise that we hide the GPU from it.
_CHATTER = re.compile(r"[IW]\d{4} |INFO: |WARNING: All log messages|.*failed call to cuInit|.*cuda_platform")

# What says why a process ends; a stack of calls follows it. F: absl's fatal lines ("Check failed: …" among them).
_REASON = re.compile(r"F\d{4} |.*\bCheck failed: |Fatal Python error|terminate called|\s*what\(\): ")
_MAX_WORDS = 500


class LastWords:
    """The last line that a process has printed, or the last that says why it ends."""

    def __init__(self) -> None:
        self.text = ""
        self._is_reason = False

    def hear(self, line: str) -> None:
        is_reason = _REASON.match(line) is not None
        if is_reason or not self._is_reason:
            self.text, self._is_reason = line[:_MAX_WORDS], is_reason


async def relay_stderr(who: str, descriptor: int, hear: Callable[[str], None], level: int = logging.WARNING) -> None:
    """Log what comes from `descriptor` (a pipe, which is closed) until its end, and pass each line to `hear`."""
    reader = asyncio.StreamReader(limit=65536)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # a line beyond the limit: what was read of it is dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if not text or _CHATTER.match(text):
                logger.debug("%s says: %s", who, text[:4000])
                continue
            hear(text)
            logger.log(level, "%s says: %s", who, text[:4000])
    finally:
        transport.close()
