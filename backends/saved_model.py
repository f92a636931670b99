"""Check without TensorFlow whether a SavedModel folder is complete: it may be half-copied, or hostile.

TensorFlow's loader decides about a model. This check finds only what an unfinished copy leaves: a file that is missing
or too short, zeros or an end where more must come, a checksum that does not match. What it does not understand, or what
is over its bounds, is unknown and passes.

Sources of the formats: `tensorflow/core/protobuf/saved_model.proto`, `meta_graph.proto` and `tensor_bundle.proto`;
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator

from backends import table
from backends.contract import BackendError, IncompleteError
from backends.folder_hints import hint
from backends.reading import VARINT, Reader, Schema, open_file

# The fields of each message that hold messages to walk. A file that was allocated but not yet written has zeros
# somewhere inside: no tag is zero, so a walk finds them in every listed message, even in one listed as {}.
_NODE: Schema = {}
_FUNCTION: Schema = {1: {}, 3: _NODE}  # signature, node_def
_GRAPH: Schema = {1: _NODE, 2: {1: _FUNCTION}, 4: {}}  # node, library.function, versions
_COLLECTION: Schema = {1: {}, 2: {}, 5: {1: {}}}  # node_list, bytes_list, any_list.value
_META_GRAPH: Schema = {1: {}, 2: _GRAPH, 3: {}, 4: {2: _COLLECTION}, 5: {2: {}}, 6: {}, 7: {1: {}}}
_SAVED_MODEL: Schema = {2: _META_GRAPH}

_MAX_ASSET_NAME_BYTES = 4096  # the longest path

# The files of the first generation of checkpoints, which has no index.
_OLD_VARIABLES = re.compile(r"variables(-\d{5}-of-\d{5})?")


def check_complete(path: str) -> None:
    """Return if nothing shows that the copy of the SavedModel folder `path` is unfinished.

    Raise IncompleteError, which names the file and what is missing, also for damage, because a file that is being
    written looks the same. The checksums of the variables are not compared; TensorFlow does that on loading
    (DATA_LOSS). Raise BackendError for a file that no loader reads, such as a named pipe.
    """
    if not os.path.isdir(path):
        raise IncompleteError(f"{path} is not a folder")
    try:
        _check(path)
    except OSError as error:  # a disk or a mount that fails between open and read
        raise IncompleteError(f"{path} cannot be read: {error.strerror}") from error


def _check(path: str) -> None:
    assets: list[bytes] = []
    has_saver = False
    if os.path.lexists(os.path.join(path, "saved_model.pb")):
        with open_file(path, "saved_model.pb") as reader, contextlib.suppress(BackendError):  # it has too many fields
            assets, has_saver = _check_graph(reader)
    # TensorFlow's loader reads this form if there is no other. It is rare, so only its end is checked.
    elif os.path.lexists(os.path.join(path, "saved_model.pbtxt")):
        with open_file(path, "saved_model.pbtxt") as reader:
            if not reader.read(max(0, reader.size - 1), min(1, reader.size)).strip(b"\0"):
                raise IncompleteError("saved_model.pbtxt ends in nothing: it is not written to its end")
    elif not os.path.lexists(os.path.join(path, "saved_model.cpb")):  # the loader refuses it, with a reason
        raise IncompleteError(f"saved_model.pb is missing{hint(path)}")
    for asset in assets:
        _check_asset(path, asset)
    # TensorFlow 2 writes a saver (unless told experimental_skip_saver) and variables/; for a graph without variables,
    # TensorFlow 1 writes no saver and an empty variables/. The loader restores whenever there is a saver.
    listed = _listed(os.path.join(path, "variables"))
    is_old = "variables.index" not in listed and any(map(_OLD_VARIABLES.fullmatch, listed))
    if (has_saver or listed) and not is_old:
        with contextlib.suppress(table.UnknownFormatError):
            _check_variables(path)


def _listed(folder: str) -> list[str]:
    """Return the entries of a folder; the folder itself if it cannot be listed, so that reading it reports why."""
    try:
        return os.listdir(folder)
    except OSError:
        return [folder] if os.path.lexists(folder) else []


def _check_graph(reader: Reader) -> tuple[list[bytes], bool]:
    """Check saved_model.pb. Return the names of its assets, and whether it has a saver, which restores variables."""
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
                assets.append(reader.read(start, min(stop - start, _MAX_ASSET_NAME_BYTES + 1)))
    return assets, has_saver


def _collected_assets(reader: Reader, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the AssetFileDefs of early TensorFlow 1 graphs: Any messages in the collection saved_model_assets."""
    for entry in reader.messages(start, end, 4):
        if any(reader.read(a, min(b - a, 64)) == b"saved_model_assets" for a, b in reader.messages(*entry, 1)):
            for collection in reader.messages(*entry, 2):
                for any_list in reader.messages(*collection, 5):
                    for packed in reader.messages(*any_list, 1):
                        yield from reader.messages(*packed, 2)


def _check_asset(path: str, asset: bytes) -> None:
    # isprintable, because the name goes into messages and logs; the replacements of bytes that are not UTF-8 fail it.
    # Other names, and paths that leave the folder, are left to TensorFlow.
    name = asset.decode("utf-8", "surrogateescape")
    is_odd = not name.isprintable() or any(part in ("", ".", "..") for part in name.split("/"))
    if is_odd or len(asset) > _MAX_ASSET_NAME_BYTES:
        return
    with contextlib.suppress(BackendError), open_file(path, f"assets/{name}"):
        pass


def _check_variables(path: str) -> None:
    """Check the index, and that each shard is as long as the index says.

    The index is a table from names of variables to BundleEntryProtos; the first entry, with an empty name, is the
    BundleHeaderProto (`tensorflow/core/util/tensor_bundle/tensor_bundle.h`). Raise UnknownFormatError if the index has
    another format.
    """
    shards = 0
    needed: dict[int, int] = {}
    with open_file(path, "variables/variables.index") as index:
        for position, (key_bytes, value) in enumerate(table.entries(index)):
            fields = _numbers(value)
            if position == 0:
                shards = fields.get(1, 0)  # BundleHeaderProto: num_shards 1
                if key_bytes or not shards:
                    raise table.UnknownFormatError(f"{index.name} does not begin with a header")
                continue
            # BundleEntryProto: shard_id 3, offset 4, size 5.
            shard = fields.get(3, 0)
            if shard >= shards:
                raise table.UnknownFormatError(f"{index.name}: entry {position:,} is in shard {shard} of {shards}")
            needed[shard] = max(needed.get(shard, 0), fields.get(4, 0) + fields.get(5, 0))
    for shard, size in sorted(needed.items()):
        with open_file(path, f"variables/variables.data-{shard:05d}-of-{shards:05d}") as data:
            if data.size < size:
                raise IncompleteError(f"{data.name} has {data.size:,} of {size:,} bytes")


def _numbers(message: bytes) -> dict[int, int]:
    """Return the varints of a protocol buffer by field number."""
    reader = Reader(io.BytesIO(message), "an entry", len(message))
    try:
        return {number: n for number, kind, n, _ in reader.fields(0, len(message)) if kind == VARINT}
    except IncompleteError as error:  # its block has matched its checksum, so it was written like this
        raise table.UnknownFormatError(str(error)) from error
