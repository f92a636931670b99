"""The pages that Prometheus scrapes. They are read from files, so they work even if workers hang."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from appliance import __version__
from appliance.core.errors import Code, ServingError
from appliance.core.routes import Snapshot
from appliance.gpu.values import Gpu, GpuStatus
from appliance.host.memory import resident_bytes
from appliance.inference.router import Router
from appliance.metrics import catalogue
from appliance.metrics.file import Collected, MetricsFileError, collect
from appliance.metrics.text import Samples, read_series, render, render_tensorflow

__all__ = ["MetricsPages"]

logger = logging.getLogger(__name__)

_MEMORY_SECONDS = 0.5  # what has not told its memory by then is shown without it


class MetricsPages:
    """Makes the pages from the files in `directory`, one of each kind at a time: concurrent requests share it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._making: dict[str, asyncio.Task[bytes]] = {}

    async def own(self, router: Router, gpus: GpuStatus | None) -> bytes:
        """Return the page /metrics; `gpus` is None if their status is unknown. Raise ServingError."""
        return await self._made("own", router.snapshot, gpus, await _memory(router))

    async def tensorflow_serving(self) -> bytes:
        """Return TensorFlow Serving's page. Raise ServingError."""
        return await self._made("tensorflow", None)

    async def _made(
        self,
        page: str,
        snapshot: Snapshot | None,
        gpus: GpuStatus | None = None,
        memory: Mapping[int, int] | None = None,
    ) -> bytes:
        task = self._making.get(page)
        if task is None:
            made = asyncio.to_thread(self._make, snapshot, gpus, memory or {})
            task = self._making[page] = asyncio.create_task(made)
            task.add_done_callback(lambda done: self._forget(page, done))
        try:
            return await asyncio.shield(task)
        except (OSError, MetricsFileError) as error:
            logger.warning("the metrics cannot be read: %s", error)
            raise ServingError(Code.UNAVAILABLE, f"The metrics cannot be read: {error}", "try again") from None

    def _forget(self, page: str, done: asyncio.Task[bytes]) -> None:
        del self._making[page]
        if not done.cancelled():
            done.exception()  # mark the exception as retrieved, in case all clients have gone

    def _make(self, snapshot: Snapshot | None, gpus: GpuStatus | None, memory: Mapping[int, int]) -> bytes:
        collected = collect(self._directory)
        samples = read_series(collected.series)
        if snapshot is None:
            return render_tensorflow(samples).encode(errors="replace")
        _add_models(samples, snapshot)
        if gpus is not None:
            _add_gpus(samples, gpus)
        _add_processes(samples, collected, memory)
        return render(samples).encode(errors="replace")


async def _memory(router: Router) -> dict[int, int]:
    """Return the proportional memory by process number, of the processes that have told it in time."""
    try:
        found = await router.call("memory", {}, _MEMORY_SECONDS)
    except ServingError:
        return {}
    return {int(pid): nbytes for pid, nbytes in found.items()}


def _add_processes(samples: Samples, collected: Collected, memory: Mapping[int, int]) -> None:
    for process in collected.processes:
        resident = resident_bytes(process.pid)
        if resident is None:
            continue
        labels = (process.role, process.model, process.version)
        _add(samples, catalogue.PROCESSES, (process.role,), 1)
        _add(samples, catalogue.RESIDENT_MEMORY, labels, resident)
        if process.pid in memory:
            _add(samples, catalogue.PROPORTIONAL_MEMORY, labels, memory[process.pid])
        if process.role == "supervisor":
            samples[catalogue.START_TIME.name] = {(): (process.started,)}


def _add_models(samples: Samples, snapshot: Snapshot) -> None:
    samples[catalogue.BUILD_INFO.name] = {(__version__,): (1.0,)}
    samples[catalogue.READY.name] = {(): (float(snapshot.ready),)}
    for model in snapshot.models.values():
        for version in model.versions:
            _add(samples, catalogue.VERSIONS, (model.name, str(version.version), version.state), 1)
            for what in version.confined_by:
                _add(samples, catalogue.CONFINED, (model.name, str(version.version), what.partition(" ")[0]), 1)
            if version.has_changed:
                _add(samples, catalogue.CHANGED_VERSIONS, (model.name, str(version.version)), 1)


def _add_gpus(samples: Samples, status: GpuStatus) -> None:
    if not status.reason:  # a machine without a driver has no driver state to report
        _add(samples, catalogue.GPU_DRIVER_UP, (), float(not status.error))
    for gpu in status.gpus:
        _add_gpu(samples, gpu)


def _add_gpu(samples: Samples, gpu: Gpu) -> None:
    labels = (str(gpu.index), gpu.uuid or "", gpu.name or "")
    utilization = None if gpu.utilization_percent is None else gpu.utilization_percent / 100
    values = (
        (catalogue.GPU_UP, float(not gpu.error)),
        (catalogue.GPU_ERRORS, len(gpu.errors)),
        (catalogue.GPU_TEMPERATURE, gpu.temperature_celsius),
        (catalogue.GPU_POWER, gpu.power_watts),
        (catalogue.GPU_POWER_LIMIT, gpu.power_limit_watts),
        (catalogue.GPU_UTILIZATION, utilization),
        (catalogue.GPU_MEMORY_USED, gpu.memory_used_bytes),
        (catalogue.GPU_MEMORY_TOTAL, gpu.memory_total_bytes),
    )
    for metric, value in values:
        if value is not None:
            _add(samples, metric, labels, float(value))
    for process in gpu.processes:
        if process.model is not None and process.version is not None and process.memory_bytes is not None:
            owner = (str(gpu.index), process.model, process.version)
            _add(samples, catalogue.GPU_PROCESS_MEMORY, owner, float(process.memory_bytes))


def _add(samples: Samples, metric: catalogue.Metric, labels: tuple[str, ...], value: float) -> None:
    found = samples.setdefault(metric.name, {})
    found[labels] = (found.get(labels, (0.0,))[0] + value,)
