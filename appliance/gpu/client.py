"""Runs the process that reads NVIDIA's driver (`appliance.gpu.probe`), with bounds on everything.

The process is started when the GPUs are asked for, and ended after a minute without questions. Its last answer is kept
for a second, so that frequent callers do not ask the driver each time. If the driver does not answer, the process is
killed, and started again after growing pauses. A caller waits no longer than it asked to, and gets the last known
values and the error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from appliance.core.servable import ServableId
from appliance.gpu.values import Gpu, GpuStatus, named, with_identities
from appliance.host.processes import Reaper, describe_status, spawn

__all__ = ["GpuClient", "driver_status"]

logger = logging.getLogger(__name__)

_FRESH_SECONDS = 1.0
# Without persistence mode, the driver first wakes the GPUs, which takes seconds for each.
_START_SECONDS = 30.0
_READ_SECONDS = 2.0
_PATIENCE_SECONDS = 3.0
_END_SECONDS = 1.0
_IDLE_SECONDS = 60.0
_NO_DRIVER_SECONDS = 60.0  # a driver may be installed while we serve
_KEPT_SECONDS = 60.0  # older values say nothing about the GPU's current state
_MAX_BACKOFF_SECONDS = 60.0
# Until it is initialised again, NVML keeps a lost GPU lost, and does not find one that is back.
_RENEWED_SECONDS = 10.0
_MAX_LINE_BYTES = 2**20


class _ProbeError(Exception):
    """The probe's process can no longer be used; the message says why."""


