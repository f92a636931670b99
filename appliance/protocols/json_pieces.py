"""Writes a large answer to predict piece by piece, so that its process does other things in between.

The body is the one that `json_output.encode_predict` writes at once. orjson takes a hundred bytes for each row of an
array, also for one without elements: 7 GB for the shape [100,000,000, 0].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import orjson

from appliance.protocols.json_output import check_outputs, encode_predict, encode_value, json_bytes

__all__ = ["array_pieces", "predict_pieces"]

_ROWS = b'{"predictions":'
_PIECE_BYTES = 1 << 20  # about, at most; a string is never divided


def predict_pieces(
    outputs: Mapping[str, np.ndarray], row_format: bool, piece_bytes: int = _PIECE_BYTES
) -> Iterator[bytes]:
    """Yield the body of `encode_predict(outputs, row_format)` in pieces. Raise ServingError as that does."""
    check_outputs(outputs, row_format)
    yield _ROWS if row_format else b'{"outputs":'
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        yield from array_pieces(name, array, piece_bytes)
    elif row_format:
        yield from _rows(outputs, piece_bytes)
    else:
        yield from _object(outputs, piece_bytes)
    yield b"}"


def array_pieces(name: str, array: np.ndarray, piece_bytes: int = _PIECE_BYTES) -> Iterator[bytes]:
    """Yield the JSON of `array` in pieces. Raise ServingError for values that JSON cannot carry."""
    nbytes = json_bytes({name: array})
    if nbytes <= piece_bytes or not array.ndim or not len(array):
        yield encode_value(name, array)
        return
    rows = piece_bytes * len(array) // nbytes  # in a piece
    for start in range(0, len(array), rows or 1):
        yield b"," if start else b"["
        if rows or array.ndim == 1:
            yield encode_value(name, array[start : start + (rows or 1)])[1:-1]
        else:
            yield from array_pieces(name, array[start], piece_bytes)
    yield b"]"


def _rows(outputs: Mapping[str, np.ndarray], piece_bytes: int) -> Iterator[bytes]:
    """Yield the JSON of a list that has an object for each row."""
    count = len(next(iter(outputs.values())))
    if not count:
        yield b"[]"
        return
    row_bytes = json_bytes(outputs) // count + sum(len(name) + 4 for name in outputs)
    rows = piece_bytes // row_bytes
    for start in range(0, count, rows or 1):
        yield b"," if start else b"["
        if rows:
            piece = encode_predict({name: array[start : start + rows] for name, array in outputs.items()}, True)
            yield piece[len(_ROWS) + 1 : -2]
        else:
            yield from _object({name: array[start, ...] for name, array in outputs.items()}, piece_bytes)
    yield b"]"


def _object(outputs: Mapping[str, np.ndarray], piece_bytes: int) -> Iterator[bytes]:
    """Yield the JSON of an object that has each array by its name."""
    start = b"{"
    for name, array in outputs.items():
        yield start + orjson.dumps(name) + b":"
        yield from array_pieces(name, array, piece_bytes)
        start = b","
    yield b"}"
