"""Whether a SavedModel folder is all there, without TensorFlow: the folder may be half-copied, or hostile.

Sources of the formats: `tensorflow/core/protobuf/saved_model.proto`, `meta_graph.proto` and `tensor_bundle.proto`;
`xla/tsl/lib/io/format.cc` and `table_format.txt` (LevelDB's table); https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from backends.contract import BackendError, Code, IncompleteError

# Which fields of which message hold messages worth descending into. A file that was allocated but not yet written is
# zeros somewhere inside: no tag is zero, so a walk finds them in every message that is listed, even as {}.
_Schema = Mapping[int, "_Schema"]
_NODE: _Schema = {}
_FUNCTION: _Schema = {1: {}, 3: _NODE}  # signature, node_def
_GRAPH: _Schema = {1: _NODE, 2: {1: _FUNCTION}, 4: {}}  # node, library.function, versions
_COLLECTION: _Schema = {1: {}, 2: {}, 5: {1: {}}}  # node_list, bytes_list, any_list.value
_META_GRAPH: _Schema = {1: {}, 2: _GRAPH, 3: {}, 4: {2: _COLLECTION}, 5: {2: {}}, 6: {}, 7: {1: {}}}
_SAVED_MODEL: _Schema = {2: _META_GRAPH}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which none of the messages has

_TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_BLOCK_TRAILER_BYTES = 5

# Bounds for hostile files. Pure Python walks about a million fields a second; real graphs have up to a few million.
_MAX_FIELDS = 20_000_000
_MAX_INDEX_BYTES = 64 << 20  # about 100 bytes for each variable
_MAX_CHECKSUM_BYTES = 1 << 20  # crc32c in Python takes about 0.1 s for these; a larger block goes unchecked
_MAX_ASSET_NAME_BYTES = 4096


def check_complete(path: str) -> None:
    """Returns if TensorFlow would find all it reads in the SavedModel folder `path`.

    Raises IncompleteError naming the file and what is missing of it; damage is reported so too, because a file that is
    being written looks the same. Raises BackendError for what no further copying can mend. Not compared are the
    checksums of the variables, which TensorFlow does on loading (DATA_LOSS).
    """
    if not os.path.isdir(path):
        raise IncompleteError(f"{path} is not a folder")
    try:
        _check(path)
    except OSError as error:  # a disk or a mount that fails between open and read
        raise IncompleteError(f"{path} cannot be read: {error.strerror}") from error


def _check(path: str) -> None:
    if os.path.lexists(os.path.join(path, "saved_model.pb")):
        with _open(path, "saved_model.pb") as reader:
            assets, has_saver = _check_graph(reader)
    # TensorFlow's loader reads this form if there is no other. It is rare: only that it was written is checked.
    elif os.path.lexists(os.path.join(path, "saved_model.pbtxt")):
        with _open(path, "saved_model.pbtxt") as reader:
            if not reader.read(max(0, reader.size - 1), min(1, reader.size)).strip(b"\0"):
                raise IncompleteError("saved_model.pbtxt ends in nothing: it is not written to its end")
        assets, has_saver = [], False
    elif os.path.lexists(os.path.join(path, "saved_model.cpb")):
        raise BackendError(
            Code.UNIMPLEMENTED,
            "saved_model.cpb: TensorFlow's loader does not read the split form; export without "
            "SaveOptions(experimental_image_format=True)",
        )
    else:
        raise IncompleteError("saved_model.pb is missing")
    for asset in assets:
        _check_asset(path, asset)
    # TensorFlow 2 writes a saver (unless told experimental_skip_saver) and variables/; for a graph without variables,
    # TensorFlow 1 writes no saver and an empty variables/. The loader restores wherever there is a saver.
    if has_saver or _lists_something(os.path.join(path, "variables")):
        _check_variables(path)


class _Reader:
    """A file, or a part of one in memory, read by position. `name` is its path in the model folder, for messages.

    The files are read, not mapped: one that is truncated below a mapping kills the process (SIGBUS), and starting a
    copy over again truncates.
    """

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._file = file
        self._fields_left = _MAX_FIELDS

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def damaged(self, at: int, what: str) -> IncompleteError:
        return IncompleteError(f"{self.name} is damaged, or not written yet, at byte {at:,} of {self.size:,}: {what}")

    def read(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        data = self._file.read(size)
        if len(data) < size:
            raise IncompleteError(f"{self.name} is cut off at byte {at + len(data):,}, before byte {at + size:,}")
        return data

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """The fields of the protobuf message in the bytes [start, end): (number, wire type, value, stop).

        `value` is the number itself of a varint, else the position of the bytes that end at `stop`.
        """
        at = start
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise BackendError(Code.RESOURCE_EXHAUSTED, f"{self.name} has more than {_MAX_FIELDS:,} fields")
            self._file.seek(at)
            tag = self._varint()
            number, wire_type = tag >> 3, tag & 7
            if number == 0 or wire_type not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
                raise self.damaged(at, "no field begins there")
            if wire_type == _VARINT:
                value = self._varint()
                stop = self._file.tell()
            else:
                size = self._varint() if wire_type == _BYTES else 8 if wire_type == _FIXED64 else 4
                value = self._file.tell()
                stop = value + size
            if stop > self.size:
                raise IncompleteError(f"{self.name} is cut off at byte {self.size:,}, before byte {stop:,}")
            if stop > end:
                raise self.damaged(at, "a field ends outside its message")
            yield number, wire_type, value, stop
            at = stop

    def messages(self, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
        """Where the values (messages, strings) of the field `number` begin and end."""
        for field, wire_type, value, stop in self.fields(start, end):
            if field == number and wire_type == _BYTES:
                yield value, stop

    def walk(self, start: int, end: int, schema: _Schema) -> None:
        """Raises unless the bytes [start, end) are a message in which every message of `schema` is well-formed."""
        for number, wire_type, value, stop in self.fields(start, end):
            if number in schema and wire_type == _BYTES:
                self.walk(value, stop, schema[number])

    def varints(self, at: int, count: int) -> list[int]:
        self._file.seek(at)
        return [self._varint() for _ in range(count)]

    def position(self) -> int:
        return self._file.tell()

    def _varint(self) -> int:
        result = shift = 0
        while True:
            byte = self._file.read(1)
            if not byte:
                raise IncompleteError(f"{self.name} is cut off at byte {self._file.tell():,}")
            result |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return result
            shift += 7
            if shift > 63:
                raise self.damaged(self._file.tell(), "a number of more than ten bytes")


def _open(root: str, name: str) -> _Reader:
    # A named pipe would block the open for ever without O_NONBLOCK.
    try:
        descriptor = os.open(os.path.join(root, name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise IncompleteError(f"{name} is missing") from None
    except OSError as error:
        raise IncompleteError(f"{name} cannot be read: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BackendError(Code.INVALID_ARGUMENT, f"{name} is not a regular file")
    return _Reader(os.fdopen(descriptor, "rb"), name, status.st_size)


def _lists_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entries)
    except OSError:
        return os.path.lexists(folder)  # what it is that cannot be listed shows when it is read


def _check_graph(reader: _Reader) -> tuple[list[bytes], bool]:
    """Checks saved_model.pb. Returns the names of its assets, and whether it has a saver, which restores variables."""
    reader.walk(0, reader.size, _SAVED_MODEL)
    assets: list[bytes] = []
    has_saver = False
    meta_graphs = list(reader.messages(0, reader.size, 2))
    if not meta_graphs:
        raise IncompleteError(f"saved_model.pb has {reader.size:,} bytes, but no graph")
    for meta_graph in meta_graphs:
        has_saver |= any(reader.messages(*meta_graph, 3))
        asset_files = list(reader.messages(*meta_graph, 6)) or list(_collected_assets(reader, *meta_graph))
        for asset_file in asset_files:
            for start, stop in reader.messages(*asset_file, 2):
                if stop - start > _MAX_ASSET_NAME_BYTES:
                    raise BackendError(Code.INVALID_ARGUMENT, "saved_model.pb has an asset of too long a name")
                assets.append(reader.read(start, stop - start))
    return assets, has_saver


def _collected_assets(reader: _Reader, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The AssetFileDefs of a meta graph of early TensorFlow 1: Any messages in the collection saved_model_assets."""
    for entry in reader.messages(start, end, 4):
        if any(reader.read(a, min(b - a, 64)) == b"saved_model_assets" for a, b in reader.messages(*entry, 1)):
            for collection in reader.messages(*entry, 2):
                for any_list in reader.messages(*collection, 5):
                    for packed in reader.messages(*any_list, 1):
                        yield from reader.messages(*packed, 2)


