"""Predict's messages and TensorProto, from bytes to arrays and back.

A large tensor arrives as `tensor_content` or as one packed list of floats, which both are the little-endian array
itself, so the forms that carry one are walked here and sliced without a copy (602 KB: 5 µs; through the parsed
message's `float_val` 3.3 ms). The walk knows only those forms. Whatever else arrives, malformed bytes included, goes
to protobuf's own parser, which is the judge of what is valid; numpy decoded and encoded lists of varints no faster.

Formats: https://protobuf.dev/programming-guides/encoding and TensorFlow's `Tensor::FromProto`
(`tensorflow/core/framework/tensor.cc`). Strings are object arrays of `bytes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec
from appliance.protocols import protos
from backends.dtypes import BY_NUMBER, STRING, DType, of_array

__all__ = [
    "PredictEnvelope",
    "PredictMessage",
    "decode_predict_request",
    "decode_tensor",
    "encode_predict_response",
    "encode_tensor",
    "model_spec",
    "open_predict_request",
]

# The arrays of one request take at most this many bytes, or this multiple of the request's own size where that is
# more. A short `*_val` repeats its last element up to the shape's size, so a few bytes could ask for terabytes. No list
# of elements grows more than eightfold (int64 from one byte each), so only such repetition can meet the bound.
EXPANDED_BYTES = 64 << 20
EXPANDED_MULTIPLE = 16

MAX_RANK = 64  # numpy's; TensorFlow's is 254

_INT_VAL = ("int_val", np.dtype("<i4"))
_HALF_VAL = ("half_val", np.dtype("<i4"))

# By a dtype's number in DataType: its field in TensorProto, and the elements of that field.
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

# A tag is the field's number << 3 | the wire type: 0 a varint, 2 a length and that many bytes.
_MODEL_SPEC, _INPUT, _OUTPUT_FILTER = 0x0A, 0x12, 0x1A  # PredictRequest
_OUTPUT, _RESPONSE_SPEC = 0x0A, 0x12  # PredictResponse
_KEY, _VALUE = 0x0A, 0x12  # an entry of a map
_DTYPE, _SHAPE, _VERSION_NUMBER, _CONTENT, _BOOL_VAL = 0x08, 0x12, 0x18, 0x22, 0x5A  # TensorProto
_PACKED = {1: 0x2A, 2: 0x32, 8: 0x4A, 18: 0x62}  # by dtype: the lists that are the array's memory
_MEMORY = frozenset((_CONTENT, *_PACKED.values()))


class PredictMessage(NamedTuple):
    """A PredictRequest. The arrays of `inputs` may be read-only, unaligned views that keep the request's bytes alive;
    an empty `output_filter` asks for every output."""

    spec: ModelSpec
    signature_name: str
    inputs: dict[str, np.ndarray]
    output_filter: tuple[str, ...]


class PredictEnvelope:
    """A PredictRequest whose tensors are not yet read: TensorFlow Serving looks the model up first, and so an unknown
    model is NOT_FOUND whatever is wrong with its inputs."""

    __slots__ = ("_allowance", "_tensors", "output_filter", "signature_name", "spec")

    def __init__(
        self, spec: Any, tensors: dict[str, tuple[bytes, int, int]], output_filter: tuple[str, ...], allowance: int
    ) -> None:
        self.spec = model_spec(spec)
        self.signature_name: str = spec.signature_name
        self.output_filter = output_filter
        self._tensors = tensors
        self._allowance = allowance

    @property
    def names(self) -> Set[str]:
        """The names of the inputs."""
        return self._tensors.keys()

    def arrays(self) -> dict[str, np.ndarray]:
        """The inputs; see PredictMessage. Raises ServingError (INVALID_ARGUMENT)."""
        allowance = self._allowance
        inputs = {}
        for name, (buffer, start, stop) in self._tensors.items():
            try:
                array, used = _tensor(buffer, start, stop, allowance)
            except _BadTensorError as error:
                raise _invalid(f"tensor parsing error: {name}: {error}") from error
            inputs[name] = array
            allowance -= used
        return inputs


def open_predict_request(data: bytes) -> PredictEnvelope:
    """Reads all of a serialized PredictRequest but its tensors. Raises ServingError (INVALID_ARGUMENT)."""
    try:
        spec, tensors, output_filter = _walk_request(data)
    except (_UnusualError, IndexError, UnicodeDecodeError):
        request = _parse(protos.PredictRequest, data)
        spec = request.model_spec if request.HasField("model_spec") else None
        # Serialized anew, each tensor is in the form that the walk knows.
        encoded = {name: tensor.SerializeToString() for name, tensor in request.inputs.items()}
        tensors = {name: (tensor, 0, len(tensor)) for name, tensor in encoded.items()}
        output_filter = tuple(request.output_filter)
    if spec is None:
        raise _invalid("Missing ModelSpec")
    return PredictEnvelope(spec, tensors, output_filter, _allowance(data))


def decode_predict_request(data: bytes) -> PredictMessage:
    """Reads a serialized PredictRequest; raises ServingError (INVALID_ARGUMENT) whatever is wrong with it."""
    envelope = open_predict_request(data)
    return PredictMessage(envelope.spec, envelope.signature_name, envelope.arrays(), envelope.output_filter)


def decode_tensor(data: bytes) -> np.ndarray:
    """Reads one serialized TensorProto, as `decode_predict_request` reads each of its inputs."""
    try:
        return _tensor(data, 0, len(data), _allowance(data))[0]
    except _BadTensorError as error:
        raise _invalid(f"tensor parsing error: {error}") from error


def model_spec(message: Any) -> ModelSpec:
    """What a `protos.ModelSpec` asks for."""
    if not message.name:
        raise _invalid("ModelSpec has no name specified.")
    version = message.version.value if message.HasField("version") else None
    return ModelSpec(message.name, version, message.version_label)


def encode_predict_response(
    model: str,
    version: int,
    signature_name: str,
    outputs: Mapping[str, np.ndarray],
    tensor_content: bool = False,
) -> bytes:
    """The serialized PredictResponse; fields in the order of their numbers, outputs in the order of `outputs`.

    `tensor_content` writes numeric arrays as their memory, rather than into the lists that every client reads.
    """
    parts: list[bytes | memoryview] = []
    for name, array in outputs.items():
        head, elements = _encoded(array, tensor_content)
        key = name.encode()
        key = b"%c%b%b" % (_KEY, _varint(len(key)), key)
        size = len(head) + len(elements)
        value = b"%c%b" % (_VALUE, _varint(size))
        parts += (b"%c%b" % (_OUTPUT, _varint(len(key) + len(value) + size)), key, value, head, elements)
    spec = protos.ModelSpec(name=model, signature_name=signature_name)
    spec.version.value = version
    encoded = spec.SerializeToString(deterministic=True)
    parts += (b"%c%b" % (_RESPONSE_SPEC, _varint(len(encoded))), encoded)
    return b"".join(parts)


def encode_tensor(array: np.ndarray, tensor_content: bool = False) -> bytes:
    """The serialized TensorProto of `array`, which may have any layout in memory."""
    return b"".join(_encoded(array, tensor_content))


# Reading


class _UnusualError(Exception):
    """The walk met what it does not know: protobuf's parser has to look."""


