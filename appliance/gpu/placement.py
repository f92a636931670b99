"""Which GPU a model goes to: by the memory that is free, and within what it may use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from appliance.core.gpu_devices import parse_gpu_devices


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU as its driver shows it; `index` counts as nvidia-smi does."""

    index: int
    uuid: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What one version has been promised of the GPU `uuid`, and what of it has been allocated so far.

    The rest of it counts as taken, though the driver shows it as free: a model that is being loaded, or that has not
    met its largest batch yet, will ask for it.
    """

    uuid: str
    promised_bytes: int
    allocated_bytes: int = 0

    @property
    def open_bytes(self) -> int:
        return max(self.promised_bytes - self.allocated_bytes, 0)


@dataclass(frozen=True, slots=True)
class Refused:
    """No GPU can take the model: the reason says what there is, and what can be done."""

    reason: str


def place(
    gpus: Sequence[GpuMemory], claims: Collection[Claim], gpu_devices: str, needed_bytes: int
) -> GpuMemory | Refused:
    """The GPU for a model that needs `needed_bytes` (0: nobody knows): of those that it may use, the one with the most
    memory that is neither used nor promised.

    Refuses it where no GPU has so much. Where it is not known what a model needs, any GPU that has room at all does.
    Raises ConfigError for `gpu_devices` that `parse_gpu_devices` refuses.
    """
    if not gpus:
        return Refused("there is no GPU")
    devices = parse_gpu_devices(gpu_devices)
    # A UUID may be shortened as long as it fits one GPU only, as for CUDA.
    allowed = [
        gpu
        for gpu in gpus
        if not devices or any(str(gpu.index) == device or gpu.uuid.startswith(device) for device in devices)
    ]
    if not allowed:
        have = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus)
        return Refused(f"gpu_devices is {gpu_devices!r}, but the GPUs are {have}")

    def room(gpu: GpuMemory) -> int:
        return gpu.free_bytes - sum(claim.open_bytes for claim in claims if claim.uuid == gpu.uuid)

    best = max(allowed, key=lambda gpu: (room(gpu), -gpu.index))
    if room(best) < max(needed_bytes, 1):
        rooms = ", ".join(f"GPU {gpu.index}: {max(room(gpu), 0):,} of {gpu.total_bytes:,} bytes" for gpu in allowed)
        needs = f"{needed_bytes:,} bytes" if needed_bytes else "memory"
        return Refused(
            f"it needs {needs} of a GPU, but there are left on {rooms}; unload models, lower gpu_memory_limit_bytes, "
            "or set device = cpu"
        )
    return best
