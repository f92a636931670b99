"""Traces of the workers: one at a time, of all of them at once."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ServableId
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.workers import Workers

logger = logging.getLogger(__name__)

_MAX_BYTES = 512 << 20  # of one trace: a busy worker gives some 2 MB a second
_COLLECT_SECONDS = 60.0  # to bring together what was traced
_END_SECONDS = 10.0
_KEEP_SECONDS = 60.0  # for the front to read the files


@dataclass(slots=True, eq=False)
class _Trace:
    session: str
    workers: Mapping[int, ServableId]
    folder: str
    wanted: bool = True

    def path(self, number: int) -> str:
        return os.path.join(self.folder, str(number))


class Profiler:
    """Asks the workers for traces. Their files stand in a folder of each trace's own in the server's `directory`."""

    def __init__(self, workers: Workers, tasks: Tasks, directory: str) -> None:
        self._workers = workers
        self._tasks = tasks
        self._directory = directory
        self._running: _Trace | None = None

    async def trace(self, session: str, seconds: float, levels: Mapping[str, int]) -> list[dict[str, Any]]:
        """Trace the workers that serve now, for `seconds` or until `end(session)`: for each worker its "model" and
        "version", the "path" of its XSpace for the caller to read and to remove within a minute, its "bytes" and
        whether it "has_events". `levels` are TensorFlow's options. A worker that fails is left out, and logged.

        Raises ServingError: ALREADY_EXISTS, FAILED_PRECONDITION if nothing is served, RESOURCE_EXHAUSTED if
        the traces are too large, and what the first worker answers if none has a trace.
        """
        if self._running is not None:
            raise ServingError(Code.ALREADY_EXISTS, "another trace runs already", "try again when it has ended")
        found = {number: servable for number, (servable, _) in self._workers.serving().items()}
        if not found:
            raise ServingError(Code.FAILED_PRECONDITION, "no model is served now", "load a model first")
        folder = tempfile.mkdtemp(prefix="profile-", dir=self._directory)
        running = self._running = _Trace(session, found, folder)
        keep = False
        try:
            traces = await self._ask_all(running, seconds, levels)
            keep = running.wanted
            return traces
        finally:
            self._running = None
            self._tasks.start(_remove(folder, _KEEP_SECONDS if keep else 0))

    async def end(self, session: str, wanted: bool) -> None:
        """End the trace of `session` early, if it runs: it gives what it has, unless nobody wants it any more."""
        running = self._running
        if running is None or running.session != session:
            return
        running.wanted = running.wanted and wanted
        answers = [
            self._workers.ask(number, "end_profile", {"trace": running.folder}, _END_SECONDS)
            for number in running.workers
        ]
        await asyncio.gather(*answers, return_exceptions=True)

    async def _ask_all(self, running: _Trace, seconds: float, levels: Mapping[str, int]) -> list[dict[str, Any]]:
        logger.info("tracing %d workers for %g s", len(running.workers), seconds)
        asked = {"seconds": seconds, "levels": levels, "trace": running.folder}
        answers = await asyncio.gather(
            *(self._ask(number, running.path(number), asked, seconds) for number in running.workers),
            return_exceptions=True,
        )
        traces: list[dict[str, Any]] = []
        failures: list[ServingError] = []
        for (number, servable), answer in zip(running.workers.items(), answers, strict=True):
            if isinstance(answer, ServingError):
                failures.append(answer)
                logger.warning("%s is not in the trace: %s", servable, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                place = {"model": servable.model, "version": servable.version, "path": running.path(number)}
                traces.append(place | answer)
        if not traces:
            raise failures[0]
        total = sum(trace["bytes"] for trace in traces)
        if total > _MAX_BYTES:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"the trace has {total:,} bytes, more than {_MAX_BYTES:,}",
                "trace for a shorter time, or with a lower host_tracer_level",
            )
        return traces

    async def _ask(self, number: int, path: str, asked: Mapping[str, Any], seconds: float) -> Any:
        """Have a worker write its trace to the new file `path`, and return its "bytes" and whether it "has_events".

        Raise ServingError, OSError. Its answer cannot name another file, which the front would read and remove, and its
        file is measured.
        """
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            answer = await self._workers.ask(number, "profile", asked, seconds + _COLLECT_SECONDS, file)
            has_events = isinstance(answer, dict) and answer.get("has_events") is True
            return {"bytes": os.fstat(file).st_size, "has_events": has_events}
        finally:
            os.close(file)


async def _remove(folder: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
