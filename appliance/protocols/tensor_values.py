"""The array of a parsed TensorProto, for what is read once, as warm-up requests are. Requests of clients, where
speed counts, are decoded from their bytes (`appliance.protocols.tensor_protos`).

Source: TensorFlow's `Tensor::FromProto` (`tensorflow/core/framework/tensor.cc`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from appliance.core.errors import Code, ServingError
from appliance.protocols import protos
from backends.dtypes import BY_NUMBER, STRING, DType

__all__ = ["array_of"]

# A short list repeats its last element up to the shape's size, so a few bytes could ask for terabytes.
EXPANDED_BYTES = 64 << 20
EXPANDED_MULTIPLE = 16
MAX_RANK = 64  # numpy's

_LISTS = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "string": "string_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
    "float16": "half_val",
    "bfloat16": "half_val",
}  # all others: int_val


def array_of(message: Any) -> np.ndarray:
    """The array of a `protos.TensorProto`. Raises ServingError (INVALID_ARGUMENT)."""
    element = BY_NUMBER.get(message.dtype)
    if element is None:
        known = protos.DataType.values()
        name = protos.DataType.Name(message.dtype) if message.dtype in known else message.dtype
        raise _invalid(f"dtype {name} is not supported")
    dims = [dim.size for dim in message.tensor_shape.dim]
    if len(dims) > MAX_RANK or min(dims, default=0) < 0:
        raise _invalid(f"{dims} is not the shape of an array")
    size = math.prod(dims)
    allowed = max(EXPANDED_BYTES, EXPANDED_MULTIPLE * message.ByteSize())
    if size * element.numpy.itemsize > allowed or math.prod(filter(None, dims)) * element.numpy.itemsize >= 2**63:
        raise _invalid(f"the shape {dims} takes more than {allowed:,} bytes")
    content = message.tensor_content
    if not size:
        values = np.empty(0, element.numpy)  # TensorFlow looks at no values then
    elif content and element is STRING:
        values = _strings(content, size)
    elif content:
        if len(content) != size * element.numpy.itemsize:
            raise _invalid(f"tensor_content has {len(content):,} bytes, the shape {dims} and dtype ask for others")
        values = np.frombuffer(content, element.numpy)
        if element.name == "bool" and values.view(np.uint8).max() > 1:
            raise _invalid("tensor_content of bool has a byte that is neither 0 nor 1")
    else:
        values = _listed(message, element, size)
    if element is STRING and len(values) and (size - len(values)) * len(values[-1]) > allowed:
        raise _invalid(f"a string of {len(values[-1]):,} bytes, repeated up to the shape {dims}, is too large")
    array = np.empty(size, element.numpy)
    array[: len(values)] = values
    array[len(values) :] = values[-1] if len(values) else b"" if element is STRING else 0
    return array.reshape(dims)


def _listed(message: Any, element: DType, size: int) -> np.ndarray:
    """The first `size` elements of the list that belongs to `element`, or all, if they are fewer."""
    elements = getattr(message, _LISTS.get(element.name, "int_val"))
    if element.numpy.kind == "c":
        part = np.dtype("<f4") if element.name == "complex64" else np.dtype("<f8")
        return np.fromiter(elements, part, 2 * min(len(elements) // 2, size)).view(element.numpy)
    count = min(len(elements), size)
    if element is STRING:
        return np.fromiter(elements, object, count)
    if element.name in ("float16", "bfloat16"):
        return np.fromiter(elements, np.dtype("<i4"), count).astype("<u2").view(element.numpy)
    listed = element.numpy if element.name in _LISTS else np.dtype("<i4")
    return np.fromiter(elements, listed, count).astype(element.numpy)  # narrower types wrap, as in TensorFlow


def _strings(content: bytes, size: int) -> np.ndarray:
    """All the lengths as varints, then all the strings (`DecodeStringList` in TensorFlow's `tensor_coding.cc`)."""
    lengths, at = [], 0
    for _ in range(size):
        length = shift = 0
        more = True
        while more:
            if at == len(content) or shift > 63:
                raise _invalid(f"tensor_content of string has no lengths for {size} strings")
            length |= (content[at] & 0x7F) << shift
            more = content[at] >= 0x80
            shift += 7
            at += 1
        lengths.append(length)
    if sum(lengths) != len(content) - at:
        raise _invalid("tensor_content of string does not match its lengths")
    values = np.empty(size, object)
    for index, length in enumerate(lengths):
        values[index] = content[at : at + length]
        at += length
    return values


def _invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, f"tensor parsing error: {message}")
