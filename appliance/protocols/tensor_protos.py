"""TensorProto, from bytes to arrays and back.

A large tensor arrives as `tensor_content` or as one packed list of floats. Both are the little-endian array itself, so
these forms are walked here and sliced without a copy (602 KB: 5 µs; through the parsed message's `float_val` 3.3 ms).
The walk knows only those forms. Everything else, malformed bytes included, goes to protobuf's own parser, which decides
what is valid; numpy decoded and encoded lists of varints no faster.

Format: TensorFlow's `Tensor::FromProto` (`tensorflow/core/framework/tensor.cc`). Strings are object arrays of `bytes`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from appliance.core.errors import Code, ServingError
from appliance.core.limits import MAX_STRINGS
from appliance.protocols import protos
from appliance.protocols.wire_format import UnusualError, checked_fields, fields, long_varint, varint
from backends.dtypes import BY_NUMBER, STRING, DType, of_array

__all__ = [
    "BadTensorError",
    "Elements",
    "allowance_of",
    "decode_tensor",
    "elements_of",
    "encoded_tensor",
    "invalid",
    "read_tensor",
]

# The arrays of one request take at most this many bytes, or this multiple of the request's own size if that is more. A
# short `*_val` repeats its last element up to the shape's size, so a few bytes could ask for terabytes. A list of
# elements grows at most eightfold (int64 from one byte each), so only such repetition can reach the bound.
EXPANDED_BYTES = 64 << 20
_EXPANDED_MULTIPLE = 16

_SMALL_BYTES = 1 << 17  # a smaller tensor cannot have so many fields that it matters
_MAX_SHAPE_BYTES = 1 << 16  # dimensions may have names
_FEW_FIELDS = 4096
_MAX_FIELDS = 1 << 20

_COPIED_BYTES = 1024  # of so few, a copy costs less than a view

_MAX_RANK = 64  # numpy's limit; TensorFlow's is 254

_INT_VAL = ("int_val", np.dtype("<i4"))
_HALF_VAL = ("half_val", np.dtype("<i4"))

# A dtype's number in DataType → its field in TensorProto, and the element type of that field.
_FIELDS: dict[int, tuple[str, np.dtype]] = {
    1: ("float_val", np.dtype("<f4")),
    2: ("double_val", np.dtype("<f8")),
    3: _INT_VAL,
    4: _INT_VAL,
    5: _INT_VAL,
    6: _INT_VAL,
    7: ("string_val", np.dtype(object)),
    8: ("scomplex_val", np.dtype("<f4")),
    9: ("int64_val", np.dtype("<i8")),
    10: ("bool_val", np.dtype("?")),
    14: _HALF_VAL,
    17: _INT_VAL,
    18: ("dcomplex_val", np.dtype("<f8")),
    19: _HALF_VAL,
    22: ("uint32_val", np.dtype("<u4")),
    23: ("uint64_val", np.dtype("<u8")),
}

# A tag is the field's number << 3 | the wire type: 0 for a varint, 2 for a length and that many bytes.
_DTYPE, _SHAPE, _VERSION_NUMBER, _CONTENT, _STRING_VAL, _BOOL_VAL = 0x08, 0x12, 0x18, 0x22, 0x42, 0x5A  # TensorProto
_PACKED = {1: 0x2A, 2: 0x32, 8: 0x4A, 18: 0x62}  # dtype's number → the list that is the array's memory
_MEMORY = frozenset((_CONTENT, *_PACKED.values()))


class BadTensorError(Exception):
    """An error in one tensor; the caller adds the tensor's name."""


