"""Whether forms run on a GPU on this machine."""

from __future__ import annotations

import os

__all__ = ["has_gpu", "runs_on_gpu"]


def has_gpu() -> bool:
    """Return whether NVIDIA's driver runs. This asks the driver nothing, so it cannot hang."""
    return os.path.exists("/dev/nvidiactl")


def runs_on_gpu(device: str) -> bool:
    """Return whether ONNX Runtime is to use a GPU for the option `device` ("auto", "cuda", "cpu")."""
    return device == "cuda" or (device == "auto" and has_gpu())
