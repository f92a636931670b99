"""Parses the text of a REST body into Python values, and quotes parts of it for errors."""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson

from appliance.core.errors import Code, ServingError
from appliance.protocols.json_cost import UNBOUNDED, check_objects
from appliance.protocols.json_faults import syntax_fault

__all__ = ["BOM", "cut", "load", "load_object", "not_an_object", "quoted", "refusal", "signature_name", "start"]

# Smaller documents have too few lists for the garbage collector to matter.
_GC_BYTES = 1 << 16
# json recurses on the C stack. This is deeper than any tensor, and far below the interpreter's own limit.
_MAX_LENIENT_DEPTH = 256
_EXCERPT_CHARACTERS = 80

BOM = b"\xef\xbb\xbf"
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# Possessive, with an optional end, so that even an unterminated string takes only one pass.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
# Numbers of RapidJSON that Python's json does not accept, and strings, in which they are text. "Infi" is neither.
_OWN_NUMBERS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|-NaN|Inf(?!i)', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def load(body: bytes, room: int = UNBOUNDED) -> Any:
    """Return `body` as Python values, which take at most `room` bytes.

    Raise ServingError: INVALID_ARGUMENT if it is not JSON, TooCostlyError if they would take more.
    """
    if not body:
        raise refusal("JSON Parse error: The document is empty")
    check_objects(body, room)
    try:
        if len(body) < _GC_BYTES:
            return orjson.loads(body)
        with _no_garbage_collection():
            return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" in body or b"Inf" in body:
            return _load_with_nan(body)
        raise _syntax_refusal(body, error) from None


def load_object(body: bytes, room: int = UNBOUNDED) -> dict[str, Any]:
    """Return `body` as an object, like `load`; a byte order mark at its start is ignored."""
    value = load(body.removeprefix(BOM), room)
    if type(value) is not dict:
        raise not_an_object(body)
    return value


def not_an_object(body: bytes) -> ServingError:
    """Return the error for a body that is JSON, but not an object."""
    return refusal(f"JSON Value: {start(body)} Is not object")


def signature_name(document: Any, body: bytes) -> str:
    """Return the "signature_name" of `document`, any parser's view of `body`; "" if it has none."""
    name = document["signature_name"] if "signature_name" in document else ""  # noqa: SIM401  # simdjson declares no get
    if not isinstance(name, str):
        raise refusal(
            f"JSON Value: {start(body)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def _load_with_nan(body: bytes) -> Any:
    depth = _depth(body)
    if depth > _MAX_LENIENT_DEPTH:
        raise refusal(
            f"JSON Parse error: {depth} levels of nesting; beside NaN or Inf, {_MAX_LENIENT_DEPTH} are allowed"
        )
    text = _for_python(body)
    try:
        value = json.loads(text.decode(), parse_float=_finite)
        if _SURROGATE.search(body):
            # Python's strings can hold half of a surrogate pair, but UTF-8, and so a tensor or an answer, cannot.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _syntax_refusal(body, error if text is body else None) from None
    except (ValueError, RecursionError) as error:  # numbers out of range, invalid UTF-8; the caller's deep stack
        raise refusal(f"JSON Parse error: {cut(str(error))}") from None
    return value


def _for_python(body: bytes) -> bytes:
    """Return `body` with its numbers as Python's json writes them.

    Inf, -Inf and -NaN (kParseNanAndInfFlag in RapidJSON's `reader.h`) become Infinity, -Infinity and NaN. Return the
    same object if it has none of them.
    """
    if b"-NaN" not in body and body.count(b"Inf") == body.count(b"Infinity"):
        return body
    return _OWN_NUMBERS.sub(_python_number, body)


def _python_number(found: re.Match[bytes]) -> bytes:
    return {b"Inf": b"Infinity", b"-NaN": b"NaN"}.get(found[0], found[0])


def _syntax_refusal(body: bytes, error: json.JSONDecodeError | None) -> ServingError:
    """Return the error for a body that is not JSON.

    `error` is a parser's error for it; None if that read another text.
    """
    fault = syntax_fault(body) or ("Invalid value." if error is None else f"{error.msg} at offset: {error.pos}")
    return refusal(f"JSON Parse error: {fault}")


def _depth(body: bytes) -> int:
    """Return the deepest nesting of lists and objects in `body`."""
    brackets = np.frombuffer(_STRING.sub(b"", body).translate(None, _NOT_BRACKETS), np.uint8)
    opening = (brackets == ord("[")) | (brackets == ord("{"))
    return int(np.cumsum(np.where(opening, 1, -1)).max(initial=0))


def _finite(text: str) -> float:
    """Return the number that `text` states. Raise ValueError if it is too large, as the other two parsers do.

    NaN and Infinity are not passed here.
    """
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"Number too big to be stored in double: {cut(text)}")
    return number


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector: a document's many small lists would cost half of the parsing time in collections."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def refusal(message: str, remedy: str = "") -> ServingError:
    """Return an INVALID_ARGUMENT error."""
    return ServingError(Code.INVALID_ARGUMENT, message, remedy)


def quoted(value: Any) -> str:
    """Return the beginning of `value` as JSON."""
    text = ""
    for chunk in json.JSONEncoder(ensure_ascii=False).iterencode(value):  # lazily, because the value may be large
        text += chunk
        if len(text) > _EXCERPT_CHARACTERS:
            break
    return cut(text)


def start(body: bytes) -> str:
    """Return the beginning of `body` as text."""
    return cut(body[: 4 * _EXCERPT_CHARACTERS].decode(errors="replace").strip())


def cut(text: str) -> str:
    """Return `text`, cut to the length of a quotation."""
    return text if len(text) <= _EXCERPT_CHARACTERS else text[:_EXCERPT_CHARACTERS] + "..."
