"""TensorFlow's tables (LevelDB's) as older exporters wrote them: with blocks that Snappy has compressed."""

from __future__ import annotations

import struct

from backends.crc32c import masked_crc32c

PLAIN, SNAPPY = 0, 1  # how a block of a table is compressed


def entry(key: bytes, value: bytes) -> bytes:
    """An entry of a block that shares nothing with the one before it."""
    return varint(0) + varint(len(key)) + varint(len(value)) + key + value


def table_of(*blocks: tuple[bytes, int], listing: bytes = b"") -> bytes:
    """A table of these blocks, each with its kind of compression; the index block lists them, or is `listing`."""
    written = b""

    def write(block: bytes, kind: int) -> bytes:
        nonlocal written
        handle = varint(len(written)) + varint(len(block))
        written += block + bytes([kind])
        written += struct.pack("<I", masked_crc32c(block + bytes([kind])))
        return handle

    handles = [write(block, kind) for block, kind in blocks]
    listed = b"".join(entry(b"\xff%05d" % at, handle) for at, handle in enumerate(handles)) + struct.pack("<II", 0, 1)
    footer = write(struct.pack("<II", 0, 1), PLAIN) + write(listing or listed, PLAIN)
    return written + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def blocks_of(index: bytes) -> list[bytes]:
    """The one data block of a small table that is not compressed."""
    first, second = index[-48], index[-47]  # where the meta index block begins, behind that of the entries
    entries_bytes = first if first < 0x80 else first & 0x7F | second << 7
    return [index[: entries_bytes - 5]]


def literals(data: bytes) -> bytes:
    """Snappy's format without any copy: literals of up to 60 bytes, then one whose length takes two bytes."""
    parts = [data[at : at + 60] for at in range(0, min(len(data), 600), 60)]
    rest = data[600:]
    short = b"".join(bytes([len(part) - 1 << 2]) + part for part in parts)
    return varint(len(data)) + short + (b"\xf4" + struct.pack("<H", len(rest) - 1) + rest if rest else b"")


def copies(data: bytes) -> bytes:
    """Snappy's format by a greedy search: copies of all three kinds, also such that overlap what they write."""
    written = varint(len(data))
    at = kind = 0
    while at < len(data):
        best = back = 0
        for start in range(max(0, at - 2047), at):
            length = 0
            while length < 64 and at + length < len(data) and data[start + length] == data[at + length]:
                length += 1
            if length > best:
                best, back = length, at - start
        if best < 4:
            written += b"\0" + data[at : at + 1]
            at += 1
            continue
        kind = kind % 3 + 1
        if kind == 1:
            best = min(best, 11)
            written += bytes([1 | best - 4 << 2 | back >> 8 << 5, back & 0xFF])
        else:
            written += bytes([kind | best - 1 << 2]) + back.to_bytes(2 if kind == 2 else 4, "little")
        at += best
    return written


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