class _BadTensorError(Exception):
    """What is wrong with one tensor, to be told with its name."""


def _invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)


def _allowance(data: bytes) -> int:
    return max(EXPANDED_BYTES, EXPANDED_MULTIPLE * len(data))


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise _invalid(f"could not parse {kind.DESCRIPTOR.full_name}: {error}") from error


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message at [position, end): (tag, start, stop) for bytes, (tag, value, _) for a varint.

    Fields above 15 and fixed-width ones are unusual here. Running off the data is an IndexError.
    """
    while position < end:
        tag = data[position]
        value = data[position + 1]
        position += 2
        if value >= 0x80:
            value, position = _long_varint(data, position, value)
        kind = tag & 0x87
        if kind == 2:
            stop = position + value
            if stop > end:
                raise _UnusualError
            yield tag, position, stop
            position = stop
        elif kind == 0 and position <= end:
            yield tag, value, position
        else:
            raise _UnusualError


def _long_varint(data: bytes, position: int, first: int) -> tuple[int, int]:
    """The varint whose first byte was `first`, and the position after it."""
    value = first & 0x7F
    for shift in range(7, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _UnusualError


def _walk_request(data: bytes) -> tuple[Any, dict[str, tuple[bytes, int, int]], tuple[str, ...]]:
    """The ModelSpec message, where each input's TensorProto lies, and the output filter."""
    spec = None
    tensors: dict[str, tuple[bytes, int, int]] = {}
    output_filter: list[str] = []
    for tag, start, stop in _fields(data, 0, len(data)):
        if tag == _INPUT:
            name, value_start, value_stop = "", 0, 0
            for entry_tag, entry_start, entry_stop in _fields(data, start, stop):
                if entry_tag == _KEY:
                    name = data[entry_start:entry_stop].decode()
                elif entry_tag == _VALUE and not value_stop:
                    value_start, value_stop = entry_start, entry_stop
                else:
                    raise _UnusualError
            tensors[name] = data, value_start, value_stop
        elif tag == _MODEL_SPEC and spec is None:
            spec = _parse(protos.ModelSpec, data[start:stop])
        elif tag == _OUTPUT_FILTER:
            output_filter.append(data[start:stop].decode())
        else:
            raise _UnusualError
    return spec, tensors, tuple(output_filter)


