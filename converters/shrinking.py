"""Make an input smaller on which two answers differ, as long as they differ, so that a person sees what matters.

This is delta debugging: parts are removed, or set to plain values, one after the other, and a change that keeps the
difference is kept. It knows no framework: the caller says whether an input still differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from backends.contract import Signature
from converters.cases import Inputs, has_batch

__all__ = ["Budget", "said", "shrunk"]

_MAX_SHOWN = 16  # elements of an input that is shown whole
_MAX_ODD = 4  # elements that are shown of a larger one
_POWERS = (10, 100, 1000, 10**4, 10**6, 10**9, 10**15, 10**30)
_MAX_SIMPLER = 64  # elements that are made simpler one by one


class Budget:
    """A number of tries, and a number of seconds, for all."""

    def __init__(self, tries: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._tries = tries
        self._clock = clock
        self._ends = clock() + seconds

    def take(self) -> bool:
        """Use up a try. Return whether there was one left."""
        self._tries -= 1
        return self._tries >= 0 and self._clock() < self._ends


def shrunk(
    signature: Signature, inputs: Inputs, differs: Callable[[Inputs], bool], budget: Budget, smallest: int = 1
) -> Inputs:
    """Return the smallest inputs found for which `differs` holds, as it does for `inputs`: with fewer rows, shorter
    open dimensions (of `smallest` or more), and elements that are 0, 1 or round."""
    return _Shrinking(signature, inputs, differs, budget).run(smallest)


class _Shrinking:
    def __init__(self, signature: Signature, inputs: Inputs, differs: Callable[[Inputs], bool], budget: Budget) -> None:
        self._signature = signature
        self._found = inputs
        self._differs = differs
        self._budget = budget
        self._is_over = False

    def run(self, smallest: int) -> Inputs:
        self._rows()
        self._sizes(smallest)
        for alias in self._found:
            self._elements(alias)
        for alias in self._found:
            self._simpler(alias)
        return self._found

    def _keeps(self, inputs: Inputs) -> bool:
        """Take these inputs if they still differ. Return whether they do."""
        if self._is_over or not self._budget.take():
            self._is_over = True
            return False
        if not self._differs(inputs):
            return False
        self._found = inputs
        return True

    def _rows(self) -> None:
        if not has_batch(self._signature):
            return
        counts = {len(array) for array in self._found.values()}
        if len(counts) != 1:
            return
        rows = np.arange(counts.pop())
        chunk = (len(rows) + 1) // 2
        while chunk and len(rows) > 1 and not self._is_over:
            kept = self._first_chunk(rows, chunk)
            if kept is not None:
                rows = np.arange(len(kept))
                chunk = (len(rows) + 1) // 2
            else:
                chunk = chunk // 2 if chunk > 1 else 0

    def _first_chunk(self, rows: np.ndarray, chunk: int) -> np.ndarray | None:
        """Find rows that are enough: some alone, or all but some."""
        before = self._found
        parts = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
        for part in parts:
            for kept in (part, np.setdiff1d(rows, part)):
                if 0 < len(kept) < len(rows) and self._keeps({a: array[kept] for a, array in before.items()}):
                    return kept
        return None

    def _sizes(self, smallest: int) -> None:
        for position in range(1, max((array.ndim for array in self._found.values()), default=0)):
            size = max((array.shape[position] for alias, array in self._open(position)), default=0)
            for wanted in dict.fromkeys((smallest, smallest + 1, size // 2, size - 1)):
                if smallest <= wanted < size and self._cut(position, wanted):
                    break

    def _open(self, position: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the inputs that may have any size there."""
        for alias, array in self._found.items():
            shape = self._signature.inputs[alias].shape
            if shape is not None and position < len(shape) == array.ndim and shape[position] < 0:
                yield alias, array

    def _cut(self, position: int, size: int) -> bool:
        for part in (slice(size), slice(-size, None)):
            cut = {alias: array[(slice(None),) * position + (part,)] for alias, array in self._open(position)}
            if self._keeps({**self._found, **cut}):
                return True
        return False

    def _elements(self, alias: str) -> None:
        """Set as many elements to 0 as possible: all, halves, quarters and so on."""
        size = self._found[alias].size
        if self._found[alias].dtype.kind == "O":
            return
        if size and not self._set(alias, slice(None), 0) and not self._set(alias, slice(None), 1):
            chunk = size // 2
            while chunk and not self._is_over:
                for start in range(0, size, chunk):
                    self._set(alias, slice(start, start + chunk), 0)
                chunk //= 2

    def _simpler(self, alias: str) -> None:
        """Make each remaining element as plain as possible."""
        array = self._found[alias]
        if array.dtype.kind not in "iufV":
            return
        for place in np.flatnonzero(array.reshape(-1))[:_MAX_SIMPLER].tolist():
            value = float(array.reshape(-1)[place]) if array.dtype.kind in "fV" else int(array.reshape(-1)[place])
            for wanted in _plainer(value):
                if self._set(alias, slice(place, place + 1), wanted):
                    break
            if isinstance(value, int):
                self._nearer_to_zero(alias, place)

    def _nearer_to_zero(self, alias: str, place: int) -> None:
        """Find the whole number nearest to 0 that differs, if all beyond it do."""
        value = int(self._found[alias].reshape(-1)[place])
        good, bad = value, 0
        while abs(good - bad) > 1 and not self._is_over:
            middle = (good + bad) // 2
            if self._set(alias, slice(place, place + 1), middle):
                good = middle
            else:
                bad = middle

    def _set(self, alias: str, places: slice, value: float) -> bool:
        array = self._found[alias].copy()
        if array.dtype.kind in "iu" and not np.iinfo(array.dtype).min <= value <= np.iinfo(array.dtype).max:
            return False
        flat = array.reshape(-1)
        before = flat[places].tobytes()
        with np.errstate(over="ignore"):
            flat[places] = value
        return flat[places].tobytes() != before and self._keeps({**self._found, alias: array})


