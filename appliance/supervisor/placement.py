"""Gives each worker that can use a GPU one with room for it, or says why there is none."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from appliance.config.model_options import ModelOptions
from appliance.core.errors import Code, ServingError
from appliance.gpu.placement import Claim, GpuMemory, Refused, place
from appliance.gpu.values import GpuStatus

# What computes on a GPU. TensorFlow's workers run on the CPU, LiteRT has no CUDA.
_ON_GPU = frozenset({"onnx"})
_STATUS_SECONDS = 3.0


@dataclass(slots=True, eq=False)
class _Promise:
    uuid: str
    promised_bytes: int
    pid: int | None = None


class Placement:
    """`status(seconds)` are the GPUs as their driver shows them. Promises are kept until `release`."""

    def __init__(
        self,
        status: Callable[[float], Awaitable[GpuStatus]],
        has_driver: Callable[[], bool] = lambda: os.path.exists("/dev/nvidiactl"),
    ) -> None:
        self._status = status
        self._has_driver = has_driver
        self._promises: dict[int, _Promise] = {}

    async def place(self, number: int, backend: str, options: ModelOptions) -> ModelOptions:
        """Return the options with which worker `number` is to load: those of the model, on the GPU chosen for it.

        Without a driver, or if the driver tells of no GPU, they stay as they are. Raises ServingError
        (RESOURCE_EXHAUSTED) if no GPU has room.
        """
        if backend not in _ON_GPU or options.device == "cpu" or not self._has_driver():
            return options
        status = await self._status(_STATUS_SECONDS)
        gpus = [
            GpuMemory(gpu.index, gpu.uuid, gpu.memory_free_bytes, gpu.memory_total_bytes)
            for gpu in status.gpus
            if gpu.uuid and gpu.memory_free_bytes is not None and gpu.memory_total_bytes is not None
        ]
        if not gpus:
            return options
        used = {process.pid: process.memory_bytes or 0 for gpu in status.gpus for process in gpu.processes}
        claims = [
            Claim(promise.uuid, promise.promised_bytes, used.get(promise.pid or 0, 0))
            for promise in self._promises.values()
        ]
        chosen = place(gpus, claims, options.gpu_devices, options.gpu_memory_limit_bytes)
        if isinstance(chosen, Refused):
            raise ServingError(Code.RESOURCE_EXHAUSTED, chosen.reason)
        self._promises[number] = _Promise(chosen.uuid, options.gpu_memory_limit_bytes)
        return replace(options, gpu_devices=chosen.uuid)

    def started(self, number: int, pid: int) -> None:
        """Note the worker's process number, by which the driver tells what it has taken of its promise."""
        if number in self._promises:
            self._promises[number].pid = pid

    def release(self, number: int) -> None:
        self._promises.pop(number, None)
