"""Decide how far two answers of one model may lie apart: one table of tolerances, and one comparison.

Two proofs use it: that a converted form answers as TensorFlow does (`converters`), and that merged requests are
answered as each is alone (`appliance.worker.merge_proof`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Differences", "Tolerance", "agree", "differences", "root_mean_square", "shares", "tolerance_of", "wide"]

_NOISES = 8.0
_MAX_WIDENING = 30.0


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Allow a difference of `absolute`, plus `relative` times the value, or times the root mean square of the output if
    that is larger: a sum near 0 has the rounding errors of what cancelled in it."""

    relative: float
    absolute: float

    def allowed(self, magnitudes: np.ndarray) -> np.ndarray:
        """Return the largest difference that is allowed for values of these `magnitudes` (float64, of any shape)."""
        return np.asarray(self.absolute + self.relative * magnitudes)

    def beside_noise(self, noise: float) -> Tolerance:
        """Return the tolerance for an output that moves by `noise` (relative) when each input moves by one rounding.

        No arithmetic but TensorFlow's own, in its own order, could come closer than about that: ResNet50 with random
        weights moves by 3e-4 on a black image, where LiteRT is 1.5e-3 off; on images like those of its batch
        normalisation, by 9e-5 (2026-11). Every layer rounds, not only the input: hence the factor. The bound keeps a
        model that amplifies everything from passing with anything.
        """
        return Tolerance(min(max(self.relative, _NOISES * noise), _MAX_WIDENING * self.relative), self.absolute)


@dataclass(frozen=True, slots=True)
class _Row:
    single: Tolerance  # for outputs of float32 and complex64, and the least for those of 16 bits
    double: Tolerance  # for outputs of float64 and complex128


# What is allowed, by what differs between the two runs.
_TABLE = {
    # The same kernels, run on another number of rows: they sum in other orders. A float32 sum of 1,000 products is off
    # by about 30 roundings (6e-8 each), and layers add up. Measured with TensorFlow 2.21 on a CPU (2026-11): five dense
    # layers of 4,096 units 3e-6, ResNet50 6e-7. What looks across the batch shows in the first digits. Nothing is
    # allowed absolutely: outputs that are 0 throughout must stay 0.
    "merged": _Row(Tolerance(3e-5, 0.0), Tolerance(2e-12, 0.0)),
    # Another framework's kernels. float64 outputs must agree to 1e-9: a form that computes them in float32 is not equal
    # to the model.
    "float32": _Row(Tolerance(1e-4, 1e-7), Tolerance(1e-9, 1e-9)),
    # The same, in a precision that rounds more coarsely than the outputs' element type.
    "tf32": _Row(Tolerance(1e-2, 1e-7), Tolerance(1e-2, 1e-7)),
    "float16": _Row(Tolerance(1e-2, 1e-7), Tolerance(1e-2, 1e-7)),
    "int8": _Row(Tolerance(1e-1, 1e-7), Tolerance(1e-1, 1e-7)),
}

# Rounding to 16 bits alone may make this of an answer: four units in the last place.
_OF_16_BITS = {"float16": 4e-3, "bfloat16": 3e-2}


def tolerance_of(arithmetic: str, dtype: str) -> Tolerance | None:
    """Return the tolerance for outputs of `dtype` ("float32", "string"); None if they must be equal.

    `arithmetic` is "merged" for the same kernels on another batch size, else the precision of the converted form
    ("float32", "tf32", "float16", "int8"). Raise KeyError for another.
    """
    row = _TABLE[arithmetic]
    if dtype in ("float64", "complex128"):
        return row.double
    if dtype in ("float32", "complex64"):
        return row.single
    if dtype in _OF_16_BITS:
        return Tolerance(max(row.single.relative, _OF_16_BITS[dtype]), row.single.absolute)
    return None


