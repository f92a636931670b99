"""A process of a job, of a conversion or of a verification: started, heard, and ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from appliance.host.processes import Reaper, describe_status, spawn
from appliance.supervisor.stderr import LastWords, relay_stderr
from appliance.supervisor.tasks import Tasks

__all__ = ["run_process"]

_MAX_LINE_BYTES = 64 * 1024 * 1024


async def run_process(
    reaper: Reaper,
    tasks: Tasks,
    who: str,
    module: str,
    argument: Any,
    *,
    device: str,
    started: Callable[[int], None],
    hear: Callable[[Mapping[str, Any]], None],
) -> str:
    """Run `module` with `argument` (see `host.processes.spawn`) to its end; return how it ended, with its last words.

    `started` gets its number, and `hear` each line of JSON that it writes; what it prints besides is logged as said by
    `who`. It sees no GPU if `device` is "cpu". It is killed if this is cancelled or `hear` raises. Raise OSError,
    ValueError.
    """
    output_read, output_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    words = LastWords()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        pid = spawn(module, argument, environment=environment, stdout=output_write, stderr=stderr_write)
    except OSError:
        os.close(output_read)
        os.close(stderr_read)
        raise
    finally:
        os.close(output_write)
        os.close(stderr_write)
    reaper.forget(pid)
    exited = reaper.exit_of(pid)
    started(pid)
    tasks.start(relay_stderr(who, stderr_read, words.hear, logging.DEBUG))
    reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output_read, "rb", buffering=0)
    )
    try:
        while line := await reader.readline():
            hear(json.loads(line))
        how = describe_status(await exited)
    finally:
        transport.close()
        reaper.kill(pid)
    return how + (f"; its last words: {words.text}" if words.text else "")
