"""Accept other places of equal floats. An argmax, or the indices of the largest k, depend on the order of the floats
beside them. If those are as good as equal, another arithmetic may order them otherwise, and neither order is wrong.

Every arithmetic rounds, and TensorFlow takes subnormal floats for 0: the small ends of a softmax are equal there, and
ordered elsewhere. Only floats in the same signature can show that. Works on values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from backends.agreement import Tolerance
from converters.proof import Outputs

__all__ = ["with_ties"]

_AreEqual = Callable[[np.ndarray, np.ndarray], np.ndarray]


def with_ties(
    truth: Outputs,
    moved: Sequence[Outputs],
    answer: Outputs,
    tolerances: Mapping[str, Tolerance | None],
    sizes: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Return `truth` with the places that `answer` has where the floats of `truth` at both places are equal within
    `tolerances`; floats count as no smaller than `sizes`.

    The k largest floats alone do not tell the next one. A place that is not among theirs is taken if they end in equal
    ones, or if TensorFlow has it in `moved`, its answers beside these inputs.
    """
    found = dict(truth)
    for alias, places in truth.items():
        if places.dtype.kind not in "iu" or places.shape != answer[alias].shape or not places.size:
            continue
        met = [outputs[alias] for outputs in moved if outputs[alias].shape == places.shape]
        is_met = np.any([other == answer[alias] for other in met], axis=0) if met else np.zeros(places.shape, bool)
        for name, floats in truth.items():
            tolerance = tolerances[name]
            if tolerance is not None and floats.dtype.kind == "f":
                are_equal = _equality(tolerance, sizes.get(name, 0.0))
                is_tied = _tied(places, answer[alias], floats.astype(np.float64), is_met, are_equal)
                found[alias] = np.where(is_tied, answer[alias], found[alias])
    return found


def _equality(tolerance: Tolerance, size: float) -> _AreEqual:
    def are_equal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            magnitudes = np.maximum(np.maximum(np.abs(one), np.abs(other)), size)
            equal: np.ndarray = np.abs(one - other) <= tolerance.allowed(magnitudes)
        return equal

    return are_equal


def _tied(
    places: np.ndarray, others: np.ndarray, floats: np.ndarray, is_met: np.ndarray, are_equal: _AreEqual
) -> np.ndarray:
    """Return, for each of `places`, whether the one in `others` is as good, by the rows of `floats`."""
    if floats.shape[:-1] == places.shape:  # one place for each row
        rows = _tied(places[..., None], others[..., None], floats, is_met[..., None], are_equal)
        return np.asarray(rows[..., 0])
    if places.ndim < 2 or floats.shape[:-1] != places.shape[:-1] or not floats.size:
        return np.zeros(places.shape, bool)
    steps = np.diff(floats, axis=-1)
    is_sorted = np.all(steps <= 0, axis=-1) | np.all(steps >= 0, axis=-1)
    is_tied = _tied_in_list(places, others, floats, is_met, are_equal) & is_sorted[..., None]
    is_list = floats.shape == places.shape and bool(np.all(is_sorted))
    if not is_list and _ranks(places, floats):
        is_able = (others >= 0) & (others < floats.shape[-1])
        one, other = (np.take_along_axis(floats, np.where(is_able, each, 0), axis=-1) for each in (places, others))
        is_tied |= is_able & are_equal(one, other)
    is_row = ~_has_equals(others) & np.all(np.isfinite(floats), axis=-1)
    return np.asarray(is_tied & is_row[..., None])


def _tied_in_list(
    places: np.ndarray, others: np.ndarray, floats: np.ndarray, is_met: np.ndarray, are_equal: _AreEqual
) -> np.ndarray:
    """Do as `_tied` if `floats` are only the largest k, in order, and `places` are theirs, or that of the first."""
    if floats.shape[-1] < 2:
        return np.zeros(places.shape, bool)
    if places.shape[-1] == 1:
        return np.asarray(is_met & are_equal(floats[..., :1], floats[..., 1:2]))
    if floats.shape != places.shape:
        return np.zeros(places.shape, bool)
    is_same = places[..., None, :] == others[..., :, None]
    is_known = is_same.any(axis=-1)
    at = np.argmax(is_same, axis=-1)
    is_swap = is_known & are_equal(floats, np.take_along_axis(floats, at, axis=-1))
    last = floats[..., -1:]
    ends_in_equals = are_equal(floats[..., -2:-1], last) | (last == 0)
    is_next = ~is_known & are_equal(floats, last) & (ends_in_equals | is_met)
    return np.asarray(is_swap | is_next)


def _has_equals(places: np.ndarray) -> np.ndarray:
    """Return for each row whether it has a place twice."""
    ordered = np.sort(places, axis=-1)
    return np.asarray(np.any(ordered[..., 1:] == ordered[..., :-1], axis=-1))


def _ranks(places: np.ndarray, floats: np.ndarray) -> bool:
    """Return whether `places` are those of the largest, or the smallest, of all `floats`."""
    count, size = places.shape[-1], floats.shape[-1]
    if count > size or places.min() < 0 or places.max() >= size:
        return False
    taken = np.take_along_axis(floats, places.astype(np.int64), axis=-1)
    ordered = np.sort(floats, axis=-1)
    return bool(np.all(taken == ordered[..., ::-1][..., :count]) or np.all(taken == ordered[..., :count]))
