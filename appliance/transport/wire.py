"""The frames that travel between a front and a worker over a Unix stream socket. Pure: bytes in, frames out.

    frame   = header, meta, payload
    header  = magic "ds", kind u8, flags u8, meta bytes u32, payload bytes u64, request id u64, deadline u64
    table   = count u16, count × (name bytes u16, name, dtype u8, rank u8, rank × dimension i64, data bytes u64)

All integers are little-endian. A deadline is in nanoseconds of CLOCK_MONOTONIC (one clock for all processes of a
machine); 0 means none. A payload is the arrays' data in the table's order, each starting at a multiple of 64 bytes
(TensorFlow feeds aligned memory without a copy). The data of a string array is the lengths of its elements (u32 each),
then their bytes. With FLAG_SHARED the payload lies in a shared-memory segment instead of the stream, and the meta
starts with the segment's id (u32); with FLAG_DESCRIPTOR the segment's descriptor comes with the frame.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from backends.dtypes import BY_NUMBER, BY_NUMPY, STRING, DType

_MAGIC = b"ds"
HEADER = struct.Struct("<2sBBIQQQ")
SEGMENT_ID = struct.Struct("<I")
FLAG_SHARED = 1
FLAG_DESCRIPTOR = 2
FLAG_DRAINING = 4  # on an ERROR: not run, because the worker is shutting down; ask another worker
FLAG_UNPROVEN = 8  # on an ERROR: not run, because the form was not proven for such inputs; ask TensorFlow

MAX_META_BYTES = 16 * 1024 * 1024
ALIGNMENT = 64
_BUFFER_BYTES = 256 * 1024
_SMALL = 16 * 1024

_HEAD_BYTES = struct.Struct("<I")
LENGTH_BYTES = 4  # of a string, beside its bytes
_MAX_KEPT_BYTES = 1024  # the largest head that is cached: clients choose the heads

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """The kinds of frames, and the contents of their meta."""

    PREDICT = 1  # front → worker: meta = signature and wanted outputs, table
    RESULT = 2  # worker → front: meta = table
    ERROR = 3  # worker → front: meta = code u8, message
    CANCEL = 4  # front → worker: the client of this request id has gone
    RELEASE = 5  # front → worker: the segment in the meta has been read
    FORGET = 6  # either way: unmap the segment in the meta
    GOODBYE = 7  # worker → front: no more frames are read; a request without an answer by now did not run


class WireError(Exception):
    """The peer sent bytes that are not a valid frame; the connection must be closed."""


class Frame(NamedTuple):
    """One frame. `payload` is None if it lies in shared memory; `payload_bytes` is its size in either case."""

    kind: int
    flags: int
    request_id: int
    deadline_ns: int
    meta: bytes
    payload: Buffer | None
    payload_bytes: int


class Packed(NamedTuple):
    """Arrays ready to send: their table, and (offset, data) chunks of a payload of `payload_bytes`."""

    table: bytes
    chunks: list[tuple[int, Buffer]]
    payload_bytes: int


def header(
    kind: Kind, meta_bytes: int, payload_bytes: int, request_id: int = 0, deadline_ns: int = 0, flags: int = 0
) -> bytes:
    """Return a frame's header. `deadline_ns` is in CLOCK_MONOTONIC nanoseconds; 0 means none."""
    return HEADER.pack(_MAGIC, kind, flags, meta_bytes, payload_bytes, request_id, deadline_ns)


