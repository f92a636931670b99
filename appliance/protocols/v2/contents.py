"""The elements of a tensor as the protocol carries them, to an array and back.

Binary contents are the array's memory, little-endian and row-major. A BOOL is one byte, 0 or 1. A BYTES element is its
length as an unsigned number of 4 bytes, then its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from appliance.core.errors import Code, ServingError
from appliance.core.limits import MAX_STRINGS
from appliance.protocols.json_text import refusal
from appliance.protocols.json_values import MAX_RANK, supports, tensor
from appliance.protocols.v2.datatypes import datatype
from backends.contract import TensorSpec
from backends.dtypes import STRING, DType

__all__ = ["Contents", "JsonContents", "RawContents", "TypedContents", "check_has_type", "raw_contents"]

_LENGTH = struct.Struct("<I")

# An element type → its list in InferTensorContents (16-bit floats have none), and the type of the list's elements.
_LISTS: dict[str, str] = {
    "bool": "bool_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "string": "bytes_contents",
}
_LISTED: dict[str, np.dtype] = {"int_contents": np.dtype("<i4"), "uint_contents": np.dtype("<u4")}


class Contents(Protocol):
    """The elements of one input, in one of the forms in which the protocol carries them."""

    def array(self, element: DType, shape: tuple[int, ...], grow: Callable[[int], object]) -> np.ndarray:
        """Return the elements as an array of `shape` (strings: an `object` array of `bytes`).

        `grow` is called with the bytes that the array takes beside the request, before it is made, and may raise. Raise
        ServingError (INVALID_ARGUMENT) if the elements do not fit the type or the shape.
        """
        ...


def _element_count(shape: Sequence[int], element: DType) -> int:
    """Return the number of elements of a tensor. Raise ServingError (INVALID_ARGUMENT) for a shape that cannot be.

    Like TensorFlow, numpy also refuses an empty array whose other dimensions overflow.
    """
    if len(shape) > MAX_RANK:
        raise refusal(f"the shape has {len(shape)} dimensions, of which at most {MAX_RANK} are supported")
    if any(size < 0 for size in shape):
        raise refusal(f"the shape {list(shape)} has a negative dimension", "give the sizes of what is sent")
    if math.prod(filter(None, shape)) * element.numpy.itemsize >= 2**63:
        raise refusal(f"the shape {list(shape)} is too large")
    return math.prod(shape)


@dataclass(frozen=True, slots=True)
class RawContents:
    """Binary contents: the bytes of `buffer` in [start, stop)."""

    buffer: bytes
    start: int
    stop: int

    def array(self, element: DType, shape: tuple[int, ...], grow: Callable[[int], object]) -> np.ndarray:
        """Return the elements; an array of numbers is a view of the request's bytes."""
        count = _element_count(shape, element)
        nbytes = self.stop - self.start
        if element is STRING:
            grow(nbytes)
            return self._strings(count).reshape(shape)
        if nbytes != count * element.numpy.itemsize:
            raise refusal(
                f"{nbytes:,} bytes were sent, but the shape {list(shape)} of {datatype(element)} takes "
                f"{count * element.numpy.itemsize:,}"
            )
        if not count:
            return np.empty(shape, element.numpy)
        flat = np.frombuffer(self.buffer, element.numpy, count, self.start)
        if element.name == "bool" and flat.view(np.uint8).max() > 1:
            raise refusal("a BOOL has a byte that is neither 0 nor 1")
        return flat.reshape(shape)

    def _strings(self, count: int) -> np.ndarray:
        """Return the strings. Raise ServingError unless there are `count`, with nothing before, between or after."""
        if count > MAX_STRINGS:
            raise refusal(f"{count:,} BYTES elements are more than {MAX_STRINGS:,}", "send them in several requests")
        if self.stop - self.start < _LENGTH.size * count:  # before the array is made, which is as long as is said
            raise refusal(
                f"{self.stop - self.start:,} bytes are too few for {count:,} BYTES elements and their lengths"
            )
        strings = np.empty(count, object)
        position = self.start
        unpack = _LENGTH.unpack_from
        for index in range(count):
            if position + _LENGTH.size > self.stop:
                raise refusal(f"the BYTES end before the length of element {index} of {count}")
            (length,) = unpack(self.buffer, position)
            position += _LENGTH.size
            if length > self.stop - position:
                raise refusal(
                    f"BYTES element {index} should have {length:,} bytes, of which {self.stop - position:,} are there",
                    "each element is its length as 4 bytes, little-endian, and then that many bytes",
                )
            strings[index] = self.buffer[position : position + length]
            position += length
        if position != self.stop:
            raise refusal(f"{self.stop - position:,} bytes follow the last of {count} BYTES elements")
        return strings


