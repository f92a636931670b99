"""Inputs on which forms were wrong in service, kept beside the cache's entries by the content of the SavedModel.

They are no part of an entry: other versions of the converters, or of dropserve, make an entry of their own, and must
not prove what clients have refuted. They are what clients have sent, so only the server's user can read them. They are
sealed as entries are.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from backends.samples import Sample, new_file, pack_samples, unpack_samples
from converters.cases import Inputs
from converters.sealing import read_sealed, write_sealed

__all__ = ["copy", "keep", "known"]

_FOLDER = "counterexamples"
_MAX_KEPT = 8  # of a SavedModel
_MAX_BYTES = 8 << 20  # of one
_MAX_FILE_BYTES = 2 * _MAX_KEPT * _MAX_BYTES
_MAX_FILES = 64  # of SavedModels: those go whose last one is the oldest


def known(cache_dir: str, content: str, key: bytes) -> Mapping[str, Sequence[Inputs]]:
    """Return the inputs that are kept of the SavedModel with the hash `content`, by signature; none if they cannot
    be read, or do not carry the seal of `key`."""
    found: dict[str, list[Inputs]] = {}
    with contextlib.suppress(OSError, ValueError):
        for sample in unpack_samples(io.BytesIO(_body(cache_dir, content, key))):
            found.setdefault(sample.signature, []).append(sample.inputs)
    return found


def copy(cache_dir: str, content: str, key: bytes, folder: str) -> str:
    """Copy the inputs that are kept of the SavedModel to a file in `folder`, for a process without the key; return the
    file, "" if there are none."""
    path = os.path.join(folder, "refuted")
    try:
        body = _body(cache_dir, content, key)
        with open(new_file(path), "wb") as file:
            file.write(body)
    except (OSError, ValueError):
        return ""
    return path


def keep(cache_dir: str, content: str, key: bytes, samples: Iterable[Sample]) -> str:
    """Keep the inputs of `samples`, on which a form of the SavedModel with the hash `content` was wrong; return the
    file, or "" if they are too large, or enough are there. Raise OSError."""
    kept = [(name, inputs) for name, found in known(cache_dir, content, key).items() for inputs in found]
    path, added, has_all = _path(cache_dir, content), False, False
    for sample in samples:
        if any(name == sample.signature and _equal(inputs, sample.inputs) for name, inputs in kept):
            has_all = True
        elif len(kept) < _MAX_KEPT and sum(array.nbytes for array in sample.inputs.values()) <= _MAX_BYTES:
            kept.append((sample.signature, sample.inputs))
            added = True
    if added:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        body = io.BytesIO()
        pack_samples(body, (Sample(0, 1, name, inputs, {}) for name, inputs in kept))
        write_sealed(path, key, (_FOLDER, content), body.getvalue(), 0o600)
        _remove_oldest(os.path.dirname(path))
    return path if added or has_all else ""


def _body(cache_dir: str, content: str, key: bytes) -> bytes:
    """Return the samples that are kept. Raise OSError; ValueError if they do not carry the seal of `key`."""
    return read_sealed(_path(cache_dir, content), key, (_FOLDER, content), _MAX_FILE_BYTES)[1]


def _path(cache_dir: str, content: str) -> str:
    return os.path.join(cache_dir, _FOLDER, content)


def _equal(one: Inputs, other: Inputs) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[alias], other[alias]) for alias in one)


def _remove_oldest(folder: str) -> None:
    with contextlib.suppress(OSError):
        files = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime_ns)
        for entry in files[:-_MAX_FILES]:
            os.unlink(entry.path)
