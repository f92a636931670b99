"""Writes named arrays, and the results of classify and regress, as the body of a REST response.

`json_tensors` and `json_examples` read requests. As in TensorFlow Serving (`tensorflow_serving/util/json_tensor.cc`),
whole floats end in `.0`; float32 has the fewest digits that give the same float32 back; float16 and bfloat16 are
written as the equal float32; NaN, Infinity and -Infinity are written without quotes, although that is not JSON.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import orjson

from appliance.core.errors import Code, ServingError
from appliance.protocols.classify_regress import Regression, Result, labels_of

__all__ = ["check_outputs", "encode_predict", "encode_result", "encode_value", "fewest_bytes", "json_bytes"]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The types that orjson writes without a conversion.
_KNOWN = frozenset(np.dtype(code) for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"))


_TEXT_BYTES = {"f": 3, "i": 3, "u": 3, "b": 6}  # at most, for each byte of an array of the kind
_ESCAPE_BYTES = 6  # of a character that is written as \\u0001
_STRING_BYTES = 12  # the quotes, a comma, and {"b64":}
_LOOKED_AT_BYTES = 4096  # a longer string has its characters counted
_LIST_BYTES = 3  # the brackets and a comma


def json_bytes(outputs: Mapping[str, np.ndarray]) -> int:
    """Return about how many bytes `encode_predict` writes at most."""
    total = 0
    for name, array in outputs.items():
        kind = array.dtype.kind
        if kind == "O":
            is_base64 = name.endswith("_bytes")
            total += sum([_string_bytes(value, is_base64) for value in array.ravel().tolist()])
        else:
            total += _TEXT_BYTES.get(kind, 8) * array.nbytes
        lists = 1
        for size in array.shape[:-1]:
            lists *= size
            total += _LIST_BYTES * lists
    return total


def fewest_bytes(outputs: Mapping[str, np.ndarray]) -> int:
    """Return how many bytes `encode_predict` writes at least."""
    total = 0
    for name, array in outputs.items():
        lists = 1
        for size in array.shape:
            total += 2 * lists
            lists *= size
        if array.dtype.kind != "O":
            total += 2 * array.size
            continue
        is_base64 = name.endswith("_bytes")
        for value in array.ravel().tolist():
            total += len(value) if len(value) <= _LOOKED_AT_BYTES else _string_bytes(value, is_base64)
    return total


def _string_bytes(value: bytes, is_base64: bool) -> int:
    """Return how many bytes a string is written in, at most."""
    if is_base64:
        return len(value) * 4 // 3 + _STRING_BYTES
    if len(value) <= _LOOKED_AT_BYTES:
        return len(value) * _ESCAPE_BYTES + _STRING_BYTES
    codes = np.frombuffer(value, np.uint8)
    escaped = np.count_nonzero(codes < 0x20) * (_ESCAPE_BYTES - 1)
    return len(value) + int(escaped) + value.count(b'"') + value.count(b"\\") + _STRING_BYTES


def encode_predict(outputs: Mapping[str, np.ndarray], row_format: bool) -> bytes:
    """Return `{"predictions": …}` in the row format, else `{"outputs": …}`.

    A single output is written without its name. Several become one object, or one object for each row. Strings
    (`object` arrays of `bytes`) become {"b64": …} if the output's name ends in `_bytes`, else text.

    Raise ServingError (INVALID_ARGUMENT) for outputs that do not have the same number of rows, for types that JSON
    cannot hold, and for strings that are not UTF-8 in an output whose name does not end in `_bytes` (TensorFlow Serving
    sends them, in an answer that no client can parse).
    """
    check_outputs(outputs, row_format)
    data = _encoded(outputs, row_format, finite=True)
    # orjson writes null for numbers that are not finite: searching for that is faster than checking all values before.
    return _encoded(outputs, row_format, finite=False) if b"null" in data else data


def check_outputs(outputs: Mapping[str, np.ndarray], row_format: bool) -> None:
    """Raise ServingError (INVALID_ARGUMENT) for outputs whose number or shapes cannot be written in this format."""
    if not outputs:
        raise _refusal("Cannot convert empty tensor map to JSON")
    if row_format:
        _check_rows(outputs)


def encode_value(name: str, array: np.ndarray) -> bytes:
    """Return the JSON of one array, as `encode_predict` writes it."""
    data = orjson.dumps(_value(name, array, finite=True), option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.dumps(_value(name, array), option=orjson.OPT_SERIALIZE_NUMPY) if b"null" in data else data


def _encoded(outputs: Mapping[str, np.ndarray], row_format: bool, finite: bool) -> bytes:
    """Return the body. `finite`: all values are finite, or it does not matter how the others are written."""
    values: Any
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        values = _value(name, array, finite)
    elif row_format:
        columns = [_rows(name, array, finite) for name, array in outputs.items()]
        values = [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        values = {name: _value(name, array, finite) for name, array in outputs.items()}
    return orjson.dumps({"predictions" if row_format else "outputs": values}, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_result(result: Result) -> bytes:
    """Return `{"results": …}`: a list of [label, score], or a number, for each example.

    A label is "" if the model gives only scores, a score 0.0 if it gives only classes. Raise ServingError
    (INVALID_ARGUMENT) for labels that are not UTF-8.
    """
    values: Any
    if isinstance(result, Regression):
        values = _value("", result.values)
    elif result.classes is None:
        assert result.scores is not None  # one of the two is there
        values = [[["", score] for score in _scores(row)] for row in result.scores]
    else:
        labels = labels_of(result.classes)
        scores = np.zeros(result.classes.shape, np.float32) if result.scores is None else result.scores
        values = [list(zip(*row, strict=True)) for row in zip(labels, map(_scores, scores), strict=True)]
    return orjson.dumps({"results": values}, option=orjson.OPT_SERIALIZE_NUMPY)


def _scores(row: np.ndarray) -> list[Any]:
    """Return the numbers of `row` in a form that orjson writes."""
    if np.isfinite(row).all():
        return list(row)
    return [_value("", score) for score in row]


def _check_rows(outputs: Mapping[str, np.ndarray]) -> None:
    expected = None
    for name, array in outputs.items():
        if not array.ndim:
            raise _refusal(
                f"Tensor name: {name} has no shape information",
                "it is a scalar, which has no rows; ask in the columnar format ('inputs')",
            )
        if expected is not None and len(array) != expected:
            raise _refusal(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {expected}",
                "ask in the columnar format ('inputs')",
            )
        expected = len(array)


def _value(name: str, array: np.ndarray, finite: bool = False) -> Any:
    """Return the whole `array` in a form that orjson writes."""
    if array.dtype.kind == "O":
        return _strings(name, array)
    array = _plain(array)
    if not finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        return _with_nonfinite(array)
    return array if array.ndim else array[()]  # orjson writes numpy's scalars, but not arrays without dimensions


def _rows(name: str, array: np.ndarray, finite: bool) -> Iterable[Any]:
    """Return each `array[i]` in a form that orjson writes."""
    if array.dtype.kind == "O":
        rows: list[Any] = _strings(name, array)
        return rows
    array = _plain(array)
    if not finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        return [_value(name, row) for row in array]
    return array


def _plain(array: np.ndarray) -> np.ndarray:
    """Return `array` as orjson needs it: contiguous, in the machine's byte order, with a dtype that it knows."""
    dtype = array.dtype
    if dtype in _KNOWN and array.flags.c_contiguous:
        return array
    if dtype in (_BFLOAT16, np.float16):
        dtype = np.dtype(np.float32)
    elif dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise _refusal(f"Failed to write JSON value for tensor type: {dtype.name}", "use gRPC for this model")
    return np.asarray(array, dtype.newbyteorder("="), order="C")


