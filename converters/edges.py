"""Make values at which converted forms go wrong: around powers of two, around a graph's own numbers, and odd floats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from backends.domain import FINITE, Domain, smallest_normal

__all__ = ["FLOAT_LEVELS", "HALVES", "ORDINARY", "WHOLE_LEVELS", "Edges", "float_edges", "float_limit", "whole_edges"]

ORDINARY = 1000.0
"""Floats up to this are what any form must be right on: those of the other cases are."""

_FLOAT_LEVELS = (1e4, 1e6, 1e9, 1e15, 1e30)
HALVES = (0.5, 1.5, 2.5, -0.5, -1.5, 3.5)  # which are rounded up, down, to even, or away from 0
_BITS = ((7, 8), (15, 16), (31, 32), (53,), (63, 64))

# A form that is wrong beyond one of these may be proven up to it.
FLOAT_LEVELS = (ORDINARY, *_FLOAT_LEVELS)
WHOLE_LEVELS = (0, *(2 ** bits[-1] + 1 for bits in _BITS[:-1]))


@dataclass(frozen=True, slots=True)
class Edges:
    """Values of one kind. A form that is wrong on them is still proven for the inputs in `without`; None: it is not
    proven."""

    label: str
    values: np.ndarray
    without: Domain | None


def whole_edges(dtype: np.dtype, numbers: Sequence[float]) -> Iterator[Edges]:
    """Yield whole numbers of `dtype`, from small to large, those from 0 on and those below in turns, and the neighbours
    of `numbers`, those of the graph."""
    limits = np.iinfo(dtype)
    wanted = {0, 1, 2, int(limits.max), int(limits.min)}
    for bits in _BITS:
        for bit in bits:
            wanted |= {2**bit - 1, 2**bit, 2**bit + 1}
    for number in map(round, filter(math.isfinite, numbers)):
        wanted |= {number - 1, number, number + 1, abs(number) * 3 + 1}
    wanted |= {-value for value in wanted}
    values = sorted((value for value in wanted if limits.min <= value <= limits.max), key=abs)
    kept = 0
    for bits in _BITS:
        top = 2 ** bits[-1] + 1 if bits is not _BITS[-1] else 2**64
        for low in (False, True):
            chosen = [value for value in values if kept < abs(value) <= top or (value == kept == 0)]
            chosen = [value for value in chosen if (value < 0) == low]
            if not chosen:
                continue
            without = Domain(least_whole=-kept) if low else Domain(largest_whole=kept) if kept else None
            label = f"whole numbers {'below 0' if low else 'from 0 on'}, of up to {bits[-1]} bits"
            yield Edges(label, np.array(chosen, dtype), without)
        kept = top


def float_edges(dtype: np.dtype, numbers: Sequence[float]) -> Iterator[Edges]:
    """Yield floats of `dtype`: first those that any form must be right on, NaN and infinity last."""
    top = float_limit(dtype)
    least = smallest_normal(dtype)
    near: list[float] = []
    for number in numbers:
        at = np.array(number, np.float64)
        near += [*(float(at) + np.array([-1, 0, 1])), float(at) * (1 + 1e-3), float(at) * (1 - 1e-3), -float(at)]
    near = [value for value in near if abs(value) <= top]
    ordinary = [value for value in near if abs(value) <= ORDINARY]
    if ordinary:
        yield Edges("floats beside the graph's own numbers", np.array(ordinary).astype(dtype), None)
    simple = [*HALVES, 0.25, 0.75, 0.125, 1.0, 2.0, 3.0, -2.0, 100.0, 255.0]
    yield Edges("some floats halves and other simple ones", np.array(simple).astype(dtype), None)
    tiny = [0.0, -0.0, 1e-3, -1e-3, 1e-7, -1e-7, 1e-10, 1e-20, -1e-20, 1e-30, 4 * least, -4 * least]
    tiny = [value for value in tiny if value == 0 or abs(value) >= least]
    yield Edges("some floats ±0 or tiny", np.array(tiny).astype(dtype), None)
    yield Edges(
        "some floats subnormal",
        np.array([least / 2, -least / 2, least / 16, -least / 16]).astype(dtype),
        Domain(subnormal=False),
    )
    kept = ORDINARY
    for level in (*(level for level in _FLOAT_LEVELS if level < top), top):
        values = [level, -level, level / 2, -level / 3, *(value for value in near if kept < abs(value) <= level)]
        yield Edges(f"some floats of up to {level:.0e}", np.array(values).astype(dtype), Domain(largest=kept))
        kept = level
    for value in (np.nan, np.inf, -np.inf):
        yield Edges(f"some floats {value}", np.array([value]).astype(dtype), Domain(largest=FINITE.largest))


def float_limit(dtype: np.dtype) -> float:
    """Return the largest float of `dtype`; for complex numbers, one whose magnitude does not overflow."""
    if dtype.kind == "V":  # bfloat16
        return 3.3e38
    if dtype.kind == "c":
        return float(np.finfo(dtype).max) / 4
    return float(np.finfo(dtype).max)
