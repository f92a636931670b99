"""Make inputs from a signature alone: random values of the right names, element types and shapes.

The values that a model expects are unknown, so the ranges are those that most models accept: whole numbers that are
valid ids of a small vocabulary, floats near 1. The same arguments give the same arrays on every machine.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from backends.contract import Signature, TensorSpec

__all__ = ["MAX_MADE_BYTES", "TooLargeError", "made_inputs", "made_shape"]

MAX_MADE_BYTES = 256 << 20  # of all inputs of one call together
_STRING_BYTES = 64  # the estimated size of a string: its slot, and a share of its object


class TooLargeError(ValueError):
    """The signature's inputs would take more than `MAX_MADE_BYTES`; the message says how much."""


def made_inputs(
    signature: Signature,
    batch: int,
    seed: int,
    unknown: int = 1,
    *,
    id_range: int = 10,
    float_range: float = 1.0,
    signed: bool = False,
    strings: Sequence[bytes] = (b"",),
) -> dict[str, np.ndarray]:
    """Return arrays for all inputs of `signature`, as `Backend.run` takes them.

    An unknown dimension is `batch` if it is the first, else `unknown`; an input of unknown rank is [batch].

    - float, complex: uniform in [0, `float_range`), like probabilities, scaled pixels and arguments of logarithms; with
      `signed`, normally distributed with this deviation. Both parts of complex numbers are like that. (Rounded to 16
      bits, values may reach the upper end.)
    - uint8: 0 to 255, like the bytes of an image. Other integers: 0 to `id_range` - 1, like ids.
    - bool: either. string: one of `strings`.

    Raise TooLargeError.
    """
    shapes = {name: made_shape(spec, batch, unknown) for name, spec in signature.inputs.items()}
    nbytes = sum(
        math.prod(shape) * (_STRING_BYTES if spec.dtype == "string" else spec.element.numpy.itemsize)
        for spec, shape in zip(signature.inputs.values(), shapes.values(), strict=True)
    )
    if nbytes > MAX_MADE_BYTES:
        raise TooLargeError(f"its inputs take {nbytes:,} bytes at batch size {batch}, more than {MAX_MADE_BYTES:,}")
    arrays = {}
    for name, spec in signature.inputs.items():
        # Each input has its own stream, so its values do not depend on the other inputs.
        random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        arrays[name] = _values(random, spec, shapes[name], id_range, float_range, signed, strings)
    return arrays


def made_shape(spec: TensorSpec, batch: int, unknown: int) -> tuple[int, ...]:
    """Return the shape that `made_inputs` gives an input of `spec`."""
    if spec.shape is None:
        return (batch,)
    return tuple(size if size >= 0 else batch if position == 0 else unknown for position, size in enumerate(spec.shape))


def _values(
    random: np.random.Generator,
    spec: TensorSpec,
    shape: tuple[int, ...],
    id_range: int,
    float_range: float,
    signed: bool,
    strings: Sequence[bytes],
) -> np.ndarray:
    element = spec.element
    if element.name == "string":
        array = np.empty(shape, object)
        flat = array.reshape(-1)
        for index, choice in enumerate(random.integers(len(strings), size=flat.size)):
            flat[index] = strings[choice]
        return array
    if element.name == "bool":
        return random.integers(2, size=shape, dtype=np.uint8).astype(element.numpy)
    if element.numpy.kind in "iu":
        high = 256 if element.name == "uint8" else min(id_range, int(np.iinfo(element.numpy).max) + 1)
        return random.integers(high, size=shape).astype(element.numpy)
    parts = 2 if element.numpy.kind == "c" else 1
    draw = random.standard_normal if signed else random.random
    floats = draw((*shape, parts), np.float64 if element.numpy.itemsize // parts > 4 else np.float32)
    floats *= float_range
    if parts == 2:
        return floats.view(element.numpy).reshape(shape)
    return floats.reshape(shape).astype(element.numpy, copy=False)
