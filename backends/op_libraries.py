"""Libraries of custom operators: whether a file may be trusted, and loading into TensorFlow.

Such a library is native code that runs with the server's rights, so no other user may be able to write it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from backends.contract import BackendError, Code

__all__ = ["OpLibraryError", "check", "load"]

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class OpLibraryError(Exception):
    """A file that must not or cannot be loaded as a library: `message` says what is wrong, `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


def check(path: str) -> None:
    """Raise OpLibraryError unless the library `path` can be trusted.

    It must be a regular file that belongs to root or this process's user, that only its owner can write, and that
    nobody else can replace in a folder writable by everybody.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise OpLibraryError(
            f"{path} cannot be looked at: {error.strerror}",
            "correct its path, or let the server's user read it and enter each folder above it",
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise OpLibraryError(f"{path} is not a file", "name each library's file (.so)")
    if found.st_uid not in (0, os.geteuid()):
        raise OpLibraryError(
            f"{path} belongs to user {found.st_uid}, who could change what the server runs", f"chown root {path}"
        )
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise OpLibraryError(
            f"{path} may be written by others than its owner (mode {stat.S_IMODE(found.st_mode):04o})",
            f"chmod go-w {path}",
        )
    # The folder of a link decides where the link leads.
    for folder in sorted({os.path.dirname(path), os.path.dirname(os.path.realpath(path))}):
        mode = os.stat(folder).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise OpLibraryError(
                f"everybody may write {folder}, and so replace {path} (mode {stat.S_IMODE(mode):04o})",
                f"chmod o-w {folder}, or move the library elsewhere",
            )
    if not os.access(path, os.R_OK):
        raise OpLibraryError(f"{path} may not be read by the server's user", f"chmod a+r {path}")


def load(paths: Sequence[str]) -> None:
    """Load the libraries `paths` into TensorFlow in this process.

    Raise BackendError for the first that TensorFlow refuses, or that can no longer be trusted.
    """
    if not paths:
        return
    import tensorflow as tf  # noqa: PLC0415 - only workers have it, and need it only with libraries

    for path in paths:
        try:
            check(path)
            tf.load_library(path)
        except OpLibraryError as error:
            raise BackendError(Code.FAILED_PRECONDITION, f"op_libraries: {error}") from error
        except tf.errors.OpError as error:
            raise BackendError(
                Code.FAILED_PRECONDITION,
                f"op_libraries: {path} does not load into TensorFlow {tf.__version__}, which it has to be built for "
                f"exactly: {error.message.removeprefix(path + ': ')}",
            ) from error
