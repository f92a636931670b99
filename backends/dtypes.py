"""The element types of tensors: one row each, shared by all protocols and backends.

Source of names and numbers: `tensorflow/core/framework/types.proto`.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    `name` is TensorFlow's short name ("float32", "string"), `number` and `proto_name` are the value and the name in the
    DataType enum, `label` is TensorFlow Serving's word in error messages ("float"), `numpy` is the little-endian array
    type: `object` (elements are `bytes`) for strings.
    """

    name: str
    number: int
    proto_name: str
    label: str
    numpy: np.dtype


STRING = DType("string", 7, "DT_STRING", "string", np.dtype(object))

DTYPES: tuple[DType, ...] = (
    DType("float32", 1, "DT_FLOAT", "float", np.dtype("<f4")),
    DType("float64", 2, "DT_DOUBLE", "double", np.dtype("<f8")),
    DType("int32", 3, "DT_INT32", "int32", np.dtype("<i4")),
    DType("uint8", 4, "DT_UINT8", "uint8", np.dtype("u1")),
    DType("int16", 5, "DT_INT16", "int16", np.dtype("<i2")),
    DType("int8", 6, "DT_INT8", "int8", np.dtype("i1")),
    STRING,
    DType("complex64", 8, "DT_COMPLEX64", "complex64", np.dtype("<c8")),
    DType("int64", 9, "DT_INT64", "int64", np.dtype("<i8")),
    DType("bool", 10, "DT_BOOL", "bool", np.dtype("?")),
    DType("bfloat16", 14, "DT_BFLOAT16", "bfloat16", np.dtype(ml_dtypes.bfloat16)),
    DType("uint16", 17, "DT_UINT16", "uint16", np.dtype("<u2")),
    DType("complex128", 18, "DT_COMPLEX128", "complex128", np.dtype("<c16")),
    DType("float16", 19, "DT_HALF", "half", np.dtype("<f2")),
    DType("uint32", 22, "DT_UINT32", "uint32", np.dtype("<u4")),
    DType("uint64", 23, "DT_UINT64", "uint64", np.dtype("<u8")),
)

BY_NAME: dict[str, DType] = {d.name: d for d in DTYPES}
BY_NUMBER: dict[int, DType] = {d.number: d for d in DTYPES}
REFERENCE = 100
"""The difference between the number of a reference type and that of its base type: DT_FLOAT_REF is 101."""

BY_NUMPY: dict[np.dtype, DType] = {d.numpy: d for d in DTYPES}


def of_array(array: np.ndarray) -> DType:
    """Return the DType of `array`. Raise KeyError for an element type that TensorFlow Serving does not carry."""
    return BY_NUMPY[array.dtype]