def _check_asset(path: str, asset: bytes) -> None:
    # isprintable: the name goes into messages and logs; of bytes that are not UTF-8, what replaces them does not pass.
    name = asset.decode("utf-8", "surrogateescape")
    if not name.isprintable() or any(part in ("", ".", "..") for part in name.split("/")):
        raise BackendError(Code.INVALID_ARGUMENT, f"saved_model.pb has an asset of a forbidden name: {asset!r}")
    with _open(path, f"assets/{name}"):
        pass


def _check_variables(path: str) -> None:
    """Checks the index, and that each shard is as long as the index says.

    The index is a table from the names of variables to BundleEntryProtos; the first entry, of the empty name, is the
    BundleHeaderProto (`tensorflow/core/util/tensor_bundle/tensor_bundle.h`).
    """
    shards = 0
    needed: dict[int, int] = {}
    with _open(path, "variables/variables.index") as index:
        for position, (key_bytes, value) in enumerate(_table(index)):
            # BundleHeaderProto: num_shards 1. BundleEntryProto: shard_id 3, offset 4, size 5.
            message = _Reader(io.BytesIO(value), f"{index.name}, entry {position:,}", len(value))
            fields = {number: n for number, kind, n, _ in message.fields(0, len(value)) if kind == _VARINT}
            if position == 0:
                shards = fields.get(1, 0)
                if key_bytes or not shards:
                    raise IncompleteError(f"{index.name} is damaged: it does not begin with a header")
                continue
            shard = fields.get(3, 0)
            if shard >= shards:
                raise IncompleteError(f"{index.name} is damaged: entry {position:,} is in shard {shard} of {shards}")
            needed[shard] = max(needed.get(shard, 0), fields.get(4, 0) + fields.get(5, 0))
        if not shards:
            raise IncompleteError(f"{index.name} is damaged: it has no entries")
    for shard, size in sorted(needed.items()):
        with _open(path, f"variables/variables.data-{shard:05d}-of-{shards:05d}") as data:
            if data.size < size:
                raise IncompleteError(f"{data.name} has {data.size:,} of {size:,} bytes")