def _plainer(value: float) -> Iterator[float]:
    """Yield numbers that are easier to read, the plainest first."""
    found: list[float] = [0, 1, -1]
    if np.isfinite(value):
        found += [int(np.sign(value)) * power for power in _POWERS if power < abs(value)]
        if isinstance(value, float):
            found += [float(np.trunc(value)), float(np.trunc(value)) + (1.0 if value > 0 else -1.0)]
        found += [type(value)(float(f"{value:.{digits}e}")) for digits in (0, 1, 2, 3)]
    for plain in dict.fromkeys(found):
        if plain == value:
            return
        yield plain


def said(inputs: Inputs) -> str:
    """Return the inputs as text: whole if they are small, else their shape and their unusual values."""
    return ", ".join(f"{alias} = {_said(array)}" for alias, array in inputs.items())


def _said(array: np.ndarray) -> str:
    if array.size <= _MAX_SHOWN:
        return str(array.tolist())
    values, counts = np.unique(array, return_counts=True)
    usual = values[int(np.argmax(counts))]
    is_usual = array == usual
    if array.dtype.kind in "fcV":
        is_usual |= np.isnan(array) & np.isnan(usual)
    flat = np.flatnonzero(~is_usual)
    shape = f"{array.dtype.name} of shape {list(array.shape)}"
    if len(flat) > _MAX_ODD:
        is_nan = np.isnan(array) if array.dtype.kind in "fcV" else np.zeros(array.shape, bool)
        numbers = array[~is_nan]
        found = f"from {numbers.min()!s} to {numbers.max()!s}" if numbers.size else ""
        return ", ".join([shape, *([found] if found else []), *(["some NaN"] if is_nan.any() else [])])
    odd = (
        f"{array[at]!s} at [{', '.join(str(int(axis)) for axis in at)}]"
        for at in (np.unravel_index(place, array.shape) for place in flat)
    )
    return f"{shape}, all {usual!s}" + (f" but for {', '.join(odd)}" if len(flat) else "")
