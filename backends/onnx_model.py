"""Check without ONNX Runtime whether an ONNX file and its files of weights are complete; they may be hostile.

ONNX Runtime decides what can be loaded. This module finds only two things: evidence that a copy is not finished, and
the files of weights that can be handed over in memory. What it does not understand counts as unknown.

Sources of the formats: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and its docs/ExternalData.md.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from backends.contract import BackendError, Code, IncompleteError
from backends.reading import BYTES, VARINT, Reader, open_file

FILE = "model.onnx"

# Protobuf's own limit for a message.
_MAX_BYTES = (1 << 31) - 1

# Bounds for hostile files. Protobuf's parsers stop at 100 nested messages.
_MAX_DEPTH = 100
_MAX_RANK = 64
_MAX_EXTERNAL_FILES = 10_000  # the most that are mapped and checked

_Kind: TypeAlias = "dict[int, _Kind]"
"""The fields of a message that hold messages to walk → their kind. A graph contains graphs."""

_LEAF: _Kind = {}
_TENSOR: _Kind = {13: _LEAF}  # external_data
_SPARSE_TENSOR: _Kind = {1: _TENSOR, 2: _TENSOR}  # values, indices
_ATTRIBUTE: _Kind = {5: _TENSOR, 10: _TENSOR, 22: _SPARSE_TENSOR, 23: _SPARSE_TENSOR}
_NODE: _Kind = {5: _ATTRIBUTE}
# node, initializer, input, output, value_info, sparse_initializer
_GRAPH: _Kind = {1: _NODE, 5: _TENSOR, 11: {2: _LEAF}, 12: {2: _LEAF}, 13: _LEAF, 15: _SPARSE_TENSOR}
_ATTRIBUTE |= {6: _GRAPH, 11: _GRAPH}
_FUNCTION: _Kind = {7: _NODE, 11: _ATTRIBUTE}
# graph, opset_import, metadata_props, functions
_MODEL: _Kind = {7: _GRAPH, 8: _LEAF, 14: _LEAF, 25: _FUNCTION}

# TensorProto.DataType → the bits of an element, for weights without a stated length.
_BITS = (
    {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
    | dict.fromkeys((17, 18, 19, 20, 24), 8)
    | dict.fromkeys((21, 22, 23), 4)
)


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file in memory.

    `weights` has the contents of the files that it names, by the names that it uses; `without_shape` its inputs and
    outputs without a declared shape. `path` is set if ONNX Runtime must read the file and its weights by itself: some
    weights cannot be handed over, or something was not understood. `doubt` says what looks unfinished or wrong, if
    anything.
    """

    content: bytes
    weights: Mapping[str, mmap.mmap]
    without_shape: frozenset[str]
    path: str | None = None
    doubt: str = ""


@dataclass(slots=True)
class _Found:
    """The result of a walk.

    `external` is the least length of each file of weights; `by_path`: not everything can be handed over in memory, see
    `OnnxModel`.
    """

    external: dict[str, int] = field(default_factory=dict)
    without_shape: set[str] = field(default_factory=set)
    by_path: bool = False


def check_complete(path: str, name: str = FILE) -> None:
    """Return if the file `name` in the folder `path` and its weights look complete to ONNX Runtime.

    Raise IncompleteError, which says what is missing, also for damage, because a file that is being written looks the
    same. Zeros inside of weights cannot be told from weights. Raise BackendError for what a finished copy cannot mend
    and ONNX Runtime refuses too, such as weights outside of the folder.
    """
    try:
        with open_file(path, name) as reader:
            found = _Found()
            _inspect(reader, found)
        for location, size in sorted(found.external.items()):
            with _open_weights(path, name, location, size):
                pass
    except OSError as error:  # a disk or a mount that fails between open and read
        raise IncompleteError(f"{name} cannot be read: {error.strerror}") from error