def pack_arrays(arrays: Iterable[tuple[str, np.ndarray]]) -> Packed:
    """Return the table and payload chunks of the named arrays. The chunks may refer to the arrays' own memory."""
    entries: list[bytes] = []
    chunks: list[tuple[int, Buffer]] = []
    offset = 0
    for name, array in arrays:
        dtype = BY_NUMPY[array.dtype]
        if dtype is STRING:
            data: Buffer = _pack_strings(array)
        elif array.nbytes <= _SMALL:
            data = array.tobytes()
        else:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        nbytes = len(data)
        encoded = name.encode()
        rank = array.ndim
        entries.append(
            struct.pack(f"<H{len(encoded)}sBB{rank}qQ", len(encoded), encoded, dtype.number, rank, *array.shape, nbytes)
        )
        offset = -(-offset // ALIGNMENT) * ALIGNMENT
        chunks.append((offset, data))
        offset += nbytes
    return Packed(struct.pack("<H", len(entries)) + b"".join(entries), chunks, offset)


def _pack_strings(array: np.ndarray) -> bytes:
    values: list[bytes] = array.reshape(-1).tolist()
    lengths = np.fromiter((len(value) for value in values), dtype="<u4", count=len(values))
    return lengths.tobytes() + b"".join(values)


def inline(packed: Packed) -> list[Buffer]:
    """Return the chunks as consecutive buffers, with padding between them."""
    if len(packed.chunks) == 1:
        return [packed.chunks[0][1]]
    buffers: list[Buffer] = []
    position = 0
    for offset, data in packed.chunks:
        if offset > position:
            buffers.append(bytes(offset - position))
        buffers.append(data)
        position = offset + len(data)
    return buffers


def small_frame(kind: Kind, request_id: int, meta: bytes, packed: Packed, deadline_ns: int) -> list[Buffer]:
    """Return a frame whose arrays go through the stream, as consecutive buffers."""
    return [header(kind, len(meta), packed.payload_bytes, request_id, deadline_ns) + meta, *inline(packed)]


def unpack_arrays(table: Buffer, payload: Buffer) -> dict[str, np.ndarray]:
    """Return the named arrays of a table and its payload.

    Numeric arrays are views of `payload`; strings are bytes objects. Raise WireError if the table does not describe the
    payload.
    """
    table = bytes(table)
    layout = _layout(table) if len(table) <= _MAX_KEPT_BYTES else _layout.__wrapped__(table)
    arrays: dict[str, np.ndarray] = {}
    try:
        for name, dtype, shape, offset, nbytes in layout:
            if offset + nbytes > len(payload):
                raise WireError(f"array {name!r} ends beyond its payload")
            if dtype is STRING:
                arrays[name] = _unpack_strings(memoryview(payload)[offset : offset + nbytes], shape)
            elif nbytes:
                count = nbytes // dtype.numpy.itemsize
                arrays[name] = np.frombuffer(payload, dtype.numpy, count, offset).reshape(shape)
            else:
                arrays[name] = np.empty(0, dtype.numpy).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise WireError(f"a table that does not fit its payload: {error}") from error
    return arrays


@functools.lru_cache(256)
def _layout(table: bytes) -> tuple[tuple[str, DType, tuple[int, ...], int, int], ...]:
    """Return name, element type, shape, offset in the payload and size in bytes of each array. Raise WireError.

    Cached, because most requests to a model have the same table, and parsing it takes most of the time of unpacking.
    """
    found = []
    try:
        (count,) = struct.unpack_from("<H", table)
        position, offset = 2, 0
        for _ in range(count):
            (name_bytes,) = struct.unpack_from("<H", table, position)
            position += 2
            name = table[position : position + name_bytes].decode()
            position += name_bytes
            number, rank = table[position], table[position + 1]
            *shape, nbytes = struct.unpack_from(f"<{rank}qQ", table, position + 2)
            position += 2 + 8 * rank + 8
            if min(shape, default=0) < 0:
                raise WireError(f"array {name!r} has a negative dimension")
            dtype = BY_NUMBER[number]
            if dtype is not STRING and nbytes % dtype.numpy.itemsize:
                raise WireError(f"array {name!r} has a broken element")
            offset = -(-offset // ALIGNMENT) * ALIGNMENT
            found.append((name, dtype, tuple(shape), offset, nbytes))
            offset += nbytes
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise WireError(f"a table that cannot be read: {error}") from error
    return tuple(found)


def count_strings(table: Buffer) -> int:
    """Return how many strings the arrays of a table have. Raise WireError."""
    return sum(math.prod(shape) for _, number, shape in table_shapes(table) if number == STRING.number)


def table_shapes(table: Buffer) -> list[tuple[str, int, tuple[int, ...]]]:
    """Return name, element type number and shape of each array of a table, without its payload. Raise WireError."""
    found: list[tuple[str, int, tuple[int, ...]]] = []
    try:
        (count,) = struct.unpack_from("<H", table)
        position = 2
        for _ in range(count):
            (name_bytes,) = struct.unpack_from("<H", table, position)
            position += 2
            name = bytes(table[position : position + name_bytes]).decode()
            position += name_bytes
            number, rank = table[position], table[position + 1]
            found.append((name, number, struct.unpack_from(f"<{rank}q", table, position + 2)))
            position += 2 + 8 * rank + 8
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise WireError(f"a table that cannot be read: {error}") from error
    return found


def _unpack_strings(data: memoryview, shape: Sequence[int]) -> np.ndarray:
    count = 1
    for dimension in shape:
        count *= dimension
    if count < 0 or 4 * count > len(data):
        raise WireError("a string array with more lengths than data")
    lengths = np.frombuffer(data, "<u4", count).tolist() if count else []
    if 4 * count + sum(lengths) != len(data):
        raise WireError("a string array whose lengths do not add up")
    array = np.empty(count, object)
    position = 4 * count
    for index, length in enumerate(lengths):
        array[index] = bytes(data[position : position + length])
        position += length
    return array.reshape(shape)


def predict_meta(signature: str, outputs: Sequence[str], table: bytes) -> bytes:
    """Return the meta of a PREDICT frame."""
    head = b"\0".join([signature.encode(), *(name.encode() for name in outputs)])
    return struct.pack("<I", len(head)) + head + table


def parse_predict_meta(meta: Buffer) -> tuple[str, list[str], Buffer]:
    """Return the signature, the wanted outputs and the table of a PREDICT frame's meta. Raise WireError."""
    try:
        (size,) = _HEAD_BYTES.unpack_from(meta)
        head = bytes(meta[4 : 4 + size])
        signature, outputs = _predict_head(head) if size <= _MAX_KEPT_BYTES else _predict_head.__wrapped__(head)
    except (struct.error, UnicodeDecodeError) as error:
        raise WireError(f"a request that cannot be read: {error}") from error
    return signature, list(outputs), meta[4 + size :]


@functools.lru_cache(256)
def _predict_head(head: bytes) -> tuple[str, tuple[str, ...]]:
    signature, *outputs = head.decode().split("\0")
    return signature, tuple(outputs)


class Decoder:
    """Cuts a byte stream into frames. The caller receives into `target()` and reports the count to `received(n)`.

    A payload that does not fit the small buffer is received directly into memory of its own; one of more than
    `max_kept_bytes` is dropped as it comes, and its frame has `payload` b"". A peer that announces more than
    `max_payload_bytes` makes no sense.
    """

    def __init__(self, max_payload_bytes: int, max_kept_bytes: int | None = None) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._max_kept_bytes = max_payload_bytes if max_kept_bytes is None else max_kept_bytes
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._head: tuple[int, int, int, int, bytes] | None = None  # kind, flags, request id, deadline, meta
        self._large: bytearray | None = None
        self._filled = 0
        self._dropped = 0  # bytes of a payload that is not kept
        self._unread = 0  # of them, those that have not come yet

    def target(self) -> memoryview:
        """Return the memory to receive into; never empty."""
        if self._large is not None:
            return memoryview(self._large)[self._filled :]
        if self._unread:
            return self._view[: self._unread]
        return self._view[self._end :]

    def received(self, count: int) -> list[Frame]:
        """Return the frames that `count` more bytes in the last `target()` complete. Raise WireError."""
        frames: list[Frame] = []
        if self._large is not None:
            self._filled += count
            if self._filled == len(self._large):
                assert self._head is not None
                kind, flags, request_id, deadline_ns, meta = self._head
                frames.append(Frame(kind, flags, request_id, deadline_ns, meta, self._large, len(self._large)))
                self._large = None
            return frames
        if self._unread:
            self._unread -= count
            if not self._unread:
                assert self._head is not None
                frames.append(Frame(*self._head, b"", self._dropped))
            return frames
        self._end += count
        while self._next(frames):
            pass
        if self._start == self._end:
            self._start = self._end = 0
        return frames

    def _next(self, frames: list[Frame]) -> bool:
        available = self._end - self._start
        if available < HEADER.size:
            self._make_room(HEADER.size)
            return False
        magic, kind, flags, meta_bytes, payload_bytes, request_id, deadline_ns = HEADER.unpack_from(
            self._buffer, self._start
        )
        if magic != _MAGIC or meta_bytes > MAX_META_BYTES or payload_bytes > self._max_payload_bytes:
            raise WireError(f"not a frame: {magic!r} with {meta_bytes:,} bytes of meta, {payload_bytes:,} of payload")
        in_stream = 0 if flags & FLAG_SHARED else payload_bytes
        head_bytes = HEADER.size + meta_bytes
        whole = head_bytes + in_stream
        meta_at = self._start + HEADER.size
        if available >= whole:
            meta = bytes(self._view[meta_at : meta_at + meta_bytes])
            payload = None if flags & FLAG_SHARED else bytes(self._view[self._start + head_bytes : self._start + whole])
            frames.append(Frame(kind, flags, request_id, deadline_ns, meta, payload, payload_bytes))
            self._start += whole
            return self._start < self._end
        if available >= head_bytes and in_stream > _SMALL:
            meta = bytes(self._view[meta_at : meta_at + meta_bytes])
            self._head = (kind, flags, request_id, deadline_ns, meta)
            if in_stream > self._max_kept_bytes:
                self._dropped, self._unread = in_stream, whole - available
            else:
                self._large = bytearray(in_stream)
                self._filled = available - head_bytes
                self._large[: self._filled] = self._view[self._start + head_bytes : self._end]
            self._start = self._end = 0
            return False
        self._make_room(head_bytes if in_stream > _SMALL else whole)
        return False

    def _make_room(self, size: int) -> None:
        """Make the buffer large enough for `size` bytes from the start of the current frame, and one byte more."""
        if self._start + size < len(self._buffer):
            return
        rest = bytes(self._view[self._start : self._end])
        if size >= len(self._buffer):
            self._buffer = bytearray(size + _BUFFER_BYTES)
            self._view = memoryview(self._buffer)
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)
