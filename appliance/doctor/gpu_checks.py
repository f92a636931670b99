"""Checks of GPUs: whether the driver answers, and whether CUDA can be used. Pure."""

from __future__ import annotations

from appliance.doctor.facts import Facts
from appliance.doctor.findings import Found, Level

__all__ = ["cuda", "driver"]


def driver(facts: Facts) -> Found:
    """Yield whether NVIDIA's driver answers, and whether its GPUs do."""
    status = facts.graphics.status
    wanted = _wants_cuda(facts)
    if status.error:
        yield Level.WARNING, status.error, "see dmesg and nvidia-smi; models run on the CPU meanwhile"
    elif status.gpus:
        names = ", ".join(gpu.name or f"GPU {gpu.index}" for gpu in status.gpus)
        yield Level.OK, f"NVIDIA driver {status.driver_version} (CUDA {status.cuda_version}): {names}", ""
        for gpu in status.gpus:
            if gpu.error:
                yield Level.WARNING, f"GPU {gpu.index}: {gpu.error}", "see nvidia-smi"
    elif facts.graphics.cards or wanted:
        there = "there is an NVIDIA GPU" if facts.graphics.cards else f"device is cuda for {wanted}"
        remedy = "install NVIDIA's driver, 525 or later, and restart the service; nvidia-smi must work first"
        yield Level.WARNING, f"{there}, and no driver: {status.reason}", remedy
    else:
        yield Level.OK, "there is no NVIDIA GPU: models run on the CPU", ""


def cuda(facts: Facts) -> Found:
    """Yield whether ONNX Runtime can use CUDA."""
    problem = facts.graphics.cuda_problem
    if not facts.graphics.status.gpus:
        yield Level.OK, "not looked at: no GPU answers", ""
    elif problem:
        remedy = (
            "install the package dropserve-cuda of the same version; a driver's libcuda.so.1 that is not found is "
            "linked when the service is started again"
        )
        yield Level.WARNING, f"ONNX Runtime cannot use CUDA: {problem}; models run on the CPU", remedy
    else:
        yield Level.OK, "ONNX Runtime finds CUDA 12 and cuDNN 9", ""


def _wants_cuda(facts: Facts) -> str:
    """Return the names of the models whose device is cuda, or "all models"; "" if there are none."""
    if facts.configuration.options.device == "cuda":
        return "all models"
    return ", ".join(name for name, model in facts.configuration.models.items() if model.options.device == "cuda")
