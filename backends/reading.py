"""Read files of a version folder by position; they may be half-copied or hostile.

Source of the protobuf wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from backends.contract import BackendError, Code, IncompleteError

Schema = Mapping[int, "Schema"]
"""The fields of a message that hold messages → their fields."""

VARINT, _FIXED64, BYTES, _GROUP, _GROUP_END, _FIXED32 = 0, 1, 2, 3, 4, 5  # wire types

# A bound for hostile files. Pure Python walks about a million fields a second; real graphs have up to a few million.
MAX_FIELDS = 20_000_000
_MAX_GROUPS = 100  # nested, as in protobuf's parsers


class Reader:
    """A file, or a part of one in memory, read by position. `name` is its path in the model folder, for messages.

    Files are read, not mapped: a file that is truncated while it is mapped kills the process (SIGBUS), and a copy that
    starts again truncates it.
    """

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._file = file
        self._fields_left = MAX_FIELDS

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def damaged(self, at: int, what: str) -> IncompleteError:
        """Return the error for damage at byte `at`."""
        return IncompleteError(f"{self.name} is damaged, or not written yet, at byte {at:,} of {self.size:,}: {what}")

    def read(self, at: int, size: int) -> bytes:
        """Return `size` bytes from byte `at`. Raise IncompleteError if the file ends before."""
        self._file.seek(at)
        data = self._file.read(size)
        if len(data) < size:
            raise IncompleteError(f"{self.name} is cut off at byte {at + len(data):,}, before byte {at + size:,}")
        return data

    def mapped(self) -> mmap.mmap:
        """Return a read-only mapping of the whole file. Keep it only for a short time, for the reason in the class."""
        return mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the fields of the protobuf message in the bytes [start, end): (number, wire type, value, stop).

        `value` is the number of a varint, else the position of the bytes that end at `stop`. Groups are skipped: our
        messages have none, but a parser accepts unknown ones. Raise IncompleteError or BackendError.
        """
        at = start
        groups: list[int] = []  # the numbers of the open groups
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise BackendError(Code.RESOURCE_EXHAUSTED, f"{self.name} has more than {MAX_FIELDS:,} fields")
            self._file.seek(at)
            tag = self._varint()
            number, wire_type = tag >> 3, tag & 7
            if number and wire_type == _GROUP and len(groups) < _MAX_GROUPS:
                groups.append(number)
                at = self._file.tell()
                continue
            if number and wire_type == _GROUP_END and groups[-1:] == [number]:
                groups.pop()
                at = self._file.tell()
                continue
            if number == 0 or wire_type not in (VARINT, _FIXED64, BYTES, _FIXED32):
                raise self.damaged(at, "no field begins there")
            if wire_type == VARINT:
                value = self._varint()
                stop = self._file.tell()
            else:
                size = self._varint() if wire_type == BYTES else 8 if wire_type == _FIXED64 else 4
                value = self._file.tell()
                stop = value + size
            if stop > self.size:
                raise IncompleteError(f"{self.name} is cut off at byte {self.size:,}, before byte {stop:,}")
            if stop > end:
                raise self.damaged(at, "a field ends outside its message")
            if not groups:
                yield number, wire_type, value, stop
            at = stop

    def messages(self, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of each value (message or string) of the field `number`."""
        for field, wire_type, value, stop in self.fields(start, end):
            if field == number and wire_type == BYTES:
                yield value, stop

    def walk(self, start: int, end: int, schema: Schema) -> None:
        """Raise IncompleteError unless the bytes [start, end) are a message whose `schema` messages are well-formed."""
        for number, wire_type, value, stop in self.fields(start, end):
            if number in schema and wire_type == BYTES:
                self.walk(value, stop, schema[number])

    def varints(self, at: int, count: int) -> list[int]:
        """Return `count` varints from byte `at`. Raise IncompleteError."""
        self._file.seek(at)
        return [self._varint() for _ in range(count)]

    def position(self) -> int:
        """Return the position after what was read last."""
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


def open_file(root: str, name: str) -> Reader:
    """Open the regular file `name` in the version folder `root`.

    Raise IncompleteError if it is missing or cannot be read, BackendError if it is not a regular file.
    """
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
    return Reader(os.fdopen(descriptor, "rb"), name, status.st_size)
