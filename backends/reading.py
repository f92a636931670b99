"""Reads files of a version folder, which may be half-copied or hostile, by position.

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
"""Which fields of a message hold messages, and of those which."""

VARINT, _FIXED64, BYTES, _GROUP, _GROUP_END, _FIXED32 = 0, 1, 2, 3, 4, 5  # wire types

# A bound for hostile files. Pure Python walks about a million fields a second; real graphs have up to a few million.
_MAX_FIELDS = 20_000_000
_MAX_GROUPS = 100  # in one another, as protobuf's parsers


class Reader:
    """A file, or a part of one in memory, read by position. `name` is its path in the model folder, for messages.

    The files are read, not mapped: one that is truncated below a mapping kills the process (SIGBUS), and starting a
    copy over again truncates.
    """

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._file = file
        self._fields_left = _MAX_FIELDS

    def __enter__(self) -> Reader:
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

    def mapped(self) -> mmap.mmap:
        """The whole file, mapped to be read. See the class: only what is short-lived may be mapped."""
        return mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """The fields of the protobuf message in the bytes [start, end): (number, wire type, value, stop).

        `value` is the number itself of a varint, else the position of the bytes that end at `stop`. Groups are left
        out: none of our messages has any, but a parser takes those that it does not know.
        """
        at = start
        groups: list[int] = []  # the numbers of those that are open
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise BackendError(Code.RESOURCE_EXHAUSTED, f"{self.name} has more than {_MAX_FIELDS:,} fields")
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
        """Where the values (messages, strings) of the field `number` begin and end."""
        for field, wire_type, value, stop in self.fields(start, end):
            if field == number and wire_type == BYTES:
                yield value, stop

    def walk(self, start: int, end: int, schema: Schema) -> None:
        """Raises unless the bytes [start, end) are a message in which every message of `schema` is well-formed."""
        for number, wire_type, value, stop in self.fields(start, end):
            if number in schema and wire_type == BYTES:
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


def open_file(root: str, name: str) -> Reader:
    """Opens the regular file `name` of the version folder `root`.

    Raises IncompleteError where it is missing or cannot be read, BackendError where it is something else.
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
