"""How much memory a JSON text takes once it is parsed, told from its bytes before it is. Pure.

A Python list takes 88 bytes with its place in another, and is two bytes of text: 60 MB of `[],` would take 1.7 GB. So a
large text is parsed only if what comes of it has room. The figures are CPython 3.11's and orjson's, rounded up, and
simdjson's: 4 bytes for each token and 8 or 16 for its place on the tape.
"""

from __future__ import annotations

import numpy as np

from appliance.core.errors import Code, ServingError

__all__ = ["UNBOUNDED", "TooCostlyError", "check_index", "check_objects"]

UNBOUNDED = 1 << 62
"""Room for a text that is small enough for any cost."""

_STEP_BYTES = 1 << 17  # of the text at a time, so that what numpy compares stays in the processor's cache

_INDEX_TEXT = 12  # for each byte of a text: more tokens than bytes cannot be
_INDEX_NUMBER, _INDEX_BRACKET = 48, 28  # for a number and its comma: tape, tokens, its 64 bits, the input's own bits
_INDEX_MOST = _INDEX_TEXT + _INDEX_NUMBER // 2  # for each byte of `0,0,0`
_TEXT, _WIDE_TEXT = 1, 4  # for each byte of strings: one character that is not Latin makes a string four times as wide
_VALUE = 40  # a float and its place in a list that grows
_LIST, _OBJECT = 88, 240
_PAIR = 140  # a name, and its place in an object that grows
_QUOTE = 70  # half of a string's header, as text and as bytes


class TooCostlyError(ServingError):
    """A body that would take more memory than there is room for."""

    def __init__(self, nbytes: int, cost: int, room: int) -> None:
        super().__init__(
            Code.RESOURCE_EXHAUSTED,
            f"Parsing the body's {nbytes:,} bytes of JSON takes up to {cost:,} bytes of memory; {room:,} are allowed",
            "send fewer values at once, use gRPC, or raise max_inflight_bytes",
        )

    @property
    def http_status(self) -> int:
        """The HTTP status: the same body will not do later, as 429 would say."""
        return 413


def check_index(text: bytes, room: int) -> None:
    """Raise TooCostlyError if simdjson's index of `text`, and the numbers in it, may take more than `room` bytes."""
    if _INDEX_MOST * len(text) <= room:
        return
    numbers = _INDEX_NUMBER * _count(text, b",")
    cost = numbers + _INDEX_TEXT * len(text)
    if cost > room:  # count the brackets too, to be sure
        cost = numbers + 2 * _INDEX_BRACKET * (_count(text, b"[") + _count(text, b"{")) + _strings(text)
    _check(text, cost, room)


def check_objects(text: bytes, room: int) -> None:
    """Raise TooCostlyError if the Python objects of `text` may take more than `room` bytes."""
    if room >= UNBOUNDED:
        return
    cost = (
        _VALUE * _count(text, b",")
        + _LIST * _count(text, b"[")
        + _OBJECT * _count(text, b"{")
        + _PAIR * _count(text, b":")
        + _strings(text)
    )
    _check(text, cost, room)


def _strings(text: bytes) -> int:
    return _QUOTE * _count(text, b'"') + (_TEXT if text.isascii() else _WIDE_TEXT) * len(text)


def _check(text: bytes, cost: int, room: int) -> None:
    if cost > room:
        raise TooCostlyError(len(text), cost, room)


def _count(text: bytes, character: bytes) -> int:
    """Return how often `character` occurs (30 MB: 4 ms; bytes.count takes 9)."""
    codes, wanted = np.frombuffer(text, np.uint8), character[0]
    return sum(
        int(np.count_nonzero(codes[start : start + _STEP_BYTES] == wanted))
        for start in range(0, len(codes), _STEP_BYTES)
    )
