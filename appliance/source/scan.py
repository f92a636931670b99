"""One scan of a folder: its versions, and a fingerprint of each."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

from appliance.source.settle import Fingerprint, Scan
from backends import onnx_model, tflite_model
from backends.registry import MODEL_FILES

__all__ = ["fingerprint", "scan_base_path", "scan_root", "walk"]

_KINDS = {tflite_model.FILE: "a TensorFlow Lite model", onnx_model.FILE: "an ONNX model"}

_MAX_VERSION = 2**63 - 1
_MAX_ENTRIES = 100_000
_MAX_REMARKS = 20  # on one base path


def scan_base_path(base_path: str, skip: frozenset[int] = frozenset(), loaded: frozenset[int] = frozenset()) -> Scan:
    """Return the version folders under a base path. Raise OSError if it cannot be read.

    Versions in `skip` get no fingerprint. Neither they nor those in `loaded` are left out if their folders cannot be
    read.
    """
    versions: dict[int, Fingerprint | None] = {}
    paths: dict[int, str] = {}
    inodes: dict[int, int] = {}
    ignored: list[str] = []
    held: set[str] = set()  # kinds of models whose files lie in the base path itself
    with os.scandir(base_path) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        if not (name.isascii() and name.isdigit()):
            if name in MODEL_FILES:
                held.add(_KINDS.get(name, "a SavedModel"))
            elif _shown(name) != name:
                ignored.append(f"{base_path}/{_shown(name)} is ignored: its name is not UTF-8")
            continue
        path = os.path.join(base_path, name)
        number = int(name) if len(name) < 40 else _MAX_VERSION + 1
        if number > _MAX_VERSION:
            ignored.append(f"{path} is ignored: a version is at most {_MAX_VERSION}")
        elif number in paths:
            ignored.append(f"{path} is ignored: {paths[number]} is version {number} already")
        else:
            try:
                status = os.stat(path)
                if stat.S_ISDIR(status.st_mode):
                    paths[number], inodes[number] = path, status.st_ino
                    versions[number] = None if number in skip else fingerprint(path)
            except FileNotFoundError:
                pass  # a dangling link, or deleted during the scan: the next scan shows which
            except OSError as error:
                # A loaded version stays loaded until its folder is known to be gone.
                if number in skip or number in loaded:
                    versions[number], paths[number] = None, path
                else:
                    ignored.append(f"{path} is ignored: {error.strerror or error}")
    paths = {number: path for number, path in paths.items() if number in versions}
    if held and not versions:
        folder = os.path.basename(base_path)
        is_version = folder.isascii() and folder.isdigit()
        remedy = f"give {os.path.dirname(base_path)} as base path" if is_version else f"move it to {base_path}/1"
        ignored.append(f"{base_path} holds {min(held)} itself; {remedy}")
    elif not versions:
        ignored.append(f"no numbered version folder under {base_path}; a model goes to {base_path}/1")
    what = f"{base_path} holds {min(held)} itself" if held and not versions else ""
    if len(ignored) > _MAX_REMARKS:
        ignored = [*ignored[:_MAX_REMARKS], f"{len(ignored) - _MAX_REMARKS} more remarks are left out"]
    return Scan(os.stat(base_path).st_dev, versions, paths, "; ".join(ignored), inodes, what)


def fingerprint(path: str) -> Fingerprint:
    """Return the fingerprint of a version folder.

    Raise FileNotFoundError if it is gone, OSError if it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    top = os.stat(path)
    digest.update(f"{top.st_dev} {top.st_ino} {top.st_ctime_ns}\n".encode())
    newest = top.st_ctime
    names: set[str] = set()
    for entry_path, status in walk(path):
        folder, name = os.path.split(entry_path)
        if folder == path and name in MODEL_FILES:
            names.add(name)
        if status is None:
            digest.update(f"{entry_path}\0gone\n".encode(errors="surrogateescape"))
            continue
        digest.update(
            f"{entry_path}\0{status.st_size} {status.st_ino} {status.st_ctime_ns}\n".encode(errors="surrogateescape")
        )
        newest = max(newest, status.st_ctime)
    return Fingerprint(digest.hexdigest(), newest, frozenset(names))


def walk(path: str) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield all that lies in a version folder, always in the same order: its path and its status, None if it has been
    deleted since. Raise OSError."""
    count = 0
    folders = [path]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda e: e.name)
        for entry in found:
            count += 1
            if count > _MAX_ENTRIES:
                raise OSError(f"{path} has more than {_MAX_ENTRIES:,} entries; that is no model version")
            try:
                status = _status(entry)
            except FileNotFoundError:
                yield entry.path, None
                continue
            # Follow only the folder links that a SavedModel reads: another link may lead anywhere, or back to itself.
            if stat.S_ISDIR(status.st_mode) and (
                not entry.is_symlink() or (folder == path and entry.name in ("variables", "assets"))
            ):
                folders.append(entry.path)
            yield entry.path, status


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:  # a dangling link, or a link to itself
        return entry.stat(follow_symlinks=False)


def scan_root(root: str) -> tuple[int, list[str], dict[str, str]]:
    """Return the device of a model root, the names of its sub-folders, and of those that cannot be a model's, as they
    are to be shown, why not. Raise OSError if it cannot be read."""
    with os.scandir(root) as entries:
        # Do not check whether a link leads to a folder: the call may hang, and block every other model.
        names = sorted(
            entry.name for entry in entries if not entry.name.startswith(".") and (entry.is_symlink() or entry.is_dir())
        )
    refused = {}
    for name in names:
        shown = _shown(name)
        if shown != name:
            refused[shown] = f"{root}/{shown} is ignored: its name is not UTF-8; rename the folder"
        elif ":" in name:
            refused[name] = f"{root}/{name} is ignored: a model's name has no colon; rename the folder"
    return os.stat(root).st_dev, [name for name in names if _shown(name) not in refused], refused


def _shown(name: str) -> str:
    """Return a name of a file as it may be shown: bytes that are not UTF-8 are escaped (`\\xff`)."""
    return os.fsencode(name).decode(errors="backslashreplace")