def read(path: str, name: str = FILE) -> OnnxModel:
    """Return the model to load; its `doubt` says what looks unfinished.

    The weights beside the file are mapped. ONNX Runtime copies what it takes of them, so drop them after loading. Raise
    IncompleteError if the file itself cannot be read, and BackendError like `check_complete`.
    """
    found = _Found()
    weights: dict[str, mmap.mmap] = {}
    doubt = ""
    try:
        with open_file(path, name) as reader:
            if reader.size > _MAX_BYTES:
                raise _too_large(reader)
            content = reader.read(0, reader.size)
    except OSError as error:
        raise IncompleteError(f"{name} cannot be read: {error.strerror}") from error
    try:
        _inspect(Reader(io.BytesIO(content), name, len(content)), found)
        for location, size in sorted(found.external.items()):
            with _open_weights(path, name, location, size) as reader:
                if reader.size:
                    weights[location] = reader.mapped()
    except IncompleteError as error:
        doubt = str(error)
    except OSError as error:
        doubt = f"{name} cannot be read: {error.strerror}"
    by_path = found.by_path or bool(doubt)
    return OnnxModel(
        content,
        {} if by_path else weights,
        frozenset(found.without_shape),
        os.path.join(path, name) if by_path else None,
        doubt,
    )


def _too_large(reader: Reader) -> BackendError:
    return BackendError(
        Code.INVALID_ARGUMENT,
        f"{reader.name} has {reader.size:,} bytes; an ONNX file has at most {_MAX_BYTES:,}: export it with its weights "
        "in a file beside it (external data)",
    )


def _inspect(reader: Reader, found: _Found) -> None:
    """Walk the whole file, within the bounds for hostile ones."""
    if reader.size > _MAX_BYTES:
        raise _too_large(reader)
    try:
        _look(reader, found)
    except BackendError as error:
        if error.code is not Code.RESOURCE_EXHAUSTED:
            raise
        found.by_path = True  # too much to check: the rest is unknown


def _look(reader: Reader, found: _Found) -> None:
    fields = list(reader.fields(0, reader.size))
    ir_version = next((value for number, kind, value, _ in fields if (number, kind) == (1, VARINT)), 0)
    graphs = [(value, stop) for number, kind, value, stop in fields if (number, kind) == (7, BYTES)]
    has_opset = any((number, kind) == (8, BYTES) for number, kind, _, _ in fields)
    if not ir_version or not graphs or (ir_version >= 3 and not has_opset):
        missing = "ir_version" if not ir_version else "graph" if not graphs else "opset_import"
        raise IncompleteError(
            f"{reader.name} has {reader.size:,} bytes, but no {missing}: it is cut off, or no ONNX model"
        )
    for graph in graphs:
        for number, kind, start, end in list(reader.fields(*graph)):
            if number in (11, 12) and kind == BYTES:
                name, has_shape = _value_info(reader, start, end)
                if not has_shape:
                    found.without_shape.add(name)
    _walk(reader, 0, reader.size, _MODEL, 0, found)


def _walk(reader: Reader, start: int, end: int, kind: _Kind, depth: int, found: _Found) -> None:
    if depth > _MAX_DEPTH:
        raise BackendError(
            Code.INVALID_ARGUMENT, f"{reader.name} has graphs in one another, more than {_MAX_DEPTH} messages deep"
        )
    for number, wire_type, value, stop in reader.fields(start, end):
        if number not in kind or wire_type != BYTES:
            continue
        if kind[number] is _TENSOR:
            # From memory, ONNX Runtime 1.26 takes only the initializers of the outermost graph.
            _check_tensor(reader, value, stop, found, in_memory=kind is _GRAPH and number == 5 and depth == 1)
        else:
            _walk(reader, value, stop, kind[number], depth + 1, found)


