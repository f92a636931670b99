"""Workers that can use a GPU get the one with room, and none is promised what another has been."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.config.model_options import ModelOptions
from appliance.core.errors import Code, ServingError
from appliance.gpu.values import Gpu, GpuProcess, GpuStatus
from appliance.supervisor.placement import Placement

GIB = 1 << 30


def gpu(index: int, free: int, *processes: GpuProcess) -> Gpu:
    return Gpu(index, uuid=f"GPU-{index}", memory_free_bytes=free, memory_total_bytes=80 * GIB, processes=processes)


class Machine:
    """What its driver shows, which a test changes."""

    def __init__(self, *gpus: Gpu, driver: bool = True) -> None:
        self.gpus = gpus
        self.asked = 0
        self.placement = Placement(self.status, lambda: driver)

    async def status(self, seconds: float) -> GpuStatus:
        self.asked += 1
        return GpuStatus(gpus=self.gpus)

    def place(self, number: int, backend: str = "onnx", **options: Any) -> str:
        return asyncio.run(self.placement.place(number, backend, ModelOptions(**options))).gpu_devices


def test_a_worker_goes_to_the_gpu_with_the_most_room() -> None:
    assert Machine(gpu(0, 10 * GIB), gpu(1, 20 * GIB)).place(1) == "GPU-1"


def test_what_is_promised_and_not_yet_taken_counts_as_taken() -> None:
    machine = Machine(gpu(0, 10 * GIB), gpu(1, 8 * GIB))
    assert machine.place(1, gpu_memory_limit_bytes=6 * GIB) == "GPU-0"
    assert machine.place(2, gpu_memory_limit_bytes=6 * GIB) == "GPU-1"
    with pytest.raises(ServingError, match=r"needs 6,442,450,944 bytes of a GPU") as raised:
        machine.place(3, gpu_memory_limit_bytes=6 * GIB)
    assert raised.value.code is Code.RESOURCE_EXHAUSTED
    machine.placement.release(1)
    assert machine.place(3, gpu_memory_limit_bytes=6 * GIB) == "GPU-0"


def test_what_a_worker_has_taken_of_its_promise_is_not_counted_twice() -> None:
    machine = Machine(gpu(0, 10 * GIB))
    machine.place(1, gpu_memory_limit_bytes=6 * GIB)
    machine.placement.started(1, 77)
    machine.gpus = (gpu(0, 4 * GIB, GpuProcess(77, "C", "worker", 6 * GIB)),)
    assert machine.place(2, gpu_memory_limit_bytes=3 * GIB) == "GPU-0"


def test_only_the_gpus_that_a_model_may_use_are_chosen() -> None:
    machine = Machine(gpu(0, 10 * GIB), gpu(1, 20 * GIB))
    assert machine.place(1, gpu_devices="0") == "GPU-0"
    with pytest.raises(ServingError, match="gpu_devices is '7'"):
        machine.place(2, gpu_devices="7")


def test_what_runs_on_the_cpu_is_not_placed_and_the_driver_is_not_asked() -> None:
    machine = Machine(gpu(0, 10 * GIB))
    assert machine.place(1, device="cpu") == ""
    assert machine.place(2, backend="tensorflow") == ""
    assert machine.place(3, backend="litert", gpu_devices="0") == "0"
    without = Machine(gpu(0, 10 * GIB), driver=False)
    assert without.place(1) == ""
    assert machine.asked == without.asked == 0


def test_a_driver_that_tells_nothing_changes_nothing() -> None:
    assert Machine().place(1) == ""
    assert Machine(Gpu(0, error="GPU is lost")).place(1, gpu_devices="0") == "0"
