"""What identifies the content of a version folder's files, whoever has touched or copied them since."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass

from appliance.source.scan import fingerprint, walk

__all__ = ["Found", "changed", "content"]

# A file up to _WHOLE_BYTES counts whole, a larger one by blocks that are spread over it: gigabytes of weights would
# take seconds to read, and training changes all of them.
_WHOLE_BYTES = 1024 * 1024
_BLOCK_BYTES = 64 * 1024
_BLOCKS = 16
_MAX_BYTES = 64 * 1024 * 1024  # of one folder; files beyond these count by their names and sizes

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
# What is read of a SavedModel: a log or a note beside it is no change of the model.
_PARTS = (*_GRAPHS, "variables", "assets", "assets.extra")


@dataclass(frozen=True, slots=True)
class Found:
    """What is in a version folder: `digest` identifies the state of its files, `content` what they contain."""

    digest: str
    content: str


def changed(path: str, digest: str, known: str) -> Found | None:
    """Return what is in a version folder if its files are in another state than `digest`, None if they are not; the
    content is the `known` one if they were only touched or copied anew. Raise OSError."""
    now = fingerprint(path).digest
    return None if now == digest else Found(now, content(path))


def content(path: str) -> str:
    """Return what identifies the model in a version folder, by names, sizes and samples of its files.

    It stays the same if files are touched, get another owner or mode, or are copied anew. Raise OSError.
    """
    digest = hashlib.blake2b(digest_size=16)
    is_saved_model = any(os.path.exists(os.path.join(path, name)) for name in _GRAPHS)
    left = _MAX_BYTES
    for file, status in walk(path):
        name = os.path.relpath(file, path)
        if status is None or not stat.S_ISREG(status.st_mode):
            continue
        if is_saved_model and name.split(os.sep)[0] not in _PARTS:
            continue
        digest.update(f"{name}\0{status.st_size}\n".encode(errors="surrogateescape"))
        blocks = _blocks(status.st_size)
        if left < sum(length for _, length in blocks):
            continue
        left -= sum(length for _, length in blocks)
        # Not to wait for ever, if a pipe has taken the file's place.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for offset, length in blocks:
                digest.update(os.pread(descriptor, length, offset))
        finally:
            os.close(descriptor)
    return digest.hexdigest()


def _blocks(size: int) -> list[tuple[int, int]]:
    """Return which bytes of a file of `size` count, as offsets and lengths."""
    if size <= _WHOLE_BYTES:
        return [(0, size)]
    last = size - _BLOCK_BYTES
    return [(last * number // (_BLOCKS - 1), _BLOCK_BYTES) for number in range(_BLOCKS)]
