"""What a job's result depends on: the code, the model, the options, the versions of the frameworks, the machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from converters import cores
from converters.files import file_hash, files_below
from converters.gpu import has_gpu
from converters.plugin import Converter
from converters.spec import JobSpec

__all__ = ["cache_key", "code_hash", "content_hash", "key_of", "machine", "own_code", "versions_of"]

_OURS = ("converters", "backends")
_FORMAT = 3  # of what the cache holds: a change here makes everything anew, as a change of the code does
# What the forms and proofs of a version do not depend on. The hashes of the operators' libraries stand for their paths.
_NOT_IN_KEY = (
    "path", "work_dir", "cache_dir", "cache_max_bytes", "work_module", "max_others", "yielding", "threads",
    "op_libraries", "sandbox",
)  # fmt: skip


def content_hash(path: str) -> str:
    """Return the SHA-256 of all files below the folder `path`, and of their names. Raise OSError."""
    total = hashlib.sha256()
    for name in sorted(files_below(path)):
        total.update(
            f"{len(os.fsencode(name))}:".encode() + os.fsencode(name) + file_hash(os.path.join(path, name)).encode()
        )
    return total.hexdigest()


def key_of(parts: Mapping[str, Any]) -> str:
    """Return a key for values of JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_hash(paths: Iterable[str]) -> str:
    """Return the SHA-256 of files, and of the code and its tables in folders.

    Raise OSError if one cannot be read, or a folder has no code.
    """
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
    """Return a hash of the code that converts, makes cases, compares and runs forms, and of the files `others`.

    If the sources are not there, the version of this release stands for them. The hash takes in all of the code, so
    that nobody has to know which of its lines a verdict depends on.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        return code_hash([*(os.path.join(root, package) for package in _OURS), *others])
    except OSError:
        try:
            return f"dropserve {importlib.metadata.version('dropserve')}"
        except importlib.metadata.PackageNotFoundError:
            return "not known"


def cache_key(spec: JobSpec, content: str, libraries: Sequence[str], versions: Mapping[str, str], code: str) -> str:
    """Return the key in the cache of the forms that `spec` asks for, and of their proofs.

    `content` is the hash of the SavedModel, `libraries` are those of the operators' libraries, and `code` is that of
    `own_code`: a form that was proven by other cases, or within other tolerances, is not proven.
    """
    options = {name: value for name, value in msgspec.to_builtins(spec).items() if name not in _NOT_IN_KEY}
    return key_of(
        {
            "format": _FORMAT,
            "code": code,
            "content": content,
            "versions": dict(versions),
            "options": options,
            "op_libraries": list(libraries),
        }
    )


def machine() -> str:
    """Return the processor, the number of its cores that this process may use, and whether there is a GPU: proofs and
    timings hold for these."""
    model = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        named = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
        model = named.group(1).strip() if named else model
    return f"{model}, {len(cores.ALL)} cores" + (", with a GPU" if has_gpu() else "")


def versions_of(converters: Iterable[Converter]) -> dict[str, str]:
    """Return the versions of the distributions that the results of `converters` depend on."""
    found = {}
    for name in sorted({name for module in converters for name in module.VERSIONS} | {"tensorflow", "numpy"}):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
