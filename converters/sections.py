"""Close in on a place where an answer jumps while one number grows: without a framework, on values alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Section"]

_MAX_LEVELS = 12
_SMOOTH = 0.4  # what changes by less than this part of before, within an interval so much smaller, does not jump
_BEND = 1.25
_LEAST = 1e-6  # of the largest answer: less is roundings
_STEPS = range(1, 24, 2)  # of these powers of two, in roundings, away from the place


class Section:
    """`points` are the values to try next, in order. `beside` has the values around the place, once it is found."""

    def __init__(self, low: Any, high: Any, most: int) -> None:
        """Begin between `low` and `high`, and try at most `most` points at once."""
        self.points: list[Any] = _between(low, high, most) if low < high else []
        self.beside: list[Any] = []
        self._most = most
        self._jump = np.inf
        self._level = 0

    def closed_in(self, answers: Mapping[str, np.ndarray], random: np.random.Generator) -> bool:
        """Choose new points between two at which `answers`, a row for each point, jumped. Return whether there are
        any."""
        points, self.points = self.points, []
        jumps = _jumps(answers, len(points))
        self._level += 1
        if not jumps.size or not jumps.max() > 0 or self._level > _MAX_LEVELS:
            return False
        # If there are several jumps, any will do: later sections find the others.
        at = int(random.choice(np.flatnonzero(jumps > 0.5 * jumps.max())))
        if jumps[at] < _SMOOTH * self._jump and self._level > 1:
            return False
        self._jump = float(jumps[at])
        low, high = points[at], points[at + 1]
        between = _between(low, high, self._most)
        if len(between) > 2:
            self.points = between
            return True
        self.beside = _beside(low, high)
        return False


def _jumps(answers: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Return by how much more two neighbours differ than those beside them do: a slope or a bend is no jump."""
    found = np.zeros(max(count - 1, 0))
    for array in answers.values():
        if not array.ndim or len(array) != count or not array.size or array.dtype.kind not in "iubfV" or count < 3:
            continue
        wide = array.reshape(count, -1).astype(np.float64)
        finite = np.isfinite(wide)
        size = float(np.max(np.abs(wide), where=finite, initial=0.0)) or 1.0
        wide = np.where(finite, wide / size, 2.0)
        steps = np.abs(wide[1:] - wide[:-1])
        # An end has only one neighbour, and may belong to a slope.
        before, after = np.vstack([_BEND * steps[1:2], steps[:-1]]), np.vstack([steps[1:], _BEND * steps[-2:-1]])
        jumps = np.max(steps - np.maximum(before, after), axis=1)
        found = np.maximum(found, np.where(jumps > _LEAST, jumps, 0.0))
    return found


def _between(low: Any, high: Any, most: int) -> list[Any]:
    """Return evenly spaced points from `low` to `high`; only these two if there is nothing between."""
    kind = np.asarray(low).dtype
    if kind.kind in "iu":
        first, last = int(low), int(high)
        count = min(most, last - first + 1)
        return [kind.type(first + (last - first) * step // (count - 1)) for step in range(count)]
    points = np.linspace(float(low), float(high), most).astype(kind)
    points[0], points[-1] = low, high
    return list(np.unique(points))


def _beside(low: Any, high: Any) -> list[Any]:
    """Return values around a place, farther and farther away from it on both sides."""
    kind = np.asarray(low).dtype
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        steps = [2**power for power in range(0, 12, 2)]
        around = [value for step in steps for value in (int(low) - step, int(high) + step)]
        return [low, high, *(kind.type(value) for value in around if limits.min <= value <= limits.max)]
    unit = max(abs(float(low)), abs(float(high))) * float(np.finfo(kind).eps)
    around = [value for step in _STEPS for value in (float(low) - unit * 2**step, float(high) + unit * 2**step)]
    with np.errstate(over="ignore"):
        found = np.array([float(low), float(high), *around]).astype(kind)
    return [value for value in found if np.isfinite(value)]
