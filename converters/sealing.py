"""Seals on what is kept where others may write: HMAC-SHA-256 with the server's key.

A sealed file is the seal, in hexadecimal digits, a line feed, and the body. The seal covers the body and its *subject*:
what the file is and what it belongs to, so that no sealed file can stand in for another.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence

__all__ = ["SealError", "read_sealed", "seal_of", "write_sealed"]

_SEAL_CHARACTERS = 64


class SealError(ValueError):
    """A file is not what the holder of the key has written: another key was used, or the file was changed."""


def seal_of(key: bytes, subject: Sequence[str], body: bytes) -> str:
    """Return the seal of `body` as `subject`."""
    head = json.dumps(["dropserve cache", *subject]).encode()
    return hmac.new(key, b"%d:%b%b" % (len(head), head, body), hashlib.sha256).hexdigest()


def write_sealed(path: str, key: bytes, subject: Sequence[str], body: bytes, mode: int = 0o666) -> str:
    """Write `body` and its seal atomically: a reader sees all of it or nothing. Return the seal. Raise OSError."""
    seal = seal_of(key, subject, body)
    temporary = f"{path}.{secrets.token_hex(4)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(seal.encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return seal


def read_sealed(path: str, key: bytes, subject: Sequence[str], max_bytes: int) -> tuple[str, bytes]:
    """Return the seal and the body that `write_sealed` wrote. Raise OSError; SealError if the seal is another one, or
    the file is larger than `max_bytes`."""
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    seal, body = data[:_SEAL_CHARACTERS], data[_SEAL_CHARACTERS + 1 :]
    expected = seal_of(key, subject, body)
    if (
        len(data) > max_bytes
        or data[_SEAL_CHARACTERS:][:1] != b"\n"
        or not hmac.compare_digest(seal, expected.encode())
    ):
        raise SealError(
            f"{os.path.basename(path)} does not carry this server's seal: it was changed, or sealed with another key; "
            "servers that share a cache need the same key: copy the file of cache_key_file"
        )
    return expected, body
