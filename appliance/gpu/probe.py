"""The process that reads NVIDIA's driver by nvidia-ml-py. NVML's calls can hang for ever, or crash their process.

It speaks lines of JSON with `appliance.gpu.client` over the socket that is its descriptor 3. First it reports the
driver's start: {"ready": true}; {"reason": ...} if there is no driver; or {"error": ...}. After the last two it ends.
Then it answers each incoming line with {"driver_version", "cuda_version", "count"}, or {"error"}; then {"gpu": ...} for
each GPU (the fields of `gpu.values.Gpu`), as they answer; then {"end": true}. The process ends at the socket's end of
file.

Each GPU is read in its own thread, so that one that hangs does not hide the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import NoneType
from typing import Any

import pynvml

from appliance.gpu.values import MAX_PROCESSES
from appliance.host.processes import set_name, take_argument

_CONTROL_DESCRIPTOR = 3
_MAX_GPUS = 256
_MAX_TEXT = 256  # the most characters of a name or a message
_UNKNOWN_STATE = 32  # NVML_PSTATE_UNKNOWN

_Handle = Any
# After one of these errors, no other call about the GPU succeeds.
_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND)
# The GPU does not support the value, or the driver is too old for it.
_NOTHING = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
_OLDER = (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
_ABSENT = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "There is no NVIDIA driver here: its library libnvidia-ml.so.1 was not found; if there is a GPU, install "
        "the driver, or start the container with its GPUs (--gpus all)"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "The NVIDIA driver is not loaded; if there is a GPU, see nvidia-smi, and load it (modprobe nvidia)"
    ),
}
_REMEDIES = {
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was updated; restart the machine, or load its new modules",
    pynvml.NVML_ERROR_GPU_IS_LOST: "see dmesg for its Xid, and reset the GPU or restart the machine",
    pynvml.NVML_ERROR_RESET_REQUIRED: "nvidia-smi --gpu-reset resets it",
    pynvml.NVML_ERROR_NO_PERMISSION: "may this user open /dev/nvidiactl and /dev/nvidia0?",
}


def _words(error: Exception) -> str:
    """Return NVML's message, with a remedy if there is one."""
    text = str(error)[:_MAX_TEXT].rstrip(".")
    remedy = _REMEDIES.get(getattr(error, "value", 0))
    return f"{text}; {remedy}" if remedy else text


# -- one GPU ---------------------------------------------------------------------------------------------------------


def _first(*calls: Callable[[], Any]) -> Any:
    """Return the result of the first of `calls` that this driver supports; list newer calls first."""
    for call in calls[:-1]:
        try:
            return call()
        except pynvml.NVMLError as error:
            if error.value not in _OLDER:
                raise
    return calls[-1]()


def _memory(handle: _Handle) -> tuple[int, int, int]:
    # The newer call counts the driver's reserve separately, as nvidia-smi does.
    info = _first(
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2),
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle),
    )
    return int(info.used), int(info.free), int(info.total)


def _temperature(handle: _Handle) -> tuple[int]:
    sensor = pynvml.NVML_TEMPERATURE_GPU
    return (
        _first(
            lambda: pynvml.nvmlDeviceGetTemperatureV(handle, sensor),
            lambda: pynvml.nvmlDeviceGetTemperature(handle, sensor),
        ),
    )


def _performance_state(handle: _Handle) -> tuple[str | None]:
    state = pynvml.nvmlDeviceGetPerformanceState(handle)
    return (None if state == _UNKNOWN_STATE else f"P{state}",)


def _mig(handle: _Handle) -> tuple[str]:
    names = {0: "disabled", 1: "enabled"}
    current, pending = (names.get(mode, str(mode)) for mode in pynvml.nvmlDeviceGetMigMode(handle))
    return (current if current == pending else f"{current}; {pending} after a reset",)


