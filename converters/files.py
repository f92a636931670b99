"""Files and their hashes, copies that are what they should be, and locks with a deadline."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping

__all__ = ["changed", "copied", "file_hash", "files_below", "lock", "size_below"]

_NAME = r"[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,100})?"
_FILE = re.compile(rf"(forms/{_NAME}/)?{_NAME}")  # what an entry of the cache may have
_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.2


def lock(descriptor: int, kind: int, seconds: float, waiting: Callable[[], None] = lambda: None) -> None:
    """Lock a file, waiting for at most `seconds`. Raise OSError if another process holds the lock until then."""
    ends = time.monotonic() + seconds
    is_first = True
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > ends:
                raise
        if is_first:
            waiting()
        is_first = False
        time.sleep(_POLL_SECONDS)


def files_below(path: str) -> Iterator[str]:
    """Yield the regular files below `path`, by their names relative to it. Raise OSError."""

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(path, onerror=fail, followlinks=True):
        for name in names:
            found = os.path.join(folder, name)
            if os.path.isfile(found):
                yield os.path.relpath(found, path)


def size_below(path: str) -> int:
    return sum(os.path.getsize(os.path.join(path, name)) for name in files_below(path))


def file_hash(path: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. Raise OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def copied(folder: str, target: str, name: str, digest: str, max_bytes: int) -> int:
    """Copy the file `name` of `folder` to the folder `target`, and return its size. Raise OSError, ValueError if it is
    no regular file, its SHA-256 is not `digest`, or it is larger than `max_bytes`.

    It is copied and not linked: whoever has the file open could go on writing to it.
    """
    if not _FILE.fullmatch(name):
        raise ValueError(f"{name!r} is no file of an entry")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(os.path.join(folder, name), flags), "rb") as source:
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            raise ValueError(f"{name} is no regular file")
        path = os.path.join(target, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        size, found = 0, hashlib.sha256()
        with open(path, "xb") as copy:
            while chunk := source.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise ValueError(f"{name} has more than {max_bytes:,} bytes")
                found.update(chunk)
                copy.write(chunk)
    if found.hexdigest() != digest:
        raise ValueError(f"{name} was changed after it was proven")
    return size


def changed(folder: str, files: Mapping[str, str]) -> str:
    """Return the first of `files`, by name → SHA-256, that is not in `folder` as it should be; "" if all are."""
    for name, digest in sorted(files.items()):
        try:
            if file_hash(os.path.join(folder, name)) != digest:
                return name
        except OSError:
            return name
    return ""
