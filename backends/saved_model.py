"""Whether a SavedModel folder is all there, without TensorFlow: the folder may be half-copied, or hostile.

Sources of the formats: `tensorflow/core/protobuf/saved_model.proto`, `meta_graph.proto` and `tensor_bundle.proto`;
`xla/tsl/lib/io/format.cc` and `table_format.txt` (LevelDB's table); https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator

from backends.contract import BackendError, Code, IncompleteError
from backends.crc32c import masked_crc32c
from backends.folder_hints import hint
from backends.reading import VARINT, Reader, Schema, open_file

# Which fields of which message hold messages worth descending into. A file that was allocated but not yet written is
# zeros somewhere inside: no tag is zero, so a walk finds them in every message that is listed, even as {}.
_NODE: Schema = {}
_FUNCTION: Schema = {1: {}, 3: _NODE}  # signature, node_def
_GRAPH: Schema = {1: _NODE, 2: {1: _FUNCTION}, 4: {}}  # node, library.function, versions
_COLLECTION: Schema = {1: {}, 2: {}, 5: {1: {}}}  # node_list, bytes_list, any_list.value
_META_GRAPH: Schema = {1: {}, 2: _GRAPH, 3: {}, 4: {2: _COLLECTION}, 5: {2: {}}, 6: {}, 7: {1: {}}}
_SAVED_MODEL: Schema = {2: _META_GRAPH}

_TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_BLOCK_TRAILER_BYTES = 5

# Bounds for hostile files.
_MAX_INDEX_BYTES = 64 << 20  # about 100 bytes for each variable
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
        with open_file(path, "saved_model.pb") as reader:
            assets, has_saver = _check_graph(reader)
    # TensorFlow's loader reads this form if there is no other. It is rare: only that it was written is checked.
    elif os.path.lexists(os.path.join(path, "saved_model.pbtxt")):
        with open_file(path, "saved_model.pbtxt") as reader:
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
        raise IncompleteError(f"saved_model.pb is missing{hint(path)}")
    for asset in assets:
        _check_asset(path, asset)
    # TensorFlow 2 writes a saver (unless told experimental_skip_saver) and variables/; for a graph without variables,
    # TensorFlow 1 writes no saver and an empty variables/. The loader restores wherever there is a saver.
    if has_saver or _lists_something(os.path.join(path, "variables")):
        _check_variables(path)


def _lists_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entries)
    except OSError:
        return os.path.lexists(folder)  # what it is that cannot be listed shows when it is read


def _check_graph(reader: Reader) -> tuple[list[bytes], bool]:
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


def _collected_assets(reader: Reader, start: int, end: int) -> Iterator[tuple[int, int]]:
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
    with open_file(path, f"assets/{name}"):
        pass


def _check_variables(path: str) -> None:
    """Checks the index, and that each shard is as long as the index says.

    The index is a table from the names of variables to BundleEntryProtos; the first entry, of the empty name, is the
    BundleHeaderProto (`tensorflow/core/util/tensor_bundle/tensor_bundle.h`).
    """
    shards = 0
    needed: dict[int, int] = {}
    with open_file(path, "variables/variables.index") as index:
        for position, (key_bytes, value) in enumerate(_table(index)):
            # BundleHeaderProto: num_shards 1. BundleEntryProto: shard_id 3, offset 4, size 5.
            message = Reader(io.BytesIO(value), f"{index.name}, entry {position:,}", len(value))
            fields = {number: n for number, kind, n, _ in message.fields(0, len(value)) if kind == VARINT}
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
        with open_file(path, f"variables/variables.data-{shard:05d}-of-{shards:05d}") as data:
            if data.size < size:
                raise IncompleteError(f"{data.name} has {data.size:,} of {size:,} bytes")


def _table(reader: Reader) -> Iterator[tuple[int, bytes]]:
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
        offset, size = Reader(io.BytesIO(handle), f"{reader.name}, index block", len(handle)).varints(0, 2)
        if offset < free:  # the same block a million times over would keep us busy
            raise reader.damaged(offset, "blocks overlap")
        free = offset + size
        yield from _block(reader, offset, size)


def _block(reader: Reader, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The entries of the block at `offset`; `size` leaves out the trailer: type of compression, masked crc32c."""
    if offset + size + _BLOCK_TRAILER_BYTES > reader.size - _FOOTER_BYTES or size < 4:
        raise reader.damaged(min(offset, reader.size), "a block does not fit in front of the footer")
    data = reader.read(offset, size + _BLOCK_TRAILER_BYTES)
    if data[size] != 0:
        raise reader.damaged(offset + size, f"a block is compressed (type {data[size]}), which TensorFlow never writes")
    (masked,) = struct.unpack_from("<I", data, size + 1)
    if masked_crc32c(data[: size + 1]) != masked:
        raise reader.damaged(offset, "a block does not match its checksum")
    # After the entries: the offsets of restart points, and their number, 32 bits each.
    (restarts,) = struct.unpack_from("<I", data, size - 4)
    end = size - 4 - 4 * restarts
    if end < 0:
        raise reader.damaged(offset, "a block has more restart points than bytes")
    block = Reader(io.BytesIO(data[:end]), f"{reader.name}, block at byte {offset:,}", end)
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