def _tensor(data: bytes, start: int, stop: int, allowance: int) -> tuple[np.ndarray, int]:
    """The array of the TensorProto at [start, stop), and how much of `allowance`, in bytes, it takes."""
    try:
        number, shape_span, held, (elements_start, elements_stop) = _walk_tensor(data, start, stop)
        shape = protos.TensorShapeProto.FromString(data[slice(*shape_span)])
    except (_UnusualError, IndexError, DecodeError):
        try:
            message = protos.TensorProto.FromString(data[start:stop])
        except DecodeError as error:
            raise _BadTensorError(f"could not parse tensorflow.TensorProto: {error}") from error
        element = _element(message.dtype)
        dims, size = _dims(message.tensor_shape, element, allowance)
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
        # Without elements TensorFlow looks at no values; and numpy refuses to view an empty buffer.
        if not size or elements_start == elements_stop:
            values = np.empty(0, element.numpy)
        elif held == _CONTENT:
            values = _from_content(data, elements_start, elements_stop, element, size)
        else:
            values = _from_packed(data, elements_start, elements_stop, element, size)
    if len(values) == size:
        return values.reshape(dims), values.nbytes
    return _repeated(values, size, allowance, dims)


def _walk_tensor(data: bytes, start: int, stop: int) -> tuple[int, tuple[int, int], int, tuple[int, int]]:
    """The dtype's number, where the shape lies, and the tag and the place of the content or of the dtype's list."""
    number = held = 0
    shape = elements = (0, 0)
    for tag, value, value_stop in _fields(data, start, stop):
        if tag == _DTYPE:
            number = value
        elif tag == _SHAPE and not shape[1]:
            shape = value, value_stop
        elif tag in _MEMORY and not held:
            held = tag
            elements = value, value_stop
        elif tag != _VERSION_NUMBER:
            raise _UnusualError
    if held and held not in (_CONTENT, _PACKED.get(number)):
        raise _UnusualError  # another dtype's list counts for nothing, but has to be valid
    return number, shape, held, elements


def _element(number: int) -> DType:
    element = BY_NUMBER.get(number)
    if element is None:
        known = protos.DataType.values()
        raise _BadTensorError(f"dtype {protos.DataType.Name(number) if number in known else number} is not supported")
    return element


def _dims(shape: Any, element: DType, allowance: int) -> tuple[tuple[int, ...], int]:
    """The dimensions of a TensorShapeProto, and their product; refuses what no array within `allowance` has.

    `unknown_rank` is not looked at, as in TensorFlow: the shape of a tensor is its dimensions, a scalar's without any.
    """
    if len(shape.dim) > MAX_RANK:
        raise _BadTensorError(f"the shape has {len(shape.dim)} dimensions, of which at most {MAX_RANK} are supported")
    dims = tuple([dim.size for dim in shape.dim])
    size = math.prod(dims)
    if dims and min(dims) < 0:
        raise _BadTensorError(f"the shape {list(dims)} has a negative dimension")
    # numpy, as TensorFlow, also refuses an empty array whose other dimensions overflow.
    if size == 0 and math.prod(filter(None, dims)) * element.numpy.itemsize >= 2**63:
        raise _BadTensorError(f"the shape {list(dims)} is too large")
    if size * element.numpy.itemsize > allowance:
        raise _BadTensorError(
            f"the shape {list(dims)} takes more than the {allowance} bytes left for this request's arrays "
            f"({EXPANDED_MULTIPLE} times its size, and at least {EXPANDED_BYTES})"
        )
    return dims, size