def _table(reader: _Reader) -> Iterator[tuple[int, bytes]]:
    """The entries of a LevelDB table, in order: the length of the key (nothing here needs the keys), and the value."""
    if reader.size < _FOOTER_BYTES:
        raise IncompleteError(
            f"{reader.name} is cut off: it has {reader.size:,} bytes, and its footer alone {_FOOTER_BYTES}"
        )
    (magic,) = struct.unpack("<Q", reader.read(reader.size - 8, 8))
    if magic != _TABLE_MAGIC:
        raise IncompleteError(f"{reader.name} is cut off, or not written yet: it does not end in a table's footer")
    if reader.size > _MAX_INDEX_BYTES:
        raise BackendError(
            Code.RESOURCE_EXHAUSTED, f"{reader.name} has {reader.size:,} bytes, over {_MAX_INDEX_BYTES:,}"
        )
    # The footer: handles (offset and size, varints) of the meta index block and of the index block, padding, magic.
    _, _, offset, size = reader.varints(reader.size - _FOOTER_BYTES, 4)
    free = 0
    for _, handle in _block(reader, offset, size):
        offset, size = _Reader(io.BytesIO(handle), f"{reader.name}, index block", len(handle)).varints(0, 2)
        if offset < free:  # the same block a million times over would keep us busy
            raise reader.damaged(offset, "blocks overlap")
        free = offset + size
        yield from _block(reader, offset, size)


def _block(reader: _Reader, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The entries of the block at `offset`; `size` leaves out the trailer: type of compression, masked crc32c."""
    if offset + size + _BLOCK_TRAILER_BYTES > reader.size - _FOOTER_BYTES or size < 4:
        raise reader.damaged(min(offset, reader.size), "a block does not fit in front of the footer")
    data = reader.read(offset, size + _BLOCK_TRAILER_BYTES)
    if data[size] != 0:
        raise reader.damaged(offset + size, f"a block is compressed (type {data[size]}), which TensorFlow never writes")
    (masked,) = struct.unpack_from("<I", data, size + 1)
    if size <= _MAX_CHECKSUM_BYTES and _masked_crc32c(data[: size + 1]) != masked:
        raise reader.damaged(offset, "a block does not match its checksum")
    # After the entries: the offsets of restart points, and their number, 32 bits each.
    (restarts,) = struct.unpack_from("<I", data, size - 4)
    end = size - 4 - 4 * restarts
    if end < 0:
        raise reader.damaged(offset, "a block has more restart points than bytes")
    block = _Reader(io.BytesIO(data[:end]), f"{reader.name}, block at byte {offset:,}", end)
    at = key_bytes = 0
    while at < end:
        # An entry: how much of the last key it shares, the lengths of the rest of its key and of its value, both.
        shared, unshared, value_bytes = block.varints(at, 3)
        if shared > key_bytes:
            raise block.damaged(at, "a key shares more than its predecessor has")
        key_bytes = shared + unshared
        value_at = block.position() + unshared
        at = value_at + value_bytes
        if at > end:
            raise block.damaged(end, "an entry ends outside its block")
        yield key_bytes, block.read(value_at, value_bytes)


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC32C = _crc32c_table()


def _masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as `xla/tsl/lib/hash/crc32c.h` stores it."""
    crc = 0xFFFFFFFF
    table = _CRC32C
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
