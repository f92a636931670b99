"""Check without LiteRT whether a TensorFlow Lite file is complete, and read its metadata; it may be hostile.

Sources of the formats: https://flatbuffers.dev/internals (FlatBuffers and FlexBuffers); `schema.fbs` of TensorFlow Lite
(LiteRT: `tflite/schema/schema.fbs`); `tensorflow/lite/tools/signature/signature_def_util.h`;
`tensorflow/core/protobuf/meta_graph.proto`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from backends.contract import BackendError, Code, IncompleteError
from backends.reading import BYTES, VARINT, Reader, open_file

FILE = "model.tflite"

_IDENTIFIER = b"TFL3"
_SIGNATURES = b"signature_defs_metadata"
_VERSION = 3

# Offsets are signed 32-bit numbers, so tables end below this. Larger files have weights after it.
_MAX_TABLE_BYTES = 1 << 31

# A bound for hostile files, in which a million references may lead to one table; LiteRT's own verifier has the same.
# Pure Python walks about 300,000 tables a second; large real graphs have some 100,000.
_MAX_TABLES = 1_000_000


@dataclass(frozen=True, slots=True)
class _Vector:
    """A vector of numbers, or a string, with elements of that size."""

    element_bytes: int
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class _Tables:
    """A vector of tables of this kind."""

    fields: _Table


# By field number. Numeric fields of a table are not listed: they lie inside the bytes that a walk checks.
_Table: TypeAlias = "Mapping[int, _Vector | _Tables | _Table]"

_STRING = _Vector(1, is_text=True)
_BYTE_VECTOR = _Vector(1)
_INT_VECTOR = _Vector(4)
_ANY: _Table = {}  # a table of an unknown kind, such as builtin options
_OPERATOR_CODE: _Table = {1: _STRING}
_QUANTIZATION: _Table = {0: _INT_VECTOR, 1: _INT_VECTOR, 2: _INT_VECTOR, 3: _Vector(8), 5: _ANY}
_SPARSITY: _Table = {0: _INT_VECTOR, 1: _INT_VECTOR, 2: _Tables(_ANY)}
_TENSOR: _Table = {0: _INT_VECTOR, 3: _STRING, 4: _QUANTIZATION, 6: _SPARSITY, 7: _INT_VECTOR, 9: _Tables(_ANY)}
_OPERATOR: _Table = {
    1: _INT_VECTOR,
    2: _INT_VECTOR,
    4: _ANY,
    5: _BYTE_VECTOR,
    7: _BYTE_VECTOR,
    8: _INT_VECTOR,
    12: _ANY,
}
_SUBGRAPH: _Table = {
    0: _Tables(_TENSOR),
    1: _INT_VECTOR,
    2: _INT_VECTOR,
    3: _Tables(_OPERATOR),
    4: _STRING,
}
_BUFFER: _Table = {0: _BYTE_VECTOR}
_METADATA: _Table = {0: _STRING}
_TENSOR_MAP: _Table = {0: _STRING}
_SIGNATURE_DEF: _Table = {0: _Tables(_TENSOR_MAP), 1: _Tables(_TENSOR_MAP), 2: _STRING}
_MODEL: _Table = {
    1: _Tables(_OPERATOR_CODE),
    2: _Tables(_SUBGRAPH),
    3: _STRING,
    4: _Tables(_BUFFER),
    5: _INT_VECTOR,
    6: _Tables(_METADATA),
    7: _Tables(_SIGNATURE_DEF),
}


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor by its name. If it `has_shape`, `shape` is the signature's shape, None if the rank is unknown."""

    name: str
    has_shape: bool = False
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class NamedSignature:
    """A signature of the metadata: its aliases of tensors."""

    inputs: Mapping[str, NamedTensor]
    outputs: Mapping[str, NamedTensor]
    method_name: str


def check_complete(path: str, name: str = FILE) -> None:
    """Return if the file `name` in the folder `path` looks like a complete model to LiteRT.

    Raise IncompleteError, which says what is missing, also for damage, because a file that is being written looks the
    same. Zeros inside of weights cannot be told from weights. Raise BackendError for what a finished copy cannot mend.
    """
    try:
        with open_file(path, name) as reader:
            data = reader.read(0, min(reader.size, _MAX_TABLE_BYTES))
            size = reader.size
    except OSError as error:  # a disk or a mount that fails between open and read
        raise IncompleteError(f"{name} cannot be read: {error.strerror}") from error
    _FlatBuffer(data, size, name).check()


def read(path: str, name: str = FILE) -> bytes:
    """Return the bytes of the whole file, to be loaded. Raise IncompleteError, BackendError.

    It is not mapped, as LiteRT would do with a path: overwriting a mapped file changes, or kills, a running model.
    """
    with open_file(path, name) as reader:
        return reader.read(0, reader.size)


