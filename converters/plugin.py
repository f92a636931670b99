"""What a converter is: a module with `FORMAT`, `PRECISIONS`, `VERSIONS` and `ENTRY_POINTS`.

An entry point is one way to convert, of which no single one works for every model. Each runs in a process of its own,
which has imported TensorFlow; whatever it raises, prints or takes down is reported and costs nobody else anything.
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
    """`is_final`: no other entry point could do it either."""

    name: str
    reason: str
    unsupported_ops: tuple[str, ...] = ()
    is_final: bool = False


def shared(
    done: FormSignature, signature: Signature, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> FormSignature:
    """`signature` by the file of `done`, which computes the same; `inputs` and `outputs` are the names there, if it has
    them all."""
    present = set(done.inputs.values())
    return FormSignature(
        done.file, signature, {alias: name for alias, name in inputs.items() if name in present}, outputs
    )


EntryPoint = Callable[[Task], Iterator[Converted | Failed]]


class Converter(Protocol):
    """The module of a converter. `VERSIONS` are the distributions on whose versions its results depend."""

    FORMAT: Format
    PRECISIONS: tuple[str, ...]
    VERSIONS: tuple[str, ...]
    ENTRY_POINTS: Mapping[str, EntryPoint]
