"""Makes inputs to try a signature with: plain ones first, then those that only few models take."""

from __future__ import annotations

import base64
import itertools
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import structs

from appliance.worker.learned_examples import LearnedExamples
from backends.contract import Signature, TensorSpec
from backends.made_inputs import made_inputs

__all__ = ["Attempt", "Made", "attempts"]

_UNKNOWN_SIZES = (1, 8, 32, 224)
_SAMPLES = 16_000  # a second of sound
_ROWS = 8  # for models that need several: a first dimension may be time instead of a batch
_ID_RANGES = (10, 2)
# Shapes besides [batch] for an input of unknown rank, each with the size of its unknown dimensions.
_SHAPES = (((), 1), ((-1, -1), 1), ((-1, -1), 8), ((-1, -1, -1), 8), ((-1, -1, -1, 3), 32))
_STRINGS = (
    (b"", b"0", b"1", b"-1.5", b"a", b"alpha", b"Zz", b"\xc3\xa9", b"the quick brown fox"),
    (b"0", b"1", b"7", b"25"),
)


def _png(size: int = 32) -> bytes:
    """Return a grey RGB image as a PNG, which TensorFlow's decoders of JPEG and GIF take too."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x80" * 3 * size) * size)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _wav() -> bytes:
    """Return a tenth of a second of silence as a WAV: 16 bits, one channel, 16 kHz."""
    data = bytes(3200)
    form = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Contents of files; and a name that stands for nothing and differs from the other texts (see `verdicts`).
_ODD_STRINGS = (_png(), base64.urlsafe_b64encode(_png()).rstrip(b"="), _wav(), b"nosuchname")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A choice of what a signature leaves open.

    `unknown` is the size of unknown dimensions but the first, `rows` the size of the first. Ids lie in
    [0, `id_range`), floats in [0, `float_range`). `shape` is that of inputs of unknown rank. The plainest string is
    the first.
    """

    unknown: int = 1
    id_range: int = _ID_RANGES[0]
    float_range: float = 1.0
    strings: tuple[bytes, ...] = _STRINGS[0]
    rows: int = 1
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """Draws inputs for a signature. Inputs with a default are left out, as most clients do."""

    signature: Signature
    attempt: Attempt
    examples: LearnedExamples = field(default_factory=LearnedExamples)

    def __call__(self, count: int, seed: int) -> Mapping[str, np.ndarray]:
        """Return inputs of `count` rows, the same for the same `seed`. Raise TooLargeError."""
        attempt = self.attempt
        strings: Sequence[bytes] = attempt.strings if seed else attempt.strings[:1]
        if self.examples:
            strings = [self.examples.example(number) for number in range(8)]
        inputs = {
            name: structs.replace(spec, shape=attempt.shape) if spec.shape is None else spec
            for name, spec in self.signature.inputs.items()
            if name not in self.signature.defaults
        }
        return made_inputs(
            Signature(inputs, {}),
            count,
            seed,
            attempt.unknown,
            id_range=attempt.id_range,
            float_range=attempt.float_range,
            strings=strings,
        )


def attempts(signature: Signature) -> Iterator[Attempt]:
    """Yield attempts, the plainest first. Only what the signature leaves open varies; the order is always the same."""
    specs = signature.inputs.values()
    sizes = _UNKNOWN_SIZES if any(_has_open_size(spec) for spec in specs) else _UNKNOWN_SIZES[:1]
    ids = any(spec.element.numpy.kind in "iu" and spec.dtype != "uint8" for spec in specs)
    texts = any(spec.dtype == "string" for spec in specs)
    floats = any(spec.element.numpy.kind in "fc" or spec.dtype == "bfloat16" for spec in specs)
    for strings, unknown, id_range in itertools.product(
        _STRINGS if texts else _STRINGS[:1], sizes, _ID_RANGES if ids else _ID_RANGES[:1]
    ):
        yield Attempt(unknown, id_range, strings=strings)
    # Then what only some models need, one at a time.
    id_range = _ID_RANGES[-1]
    if any(spec.shape is None for spec in specs):
        for shape, unknown in _SHAPES:
            yield Attempt(unknown, id_range, shape=shape)
    if texts:
        for text in _ODD_STRINGS:
            yield Attempt(sizes[0], id_range, strings=(text,))
    if floats:
        for unknown in sizes:
            yield Attempt(unknown, id_range, float_range=0.0)
    if any(spec.shape and spec.shape[0] == -1 for spec in specs):
        for unknown in sizes:
            yield Attempt(unknown, id_range, rows=_ROWS)
    if floats and not ids and all(len(spec.shape or ()) <= 2 for spec in specs):
        if len(sizes) > 1:
            yield Attempt(_SAMPLES)
        if all(spec.shape == (-1,) for spec in specs):
            yield Attempt(rows=_SAMPLES)


def _has_open_size(spec: TensorSpec) -> bool:
    return spec.shape is not None and -1 in spec.shape[1:]