def signatures_in_metadata(data: bytes) -> dict[str, NamedSignature]:
    """Return the SignatureDefs that tools of TensorFlow Serving write as metadata, by key; most models have none.

    `data` is a file that has passed `check_complete`. Raise BackendError if they cannot be read.
    """
    serialized = _FlatBuffer(data, len(data)).metadata(_SIGNATURES)
    if serialized is None:
        return {}
    from flatbuffers import flexbuffers  # noqa: PLC0415 - only for such models

    try:
        root = flexbuffers.GetRoot(bytearray(serialized)).AsMap
        found = {
            key.AsKeyBytes.decode(): value.AsStringBytes for key, value in zip(root.Keys, root.Values, strict=True)
        }
        return {key: _parse_signature(key, value) for key, value in found.items()}
    except IncompleteError as error:
        raise BackendError(Code.INVALID_ARGUMENT, f"Invalid SignatureDefs found in TfLite model: {error}") from error
    except Exception as error:  # the exceptions of its reader on damaged bytes are not specified
        raise BackendError(
            Code.INVALID_ARGUMENT,
            f"Invalid SignatureDefs found in TfLite model: {type(error).__name__}: {error}",
        ) from error


class _FlatBuffer:
    """A model's tables. `size` is the file's, of which `data` may be only the beginning."""

    def __init__(self, data: bytes, size: int, name: str = FILE) -> None:
        self._name = name
        self._data = data
        self._size = size
        self._tables_left = _MAX_TABLES

    def check(self) -> None:
        """Raise IncompleteError unless every table, vector and string is inside of the file."""
        if self._size < 8:
            raise IncompleteError(f"{self._name} is cut off: it has {self._size:,} bytes")
        if self._data[4:8] != _IDENTIFIER:
            raise IncompleteError(
                f"{self._name} is damaged, not written yet, or no TensorFlow Lite model: its bytes 4 to 7 are "
                f"{self._data[4:8]!r}, not {_IDENTIFIER!r}"
            )
        root = self._follow(0)
        self._walk(root, _MODEL)
        at = self._field(root, 0)
        version = 0 if at is None else self._uint32(at)
        if version == 0:
            raise self._damaged(root, "the version of the schema is missing")
        if version != _VERSION:
            raise BackendError(
                Code.UNIMPLEMENTED,
                f"{self._name} is of schema version {version}; only {_VERSION} can be served: convert again",
            )
        subgraphs = self._field(root, 2)
        if subgraphs is None or not self._vector(subgraphs, 4)[1]:
            raise IncompleteError(f"{self._name} has {self._size:,} bytes, but no graph")

    def metadata(self, name: bytes) -> bytes | None:
        """Return the bytes of the metadata entry `name`; None if there is none."""
        root = self._follow(0)
        entries, buffers = self._field(root, 6), self._field(root, 4)
        if entries is None or buffers is None:
            return None
        first_buffer, buffer_count = self._vector(buffers, 4)
        start, count = self._vector(entries, 4)
        for index in range(count):
            entry = self._follow(start + 4 * index)
            title = self._field(entry, 0)
            if title is None or self._bytes(title) != name:
                continue
            at = self._field(entry, 1)
            number = 0 if at is None else self._uint32(at)
            if number >= buffer_count:
                raise BackendError(
                    Code.INVALID_ARGUMENT, f"{self._name}: metadata names buffer {number} of {buffer_count} buffers"
                )
            content = self._field(self._follow(first_buffer + 4 * number), 0)
            return b"" if content is None else self._bytes(content)
        return None

    def _walk(self, table: int, kind: _Table) -> None:
        self._tables_left -= 1
        if self._tables_left < 0:
            raise BackendError(Code.RESOURCE_EXHAUSTED, f"{self._name} has more than {_MAX_TABLES:,} tables")
        self._field(table, 0)
        for number, field in kind.items():
            at = self._field(table, number)
            if at is None:
                continue
            if isinstance(field, _Vector):
                start, count = self._vector(at, field.element_bytes)
                # A file that was allocated but not yet written has zeros somewhere.
                if field.is_text and count and not self._data[start + count - 1]:
                    raise self._damaged(start, "a text of zeros")
            elif isinstance(field, _Tables):
                start, count = self._vector(at, 4)
                for index in range(count):
                    self._walk(self._follow(start + 4 * index), field.fields)
            else:
                self._walk(self._follow(at), field)
        if kind is _BUFFER:
            self._check_outside(table)

    def _check_outside(self, buffer: int) -> None:
        """Check weights that are not in a table, but after the last one."""
        at, length_at = self._field(buffer, 1), self._field(buffer, 2)
        if at is None or length_at is None:
            return
        (offset,) = self._unpack("<Q", at)
        (length,) = self._unpack("<Q", length_at)
        if offset > 1 and offset + length > self._size:  # 1 is a placeholder
            raise self._cut_off(offset + length)

    def _field(self, table: int, number: int) -> int | None:
        """Return the position of the field `number` of the table at `table`; None for the default. Check the table."""
        (back,) = self._unpack("<i", table)
        layout = table - back
        if layout < 0 or back == 0:
            raise self._damaged(table, "no table begins there")
        layout_bytes, table_bytes = self._unpack("<HH", layout)
        if layout_bytes < 4 or layout_bytes % 2 or table_bytes < 4:
            raise self._damaged(layout, "no table's layout begins there")
        if max(layout + layout_bytes, table + table_bytes) > len(self._data):
            raise self._cut_off(max(layout + layout_bytes, table + table_bytes))
        entry = 4 + 2 * number
        if entry >= layout_bytes:
            return None
        (offset,) = self._unpack("<H", layout + entry)
        if offset >= table_bytes:
            raise self._damaged(layout + entry, "a field is outside of its table")
        return table + offset if offset else None

    def _vector(self, at: int, element_bytes: int) -> tuple[int, int]:
        """Return the position of the first element of the vector that `at` refers to, and the number of elements."""
        start = self._follow(at)
        count = self._uint32(start)
        end = start + 4 + count * element_bytes
        if end > len(self._data):
            raise self._cut_off(end)
        return start + 4, count

    def _bytes(self, at: int) -> bytes:
        start, count = self._vector(at, 1)
        return self._data[start : start + count]

    def _follow(self, at: int) -> int:
        offset = self._uint32(at)
        if offset < 4:
            raise self._damaged(at, "a reference leads nowhere")
        return at + offset

    def _uint32(self, at: int) -> int:
        return int(self._unpack("<I", at)[0])

    def _unpack(self, form: str, at: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(form, self._data, at)
        except struct.error:
            raise self._cut_off(at + struct.calcsize(form)) from None

    def _cut_off(self, needed: int) -> IncompleteError:
        return IncompleteError(f"{self._name} is cut off at byte {self._size:,}, before byte {needed:,}")

    def _damaged(self, at: int, what: str) -> IncompleteError:
        return IncompleteError(f"{self._name} is damaged, or not written yet, at byte {at:,} of {self._size:,}: {what}")


def _parse_signature(key: str, data: bytes) -> NamedSignature:
    """Return the signature in a serialized SignatureDef: inputs 1, outputs 2 (maps to TensorInfo), method_name 3."""
    reader = Reader(io.BytesIO(data), f"signature {key!r}", len(data))
    sides: tuple[dict[str, NamedTensor], dict[str, NamedTensor]] = ({}, {})
    for side, number in zip(sides, (1, 2), strict=True):
        for entry in list(reader.messages(0, len(data), number)):
            side[_parse_text(reader, *entry, 1)] = _parse_tensor(reader, *entry)
    return NamedSignature(*sides, _parse_text(reader, 0, len(data), 3))


def _parse_tensor(reader: Reader, start: int, end: int) -> NamedTensor:
    """Return the tensor in the TensorInfo (field 2) of a map's entry: name 1, tensor_shape 3."""
    name, has_shape, shape = "", False, None
    for info in list(reader.messages(start, end, 2)):
        name = _parse_text(reader, *info, 1)
        for message in list(reader.messages(*info, 3)):
            has_shape, shape = True, _parse_shape(reader, *message)
    return NamedTensor(name, has_shape, shape)


def _parse_text(reader: Reader, start: int, end: int, number: int) -> str:
    """Return the string in the field `number` of a message; the last one counts."""
    found = list(reader.messages(start, end, number))
    return reader.read(found[-1][0], found[-1][1] - found[-1][0]).decode() if found else ""


def _parse_shape(reader: Reader, start: int, end: int) -> tuple[int, ...] | None:
    """Return the shape in a TensorShapeProto: dim 2 (size 1), unknown_rank 3."""
    dimensions: list[int] = []
    for number, wire_type, value, stop in reader.fields(start, end):
        if number == 3 and wire_type == VARINT and value:
            return None
        if number == 2 and wire_type == BYTES:
            sizes: Sequence[int] = [
                n for field, kind, n, _ in reader.fields(value, stop) if (field, kind) == (1, VARINT)
            ]
            size = sizes[-1] if sizes else 0
            dimensions.append(size - (1 << 64) if size >> 63 else size)
    return tuple(dimensions)