def _check_tensor(reader: Reader, start: int, end: int, found: _Found, *, in_memory: bool) -> None:
    """Check a TensorProto: dims 1, data_type 2, external_data 13 (key 1, value 2), data_location 14 (EXTERNAL is 1).

    `in_memory`: ONNX Runtime would take its weights from memory.
    """
    data_type = data_location = 0
    dims: list[int] = []
    entries: list[tuple[int, int]] = []
    for number, wire_type, value, stop in reader.fields(start, end):
        if (number, wire_type) == (1, VARINT):
            dims.append(value)
        elif (number, wire_type) == (1, BYTES):
            dims += _packed(reader, value, stop)
        elif (number, wire_type) == (2, VARINT):
            data_type = value
        elif (number, wire_type) == (13, BYTES):
            entries.append((value, stop))
        elif (number, wire_type) == (14, VARINT):
            data_location = value
        if len(dims) > _MAX_RANK or len(entries) > _MAX_RANK:
            found.by_path = True
            return
    if data_location != 1:
        return
    about = dict(_entry(reader, *entry) for entry in entries)
    location = about.get("location", "")
    if not in_memory or not _is_plain(location):
        found.by_path = True
    if not location or "\0" in location:
        return
    size = _number(reader, about, "offset")
    if "length" in about:
        size += _number(reader, about, "length")
    else:
        elements = 1
        for dim in dims:
            elements *= dim
        size += (elements * _BITS.get(data_type, 0) + 7) // 8
    found.external[location] = max(found.external.get(location, 0), size)
    if len(found.external) > _MAX_EXTERNAL_FILES:
        raise BackendError(
            Code.RESOURCE_EXHAUSTED, f"{reader.name} has weights in more than {_MAX_EXTERNAL_FILES:,} files"
        )


def _is_plain(location: str) -> bool:
    """Return whether ONNX Runtime finds weights by this name in memory.

    It changes names such as "./w.bin" before it looks them up. "*" starts its marks for weights that are in memory
    already, whose offset it would take for an address.
    """
    return (
        location.isprintable()
        and "*" not in location
        and "\\" not in location
        and not any(part in ("", ".", "..") for part in location.split("/"))
    )


def _packed(reader: Reader, at: int, end: int) -> list[int]:
    numbers: list[int] = []
    while at < end and len(numbers) <= _MAX_RANK:
        numbers += reader.varints(at, 1)
        at = reader.position()
    return numbers


def _entry(reader: Reader, start: int, end: int) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for number, wire_type, value, stop in reader.fields(start, end):
        if number in texts and wire_type == BYTES:
            texts[number] = _text(reader, value, stop)
    return texts[1], texts[2]


def _text(reader: Reader, start: int, end: int) -> str:
    return reader.read(start, end - start).decode("utf-8", "surrogateescape")


def _number(reader: Reader, about: Mapping[str, str], key: str) -> int:
    """Return the number `key` of a file's extent.

    Raise BackendError for anything else, which ONNX Runtime refuses too.
    """
    text = about.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BackendError(Code.INVALID_ARGUMENT, f"{reader.name} has weights with the {key} {text[:100]!r}")
    return int(text)


def _value_info(reader: Reader, start: int, end: int) -> tuple[str, bool]:
    """Return a ValueInfoProto's name 1, and whether its type 2 is a tensor (1) with a shape (2)."""
    name, has_shape = "", False
    for number, wire_type, value, stop in list(reader.fields(start, end)):
        if (number, wire_type) == (1, BYTES):
            name = _text(reader, value, stop)
        elif (number, wire_type) == (2, BYTES):
            for tensor in list(reader.messages(value, stop, 1)):
                has_shape |= any(reader.messages(*tensor, 2))
    return name, has_shape


def _open_weights(path: str, name: str, location: str, size: int) -> Reader:
    """Open a file of weights of at least `size` bytes.

    As for ONNX Runtime, it must lie in the folder, or in the folder that a link from the model's own file leads to
    (where Hugging Face's cache has all files); a link may lead to no other place. Raise IncompleteError or
    BackendError.
    """
    if os.path.isabs(location) or os.path.normpath(location).split("/")[0] == "..":
        raise BackendError(
            Code.INVALID_ARGUMENT,
            f"{name} has weights in a file of a forbidden name: {location!r}; they must be in the folder of the model, "
            "and their name must say so",
        )
    place = os.path.realpath(os.path.join(path, location))
    roots = {os.path.realpath(path), os.path.dirname(os.path.realpath(os.path.join(path, name)))}
    if not any(place.startswith(os.path.join(root, "")) for root in roots):
        raise BackendError(
            Code.INVALID_ARGUMENT, f"{name} has weights in {location}, which leads out of the folder: copy them into it"
        )
    reader = open_file(path, location)
    if reader.size < size:
        with reader:
            raise IncompleteError(f"{location} has {reader.size:,} of {size:,} bytes")
    return reader