def _with_nonfinite(array: np.ndarray) -> orjson.Fragment:
    """Return the JSON of a float array, with each null that orjson writes replaced by NaN, Infinity or -Infinity."""
    values = np.asarray(array)
    tokens = [
        b"NaN" if math.isnan(value) else b"Infinity" if value > 0 else b"-Infinity"
        for value in values[~np.isfinite(values)].tolist()
    ]
    text = orjson.dumps(values if values.ndim else values[()], option=orjson.OPT_SERIALIZE_NUMPY)
    parts = text.split(b"null")
    return orjson.Fragment(b"".join(part + token for part, token in zip(parts, [*tokens, b""], strict=True)))


def _strings(name: str, array: np.ndarray) -> Any:
    """Return nested lists of the shape of `array` (an `object` array of `bytes`)."""
    texts = np.empty(array.size, object)
    if name.endswith("_bytes"):
        texts[:] = [{"b64": binascii.b2a_base64(value, newline=False).decode()} for value in array.ravel()]
    else:
        try:
            texts[:] = [value.decode() for value in array.ravel()]
        except UnicodeDecodeError as error:
            raise _refusal(
                f"Output {name} holds bytes that are not UTF-8 text: {error.object[:20]!r}",
                f"name the output {name}_bytes, and they are sent as base64; or use gRPC",
            ) from None
    return texts.reshape(array.shape).tolist()


def _refusal(message: str, remedy: str = "") -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message, remedy)
