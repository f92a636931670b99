"""Libraries of custom operators: whether a file may be trusted, and how TensorFlow takes it.

Such a library is native code that runs with the server's rights, so nobody else may be able to write it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from backends.contract import BackendError, Code

__all__ = ["OpLibraryError", "check", "load"]

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class OpLibraryError(Exception):
    """A file that is no library to load: `message` says what is wrong with it, `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


def check(path: str) -> None:
    """Raises OpLibraryError unless `path` is a regular file of root's or of this process's user that none but its owner
    can write, or replace in a folder where everybody may write."""
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
    # A link's own folder decides what it leads to.
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
    """Has TensorFlow, in this process, load the libraries `paths`. Raises BackendError for the first that it cannot
    take, or that may not be trusted any more."""
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
