"""Closes in on a place where an answer jumps while one number grows: without a framework, on values alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Section"]

_MAX_LEVELS = 12
_SMOOTH = 0.4  # what changes by less than this part of before, within an interval so much smaller, does not jump
_STEPS = range(1, 24, 2)  # of these powers of two, in roundings, away from the place


class Section:
    """`points` are the values to try next, in a row; `beside`, once the place is found, those around it."""

    def __init__(self, values: Sequence[Any], most: int) -> None:
        """`values` are where to begin; no more than `most` points are tried at once."""
        self.points: list[Any] = _sorted(values)
        self.beside: list[Any] = []
        self._most = most
        self._jump = np.inf
        self._level = 0

    def closed_in(self, answers: Mapping[str, np.ndarray]) -> bool:
        """Whether there are new points, between those at which `answers`, a row for each, changed most."""
        jumps = _jumps(answers, len(self.points))
        self._level += 1
        at = int(np.argmax(jumps)) if jumps.size else 0
        if not jumps.size or not jumps[at] > 0 or self._level > _MAX_LEVELS:
            self.points = []
            return False
        if self._level > 2 and jumps[at] < _SMOOTH * self._jump:
            self.points = []
            return False
        self._jump = float(jumps[at])
        low, high = self.points[at], self.points[at + 1]
        self.points = _between(low, high, self._most)
        if len(self.points) > 2:
            return True
        self.points, self.beside = [], _beside(low, high)
        return False


def _sorted(values: Sequence[Any]) -> list[Any]:
    finite = [value for value in values if np.isfinite(value)]
    return sorted(set(finite))


def _jumps(answers: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """By how much neighbours differ: of whole numbers, whether they do."""
    found = np.zeros(max(count - 1, 0))
    for array in answers.values():
        if not array.ndim or len(array) != count or not array.size or array.dtype.kind not in "iubfV":
            continue
        flat = array.reshape(count, -1)
        if array.dtype.kind in "iub":
            jumps = np.any(flat[1:] != flat[:-1], axis=1).astype(np.float64)
        else:
            wide = flat.astype(np.float64)
            finite = np.isfinite(wide)
            size = float(np.max(np.abs(wide), where=finite, initial=0.0)) or 1.0
            wide = np.where(finite, wide / size, 2.0)
            jumps = np.max(np.abs(wide[1:] - wide[:-1]), axis=1)
        found = np.maximum(found, jumps)
    return found


def _between(low: Any, high: Any, most: int) -> list[Any]:
    """Points from `low` to `high`, evenly; these two alone where there is nothing between."""
    kind = np.asarray(low).dtype
    if kind.kind in "iu":
        first, last = int(low), int(high)
        count = min(most, last - first + 1)
        return [kind.type(first + (last - first) * step // (count - 1)) for step in range(count)]
    points = np.linspace(float(low), float(high), most).astype(kind)
    points[0], points[-1] = low, high
    return list(np.unique(points))


def _beside(low: Any, high: Any) -> list[Any]:
    """Values around a place, ever farther away from it on both sides."""
    kind = np.asarray(low).dtype
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        around = [int(low) - 2**k for k in range(0, 12, 2)] + [int(high) + 2**k for k in range(0, 12, 2)]
        return [low, high, *(kind.type(value) for value in around if limits.min <= value <= limits.max)]
    unit = max(abs(float(low)), abs(float(high))) * float(np.finfo(kind).eps)
    pairs = [(float(low) - unit * 2**step, float(high) + unit * 2**step) for step in _STEPS]
    around = [value for pair in pairs for value in pair]
    with np.errstate(over="ignore"):
        found = np.array([float(low), float(high), *around]).astype(kind)
    return [value for value in found if np.isfinite(value)]
