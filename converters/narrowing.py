"""Decide which inputs to leave out if a form is wrong on some, so that it is proven for the rest: on values alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from backends.contract import Signature
from backends.domain import FINITE, Domain, smallest_normal
from converters.cases import Inputs
from converters.edges import FLOAT_LEVELS, ORDINARY, WHOLE_LEVELS
from converters.mutations import within

__all__ = ["USUAL", "largest_of", "narrowed", "open_sizes", "tamed"]

USUAL = Domain(largest=ORDINARY, subnormal=False, least_whole=0, largest_whole=WHOLE_LEVELS[1])
"""Numbers that any form must be right on."""


def narrowed(signature: Signature, wrong: Inputs, right: Sequence[Inputs]) -> Domain | None:
    """Return the widest domain that has all of `right` and not `wrong`; None if there is none."""
    for domain in _without(signature, wrong, right):
        if not within(domain, signature, wrong) and all(within(domain, signature, inputs) for inputs in right):
            return domain
    return None


def _without(signature: Signature, wrong: Inputs, right: Sequence[Inputs]) -> Iterator[Domain]:
    """Yield domains that may leave `wrong` out; first those that clients miss least."""
    if any(not array.size for array in wrong.values()):
        yield Domain(empty=False)
    floats = [array for array in wrong.values() if array.dtype.kind in "fcV" and array.size]
    wholes = [
        array
        for alias, array in wrong.items()
        if array.dtype.kind in "iu" and signature.inputs[alias].dtype != "uint8" and array.size
    ]
    parts = [part for array in floats for part in ((array.real, array.imag) if array.dtype.kind == "c" else (array,))]
    if any(np.any((np.abs(part) > 0) & (np.abs(part) < smallest_normal(part.dtype))) for part in parts):
        yield Domain(subnormal=False)
    if any(not np.all(np.isfinite(array)) for array in floats):
        yield Domain(largest=FINITE.largest)
    with np.errstate(invalid="ignore"):
        largest = max((float(np.abs(array).max()) for array in floats), default=0.0)
    for level in sorted(FLOAT_LEVELS, reverse=True):
        if level < largest:
            yield Domain(largest=level)
    if wholes:
        most, least = (max(int(array.max()) for array in wholes), min(int(array.min()) for array in wholes))
        for level in sorted(WHOLE_LEVELS, reverse=True):
            if 0 < level < most:
                yield Domain(largest_whole=level)
            if level < -least:
                yield Domain(least_whole=-level)
    if sizes := open_sizes(signature, right):
        yield Domain(smallest=min(sizes))


def tamed(signature: Signature, inputs: Inputs, domain: Domain) -> Inputs:
    """Return the inputs with ordinary numbers in place of those outside of `domain`."""
    found = dict(inputs)
    for alias, array in inputs.items():
        kind = array.dtype.kind
        if kind in "fcV":
            with np.errstate(invalid="ignore"):
                sizes = np.abs(array).astype(np.float64)
                is_large = ~(sizes <= (np.inf if domain.largest is None else domain.largest))
            if domain.largest is None:
                is_large &= False
            is_tiny = (sizes > 0) & (sizes < smallest_normal(array.real.dtype)) & (not domain.subnormal)
            found[alias] = np.where(is_large, array.dtype.type(1), np.where(is_tiny, array.dtype.type(0), array))
        elif kind in "iu" and signature.inputs[alias].dtype != "uint8":
            found[alias] = np.clip(array, domain.least_whole, domain.largest_whole)
    return found


def largest_of(inputs: Iterable[Inputs]) -> Domain:
    """Return the domain of whole numbers no larger than any in `inputs`."""
    wholes = [array for one in inputs for array in one.values() if array.dtype.kind in "iu" and array.size]
    return Domain(largest_whole=max(int(array.max()) for array in wholes)) if wholes else Domain()


def open_sizes(signature: Signature, inputs: Sequence[Inputs]) -> set[int]:
    """Return the sizes of the open dimensions, besides the first."""
    return {size for one in inputs for size in _open_sizes(signature, one)}


def _open_sizes(signature: Signature, inputs: Inputs) -> Iterator[int]:
    for alias, array in inputs.items():
        shape = signature.inputs[alias].shape
        if shape is not None and array.size:
            yield from (got for size, got in zip(shape[1:], array.shape[1:], strict=False) if size < 0)