@dataclass(frozen=True, slots=True)
class JsonContents:
    """The `data` of JSON: a flat list of all elements, or lists that nest as the shape does."""

    data: Any

    def array(self, element: DType, shape: tuple[int, ...], grow: Callable[[int], object]) -> np.ndarray:
        """Return the elements."""
        count = _element_count(shape, element)
        spec = TensorSpec(element.name, None)
        if type(self.data) is not list:
            raise refusal("data is no list")
        if not supports(spec):
            raise refusal(f"{datatype(element)} is no type of the protocol", "use TensorFlow Serving's gRPC API")
        values = tensor(self.data, spec)
        if values is None:
            raise refusal(
                f"data has a value that is no {datatype(element)}, or its lists have different lengths",
                "send a flat list of all elements in row-major order",
            )
        grow(values.nbytes)
        if values.shape == shape:
            return values
        if values.ndim != 1 or values.size != count:
            raise refusal(
                f"data has the shape {list(values.shape)}, but the shape {list(shape)} is stated",
                "send a flat list of all elements, or lists that nest as the shape does",
            )
        return values.reshape(shape)


@dataclass(frozen=True, slots=True)
class TypedContents:
    """The typed lists of gRPC: an `inference.InferTensorContents` message."""

    message: Any

    def array(self, element: DType, shape: tuple[int, ...], grow: Callable[[int], object]) -> np.ndarray:
        """Return the elements."""
        count = _element_count(shape, element)
        field = _LISTS.get(element.name)
        if field is None:
            raise refusal(f"{datatype(element)} has no typed contents", "send raw_input_contents")
        for other, elements in self.message.ListFields():
            if other.name != field:
                raise refusal(
                    f"{len(elements)} elements are in {other.name}; those of {datatype(element)} go in {field}"
                )
        elements = getattr(self.message, field)
        if len(elements) != count:
            raise refusal(f"{field} has {len(elements):,} elements, but the shape {list(shape)} has {count:,}")
        grow(count * element.numpy.itemsize)
        values = np.empty(count, element.numpy)
        if field in _LISTED:
            wide = np.fromiter(elements, _LISTED[field], count)
            limits = np.iinfo(element.numpy)
            if count and (wide.min() < limits.min or wide.max() > limits.max):
                raise refusal(f"{field} has a number that is no {datatype(element)}")
            values[:] = wide
        else:
            values[:] = elements
        return values.reshape(shape)


def check_has_type(array: np.ndarray) -> None:
    """Raise ServingError (UNIMPLEMENTED) for an array of a type that the protocol does not have: complex numbers."""
    if array.dtype.kind == "c":
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"The protocol has no type for {array.dtype.name}",
            "use TensorFlow Serving's gRPC API for this model",
        )


def raw_contents(array: np.ndarray) -> bytes | memoryview:
    """Return an array's binary contents, which may be its own memory. Raise ServingError as `check_has_type` does."""
    check_has_type(array)
    if array.dtype.kind == "O":
        pack = _LENGTH.pack
        return b"".join([part for value in array.ravel().tolist() for part in (pack(len(value)), value)])
    if not array.size:
        return b""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
