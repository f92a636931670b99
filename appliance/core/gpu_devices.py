"""Which GPUs a model may use: the option `gpu_devices`, and what it means for the environment of its worker."""

from __future__ import annotations

import re
from collections.abc import Mapping

from appliance.core.errors import ConfigError

_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]{1,80}")
_INDEX = re.compile(r"[0-9]{1,4}")


def parse_gpu_devices(text: str) -> tuple[str, ...]:
    """Return the distinct GPU numbers and UUIDs in the comma-separated `text`. Raise ConfigError for anything else."""
    found = [part.strip() for part in text.split(",")] if text.strip() else []
    for part in found:
        if not (_INDEX.fullmatch(part) or _UUID.fullmatch(part)):
            raise ConfigError(
                f"gpu_devices is {text!r}", "it is numbers or UUIDs of GPUs as `nvidia-smi -L` prints them, like 0,1"
            )
    return tuple(dict.fromkeys(found))


def gpu_environment(device: str, gpu_devices: str) -> Mapping[str, str]:
    """Return the environment variables that show CUDA only the GPUs that a worker may use.

    The worker uses the first of `gpu_devices`. If nothing is restricted, the result is empty and the worker inherits
    the appliance's environment.
    """
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": "-1"}
    if devices := parse_gpu_devices(gpu_devices):
        # CUDA's default order is by speed, nvidia-smi's by PCI bus.
        return {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {}
