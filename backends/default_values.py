"""Read the default values of inputs without TensorFlow.

Source of the format: `tensorflow/core/framework/tensor.proto`.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.contract import BackendError, Code, IncompleteError, Signature
from backends.dtypes import BY_NAME, BY_NUMBER, STRING
from backends.reading import BYTES, VARINT, Reader

# Element type → the field of its values. All other types use int_val, 32-bit numbers.
_INT_VALUES = 7
_STRING_VALUES = 8
_FIELDS = {
    "float32": 5,
    "float64": 6,
    STRING.name: _STRING_VALUES,
    "complex64": 9,
    "int64": 10,
    "bool": 11,
    "complex128": 12,
    "float16": 13,
    "bfloat16": 13,
    "uint32": 16,
    "uint64": 17,
}
_FIXED = {5: "<f4", 6: "<f8", 9: "<f4", 12: "<f8"}  # a complex number is a pair; the other fields are varints
_BITS_OF_HALF = frozenset({"float16", "bfloat16"})

_MAX_BYTES = 256 << 20
_ALL_BITS = (1 << 64) - 1


def default_arrays(signature: Signature) -> dict[str, np.ndarray]:
    """Return the value of each input of `signature` that has a default. Raise BackendError if one cannot be read."""
    arrays = {}
    for alias, data in signature.defaults.items():
        try:
            array = _array(Reader(io.BytesIO(data), f"the default of {alias!r}", len(data)))
        except IncompleteError as error:
            raise BackendError(Code.INVALID_ARGUMENT, str(error)) from error
        except (ArithmeticError, MemoryError, ValueError) as error:
            raise BackendError(Code.INVALID_ARGUMENT, f"the default of {alias!r} cannot be read: {error}") from error
        if array.dtype != signature.inputs[alias].element.numpy:
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"the default of {alias!r} is {array.dtype}, the input {signature.inputs[alias].dtype}",
            )
        arrays[alias] = array
    return arrays


def _array(reader: Reader) -> np.ndarray:
    """Return a TensorProto's array: dtype 1, tensor_shape 2, tensor_content 4, and a field of values for each type."""
    fields = list(reader.fields(0, reader.size))
    number = next((value for field, kind, value, _ in reversed(fields) if (field, kind) == (1, VARINT)), 0)
    element = BY_NUMBER.get(number)
    if element is None:
        raise ValueError(f"there is no element type {number}")
    shape: list[int] = []
    content = b""
    values: list[Any] = []
    for field, wire_type, value, stop in fields:
        if (field, wire_type) == (2, BYTES):
            shape = _shape(reader, value, stop)
        elif (field, wire_type) == (4, BYTES):
            content = reader.read(value, stop - value)
        elif field == _FIELDS.get(element.name, _INT_VALUES):
            values += _values(reader, field, wire_type, value, stop)
    count = math.prod(shape)
    if count * element.numpy.itemsize > _MAX_BYTES:
        raise ValueError(f"it has the shape {shape}, which is over {_MAX_BYTES:,} bytes")
    if content and element is not STRING:
        return np.frombuffer(content, element.numpy).reshape(shape).copy()
    if element.name.startswith("complex"):
        values = [complex(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
    if len(values) > count:
        raise ValueError(f"it has {len(values):,} values for the shape {shape}")
    return _filled(values, count, element.name).reshape(shape)


def _values(reader: Reader, field: int, wire_type: int, value: int, stop: int) -> list[Any]:
    """Return the values in one field; repeated numbers are packed, or in a field each."""
    found: list[Any] = []
    if field == _STRING_VALUES:
        if wire_type == BYTES:
            found.append(reader.read(value, stop - value))
    elif field in _FIXED:
        if wire_type != VARINT:
            found += np.frombuffer(reader.read(value, stop - value), _FIXED[field]).tolist()
    elif wire_type == VARINT:
        found.append(value)
    elif wire_type == BYTES:
        at = value
        while at < stop:
            found += reader.varints(at, 1)
            at = reader.position()
    return found


def _filled(values: Sequence[Any], count: int, name: str) -> np.ndarray:
    """Return `count` elements: the last value is repeated for the rest; without values, zeros or empty strings."""
    dtype = BY_NAME[name].numpy
    if name == STRING.name:
        array = np.full(count, values[-1] if values else b"", dtype)
    elif name in _BITS_OF_HALF:
        return _filled(values, count, "uint16").view(dtype)
    else:
        # The varint of a negative number has its 64 bits.
        if np.issubdtype(dtype, np.signedinteger):
            values = [struct.unpack("<q", struct.pack("<Q", value & _ALL_BITS))[0] for value in values]
        array = np.full(count, values[-1] if values else 0, dtype)
    array[: len(values)] = values
    return array


def _shape(reader: Reader, start: int, end: int) -> list[int]:
    """Return the sizes of a TensorShapeProto: dim 2 (size 1). Raise ValueError for an unknown size."""
    sizes = []
    for dimension in list(reader.messages(start, end, 2)):
        size = next((n for field, kind, n, _ in reader.fields(*dimension) if (field, kind) == (1, VARINT)), 0)
        if size >> 63:
            raise ValueError("it has a dimension of unknown size")
        sizes.append(size)
    return sizes
