"""Parses protocol buffers in text format, the format of TensorFlow Serving's configuration files."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf import text_format

from appliance.core.errors import ConfigError
from appliance.protocols import protos

__all__ = ["parse_text"]

T = TypeVar("T", bound=Any)


def parse_text(text: str | bytes, message: T, source: str, remedy: str, *, is_secret: bool = False) -> T:
    """Fill `message` with the fields that `text` states, and return it.

    Raise ConfigError with the file's name `source`, the place of the mistake and what the parser says of it, and
    `remedy`. The parser quotes the text: of one that `is_secret`, only the line's number is told.
    """
    try:
        text_format.Parse(text, message, descriptor_pool=protos.POOL)
    except text_format.ParseError as error:
        line = f" in line {error.GetLine()}" if error.GetLine() else ""
        said = line if is_secret else ": " + str(error).replace(" : ", ": ", 1)
    except UnicodeDecodeError as error:
        said = "" if is_secret else f": it is not UTF-8 text: {error}"
    else:
        return message
    raise ConfigError(f"{source}: Error parsing text-format {message.DESCRIPTOR.full_name}{said}", remedy)
