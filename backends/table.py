"""Read TensorFlow's tables (LevelDB's), the format of a SavedModel's variables index.

Sources of the format: `xla/tsl/lib/io/format.cc` and `table_format.txt`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from backends import snappy
from backends.contract import IncompleteError
from backends.crc32c import masked_crc32c
from backends.reading import Reader

__all__ = ["UnknownFormatError", "entries"]

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5

_PLAIN, _SNAPPY = 0, 1  # how a block is compressed

# Bounds for hostile files: of the file, and of all its decompressed blocks.
_MAX_BYTES = 64 << 20  # about 100 bytes for each variable


class UnknownFormatError(Exception):
    """The file is complete, but in a format that is unknown here: only its own reader can judge it."""


def entries(reader: Reader) -> Iterator[tuple[int, bytes]]:
    """Yield the entries of a table in order: the length of the key (the keys are not needed), and the value.

    Raise IncompleteError if the file is cut off, or a block does not match its checksum; UnknownFormatError if the
    content is not understood, or too large to be read here.
    """
    if reader.size < _FOOTER_BYTES:
        raise IncompleteError(
            f"{reader.name} is cut off: it has {reader.size:,} bytes, and its footer alone {_FOOTER_BYTES}"
        )
    (magic,) = struct.unpack("<Q", reader.read(reader.size - 8, 8))
    if magic != _MAGIC:
        raise IncompleteError(f"{reader.name} is cut off, or not written yet: it does not end in a table's footer")
    if reader.size > _MAX_BYTES:
        raise UnknownFormatError(f"{reader.name} has {reader.size:,} bytes, over {_MAX_BYTES:,}")
    # The footer: handles (offset and size, varints) of the meta index block and of the index block, padding, magic.
    _, _, offset, size = reader.varints(reader.size - _FOOTER_BYTES, 4)
    left = _MAX_BYTES
    free = 0
    for _, handle in _parsed(_block(reader, offset, size, left)):
        offset, size = _varints(_part(handle), 0, 2)
        if offset < free:  # a million references to one block would take very long
            raise UnknownFormatError(f"{reader.name}: blocks overlap")
        free = offset + size
        block = _block(reader, offset, size, left)
        left -= len(block)
        yield from _parsed(block)


def _part(data: bytes) -> Reader:
    return Reader(io.BytesIO(data), "a block", len(data))


def _varints(part: Reader, at: int, count: int) -> list[int]:
    try:
        return part.varints(at, count)
    except IncompleteError as error:
        raise UnknownFormatError(str(error)) from error


def _block(reader: Reader, offset: int, size: int, most: int) -> bytes:
    """Return the block at `offset`, decompressed. `size` excludes the trailer: type of compression, masked crc32c."""
    if offset + size + _TRAILER_BYTES > reader.size - _FOOTER_BYTES:
        raise reader.damaged(min(offset, reader.size), "a block does not fit in front of the footer")
    data = reader.read(offset, size + _TRAILER_BYTES)
    (masked,) = struct.unpack_from("<I", data, size + 1)
    if masked_crc32c(data[: size + 1]) != masked:
        raise reader.damaged(offset, "a block does not match its checksum")
    if data[size] == _PLAIN:
        return data[:size]
    if data[size] != _SNAPPY:
        raise UnknownFormatError(f"{reader.name}: a block is compressed in an unknown way, type {data[size]}")
    try:
        return snappy.decoded(data[:size], most)
    except ValueError as error:
        raise UnknownFormatError(f"{reader.name}: a block cannot be decompressed: {error}") from error


def _parsed(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the entries of a block. It has matched its checksum, so what does not fit was written like this."""
    # After the entries: the offsets of restart points, and their number, 32 bits each.
    restarts = struct.unpack_from("<I", data, len(data) - 4)[0] if len(data) >= 4 else len(data)
    end = len(data) - 4 - 4 * restarts
    if end < 0:
        raise UnknownFormatError("a block has more restart points than bytes")
    block = _part(data[:end])
    at = key_bytes = 0
    while at < end:
        # An entry: the length that its key shares with the last key, the lengths of the rest of its key and of its
        # value, then both.
        shared, unshared, value_bytes = _varints(block, at, 3)
        if shared > key_bytes:
            raise UnknownFormatError("a key shares more than its predecessor has")
        key_bytes = shared + unshared
        value_at = block.position() + unshared
        at = value_at + value_bytes
        if at > end:
            raise UnknownFormatError("an entry ends outside its block")
        yield key_bytes, block.read(value_at, value_bytes)
