"""What this code is: a verdict holds as long as the code that came to it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Iterable

__all__ = ["code_hash", "own_code"]

_OURS = ("converters", "backends")


def code_hash(paths: Iterable[str]) -> str:
    """The SHA-256 of the files `paths`, and of the code and its tables in the folders `paths`. Raises OSError where one
    cannot be read, or a folder has no code."""
    total = hashlib.sha256()
    for path in paths:
        if os.path.isdir(path):
            files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith((".py", ".json")))
            if not any(file.endswith(".py") for file in files):
                raise FileNotFoundError(f"{path} has no Python files")
        else:
            files = [path]
        for file in files:
            with open(file, "rb") as opened:
                content = opened.read()
            total.update(f"{os.path.basename(file)}:{len(content)}:".encode() + content)
    return total.hexdigest()


@functools.cache
def own_code(others: tuple[str, ...] = ()) -> str:
    """What stands for the code that converts, makes cases, compares and runs forms, and for the files `others`: a hash
    of it, or the version of this release where its sources are not there. Nobody has to keep in mind which of its lines
    matter: all do."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        return code_hash([*(os.path.join(root, package) for package in _OURS), *others])
    except OSError:
        try:
            return f"dropserve {importlib.metadata.version('dropserve')}"
        except importlib.metadata.PackageNotFoundError:
            return "not known"
