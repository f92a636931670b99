"""Reads configuration files, which are small regular files but may be replaced by anything while the server runs."""

from __future__ import annotations

import errno
import os
import stat

from appliance.core.errors import ConfigError

__all__ = ["read_config_file", "read_config_text"]

_MAX_CONFIG_BYTES = 16 << 20  # enough for a hundred thousand models
_REMEDIES = {
    errno.ENOENT: "correct its path, or make it",
    errno.EACCES: "let the server's user read it, and enter each folder above it",
}


def read_config_file(path: str, what: str, max_bytes: int = _MAX_CONFIG_BYTES) -> bytes:
    """Return the bytes of the file at `path`; `what` names it in errors, such as "the ssl_config_file".

    Raise ConfigError if it cannot be read, is not a regular file, or has more than `max_bytes`.
    """
    try:
        # A named pipe would block the open for ever without O_NONBLOCK, and a device may have no end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"cannot read {what} {path}: it is not a file", "give the path of a text file")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}", _REMEDIES.get(error.errno or 0, "")) from None
    except ValueError as error:  # a NUL character in the path
        raise ConfigError(f"cannot read {what} {path!r}: {error}") from None
    if len(data) > max_bytes:
        raise ConfigError(f"{what} {path} has more than {max_bytes:,} bytes", "is it another file?")
    return data


def read_config_text(path: str, what: str, max_bytes: int = _MAX_CONFIG_BYTES) -> str:
    """Return the text of the file at `path`, like `read_config_file`. Raise ConfigError also if it is not UTF-8."""
    try:
        return read_config_file(path, what, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not UTF-8 text: {error}") from None