@dataclass(frozen=True, slots=True)
class Differences:
    """How two arrays of floats differ. Each field has their shape."""

    odd: np.ndarray
    """bool: one is not finite and the other is not the same: a NaN is a NaN, an infinity has its sign."""
    distances: np.ndarray
    """float64; 0 where one is not finite."""
    magnitudes: np.ndarray
    """float64: what the relative tolerance is relative to."""
    allowed: np.ndarray
    """float64: the largest distances that are within the tolerance."""

    @property
    def shares(self) -> np.ndarray:
        """Return the share that each distance has of what is allowed, float64; infinite where `odd`."""
        off = np.where(self.distances > 0, np.inf, 0.0)
        found = np.divide(self.distances, self.allowed, out=off, where=self.allowed > 0)
        return np.where(self.odd, np.inf, found)


def differences(
    expected: np.ndarray,
    found: np.ndarray,
    tolerance: Tolerance,
    least_size: float = 0.0,
    *,
    by_rows: bool = False,
    places: np.ndarray | None = None,
) -> Differences:
    """Compare two arrays of floats (bfloat16 and complex included) of one shape and element type.

    Values count as no smaller than the root mean square of `expected`, and than `least_size`. If `by_rows`, the median
    of the rows' root mean squares takes the place of the whole: a few large rows do not hide what is wrong with others.
    `places` has, for each index of the last dimension, which part of this least size counts there: a column of times
    does not hide what is wrong with a column of shares.
    """
    expected, found = wide(expected), wide(found)
    finite = np.isfinite(expected)
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    odd = np.where(finite, ~np.isfinite(found), ~same)
    usual = root_mean_square(expected[finite])
    expected, found = np.where(finite, expected, 0), np.where(finite & ~odd, found, 0)
    if by_rows and expected.ndim and expected.size:
        rows = np.abs(expected.reshape(len(expected), -1))
        tops = rows.max(axis=1, keepdims=True)
        scaled = np.divide(rows, tops, out=np.zeros_like(rows), where=tops > 0)
        usual = float(np.median(tops[:, 0] * np.sqrt(np.mean(np.square(scaled), axis=1))))
    least = max(usual, least_size)
    has_places = places is not None and expected.ndim and len(places) == expected.shape[-1]
    magnitudes = np.maximum(np.abs(expected), least * places if places is not None and has_places else least)
    distances = np.where(odd, 0.0, np.abs(expected - found))
    return Differences(odd, distances, magnitudes, tolerance.allowed(magnitudes))


def shares(
    expected: np.ndarray,
    found: np.ndarray,
    tolerance: Tolerance | None,
    least_size: float = 0.0,
    *,
    by_rows: bool = False,
    places: np.ndarray | None = None,
) -> np.ndarray:
    """Return, for each element of `expected`, the share that its difference has of what is allowed, float64: infinite
    where it must be equal and is not, and everywhere if `found` has another shape or element type. See `differences`.
    """
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return np.full(expected.shape, np.inf)
    if tolerance is None:
        return np.where(expected != found, np.inf, 0.0)
    return differences(expected, found, tolerance, least_size, by_rows=by_rows, places=places).shares


def agree(expected: np.ndarray, found: np.ndarray, arithmetic: str) -> bool:
    """Return whether `found` is equal to `expected` within the tolerance of `arithmetic`; see `tolerance_of`."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    return bool(np.all(shares(expected, found, tolerance_of(arithmetic, expected.dtype.name)) <= 1))


def wide(array: np.ndarray) -> np.ndarray:
    """Return floats as float64, complex numbers as complex128."""
    found: np.ndarray = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return found


def root_mean_square(values: np.ndarray) -> float:
    """Return the root mean square of finite numbers, 0 if there are none. It does not overflow."""
    magnitudes = np.abs(values)
    scale = float(magnitudes.max(initial=0.0))
    return scale * float(np.sqrt(np.mean(np.square(magnitudes / scale)))) if scale > 0 else 0.0
