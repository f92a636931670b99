"""The converters by name: a new one is a module (see `converters.plugin`) and a line here.

A converter's module imports no framework: its entry points do, in their own processes.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Mapping

from converters.plugin import Converter

__all__ = ["CONVERTERS", "converter"]

CONVERTERS: Mapping[str, str] = {
    "onnx": "converters.to_onnx",
    "tflite": "converters.to_tflite",
}


def converter(module: str) -> Converter:
    """Return the converter in `module`. Raise ImportError, AttributeError if there is none."""
    found = importlib.import_module(module)
    for name in ("FORMAT", "PRECISIONS", "VERSIONS", "ENTRY_POINTS"):
        getattr(found, name)
    return typing.cast(Converter, found)