class Elements(NamedTuple):
    """Where the memory of an array lies in a request: `count` elements from byte `start` on."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def nbytes(self) -> int:
        """Their size."""
        return self.size * self.dtype.itemsize


def invalid(message: str) -> ServingError:
    """Return an INVALID_ARGUMENT error."""
    return ServingError(Code.INVALID_ARGUMENT, message)


def allowance_of(data: bytes) -> int:
    """Return the most bytes that the arrays of the request `data` may take."""
    return max(EXPANDED_BYTES, _EXPANDED_MULTIPLE * len(data))


def decode_tensor(data: bytes) -> np.ndarray:
    """Return the array of one serialized TensorProto. Raise ServingError (INVALID_ARGUMENT)."""
    try:
        return read_tensor(data, 0, len(data), allowance_of(data))[0]
    except BadTensorError as error:
        raise invalid(f"tensor parsing error: {error}") from error


def read_tensor(
    data: bytes, start: int, stop: int, allowance: int, grow: Callable[[int], object] = lambda _: None
) -> tuple[np.ndarray, int]:
    """Return the array of the TensorProto at [start, stop), and its share of `allowance` in bytes.

    `grow` is called with the bytes of an array that is not a view of `data`, before it is made, and may raise. Raise
    BadTensorError.
    """
    if stop - start > _SMALL_BYTES:
        _check_fields(data, start, stop)
    try:
        number, shape_span, held, (elements_start, elements_stop) = _walk_tensor(data, start, stop)
        shape = protos.TensorShapeProto.FromString(data[slice(*shape_span)])
    except (UnusualError, IndexError, DecodeError):
        try:
            message = protos.TensorProto.FromString(data[start:stop])
        except DecodeError as error:
            raise BadTensorError(f"could not parse tensorflow.TensorProto: {error}") from error
        element = _element(message.dtype)
        dims, size = _dims(message.tensor_shape, element, allowance)
        grow(size * element.numpy.itemsize)
        content = message.tensor_content
        if not size:
            values = np.empty(0, element.numpy)
        elif content:
            values = _from_content(content, 0, len(content), element, size)
        else:
            values = _from_list(message, element, size)
    else:
        element = _element(number)
        dims, size = _dims(shape, element, allowance)
        # Without elements, TensorFlow ignores the values, and numpy refuses to view an empty buffer.
        if held and held != _CONTENT:  # a list is checked also if nothing of it is wanted
            values = _from_packed(data, elements_start, elements_stop, element, size)
        elif not size or elements_start == elements_stop:
            values = np.empty(0, element.numpy)
        else:
            values = _from_content(data, elements_start, elements_stop, element, size)
    if len(values) == size:
        return values.reshape(dims), values.nbytes
    return _repeated(values, size, allowance, dims, grow)


def elements_of(data: bytes, start: int, stop: int) -> Elements | None:
    """Return where the elements of the TensorProto at [start, stop) lie, if `read_tensor` returns a view of just these
    bytes, whatever they are; else None."""
    try:
        number, shape_span, held, (elements_start, elements_stop) = _walk_tensor(data, start, stop)
        shape = protos.TensorShapeProto.FromString(data[slice(*shape_span)])
        element = _element(number)
        dims, size = _dims(shape, element, elements_stop - elements_start)
    except (UnusualError, IndexError, DecodeError, BadTensorError):
        return None
    is_memory = held == _CONTENT or (held and held == _PACKED.get(number))
    if not is_memory or element is STRING or element.name == "bool" or not size:  # bools are looked at
        return None
    if elements_stop - elements_start != size * element.numpy.itemsize:
        return None
    return Elements(element.numpy, dims, elements_start, size)


def _check_fields(data: bytes, start: int, stop: int) -> None:
    """Raise BadTensorError for a shape or a tensor of so many fields that parsing them would take memory and time.

    A dimension is two bytes, and 50 once it is parsed.
    """
    try:
        shape_bytes = _shape_bytes(data, start, stop, _FEW_FIELDS)
    except ValueError:
        # Many strings, perhaps. Without the bytes of a shape's and a string's tag, there is none to be afraid of.
        codes = np.frombuffer(data, np.uint8, stop - start, start) & 0x7F
        many_strings = np.count_nonzero(codes == _STRING_VAL) > MAX_STRINGS
        if np.count_nonzero(codes == _SHAPE) < _MAX_SHAPE_BYTES and not many_strings:
            return
        try:
            shape_bytes = _shape_bytes(data, start, stop, _MAX_FIELDS)
        except ValueError:
            remedy = "send numbers as tensor_content or packed, and strings in several requests"
            raise BadTensorError(f"the tensor has more than {_MAX_FIELDS:,} fields; {remedy}") from None
    if shape_bytes > _MAX_SHAPE_BYTES:
        raise BadTensorError(f"the shape takes {shape_bytes:,} bytes, of which at most {_MAX_SHAPE_BYTES:,} are taken")


def _shape_bytes(data: bytes, start: int, stop: int, limit: int) -> int:
    """Return the size of the shape of the TensorProto at [start, stop), which has at most `limit` fields."""
    try:
        return sum(
            field_stop - field_start
            for number, field_start, field_stop in checked_fields(data, start, stop, limit)
            if number == _SHAPE >> 3
        )
    except (UnusualError, IndexError):
        raise BadTensorError("could not parse tensorflow.TensorProto") from None


def _walk_tensor(data: bytes, start: int, stop: int) -> tuple[int, tuple[int, int], int, tuple[int, int]]:
    """Return the dtype's number, the place of the shape, and tag and place of the content or the dtype's list.

    Raise UnusualError for other forms.
    """
    number = held = 0
    shape = elements = (0, 0)
    for tag, value, value_stop in fields(data, start, stop):
        if tag == _DTYPE and not number and value < 2**31:  # protobuf takes the lowest 32 bits of others
            number = value
        elif tag == _SHAPE and not shape[1]:
            shape = value, value_stop
        elif tag in _MEMORY and not held:
            held = tag
            elements = value, value_stop
        elif tag != _VERSION_NUMBER or value:  # it is always 0
            raise UnusualError
    if held and held not in (_CONTENT, _PACKED.get(number)):
        raise UnusualError  # another dtype's list is ignored, but must be valid
    return number, shape, held, elements


def _element(number: int) -> DType:
    element = BY_NUMBER.get(number)
    if element is None:
        known = protos.DataType.values()
        raise BadTensorError(f"dtype {protos.DataType.Name(number) if number in known else number} is not supported")
    return element


def _dims(shape: Any, element: DType, allowance: int) -> tuple[tuple[int, ...], int]:
    """Return the dimensions of a TensorShapeProto and their product. Raise BadTensorError if they exceed `allowance`.

    `unknown_rank` is ignored, as in TensorFlow: a tensor's shape is its dimensions, and a scalar has none.
    """
    if len(shape.dim) > _MAX_RANK:
        raise BadTensorError(f"the shape has {len(shape.dim)} dimensions, of which at most {_MAX_RANK} are supported")
    dims = tuple([dim.size for dim in shape.dim])
    size = math.prod(dims)
    if dims and min(dims) < 0:
        raise BadTensorError(f"the shape {list(dims)} has a negative dimension")
    # Like TensorFlow, numpy also refuses an empty array whose other dimensions overflow.
    if size == 0 and math.prod(filter(None, dims)) * element.numpy.itemsize >= 2**63:
        raise BadTensorError(f"the shape {list(dims)} is too large")
    if element is STRING and size > MAX_STRINGS:
        raise BadTensorError(
            f"the shape {list(dims)} has {size:,} strings, more than {MAX_STRINGS:,}; send them in several requests"
        )
    if size * element.numpy.itemsize > allowance:
        raise BadTensorError(
            f"the shape {list(dims)} takes more than the {allowance} bytes left for this request's arrays "
            f"({_EXPANDED_MULTIPLE} times its size, and at least {EXPANDED_BYTES})"
        )
    return dims, size


def _from_content(data: bytes, start: int, stop: int, element: DType, size: int) -> np.ndarray:
    if element is STRING:
        return _from_string_content(data[start:stop], size)
    if stop - start != size * element.numpy.itemsize:
        raise BadTensorError(
            f"tensor_content has {stop - start} bytes, the shape and dtype ask for {size * element.numpy.itemsize}"
        )
    array = np.frombuffer(data, element.numpy, size, start)
    if element.name == "bool" and size and array.view(np.uint8).max() > 1:
        raise BadTensorError("tensor_content of bool has a byte that is neither 0 nor 1")
    return array


def _from_string_content(content: bytes, size: int) -> np.ndarray:
    """Return the strings in `content`: all lengths as varints, then all bytes.

    Format: `DecodeStringList` in TensorFlow's `tensor_coding.cc`.
    """
    lengths = []
    position = 0
    try:
        for _ in range(size):
            length = content[position]
            position += 1
            if length >= 0x80:
                length, position = long_varint(content, position, length)
            lengths.append(length)
    except (IndexError, UnusualError) as error:
        raise BadTensorError(f"tensor_content of string has no lengths for {size} strings") from error
    if sum(lengths) != len(content) - position:
        raise BadTensorError("tensor_content of string does not match its lengths")
    values = np.empty(size, object)
    for i, length in enumerate(lengths):
        values[i] = content[position : position + length]
        position += length
    return values


def _from_packed(data: bytes, start: int, stop: int, element: DType, size: int) -> np.ndarray:
    """Return the first `size` elements, or all if they are fewer, of a list that is the array's memory."""
    field, listed = _FIELDS[element.number]
    if (stop - start) % listed.itemsize:
        raise BadTensorError(f"{field} has {stop - start} bytes, not a multiple of its elements'")
    count = min((stop - start) // element.numpy.itemsize, size)  # half of a complex number is ignored
    return np.frombuffer(data, element.numpy, count, start) if count else np.empty(0, element.numpy)


def _from_list(message: Any, element: DType, size: int) -> np.ndarray:
    """Return the first `size` elements, or all if they are fewer, of the list for `element` in a parsed TensorProto.

    The other lists are ignored.
    """
    field, listed = _FIELDS[element.number]
    elements = getattr(message, field)
    parts = 2 if element.numpy.kind == "c" else 1
    values = np.fromiter(elements, listed, min(len(elements) // parts, size) * parts)
    if element.numpy.kind == "c":
        return values.view(element.numpy)
    if field == "half_val":
        return values.astype("<u2").view(element.numpy)
    return values.astype(element.numpy, copy=False)  # int_val wraps in a narrower type, as in TensorFlow


def _repeated(
    values: np.ndarray, size: int, allowance: int, dims: tuple[int, ...], grow: Callable[[int], object]
) -> tuple[np.ndarray, int]:
    """Return `values` with the last one repeated up to `size`; if there are none, zeros or empty strings."""
    count = len(values)
    last: Any = values[-1] if count else b"" if values.dtype == object else 0
    used = size * values.itemsize
    if values.dtype == object:
        # The copies share memory here, but each is written out on the way to the worker.
        used += (size - count) * len(last)
        if used > allowance:
            raise BadTensorError(f"a string of {len(last)} bytes repeated {size - count} times is too large")
    grow(used)
    array = np.empty(size, values.dtype)
    array[:count] = values
    array[count:] = last
    return array.reshape(dims), used


def encoded_tensor(array: np.ndarray, tensor_content: bool) -> tuple[bytes, bytes | memoryview]:
    """Return a TensorProto in two parts: the start, and the elements, which may be the array's own memory."""
    try:
        element = of_array(array)
    except KeyError as error:
        raise ServingError(Code.INTERNAL, f"the API does not carry arrays of {array.dtype}") from error
    head, is_memory = _head(element.number, array.shape, array.nbytes, tensor_content)
    if array.size == 0:
        return head, b""
    if not is_memory:
        flat = array.reshape(-1)
        field, _ = _FIELDS[element.number]
        elements = (flat.view("<u2") if field == "half_val" else flat).tolist()
        return head, protos.TensorProto(**{field: elements}).SerializeToString()
    if array.nbytes <= _COPIED_BYTES:
        return head, array.tobytes()
    return head, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@functools.lru_cache(256)
def _head(number: int, shape: tuple[int, ...], nbytes: int, tensor_content: bool) -> tuple[bytes, bool]:
    """Return the start of a TensorProto of `nbytes` bytes in memory, and whether these follow; if not, a list does.

    Cached, because most answers of a model have the same shapes.
    """
    sizes = [varint(size) for size in shape]
    encoded = b"".join([b"\x12%c\x08%b" % (len(size) + 1, size) for size in sizes])
    head = b"%c%c%c%b%b" % (_DTYPE, number, _SHAPE, varint(len(encoded)), encoded)
    tag = _PACKED.get(number)
    if number != STRING.number and tensor_content:
        tag = _CONTENT
    elif BY_NUMBER[number].name == "bool":
        tag = _BOOL_VAL  # a packed bool is one byte, 0 or 1, as in memory
    if tag is None or 0 in shape:
        return head, False
    return head + b"%c%b" % (tag, varint(nbytes)), True
