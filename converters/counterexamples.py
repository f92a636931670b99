"""Inputs on which forms were wrong in service, kept beside the cache's entries by the content of the SavedModel.

They are no part of an entry: other versions of the converters, or of dropserve, make an entry of their own, and must
not prove what clients have refuted. They are what clients have sent, so only the server's user can read them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from backends.samples import Sample, new_file, read_samples, write_samples
from converters.cases import Inputs

__all__ = ["keep", "known"]

_FOLDER = "counterexamples"
_MAX_KEPT = 8  # of a SavedModel
_MAX_BYTES = 8 << 20  # of one
_MAX_FILES = 64  # of SavedModels: those go whose last one is the oldest


def known(cache_dir: str, content: str) -> Mapping[str, Sequence[Inputs]]:
    """Return the inputs that are kept of the SavedModel with the hash `content`, by signature; none if they cannot
    be read."""
    found: dict[str, list[Inputs]] = {}
    with contextlib.suppress(OSError, ValueError):
        for sample in read_samples(_path(cache_dir, content)):
            found.setdefault(sample.signature, []).append(sample.inputs)
    return found


def keep(cache_dir: str, content: str, signature: str, inputs: Inputs) -> str:
    """Keep inputs on which a form of the SavedModel with the hash `content` was wrong; return the file, or "" if they
    are too large, or enough are there. Raise OSError."""
    kept = known(cache_dir, content)
    path = _path(cache_dir, content)
    if any(_equal(each, inputs) for each in kept.get(signature, ())):
        return path
    if sum(map(len, kept.values())) >= _MAX_KEPT or sum(array.nbytes for array in inputs.values()) > _MAX_BYTES:
        return ""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{secrets.token_hex(4)}"
    pairs = [*((name, each) for name, found in kept.items() for each in found), (signature, inputs)]
    try:
        file = new_file(temporary)
        try:
            write_samples(file, (Sample(0, 1, name, each, {}) for name, each in pairs))
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _remove_oldest(os.path.dirname(path))
    return path


def _path(cache_dir: str, content: str) -> str:
    return os.path.join(cache_dir, _FOLDER, content)


def _equal(one: Inputs, other: Inputs) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[alias], other[alias]) for alias in one)


def _remove_oldest(folder: str) -> None:
    with contextlib.suppress(OSError):
        files = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime_ns)
        for entry in files[:-_MAX_FILES]:
            os.unlink(entry.path)
