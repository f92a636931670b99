"""The error for a text that is not JSON, in the words of RapidJSON 1.1, which TensorFlow Serving sends.

orjson finds the place, and its words are translated. RapidJSON says more about a text that ends too early, depending on
the list or object that it ends in. Source: RapidJSON's `reader.h` and `error/en.h`.
"""

from __future__ import annotations

import re

import numpy as np
import orjson

__all__ = ["syntax_fault"]

_VALUE = "Invalid value."
_NAME = "Missing a name for object member."
_COLON = "Missing a colon after a name of object member."
_OBJECT = "Missing a comma or } after an object member."
_ARRAY = "Missing a comma or ] after an array element."
_ROOT = "The document root must not be followed by other values."
_QUOTE = "Missing a closing quotation mark in string."
_ESCAPE = "Invalid escape character in string."
_HEX = "Incorrect hex digit after \\u escape in string."
_SURROGATE = "The surrogate pair in string is invalid."
_FRACTION = "Miss fraction part in number."
_EXPONENT = "Miss exponent in number."
_TOO_BIG = "Number too big to be stored in double."

# A part of orjson's message → RapidJSON's message for the same place. The first match counts.
_WORDS = (
    ("string key", _NAME),
    ("',' or ']'", _ARRAY),
    ("',' or '}'", _OBJECT),
    ("':' after key", _COLON),
    ("a JSON value", _VALUE),
    ("content after document", _ROOT),
    ("surrogate in string", _SURROGATE),
    ("escaped sequence", _ESCAPE),
    ("escaped character", _ESCAPE),
    ("control character", _ESCAPE),
    ("is infinity", _TOO_BIG),
    ("after decimal point", _FRACTION),
    ("after exponent", _EXPONENT),
    ("after sign", _VALUE),
)
# Parsing a larger text a second time would delay other requests.
_MAX_BYTES = 1 << 20

_BLANKS = b" \t\r\n"
# RapidJSON accepts these as numbers (kParseNanAndInfFlag). For orjson each is replaced with a list of the same length;
# no digit may follow that either.
_OWN_NUMBERS = re.compile(rb"-?(?:NaN|Infinity|Inf(?!i))")
_OWN_WORDS = (b"NaN", b"Infinity")  # RapidJSON reports the first byte that does not match

# Possessive, with an optional end, so that even an unterminated string takes only one pass.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STRING_MARK = b"$"  # replaces a string if only its surroundings matter
_WORD_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.+-"
_LITERALS = (b"true", b"false", b"null")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def syntax_fault(body: bytes) -> str | None:
    """Return the error, such as "Invalid value. at offset: 5", with the offset in bytes.

    None if orjson finds no error or one without a translation, and for texts over 1 MiB.
    """
    if len(body) > _MAX_BYTES:
        return None
    body = _OWN_NUMBERS.sub(lambda found: b"[" + b" " * (len(found[0]) - 2) + b"]", body)
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        found = _translated(body, error.msg, _byte_offset(body, error.pos))
        return None if found is None else f"{found[0]} at offset: {found[1]}"
    return None


def _byte_offset(body: bytes, characters: int) -> int:
    return characters if body.isascii() else len(body.decode(errors="replace")[:characters].encode())


def _translated(body: bytes, words: str, offset: int) -> tuple[str, int] | None:
    if "empty" in words:
        return "The document is empty.", len(body)
    if "end of data" in words:
        return _at_the_end(body)
    if "trailing comma" in words:
        after = offset + 1 + len(body[offset + 1 :]) - len(body[offset + 1 :].lstrip(_BLANKS))
        return (_NAME if body[after : after + 1] == b"}" else _VALUE), after
    if "leading zero" in words:
        return _after_value(_container(_STRING.sub(_STRING_MARK, body[:offset]))), offset + 1 + body.startswith(
            b"-", offset
        )
    if ("a JSON value" in words or "after sign" in words) and body[offset : offset + 1] in (b"N", b"I"):
        return _VALUE, offset + max(_common(body, offset, word) for word in _OWN_WORDS)
    if "invalid literal" in words:
        return _VALUE, offset + max(_common(body, offset, word) for word in _LITERALS)
    if ("escape" in words and body[offset : offset + 2] == b"\\u") and "surrogate" not in words:
        return _HEX, offset
    return next(((text, offset) for part, text in _WORDS if part in words), None)


def _common(body: bytes, offset: int, word: bytes) -> int:
    """Return the number of bytes of `word` that match `body` at `offset`."""
    return next((i for i in range(len(word)) if body[offset + i : offset + i + 1] != word[i : i + 1]), len(word))


def _at_the_end(body: bytes) -> tuple[str, int]:
    """Return what a text that ends too early lacks, and the offset."""
    text, strings = _STRING.subn(_STRING_MARK, body)
    text, end = text.rstrip(_BLANKS), len(body)
    if strings and strings == _STRING.subn(b"", body + b'"')[1]:  # another quote would end a string, not begin one
        escaping = (len(body) - len(body.rstrip(b"\\"))) % 2 == 1
        return (_ESCAPE, end - 1) if escaping else (_QUOTE, end)
    container = _container(text)
    last, before = text[-1:], text[:-1].rstrip(_BLANKS)[-1:]
    if last == b"{" or (last == b"," and container == b"{"):
        return _NAME, end
    if last in (b"[", b",", b":"):
        return _VALUE, end
    if last == _STRING_MARK and container == b"{" and before in (b"{", b","):
        return _COLON, end
    word = text[len(text.rstrip(_WORD_BYTES)) :]
    return (_unfinished(word) if word else None) or _after_value(container), end


def _unfinished(word: bytes) -> str | None:
    """Return what `word`, a number or a literal, lacks; None if it is complete."""
    if word[0] in b"-0123456789":
        if word.endswith(b"."):
            return _FRACTION
        if word[-1:] in b"eE+-":
            return _EXPONENT if len(word) > 1 else _VALUE
        return None
    return None if word in _LITERALS else _VALUE


def _after_value(container: bytes) -> str:
    """Return the error if a value is followed by neither a comma nor the end of its container."""
    return _OBJECT if container == b"{" else _ARRAY if container == b"[" else _ROOT


def _container(text: bytes) -> bytes:
    """Return the bracket of the innermost list or object that `text`, without strings, leaves open; b"" if none."""
    brackets = text.translate(None, _NOT_BRACKETS)
    codes = np.frombuffer(brackets, np.uint8)[::-1]
    opened = np.cumsum(np.where((codes == ord("[")) | (codes == ord("{")), 1, -1)) > 0
    if not opened.any():
        return b""
    index = len(brackets) - 1 - int(opened.argmax())
    return brackets[index : index + 1]
