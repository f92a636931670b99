"""Make inputs from known ones, one row at a time, by a stream of random numbers, without any framework.

A row is the inputs for one row of a batch; for a signature without a batch, it is all of its inputs.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from backends.contract import Signature
from backends.domain import Domain
from converters.cases import Inputs
from converters.edges import FLOAT_LEVELS, HALVES, float_edges, float_limit, whole_edges

__all__ = ["Mutations", "Values", "within"]

_USUAL = (0.0, 1.0, -1.0, 2.0, 3.0, 5.0, 10.0, 100.0, 127.0, 128.0, 255.0, 256.0, 1000.0, 0.1, 0.25)
_SCALES = (-1.0, 0.5, 2.0, 10.0, 0.1, 1e3, 1e-3, 0.0)
_MAX_CHANGES = 4
_MAX_LEARNED = 64
_LEARNED = 0.2  # of the numbers are such, where there are any
_EXTREMES = 0.08  # of the rows have extremes in all of their inputs
_SIZES = (100.0, 300.0, *FLOAT_LEVELS[:1], *FLOAT_LEVELS)
_ALL = 0.15  # of the changes go to all elements of an input at once
_TOGETHER = 0.3  # of the rows have all of their inputs changed


def within(domain: Domain, signature: Signature, inputs: Inputs) -> bool:
    """Return whether a form that is proven for `domain` answers these inputs."""
    return not any(domain.beyond(alias, array, signature.inputs[alias]) for alias, array in inputs.items())


class Values:
    """Numbers for the elements of one input, all within the domain; whole ones also between the least and the largest
    that TensorFlow took."""

    def __init__(
        self, dtype: np.dtype, numbers: Sequence[float], domain: Domain, taken: Sequence[np.ndarray], name: str
    ) -> None:
        self.dtype = dtype
        self.least, self.largest = 0, 0
        found: list[np.ndarray] = []
        if dtype.kind in "iu":
            present = [array for array in taken if array.size]
            self.least = min((int(array.min()) for array in present), default=0)
            self.largest = max((int(array.max()) for array in present), default=0)
            if name != "uint8":
                self.least = max(self.least, self.least if domain.least_whole is None else domain.least_whole)
                self.largest = min(self.largest, self.largest if domain.largest_whole is None else domain.largest_whole)
            whole = np.concatenate([edges.values for edges in whole_edges(dtype, numbers)])
            found = [whole[(whole >= self.least) & (whole <= self.largest)]]
        elif dtype.kind in "fcV":
            floats = [edges.values for edges in float_edges(dtype, numbers)]
            floats.append(np.array([*HALVES, *_USUAL]).astype(dtype))
            every = np.concatenate(floats)
            if domain.largest is not None:
                with np.errstate(invalid="ignore"):
                    every = every[np.abs(every).astype(np.float64) <= domain.largest]
            found = [every]
        elif dtype.kind == "b":
            found = [np.array([False, True])]
        self._values = np.concatenate(found) if found else np.zeros(0, dtype)
        self._learned: collections.deque[Any] = collections.deque(maxlen=_MAX_LEARNED)

    def learn(self, values: Sequence[Any]) -> None:
        """Add `values`, beside which answers jump."""
        self._learned.extend(values)

    def ends(self, random: np.random.Generator) -> tuple[Any, Any]:
        """Return two numbers between which a jump may be found."""
        size = float(random.choice([2.0, 10.0, 100.0, 1000.0]))
        if self.dtype.kind in "iu":
            whole = (max(self.least, -int(size)), min(self.largest, int(size)))
            return self.dtype.type(whole[0]), self.dtype.type(whole[1])
        # Not symmetric: points that are evenly spaced around 0 are mostly simple fractions such as halves.
        return self.dtype.type(-size * random.uniform(0.5, 1.0)), self.dtype.type(size * random.uniform(0.5, 1.0))

    def draw(self, random: np.random.Generator) -> Any:
        """Return one of the values, or a number of any size."""
        if self._learned and random.random() < _LEARNED:
            return self._learned[int(random.integers(len(self._learned)))]
        if self.dtype.kind in "iu" and (random.random() < 0.5 or not self._values.size):
            return np.asarray(self._whole(random)).astype(self.dtype)[()]
        if self.dtype.kind in "fV" and random.random() < 0.3:
            size = float(random.choice([1.0, 1.0, 10.0, 300.0, 1000.0]))
            return np.asarray(random.uniform(-size, size)).astype(self.dtype)[()]
        return self._values[int(random.integers(len(self._values)))]

    def _whole(self, random: np.random.Generator) -> int:
        """Return a whole number: as often a small one as a large one, or any with equal chance."""
        if random.random() < 0.5:
            top = self.largest if random.random() < 0.7 else -self.least
            sign = 1 if top == self.largest else -1
            bits = random.uniform(0, max(1, top.bit_length()))
            return min(max(sign * int(2**bits), self.least), self.largest)
        return int(random.integers(self.least, self.largest, endpoint=True, dtype=self.dtype))


class Mutations:
    """Make rows from rows. `values` are those of each input that may be changed."""

    def __init__(self, values: Mapping[str, Values], random: np.random.Generator) -> None:
        self._values = values
        self._random = random

    def row(self, row: Inputs, donor: Inputs) -> Inputs:
        """Return `row` with some changes, some of them taken from `donor`, which has the same shapes."""
        random = self._random
        able = [alias for alias in row if alias in self._values and row[alias].size]
        if not able:
            return row
        if random.random() < _EXTREMES:
            return self._extremes(row, able)
        together = len(able) > 1 and random.random() < _TOGETHER
        chosen = able if together else [able[int(random.integers(len(able)))]]
        changed = {alias: row[alias].copy() for alias in chosen}
        for alias, array in changed.items():
            for _ in range(int(random.integers(1, _MAX_CHANGES))):
                self._change(array, self._values[alias], donor[alias])
        return {**row, **changed}

    def _extremes(self, row: Inputs, able: Sequence[str]) -> Inputs:
        """Return `row` with numbers of one large size, of either sign, at the same places of all inputs."""
        random = self._random
        size = float(random.choice(_SIZES))
        share = random.random()
        changed = {alias: row[alias].copy() for alias in able}
        most = max(array.size for array in changed.values())
        chosen = np.flatnonzero(random.random(most) < share) if random.random() < 0.5 else random.integers(most, size=1)
        for alias, array in changed.items():
            flat, values = array.reshape(-1), self._values[alias]
            at = chosen % flat.size
            if array.dtype.kind in "iu":
                whole = (values.least, values.largest)
                flat[at] = np.where(random.random(len(at)) < 0.5, *np.array(whole, array.dtype))
            elif array.dtype.kind in "fV":
                signs = np.where(random.random(len(at)) < 0.5, -size, size)
                with np.errstate(over="ignore"):
                    flat[at] = signs.astype(array.dtype)
        return {**row, **changed}

    def _change(self, array: np.ndarray, values: Values, donor: np.ndarray) -> None:
        random = self._random
        flat, other = array.reshape(-1), donor.reshape(-1)
        if random.random() < _ALL:
            places = np.arange(flat.size)
        else:
            places = random.integers(flat.size, size=1 if random.random() < 0.7 else min(flat.size, 3))
        kind = array.dtype.kind
        change = _CHANGES[int(random.integers(len(_CHANGES)))] if kind in "iufcV" else _set
        with np.errstate(over="ignore", invalid="ignore"):
            change(flat, places, other, values, random)
        if kind in "iu":
            np.clip(flat, values.least, values.largest, out=flat)


_Change = Callable[[np.ndarray, np.ndarray, np.ndarray, Values, np.random.Generator], None]


def _set(flat: np.ndarray, at: np.ndarray, _: np.ndarray, values: Values, random: np.random.Generator) -> None:
    flat[at] = values.draw(random)


def _copy(flat: np.ndarray, at: np.ndarray, other: np.ndarray, _: Values, __: np.random.Generator) -> None:
    flat[at] = other[at]


def _tie(flat: np.ndarray, at: np.ndarray, _: np.ndarray, __: Values, random: np.random.Generator) -> None:
    """Make elements equal to another element of the same row."""
    flat[at] = flat[int(random.integers(flat.size))]


def _swap(flat: np.ndarray, at: np.ndarray, _: np.ndarray, __: Values, random: np.random.Generator) -> None:
    flat[at] = flat[random.permutation(at)]


def _scale(flat: np.ndarray, at: np.ndarray, _: np.ndarray, __: Values, random: np.random.Generator) -> None:
    scale = _SCALES[int(random.integers(len(_SCALES)))]
    if flat.dtype.kind in "iu":
        flat[at] = -flat[at] if scale < 0 else flat[at] // 2 if scale < 1 else flat[at] * 2
    else:
        flat[at] = (flat[at] * flat.dtype.type(scale)).astype(flat.dtype)


def _step(flat: np.ndarray, at: np.ndarray, _: np.ndarray, __: Values, random: np.random.Generator) -> None:
    flat[at] += flat.dtype.type(1) if random.random() < 0.5 else flat.dtype.type(-1 if flat.dtype.kind != "u" else 1)


def _nudge(flat: np.ndarray, at: np.ndarray, _: np.ndarray, __: Values, random: np.random.Generator) -> None:
    """Move elements to the next float, or by a small part of their value."""
    if flat.dtype.kind != "f":
        _step(flat, at, flat, __, random)
    elif random.random() < 0.5:
        limit = float_limit(flat.dtype)
        flat[at] = np.nextafter(flat[at], flat.dtype.type(limit if random.random() < 0.5 else -limit))
    else:
        flat[at] *= flat.dtype.type(1 + random.normal() * 0.01)


_CHANGES: Sequence[_Change] = (_set, _set, _set, _copy, _tie, _swap, _scale, _step, _nudge)
