"""The machine's GPUs as values, as JSON and as a table.

Pure: only `appliance.gpu.probe` uses the driver's library (NVML), in a process that `appliance.gpu.client` runs. None
means that a GPU does not support or report a value (nvidia-smi's N/A), or that the driver failed to read it; then
`errors` says why, by the field's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from appliance.core.servable import ServableId

__all__ = ["MAX_PROCESSES", "Gpu", "GpuProcess", "GpuStatus", "named", "table", "with_identities"]

# The most processes listed for one GPU; those with the most memory are kept.
MAX_PROCESSES = 256

_MIB = 2**20
_HEADS = ("GPU", "FAN", "TEMP", "PERF", "POWER / CAP", "MEMORY", "UTIL", "MIG")
_PROCESS_HEADS = ("GPU", "PID", "TYPE", "MEMORY", "MODEL", "VERSION", "PROCESS")


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that uses a GPU. `model` and `version` are what it serves if it is a worker of this server."""

    pid: int
    type: str  # as in nvidia-smi: C computes, G draws, C+G does both
    name: str | None
    memory_bytes: int | None
    model: str | None = None
    version: str | None = None  # a string, as in GET /v1/models, because JSON's numbers do not hold an int64


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `error` says why its values are missing: it is lost, or its driver does not answer."""

    index: int
    name: str | None = None
    uuid: str | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    utilization_percent: int | None = None
    memory_used_bytes: int | None = None  # without the driver's reserve, as in nvidia-smi
    memory_free_bytes: int | None = None
    memory_total_bytes: int | None = None
    fan_percent: int | None = None
    performance_state: str | None = None  # P0, the fastest, to P15
    mig: str | None = None  # "enabled" or "disabled", with a remark if a reset will change it
    processes: tuple[GpuProcess, ...] = ()
    error: str = ""
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """All GPUs as they were `age_seconds` ago.

    `reason` says why there are none although nothing failed (no driver); `error` is a failure of the driver as a whole.
    """

    driver_version: str | None = None
    cuda_version: str | None = None  # the newest that the driver supports
    gpus: tuple[Gpu, ...] = ()
    reason: str = ""
    error: str = ""
    age_seconds: float = 0.0

    @property
    def is_healthy(self) -> bool:
        """Whether there are GPUs, and the driver could read all values that they support."""
        return bool(self.gpus) and not self.error and not any(gpu.error or gpu.errors for gpu in self.gpus)


def named(status: GpuStatus, servables: Mapping[int, ServableId]) -> GpuStatus:
    """Return `status` with the model and version of each process in `servables` (by process number)."""

    def name(process: GpuProcess) -> GpuProcess:
        servable = servables.get(process.pid)
        return process if servable is None else replace(process, model=servable.model, version=str(servable.version))

    gpus = tuple(replace(gpu, processes=tuple(map(name, gpu.processes))) for gpu in status.gpus)
    return replace(status, gpus=gpus)


def with_identities(gpus: Sequence[Gpu], earlier: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return `gpus` ordered by index, with missing names and UUIDs of failed GPUs taken from `earlier`.

    A driver gives only the index of a lost GPU.
    """
    known = {gpu.index: gpu for gpu in earlier}
    return tuple(
        replace(gpu, name=gpu.name or known[gpu.index].name, uuid=gpu.uuid or known[gpu.index].uuid)
        if gpu.error and gpu.index in known
        else gpu
        for gpu in sorted(gpus, key=lambda gpu: gpu.index)
    )


# -- the table -------------------------------------------------------------------------------------------------------


def table(status: GpuStatus) -> str:
    """Return a page for people who know nvidia-smi: GPUs, then processes, one a line; then errors."""
    versions = f"Driver {_shown(status.driver_version)}   CUDA {_shown(status.cuda_version)}"
    lines = [f"{versions}   (as of {status.age_seconds:.1f} s ago)"]
    if status.error:
        lines.append(f"ERROR: {_printable(status.error)}")
    if status.reason:
        lines.append(_printable(status.reason))
    if not status.gpus:
        return "\n".join(lines) + "\n"
    lines += [f"GPU {gpu.index}: {_shown(gpu.name)} (UUID: {_shown(gpu.uuid)})" for gpu in status.gpus]
    lines += ["", *_aligned([_HEADS, *map(_row, status.gpus)], right={0, 1, 2, 4, 5, 6}), ""]
    processes = [(gpu, process) for gpu in status.gpus for process in gpu.processes]
    if processes:
        lines += _aligned([_PROCESS_HEADS, *(_process_row(*found) for found in processes)], right={0, 1, 3, 5})
    else:
        lines.append("No process uses a GPU, as far as the driver tells.")
    wrong = [f"GPU {gpu.index}: {_printable(gpu.error)}" for gpu in status.gpus if gpu.error]
    wrong += [f"GPU {gpu.index}: {name}: {_printable(why)}" for gpu in status.gpus for name, why in gpu.errors.items()]
    if wrong:
        lines += ["", "Errors:", *wrong]
    return "\n".join(lines) + "\n"


def _row(gpu: Gpu) -> tuple[str, ...]:
    def cell(field_name: str, value: object, unit: str = "") -> str:
        return "ERR" if field_name in gpu.errors or (gpu.error and value is None) else _shown(value, unit)

    power = None if gpu.power_watts is None else round(gpu.power_watts)
    limit = None if gpu.power_limit_watts is None else round(gpu.power_limit_watts)
    used = None if gpu.memory_used_bytes is None else gpu.memory_used_bytes // _MIB
    total = None if gpu.memory_total_bytes is None else gpu.memory_total_bytes // _MIB
    return (
        str(gpu.index),
        cell("fan_percent", gpu.fan_percent, "%"),
        cell("temperature_celsius", gpu.temperature_celsius, "C"),
        cell("performance_state", gpu.performance_state),
        f"{cell('power_watts', power, 'W')} / {cell('power_limit_watts', limit, 'W')}",
        f"{cell('memory_used_bytes', used, 'MiB')} / {cell('memory_total_bytes', total, 'MiB')}",
        cell("utilization_percent", gpu.utilization_percent, "%"),
        cell("mig", gpu.mig),
    )


def _process_row(gpu: Gpu, process: GpuProcess) -> tuple[str, ...]:
    memory = None if process.memory_bytes is None else process.memory_bytes // _MIB
    return (
        str(gpu.index),
        str(process.pid),
        process.type,
        _shown(memory, "MiB"),
        "unknown" if process.model is None else _printable(process.model),
        "-" if process.version is None else process.version,
        _shown(process.name),
    )


def _aligned(rows: Sequence[tuple[str, ...]], right: set[int]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _shown(value: object, unit: str = "") -> str:
    return "N/A" if value is None else _printable(f"{value}{unit}")


def _printable(text: str) -> str:
    """Return `text` with unprintable characters replaced: names come from drivers and other users' processes."""
    return "".join(character if character.isprintable() else "?" for character in text)
