"""The protocol's names of element types ("FP32"), and those of Triton's model configuration ("TYPE_FP32")."""

from __future__ import annotations

from backends.contract import TensorSpec
from backends.dtypes import BY_NAME, DType

__all__ = ["BY_DATATYPE", "config_type", "datatype", "shape_of"]

_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}

BY_DATATYPE: dict[str, DType] = {name: BY_NAME[dtype] for dtype, name in _DATATYPES.items()}


def datatype(element: DType) -> str:
    """Return the protocol's name of an element type.

    The protocol has none for complex numbers: metadata shows TensorFlow's in capitals, and such a tensor is refused.
    """
    return _DATATYPES.get(element.name, element.name.upper())


def config_type(element: DType) -> str:
    """Return the name of an element type in a model's configuration; "TYPE_INVALID" if it has none."""
    if element.name == "string":
        return "TYPE_STRING"
    name = _DATATYPES.get(element.name)
    return f"TYPE_{name}" if name else "TYPE_INVALID"


def shape_of(spec: TensorSpec) -> list[int]:
    """Return a tensor's shape, with -1 for a size that is free, and [-1] if the rank is unknown too."""
    return [-1] if spec.shape is None else list(spec.shape)