def _from_content(data: bytes, start: int, stop: int, element: DType, size: int) -> np.ndarray:
    if element is STRING:
        return _from_string_content(data[start:stop], size)
    if stop - start != size * element.numpy.itemsize:
        raise _BadTensorError(
            f"tensor_content has {stop - start} bytes, the shape and dtype ask for {size * element.numpy.itemsize}"
        )
    array = np.frombuffer(data, element.numpy, size, start)
    if element.name == "bool" and size and array.view(np.uint8).max() > 1:
        raise _BadTensorError("tensor_content of bool has a byte that is neither 0 nor 1")
    return array


def _from_string_content(content: bytes, size: int) -> np.ndarray:
    """All the lengths as varints, then all the strings (`DecodeStringList` in TensorFlow's `tensor_coding.cc`)."""
    lengths = []
    position = 0
    try:
        for _ in range(size):
            length = content[position]
            position += 1
            if length >= 0x80:
                length, position = _long_varint(content, position, length)
            lengths.append(length)
    except (IndexError, _UnusualError) as error:
        raise _BadTensorError(f"tensor_content of string has no lengths for {size} strings") from error
    if sum(lengths) != len(content) - position:
        raise _BadTensorError("tensor_content of string does not match its lengths")
    values = np.empty(size, object)
    for i, length in enumerate(lengths):
        values[i] = content[position : position + length]
        position += length
    return values


def _from_packed(data: bytes, start: int, stop: int, element: DType, size: int) -> np.ndarray:
    """The first `size` elements of a list that is the array's memory, or all, if they are fewer."""
    field, listed = _FIELDS[element.number]
    if (stop - start) % listed.itemsize:
        raise _BadTensorError(f"{field} has {stop - start} bytes, not a multiple of its elements'")
    count = min((stop - start) // element.numpy.itemsize, size)  # half of a complex number counts for nothing
    return np.frombuffer(data, element.numpy, count, start) if count else np.empty(0, element.numpy)


def _from_list(message: Any, element: DType, size: int) -> np.ndarray:
    """The first `size` elements of the list that belongs to `element`, or all, if they are fewer, from a parsed
    TensorProto; the other lists are ignored."""
    field, listed = _FIELDS[element.number]
    elements = getattr(message, field)
    parts = 2 if element.numpy.kind == "c" else 1
    values = np.fromiter(elements, listed, min(len(elements) // parts, size) * parts)
    if element.numpy.kind == "c":
        return values.view(element.numpy)
    if field == "half_val":
        return values.astype("<u2").view(element.numpy)
    return values.astype(element.numpy, copy=False)  # int_val to a narrower type wraps, as in TensorFlow


def _repeated(values: np.ndarray, size: int, allowance: int, dims: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """`values` with the last one repeated up to `size`; without any, zeros or empty strings."""
    count = len(values)
    last: Any = values[-1] if count else b"" if values.dtype == object else 0
    used = size * values.itemsize
    if values.dtype == object:
        # The copies share memory here, but are written out each on their way to the worker.
        used += (size - count) * len(last)
        if used > allowance:
            raise _BadTensorError(f"a string of {len(last)} bytes repeated {size - count} times is too large")
    array = np.empty(size, values.dtype)
    array[:count] = values
    array[count:] = last
    return array.reshape(dims), used


# Writing


def _varint(value: int) -> bytes:
    if value < 0x80:
        return b"%c" % value
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _encoded(array: np.ndarray, tensor_content: bool) -> tuple[bytes, bytes | memoryview]:
    """A TensorProto in two parts: all up to its elements, and the elements, which may be the array's own memory."""
    try:
        element = of_array(array)
    except KeyError as error:
        raise ServingError(Code.INTERNAL, f"the API does not carry arrays of {array.dtype}") from error
    sizes = [_varint(size) for size in array.shape]
    shape = b"".join([b"\x12%c\x08%b" % (len(size) + 1, size) for size in sizes])
    head = b"%c%c%c%b%b" % (_DTYPE, element.number, _SHAPE, _varint(len(shape)), shape)
    if array.size == 0:
        return head, b""
    if element is not STRING and tensor_content:
        tag = _CONTENT
    elif element.name == "bool":
        tag = _BOOL_VAL  # a packed bool is one byte, 0 or 1, in memory too
    elif element.number in _PACKED:
        tag = _PACKED[element.number]
    else:
        flat = array.reshape(-1)
        field, _ = _FIELDS[element.number]
        elements = (flat.view("<u2") if field == "half_val" else flat).tolist()
        return head, protos.TensorProto(**{field: elements}).SerializeToString()
    return head + b"%c%b" % (tag, _varint(array.nbytes)), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
