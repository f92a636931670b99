"""Describe a converter: a module with `FORMAT`, `PRECISIONS`, `VERSIONS` and `ENTRY_POINTS`.

An entry point is one way to convert; no single one works for every model. Each runs in a process of its own, which has
imported TensorFlow. Whatever it raises or prints, and whether it crashes, is reported, and affects nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from backends.contract import Signature
from backends.form import Format, FormSignature

__all__ = ["Converted", "Converter", "EntryPoint", "Failed", "Task", "shared"]


@dataclass(frozen=True, slots=True)
class Task:
    """Convert `signatures` of the SavedModel at `path` into files in `folder`, whose names begin with `prefix`."""

    path: str
    tags: tuple[str, ...]
    signatures: Mapping[str, Signature]
    precision: str
    folder: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Converted:
    name: str
    entry: FormSignature


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a signature was not converted. `is_final`: no other entry point could convert it either."""

    name: str
    reason: str
    unsupported_ops: tuple[str, ...] = ()
    is_final: bool = False


def shared(
    done: FormSignature, signature: Signature, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> FormSignature:
    """Return the entry of `signature`, which computes the same as the file of `done`. `inputs` and `outputs` are the
    names in that file; inputs that it does not have are left out."""
    present = set(done.inputs.values())
    return FormSignature(
        done.file, signature, {alias: name for alias, name in inputs.items() if name in present}, outputs
    )


EntryPoint = Callable[[Task], Iterator[Converted | Failed]]


class Converter(Protocol):
    """The module of a converter. Its results depend on the versions of the distributions `VERSIONS`."""

    FORMAT: Format
    PRECISIONS: tuple[str, ...]
    VERSIONS: tuple[str, ...]
    ENTRY_POINTS: Mapping[str, EntryPoint]
