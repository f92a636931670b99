"""Parses option values that are more than a plain string: paths, gRPC's arguments, precisions, model names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from appliance.core.errors import ConfigError

__all__ = [
    "check_hang_seconds",
    "check_model_name",
    "local_path",
    "local_paths",
    "parse_channel_arguments",
    "parse_precisions",
]

_LEAST_HANG_SECONDS = 2.0  # gunicorn's master gives a sign of life once a second
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def parse_channel_arguments(text: str) -> dict[str, int | str]:
    """Return gRPC's arguments in `name=value,name=value`; the last of equal names counts. Raise ConfigError.

    As in TensorFlow Serving (`model_servers/server.cc`), a value that is a 32-bit number becomes an int, others a
    string.
    """
    arguments: dict[str, int | str] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or not equals:
            raise ConfigError(
                f"grpc_channel_arguments has {part!r}",
                "write name=value,name=value, such as grpc.max_concurrent_streams=100",
            )
        is_number = _INTEGER.fullmatch(value) is not None and -(2**31) <= int(value) < 2**31
        arguments[name] = int(value) if is_number else value
    return arguments


def local_path(written: str) -> str:
    """Return an absolute path without `file://` and without slashes at its end; "" is kept. Raise ConfigError."""
    path = written.removeprefix("file://")
    if not _is_utf8(path):
        raise ConfigError(f"{path!r} is not UTF-8", "rename the folder or file")
    scheme, found, _ = path.partition("://")
    if found:
        raise ConfigError(f"{path!r} is on {scheme}", "only local folders are served; mount it, or copy it here")
    if path and not os.path.isabs(path):
        raise ConfigError(f"{path!r} is a relative path", f"give an absolute one, such as {os.path.abspath(path)}")
    return path.rstrip("/") or path[:1]


def local_paths(written: Sequence[str]) -> tuple[str, ...]:
    """Return the paths, each like `local_path`. Raise ConfigError."""
    if "" in written:
        raise ConfigError("one of its paths is empty", "give absolute paths, or leave it out")
    return tuple(map(local_path, written))


def parse_precisions(text: str) -> tuple[str, ...]:
    """Return the precisions in a text such as `float32,int8`. Raise ConfigError."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found or not set(found) <= {"float32", "float16", "int8"}:
        raise ConfigError(
            f"acceleration_precisions is {text!r}", "it is one or more of float32, float16 and int8, with commas"
        )
    return found


def check_model_name(name: str) -> object:
    """Return `name` if it is a valid name of a model. Raise ConfigError otherwise."""
    if not name or "/" in name or ":" in name:
        raise ConfigError(f"{name!r} is no model's name", "a model's name is not empty and has no / and no :")
    if not _is_utf8(name):
        raise ConfigError(f"{name!r} is no model's name", "a model's name is UTF-8")
    return name


def check_hang_seconds(seconds: float) -> object:
    """Return `seconds` if it is a valid hang_seconds. Raise ConfigError otherwise."""
    if 0 < seconds < _LEAST_HANG_SECONDS:
        raise ConfigError(f"hang_seconds is {seconds:g}", f"it is 0 (off), or at least {_LEAST_HANG_SECONDS:g}")
    return seconds


def _is_utf8(text: str) -> bool:
    """Return whether `text`, of the command line or a file's name, was UTF-8: other bytes are lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
