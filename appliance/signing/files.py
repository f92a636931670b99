"""The files of a model's folder, and their hashes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

from appliance.signing.errors import SignatureError

__all__ = ["HASHES", "SIGNATURE", "UNSIGNED", "ModelFile", "file_hashes", "model_files"]

SIGNATURE = "model.sig"
"""The file of a folder that has its signature."""

UNSIGNED = (SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore")
"""What no signature covers, at the top of a folder. Other files that a signature leaves out are refused."""

HASHES = ("sha256", "blake2b")
"""The hashes of Model Signing that are known here. Its blake3 is not in Python's library."""

_CHUNK_BYTES = 1 << 20
_MAX_FILES = 100_000

ModelFile = tuple[str, bool]
"""A name relative to the folder, with slashes, and whether the file is a link."""


def model_files(folder: str) -> list[ModelFile]:
    """Return the files that a signature of `folder` must cover, by name. Raise OSError; SignatureError for links to
    folders and what is neither file nor folder, of which no signature tells what they lead to."""
    found: list[ModelFile] = []
    folders = [""]
    while folders:
        at = folders.pop()
        with os.scandir(os.path.join(folder, at)) as entries:
            for entry in entries:
                name = f"{at}{entry.name}"
                if name in UNSIGNED:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif entry.is_file():
                    found.append((name, entry.is_symlink()))
                else:
                    what = "a link to a folder" if entry.is_dir() else "no file"
                    raise SignatureError(f"{name!r} is {what}, which cannot be signed: put the files themselves there")
                if len(found) + len(folders) > _MAX_FILES:
                    raise SignatureError(f"it has more than {_MAX_FILES:,} files")
    return sorted(found)


def file_hashes(folder: str, name: str, hash_type: str, shard_bytes: int = 0) -> Iterator[tuple[int, int, str]]:
    """Yield the hash of each shard of a file, in hexadecimal digits, with its first byte and the one after its last; of
    all of it as one, if `shard_bytes` is 0. An empty file has no shards. Raise OSError, SignatureError."""
    with open(os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SignatureError(f"{name!r} is no file")
        start, is_over = 0, False
        while not is_over:
            digest, end = hashlib.new(hash_type), start
            while not shard_bytes or end - start < shard_bytes:
                left = _CHUNK_BYTES if not shard_bytes else min(_CHUNK_BYTES, shard_bytes - (end - start))
                chunk = file.read(left)
                if not chunk:
                    is_over = True
                    break
                digest.update(chunk)
                end += len(chunk)
            if end > start or not shard_bytes:
                yield start, end, digest.hexdigest()
            start = end