class GpuClient:
    """Reads the GPUs, in the event loop of the process whose children `reaper` waits for.

    `servables` returns what the workers serve, by process number. Once a question to the driver is `patience_seconds`
    old, callers no longer wait for its answer.
    """

    def __init__(
        self,
        reaper: Reaper,
        servables: Callable[[], Mapping[int, ServableId]],
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._reaper = reaper
        self._servables = servables
        self._patience_seconds = patience_seconds
        self._status: GpuStatus | None = None
        self._read_at = 0.0  # monotonic time at which the status's GPUs were read
        self._due = 0.0  # monotonic time from which the driver is asked again
        self._since = 0.0  # monotonic time of the current or last question
        self._reading: asyncio.Task[None] | None = None
        self._failures = 0
        self._logged = ""
        self._pid = 0
        self._started = 0.0
        self._exited: asyncio.Future[int] | None = None  # the exit of the process that was started last
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def status(self, seconds: float) -> GpuStatus:
        """Return the GPUs, at most a second old if the driver answers within `seconds`. Never raise."""
        now = time.monotonic()
        if self._reading is None and now >= self._due:
            self._since = now
            self._reading = asyncio.create_task(self._refresh())
        if self._reading is not None:
            left = self._since + self._patience_seconds - now
            await asyncio.wait([self._reading], timeout=max(min(seconds, left), 0.0))
        return named(self._known(time.monotonic()), self._servables())

    def stop(self) -> None:
        """End the process; call nothing afterwards."""
        self._due = float("inf")
        if self._reading is not None:
            self._reading.cancel()
        self._end_probe()

    def _known(self, now: float) -> GpuStatus:
        waited = 0.0 if self._reading is None else now - self._since
        late = (
            f"The NVIDIA driver has not answered for {waited:.1f} s; if that lasts, see dmesg for its messages (Xid)"
            if waited >= _READ_SECONDS
            else ""
        )
        if self._status is None:
            return GpuStatus(error=late, reason="" if late else "The NVIDIA driver is being asked; ask again")
        age = now - self._read_at
        return replace(
            self._status,
            gpus=self._status.gpus if age <= _KEPT_SECONDS else (),
            error=late or self._status.error,
            age_seconds=round(age, 3),
        )

    # -- one reading -------------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """Ask the driver once, and keep its answer."""
        if self._idle is not None:
            self._idle.cancel()
        try:
            status, failure = await self._read(), ""
        except _ProbeError as error:
            status, failure = None, str(error)
        except (OSError, ValueError, TypeError, LookupError) as error:
            status, failure = None, f"what the process that asks the NVIDIA driver says cannot be read: {error}"
        finally:
            self._reading = None
        now = time.monotonic()
        if status is not None:
            earlier = () if self._status is None else self._status.gpus
            self._status = replace(status, gpus=with_identities(status.gpus, earlier))
            self._read_at = now
        else:
            self._status = replace(self._status or GpuStatus(), reason="", error=failure)
        if self._status.error:
            self._failures += 1
            self._due = now + min(2.0 ** (self._failures - 1), _MAX_BACKOFF_SECONDS)
            self._end_probe()
        elif self._status.reason:
            self._failures = 0
            self._due = now + _NO_DRIVER_SECONDS
            self._end_probe()
        else:
            self._failures = 0
            self._due = now + _FRESH_SECONDS
            if any(gpu.error for gpu in self._status.gpus) and now - self._started > _RENEWED_SECONDS:
                self._end_probe()
            self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end_probe)
        self._log(self._status)

    def _log(self, status: GpuStatus) -> None:
        """Log a problem once, and its end."""
        wrong = "; ".join([status.error, *(f"GPU {gpu.index}: {gpu.error}" for gpu in status.gpus if gpu.error)])
        wrong = wrong.strip("; ")
        if wrong and wrong != self._logged:
            logger.warning("the state of the GPUs is only partly known: %s", wrong)
        elif self._logged and not wrong:
            logger.info("the state of the GPUs is known again")
        self._logged = wrong

    async def _read(self) -> GpuStatus:
        """Return the driver's answer.

        If only some GPUs answer by the deadline, the status's error names the others. Raise _ProbeError, or a decoding
        error for a malformed line.
        """
        if self._streams is None:
            begun = await self._start_probe()
            if "ready" not in begun:
                return GpuStatus(reason=begun.get("reason", ""), error=begun.get("error", ""))
        assert self._streams is not None
        reader, writer = self._streams
        head: dict[str, Any] = {}
        gpus: list[Gpu] = []
        late = f"it did not answer within {_READ_SECONDS:g} s"
        try:
            async with asyncio.timeout(_READ_SECONDS):
                writer.write(b"read\n")
                head = await self._next(reader)
                while "count" in head and "gpu" in (message := await self._next(reader)):
                    gpus.append(msgspec.convert(message["gpu"], Gpu))
        except TimeoutError:
            if not gpus:
                raise _ProbeError(f"The NVIDIA driver hangs: {late}; see dmesg for its messages (Xid)") from None
        if "error" in head:
            raise _ProbeError(head["error"])
        missing = sorted(set(range(head["count"])) - {gpu.index for gpu in gpus})
        return GpuStatus(
            driver_version=head["driver_version"],
            cuda_version=head["cuda_version"],
            gpus=(*gpus, *(Gpu(index, error=late) for index in missing)),
            reason="" if head["count"] else "The NVIDIA driver sees no GPU",
            error=f"The NVIDIA driver hangs at GPU {', '.join(map(str, missing))}: {late}" if missing else "",
        )

    async def _next(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        line = await reader.readline()
        if line:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError(f"no object: {line[:100]!r}")
            return message
        assert self._exited is not None
        done, _ = await asyncio.wait([self._exited], timeout=_END_SECONDS)
        how = describe_status(self._exited.result()) if done else "it closed its socket"
        raise _ProbeError(f"The process that asks the NVIDIA driver ended ({how}): its library has failed")

    # -- the process -------------------------------------------------------------------------------------------

    async def _start_probe(self) -> dict[str, Any]:
        """Start the process, and return its first message, about the driver's start. Raise _ProbeError."""
        if self._exited is not None:
            # A process that hangs in the kernel ends only when the driver releases it; a second one would hang there
            # too.
            await asyncio.wait([self._exited], timeout=_END_SECONDS)
            if not self._exited.done():
                raise _ProbeError(f"The NVIDIA driver hangs, and holds process {self._pid} in the kernel; see dmesg")
        ours, theirs = socket.socketpair()
        try:
            self._pid = spawn("appliance.gpu.probe", None, [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise _ProbeError(
                f"The process that asks the NVIDIA driver cannot be started: {error.strerror}; it is tried again"
            ) from None
        finally:
            theirs.close()
        self._reaper.forget(self._pid)
        self._exited = self._reaper.exit_of(self._pid)
        self._started = time.monotonic()
        self._streams = reader, _ = await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)
        try:
            async with asyncio.timeout(_START_SECONDS):
                return await self._next(reader)
        except TimeoutError:
            raise _ProbeError(
                f"The NVIDIA driver hangs: no start within {_START_SECONDS:g} s; see dmesg for its messages (Xid)"
            ) from None

    def _end_probe(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
            self._reaper.kill(self._pid)


async def driver_status(seconds: float) -> GpuStatus:
    """Return the driver's status after at most `seconds`, without a server.

    Only for processes without other children, because it waits for all children.
    """
    reaper = Reaper()
    reaper.start()
    client = GpuClient(reaper, dict, patience_seconds=seconds)
    try:
        return await client.status(seconds)
    finally:
        client.stop()
        reaper.stop()
