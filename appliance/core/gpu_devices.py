"""Which GPUs a model may use: the option `gpu_devices`, and what it means for the environment of its worker."""

from __future__ import annotations

import re
from collections.abc import Mapping

from appliance.core.errors import ConfigError

_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]{1,80}")
_INDEX = re.compile(r"[0-9]{1,4}")


def parse_gpu_devices(text: str) -> tuple[str, ...]:
    """The numbers and UUIDs in `text`, which commas separate. Raises ConfigError."""
    found = [part.strip() for part in text.split(",")] if text.strip() else []
    for part in found:
        if not (_INDEX.fullmatch(part) or _UUID.fullmatch(part)):
            raise ConfigError(
                f"gpu_devices is {text!r}", "it is numbers or UUIDs of GPUs as `nvidia-smi -L` prints them, like 0,1"
            )
    return tuple(dict.fromkeys(found))


def gpu_environment(device: str, gpu_devices: str) -> Mapping[str, str]:
    """What the environment of a worker must say, so that CUDA shows it those GPUs and no others: the first of them is
    the one that it uses. Where nothing is restricted, what the appliance was started with counts."""
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": "-1"}
    if devices := parse_gpu_devices(gpu_devices):
        # CUDA's own order is by speed.
        return {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {}