def _processes(handle: _Handle) -> tuple[list[dict[str, Any]]]:
    lists = (
        ("C", pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetComputeRunningProcesses_v2),
        ("G", pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2),
    )
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for kind, newer, older in lists:
        try:
            listed = _first(partial(newer, handle), partial(older, handle))
        except pynvml.NVMLError as error:
            if error.value not in _NOTHING:
                raise
            continue
        for process in listed:
            key = (int(process.pid), int(process.gpuInstanceId))  # with MIG, a process may use two instances
            if key in found:
                found[key]["type"] = "C+G"
            else:
                found[key] = {"pid": key[0], "type": kind, "memory_bytes": process.usedGpuMemory, "name": None}
    most = sorted(found.values(), key=lambda process: -(process["memory_bytes"] or 0))[:MAX_PROCESSES]
    for process in most:
        # If not found, it has ended in the meantime, or runs outside this container.
        with contextlib.suppress(pynvml.NVMLError, UnicodeDecodeError):
            process["name"] = pynvml.nvmlSystemGetProcessName(process["pid"])[:_MAX_TEXT]
    return (most,)


_READERS: tuple[tuple[tuple[str, ...], Callable[[_Handle], tuple[Any, ...]]], ...] = (
    (("name",), lambda handle: (pynvml.nvmlDeviceGetName(handle)[:_MAX_TEXT],)),
    (("uuid",), lambda handle: (pynvml.nvmlDeviceGetUUID(handle)[:_MAX_TEXT],)),
    (("memory_used_bytes", "memory_free_bytes", "memory_total_bytes"), _memory),
    (("temperature_celsius",), _temperature),
    (("power_watts",), lambda handle: (pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,)),
    (("power_limit_watts",), lambda handle: (pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,)),
    (("utilization_percent",), lambda handle: (int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),)),
    (("fan_percent",), lambda handle: (pynvml.nvmlDeviceGetFanSpeed(handle),)),
    (("performance_state",), _performance_state),
    (("mig",), _mig),
    (("processes",), _processes),
)


def _read_gpu(index: int) -> dict[str, Any]:
    """Return the fields of `appliance.gpu.values.Gpu`, without those that the GPU does not support."""
    errors: dict[str, str] = {}
    gpu: dict[str, Any] = {"index": index, "errors": errors}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        for names, read in _READERS:
            try:
                gpu.update(zip(names, read(handle), strict=True))
            except UnicodeDecodeError as error:
                errors.update(dict.fromkeys(names, f"it is not UTF-8: {error}"[:_MAX_TEXT]))
            except pynvml.NVMLError as error:
                if error.value in _LOST:
                    raise
                if error.value not in _NOTHING:
                    errors.update(dict.fromkeys(names, _words(error)))
    except pynvml.NVMLError as error:
        gpu["error"] = _words(error)
    return gpu


# -- all of them -----------------------------------------------------------------------------------------------------


def _begin() -> dict[str, Any]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in _ABSENT:
            return {"reason": _ABSENT[error.value]}
        return {"error": f"The NVIDIA driver does not start: {_words(error)}"}
    return {"ready": True}


def _read() -> Iterator[dict[str, Any]]:
    try:
        count = min(pynvml.nvmlDeviceGetCount(), _MAX_GPUS)
        driver = pynvml.nvmlSystemGetDriverVersion()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion()
    except (pynvml.NVMLError, UnicodeDecodeError) as error:
        yield {"error": f"The NVIDIA driver fails: {_words(error)}"}
        return
    yield {"driver_version": driver, "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}", "count": count}
    answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read(index: int) -> None:
        try:
            answers.put(_read_gpu(index))
        except Exception as error:  # noqa: BLE001 - a thread's outer loop: its GPU would be missing without an error
            answers.put({"index": index, "error": f"{type(error).__name__}: {error}"[:_MAX_TEXT]})

    for index in range(count):
        threading.Thread(target=read, args=(index,), daemon=True).start()
    for _ in range(count):
        yield {"gpu": answers.get()}  # if the driver hangs, the client's deadline ends this process
    yield {"end": True}


def main() -> None:
    """Report the driver's start, then answer each line with the GPUs until the client closes the socket."""
    take_argument(NoneType)
    set_name("ds-gpu")
    control = socket.socket(fileno=_CONTROL_DESCRIPTOR)

    def say(message: dict[str, Any]) -> None:
        control.sendall(json.dumps(message).encode() + b"\n")

    try:
        begun = _begin()
        say(begun)
        if "ready" in begun:
            for _ in control.makefile("rb"):
                for message in _read():
                    say(message)
    except OSError:
        pass  # the client is gone
    os._exit(0)  # skip NVML's shutdown, which may hang


if __name__ == "__main__":
    main()
