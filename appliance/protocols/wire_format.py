"""Protocol buffers' wire format, read and written by hand where protobuf's objects would cost too much.

Format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Budget", "UnusualError", "checked_fields", "field", "fields", "long_varint", "varint"]


class UnusualError(Exception):
    """The walk met an unknown form: protobuf's parser must read the message."""


def fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of the message at [position, end): (tag, start, stop) for bytes, (tag, value, _) for a varint.

    Raise UnusualError for field numbers above 15 and fixed-width fields, IndexError for truncated data.
    """
    while position < end:
        tag = data[position]
        value = data[position + 1]
        position += 2
        if value >= 0x80:
            value, position = long_varint(data, position, value)
        kind = tag & 0x87
        if kind == 2:
            stop = position + value
            if stop > end:
                raise UnusualError
            yield tag, position, stop
            position = stop
        elif kind == 0 and position <= end:
            yield tag, value, position
        else:
            raise UnusualError


class Budget:
    """How many fields may be walked yet, of several messages together."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


def checked_fields(data: bytes, start: int, stop: int, limit: int | Budget) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of bytes of the message at [start, stop): (number, start, stop); all forms of fields are known.

    Raise ValueError for more than `limit` fields of any kind (a Budget is spent by them), IndexError for truncated
    data, UnusualError for what protobuf's parser refuses, and for groups, which no message here has.
    """
    budget = limit if isinstance(limit, Budget) else Budget(limit)
    position = start
    while position < stop:
        if budget.left <= 0:
            raise ValueError(limit)
        budget.left -= 1
        tag, position = _varint_at(data, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint_at(data, position)
        elif kind == 1:
            position += 8
        elif kind == 2:
            size, position = _varint_at(data, position)
            yield tag >> 3, position, position + size
            position += size
        elif kind == 5:
            position += 4
        else:
            raise UnusualError
        if position > stop:
            raise UnusualError


def _varint_at(data: bytes, position: int) -> tuple[int, int]:
    value = data[position]
    return (value, position + 1) if value < 0x80 else long_varint(data, position + 1, value)


def long_varint(data: bytes, position: int, first: int) -> tuple[int, int]:
    """Return the varint whose first byte was `first`, and the position after it."""
    value = first & 0x7F
    for shift in range(7, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise UnusualError


def varint(value: int) -> bytes:
    """Return the varint of `value`, which is not negative."""
    if value < 0x80:
        return b"%c" % value
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def field(number: int, content: bytes) -> bytes:
    """Return a serialized field of bytes, text or a message; `number` is at most 15."""
    return b"%c%b%b" % (number << 3 | 2, varint(len(content)), content)
