"""Parses protocol buffers in text format, the format of TensorFlow Serving's configuration files."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf import text_format

from appliance.protocols import protos

__all__ = ["TextProtoError", "parse_text"]

T = TypeVar("T", bound=Any)


class TextProtoError(Exception):
    """A text that cannot be parsed, in the words of TensorFlow Serving's parser ("LINE:COLUMN: …").

    `line` is its line number, None if unknown. The message may quote the text.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def parse_text(text: str | bytes, message: T) -> T:
    """Fill `message` with the fields that `text` states, and return it. Raise TextProtoError."""
    try:
        text_format.Parse(text, message, descriptor_pool=protos.POOL)
    except text_format.ParseError as error:
        raise TextProtoError(str(error).replace(" : ", ": ", 1), error.GetLine()) from error
    except UnicodeDecodeError as error:
        raise TextProtoError(f"it is not UTF-8 text: {error}", None) from error
    return message
