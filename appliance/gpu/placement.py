"""Chooses a GPU for a model, by free memory, among the GPUs that it may use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from appliance.core.gpu_devices import parse_gpu_devices


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU as its driver shows it; `index` is nvidia-smi's."""

    index: int
    uuid: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The memory on the GPU `uuid` that one version was promised, and how much of it is allocated so far.

    The difference counts as taken although the driver shows it as free: a model that is being loaded, or has not met
    its largest batch yet, will ask for it.
    """

    uuid: str
    promised_bytes: int
    allocated_bytes: int = 0

    @property
    def open_bytes(self) -> int:
        """The bytes that are promised but not allocated yet."""
        return max(self.promised_bytes - self.allocated_bytes, 0)


@dataclass(frozen=True, slots=True)
class Refused:
    """No GPU can take the model; `reason` says what there is and what can be done."""

    reason: str


def place(
    gpus: Sequence[GpuMemory], claims: Collection[Claim], gpu_devices: str, needed_bytes: int
) -> GpuMemory | Refused:
    """Return the GPU for a model that needs `needed_bytes` (0: unknown).

    Of the GPUs that it may use, this is the one with the most memory that is neither used nor promised. If even that is
    too little, return Refused; if the need is unknown, any free memory is enough. Raise ConfigError for invalid
    `gpu_devices`.
    """
    if not gpus:
        return Refused("there is no GPU")
    devices = parse_gpu_devices(gpu_devices)
    # As for CUDA, a UUID may be shortened as long as it fits one GPU only.
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
