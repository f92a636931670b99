"""Decode Snappy's raw format, in which blocks of TensorFlow's tables may be written.

Source of the format: https://github.com/google/snappy/blob/main/format_description.txt
"""

from __future__ import annotations


def decoded(data: bytes, most: int) -> bytes:
    """Return the decoded `data`. Raise ValueError if it is not Snappy, or states a size over `most` bytes."""
    size, at = _varint(data)
    if size > most:
        raise ValueError(f"it holds {size:,} bytes, over {most:,}")
    result = bytearray()
    end = len(data)
    while at < end:
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == 0:  # a literal: its length minus one is in the tag, or in the 1 to 4 bytes after it
            length = tag >> 2
            if length >= 60:
                extra = length - 59
                length = int.from_bytes(data[at : at + extra], "little")
                at += extra
            length += 1
            stop = at + length
            if stop > end:
                raise ValueError("a literal ends outside")
            result += data[at:stop]
            at = stop
        else:  # a copy of the output from `back` bytes before its end
            if kind == 1:
                length, extra, high = (tag >> 2 & 7) + 4, 1, tag >> 5 << 8
            else:
                length, extra, high = (tag >> 2) + 1, 2 if kind == 2 else 4, 0
            back = high | int.from_bytes(data[at : at + extra], "little")
            at += extra
            if at > end or not 0 < back <= len(result):
                raise ValueError("a copy begins outside")
            start = len(result) - back
            # A copy that is longer than `back` repeats these bytes.
            result += (
                result[start : start + length] if back >= length else (result[start:] * -(-length // back))[:length]
            )
        if len(result) > size:
            raise ValueError("it holds more than it says")
    if len(result) != size:
        raise ValueError("it holds less than it says")
    return bytes(result)


def _varint(data: bytes) -> tuple[int, int]:
    """Return the number at the beginning, of at most five bytes, and the position after it."""
    value = 0
    for at, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return value, at + 1
    raise ValueError("it does not begin with its length")
