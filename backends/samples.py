"""Requests that a form has answered, as its worker leaves them in a file for a process that verifies them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from backends.frames import FileStream, FrameError, receive, send

__all__ = ["Sample", "new_file", "pack_samples", "read_samples", "unpack_samples", "write_samples"]

_INPUT, _OUTPUT = "<", ">"  # before a name in a frame


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a form: its inputs, and those of its outputs that were asked for.

    `requests` were answered by it, and `number` answers had been given by then, these included.
    """

    number: int
    requests: int
    signature: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def new_file(path: str) -> int:
    """Return the descriptor of a new file for samples that nobody else can read: they are what clients have sent. Raise
    OSError, FileExistsError also if somebody else has made it before."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_samples(descriptor: int, samples: Iterable[Sample]) -> None:
    """Write `samples` to an open descriptor, which stays open. Raise OSError."""
    with open(descriptor, "wb", closefd=False) as file:
        pack_samples(file, samples)


def pack_samples(file: BinaryIO, samples: Iterable[Sample]) -> None:
    """Write `samples` to an open file. Raise OSError."""
    for sample in samples:
        arrays = {_INPUT + name: array for name, array in sample.inputs.items()}
        arrays |= {_OUTPUT + name: array for name, array in sample.outputs.items()}
        about = {"number": sample.number, "requests": sample.requests, "signature": sample.signature}
        send(FileStream(file), about, arrays)


def read_samples(path: str) -> Iterator[Sample]:
    """Yield the samples of a file. Raise OSError if it cannot be read, ValueError if it is damaged."""
    with open(path, "rb") as file:
        try:
            yield from unpack_samples(file)
        except ValueError as error:
            raise ValueError(f"{path} has no samples: {error}") from error


def unpack_samples(file: BinaryIO) -> Iterator[Sample]:
    """Yield the samples of an open file. Raise OSError, ValueError if it is damaged."""
    try:
        while (frame := receive(FileStream(file))) is not None:
            about, arrays = frame
            sides = (
                {name[1:]: array for name, array in arrays.items() if name[0] == side} for side in (_INPUT, _OUTPUT)
            )
            yield Sample(about["number"], about["requests"], about["signature"], *sides)
    except (FrameError, KeyError) as error:
        raise ValueError(str(error)) from error
