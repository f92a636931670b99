"""CRC-32C (Castagnoli) as TensorFlow stores it, without a native library: numpy computes many stretches at once.

Sources: the polynomial and the bit order are RFC 3720's (12.1); the mask is `xla/tsl/lib/hash/crc32c.h`'s.
"""

from __future__ import annotations

import numpy as np

__all__ = ["crc32c", "masked_crc32c"]

_POLYNOMIAL = 0x82F63B78  # reflected
_SHORT_BYTES = 2048  # up to this size the plain loop is faster
_CHUNK_BYTES = 4 << 20  # bounds the memory of one step to about three times as much
_LANES = 2048  # a power of two


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the checksum of `data`, rotated and offset so that data that contains checksums can be checksummed."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """Return the checksum of `data`: about 10 MB a second for short data, ten times as fast for long."""
    view = memoryview(data)
    crc = 0xFFFFFFFF
    for start in range(0, len(view), _CHUNK_BYTES):
        chunk = view[start : start + _CHUNK_BYTES]
        crc = _loop(crc, chunk) if len(chunk) <= _SHORT_BYTES else _lanes(crc, chunk)
    return crc ^ 0xFFFFFFFF


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _make_table()
_TABLE_ARRAY = np.array(_TABLE, np.uint32)


def _loop(crc: int, data: memoryview) -> int:
    table = _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def _lanes(crc: int, data: memoryview) -> int:
    """Return the register after `data`, of at least four bytes, if it was `crc` before.

    The register is linear in its start and in the data (over GF(2)). So stretches of equal length are computed side by
    side, each from 0, and joined in pairs: the left one advanced by as many zero bytes as the right one has, plus the
    right one. Zeros before the data leave a register of 0 unchanged; starting from `crc` is the same as starting from 0
    with `crc` added to the first four bytes.
    """
    doublings = max(0, (len(data) - 1).bit_length() - (_LANES - 1).bit_length())
    width = 1 << doublings  # bytes of a lane
    padded = np.zeros(_LANES * width, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    first = padded[len(padded) - len(data) :][:4]
    first ^= np.frombuffer(crc.to_bytes(4, "little"), np.uint8)
    state = np.zeros(_LANES, np.uint32)
    for column in np.ascontiguousarray(padded.reshape(_LANES, width).T):
        state = _TABLE_ARRAY[(state ^ column) & 0xFF] ^ state >> np.uint32(8)
    # Column i is what one zero byte makes of a register that is 1 << i; squared, two zero bytes; and so on.
    one_bit = np.uint32(1) << np.arange(32, dtype=np.uint32)
    shift = _TABLE_ARRAY[one_bit & 0xFF] ^ one_bit >> np.uint32(8)
    for _ in range(doublings):
        shift = _moved(shift, shift)
    while len(state) > 1:
        state = _moved(state[0::2], shift) ^ state[1::2]
        shift = _moved(shift, shift)
    return int(state[0])


def _moved(registers: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return each of `registers` after the number of zero bytes that `shift` stands for."""
    result = np.zeros_like(registers)
    for bit in range(32):
        result ^= np.where(registers >> np.uint32(bit) & np.uint32(1), shift[bit], np.uint32(0))
    return result
